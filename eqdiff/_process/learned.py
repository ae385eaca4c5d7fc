r"""A variance-preserving process whose noise schedule is learned.

$$\alpha_t^2 = \operatorname{sigmoid}(\lambda_t), \qquad
  \sigma_t^2 = \operatorname{sigmoid}(-\lambda_t), \qquad
  \lambda_t = \lambda_0 - (\lambda_0 - \lambda_1)\,\frac{m(t) - m(0)}{m(1) - m(0)}, \tag{1}$$

$t \in [0, 1]$, for an increasing curve $m$: a line and $n$ sigmoids that rise,

$$m(t) = t + \sum_{k=1}^n e^{a_k}\operatorname{sigmoid}\left(e^{b_k}(t - c_k)\right) \tag{2}$$

(Kingma et al. 2021, equation 3 and appendix H, where $\gamma = -\lambda$, whose monotone network
this is). The variational bound in continuous time depends on $\lambda_0$ and $\lambda_1$ alone, so
these are learned by it; what lies between changes the variance of its estimate from one time, and
may be learned to make that small ([`eqdiff.variance_minimising`][]).

With $\sigma(x) - \sigma(y) = -\sigma(x)\,\sigma(-y)\,\mathrm{expm1}(y - x)$ for the sigmoid σ, no
difference of $m$ cancels.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._check import check_finite, is_traced, known_number, whole
from .._types import Scalar, Time
from ._inverse import Curve, inverse
from .base import AbstractProcess, as_time


class LearnedVPSDE(AbstractProcess):
    r"""A variance-preserving process with a learned noise schedule: equation (1) on $[0, 1]$.

    A denoiser is a pytree that holds network and process, so the two are trained together where it
    takes the network's place: `loss_fn(denoiser, t, x0, args, *, key)`. Draw the times from
    [`eqdiff.LowDiscrepancy`][] or [`eqdiff.Uniform`][], which depend only on the process's
    interval. Train with [`eqdiff.l_continuous`][]: no other loss teaches the ends, and without its
    prior and reconstruction terms they would meet.

    $c_\text{noise} = 25\,(20 - \lambda_t)$ depends on the noise level alone, so that its meaning
    does not change while the schedule is learned: it runs from 0 to 1000 for λ from 20 to −20.

    **Example:**

    ```python
    ends = jnp.asarray(13.3), jnp.asarray(-5.0)  # arrays are learned
    net = eqd.nn.MLP(2, 2, key=jax.random.key(0))
    denoiser = eqd.Denoiser(net, eqd.LearnedVPSDE(*ends))
    ```

    ??? cite "Reference"

        Kingma, Salimans, Poole & Ho, *Variational Diffusion Models*, NeurIPS 2021, section 3.2
        and appendix H.
    """

    log_snr_max: float | Array
    log_snr_min: float | Array
    units: Float[Array, "3 n"]
    t0: float | Array
    t1: float | Array

    def __init__(
        self,
        log_snr_max: float | Array = 13.3,
        log_snr_min: float | Array = -5.0,
        *,
        units: int | Float[Array, "3 n"] = 32,
    ):
        r"""**Arguments:**

        - `log_snr_max`, `log_snr_min`: $\lambda_0$ and $\lambda_1$. A number is a constant, an
            array (`jnp.asarray(13.3)`) is learned.
        - `units`: how many sigmoids the curve has, spread evenly so that the log-SNR falls almost
            in a straight line; or the rows $a$, $b$ and $c$ of equation (2), such as those of
            another process.

        **Raises:** `ValueError` for ends that are not finite or do not fall, for no units, or an
        array without three rows of finite numbers.
        """
        check_finite(self, log_snr_max=log_snr_max, log_snr_min=log_snr_min)
        high, low = known_number(log_snr_max), known_number(log_snr_min)
        if high is not None and low is not None and high <= low:
            raise ValueError(
                f"LearnedVPSDE(log_snr_max={log_snr_max}, log_snr_min={log_snr_min}): expected "
                "log_snr_max, at the data, above log_snr_min, at the noise."
            )
        self.log_snr_max, self.log_snr_min = log_snr_max, log_snr_min
        self.units = _units(units)
        self.t0, self.t1 = 0.0, 1.0

    def alpha(self, t: Time) -> Scalar:
        return jnp.exp(0.5 * jax.nn.log_sigmoid(self._log_snr(t)))

    def sigma(self, t: Time) -> Scalar:
        return jnp.exp(0.5 * jax.nn.log_sigmoid(-self._log_snr(t)))

    def _ends(self, t: Scalar) -> tuple[Scalar, Scalar]:
        """λ₀ and λ₁, in the precision of a time."""
        high, low = self.log_snr_max, self.log_snr_min
        return jnp.asarray(high).astype(t.dtype), jnp.asarray(low).astype(t.dtype)

    def _log_snr(self, t: Time) -> Scalar:
        t = as_time(t)
        high, low = self._ends(t)
        below, above = self._rise(jnp.zeros_like(t), t), self._rise(t, jnp.ones_like(t))
        # A mean of both ends, exact at each of them.
        return (above * high + below * low) / (above + below)

    def _rise(self, s: Scalar, t: Scalar) -> Scalar:
        """m(t) − m(s)."""
        height, steepness, centre = self._parts(t)
        x, y = steepness * (t - centre), steepness * (s - centre)
        fraction = jnp.expm1(-steepness * (t - s))
        return t - s - jnp.sum(height * jax.nn.sigmoid(x) * jax.nn.sigmoid(-y) * fraction)

    def _slope(self, t: Scalar) -> Scalar:
        """The derivative of m."""
        height, steepness, centre = self._parts(t)
        x = steepness * (t - centre)
        return 1 + jnp.sum(height * steepness * jax.nn.sigmoid(x) * jax.nn.sigmoid(-x))

    def _parts(self, t: Scalar) -> tuple[Array, Array, Array]:
        log_height, log_steepness, centre = self.units.astype(t.dtype)
        return jnp.exp(log_height), jnp.exp(log_steepness), centre

    def log_snr_fall(self, s: Time, t: Time) -> Scalar:
        s, t = as_time(s), as_time(t)
        return self._scale(t) * self._rise(s, t)

    def time(self, log_snr: Scalar) -> Scalar:
        r"""The inverse of `log_snr`, by bisection; beyond the ends of $[0, 1]$, the nearer end."""
        log_snr = jnp.asarray(log_snr)
        zero = jnp.zeros_like(log_snr)
        return inverse(Curve(self._log_snr, zero, zero + 1), log_snr)

    def c_noise(self, t: Time) -> Scalar:
        return 25 * (20 - self._log_snr(t))

    def _rate(self, t: Scalar) -> Scalar:
        """−dλ/dt."""
        return self._scale(t) * self._slope(t)

    def _scale(self, t: Scalar) -> Scalar:
        """(λ₀ − λ₁)/(m(1) − m(0))."""
        high, low = self._ends(t)
        return (high - low) / self._rise(jnp.zeros_like(t), jnp.ones_like(t))

    def alpha_dot(self, t: Time) -> Scalar:
        t = as_time(t)
        return -0.5 * self._rate(t) * self.alpha(t) * self.sigma(t) ** 2

    def sigma_dot(self, t: Time) -> Scalar:
        t = as_time(t)
        return 0.5 * self._rate(t) * self.sigma(t) * self.alpha(t) ** 2

    def prior_scale(self) -> Scalar:
        return jnp.ones(())


def _units(units: int | Array) -> Array:
    """The rows of equation (2)."""
    if np.ndim(units) == 0:
        n = whole("LearnedVPSDE", "units", units)
        # Sigmoids a spacing apart that are as wide as it add up to a straight line; some lie
        # outside [0, 1] so that this holds to the ends.
        spacing = 1.25 / n
        centres = spacing * (np.arange(n) + 0.5) - 0.125
        rows = np.full(n, -np.log(n)), np.full(n, -np.log(spacing)), centres
        return jnp.asarray(np.stack(rows), float)
    units = jnp.asarray(units)
    if units.ndim != 2 or units.shape[0] != 3 or not units.shape[1]:
        raise ValueError(
            f"LearnedVPSDE: units has shape {units.shape}, expected (3, n): the logarithms of the "
            "sigmoids' heights and steepness, and their centres. For n new ones write units=n."
        )
    if not is_traced(units) and not np.all(np.isfinite(units)):
        raise ValueError("LearnedVPSDE: units holds values that are not finite.")
    return units
