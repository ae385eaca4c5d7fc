r"""The inverse of a falling log-SNR that has no closed form.

$t(\lambda)$ is found by bisection, which cannot fail for a monotone λ, and differentiated as an
implicit function of λ and of whatever parameters θ the curve holds,

$$\mathrm dt = \frac{\mathrm d\lambda
  - \partial_\theta\lambda_t\,\mathrm d\theta}{\dot\lambda_t}. \tag{1}$$
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._types import Scalar, Time
from .base import as_time


class Curve(eqx.Module):
    """λ(t) on an interval."""

    log_snr: Callable[[Scalar], Scalar]
    low: Array
    high: Array


def _bisect(curve: Curve, value: Scalar) -> Scalar:
    """Halves [t0, t1] until no number lies between its ends: the precision of t, however small t
    is.
    """

    def unfinished(state):
        left, middle, right = state
        return (left < middle) & (middle < right)

    def halve(state):
        left, middle, right = state
        above = curve.log_snr(middle) > value
        left, right = jnp.where(above, middle, left), jnp.where(above, right, middle)
        return left, 0.5 * (left + right), right

    start = (curve.low, 0.5 * (curve.low + curve.high), curve.high)
    left, _, right = jax.lax.while_loop(unfinished, halve, start)
    # One of two neighbours: the one that fits better.
    miss = [jnp.abs(curve.log_snr(end) - value) for end in (left, right)]
    return jnp.where(miss[0] <= miss[1], left, right)


@eqx.filter_custom_jvp
def inverse(curve: Curve, value: Scalar) -> Scalar:
    """The time at which the curve has this value; beyond the interval, its nearer end."""
    return _bisect(curve, value)


@inverse.def_jvp
def _(primals, tangents):
    (curve, value), (curve_dot, value_dot) = primals, tangents
    t = inverse(curve, value)
    rise = jnp.zeros_like(value) if value_dot is None else value_dot
    if any(leaf is not None for leaf in jax.tree.leaves(curve_dot)):
        _, moved = eqx.filter_jvp(lambda c: c.log_snr(t), (curve,), (curve_dot,))
        rise = rise - moved
    return t, rise / derivative(curve.log_snr, t)


def derivative(function: Callable[[Scalar], Scalar], t: Time) -> Scalar:
    """The derivative of a function of the time."""
    t = as_time(t)
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]
