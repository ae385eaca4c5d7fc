r"""The elements that are known: $Ax = x_K$.

What is not known is left out, not set to zero. Then $y$ has one element for each that was measured,
$p(y|x_0)$ is their density and no more, simulated noise falls on them alone, and a value that
stands for "missing", NaN even, never enters a product: $0 \cdot \mathrm{NaN}$ is NaN. $A^\top$
puts $y$ back in place among zeros.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Inexact, Int

from .._check import check_example, is_traced
from .._types import Example


def known_indices(name: str, known: ArrayLike) -> tuple[tuple[int, ...], Int[Array, " known"]]:
    """The shape of a mask, and where it is true."""
    if is_traced(known):
        raise ValueError(
            f"{name}: the mask is traced, so that the size of y is not known. Make it a NumPy "
            "array, outside of jax.jit and jax.vmap."
        )
    mask = np.asarray(known)
    if mask.dtype != bool or mask.ndim == 0 or not mask.any():
        raise ValueError(
            f"{name}: the mask is {mask.dtype} of shape {mask.shape} with {np.sum(mask != 0)} "
            "elements that are not 0, expected an array of bool, True for one element at least. "
            "Write mask > 0.5."
        )
    return mask.shape, jnp.asarray(np.flatnonzero(mask), jnp.int32)


def take(
    x: Inexact[Array, "..."], indices: Int[Array, " known"], ndim: int
) -> Inexact[Array, "..."]:
    """Some elements of the last `ndim` axes, which become one."""
    flat = jnp.reshape(x, (*x.shape[: x.ndim - ndim], -1))
    return flat.at[..., indices].get(indices_are_sorted=True, unique_indices=True)


class Mask(eqx.Module):
    r"""Keeps the known elements alone, in their order.

    **Example:**

    ```python
    import numpy as np
    image = np.ones((1, 8, 8))
    image[0, 2:5] = np.nan
    mask = eqd.operators.Mask(~np.isnan(image))
    measurement = eqd.Measurement(mask(jnp.asarray(image)), mask, 0.05)
    ```
    """

    indices: Int[Array, " known"]
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, known: ArrayLike):
        r"""**Arguments:**

        - `known`: an array of bool, `True` where $x$ is measured. Its axes are the last of $x$:
            of shape `(height, width)` it holds for every channel.

        **Raises:** `ValueError` for a mask of other numbers, of no element, or one that is traced.
        """
        self.shape, self.indices = known_indices("Mask", known)

    def __call__(self, x: Example) -> Float[Array, "... known"]:
        """**Arguments:**

        - `x`: one example. NaN where it is not known does no harm.

        **Returns:** the known elements: `(number,)` for a mask of the shape of `x`, `(channels,
        number)` for one of the shape of a channel.

        **Raises:** `ValueError` where the last axes of `x` are not those of the mask.
        """
        check_example(self, x)
        if x.shape[max(0, x.ndim - len(self.shape)) :] != self.shape:
            raise ValueError(
                f"Mask: x has shape {x.shape}, but the mask has {self.shape}, which should be its "
                "last axes."
            )
        return take(x, self.indices, len(self.shape))
