r"""DPM-Solver++ for the reverse SDE.

With $\ell = \log(\alpha/\sigma)$ and $h = \ell_s - \ell_t$, the reverse SDE from $t$ down to $s$
is, for an estimate $D$ held fixed, solved exactly by

$$x_s = \frac{\sigma_s}{\sigma_t}e^{-h}x_t + \alpha_s\left(1 - e^{-2h}\right)D
  + \sigma_s\sqrt{1 - e^{-2h}}\,z. \tag{1}$$

With $D = \hat x_0$ that is ancestral sampling (DDIM at $\eta = 1$). With the step before, of size
$h_-$, $D = \hat x_0 + \frac{h}{2h_-}(\hat x_0 - \hat x_{0-})$ is half a step ahead, as in (2M) (Lu
et al. 2022b, "SDE-DPM-Solver++(2M)").
"""

from typing import Any

import jax
import jax.numpy as jnp

from .._denoiser import AbstractDenoiser
from .._process import log_snr_times
from .._types import Args, Example, Key
from .base import AbstractSampler, check_call, Step, steps_along, Trajectory
from .grid import Grid, grid_of, Spacing


class SDEDPMSolverPP(AbstractSampler):
    r"""SDE-DPM-Solver++(2M), equation (1): the counterpart of [`eqdiff.DPMSolverPP`][] for the
    reverse SDE, on any process. One network call per step.

    Times are evenly spaced in the log-SNR unless given; the last step goes to the data by
    $\hat x_0$.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    x0 = eqd.SDEDPMSolverPP(25)(denoiser, jnp.ones(3), key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Lu et al., *DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
        Models*, 2022, appendix on the diffusion SDE.
    """

    grid: Grid

    def __init__(
        self,
        num_steps: int | None = None,
        *,
        spacing: Spacing | None = None,
        times: Any = None,
    ):
        r"""**Arguments:**

        - `num_steps`, `spacing`, `times`: the times, as for [`eqdiff.Grid`][]; 25 of
            [`eqdiff.log_snr_times`][] by default.

        **Raises:** as [`eqdiff.Grid`][].
        """
        self.grid = grid_of(
            self, num_steps, spacing, times, default=25, default_spacing=log_snr_times
        )

    @property
    def num_calls(self) -> int | None:
        return self.grid.num_steps

    def __call__(
        self, denoiser: AbstractDenoiser, x1: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        return self._scan(denoiser, x1, args, key, lambda x, x0: None)[0]

    def trajectory(
        self, denoiser: AbstractDenoiser, x1: Example, args: Args = None, *, key: Key | None = None
    ) -> Trajectory:
        """Draws one sample and keeps every state: see [`eqdiff.Trajectory`][]. Arguments as for the
        call.
        """
        _, (x, x0) = self._scan(denoiser, x1, args, key, lambda x, x0: (x, x0))
        return Trajectory(self.grid.times(denoiser.process), x, x0)

    def _scan(self, denoiser, x1, args, key, keep):
        check_call(self, denoiser, x1)
        if key is None:
            raise ValueError(
                "SDEDPMSolverPP draws noise at each step and needs a key: write "
                "key=jax.random.key(0)."
            )
        steps = steps_along(denoiser.process, self.grid.exact(denoiser.process), like=x1)
        keys = jax.random.split(key, len(steps.t))

        def body(carry, inputs):
            (x, before, size), (step, step_key) = carry, inputs
            x0 = denoiser(step.t, x, args).x0
            # Alone: the first step, which has none before it, and the last, which goes to x̂0.
            alone = (size == 0) | step.last
            h = jnp.where(step.last, 0, 0.5 * step.log_snr_fall)
            ratio = jnp.where(alone, 0, 0.5 * h / jnp.where(alone, 1, size))
            noise = jax.random.normal(step_key, x.shape, x.dtype)
            x = _move(step, x, x0 + ratio * (x0 - before), noise)
            return (x, x0, h), keep(x, x0)

        begin = x1, jnp.zeros_like(x1), jnp.zeros((), x1.dtype)
        (x, _, _), kept = jax.lax.scan(body, begin, (steps, keys))
        return x, kept


def _move(step: Step, x: Example, estimate: Example, noise: Example) -> Example:
    """Equation (1)."""
    shrink = jnp.exp(-0.5 * step.log_snr_fall)
    drawn = -jnp.expm1(-step.log_snr_fall)
    deterministic = (step.sigma_s / step.sigma_t) * shrink * x + step.alpha_s * drawn * estimate
    return deterministic + step.sigma_s * jnp.sqrt(drawn) * noise
