r"""Convolutions with a kernel: what an instrument of finite resolution sees.

$$(Ax)_i = \sum_j k_j\,x_{i - j}, \tag{1}$$

with $j$ counted from the middle of the kernel and $x$ continued beyond its edges as a padding says.
Of a period of $N$ cells, $Ax$ multiplies the Fourier mode $f$ by $\sum_j k_j e^{-2\pi ifj/N}$.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._check import check_positive, is_traced, whole
from .._padding import AbstractPadding, PeriodicPadding
from .._types import Example
from ._axes import Axes, resolve_axes


def _convolve(
    x: Example, kernel: Float[Array, "..."], axes: Sequence[int], padding: AbstractPadding
) -> Example:
    """Equation (1) along `axes`, whose number the kernel has."""
    widths = [(n // 2, n // 2) for n in kernel.shape]
    padded = jnp.moveaxis(padding.pad(x, axes, widths), axes, range(-len(axes), 0))
    batch, grid = padded.shape[: -len(axes)], padded.shape[-len(axes) :]
    # Flipped: what XLA calls a convolution is a correlation.
    taps = jnp.flip(kernel.astype(x.dtype))[None, None]
    y = jax.lax.conv_general_dilated(
        padded.reshape(-1, 1, *grid),
        taps,
        len(axes) * (1,),
        "VALID",
        precision=jax.lax.Precision.HIGHEST,
    )
    return jnp.moveaxis(y.reshape(*batch, *y.shape[2:]), range(-len(axes), 0), axes)


class Blur(eqx.Module):
    """Convolves with a kernel, such as the point-spread function of a telescope: equation (1).

    **Example:**

    ```python
    blur = eqd.operators.Blur(jnp.ones((3, 3)) / 9, padding=eqd.ZeroPadding())
    y = blur(jnp.ones((1, 8, 8)))
    ```
    """

    kernel: Float[Array, "..."]
    padding: AbstractPadding = eqx.field(static=True)
    axes: Axes = eqx.field(static=True)

    def __init__(
        self,
        kernel: ArrayLike,
        *,
        padding: AbstractPadding = PeriodicPadding(),
        axes: Axes = None,
    ):
        """**Arguments:**

        - `kernel`: $k$, with an axis for each of `axes` and an odd number of elements along each.
            Not normalised here.
        - `padding`: what lies beyond the edges: [`eqdiff.PeriodicPadding`][],
            [`eqdiff.ReflectingPadding`][], [`eqdiff.ZeroPadding`][], ...
        - `axes`: along which; by default all but the first, the channels.

        **Raises:** `ValueError` for a kernel with an even side or not finite; when called, for
        another number of axes.
        """
        shape = jnp.shape(kernel)
        if not shape or any(n % 2 == 0 for n in shape):
            raise ValueError(
                f"Blur: the kernel has shape {shape}, expected an odd number of elements along "
                "each axis, so that it has a middle. Pad it with zeros."
            )
        if not is_traced(kernel) and not np.all(np.isfinite(np.asarray(kernel))):
            raise ValueError("Blur: the kernel is not finite.")
        self.kernel, self.padding, self.axes = jnp.asarray(kernel), padding, axes

    def __call__(self, x: Example) -> Example:
        axes = resolve_axes(self, self.axes, x)
        if len(axes) != self.kernel.ndim:
            raise ValueError(
                f"Blur: x has shape {x.shape} and is blurred along {len(axes)} axes, {axes}, but "
                f"the kernel has shape {self.kernel.shape}, of {self.kernel.ndim}. Give it axes=."
            )
        return _convolve(x, self.kernel, axes, self.padding)


class GaussianBlur(eqx.Module):
    r"""Convolves with a Gaussian: equation (1) with $k_j \propto e^{-j^2/2s^2}$ along every axis.

    The kernel has the sum 1. It multiplies a mode of $f$ cycles per cell by $e^{-2\pi^2s^2f^2}$,
    but for its end `radius` cells from the middle. The axes are blurred one after another.

    **Example:**

    ```python
    y = eqd.operators.GaussianBlur(1.5)(jnp.ones((1, 16, 16)))
    ```
    """

    std: float | Array
    radius: int = eqx.field(static=True)
    padding: AbstractPadding = eqx.field(static=True)
    axes: Axes = eqx.field(static=True)

    def __init__(
        self,
        std: float | Array,
        *,
        radius: int | None = None,
        padding: AbstractPadding = PeriodicPadding(),
        axes: Axes = None,
    ):
        r"""**Arguments:**

        - `std`: $s$, in cells. If it is traced, pass a radius.
        - `radius`: the cells on each side of the middle; by default $\lceil 5s \rceil$, beyond
            which less than a millionth lies.
        - `padding`, `axes`: as for [`eqdiff.operators.Blur`][].

        **Raises:** `ValueError` for a standard deviation that is not positive, or traced without
        a radius.
        """
        check_positive(self, std=std)
        if radius is None:
            if is_traced(std):
                raise ValueError(
                    "GaussianBlur: std is traced, so that the size of the kernel is not known; "
                    "give it a radius, such as five of the largest standard deviation."
                )
            radius = int(np.ceil(5 * float(std)))
        self.std, self.radius = std, whole(self, "radius", radius)
        self.padding, self.axes = padding, axes

    def __call__(self, x: Example) -> Example:
        j = jnp.arange(-self.radius, self.radius + 1, dtype=x.dtype)
        kernel = jax.nn.softmax(-0.5 * (j / jnp.asarray(self.std, x.dtype)) ** 2)
        for axis in resolve_axes(self, self.axes, x):
            x = _convolve(x, kernel, (axis,), self.padding)
        return x
