r"""The sub-variance-preserving SDE.

With $B(t) = \int_0^t \beta$ (Song et al. 2021, section 3.4 and equation 29),

$$\mathrm dx = -\tfrac12 \beta(t) x\,\mathrm dt + \sqrt{\beta(t)(1 - e^{-2B})}\,\mathrm dw, \qquad
  \alpha_t = e^{-B/2}, \qquad \sigma_t = 1 - e^{-B}: \tag{1}$$

the standard deviation is VP's *variance*. With $s = \alpha^2/\sigma^2$ the inverse of the log-SNR
solves $s\sigma^2 + \sigma - 1 = 0$, hence $\sigma = 2/(1 + \sqrt{1 + 4s})$ and
$e^{-B} = s\sigma^2$.
"""

import jax.numpy as jnp
from jaxtyping import Array

from .._check import check_interval, check_positive
from .._types import Scalar, Time
from ._beta import integral, integral_between, inverse_integral, rate
from .base import AbstractProcess, as_time


class SubVPSDE(AbstractProcess):
    r"""Sub-VP SDE,
    $\mathrm dx = -\tfrac12\beta x\,\mathrm dt + \sqrt{\beta(1 - e^{-2B})}\,\mathrm dw$.

    $\alpha_t = e^{-B(t)/2}$, $\sigma_t = 1 - e^{-B(t)}$ (no square root) with
    $B(t) = \int_0^t\beta$: never noisier than VP at the same rate, and the paper's best
    likelihoods. $c_\text{noise} = 999\,t$.

    **Example:**

    ```python
    sigma = eqd.SubVPSDE().sigma(0.5)  # the square of eqd.VPSDE's
    ```

    ??? cite "Reference"

        Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*,
        ICLR 2021, section 3.4 and equation 29.
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
        r"""**Arguments:** as for [`eqdiff.VPSDE`][]; $\sigma_{t_0} = 10^{-6}$ at the default $t_0$.

        **Raises:** `ValueError` for a rate that is not positive or times outside
        $0 < t_0 < t_1 \le 1$.
        """
        check_positive(self, beta_min=beta_min, beta_max=beta_max)
        check_interval(self, t0, t1, end=1.0)
        self.beta_min, self.beta_max, self.t0, self.t1 = beta_min, beta_max, t0, t1

    def _integral(self, t: Time) -> Scalar:
        return integral(as_time(t), self.beta_min, self.beta_max)

    def _rate(self, t: Time) -> Scalar:
        return rate(as_time(t), self.beta_min, self.beta_max)

    def alpha(self, t: Time) -> Scalar:
        return jnp.exp(-0.5 * self._integral(t))

    def sigma(self, t: Time) -> Scalar:
        return -jnp.expm1(-self._integral(t))

    def log_snr_fall(self, s: Time, t: Time) -> Scalar:
        s, t = as_time(s), as_time(t)
        between = integral_between(s, t, self.beta_min, self.beta_max)
        # α²_s/α²_t = e^between, and σ_t/σ_s = 1 + e^−B_s (1 − e^−between)/σ_s.
        rise = -(self.alpha(s) ** 2) * jnp.expm1(-between) / self.sigma(s)
        return between + 2 * jnp.log1p(rise)

    def time(self, log_snr: Scalar) -> Scalar:
        sigma = 2 / (1 + jnp.sqrt(1 + 4 * jnp.exp(log_snr)))
        # B = −log(1 − σ) near the data, −log(s σ²) near the prior where 1 − σ would cancel.
        near = -jnp.log1p(-jnp.minimum(sigma, 0.5))
        far = -log_snr - 2 * jnp.log(sigma)
        return inverse_integral(jnp.where(sigma < 0.5, near, far), self.beta_min, self.beta_max)

    def c_noise(self, t: Time) -> Scalar:
        return 999 * as_time(t)

    def alpha_dot(self, t: Time) -> Scalar:
        return -0.5 * self._rate(t) * self.alpha(t)

    def sigma_dot(self, t: Time) -> Scalar:
        return self._rate(t) * self.alpha(t) ** 2

    def prior_scale(self) -> Scalar:
        return jnp.ones(())
