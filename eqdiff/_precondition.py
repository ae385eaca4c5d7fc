r"""What a network's output means.

A parameterisation reads the output $F$ of a network as two estimates, each by its own affine map of $x$ and $F$,

$$\hat x_0 = a\,x + b\,F, \qquad \hat\varepsilon = c\,x + d\,F, \qquad x = \alpha\hat x_0 + \sigma\hat\varepsilon, \tag{1}$$

where $F$ is the network at $c_\text{in} x$. Computing one estimate from the other through the third equation instead would
lose it to rounding wherever α or σ is small: sub-VP has $\sigma = 10^{-6}$ at the data. Which of two numbers a network is
trained to predict is then the only difference between "ε", "x0" and "v" models (Salimans & Ho 2022, section 4).
"""

import abc

import equinox as eqx
import jax.numpy as jnp

from ._process import AbstractProcess
from ._schedule import Schedule
from ._types import Example, Scalar, Time


class AbstractParameterisation(eqx.Module):
    r"""How a network's output $F$ gives $\hat x_0$ and $\hat\varepsilon$, and what $F$ should be."""

    @abc.abstractmethod
    def scale_in(self, process: AbstractProcess, t: Time) -> Scalar:
        r"""$c_\text{in}$: what $x$ is multiplied by before the network sees it."""

    @abc.abstractmethod
    def estimate(
        self, process: AbstractProcess, t: Time, x: Example, output: Example
    ) -> tuple[Example, Example]:
        r"""$(\hat x_0, \hat\varepsilon)$ from the network's output, equation (1)."""

    @abc.abstractmethod
    def target(self, process: AbstractProcess, t: Time, x0: Example, noise: Example) -> Example:
        r"""The output that would give $(x_0, \varepsilon)$: what the network regresses on."""


def _levels(process: AbstractProcess, t: Time, x: Example) -> tuple[Scalar, Scalar]:
    return process.alpha(t).astype(x.dtype), process.sigma(t).astype(x.dtype)


class Noise(AbstractParameterisation):
    r"""The network predicts the noise: $F = \hat\varepsilon$, $\hat x_0 = (x - \sigma F)/\alpha$ (Ho et al. 2020)."""

    def scale_in(self, process, t):
        return jnp.ones(())

    def estimate(self, process, t, x, output):
        alpha, sigma = _levels(process, t, x)
        return (x - sigma * output) / alpha, output

    def target(self, process, t, x0, noise):
        return noise


class Data(AbstractParameterisation):
    r"""The network predicts the data: $F = \hat x_0$, $\hat\varepsilon = (x - \alpha F)/\sigma$."""

    def scale_in(self, process, t):
        return jnp.ones(())

    def estimate(self, process, t, x, output):
        alpha, sigma = _levels(process, t, x)
        return output, (x - alpha * output) / sigma

    def target(self, process, t, x0, noise):
        return x0


class Velocity(AbstractParameterisation):
    r"""The network predicts $F = v = \alpha\varepsilon - \sigma x_0$.

    $$\hat x_0 = \frac{\alpha x - \sigma F}{\alpha^2 + \sigma^2}, \qquad
      \hat\varepsilon = \frac{\sigma x + \alpha F}{\alpha^2 + \sigma^2},$$

    which also holds where $\alpha^2 + \sigma^2 \ne 1$ (sub-VP, VE).

    ??? cite "Reference"

        Salimans & Ho, *Progressive Distillation for Fast Sampling of Diffusion Models*, ICLR 2022, appendix D.
    """

    def scale_in(self, process, t):
        return jnp.ones(())

    def estimate(self, process, t, x, output):
        alpha, sigma = _levels(process, t, x)
        total = alpha**2 + sigma**2
        return (alpha * x - sigma * output) / total, (sigma * x + alpha * output) / total

    def target(self, process, t, x0, noise):
        alpha, sigma = _levels(process, t, x0)
        return alpha * noise - sigma * x0


class Score(AbstractParameterisation):
    r"""The network predicts the score: $F = \nabla_x\log p_t(x)$, so $\hat\varepsilon = -\sigma F$, $\hat x_0 = (x + \sigma^2 F)/\alpha$.

    What Song et al. (2021) train under VE; their VP and sub-VP networks predict noise.
    """

    def scale_in(self, process, t):
        return jnp.ones(())

    def estimate(self, process, t, x, output):
        alpha, sigma = _levels(process, t, x)
        return (x + sigma**2 * output) / alpha, -sigma * output

    def target(self, process, t, x0, noise):
        _, sigma = _levels(process, t, x0)
        return -noise / sigma


class PreviousMean(AbstractParameterisation):
    r"""The network predicts the mean of $x_{t-1}$: $F = \hat\mu = \tilde\mu_t(x_t, \hat x_0)$, on a discrete chain.

    With $\tilde\mu_t = c_1 x_0 + c_2 x_t$ (equation 3 of the chain), $\hat x_0 = (F - c_2 x)/c_1$ and
    $\hat\varepsilon = (x - \alpha\hat x_0)/\sigma$. At $t = 0$, $F = \hat x_0$.
    """

    def scale_in(self, process, t):
        return jnp.ones(())

    def estimate(self, process, t, x, output):
        schedule = require_schedule(process, "PreviousMean()")
        alpha, sigma = _levels(schedule, t, x)
        on_x0, on_x = (c.astype(x.dtype) for c in schedule.posterior_mean_coefficients(t))
        x0 = (output - on_x * x) / on_x0
        # The division by c₁ amplifies the output's rounding a thousandfold. Taken from x̂0, the noise estimate carries
        # the same error, so that (x̂0, ε̂) still give x, and the output, back to full precision.
        return x0, (x - alpha * x0) / sigma

    def target(self, process, t, x0, noise):
        schedule = require_schedule(process, "PreviousMean()")
        return schedule.posterior_mean(t, x0, schedule.perturb(t, x0, noise))


def require_schedule(process: AbstractProcess, owner: str) -> Schedule:
    """The process itself, if it is a discrete chain; otherwise a `ValueError` that says what to write."""
    if isinstance(process, Schedule):
        return process
    raise ValueError(
        f"{owner} is defined on a discrete chain, but the process is {type(process).__name__}. Write "
        "eqdiff.cosine_schedule(1000), or eqdiff.discretise(process, 1000) for the chain of a VP process."
    )
