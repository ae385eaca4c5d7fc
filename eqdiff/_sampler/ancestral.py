r"""Ancestral sampling of a discrete schedule.

$$x_{t-1} = \tilde\mu_t(x_t, \hat x_0) + [t \ne 0]\,e^{\frac12\log\Sigma_t}\,z, \qquad
  z \sim \mathcal N(0, I) \tag{1}$$

(Ho et al. 2020, algorithm 2; Nichol & Dhariwal 2021 for a learned Σ and for fewer steps). On fewer
steps $\tilde\mu$ and Σ are those of the respaced schedule; the denoiser is called at the original
time.

Guidance may shift the mean by a multiple of Σ, $\tilde\mu_t + \Sigma_t\, s\nabla\log p(y|x_t)$
(Dhariwal & Nichol 2021, algorithm 1). It is an option here and not a denoiser, because only the
sampler knows the Σ of its step.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from .._check import is_traced
from .._process import AbstractProcess, require_schedule, respace, Schedule
from .._types import Args, Example, Time
from .base import AbstractChain
from .grid import Grid, grid_of, Spacing


class Ancestral(AbstractChain):
    r"""Ancestral sampling, $x_{t-1} = \tilde\mu_t(x_t, \hat x_0) + \Sigma_t^{1/2} z$, of a discrete
    schedule.

    It uses the denoiser's variance, whichever it is. For images, wrap the denoiser in
    [`eqdiff.Clip`][].

    **Example:**

    ```python
    denoiser = eqd.Clip(eqd.GaussianDenoiser(eqd.cosine_schedule(100), std=0.5))
    x0 = eqd.Ancestral(25)(denoiser, jnp.ones(3), key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Ho et al., *Denoising Diffusion Probabilistic Models*, NeurIPS 2020, algorithm 2; Nichol &
        Dhariwal, *Improved Denoising Diffusion Probabilistic Models*, ICML 2021, section 4.
    """

    grid: Grid
    guidance: Callable[[Time, Example, Args], Example] | None
    random: ClassVar[bool] = True

    def __init__(
        self,
        num_steps: int | None = None,
        *,
        spacing: Spacing | None = None,
        times: Any = None,
        guidance: Callable[[Time, Example, Args], Example] | None = None,
    ):
        r"""**Arguments:**

        - `num_steps`, `spacing`: how many steps of the schedule to visit, all of them by default,
            and which: as for [`eqdiff.Grid`][].
        - `times`: or exactly which, decreasing and whole: `ddim_timesteps(4000, 50)[::-1]`.
        - `guidance`: $s\nabla\log p(y|x_t)$ as a function of $t$, $x_t$ and `args`: each step's
            mean is shifted by $\Sigma_t$ times it. Pass [`eqdiff.MeanShift`][]. Other guidance
            wraps the denoiser.

        **Raises:** `ValueError` as [`eqdiff.Grid`][]; when called, for times that are not whole,
        and a process that is not a schedule.
        """
        self.grid = grid_of(self, num_steps, spacing, times)
        self.guidance = guidance

    @property
    def num_calls(self) -> int | None:
        return self.grid.num_steps

    def step(self, denoiser, step, x, args, *, key):
        spaced = self._spaced(denoiser.process)
        estimate = denoiser(step.t, x, args)
        mean = spaced.posterior_mean(step.index, estimate.x0, x)
        log_variance = denoiser.variance.log_variance(spaced, step.index, estimate.raw_variance)
        log_variance = log_variance.astype(x.dtype)
        if self.guidance is not None:
            mean = mean + jnp.exp(log_variance) * self.guidance(step.t, x, args)
        noise = jax.random.normal(key, x.shape, x.dtype)
        return mean + jnp.where(step.last, 0.0, jnp.exp(0.5 * log_variance)) * noise, estimate.x0

    def _spaced(self, process: AbstractProcess) -> Schedule:
        schedule = require_schedule(process, "Ancestral sampling")
        times = self.grid.exact(schedule)
        if is_traced(times) or not jnp.issubdtype(times.dtype, jnp.integer):
            given = "traced" if is_traced(times) else f"{times.dtype}"
            raise ValueError(
                "Ancestral visits steps of the schedule, whole numbers known in advance, but its "
                f"times are {given}. Write for example times=ddim_timesteps({schedule.num_steps}, "
                "50)[::-1]; DDIM(eta=1.0) has the same noise at any times."
            )
        return respace(schedule, times[::-1])
