"""Which parts of a network keep float32 when it computes in less."""

from typing import Any

import jax.numpy as jnp


def at_least_float32(dtype: Any) -> Any:
    """Float32, or float64 where that is what the network computes in.

    For normalisation, softmax and embeddings: bfloat16 has three significant digits, which is too
    few for the mean of a thousand pixels or for a time label between 0 and 1000.
    """
    return jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32
