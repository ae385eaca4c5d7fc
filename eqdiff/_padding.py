r"""What lies beyond the edge of a grid (floor 0).

A convolution needs values beyond the edge of the grid. Zeros are what images are trained with; a
physical field has a boundary condition, and a network padded accordingly has its symmetry: with
periodic padding it commutes with shifts, on a sphere with rotations about the axis. Along one axis
of $n$ cells,

| | $x_{-1}, x_{-2}, \dots$ |
|---|---|
| [`eqdiff.ZeroPadding`][] | $0, 0, \dots$ |
| [`eqdiff.PeriodicPadding`][] | $x_{n-1}, x_{n-2}, \dots$ |
| [`eqdiff.ReflectingPadding`][] | $x_0, x_1, \dots$ |

and the same at the other end.
"""

import abc
import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float


# Cells before and after an axis.
Widths = tuple[int, int]


class AbstractPadding(abc.ABC):
    """Cells around a grid. A frozen dataclass of numbers, so that networks hold it as static."""

    @abc.abstractmethod
    def pad(
        self, x: Float[Array, "..."], axes: Sequence[int], widths: Sequence[Widths]
    ) -> Float[Array, "..."]:
        """**Arguments:**

        - `x`: an array, with any other axes.
        - `axes`: those of the grid, in its order.
        - `widths`: how many cells before and after each of them.

        **Returns:** the larger array.
        """


@dataclasses.dataclass(frozen=True)
class ZeroPadding(AbstractPadding):
    """Zeros, in every direction.

    **Example:**

    ```python
    x = eqd.ZeroPadding().pad(jnp.arange(4.0), [0], [(1, 1)])  # 0, 0, 1, 2, 3, 0
    ```
    """

    def pad(self, x, axes, widths):
        """See [`eqdiff.AbstractPadding.pad`][]."""
        return jnp.pad(x, _every(x, axes, widths))


@dataclasses.dataclass(frozen=True)
class PeriodicPadding(AbstractPadding):
    """A torus: beyond each edge lies the opposite one.

    **Example:**

    ```python
    x = eqd.PeriodicPadding().pad(jnp.arange(4.0), [0], [(1, 1)])  # 3, 0, 1, 2, 3, 0
    ```
    """

    def pad(self, x, axes, widths):
        """See [`eqdiff.AbstractPadding.pad`][]."""
        return jnp.pad(x, _every(x, axes, widths), mode="wrap")


@dataclasses.dataclass(frozen=True)
class ReflectingPadding(AbstractPadding):
    """A mirror at each edge, between the last cell and the first beyond: no flux goes through.

    It repeats the last cell: NumPy's mode `"symmetric"`, SciPy's `"reflect"`.

    **Example:**

    ```python
    x = eqd.ReflectingPadding().pad(jnp.arange(4.0), [0], [(1, 1)])  # 0, 0, 1, 2, 3, 3
    ```
    """

    def pad(self, x, axes, widths):
        """See [`eqdiff.AbstractPadding.pad`][]."""
        return jnp.pad(x, _every(x, axes, widths), mode="symmetric")


@dataclasses.dataclass(frozen=True)
class MixedPadding(AbstractPadding):
    """A different padding along each axis: a channel with two walls is
    `eqd.MixedPadding((eqd.ReflectingPadding(), eqd.PeriodicPadding()))`.

    **Arguments:**

    - `each`: one for each axis of the grid.

    **Example:**

    ```python
    padding = eqd.MixedPadding((eqd.ReflectingPadding(), eqd.PeriodicPadding()))  # a channel
    x = padding.pad(jnp.ones((4, 8)), [0, 1], [(1, 1), (1, 1)])
    ```
    """

    each: tuple[AbstractPadding, ...]

    def pad(self, x, axes, widths):
        """See [`eqdiff.AbstractPadding.pad`][].

        **Raises:** `ValueError` unless there is one for each axis.
        """
        if len(self.each) != len(axes):
            raise ValueError(
                f"MixedPadding has {len(self.each)} paddings for a grid of {len(axes)} axes; give "
                "one for each."
            )
        for padding, axis, width in zip(self.each, axes, widths, strict=True):
            x = padding.pad(x, (axis,), (width,))
        return x


@dataclasses.dataclass(frozen=True)
class LatLonPadding(AbstractPadding):
    """A sphere in rows of equal latitude: periodic along them, and beyond a pole lie the rows on
    this side of it, turned by half a circle.

    The last two axes are latitude and longitude. Rows are centres of cells, so the outermost lie
    half a step from the poles. The number of cells in a row must be even, at every level of a
    network.

    **Arguments:**

    - `above`: the padding of all other axes, such as height.

    **Example:**

    ```python
    x = eqd.LatLonPadding().pad(jnp.ones((4, 8)), [0, 1], [(1, 1), (1, 1)])
    ```
    """

    above: AbstractPadding = ZeroPadding()

    def pad(self, x, axes, widths):
        """See [`eqdiff.AbstractPadding.pad`][].

        **Raises:** `ValueError` for a grid of one axis, rows of an odd number of cells, or more
        rows to pad than there are.
        """
        if len(axes) < 2:
            raise ValueError(
                "LatLonPadding is for grids whose last two axes are latitude and longitude, got "
                f"{len(axes)} axis; use PeriodicPadding() on a circle."
            )
        latitude, longitude = axes[-2:]
        (north, south), around = widths[-2:]
        rows, cells = x.shape[latitude], x.shape[longitude]
        if cells % 2 or max(north, south) > rows:
            raise ValueError(
                f"LatLonPadding of {rows} rows of {cells} cells by {max(north, south)}: expected "
                "an even number of cells, whose opposite is half a turn away, and no more than "
                "the rows there are. A network with fewer levels keeps more of both."
            )
        opposite = jnp.flip(jnp.roll(x, cells // 2, longitude), latitude)
        before = jnp.take(opposite, jnp.arange(rows - north, rows), axis=latitude)
        after = jnp.take(opposite, jnp.arange(south), axis=latitude)
        x = jnp.concatenate([before, x, after], axis=latitude)
        x = PeriodicPadding().pad(x, (longitude,), (around,))
        return self.above.pad(x, axes[:-2], widths[:-2])


def _every(x: Array, axes: Sequence[int], widths: Sequence[Widths]) -> list[Widths]:
    every = x.ndim * [(0, 0)]
    for axis, width in zip(axes, widths, strict=True):
        every[axis] = width
    return every
