r"""Ancestral sampling of the discrete chain.

$$x_{t-1} = \tilde\mu_t(x_t, \hat x_0) + [t \ne 0]\,e^{\frac12\log\Sigma_t}\,z, \qquad z \sim \mathcal N(0, I) \tag{1}$$

(Ho et al. 2020, algorithm 2; Nichol & Dhariwal 2021 for a learned Σ and for fewer steps). On a respaced chain $\tilde\mu$ and
Σ are the respaced chain's; the denoiser is called at the original time.

Guidance may move the mean by a multiple of Σ, $\tilde\mu_t + \Sigma_t\, s\nabla\log p(y|x_t)$ (Dhariwal & Nichol 2021, algorithm 1).
It is an option here and no denoiser, because only the sampler knows the Σ of the step that it takes.
"""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._parameterisation import require_schedule
from .._process import AbstractProcess
from .._schedule import respace, Schedule
from .._types import Args, Example, Time
from .base import AbstractChain, check_num_steps


class Ancestral(AbstractChain):
    r"""Ancestral sampling, $x_{t-1} = \tilde\mu_t(x_t, \hat x_0) + \Sigma_t^{1/2} z$, of a discrete chain.

    With all variances; wrap the denoiser in [`eqdiff.Clip`][] for images.

    ??? cite "Reference"

        Ho et al., *Denoising Diffusion Probabilistic Models*, NeurIPS 2020, algorithm 2; Nichol & Dhariwal, *Improved
        Denoising Diffusion Probabilistic Models*, ICML 2021, section 4.
    """

    num_steps: int | None = eqx.field(static=True)
    timesteps: tuple[int, ...] | None = eqx.field(static=True)
    guidance: Callable[[Time, Example, Args], Example] | None
    random: ClassVar[bool] = True

    def __init__(
        self,
        num_steps: int | None = None,
        *,
        timesteps: tuple[int, ...] | np.ndarray | None = None,
        guidance: Callable[[Time, Example, Args], Example] | None = None,
    ):
        r"""**Arguments:**

        - `num_steps`: how many evenly spaced steps of the chain to visit; all of them by default.
        - `timesteps`: or exactly which, as increasing indices, for example `ddim_timesteps(4000, 50)`.
        - `guidance`: $s\nabla\log p(y|x_t)$ as a function of $t$, $x_t$ and `args`, by $\Sigma_t$ times which each mean is moved:
            [`eqdiff.MeanShift`][]. Other guidance wraps the denoiser.

        **Raises:** `ValueError` if both are given, or for timesteps that are not whole numbers; when called, for timesteps
        that are not increasing or not in the chain.
        """
        check_num_steps("Ancestral", num_steps)
        if num_steps is not None and timesteps is not None:
            raise ValueError(
                f"Ancestral: num_steps={num_steps} and timesteps were both given; give one of them."
            )
        if timesteps is not None and not np.issubdtype(np.asarray(timesteps).dtype, np.integer):
            raise ValueError(
                f"Ancestral(timesteps={timesteps!r}): expected increasing whole numbers, the indices of the steps to visit."
            )
        self.num_steps, self.guidance = num_steps, guidance
        self.timesteps = None if timesteps is None else tuple(int(t) for t in timesteps)

    def _spaced(self, process: AbstractProcess) -> tuple[Schedule, np.ndarray]:
        schedule = require_schedule(process, "Ancestral sampling")
        if self.timesteps is not None:
            kept = np.asarray(self.timesteps)
        elif self.num_steps is not None:
            kept = schedule.spaced(self.num_steps)
        else:
            kept = np.arange(schedule.num_steps)
        return respace(schedule, kept), kept

    def steps(self, process):
        spaced, kept = self._spaced(process)
        return jnp.asarray(kept[::-1].copy(), jnp.int32), jnp.arange(spaced.num_steps)[::-1]

    def step(self, denoiser, t, this, x, args, *, key):
        spaced, _ = self._spaced(denoiser.process)
        estimate = denoiser(t, x, args)
        mean = spaced.posterior_mean(this, estimate.x0, x)
        log_variance = denoiser.variance.log_variance(spaced, this, estimate.raw_variance)
        log_variance = log_variance.astype(x.dtype)
        if self.guidance is not None:
            mean = mean + jnp.exp(log_variance) * self.guidance(t, x, args)
        std = jnp.exp(0.5 * log_variance)
        noise = jax.random.normal(key, x.shape, x.dtype)
        return mean + jnp.where(this == 0, 0.0, std) * noise, estimate.x0
