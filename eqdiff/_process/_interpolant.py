r"""A smooth monotone curve through numbers known at whole times.

On each unit interval the curve is $y(i + u) = y_i + u(c_1 + u(c_2 + u c_3)) + 2\log(1 - c_4 u)$: a
cubic with $c_4 = 0$, except on the last interval of a log-SNR that ends in $-\infty$. Where the
cubic spline through all numbers (not-a-knot ends) is monotone between each two of them, it is the
curve: its second derivative is continuous, which solvers of high order rely on. Where the spline
overshoots, as at the kinks of a schedule respaced in sections, the curve is Steffen's (1990): the
slope at a number is the parabola's through its neighbours, limited so that no interval overshoots.
Its second derivative jumps.

What the spline saves, in accepted + rejected steps of the probability flow of a Gaussian mixture
(float64, mean of eight solves, tolerances `rtol` = `atol`):

| schedule of 1000 steps | solver | | 1e-6 | 1e-8 | 1e-10 |
|---|---|---|---|---|---|
| cosine | `Tsit5` | spline | 22 + 10 | 43 + 18 | 131 + 70 |
| | | Steffen | 29 + 9 | 160 + 90 | 887 + 1025 |
| | `Dopri8` | spline | 21 + 6 | 47 + 17 | 184 + 115 |
| | | Steffen | 47 + 14 | 402 + 264 | 1383 + 1998 |
| linear | `Tsit5` | spline | 19 + 10 | 38 + 23 | 108 + 63 |
| | | Steffen | 22 + 14 | 112 + 80 | 563 + 713 |
| | `Dopri8` | spline | 15 + 9 | 27 + 22 | 108 + 77 |
| | | Steffen | 25 + 21 | 204 + 156 | 888 + 1396 |
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def cubics(y: Float[np.ndarray, " T"]) -> Float[np.ndarray, "pieces 5"]:
    """The coefficients $(y_i, c_1, c_2, c_3, 0)$ on each unit interval, in float64."""
    if y.size == 1:
        return np.array([[y[0], 0.0, 0.0, 0.0, 0.0]])
    if y.size >= 4:
        smooth = _from_slopes(y, _spline_slopes(y))
        if _is_monotone(smooth):
            return smooth
    return _from_slopes(y, _steffen_slopes(y))


def evaluate(u: Float[Array, ""], c: Float[Array, "5"]) -> Float[Array, ""]:
    """The rise of a piece above its first coefficient."""
    return u * (c[1] + u * (c[2] + u * c[3])) + 2 * jnp.log(left_of(u, c))


def rise(u: Float[Array, ""], v: Float[Array, ""], c: Float[Array, "5"]) -> Float[Array, ""]:
    """The rise of a piece from u to v, which does not cancel where they are close."""
    cubic = (v - u) * (c[1] + c[2] * (u + v) + c[3] * (u * u + u * v + v * v))
    return cubic + 2 * jnp.log1p(jnp.maximum(c[4] * (u - v) / left_of(u, c), -1))


def left_of(u: Float[Array, ""], c: Float[Array, "5"]) -> Float[Array, ""]:
    """$1 - c_4 u$, 0 at an end that is at $-\\infty$. Beyond it by rounding, it is that end."""
    return jnp.maximum(1 - c[4] * u, 0)


def cubic_slope(u: Float[Array, ""], c: Float[Array, "5"]) -> Float[Array, ""]:
    """The slope of a piece without its logarithm."""
    return c[1] + u * (2 * c[2] + u * 3 * c[3])


def slope(u: Float[Array, ""], c: Float[Array, "5"]) -> Float[Array, ""]:
    """The slope of a piece."""
    return cubic_slope(u, c) - 2 * c[4] / left_of(u, c)


def halves(
    table: Float[np.ndarray, " n"], dtype: np.dtype
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """A float64 table as the sum of two of a lower precision, so that differences keep their
    digits. What is infinite is so in the first.
    """
    high = table.astype(dtype)
    finite = np.isfinite(table)
    low = (np.where(finite, table, 0) - np.where(finite, high, 0)).astype(dtype)
    return jnp.asarray(high), jnp.asarray(low)


def _from_slopes(y: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    step, d0, d1 = np.diff(y), slopes[:-1], slopes[1:]
    c2, c3 = 3 * step - 2 * d0 - d1, d0 + d1 - 2 * step
    return np.stack([y[:-1], d0, c2, c3, np.zeros_like(d0)], axis=1)


def _is_monotone(c: np.ndarray) -> bool:
    """Whether the slope keeps one sign on every interval."""
    ends = np.concatenate([c[:, 1], c[:, 1] + 2 * c[:, 2] + 3 * c[:, 3]])
    # The slope turns at u = −c₂/(3c₃), which matters within the interval alone.
    turns = np.abs(c[:, 3]) * 3 > np.abs(c[:, 2])
    u = np.clip(-c[turns, 2] / (3 * c[turns, 3]), 0, 1)
    middle = c[turns, 1] + u * (2 * c[turns, 2] + u * 3 * c[turns, 3])
    slopes = np.concatenate([ends, middle])
    return bool(np.all(slopes > 0) or np.all(slopes < 0))


def _spline_slopes(y: np.ndarray) -> np.ndarray:
    """The slopes of the not-a-knot spline on unit spacing: a tridiagonal system."""
    n, step = y.size, np.diff(y)
    lower, diagonal, upper = np.ones(n), np.full(n, 4.0), np.ones(n)
    right = np.empty(n)
    right[1:-1] = 3 * (step[:-1] + step[1:])
    # The third derivative is continuous at the second and at the last but one number.
    diagonal[0], upper[0], right[0] = 1.0, 2.0, 2.5 * step[0] + 0.5 * step[1]
    diagonal[-1], lower[-1], right[-1] = 1.0, 2.0, 2.5 * step[-1] + 0.5 * step[-2]
    for i in range(1, n):
        factor = lower[i] / diagonal[i - 1]
        diagonal[i] -= factor * upper[i - 1]
        right[i] -= factor * right[i - 1]
    slopes = np.empty(n)
    slopes[-1] = right[-1] / diagonal[-1]
    for i in range(n - 2, -1, -1):
        slopes[i] = (right[i] - upper[i] * slopes[i + 1]) / diagonal[i]
    return slopes


def _steffen_slopes(y: np.ndarray) -> np.ndarray:
    step = np.diff(y)
    if step.size == 1:
        return np.repeat(step, 2)
    left, right = step[:-1], step[1:]
    limit = np.minimum(np.minimum(np.abs(left), np.abs(right)), 0.25 * np.abs(left + right))
    inner = (np.sign(left) + np.sign(right)) * limit
    first = _end_slope(step[0], 1.5 * step[0] - 0.5 * step[1])
    last = _end_slope(step[-1], 1.5 * step[-1] - 0.5 * step[-2])
    return np.concatenate([[first], inner, [last]])


def _end_slope(step: float, parabola: float) -> float:
    if parabola * step <= 0:
        return 0.0
    return float(np.sign(step) * min(abs(parabola), 2 * abs(step)))
