r"""The bridge between the chain and continuous time.

A chain's log-SNR $\lambda_t = \log\bar\alpha_t - \log(1 - \bar\alpha_t)$ is known at whole times. Interpolated through
all of them by a monotone cubic (Steffen 1990), it defines a variance-preserving process,

$$\alpha_t^2 = \operatorname{sigmoid}(\lambda_t), \qquad \sigma_t^2 = \operatorname{sigmoid}(-\lambda_t), \qquad
  f = \tfrac12 \sigma_t^2 \dot\lambda_t, \qquad g^2 = -\sigma_t^2 \dot\lambda_t, \tag{1}$$

whose time is still the index. A network trained on the chain is thereby sampled with any ODE or SDE solver and has an
exact likelihood.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._process import AbstractSDE
from .._process.base import as_time
from .._types import Example, Scalar, Time
from ._table import Table


class ContinuousSchedule(AbstractSDE):
    r"""A discrete chain as a VP process on $t \in [0, T-1]$, made by `schedule.continuous()`.

    Monotone cubic interpolation of the chain's log-SNR and labels; equal to the chain at whole times.

    See [`eqdiff.Schedule.continuous`][].
    """

    _log_snrs: Table = eqx.field(static=True)
    _labels: Table = eqx.field(static=True)
    t0: float = eqx.field(static=True)
    t1: float = eqx.field(static=True)

    def __init__(
        self, log_snrs: Float[np.ndarray, " T"], labels: Float[np.ndarray, " T"], *, t1: float
    ):
        r"""**Arguments:** those that `schedule.continuous()` finds.

        - `log_snrs`, `labels`: the chain's $\lambda_t$ and labels at whole times.
        - `t1`: the last time used.
        """
        self._log_snrs, self._labels = Table(log_snrs), Table(labels)
        self.t0, self.t1 = 0.0, t1

    @property
    def log_snrs(self) -> Float[np.ndarray, " T"]:
        r"""The chain's $\lambda_t$, float64."""
        return self._log_snrs.array

    @property
    def labels(self) -> Float[np.ndarray, " T"]:
        """What the network is told at each of the chain's steps, float64."""
        return self._labels.array

    def _piece(self, table: Table, t: Time):
        """The place within the unit interval of t, and the interval's cubic."""
        t = as_time(t)
        cubics = table.derived(_monotone)
        i = jnp.clip(jnp.floor(t), 0, len(cubics) - 1)
        return t - i, jnp.asarray(cubics, t.dtype)[i.astype(jnp.int32)]

    def log_snr(self, t: Time) -> Scalar:
        return self._evaluate(self._log_snrs, t)

    def label(self, t: Time) -> Scalar:
        return self._evaluate(self._labels, t)

    def _evaluate(self, table: Table, t: Time) -> Scalar:
        u, c = self._piece(table, t)
        return c[0] + u * (c[1] + u * (c[2] + u * c[3]))

    def _log_snr_dot(self, t: Time) -> Scalar:
        u, c = self._piece(self._log_snrs, t)
        return c[1] + u * (2 * c[2] + u * 3 * c[3])

    def time(self, log_snr: Scalar) -> Scalar:
        # Bisection has no derivative of its own, so it is given that of the inverse function, 1/λ̇.
        @jax.custom_jvp
        def inverse(value):
            return self._bisect(value)

        @inverse.defjvp
        def _(primals, tangents):
            t = inverse(*primals)
            return t, tangents[0] / self._log_snr_dot(t)

        return inverse(log_snr)

    def _bisect(self, log_snr: Scalar) -> Scalar:
        table = jnp.asarray(self.log_snrs, log_snr.dtype)
        # λ decreases, so −λ is sorted. Within its interval the cubic is monotone: bisection cannot fail, and its
        # number of halvings is set by the precision.
        i = jnp.clip(jnp.searchsorted(-table, -log_snr, side="right") - 1, 0, table.size - 2)
        low = i.astype(log_snr.dtype)

        def halve(_, bracket):
            left, right = bracket
            middle = 0.5 * (left + right)
            above = self.log_snr(middle) > log_snr
            return jnp.where(above, middle, left), jnp.where(above, right, middle)

        left, right = jax.lax.fori_loop(
            0, jnp.finfo(log_snr.dtype).nmant + 1, halve, (low, low + 1)
        )
        return 0.5 * (left + right)

    def alpha(self, t: Time) -> Scalar:
        return jnp.exp(0.5 * jax.nn.log_sigmoid(self.log_snr(t)))

    def sigma(self, t: Time) -> Scalar:
        return jnp.exp(0.5 * jax.nn.log_sigmoid(-self.log_snr(t)))

    def alpha_dot(self, t: Time) -> Scalar:
        return 0.5 * self._log_snr_dot(t) * self.alpha(t) * self.sigma(t) ** 2

    def sigma_dot(self, t: Time) -> Scalar:
        return -0.5 * self._log_snr_dot(t) * self.sigma(t) * self.alpha(t) ** 2

    def drift(self, t: Time, x: Example) -> Example:
        return (0.5 * self.sigma(t) ** 2 * self._log_snr_dot(t)).astype(x.dtype) * x

    def diffusion(self, t: Time) -> Scalar:
        return self.sigma(t) * jnp.sqrt(-self._log_snr_dot(t))

    def prior_scale(self) -> Scalar:
        return jnp.ones(())


def _monotone(y: Float[np.ndarray, " T"]) -> Float[np.ndarray, "T-1 4"]:
    """Power-basis coefficients on each unit interval, in float64."""
    # Steffen (1990) on unit spacing: the slope at a knot is the parabola's, limited so that no interval overshoots.
    step = np.diff(y)
    left, right = step[:-1], step[1:]
    limit = np.minimum(np.minimum(np.abs(left), np.abs(right)), 0.25 * np.abs(left + right))
    inner = (np.sign(left) + np.sign(right)) * limit
    first = _end_slope(step[0], 1.5 * step[0] - 0.5 * step[1])
    last = _end_slope(step[-1], 1.5 * step[-1] - 0.5 * step[-2])
    slope = np.concatenate([[first], inner, [last]])
    d0, d1 = slope[:-1], slope[1:]
    return np.stack([y[:-1], d0, 3 * step - 2 * d0 - d1, d0 + d1 - 2 * step], axis=1)


def _end_slope(step: float, parabola: float) -> float:
    if parabola * step <= 0:
        return 0.0
    return float(np.sign(step) * min(abs(parabola), 2 * abs(step)))
