r"""What a network's output means.

A parameterisation reads the output $F$ of a network as two estimates, each by its own affine map of
$x$ and $F$,

$$\hat x_0 = a\,x + b\,F, \qquad \hat\varepsilon = c\,x + d\,F, \qquad
  x = \alpha\hat x_0 + \sigma\hat\varepsilon, \tag{1}$$

where $F$ is the network at $c_\text{in} x$. Computing one estimate from the other through the third
equation instead would lose it to rounding wherever α or σ is small: sub-VP has $\sigma = 10^{-6}$
at the data. Which of two numbers a network is trained to predict is then the only difference
between "ε", "x0" and "v" models (Salimans & Ho 2022, section 4).

Karras et al. (2022, equation 7) write the same for noise that is only added, $y = x/\alpha$ at the
level $s = \sigma/\alpha$,

$$\hat x_0 = c_\text{skip}(s)\,y + c_\text{out}(s)\,F(c_\text{in}(s)\,y,\ c_\text{noise}(s)),
  \tag{2}$$

and ask that $F$ see inputs, and be trained on targets, of unit variance.
"""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from ._check import check_positive
from ._process import AbstractProcess, check_signal, require_schedule
from ._types import Example, Scalar, Time


class AbstractParameterisation(eqx.Module):
    r"""How a network's output $F$ gives $(\hat x_0, \hat\varepsilon)$, and what $F$ should be."""

    @abc.abstractmethod
    def c_in(self, process: AbstractProcess, t: Time) -> Scalar:
        r"""$c_\text{in}$: the factor of $x$ at the network's input."""

    @abc.abstractmethod
    def estimate(
        self, process: AbstractProcess, t: Time, x: Example, output: Example
    ) -> tuple[Example, Example]:
        r"""$(\hat x_0, \hat\varepsilon)$ from the network's output, equation (1)."""

    @abc.abstractmethod
    def target(self, process: AbstractProcess, t: Time, x0: Example, noise: Example) -> Example:
        r"""The output that would give $(x_0, \varepsilon)$: what the network regresses on."""


def check_readable(parameterisation: AbstractParameterisation, process: AbstractProcess) -> None:
    """Raises `ValueError` where x̂0 would be a division by α = 0."""
    if isinstance(parameterisation, (PredictNoise, PredictScore)):
        name = type(parameterisation).__name__
        instead = "Train with PredictVelocity(), PredictData() or PredictFlow()."
        check_signal(process, f"{name}()", "the noise alone does not tell x0", instead)


class PredictNoise(AbstractParameterisation):
    r"""The network predicts the noise: $F = \hat\varepsilon$, $\hat x_0 = (x - \sigma F)/\alpha$
    (Ho et al. 2020).

    **Example:**

    ```python
    net = eqd.nn.MLP(2, 2, key=jax.random.key(0))
    denoiser = eqd.Denoiser(net, eqd.cosine_schedule(1000), eqd.PredictNoise())
    ```
    """

    def c_in(self, process, t):
        return jnp.ones(())

    def estimate(self, process, t, x, output):
        alpha, sigma = process.levels(t, like=x)
        return (x - sigma * output) / alpha, output

    def target(self, process, t, x0, noise):
        return noise


class PredictData(AbstractParameterisation):
    r"""The network predicts the data: $F = \hat x_0$, $\hat\varepsilon = (x - \alpha F)/\sigma$.

    **Example:**

    ```python
    net = eqd.nn.MLP(2, 2, key=jax.random.key(0))
    denoiser = eqd.Denoiser(net, eqd.VPSDE(), eqd.PredictData())
    ```
    """

    def c_in(self, process, t):
        return jnp.ones(())

    def estimate(self, process, t, x, output):
        alpha, sigma = process.levels(t, like=x)
        return output, (x - alpha * output) / sigma

    def target(self, process, t, x0, noise):
        return x0


class PredictVelocity(AbstractParameterisation):
    r"""The network predicts $F = v = \alpha\varepsilon - \sigma x_0$.

    $$\hat x_0 = \frac{\alpha x - \sigma F}{\alpha^2 + \sigma^2}, \qquad
      \hat\varepsilon = \frac{\sigma x + \alpha F}{\alpha^2 + \sigma^2},$$

    which also holds where $\alpha^2 + \sigma^2 \ne 1$ (sub-VP, VE).

    **Example:**

    ```python
    net = eqd.nn.MLP(2, 2, key=jax.random.key(0))
    denoiser = eqd.Denoiser(net, eqd.CosineVPSDE(), eqd.PredictVelocity())
    ```

    ??? cite "Reference"

        Salimans & Ho, *Progressive Distillation for Fast Sampling of Diffusion Models*, ICLR 2022,
        appendix D.
    """

    def c_in(self, process, t):
        return jnp.ones(())

    def estimate(self, process, t, x, output):
        alpha, sigma = process.levels(t, like=x)
        total = alpha**2 + sigma**2
        return (alpha * x - sigma * output) / total, (sigma * x + alpha * output) / total

    def target(self, process, t, x0, noise):
        alpha, sigma = process.levels(t, like=x0)
        return alpha * noise - sigma * x0


class PredictScore(AbstractParameterisation):
    r"""The network predicts the score: $F = \nabla_x\log p_t(x)$, so $\hat\varepsilon = -\sigma F$,
    $\hat x_0 = (x + \sigma^2 F)/\alpha$.

    Song et al. (2021) train this under VE; their VP and sub-VP networks predict noise.

    **Example:**

    ```python
    net = eqd.nn.MLP(2, 2, key=jax.random.key(0))
    denoiser = eqd.Denoiser(net, eqd.VESDE(), eqd.PredictScore())
    ```
    """

    def c_in(self, process, t):
        return jnp.ones(())

    def estimate(self, process, t, x, output):
        alpha, sigma = process.levels(t, like=x)
        return (x + sigma**2 * output) / alpha, -sigma * output

    def target(self, process, t, x0, noise):
        _, sigma = process.levels(t, like=x0)
        return -noise / sigma


def _rates(process: AbstractProcess, t: Time, *, like: Example) -> tuple[Scalar, Scalar]:
    return process.alpha_dot(t).astype(like.dtype), process.sigma_dot(t).astype(like.dtype)


class PredictFlow(AbstractParameterisation):
    r"""The network predicts the velocity of the path from data to noise:
    $F = \dot x_t = \dot\alpha x_0 + \dot\sigma\varepsilon$.

    Solved together with $x = \alpha x_0 + \sigma\varepsilon$,

    $$\hat x_0 = \frac{\dot\sigma x - \sigma F}{\alpha\dot\sigma - \dot\alpha\sigma}, \qquad
      \hat\varepsilon = \frac{\alpha F - \dot\alpha x}{\alpha\dot\sigma - \dot\alpha\sigma}.$$

    On [`eqdiff.RectifiedFlow`][] the denominator is 1 and $F = \varepsilon - x_0$. The probability
    flow is then the network itself, $\mathrm dx/\mathrm dt = F$, and
    $L_\text{simple} = \frac1D\|F - \dot x_t\|^2$ of [`eqdiff.l_simple`][] is the flow matching
    loss.

    **Example:**

    ```python
    net = eqd.nn.MLP(2, 2, key=jax.random.key(0))
    denoiser = eqd.Denoiser(net, eqd.RectifiedFlow(), eqd.PredictFlow())
    ```

    ??? cite "Reference"

        Lipman et al., *Flow Matching for Generative Modeling*, ICLR 2023; Liu, Gong & Liu, *Flow
        Straight and Fast*, ICLR 2023.
    """

    def c_in(self, process, t):
        return jnp.ones(())

    def estimate(self, process, t, x, output):
        alpha, sigma = process.levels(t, like=x)
        alpha_dot, sigma_dot = _rates(process, t, like=x)
        # −½ασλ̇: positive, a sum of two terms of one sign.
        determinant = alpha * sigma_dot - alpha_dot * sigma
        x0 = (sigma_dot / determinant) * x - (sigma / determinant) * output
        noise = (alpha / determinant) * output - (alpha_dot / determinant) * x
        return x0, noise

    def target(self, process, t, x0, noise):
        alpha_dot, sigma_dot = _rates(process, t, like=x0)
        return alpha_dot * x0 + sigma_dot * noise


class EDMPreconditioning(AbstractParameterisation):
    r"""The preconditioning of EDM: network inputs and targets of unit variance at every noise
    level.

    Table 1 of the paper at the level $s = \sigma/\alpha$ of $x/\alpha$, for any process, with
    $n^2 = \sigma^2 + \alpha^2\sigma_d^2$, the variance of $x$:

    $$c_\text{in} = \frac1n, \qquad
      \hat x_0 = \frac{\alpha\sigma_d^2}{n^2}x + \frac{\sigma\sigma_d}{n}F, \qquad
      \hat\varepsilon = \frac{\sigma}{n^2}x - \frac{\alpha\sigma_d}{n}F, \qquad
      F \to \frac1n\left(\frac{\sigma}{\sigma_d}x_0 - \alpha\sigma_d\varepsilon\right).$$

    [`eqdiff.l_simple`][] is then the paper's loss, with
    $\lambda(s) = (s^2 + \sigma_d^2)/(s\sigma_d)^2$, because the weight on $F$ is one;
    [`eqdiff.EDMWeighting`][] is that loss for other parameterisations. For $\sigma_d = 1$ on a
    variance-preserving process, $F = -v$.

    The paper's $c_\text{noise} = \frac14\log s$ is that of [`eqdiff.EDMSDE`][]; on another process
    write `c_noise=lambda process, t: -process.log_snr(t) / 8` for the same.

    **Example:**

    ```python
    net = eqd.nn.MLP(2, 2, key=jax.random.key(0))
    denoiser = eqd.Denoiser(net, eqd.EDMSDE(), eqd.EDMPreconditioning())
    ```

    ??? cite "Reference"

        Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*, NeurIPS
        2022, equation 7 and table 1.
    """

    sigma_data: float | Array

    def __init__(self, sigma_data: float | Array = 0.5):
        r"""**Arguments:**

        - `sigma_data`: $\sigma_d$, the standard deviation of the data: about 0.5 for images on
            $[-1, 1]$.

        **Raises:** `ValueError` unless it is positive.
        """
        check_positive(self, sigma_data=sigma_data)
        self.sigma_data = sigma_data

    def _std(self, process: AbstractProcess, t: Time) -> Scalar:
        alpha, sigma = process.alpha(t), process.sigma(t)
        return jnp.sqrt(sigma**2 + (alpha * self._data(alpha)) ** 2)

    def c_in(self, process, t):
        return 1 / self._std(process, t)

    def estimate(self, process, t, x, output):
        alpha, sigma = process.levels(t, like=x)
        std, data = self._std(process, t).astype(x.dtype), self._data(x)
        x0 = (alpha * data**2 / std**2) * x + (sigma * data / std) * output
        return x0, (sigma / std**2) * x - (alpha * data / std) * output

    def target(self, process, t, x0, noise):
        alpha, sigma = process.levels(t, like=x0)
        std, data = self._std(process, t).astype(x0.dtype), self._data(x0)
        return (sigma / (std * data)) * x0 - (alpha * data / std) * noise

    def _data(self, like: Example) -> Scalar:
        return jnp.asarray(self.sigma_data, like.dtype)


class PreviousMean(AbstractParameterisation):
    r"""The network predicts the mean of $x_{t-1}$: $F = \hat\mu = \tilde\mu_t(x_t, \hat x_0)$, on a
    schedule.

    With $\tilde\mu_t = c_1 x_0 + c_2 x_t$ (equation 3 of the schedule),
    $\hat x_0 = (F - c_2 x)/c_1$ and $\hat\varepsilon = (x - \alpha\hat x_0)/\sigma$. At $t = 0$,
    $F = \hat x_0$.

    **Example:**

    ```python
    net = eqd.nn.MLP(2, 2, key=jax.random.key(0))
    denoiser = eqd.Denoiser(net, eqd.cosine_schedule(1000), eqd.PreviousMean())
    ```
    """

    def c_in(self, process, t):
        return jnp.ones(())

    def estimate(self, process, t, x, output):
        schedule = require_schedule(process, "PreviousMean()")
        alpha, sigma = schedule.levels(t, like=x)
        on_x0, on_x = (c.astype(x.dtype) for c in schedule.posterior_mean_coefficients(t))
        x0 = (output - on_x * x) / on_x0
        # The division by c₁ amplifies the output's rounding a thousandfold. Taken from x̂0, the
        # noise estimate carries the same error, so that (x̂0, ε̂) still give x, and the output,
        # back to full precision.
        return x0, (x - alpha * x0) / sigma

    def target(self, process, t, x0, noise):
        schedule = require_schedule(process, "PreviousMean()")
        return schedule.posterior_mean(t, x0, schedule.perturb(t, x0, noise))
