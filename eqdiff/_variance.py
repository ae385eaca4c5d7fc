r"""The variance of a reverse step $p(x_{t-1}|x_t) = \mathcal N(\mu_t, \Sigma_t)$.

$\Sigma$ lies between $\tilde\beta_t$, right if the data were a point, and $\beta_t$, right if they were white noise. Nichol &
Dhariwal (2021, equation 15) let the network interpolate in log-space by an extra output $v$ per element,

$$\log\Sigma = w\log\beta_t + (1 - w)\log\tilde\beta_t, \qquad w = \tfrac12 (v + 1). \tag{1}$$
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._schedule import Schedule
from ._types import Example, Time


class AbstractVariance(eqx.Module):
    r"""How the log-variance of a reverse step is found."""

    learned: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def log_variance(self, schedule: Schedule, t: Time, raw: Example | None) -> Float[Array, "..."]:
        r"""$\log\Sigma_t$: a scalar, or one per element where the variance is learned.

        **Arguments:**

        - `schedule`: the chain, respaced if sampling is.
        - `t`: its step.
        - `raw`: the network's extra outputs, shaped like $x$; `None` where nothing is learned.
        """


class FixedSmall(AbstractVariance):
    r"""$\Sigma_t = \tilde\beta_t$, the lower bound; its first entry is the second's (the official clip)."""

    learned: ClassVar[bool] = False

    def log_variance(self, schedule, t, raw):
        return schedule.lookup(schedule.posterior_log_variance, t)


class FixedLarge(AbstractVariance):
    r"""$\Sigma_t = \beta_t$, the upper bound; its first entry is $\tilde\beta_1$, for a better decoder (official)."""

    learned: ClassVar[bool] = False

    def log_variance(self, schedule, t, raw):
        table = np.log(schedule.betas)
        table[0] = schedule.posterior_log_variance[0]
        return schedule.lookup(table, t)


class Learned(AbstractVariance):
    r"""$\log\Sigma_t$ is the network's extra output itself."""

    learned: ClassVar[bool] = True

    def log_variance(self, schedule, t, raw):
        assert raw is not None
        return raw


class LearnedRange(AbstractVariance):
    r"""The learned interpolation (1) between $\log\tilde\beta_t$ and $\log\beta_t$; $v$ is not clamped.

    On a respaced chain the ends are those of the respaced chain, so a network trained with $T$ steps needs no rescaling.

    ??? cite "Reference"

        Nichol & Dhariwal, *Improved Denoising Diffusion Probabilistic Models*, ICML 2021, equation 15.
    """

    learned: ClassVar[bool] = True

    def log_variance(self, schedule, t, raw):
        assert raw is not None
        low = schedule.lookup(schedule.posterior_log_variance, t).astype(raw.dtype)
        high = jnp.asarray(schedule.lookup(np.log(schedule.betas), t), raw.dtype)
        weight = 0.5 * (raw + 1)
        return weight * high + (1 - weight) * low
