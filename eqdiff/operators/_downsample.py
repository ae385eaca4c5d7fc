r"""Coarser pixels: $y$ is the mean of $x$ over blocks."""

import equinox as eqx
import jax.numpy as jnp

from .._check import whole
from .._types import Example
from ._axes import Axes, resolve_axes, sizes


class Downsample(eqx.Module):
    r"""Takes means over blocks of cells, as a detector with larger pixels sees them.

    Its rows are orthogonal, of length $1/\sqrt n$ for blocks of $n$ cells.

    **Example:**

    ```python
    y = eqd.operators.Downsample(4)(jnp.ones((3, 16, 16)))  # (3, 4, 4)
    ```
    """

    factor: int | tuple[int, ...] = eqx.field(static=True)
    axes: Axes = eqx.field(static=True)

    def __init__(self, factor: int | tuple[int, ...], axes: Axes = None):
        """**Arguments:**

        - `factor`: the side of a block, one for all axes or one for each.
        - `axes`: along which; by default all but the first, the channels.

        **Raises:** `ValueError` for what is not a positive whole number; when called, for an
        example whose sides it does not divide.
        """
        if isinstance(factor, tuple):
            self.factor = tuple(whole(self, "factor", n) for n in factor)
        else:
            self.factor = whole(self, "factor", factor)
        self.axes = axes

    def __call__(self, x: Example) -> Example:
        axes = resolve_axes(self, self.axes, x)
        factor = self.factor if isinstance(self.factor, tuple) else len(axes) * (self.factor,)
        sides = sizes(x, axes)
        if len(factor) != len(axes) or any(n % f for n, f in zip(sides, factor, strict=False)):
            raise ValueError(
                f"Downsample(factor={self.factor}): x has shape {x.shape}, with sides {sides}; "
                "expected a factor that divides them, one for all or one for each."
            )
        factors = dict(zip(axes, factor, strict=True))
        shape = [
            m for i, n in enumerate(x.shape) for m in (n // factors.get(i, 1), factors.get(i, 1))
        ]
        return jnp.reshape(x, shape).mean(tuple(range(1, 2 * x.ndim, 2)))
