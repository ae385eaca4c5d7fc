"""Aliases for the shapes that appear everywhere (floor 0).

A *single example* is the unit of all mathematics in eqdiff: an array of any shape with no batch
axis. Times, noise levels and log-densities are scalars. Users batch with `jax.vmap`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, Shaped


# One example: pixels `(channels, height, width)`, a vector `(features,)`, or anything else.
Example = Float[Array, "..."]

# One real number: a log-density, a loss, a noise level.
Scalar = Float[Array, ""]

# What a user may pass as a time: a number of any kind or a 0-d array.
Time = float | int | np.number | Shaped[Array | np.ndarray, ""]

# Anything that conditions a network: a class label, an image, a pytree of both. `None` if nothing
# does.
Args = Any

# `net(c_noise, x, args, key=key) -> F`: what every network in eqdiff looks like from outside.
Network = Callable[..., Example]

Key = PRNGKeyArray

__all__ = [
    "Args",
    "Array",
    "ArrayLike",
    "Example",
    "Float",
    "Int",
    "Key",
    "Network",
    "Scalar",
    "Time",
]
