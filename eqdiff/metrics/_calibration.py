r"""Simulation-based calibration: whether posteriors mean what they say.

Draw parameters from the prior and data from the simulator, $\theta^* \sim p(\theta)$,
$x \sim p(x|\theta^*)$, then $\theta_1, \dots, \theta_L$ from a posterior $q(\theta|x)$. If $q$ is
the true posterior, $\theta^*$ and the $\theta_l$ are alike given $x$, so that for any number
$f(\theta, x)$ the rank

$$r = \#\{l : f(\theta_l, x) < f(\theta^*, x)\} \quad\text{is uniform on } 0, \dots, L \tag{1}$$

(Cook, Gelman & Rubin 2006; Talts et al. 2018, theorem 1). A parameter, $f = \theta_k$, tests its
marginal: ranks heap up at both ends where $q$ is too narrow, in the middle where it is too wide,
and at one end where it is biased. The density, $f = -\log q(\theta|x)$, tests all of them at once:
then $r/L$ is the mass of the smallest region of highest density that holds $\theta^*$, and the
share of truths with $r/L$ below a level is the *expected coverage* of the regions of that level,
less than it where $q$ is over-confident (Hermans et al. 2022).

With $o_b$ of $n$ ranks in each of $B$ bins, and $e_b$ expected,

$$X^2 = \sum_b \frac{(o_b - e_b)^2}{e_b} \tag{2}$$

is χ² distributed with $B - 1$ degrees of freedom if (1) holds. And the curve of the coverage stays,
with 95 % probability everywhere at once, within

$$\max_k |\hat c_k - c_k| \le \sqrt{\log(2/0.05)/(2n)} \tag{3}$$

of the diagonal (Massart 1990), $c_k = (k + 1)/(L + 1)$ and $\hat c_k$ the share of ranks up to $k$.

Calibration is necessary, not sufficient: the prior itself, for every $x$, is calibrated too. How
much a posterior says is measured by the mean of $\log q(\theta^*|x)$.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import ArrayLike, Float, Int, PyTree, Shaped

from .._check import whole
from .._denoiser import AbstractDenoiser
from .._likelihood import log_likelihood
from .._map import map_examples
from .._sampler import AbstractSampler, ProbabilityFlow
from .._trace import ExactTrace
from .._types import Key


class Calibration(NamedTuple):
    """The test of uniform ranks, for each column of ranks separately.

    **Fields:**

    - `num`, `num_draws`: how many ranks there are of each, and $L$.
    - `p_value`: the probability of so large a (2) for a calibrated posterior, `(d,)`. Of several
        columns the smallest is to be compared with the level you test at, divided by their number.
    - `counts`, `expected`: the histogram of ranks, `(bins, d)` and `(bins,)`.
    - `levels`, `coverage`: the curve to draw, `(L + 1,)` and `(L + 1, d)`: the share of truths
        within what should hold that share. For ranks of the density these are the regions of
        highest density, for those of a parameter all that lies below a quantile.
    - `band`: how far from the diagonal the curve strays in one case of twenty, (3).

    **Example:**

    ```python
    import numpy as np
    ranks = np.random.default_rng(0).integers(0, 100, size=(200, 2))
    found = eqd.metrics.calibration(ranks, 99)  # an eqd.metrics.Calibration
    rows = found.table(["mass", "spin"])
    ```
    """

    num: int
    num_draws: int
    p_value: Float[np.ndarray, " d"]
    counts: Int[np.ndarray, "bins d"]
    expected: Float[np.ndarray, " bins"]
    levels: Float[np.ndarray, " levels"]
    coverage: Float[np.ndarray, "levels d"]
    band: float

    def table(self, names: list[str] | None = None) -> list[tuple[str, ...]]:
        """Each column's p-value, and its coverage at two levels, as rows of a table, the first
        being the names of the columns.

        **Arguments:**

        - `names`: of the columns of ranks; by default their numbers.

        **Raises:** `ValueError` for another number of names.
        """
        size = len(self.p_value)
        names = [str(i) for i in range(size)] if names is None else names
        if len(names) != size:
            raise ValueError(f"Calibration.table: {len(names)} names for {size} columns of ranks.")
        rows: list[tuple[str, ...]] = [("ranks of", "p-value", "coverage at 50 %", "at 90 %")]
        for i, name in enumerate(names):
            shares = [np.interp(level, self.levels, self.coverage[:, i]) for level in (0.5, 0.9)]
            rows.append((name, f"{self.p_value[i]:.2g}", *(f"{100 * s:.0f} %" for s in shares)))
        return rows


def calibration_ranks(
    draws: Shaped[ArrayLike, "n draws ..."], truth: Shaped[ArrayLike, "n ..."], *, seed: int = 0
) -> Int[np.ndarray, "n ..."]:
    r"""The ranks of the truth among draws from its posterior: equation (1).

    **Arguments:**

    - `draws`: $f(\theta_l, x)$ for each of $n$ simulations and $L$ draws, `(n, L, ...)`: the
        parameters, or what depends on them, such as $-\log q(\theta_l|x)$.
    - `truth`: $f(\theta^*, x)$, `(n, ...)`.
    - `seed`: ties are broken at random, which keeps ranks uniform.

    **Returns:** whole numbers from 0 to $L$.

    **Raises:** `ValueError` for shapes that do not fit, or numbers that are not finite.

    **Example:**

    ```python
    draws = jax.random.normal(jax.random.key(0), (200, 99, 2))  # 99 draws, 200 simulations
    truth = jax.random.normal(jax.random.key(1), (200, 2))
    ranks = eqd.metrics.calibration_ranks(draws, truth)
    ```
    """
    draws, truth = np.asarray(draws), np.asarray(truth)
    if draws.ndim < 2 or draws.shape[:1] + draws.shape[2:] != truth.shape or 0 in draws.shape:
        raise ValueError(
            f"calibration_ranks: draws of shape {draws.shape} and a truth of shape {truth.shape}; "
            "expected (n, L, ...) and (n, ...), with L draws for each of n simulations."
        )
    if not (np.all(np.isfinite(draws)) and np.all(np.isfinite(truth))):
        raise ValueError("calibration_ranks: the draws or the truth are not all finite.")
    below = np.sum(draws < truth[:, None], axis=1)
    ties = np.sum(draws == truth[:, None], axis=1)
    return below + np.random.default_rng(seed).integers(0, ties, endpoint=True)


def calibration(
    ranks: Int[np.ndarray, "n *d"], num_draws: int, *, num_bins: int | None = None
) -> Calibration:
    """Tests whether ranks are uniform on 0 … `num_draws`: equation (2), and a curve to draw.

    **Arguments:**

    - `ranks`: as of [`eqdiff.metrics.calibration_ranks`][], `(n,)` or `(n, d)` for $d$ quantities.
    - `num_draws`: $L$, among how many draws they are ranks.
    - `num_bins`: $B$; by default the most, up to 20, that hold ten ranks each.

    **Returns:** an [`eqdiff.metrics.Calibration`][].

    **Raises:** `ValueError` for ranks out of range, fewer than two bins or more than ranks.

    **Example:**

    ```python
    import numpy as np
    ranks = np.random.default_rng(0).integers(0, 100, size=(200, 2))
    print(eqd.metrics.calibration(ranks, 99).p_value)
    ```

    ??? cite "Reference"

        Talts, Betancourt, Simpson, Vehtari & Gelman, *Validating Bayesian Inference Algorithms with
        Simulation-Based Calibration*, 2018; Hermans et al., *A Trust Crisis In Simulation-Based
        Inference?*, TMLR 2022.
    """
    num_draws = whole("calibration", "num_draws", num_draws)
    ranks = np.asarray(ranks)
    ranks = ranks[:, None] if ranks.ndim == 1 else ranks
    num = len(ranks)
    if ranks.ndim != 2 or num == 0 or ranks.dtype.kind not in "iu":
        raise ValueError(
            f"calibration: expected whole numbers of shape (n, d), got {ranks.dtype} of shape "
            f"{ranks.shape}."
        )
    if ranks.min() < 0 or ranks.max() > num_draws:
        raise ValueError(
            f"calibration: ranks from {ranks.min()} to {ranks.max()} among {num_draws} draws; "
            f"expected 0 to {num_draws}."
        )
    size = num_draws + 1
    num_bins = min(size, 20, max(2, num // 10)) if num_bins is None else num_bins
    num_bins = whole("calibration", "num_bins", num_bins, least=2)
    if num_bins > size:
        raise ValueError(f"calibration(num_bins={num_bins}): expected at most {size}, the ranks.")
    of_rank = np.stack([np.bincount(column, minlength=size) for column in ranks.T], axis=1)
    # Bins as equal as whole ranks allow; what is expected in each follows its size.
    edges = np.linspace(0, size, num_bins + 1).round().astype(int)
    counts = np.add.reduceat(of_rank, edges[:-1], axis=0)
    expected = num * np.diff(edges) / size
    statistic = np.sum((counts - expected[:, None]) ** 2 / expected[:, None], axis=0)
    return Calibration(
        num,
        num_draws,
        np.asarray(jax.scipy.stats.chi2.sf(statistic, float(num_bins - 1)), np.float64),
        counts,
        expected,
        np.arange(1, size + 1) / size,
        np.cumsum(of_rank, axis=0) / num,
        math.sqrt(math.log(2 / 0.05) / (2 * num)),
    )


class _Ranked(eqx.Module):
    """Draws for one simulation, flattened, and with a flow how improbable they are; and the
    truth."""

    sampler: AbstractSampler
    denoiser: AbstractDenoiser
    flow: ProbabilityFlow | None
    num_draws: int = eqx.field(static=True)

    def __call__(self, truth: Any, args: Any, key: Key) -> Any:
        def draw(key):
            # Prior and path must not share a key.
            prior_key, path_key = jax.random.split(key)
            noise = self.denoiser.process.prior_sample(truth.shape, key=prior_key)
            return self.sampler(self.denoiser, noise.astype(truth.dtype), args, key=path_key)

        def quantities(theta):
            flat = theta.reshape(-1)
            if self.flow is None:
                return flat
            found = log_likelihood(self.denoiser, theta, args, flow=self.flow, trace=ExactTrace())
            return jax.numpy.append(flat, -found.log_prob)

        draws = jax.vmap(draw)(jax.random.split(key, self.num_draws))
        both = jax.vmap(quantities)(jax.numpy.concatenate([draws, truth[None]]))
        return both[:-1], both[-1]


def posterior_ranks(
    sampler: AbstractSampler,
    denoiser: AbstractDenoiser,
    truth: Float[np.ndarray, "n ..."],
    args: PyTree[Any],
    *,
    num_draws: int = 99,
    flow: ProbabilityFlow | None = None,
    key: Key,
    batch_size: int = 50,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> Int[np.ndarray, "n d"]:
    r"""The ranks of parameters among a model's draws of them given their data: equation (1).

    **Arguments:**

    - `sampler`, `denoiser`: how the posterior is drawn from, and its denoiser, conditional on
        `args`. The ranks show the sampler's errors too: let it take enough steps.
    - `truth`: $\theta^*$, drawn from the prior, one row for each of $n$ simulations.
    - `args`: the data $x \sim p(x|\theta^*)$ that condition the network, with a leading axis of as
        many.
    - `num_draws`: $L$ draws for each.
    - `flow`: if given, the last column are ranks of $-\log q(\theta|x)$, with exact traces.
    - `key`, `batch_size`, `mesh`, `progress`: as for [`eqdiff.map_examples`][]; there are
        `num_draws` times as many examples at once as `batch_size` says.

    **Returns:** whole numbers from 0 to $L$, one column for each element of $\theta$, and one more
    with a `flow`.

    **Raises:** as [`eqdiff.map_examples`][] and [`eqdiff.log_likelihood`][].

    **Example:**

    ```python
    import numpy as np
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(20))
    truth, data = np.random.default_rng(0).normal(size=(2, 20, 2))
    options = dict(num_draws=9, key=jax.random.key(1))
    ranks = eqd.metrics.posterior_ranks(eqd.DDIM(10), denoiser, truth, data, **options)
    print(eqd.metrics.calibration(ranks, 9).p_value)
    ```
    """
    num_draws = whole("posterior_ranks", "num_draws", num_draws)
    draws, truths = map_examples(
        _Ranked(sampler, denoiser, flow, num_draws),
        truth,
        args,
        key=key,
        batch_size=batch_size,
        mesh=mesh,
        progress=progress,
    )
    return calibration_ranks(draws, truths)
