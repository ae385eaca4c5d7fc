"""Dropout without a mode: it happens where a key is given."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Key


def dropout(x: Float[Array, "..."], rate: float, key: Key | None) -> Float[Array, "..."]:
    """Sets elements to zero with probability `rate` and scales the others so that the mean is kept.

    Without a key there is no dropout. Sixteen random bits per element decide: half the cost of a
    uniform float32, and the scale uses the probability that sixteen bits can express, so the mean
    is exact.
    """
    threshold = round(rate * 2**16)
    if key is None or threshold == 0:
        return x
    keep = jax.random.bits(key, x.shape, jnp.uint16) >= jnp.asarray(threshold, jnp.uint16)
    return jnp.where(keep, x * (2**16 / (2**16 - threshold)), jnp.zeros_like(x))
