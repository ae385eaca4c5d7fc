r"""How much each time counts in denoising score matching.

With $\nabla\log p_t(x_t|x_0) = -\varepsilon/\sigma_t$ the loss of Song et al. (2021, equation 7) is
an error in ε,

$$\lambda(t)\,\|s(x_t, t) + \varepsilon/\sigma_t\|^2
  = \frac{\lambda(t)}{\sigma_t^2}\,\|\hat\varepsilon - \varepsilon\|^2, \tag{1}$$

so a weighting is the factor on the right: no score, large where σ is small, is ever formed. Since
$x = \alpha\hat x_0 + \sigma\hat\varepsilon$, an error in any other quantity is one in ε too,

$$\|\hat x_0 - x_0\|^2 = \frac{\sigma^2}{\alpha^2}\,\|\hat\varepsilon - \varepsilon\|^2, \qquad
  \|\hat v - v\|^2 = \left(\frac{\alpha^2
    + \sigma^2}{\alpha}\right)^2\|\hat\varepsilon - \varepsilon\|^2, \tag{2}$$

and a weighting means the same whatever the network predicts: a published weight on the error in
$x_0$ is multiplied by $\sigma^2/\alpha^2 = e^{-\lambda_t}$, the inverse signal-to-noise ratio.
"""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._check import check_positive, is_traced, known_number, of
from .._process import AbstractProcess, check_signal, is_whole, Schedule
from .._types import Scalar, Time


class AbstractWeighting(eqx.Module):
    r"""A weighting $\lambda(t)$ of the score matching loss."""

    @abc.abstractmethod
    def on_noise(self, process: AbstractProcess, t: Time) -> Scalar:
        r"""$\lambda(t)/\sigma_t^2$: the factor of $\|\hat\varepsilon - \varepsilon\|^2$."""


def weight(weighting: AbstractWeighting, process: AbstractProcess, t: Time) -> Scalar:
    r"""`weighting.on_noise`, a `ValueError` where a step without signal would be given one that is
    infinite: the noise is known there, and its error times that $0\cdot\infty$.
    """
    if isinstance(process, Schedule) and process.ends_without_signal and is_whole(t):
        last = process.num_steps - 1
        if is_traced(t) or int(t) == last:
            with jax.ensure_compile_time_eval():
                at_end = known_number(weighting.on_noise(process, last))
            if at_end == math.inf:
                why = "it is infinite where the noise tells nothing of x0"
                check_signal(process, of(weighting), why, "Write l_simple(prediction).")
    return weighting.on_noise(process, t)


class NoiseWeighting(AbstractWeighting):
    r"""$\lambda(t) = \sigma_t^2$: every time counts the same in ε. The paper's default, and best
    for sample quality.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    p = eqd.predict(denoiser, 0.5, jnp.ones(3), key=jax.random.key(0))
    loss = eqd.score_matching(p, eqd.NoiseWeighting())
    ```
    """

    def on_noise(self, process: AbstractProcess, t: Time) -> Scalar:
        return jnp.ones(())


class LikelihoodWeighting(AbstractWeighting):
    r"""$\lambda(t) = g(t)^2$: the loss bounds the negative log-likelihood of the reverse SDE.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    p = eqd.predict(denoiser, 0.5, jnp.ones(3), key=jax.random.key(0))
    loss = eqd.score_matching(p, eqd.LikelihoodWeighting())
    ```

    ??? cite "Reference"

        Song et al., *Maximum Likelihood Training of Score-Based Diffusion Models*, NeurIPS 2021,
        theorem 1.
    """

    def on_noise(self, process: AbstractProcess, t: Time) -> Scalar:
        return _decay(process, t)


class EDMWeighting(AbstractWeighting):
    r"""EDM's weight $\frac{s^2 + \sigma_d^2}{(s\,\sigma_d)^2}$ on $\|\hat x_0 - x_0\|^2$ at the
    noise level $s = \sigma_t/\alpha_t$.

    On ε it is $(s^2 + \sigma_d^2)/\sigma_d^2$. It makes the loss of an untrained network with
    [`eqdiff.EDMPreconditioning`][]'s preconditioning the same at every noise level; for such a
    network it is [`eqdiff.l_simple`][]. Draw the times from [`eqdiff.LogNormal`][], as the paper
    does. Infinite where no signal is left.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.EDMSDE())
    p = eqd.predict(denoiser, 0.5, jnp.ones(3), key=jax.random.key(0))
    loss = eqd.score_matching(p, eqd.EDMWeighting())
    ```

    ??? cite "Reference"

        Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*, NeurIPS
        2022, table 1.
    """

    sigma_data: float | Array

    def __init__(self, sigma_data: float | Array = 0.5):
        r"""**Arguments:**

        - `sigma_data`: $\sigma_d$, the standard deviation of the data.

        **Raises:** `ValueError` unless it is positive.
        """
        check_positive(self, sigma_data=sigma_data)
        self.sigma_data = sigma_data

    def on_noise(self, process: AbstractProcess, t: Time) -> Scalar:
        level = process.sigma(t) / process.alpha(t)
        return 1 + (level / jnp.asarray(self.sigma_data, level.dtype)) ** 2


class MinSNRWeighting(AbstractWeighting):
    r"""Min-SNR-γ: $\min(\mathrm{SNR}, \gamma)$ on $\|\hat x_0 - x_0\|^2$, with
    $\mathrm{SNR} = \alpha_t^2/\sigma_t^2$.

    On ε it is $\min(1, \gamma/\mathrm{SNR})$, on $v$
    $\min(\mathrm{SNR}, \gamma)/(\mathrm{SNR} + 1)$: the same loss, as the paper defines it. Times
    that are almost noiseless, and too easy, count less than under [`eqdiff.NoiseWeighting`][].

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    p = eqd.predict(denoiser, 0.5, jnp.ones(3), key=jax.random.key(0))
    loss = eqd.score_matching(p, eqd.MinSNRWeighting())
    ```

    ??? cite "Reference"

        Hang et al., *Efficient Diffusion Training via Min-SNR Weighting Strategy*, ICCV 2023.
    """

    gamma: float | Array

    def __init__(self, gamma: float | Array = 5.0):
        r"""**Arguments:**

        - `gamma`: γ.

        **Raises:** `ValueError` unless it is positive.
        """
        check_positive(self, gamma=gamma)
        self.gamma = gamma

    def on_noise(self, process: AbstractProcess, t: Time) -> Scalar:
        log_snr = process.log_snr(t)
        # The minimum is taken of logarithms: SNR itself overflows half precision at small σ.
        log_gamma = jnp.log(jnp.asarray(self.gamma, log_snr.dtype))
        return jnp.exp(jnp.minimum(log_gamma - log_snr, 0))


class SigmoidWeighting(AbstractWeighting):
    r"""$\operatorname{sigmoid}(b - \lambda_t)\,\frac{g^2}{\sigma^2}$ on ε: the variational bound,
    noisier data counting more.

    Since $g^2/\sigma^2 = -\dot\lambda$, the loss is an integral over the log-SNR, the same for
    every process:
    $\int\operatorname{sigmoid}(b-\lambda)\|\hat\varepsilon-\varepsilon\|^2\mathrm d\lambda$.
    The weight falls with λ, so it is the likelihood bound of data with noise added. As
    $b \to \infty$ it becomes [`eqdiff.LikelihoodWeighting`][].

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.CosineVPSDE())
    p = eqd.predict(denoiser, 0.5, jnp.ones(3), key=jax.random.key(0))
    loss = eqd.score_matching(p, eqd.SigmoidWeighting())
    ```

    ??? cite "Reference"

        Kingma & Gao, *Understanding Diffusion Objectives as the ELBO with Simple Data
        Augmentation*, NeurIPS 2023; Hoogeboom et al., *Simpler Diffusion (SiD2)*, 2024.
    """

    bias: float | Array

    def __init__(self, bias: float | Array = 0.0):
        r"""**Arguments:**

        - `bias`: $b$, the log-SNR at which the weight is one half of the bound's. Take a smaller
            one for larger images.
        """
        self.bias = bias

    def on_noise(self, process: AbstractProcess, t: Time) -> Scalar:
        decay = _decay(process, t)
        log_snr = process.log_snr(t)
        return jax.nn.sigmoid(jnp.asarray(self.bias, log_snr.dtype) - log_snr) * decay


class VelocityWeighting(AbstractWeighting):
    r"""Every time counts the same in the velocity of the path from data to noise, in units of its
    own size: $\|\hat u - u\|^2$ for $u = \dot x_t/\sqrt{\dot\alpha^2 + \dot\sigma^2}$ with
    $\dot x_t = \dot\alpha x_0 + \dot\sigma\varepsilon$.

    On ε it is $(\sigma\dot\lambda/2)^2/(\dot\alpha^2 + \dot\sigma^2)$. Under VP $u = v$ and that is
    $1/\alpha^2$, so that the loss is [`eqdiff.l_simple`][] of a network that predicts $v$; under
    rectified flow $u = (\varepsilon - x_0)/\sqrt2$, that of one that predicts the flow; under VE
    $u = \varepsilon$. Under VP it is also what the weights of [`eqdiff.VelocityImportance`][] make
    of [`eqdiff.LikelihoodWeighting`][], up to a constant. Infinite where no signal is left.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.RectifiedFlow())
    p = eqd.predict(denoiser, 0.5, jnp.ones(3), key=jax.random.key(0))
    loss = eqd.score_matching(p, eqd.VelocityWeighting())
    ```

    ??? cite "Reference"

        Zheng, Lu, Chen & Zhu, *Improved Techniques for Maximum Likelihood Estimation for Diffusion
        ODEs*, ICML 2023, section 4.
    """

    def on_noise(self, process: AbstractProcess, t: Time) -> Scalar:
        sigma, alpha_dot, sigma_dot = process.sigma(t), process.alpha_dot(t), process.sigma_dot(t)
        # σλ̇/2, of either sign; both terms have the same one.
        slope = sigma_dot - alpha_dot * (sigma / process.alpha(t))
        return (slope / jnp.hypot(alpha_dot, sigma_dot)) ** 2


def _decay(process: AbstractProcess, t: Time) -> Scalar:
    """(g/σ)², which is −dλ/dt."""
    return (process.diffusion(t) / process.sigma(t)) ** 2
