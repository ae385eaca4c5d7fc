r"""The linear rate β(t) that VP and sub-VP share.

$$\beta(t) = \beta_{\min} + t(\beta_{\max} - \beta_{\min}), \qquad
  B(t) = \int_0^t \beta(s)\,\mathrm ds
    = t\beta_{\min} + \tfrac12 t^2 (\beta_{\max} - \beta_{\min}) \tag{1}$$

(Song et al. 2021, equation 32). Its inverse is the root of (1) written so that nothing cancels for
small $B$.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


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
