r"""Convolutions and linear maps that compute channels-last.

Inside a network an image is `(height, width, channels)` and a kernel `(height, width, in, out)`.
One example has no batch axis; `jax.vmap` puts its axis where the convolution's own batch axis is,
so that a batch is one NHWC convolution.

Parameters are float32. They are cast to the dtype of the activation they meet, so the dtype in
which a network computes is decided once, where its input enters.
"""

import equinox as eqx
import jax
from jaxtyping import Array, Float

from .._types import Key
from ._init import Init, torch_default


Padding = tuple[tuple[int, int], tuple[int, int]]


def convolve(
    x: Float[Array, "height width in"],
    weight: Float[Array, "kh kw in out"],
    stride: int,
    padding: Padding,
) -> Float[Array, "new_height new_width out"]:
    """A cross-correlation, as every deep-learning library calls a convolution."""
    y = jax.lax.conv_general_dilated(
        x[None], weight, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y[0]


class Conv(eqx.Module):
    """A convolution of one channels-last image."""

    weight: Float[Array, "kh kw in out"]
    bias: Float[Array, " out"]
    stride: int = eqx.field(static=True)
    padding: Padding = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        padding: Padding | None = None,
        init: Init = torch_default,
        bias_init: Init | None = None,
        key: Key,
    ):
        """**Arguments:**

        - `in_channels`, `out_channels`, `kernel_size`, `stride`: as usual.
        - `padding`: zeros before and after the height and the width. The default pads half a kernel
            on every side (OpenAI, also with stride 2); Song's JAX code pads `((0, 1), (0, 1))`
            where the stride is 2.
        - `init`, `bias_init`: initialisers; the bias's defaults to the weight's.
        - `key`: a PRNG key.
        """
        key1, key2 = jax.random.split(key)
        half = kernel_size // 2
        fans = in_channels * kernel_size**2, out_channels * kernel_size**2
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        self.weight = init(key1, shape, *fans)
        self.bias = (bias_init or init)(key2, (out_channels,), *fans)
        self.stride = stride
        self.padding = ((half, half), (half, half)) if padding is None else padding

    def __call__(
        self, x: Float[Array, "height width in"]
    ) -> Float[Array, "new_height new_width out"]:
        y = convolve(x, self.weight.astype(x.dtype), self.stride, self.padding)
        return y + jax.lax.broadcast(self.bias.astype(x.dtype), y.shape[:-1])


class Linear(eqx.Module):
    """A linear map of the last axis: of a vector, or of every pixel (then a 1×1 convolution)."""

    weight: Float[Array, "in out"]
    bias: Float[Array, " out"]

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        init: Init = torch_default,
        bias_init: Init | None = None,
        key: Key,
    ):
        """**Arguments:** as for `Conv`."""
        key1, key2 = jax.random.split(key)
        self.weight = init(key1, (in_size, out_size), in_size, out_size)
        self.bias = (bias_init or init)(key2, (out_size,), in_size, out_size)

    def __call__(self, x: Float[Array, "*spatial in"]) -> Float[Array, "*spatial out"]:
        y = x @ self.weight.astype(x.dtype)
        return y + jax.lax.broadcast(self.bias.astype(x.dtype), y.shape[:-1])
