r"""The variance-preserving SDE.

With $B(t) = \int_0^t \beta$ (Song et al. 2021, equations 11 and 33),

$$\mathrm dx = -\tfrac12 \beta(t) x\,\mathrm dt + \sqrt{\beta(t)}\,\mathrm dw, \qquad
  \alpha_t = e^{-B/2}, \qquad \sigma_t = \sqrt{1 - e^{-B}}, \tag{1}$$

so that $\lambda_t = -\log(e^B - 1)$ and $B = \log(1 + e^{-\lambda})$. The naive $1 - e^{-B}$ loses
0.6 % of σ at $t = 10^{-5}$ in float32; `expm1` keeps all digits.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._check import check_interval
from .._types import Scalar, Time
from ._beta import check_rates, integral, integral_between, inverse_integral, rate
from .base import AbstractProcess, as_time


class VPSDE(AbstractProcess):
    r"""Variance-preserving SDE,
    $\mathrm dx = -\tfrac12\beta(t)x\,\mathrm dt + \sqrt{\beta(t)}\,\mathrm dw$.

    $\alpha_t = e^{-B(t)/2}$, $\sigma_t^2 = 1 - e^{-B(t)}$ with $B(t) = \int_0^t\beta$ and $\beta$
    linear from `beta_min` to `beta_max`. The continuous limit of DDPM. $c_\text{noise} = 999\,t$,
    like the official code's.

    **Example:**

    ```python
    alpha, sigma = eqd.VPSDE().alpha(0.5), eqd.VPSDE().sigma(0.5)
    ```

    ??? cite "Reference"

        Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*,
        ICLR 2021, equations 11, 32 and 33.
    """

    beta_min: float | Array
    beta_max: float | Array
    t0: float | Array
    t1: float | Array

    def __init__(
        self,
        beta_min: float | Array = 0.1,
        beta_max: float | Array = 20.0,
        *,
        t0: float | Array = 1e-5,
        t1: float | Array = 1.0,
    ):
        r"""**Arguments:**

        - `beta_min`, `beta_max`: $\beta(0)$ and $\beta(1)$; the paper's 0.1 and 20 are DDPM's
            $10^{-4}$ and $0.02$ at 1000 steps. $\beta(0)$ alone may be negative, as where EDM's
            ablation solves for rates that reach two given noise levels.
        - `t0`, `t1`: the interval on which the process is used. Training and likelihood use the
            default $t_0 = 10^{-5}$; the paper samples down to $10^{-3}$.

        **Raises:** `ValueError` for a rate that is not positive from $t_0$ to $t_1$, an integral
        $B(t_0)$ that is not positive, or times outside $0 < t_0 < t_1 \le 1$.
        """
        check_interval(self, t0, t1, end=1.0)
        check_rates(self, beta_min, beta_max, t0, t1)
        self.beta_min, self.beta_max, self.t0, self.t1 = beta_min, beta_max, t0, t1

    def _integral(self, t: Time) -> Scalar:
        return integral(as_time(t), self.beta_min, self.beta_max)

    def _rate(self, t: Time) -> Scalar:
        return rate(as_time(t), self.beta_min, self.beta_max)

    def alpha(self, t: Time) -> Scalar:
        return jnp.exp(-0.5 * self._integral(t))

    def sigma(self, t: Time) -> Scalar:
        return jnp.sqrt(-jnp.expm1(-self._integral(t)))

    def log_snr_fall(self, s: Time, t: Time) -> Scalar:
        s, t = as_time(s), as_time(t)
        between = integral_between(s, t, self.beta_min, self.beta_max)
        # log((e^B_t − 1)/(e^B_s − 1)), with B_t = B_s + between.
        return jnp.log1p(jnp.expm1(between) / -jnp.expm1(-self._integral(s)))

    def time(self, log_snr: Scalar) -> Scalar:
        return inverse_integral(jax.nn.softplus(-log_snr), self.beta_min, self.beta_max)

    def c_noise(self, t: Time) -> Scalar:
        return 999 * as_time(t)

    def alpha_dot(self, t: Time) -> Scalar:
        return -0.5 * self._rate(t) * self.alpha(t)

    def sigma_dot(self, t: Time) -> Scalar:
        return 0.5 * self._rate(t) * self.alpha(t) ** 2 / self.sigma(t)

    def prior_scale(self) -> Scalar:
        return jnp.ones(())
