r"""The variance-exploding SDE.

A geometric noise level (Song et al. 2021, equations 9 and 30),

$$\mathrm dx = \sigma_t \sqrt{2 \log(\sigma_{\max}/\sigma_{\min})}\,\mathrm dw, \qquad
  \alpha_t = 1, \qquad
    \sigma_t = \sigma_{\min}\left(\frac{\sigma_{\max}}{\sigma_{\min}}\right)^t. \tag{1}$$

The official marginal is $\sigma_t^2$, not $\sigma_t^2 - \sigma_{\min}^2$: data are taken to carry
noise of level $\sigma_{\min}$ already at $t = 0$. This file does the same.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array

from .._check import check_positive, known_number
from .._types import Scalar, Time
from .base import AbstractProcess, as_time


class VESDE(AbstractProcess):
    r"""Variance-exploding SDE: $\alpha_t = 1$,
    $\sigma_t = \sigma_{\min}(\sigma_{\max}/\sigma_{\min})^t$.

    The continuous limit of SMLD/NCSN. $c_\text{noise} = \log\sigma_t$. The prior is
    $\mathcal N(0, \sigma_{\max}^2 I)$, so $\sigma_{\max}$ should be about the largest distance
    between two data points (Song & Ermon 2020, technique 1).

    **Example:**

    ```python
    sigma = eqd.VESDE(sigma_max=50.0).sigma(1.0)  # 50
    ```

    ??? cite "Reference"

        Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*,
        ICLR 2021, equations 9 and 30.
    """

    sigma_min: float | Array
    sigma_max: float | Array
    t0: float | Array
    t1: float | Array

    def __init__(
        self,
        sigma_min: float | Array = 0.01,
        sigma_max: float | Array = 50.0,
        *,
        t0: float | Array = 1e-5,
        t1: float | Array = 1.0,
    ):
        r"""**Arguments:**

        - `sigma_min`, `sigma_max`: the noise levels at $t = 0$ and $t = 1$, in units of the data.
        - `t0`, `t1`: the interval on which the process is used. Nothing is singular at
            $t_0 = 0$, where σ is `sigma_min`: the lowest of the official table of $N$ levels, which
            are those of $N$ evenly spaced times from 1 to 0.

        **Raises:** `ValueError` for levels that are not positive and increasing, or times outside
        $0 \le t_0 < t_1 \le 1$.
        """
        check_positive(self, sigma_min=sigma_min, sigma_max=sigma_max)
        low, high = known_number(sigma_min), known_number(sigma_max)
        if low is not None and high is not None and low >= high:
            raise ValueError(
                f"VESDE(sigma_min={sigma_min}, sigma_max={sigma_max}): expected sigma_min < "
                "sigma_max."
            )
        start, end = known_number(t0), known_number(t1)
        if start is not None and end is not None and not 0 <= start < end <= 1:
            raise ValueError(f"VESDE(t0={t0}, t1={t1}): expected 0 <= t0 < t1 <= 1.")
        self.sigma_min, self.sigma_max, self.t0, self.t1 = sigma_min, sigma_max, t0, t1

    def _log_ratio(self) -> float | Array:
        # A Python number stays weakly typed, so that it does not decide the precision of the
        # caller's arrays.
        if isinstance(self.sigma_min, Array) or isinstance(self.sigma_max, Array):
            return jnp.log(self.sigma_max) - jnp.log(self.sigma_min)
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Time) -> Scalar:
        return jnp.ones_like(as_time(t))

    def sigma(self, t: Time) -> Scalar:
        return self.sigma_min * jnp.exp(as_time(t) * self._log_ratio())

    def log_snr_fall(self, s: Time, t: Time) -> Scalar:
        return 2 * (as_time(t) - as_time(s)) * self._log_ratio()

    def time(self, log_snr: Scalar) -> Scalar:
        return (-0.5 * log_snr - jnp.log(self.sigma_min)) / self._log_ratio()

    def c_noise(self, t: Time) -> Scalar:
        return jnp.log(self.sigma_min) + as_time(t) * self._log_ratio()

    def alpha_dot(self, t: Time) -> Scalar:
        return jnp.zeros_like(as_time(t))

    def sigma_dot(self, t: Time) -> Scalar:
        return self.sigma(t) * self._log_ratio()

    def prior_scale(self) -> Scalar:
        return self.sigma(self.t1)
