r"""The cosine process in continuous time.

$$\alpha_t = \cos\frac{\pi t}{2}, \qquad \sigma_t = \sin\frac{\pi t}{2}, \qquad
  \lambda_t = -2\log\tan\frac{\pi t}{2} + \text{shift} \tag{1}$$

(Nichol & Dhariwal 2021, equation 17, without the offset of the discrete schedule; Salimans & Ho
2022). The last term is zero for small images. Averaging $m\times m$ pixels divides the noise by $m$
but hardly changes the picture, so that an image of $d$ pixels a side is, at its coarse scales,
$2\log(d/64)$ further from noise than one of 64: a shift of $2\log(64/d)$ makes up for it (Hoogeboom
et al. 2023). With $k = e^{-\text{shift}/2}$, $u = \pi t/2$ and $n^2 = \cos^2 u + k^2\sin^2 u$,

$$\alpha = \frac{\cos u}{n}, \qquad \sigma = \frac{k\sin u}{n}, \qquad
  \dot\alpha = -\frac\pi2\frac{k^2\sin u}{n^3}, \qquad
    \dot\sigma = \frac\pi2\frac{k\cos u}{n^3}. \tag{2}$$

The rate $\beta = -2\dot\alpha/\alpha$ is infinite at $t = 1$.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array

from .._check import check_finite, check_interval
from .._types import Scalar, Time
from .base import AbstractProcess, as_time


class CosineVPSDE(AbstractProcess):
    r"""The cosine process, $\alpha_t = \cos\frac{\pi t}2$, $\sigma_t = \sin\frac{\pi t}2$,
    optionally shifted for large images.

    At the default ends $|\lambda| = 12.9$. $c_\text{noise} = 1000\,t$. For Improved DDPM's
    schedule, with its offset, see [`eqdiff.cosine_schedule`][].

    **Example:**

    ```python
    process = eqd.CosineVPSDE(log_snr_shift=-2.77)  # for 256 x 256 pixels
    ```

    ??? cite "Reference"

        Nichol & Dhariwal, *Improved Denoising Diffusion Probabilistic Models*, ICML 2021, equation
        17; Hoogeboom, Heek & Salimans, *simple diffusion: End-to-end diffusion for high resolution
        images*, ICML 2023 (the shift).
    """

    log_snr_shift: float | Array
    t0: float | Array
    t1: float | Array

    def __init__(
        self,
        *,
        log_snr_shift: float | Array = 0.0,
        t0: float | Array = 1e-3,
        t1: float | Array = 0.999,
    ):
        r"""**Arguments:**

        - `log_snr_shift`: added to $\lambda_t$: take $2\log(64/d)$ for images of $d$ pixels a side,
            so $-2.77$ for 256.
        - `t0`, `t1`: the interval on which the process is used. $t_1 = 1$ is allowed, but then
            drift and diffusion raise an error at $t = 1$, so that only the probability flow can
            start there, with a [`eqdiff.PredictVelocity`][] or [`eqdiff.PredictFlow`][] network.

        **Raises:** `ValueError` for a shift that is not finite or times outside
        $0 < t_0 < t_1 \le 1$.
        """
        check_finite(self, log_snr_shift=log_snr_shift)
        check_interval(self, t0, t1, end=1.0)
        self.log_snr_shift, self.t0, self.t1 = log_snr_shift, t0, t1

    def _stretch(self) -> float | Array:
        # A Python number stays weakly typed, so that it does not decide the precision of the
        # caller's arrays.
        if isinstance(self.log_snr_shift, (int, float)):
            return math.exp(-0.5 * self.log_snr_shift)
        return jnp.exp(-0.5 * self.log_snr_shift)

    def _parts(self, t: Scalar) -> tuple[Scalar, Scalar, Scalar]:
        """(cos u, k sin u, n)."""
        cos, sin = _angle(t)
        stretched = self._stretch() * sin
        return cos, stretched, jnp.sqrt(cos**2 + stretched**2)

    def alpha(self, t: Time) -> Scalar:
        cos, _, n = self._parts(as_time(t))
        return cos / n

    def sigma(self, t: Time) -> Scalar:
        _, sin, n = self._parts(as_time(t))
        return sin / n

    def log_snr_fall(self, s: Time, t: Time) -> Scalar:
        s, t = as_time(s), as_time(t)
        # tan u_t / tan u_s = 1 + sin(u_t − u_s)/(cos u_t sin u_s); a shift moves both λ alike.
        cos, sin = _angle(t)[0], _angle(s)[1]
        return 2 * jnp.log1p(jnp.sin(0.5 * math.pi * (t - s)) / (cos * sin))

    def time(self, log_snr: Scalar) -> Scalar:
        return (2 / math.pi) * jnp.arctan(jnp.exp(0.5 * (self.log_snr_shift - log_snr)))

    def c_noise(self, t: Time) -> Scalar:
        return 1000 * as_time(t)

    def alpha_dot(self, t: Time) -> Scalar:
        _, sin, n = self._parts(as_time(t))
        return -0.5 * math.pi * self._stretch() * sin / n**3

    def sigma_dot(self, t: Time) -> Scalar:
        cos, _, n = self._parts(as_time(t))
        return 0.5 * math.pi * self._stretch() * cos / n**3

    def prior_scale(self) -> Scalar:
        return jnp.ones(())


def _angle(t: Scalar) -> tuple[Scalar, Scalar]:
    """(cos u, sin u) at u = πt/2."""
    # cos(πt/2) near its zero would amplify the rounding of πt/2; 1 − t is exact there.
    near_one = jnp.sin(0.5 * math.pi * (1 - t))
    cos = jnp.where(t < 0.5, jnp.cos(0.5 * math.pi * t), near_one)
    return cos, jnp.sin(0.5 * math.pi * t)
