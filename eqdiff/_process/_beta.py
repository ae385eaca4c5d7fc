r"""The linear rate β(t) that VP and sub-VP share.

$$\beta(t) = \beta_{\min} + t(\beta_{\max} - \beta_{\min}), \qquad
  B(t) = \int_0^t \beta(s)\,\mathrm ds
    = t\beta_{\min} + \tfrac12 t^2 (\beta_{\max} - \beta_{\min}) \tag{1}$$

(Song et al. 2021, equation 32). Its inverse is the root of (1) written so that nothing cancels for
small $B$.

$\beta_{\min}$ may be negative: with $\beta(t)$ and $B(t)$ positive on the interval $[t_0, t_1]$ in
use, all of it is a process. EDM's ablation solves for rates with $B$ given at both ends, $b_0$ at
$t_0$ and $b_1$ at 1,

$$\beta_d = 2\,\frac{b_0/t_0 - b_1}{t_0 - 1}, \qquad \beta_{\min} = b_1 - \tfrac12\beta_d, \qquad
  \beta_{\max} = \beta_{\min} + \beta_d, \tag{2}$$

which is negative for a small $b_0$ (Karras et al. 2022, appendix C.1).
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._check import check_finite, known_number


def rate(t: Float[Array, ""], low: float | Array, high: float | Array) -> Float[Array, ""]:
    r"""$\beta(t)$."""
    return low + t * (high - low)


def integral(t: Float[Array, ""], low: float | Array, high: float | Array) -> Float[Array, ""]:
    r"""$B(t)$, equation (1)."""
    return t * (low + 0.5 * t * (high - low))


def integral_between(
    s: Float[Array, ""], t: Float[Array, ""], low: float | Array, high: float | Array
) -> Float[Array, ""]:
    r"""$B(t) - B(s)$, which does not cancel where $s \approx t$."""
    return (t - s) * (low + 0.5 * (s + t) * (high - low))


def inverse_integral(b: Float[Array, ""], low: float | Array, high: float | Array):
    r"""The $t$ with $B(t) = b$."""
    return 2 * b / (low + jnp.sqrt(low**2 + 2 * b * (high - low)))


def check_rates(owner: Any, low: Any, high: Any, t0: Any, t1: Any) -> None:
    """Raises `ValueError` unless known rates and their integral are positive from t0 to t1."""
    check_finite(owner, beta_min=low, beta_max=high)
    numbers = [known_number(value) for value in (low, high, t0, t1)]
    if any(number is None for number in numbers):
        return
    low, high, t0, t1 = numbers
    slope = high - low
    positive = {
        f"β(t0) = {low + t0 * slope:g}": low + t0 * slope > 0,
        f"β(t1) = {low + t1 * slope:g}": low + t1 * slope > 0,
        f"its integral to t0, {t0 * (low + 0.5 * t0 * slope):g}": low + 0.5 * t0 * slope > 0,
    }
    wrong = [words for words, good in positive.items() if not good]
    if wrong:
        name = type(owner).__name__
        raise ValueError(
            f"{name}(beta_min={low:g}, beta_max={high:g}, t0={t0:g}, t1={t1:g}): expected a rate β "
            f"that is positive from t0 to t1, and its integral with it; {wrong[0]}."
        )
