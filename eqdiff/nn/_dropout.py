r"""Dropout, with a generator that the compiler can fuse.

Sixteen random bits decide over an element. `jax.random.bits` spends 64 on it, which on a GPU is a
separate kernel that reads and writes sixteen bytes per element and layer, more than the
convolution next to it. Here one call of Threefry-2x32 (Salmon et al. 2011), the function behind
JAX's own keys, decides over four elements, and is ordinary arithmetic on a counter: the compiler
puts it into the kernel that needs it, and splits it over devices as it splits the image. The bits
of an example depend on its key alone, not on the batch around it.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt32

from .._types import Key


_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def _word(value: int) -> Array:
    return jnp.asarray(np.uint32(value))


def threefry(
    key: tuple[UInt32[Array, ""], UInt32[Array, ""]],
    counter: tuple[UInt32[Array, "*shape"], UInt32[Array, "*shape"]],
) -> tuple[UInt32[Array, "*shape"], UInt32[Array, "*shape"]]:
    """Threefry-2x32 with 20 rounds: two words of random bits for every pair of counters."""
    keys = (*key, key[0] ^ key[1] ^ _word(0x1BD11BDA))
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for i in range(5):
        for turn in _ROTATIONS[i % 2]:
            x = x + y
            y = x ^ ((y << _word(turn)) | (y >> _word(32 - turn)))
        x = x + keys[(i + 1) % 3]
        y = y + keys[(i + 2) % 3] + _word(i + 1)
    return x, y


def _keep(key: Key, shape: tuple[int, ...], threshold: int) -> Bool[Array, "..."]:
    # The bits of a pixel's channels are cut into four equal runs, one for each half word.
    *pixels, channels = shape
    quarter = -(-channels // 4)
    counter = jax.lax.iota(jnp.uint32, math.prod(pixels) * quarter).reshape(*pixels, quarter)
    # A key of JAX's default generator has two words, one of another twice as many.
    data = jax.random.key_data(key)
    words = threefry((data[-2], data[-1]), (counter, jnp.zeros_like(counter)))
    # Behind the barrier the words are computed once, not again for each element that asks.
    words = jax.lax.optimization_barrier(words)
    runs = (*pixels, 4, quarter)
    x, y = (jnp.broadcast_to(word[..., None, :], runs) for word in words)
    run = jax.lax.broadcasted_iota(jnp.uint32, runs, len(pixels))
    half = jnp.where(run < _word(2), x, y) >> (_word(16) * (run & _word(1)))
    keep = (half & _word(0xFFFF)) >= _word(threshold)
    return keep.reshape(*pixels, 4 * quarter)[..., :channels]


class Dropout(NamedTuple):
    """Which elements of an image are kept, and by what they are multiplied to keep the mean."""

    keep: Bool[Array, "..."]
    gain: float


def draw_dropout(rate: float, shape: tuple[int, ...], key: Key | None) -> Dropout | None:
    """Keeps an element with probability `1 - rate`; without a key, nothing is dropped.

    The gain uses the probability that sixteen bits can express, so the mean is exact.
    """
    threshold = round(rate * 2**16)
    if key is None or threshold == 0:
        return None
    return Dropout(_keep(key, shape, threshold), 2**16 / (2**16 - threshold))
