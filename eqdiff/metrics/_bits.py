r"""Bits per dimension of held-out images, by both of a model's numbers.

The variational bound is that of the model's chain, or in continuous time that of any other process;
the probability flow has an exact likelihood. Both are means over images with their standard errors,
which cover images, times, noise, dequantisation and probes.

**Where the interval begins.** A process in continuous time goes on to noise far below the distance
$2/(L-1)$ of two grey levels, where there is nothing to learn about images on a grid. Both numbers
therefore begin at the time $t_0$ with

$$\frac{\sigma_{t_0}}{\alpha_{t_0}} = 0.4\cdot\frac{2}{L-1}, \tag{1}$$

the level at which the cosine schedule of 4000 steps begins, or where the process does, if later. A
learned process begins where it has learned to.
"""

from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, PyTree

from .._bound import continuous_bound, variational_bound
from .._denoiser import AbstractDenoiser, on
from .._guidance import Clip
from .._likelihood import AbstractDequantisation, bits_per_dim, GaussianDequantisation
from .._map import map_examples
from .._process import LearnedVPSDE, Schedule
from .._sampler import ProbabilityFlow
from .._types import Key
from ._mean import Mean, mean


# Of low order and tolerance: a trained network is not smooth in time, and the error is far below
# the standard errors quoted. See docs/adaptive-solves.md.
FLOW = ProbabilityFlow(diffrax.Bosh3(), rtol=1e-3, atol=1e-3)


class Bound(eqx.Module):
    """The bound on one image and its standard error given the image."""

    denoiser: AbstractDenoiser
    levels: int = eqx.field(static=True)
    num_terms: int = eqx.field(static=True)

    def __call__(self, x: Any, args: Any, key: Key) -> Any:
        process = self.denoiser.process
        chain = isinstance(process, Schedule)
        # Two draws of every step are the most that a chain has.
        terms = min(self.num_terms, 2 * process.num_steps) if chain else self.num_terms
        found = (variational_bound if chain else continuous_bound)(
            self.denoiser,
            x,
            args,
            key=key,
            num_terms=terms,
            levels=self.levels,
            # One network call then has the shape of the flow's, and what a GPU's compiler finds
            # out about its convolutions serves both.
            chunk=1,
        )
        return found.bits, found.stderr


class _Flow(eqx.Module):
    denoiser: AbstractDenoiser
    flow: ProbabilityFlow
    dequantise: AbstractDequantisation

    def __call__(self, x: Any, args: Any, key: Key) -> Any:
        return bits_per_dim(
            self.denoiser, x, args, flow=self.flow, dequantise=self.dequantise, key=key
        ).bits


def from_first_level(denoiser: AbstractDenoiser, levels: int) -> AbstractDenoiser:
    """The denoiser on the interval that begins at equation (1); that of a schedule or of a learned
    process is left as it is.
    """
    process = denoiser.process
    if isinstance(process, Schedule | LearnedVPSDE):
        return denoiser
    start = process.time(jnp.asarray(-2 * np.log(0.8 / (levels - 1))))
    t0 = max(float(process.t0), float(start))
    return on(denoiser, eqx.tree_at(lambda p: p.t0, process, t0))


def bound_bits(
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
) -> Mean:
    """The variational bound of images in bits/dim, $x_0$ clipped as in the official evaluation.

    **Arguments:**

    - `denoiser`: on a schedule ([`eqdiff.variational_bound`][]) or any other process
        ([`eqdiff.continuous_bound`][]).
    - `images`: on the grid of their levels, such as `data.held_out()` gives.
    - `args`: what conditions the network, with a leading axis of as many.
    - `levels`: the number of grey levels.
    - `num_terms`: how many terms are drawn for each image, an even number.
    - `key`, `batch_size`, `mesh`, `progress`: as for [`eqdiff.map_examples`][].

    **Returns:** an [`eqdiff.metrics.Mean`][].

    **Raises:** as these functions.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(20))
    images, _ = eqd.data.digits().held_out(8)
    print(eqd.metrics.bound_bits(denoiser, images, levels=17, key=jax.random.key(1)))
    ```
    """
    fn = Bound(Clip(from_first_level(denoiser, levels)), levels, num_terms)
    return mean(_mapped(fn, images, args, key, batch_size, mesh, progress)[0])


def flow_bits(
    denoiser: AbstractDenoiser,
    images: Float[np.ndarray, "n ..."],
    args: PyTree[Any] = None,
    *,
    levels: int = 256,
    dequantise: AbstractDequantisation | None = None,
    flow: ProbabilityFlow = FLOW,
    key: Key,
    batch_size: int = 50,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> Mean:
    """The likelihood of images under the probability flow, in bits/dim.

    **Arguments:** as for [`eqdiff.metrics.bound_bits`][], and

    - `dequantise`: by default [`eqdiff.GaussianDequantisation`][], for networks that were trained
        on the grid.
    - `flow`: the solver, by default `diffrax.Bosh3()` at a tolerance of 1e-3.

    **Returns:** an [`eqdiff.metrics.Mean`][], one dequantisation and one Hutchinson probe an image.

    **Raises:** as [`eqdiff.bits_per_dim`][] and [`eqdiff.map_examples`][].

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(20))
    images, _ = eqd.data.digits().held_out(8)
    print(eqd.metrics.flow_bits(denoiser, images, levels=17, key=jax.random.key(1)))
    ```
    """
    dequantise = GaussianDequantisation(levels) if dequantise is None else dequantise
    fn = _Flow(from_first_level(denoiser, levels), flow, dequantise)
    return mean(_mapped(fn, images, args, key, batch_size, mesh, progress))


def _mapped(fn, images, args, key, batch_size, mesh, progress) -> Any:
    return map_examples(
        fn, images, args, key=key, batch_size=batch_size, mesh=mesh, progress=progress
    )
