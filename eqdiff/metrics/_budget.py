r"""An uncertainty taken apart: images, dequantisation, probes, the solver.

The spread of scores over images mixes everything that was drawn anew for each. Nested draws take it
apart (an analysis of variance): of $n$ images $i$, $J$ dequantisations $j$ of each, and $K$ probes
$k$ of each dequantisation,

$$b_{ijk} = \mu + I_i + Q_{ij} + P_{ijk}, \tag{1}$$

where the variances of $Q$ and $P$ may differ from image to image, and theirs is the mean. With bars
for means over the missing indices and $V$ for unbiased sample variances, unbiased estimates are

$$\hat\sigma_P^2 = \overline{V_k(b_{ijk})}, \qquad
  \hat\sigma_Q^2 = \overline{V_j(\bar b_{ij})} - \tfrac1K\hat\sigma_P^2, \qquad
  \hat\sigma_I^2 = V_i(\bar b_i) - \tfrac1J\overline{V_j(\bar b_{ij})} \tag{2}$$

(Searle, Casella & McCulloch 1992, section 3.5). An unbiased estimate of a small variance is
negative now and then: it is kept as it is and printed as what it says, an upper limit. Each has the
standard error of the jackknife over images, which assumes no distribution: that of the mean of
pseudo-values, which for a sample variance $V$ of $n$ values $m_i$ are

$$p_i = nV - \frac{(n - 1)^2\,V - n\,(m_i - \bar m)^2}{n - 2}, \qquad \bar p = V. \tag{3}$$

A mean over $n$ images, each with one dequantisation and one probe, then has the variance
$(\sigma_I^2 + \sigma_Q^2 + \sigma_P^2)/n$. Where the images are all there are (a whole test set),
$\sigma_I$ does not count towards the uncertainty of the score on them.

**The solver** has a bias, which does not fall with $n$. It is found by solving again at a tenth of
the tolerance with the same draws: of a method whose error is proportional to the tolerance, the
difference is nine tenths of the error.

**The variational bound** draws times and noise, whose variance it estimates without bias from one
evaluation of each image, so that no draws need be nested.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, PyTree

from .._check import whole
from .._denoiser import AbstractDenoiser
from .._guidance import Clip
from .._likelihood import AbstractDequantisation, bits_per_dim, GaussianDequantisation
from .._map import map_examples
from .._sampler import ProbabilityFlow
from .._trace import Hutchinson
from .._types import Key
from ._bits import Bound, FLOW, from_first_level
from ._mean import Mean, mean


class ErrorBudget(NamedTuple):
    """The parts of an uncertainty in bits/dim, printed as a table.

    **Fields:**

    - `bits`: the mean of the images scored, and its standard error, in which all but the solver is.
    - `dim`: the dimensions of an image.
    - `images`, `dequantisation`, `probes`, `draws`: variances of one evaluation of one image, in
        (bits/dim)², as an [`eqdiff.metrics.Mean`][]: equation (2), which may be negative, and its
        standard error (3). `probes` is that of one probe, `draws` that of the bound's times and
        noise. `None` where there is no such part.
    - `solver`: how far the solver is off, the mean of the differences to a more accurate solve; or
        `None`.
    - `solver_rms`: the root of their mean square: how far off it is on one image.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(20))
    images, _ = eqd.data.digits().held_out(8)
    budget = eqd.metrics.bound_errors(denoiser, images, levels=17, key=jax.random.key(1))
    rows = budget.table(10_000)  # of an eqd.metrics.ErrorBudget
    ```
    """

    bits: Mean
    dim: int
    images: Mean
    dequantisation: Mean | None = None
    probes: Mean | None = None
    draws: Mean | None = None
    solver: Mean | None = None
    solver_rms: float | None = None

    def variance(self) -> float:
        """Of one evaluation of one image, all parts together."""
        parts = (self.images, self.dequantisation, self.probes, self.draws)
        return sum(float(part.value) for part in parts if part is not None)

    def stderr(self, num: int) -> float:
        """The standard error of a mean over `num` images, one evaluation each.

        **Arguments:**

        - `num`: how many images, for example of the test set.

        **Raises:** `ValueError` for less than one.
        """
        num = whole("ErrorBudget.stderr", "num", num)
        return math.sqrt(max(self.variance(), 0.0) / num)

    def table(self, num: int | None = None) -> list[tuple[str, ...]]:
        """Standard deviations by source, in bits/dim, as rows of a table, the first being the names
        of the columns; a part that is not significantly above zero is an upper limit, `< …`.

        **Arguments:**

        - `num`: of how many images the mean is; by default as many as there were.

        **Raises:** `ValueError` for less than one.
        """
        num = whole("ErrorBudget.table", "num", self.bits.num if num is None else num)
        nats = self.dim * math.log(2)
        rows: list[tuple[str, ...]] = [("source", "one image", "in nats", f"mean of {num}")]
        for name, part in (
            ("images", self.images),
            ("dequantisation", self.dequantisation),
            ("probes", self.probes),
            ("times and noise", self.draws),
        ):
            if part is not None:
                scales = (1.0, nats, 1 / math.sqrt(num))
                rows.append((name, *(_deviation(part, scale) for scale in scales)))
        one = self.stderr(1)
        rows.append(("together", f"{one:.2g}", f"{one * nats:.2g}", f"{self.stderr(num):.2g}"))
        if self.solver is not None and self.solver_rms is not None:
            bias = f"{self.solver.value:+.2g} ± {self.solver.stderr:.1g}"
            rms = self.solver_rms
            rows.append(("solver (bias)", f"{rms:.2g}", f"{rms * nats:.2g}", bias))
        return rows

    def __str__(self) -> str:
        rows = self.table()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([f"{self.bits} bits/dim", *lines])


def _deviation(variance: Mean, scale: float) -> str:
    """The root of a variance, or the limit below which it lies with two standard errors."""
    value, stderr = float(variance.value), float(variance.stderr)
    if value == stderr == 0:
        return "0"
    if value < 2 * stderr:
        return f"< {scale * math.sqrt(max(value, 0.0) + 2 * stderr):.2g}"
    return f"{scale * math.sqrt(value):.2g}"


class _FlowDraws(eqx.Module):
    """Bits, their probes' standard errors, of some dequantisations of an image; and by how much the
    first is off.
    """

    denoiser: AbstractDenoiser
    flow: ProbabilityFlow
    reference: ProbabilityFlow
    dequantise: AbstractDequantisation
    num_draws: int = eqx.field(static=True)
    num_probes: int = eqx.field(static=True)

    def __call__(self, x: Any, args: Any, key: Key) -> Any:
        def draw(key, flow=self.flow):
            found = bits_per_dim(
                self.denoiser,
                x,
                args,
                flow=flow,
                trace=Hutchinson(self.num_probes),
                dequantise=self.dequantise,
                key=key,
            )
            return found.bits, found.stderr

        keys = jax.random.split(key, self.num_draws)
        # One after the other: memory is that of one solve, as in flow_bits.
        bits, stderr = jax.lax.map(draw, keys)
        return bits, stderr, bits[0] - draw(keys[0], self.reference)[0]


def flow_errors(
    denoiser: AbstractDenoiser,
    images: Float[np.ndarray, "n ..."],
    args: PyTree[Any] = None,
    *,
    levels: int = 256,
    dequantise: AbstractDequantisation | None = None,
    flow: ProbabilityFlow = FLOW,
    reference: ProbabilityFlow | None = None,
    num_draws: int = 2,
    num_probes: int = 2,
    key: Key,
    batch_size: int = 50,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> ErrorBudget:
    """Takes the uncertainty of [`eqdiff.metrics.flow_bits`][] apart, from a few images.

    Fifty images give a standard deviation to some 15 %, enough to see which part matters.
    They cost about six times as much as in `flow_bits`: two dequantisations with two probes each,
    and a solve with twice as many steps.

    **Arguments:** as for [`eqdiff.metrics.flow_bits`][], and

    - `images`: three or more.
    - `reference`: the more accurate flow that measures the solver's error; by default `flow` at a
        tenth of its tolerances. One of fixed steps has none: give one of twice as many steps.
    - `num_draws`, `num_probes`: how many dequantisations of each image, and probes of each
        dequantisation, two or more.

    **Returns:** an [`eqdiff.metrics.ErrorBudget`][].

    **Raises:** `ValueError` for too few of anything, or a flow of fixed steps without a reference;
    and as [`eqdiff.metrics.flow_bits`][].

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(20))
    images, _ = eqd.data.digits().held_out(8)
    budget = eqd.metrics.flow_errors(denoiser, images, levels=17, key=jax.random.key(1))
    print(budget)  # a table
    print(budget.stderr(10_000))  # what a mean over so many images will have
    ```
    """
    owner = "flow_errors"
    num_draws = whole(owner, "num_draws", num_draws, least=2)
    num_probes = whole(owner, "num_probes", num_probes, least=2)
    _check_images(owner, images)
    reference = _tenth(flow) if reference is None else reference
    dequantise = GaussianDequantisation(levels) if dequantise is None else dequantise
    on_levels = from_first_level(denoiser, levels)
    fn = _FlowDraws(on_levels, flow, reference, dequantise, num_draws, num_probes)
    bits, stderr, error = (
        np.asarray(a, np.float64)
        for a in map_examples(
            fn, images, args, key=key, batch_size=batch_size, mesh=mesh, progress=progress
        )
    )
    variance, among_draws, among_probes = _nested(bits, stderr, num_probes)
    return ErrorBudget(
        mean(bits.mean(axis=1)),
        int(np.prod(images.shape[1:])),
        mean(variance - among_draws / num_draws),
        dequantisation=mean(among_draws - among_probes / num_probes),
        probes=mean(among_probes),
        solver=mean(error),
        solver_rms=math.sqrt(np.mean(error**2)),
    )


def bound_errors(
    denoiser: AbstractDenoiser,
    images: Float[np.ndarray, "n ..."],
    args: PyTree[Any] = None,
    *,
    levels: int = 256,
    num_terms: int = 64,
    key: Key,
    batch_size: int = 50,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> ErrorBudget:
    """Takes the uncertainty of [`eqdiff.metrics.bound_bits`][] apart: into images, and the times
    and noise drawn.

    It makes the same draws as `bound_bits` with the same key, so that its `bits` are the same
    number and serve instead.

    **Arguments:** as for [`eqdiff.metrics.bound_bits`][], of three or more images.

    **Returns:** an [`eqdiff.metrics.ErrorBudget`][].

    **Raises:** `ValueError` for fewer than three images, and as [`eqdiff.metrics.bound_bits`][].

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(20))
    images, _ = eqd.data.digits().held_out(8)
    print(eqd.metrics.bound_errors(denoiser, images, levels=17, key=jax.random.key(1)))
    ```
    """
    _check_images("bound_errors", images)
    fn = Bound(Clip(from_first_level(denoiser, levels)), levels, num_terms)
    bits, stderr = (
        np.asarray(a, np.float64)
        for a in map_examples(
            fn, images, args, key=key, batch_size=batch_size, mesh=mesh, progress=progress
        )
    )
    return ErrorBudget(
        mean(bits),
        int(np.prod(images.shape[1:])),
        mean(_pseudo_variances(bits) - stderr**2),
        draws=mean(stderr**2),
    )


def _check_images(owner: str, images: Any) -> None:
    if len(images) < 3:
        raise ValueError(
            f"{owner}: expected at least 3 images, got {len(images)}: fewer do not tell how far "
            "their variance can be trusted."
        )


def _tenth(flow: ProbabilityFlow) -> ProbabilityFlow:
    """The same flow at a tenth of its tolerances."""
    if flow.grid is not None:
        raise ValueError(
            "flow_errors: the flow has fixed steps and no tolerance to tighten. Say what to "
            "compare it with: reference=ProbabilityFlow(...) of twice as many steps."
        )
    return eqx.tree_at(lambda f: (f.rtol, f.atol), flow, (flow.rtol / 10, flow.atol / 10))


def _nested(
    bits: Float[np.ndarray, "n draws"], stderr: Float[np.ndarray, "n draws"], num_probes: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """What the variances of equation (2) are means of, image by image: over images, draws,
    probes.
    """
    among_draws = np.var(bits, axis=1, ddof=1)
    among_probes = num_probes * np.mean(stderr**2, axis=1)
    return _pseudo_variances(bits.mean(axis=1)), among_draws, among_probes


def _pseudo_variances(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Equation (3)."""
    n = len(values)
    squares = (values - values.mean()) ** 2
    variance = squares.sum() / (n - 1)
    return n * variance - ((n - 1) ** 2 * variance - n * squares) / (n - 2)
