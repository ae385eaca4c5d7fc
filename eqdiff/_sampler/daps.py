r"""Decoupled annealing posterior sampling (DAPS).

At each level the probability flow is followed from $x_t$ to the data, in one step or a few, and its
end $\hat x_0$ is taken for the centre of $p(x_0|x_t)$. With the measurement,

$$x_0 \sim p(x_0|x_t, y) \propto p(y|x_0)\,\mathcal N(x_0;\ \hat x_0, r_t^2 I), \qquad
  r_t^2 = \frac{s^2\sigma_t^2}{\alpha_t^2s^2 + \sigma_t^2}, \tag{1}$$

is drawn without the network, and noised anew to the next level,

$$x_s = \alpha_s x_0 + \sigma_s z, \qquad z \sim \mathcal N(0, I). \tag{2}$$

Successive states depend on each other through $x_0$ alone — *decoupled* — so that a chain can move
far between levels and leave early errors behind. $r_t$ is the spread of independent Gaussian data
of standard deviation $s$; the paper's is $\sigma_t/\alpha_t$, which is $s = \infty$. **What this
samples.** The posterior as far as (1) is true; a Gaussian of one variance for $p(x_0|x_t)$ is an
approximation.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._check import check_positive, whole
from .._denoiser import AbstractDenoiser
from .._guidance import refuse_no_signal
from .._measurement import Measurement, require_measurement
from .._process import as_time
from .._types import Args, Example
from .base import AbstractChain, Step
from .data_draw import AbstractDataDraw, LinearisedDraw
from .grid import Grid, grid_of, Spacing


class DAPS(AbstractChain):
    r"""DAPS, equations (1) and (2).

    A sample costs `num_steps` × `flow_steps` network calls and no derivative of the network. For a
    batch of measurements build the sampler inside `jax.vmap`.

    **Example:**

    ```python
    measurement = eqd.Measurement(jnp.ones(2), lambda x: x[:2], 0.05)
    denoiser, sampler = eqd.GaussianDenoiser(eqd.VPSDE()), eqd.DAPS(measurement, 10)
    x0 = sampler(denoiser, jnp.ones(4), key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Zhang et al., *Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing*,
        CVPR 2025, algorithm 1.
    """

    measurement: Measurement
    grid: Grid
    flow_steps: int = eqx.field(static=True)
    std: float
    draw: AbstractDataDraw

    def __init__(
        self,
        measurement: Measurement,
        num_steps: int | None = None,
        *,
        flow_steps: int = 1,
        std: float = 1.0,
        draw: AbstractDataDraw = LinearisedDraw(),
        spacing: Spacing | None = None,
        times: Any = None,
    ):
        r"""**Arguments:**

        - `measurement`: what was measured.
        - `num_steps`, `spacing`, `times`: the levels, as for [`eqdiff.Grid`][]; 50 evenly spaced
            times by default.
        - `flow_steps`: network calls at each level, Euler steps of the probability flow. One gives
            the mean of $p(x_0|x_t)$ and was better than five on known posteriors; the paper takes
            five, for images.
        - `std`: $s$, the standard deviation of the data; `float("inf")` is the paper's $r_t$.
        - `draw`: how equation (1) is drawn: [`eqdiff.LinearisedDraw`][], exact for a linear
            operator and Gaussian noise, or [`eqdiff.LangevinDraw`][].

        **Raises:** `ValueError` for a number out of range, and as [`eqdiff.Grid`][]; when called,
        for a measurement that does not fit the sample, one without a density where the draw needs
        it, and a process that ends without signal (α = 0).
        """
        if std != float("inf"):
            check_positive(self, std=std)
        require_measurement(self, measurement)
        self.measurement, self.draw, self.std = measurement, draw, std
        self.grid = grid_of(self, num_steps, spacing, times, default=50)
        self.flow_steps = whole(self, "flow_steps", flow_steps)

    @property
    def random(self) -> bool:
        return True

    @property
    def num_calls(self) -> int | None:
        return None if self.grid.num_steps is None else self.grid.num_steps * self.flow_steps

    def step(self, denoiser, step, x, args, *, key):
        self.measurement.check("DAPS", x)
        refuse_no_signal("DAPS", denoiser, "the spread of equation (1) is not known")
        inner, outer = jax.random.split(key)
        mean = self._flow(denoiser, step, x, args)
        # Divided by s², so that s may be infinite.
        spread = step.sigma_t / jnp.sqrt(step.alpha_t**2 + (step.sigma_t / self.std) ** 2)
        x0 = self.draw(self.measurement, mean, spread, key=inner)
        noise = jax.random.normal(outer, x.shape, x.dtype)
        return step.alpha_s * x0 + step.sigma_s * noise, x0

    def _flow(self, denoiser: AbstractDenoiser, step: Step, x: Example, args: Args) -> Example:
        r"""The end of the probability flow from $x_t$: Euler's method in $\sigma/\alpha$, at levels
        that are evenly spaced in its seventh root, as [`eqdiff.karras_times`][] has them.
        """
        process = denoiser.process
        alpha_end, sigma_end = process.levels(process.t0, like=x)
        start, end = step.sigma_t / step.alpha_t, sigma_end / alpha_end
        part = jnp.arange(self.flow_steps, dtype=x.dtype) / max(self.flow_steps - 1, 1)
        roots = start ** (1 / 7) + part * (end ** (1 / 7) - start ** (1 / 7))
        # Exactly where x is, and never above.
        levels = jnp.minimum(roots**7, start).at[0].set(start)

        here = as_time(step.t)

        def euler(y, inputs):
            level, following, first = inputs
            t = process.time(-2 * jnp.log(level)).astype(here.dtype)
            t = jnp.where(first, here, jnp.clip(t, process.t0, here))
            estimate = denoiser(t, process.alpha(t).astype(x.dtype) * y, args)
            return y + (following - level) * estimate.noise, None

        following = jnp.append(levels[1:], 0)
        first = jnp.arange(self.flow_steps) == 0
        return jax.lax.scan(euler, x / step.alpha_t, (levels, following, first))[0]
