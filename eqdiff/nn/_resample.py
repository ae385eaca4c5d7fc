"""Halving and doubling the sides of a channels-last image.

Improved DDPM halves with a strided convolution and doubles by repeating pixels before a
convolution; without convolutions (`conv_resample=False`) it halves with a 2×2 mean.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Key
from ._conv import Conv, Padding
from ._init import Init, torch_default


def average_pool(x: Float[Array, "height width c"]) -> Float[Array, "height//2 width//2 c"]:
    """The mean of every 2×2 square."""
    height, width, channels = x.shape
    return jnp.mean(jnp.reshape(x, (height // 2, 2, width // 2, 2, channels)), axis=(1, 3))


def repeat_pixels(x: Float[Array, "height width c"]) -> Float[Array, "2*height 2*width c"]:
    """Every pixel four times (nearest-neighbour upsampling)."""
    height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, None, :, None, :], (height, 2, width, 2, channels))
    return jnp.reshape(x, (2 * height, 2 * width, channels))


class Downsample(eqx.Module):
    """Half as many pixels on each side."""

    conv: Conv | None

    def __init__(
        self,
        channels: int,
        *,
        conv: bool = True,
        padding: Padding = ((1, 1), (1, 1)),
        init: Init = torch_default,
        key: Key,
    ):
        """**Arguments:**

        - `channels`: of the image.
        - `conv`: whether with a strided 3×3 convolution; otherwise with a 2×2 mean.
        - `padding`: of that convolution: one pixel on every side in OpenAI's networks, `((0, 1),
            (0, 1))` in Song's.
        - `init`: its initialiser.
        - `key`: a PRNG key.
        """
        self.conv = (
            Conv(channels, channels, stride=2, padding=padding, init=init, key=key)
            if conv
            else None
        )

    def __call__(self, x: Float[Array, "height width c"]) -> Float[Array, "height//2 width//2 c"]:
        return average_pool(x) if self.conv is None else self.conv(x)


class Upsample(eqx.Module):
    """Twice as many pixels on each side."""

    conv: Conv | None

    def __init__(self, channels: int, *, conv: bool = True, init: Init = torch_default, key: Key):
        """**Arguments:**

        - `channels`: of the image.
        - `conv`: whether a 3×3 convolution follows the repeated pixels.
        - `init`: its initialiser.
        - `key`: a PRNG key.
        """
        self.conv = Conv(channels, channels, init=init, key=key) if conv else None

    def __call__(self, x: Float[Array, "height width c"]) -> Float[Array, "2*height 2*width c"]:
        x = repeat_pixels(x)
        return x if self.conv is None else self.conv(x)
