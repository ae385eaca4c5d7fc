r"""Many evaluations in bounded memory, under one compiled body.

A function of $n$ inputs is mapped over them $c$ at a time: a scan over $\lceil n/c\rceil$ chunks of
a `vmap`. The last chunk is filled up with copies of the last input, whose results are dropped, so
that one program serves all; and the chunks are made equal, so that few copies are needed.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._check import check_precision, is_traced, whole
from .._types import Args, Example, Key


def in_chunks(function: Callable[[Any], Any], inputs: PyTree[Any], chunk: int) -> PyTree[Any]:
    """`jax.vmap(function)(inputs)`, at most `chunk` at a time.

    Under an outer `vmap` over images, memory is that of `chunk` inputs times the images.
    """
    chunk = whole("in_chunks", "chunk", chunk)
    size = jax.tree.leaves(inputs)[0].shape[0]
    count = -(-size // chunk)
    width = -(-size // count)

    def split(leaf):
        filled = jnp.concatenate([leaf, jnp.repeat(leaf[-1:], count * width - size, axis=0)])
        return filled.reshape(count, width, *leaf.shape[1:])

    outputs = jax.lax.map(jax.vmap(function), jax.tree.map(split, inputs))
    return jax.tree.map(lambda a: a.reshape(count * width, *a.shape[2:])[:size], outputs)


def mean_over_images(
    function: Callable[[Example, Args, Key], Any],
    data: Float[Array, "n ..."],
    args: Args,
    key: Key,
) -> PyTree[Any]:
    """The mean of `function(x0, args, key)` over images, one after another.

    Image i has the key `jax.random.split(key, n)[i]`.
    """
    keys = jax.random.split(key, data.shape[0])

    def add(total, inputs):
        return jax.tree.map(jnp.add, total, function(*inputs)), None

    shapes = jax.eval_shape(function, *jax.tree.map(lambda a: a[0], (data, args, keys)))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (data, args, keys))
    return jax.tree.map(lambda a: a / data.shape[0], total)


def check_batch(owner: str, data: Example, args: Args, least: int) -> None:
    """Raises `ValueError` unless data and args have one leading axis of at least `least` images.

    Also for known data that are not floating-point or not finite.
    """
    check_precision(owner, data)
    if data.ndim == 0 or data.shape[0] < least:
        raise ValueError(
            f"{owner}: expected a batch of at least {least} examples along the first axis, got "
            f"shape {data.shape}. "
            "For one example x0 write x0[None]."
        )
    for leaf in jax.tree.leaves(args):
        shape = jnp.shape(leaf)
        if not shape or shape[0] != data.shape[0]:
            raise ValueError(
                f"{owner}: args has a leaf of shape {shape}, expected one per example, "
                f"({data.shape[0]}, ...): the data "
                f"have shape {data.shape}."
            )
    if not is_traced(data) and not np.all(np.isfinite(data)):
        raise ValueError(f"{owner}: the data hold values that are not finite.")
