r"""How much each time counts in denoising score matching.

With $\nabla\log p_t(x_t|x_0) = -\varepsilon/\sigma_t$ the loss of Song et al. (2021, equation 7) is an error in ε,

$$\lambda(t)\,\|s(x_t, t) + \varepsilon/\sigma_t\|^2 = \frac{\lambda(t)}{\sigma_t^2}\,\|\hat\varepsilon - \varepsilon\|^2, \tag{1}$$

so a weighting is the factor on the right: no score, large where σ is small, is ever formed.
"""

import abc

import equinox as eqx
import jax.numpy as jnp

from .._process import AbstractProcess, AbstractSDE
from .._types import Scalar, Time


class AbstractWeighting(eqx.Module):
    r"""A weighting $\lambda(t)$ of the score matching loss."""

    @abc.abstractmethod
    def on_noise(self, process: AbstractProcess, t: Time) -> Scalar:
        r"""$\lambda(t)/\sigma_t^2$: the factor of $\|\hat\varepsilon - \varepsilon\|^2$."""


class NoiseWeighting(AbstractWeighting):
    r"""$\lambda(t) = \sigma_t^2$: every time counts the same in ε. The paper's default, best for samples."""

    def on_noise(self, process: AbstractProcess, t: Time) -> Scalar:
        return jnp.ones(())


class LikelihoodWeighting(AbstractWeighting):
    r"""$\lambda(t) = g(t)^2$: the loss bounds the negative log-likelihood of the reverse SDE.

    ??? cite "Reference"

        Song et al., *Maximum Likelihood Training of Score-Based Diffusion Models*, NeurIPS 2021, theorem 1.
    """

    def on_noise(self, process: AbstractProcess, t: Time) -> Scalar:
        if not isinstance(process, AbstractSDE):
            raise ValueError(
                "LikelihoodWeighting needs g(t), but the process is a discrete chain. Write "
                "schedule.continuous(), or use l_vlb."
            )
        return (process.diffusion(t) / process.sigma(t)) ** 2
