r"""Initialisers. Which one a layer uses is an argument, because each family of networks has its
own.

Improved DDPM keeps PyTorch's default for convolutions and linear maps (Kaiming uniform with $a =
\sqrt 5$),

$$W, b \sim \mathcal U\left(-n_\text{in}^{-1/2}, n_\text{in}^{-1/2}\right), \tag{1}$$

where $n_\text{in}$ counts the inputs of one output, and sets the last map of every residual branch
and of the whole network to zero, so that at first each block is the identity and the network
returns zero.

Song's networks and EDM's versions of them scale by the mean of both fans (Glorot & Bengio 2010),

$$W \sim \mathcal U\left(-\sqrt{6 s / (n_\text{in} + n_\text{out})},
    \sqrt{6 s / (n_\text{in} + n_\text{out})}\right), \qquad b = 0, \tag{2}$$

with $s = 1$, or $s = 10^{-10}$ where others set zero.
"""

import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Key


# `init(key, shape, fan_in, fan_out) -> array`, float32. Fans are passed because a bias does not
# know its own.
Init = Callable[[Key, tuple[int, ...], int, int], Float[Array, "..."]]


def torch_default(
    key: Key, shape: tuple[int, ...], fan_in: int, fan_out: int
) -> Float[Array, "..."]:
    """Equation (1): what `torch.nn.Conv2d` and `torch.nn.Linear` do, for weights and biases."""
    del fan_out
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def fan_average(scale: float = 1.0) -> Init:
    """Equation (2) with $s$ = `scale`; the `variance_scaling(scale, "fan_avg", "uniform")` of
    Song's code and, with a gain of √`scale`, EDM's `xavier_uniform`."""

    def init(key, shape, fan_in, fan_out):
        bound = math.sqrt(6 * scale / (fan_in + fan_out))
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

    return init


def zeros(key: Key, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Float[Array, "..."]:
    """For the last map of a residual branch (`zero_module` in the official code)."""
    del key, fan_in, fan_out
    return jnp.zeros(shape, jnp.float32)


def key_stream(key: Key) -> Iterator[Key]:
    """Keys for a constructor that does not count its layers in advance."""
    while True:
        key, subkey = jax.random.split(key)
        yield subkey
