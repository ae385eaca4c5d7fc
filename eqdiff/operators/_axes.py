"""Which axes of an example an operator works on: by default all but the first, its channels."""

from typing import Any

import jax.numpy as jnp

from .._check import check_example, of
from .._types import Example


# `None` for all but the first.
Axes = tuple[int, ...] | None


def resolve_axes(owner: Any, axes: Axes, x: Example) -> tuple[int, ...]:
    """The axes from 0 on.

    **Raises:** `ValueError` for whole numbers, axes that `x` does not have, or that it has but
    once, or none at all.
    """
    check_example(owner, x)
    ndim = jnp.ndim(x)
    found = range(1, ndim) if axes is None else axes
    if not found or any(not -ndim <= axis < ndim for axis in found):
        raise ValueError(
            f"{of(owner)}: x has shape {jnp.shape(x)}, and axes={axes} of it are none. The default "
            "is all axes but the first, which are channels; for an array without channels write "
            f"axes={tuple(range(max(ndim, 1)))}."
        )
    resolved = tuple(axis % ndim for axis in found)
    if len(set(resolved)) != len(resolved):
        raise ValueError(f"{of(owner)}(axes={axes}): expected different axes.")
    return resolved


def sizes(x: Example, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The lengths of some axes."""
    return tuple(jnp.shape(x)[axis] for axis in axes)
