r"""The path between two latents.

For latents at an angle ω, spherical interpolation (Shoemake 1985)

$$\operatorname{slerp}(x, y; w) = \frac{\sin((1 - w)\omega)}{\sin\omega} x +
  \frac{\sin(w\omega)}{\sin\omega} y, \qquad
  \cos\omega = \frac{x\cdot y}{\|x\|\,\|y\|}. \tag{1}$$
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._check import check_example
from .._types import Example, Scalar


def slerp(x: Example, y: Example, weight: float | Scalar) -> Example:
    r"""Spherical interpolation between two latents, equation (1): `x` at weight 0, `y` at 1.

    The result has the length of both, if they have the same; of two independent standard normal
    latents it is standard normal; and of two parallel ones it is their linear interpolation.

    **Arguments:**

    - `x`, `y`: two latents of one shape. The prior may have any scale.
    - `weight`: $w$; below 0 and above 1 it extrapolates along the circle.

    **Returns:** the interpolation, in the precision of `x`.

    **Raises:** `ValueError` for latents of different shapes; a runtime error if one of them is 0 or
    they are opposite, so that the path between them is not unique.

    **Example:**

    ```python
    between = eqd.slerp(jnp.asarray([1.0, 0.0]), jnp.asarray([0.0, 1.0]), 0.5)  # 0.71, 0.71
    ```

    ??? cite "Reference"

        Shoemake, *Animating Rotation with Quaternion Curves*, SIGGRAPH 1985; White, *Sampling
        Generative Networks*, 2016.
    """
    if x.shape != y.shape:
        raise ValueError(f"slerp: latents of shapes {x.shape} and {y.shape}; expected one shape.")
    check_example("slerp", x)
    y = y.astype(x.dtype)
    w = jnp.asarray(weight).astype(x.dtype)
    unit_x, unit_y = _unit(x), _unit(y)
    # Half the angle from chord and bisector: arccos would lose half the digits near 0 and π.
    chord, bisector = _length(unit_x - unit_y), _length(unit_x + unit_y)
    angle = 2 * jnp.arctan2(chord, bisector)
    angle = eqx.error_if(
        angle,
        bisector < float(jnp.finfo(x.dtype).eps) ** 0.75,
        "slerp: the latents are opposite: no great circle between them is the shortest. Go by way "
        "of a third latent.",
    )
    return _ratio(1 - w, angle) * x + _ratio(w, angle) * y


def _length(x: Example) -> Scalar:
    square = jnp.sum(x**2)
    zero = square == 0  # where the root has no gradient
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def _unit(x: Example) -> Example:
    # By its largest element first, so that the squares neither overflow nor vanish.
    largest = jnp.max(jnp.abs(x))
    largest = eqx.error_if(
        largest,
        ~(jnp.isfinite(largest) & (largest > 0)),
        "slerp: a latent is zero or not finite and has no direction.",
    )
    x = x / largest
    return x / _length(x)


def _ratio(weight: Scalar, angle: Scalar) -> Float[Array, ""]:
    """sin(wω)/sin ω, which is w at ω = 0."""
    small = angle < float(jnp.finfo(angle.dtype).eps) ** 0.5
    safe = jnp.where(small, 1.0, angle)
    return jnp.where(small, weight, jnp.sin(weight * safe) / jnp.sin(safe))
