r"""Projections along parallel rays, as X-ray tomography and electron microscopes measure them.

With $u$ along the columns and $v$ along the rows of an image, both counted in pixels from its
middle, the projection at an angle $\theta$ is

$$(Ax)_\theta(s) = \int x(s\cos\theta - t\sin\theta,\ s\sin\theta + t\cos\theta)\,\mathrm dt.
  \tag{1}$$

Between pixels the image is interpolated linearly, beyond its edges it is 0, and the integral is a
sum over steps of one pixel. Everything is linear in $x$, so automatic differentiation finds the
exact adjoint of the sum, which most back-projectors are not.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, ArrayLike, Float

from .._check import check_example, is_traced, whole
from .._types import Example


class Radon(eqx.Module):
    r"""Projections of every image $(\dots, \text{height}, \text{width})$: equation (1).

    At $\theta = 0$ it sums columns, at $\pi/2$ rows. Lengths are counted in pixels: for pixels of
    another size multiply by it.

    **Example:**

    ```python
    angles = jnp.linspace(0, jnp.pi, 60, endpoint=False)
    y = eqd.operators.Radon(angles)(jnp.ones((1, 16, 16)))
    ```
    """

    angles: Float[Array, " angles"]
    bins: int | None = eqx.field(static=True)

    def __init__(self, angles: ArrayLike, *, bins: int | None = None):
        r"""**Arguments:**

        - `angles`: $\theta$ in radians; half a turn sees everything.
        - `bins`: how many $s$, one pixel apart about the middle; by default as many as the diagonal
            of the image has pixels.

        **Raises:** `ValueError` for angles that are not one axis of finite numbers.
        """
        shape = jnp.shape(angles)
        known = np.zeros(1) if is_traced(angles) else np.asarray(angles)
        if len(shape) != 1 or shape[0] == 0 or not np.all(np.isfinite(known)):
            raise ValueError(
                f"Radon: angles have shape {shape}, expected one axis of finite numbers, in "
                "radians, such as np.linspace(0, np.pi, 60, endpoint=False)."
            )
        self.angles = jnp.asarray(angles, jnp.result_type(float))
        self.bins = None if bins is None else whole(self, "bins", bins)

    def __call__(self, x: Example) -> Float[Array, "... angles bins"]:
        """**Arguments:**

        - `x`: one example whose last two axes are an image.

        **Returns:** `(channels, angles, bins)`, where `x` has channels.

        **Raises:** `ValueError` for an example of fewer than two axes.
        """
        check_example(self, x)
        if x.ndim < 2:
            raise ValueError(
                f"Radon: x has shape {x.shape}, expected (..., height, width), an image."
            )
        *batch, height, width = x.shape
        diagonal = math.ceil(math.hypot(height, width))
        s = _centred(self.bins or diagonal, x.dtype)
        t = _centred(diagonal, x.dtype)[:, None]
        middle = (height - 1) / 2, (width - 1) / 2

        def project(angle, image):
            cos, sin = jnp.cos(angle), jnp.sin(angle)
            u, v = s[None] * cos - t * sin, s[None] * sin + t * cos
            places = [v + middle[0], u + middle[1]]
            return map_coordinates(image, places, order=1, mode="constant").sum(0)

        angles = self.angles.astype(x.dtype)
        each = jax.vmap(lambda image: jax.vmap(lambda angle: project(angle, image))(angles))
        y = each(x.reshape(-1, height, width))
        return y.reshape(*batch, *y.shape[1:])


def _centred(number: int, dtype) -> Float[Array, " number"]:
    return jnp.arange(number, dtype=dtype) - (number - 1) / 2
