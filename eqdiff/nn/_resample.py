"""Halving and doubling the sides of a channels-last image.

Improved DDPM halves with a strided convolution and doubles by repeating pixels before a
convolution; without convolutions (`conv_resample=False`) it halves with a 2×2 mean. Later networks
filter (`_fir.py`).
"""

from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Key
from ._conv import Conv, Padding
from ._fir import downsample, upsample
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


class Resample(eqx.Module):
    """Half or twice as many pixels on each side by filtering, without parameters."""

    direction: Literal["down", "up"] = eqx.field(static=True)
    kernel: tuple[float | int, ...] = eqx.field(static=True)

    def __init__(self, direction: Literal["down", "up"], kernel: tuple[float | int, ...] = (1, 1)):
        """**Arguments:**

        - `direction`: which.
        - `kernel`: the taps along one axis, in any scale. `(1, 1)` is a 2×2 mean and repeated
            pixels; NCSN++ uses `(1, 3, 3, 1)`.
        """
        self.direction, self.kernel = direction, tuple(kernel)

    def __call__(self, x: Float[Array, "height width c"]) -> Float[Array, "new_height new_width c"]:
        return downsample(x, self.kernel) if self.direction == "down" else upsample(x, self.kernel)


class Downsample(eqx.Module):
    """Half as many pixels on each side."""

    conv: Conv | None

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        *,
        conv: bool = True,
        padding: Padding = ((1, 1), (1, 1)),
        init: Init = torch_default,
        bias_init: Init | None = None,
        key: Key,
    ):
        """**Arguments:**

        - `channels`, `out_channels`: of the image, before and after the convolution (by default the
            same).
        - `conv`: whether with a strided 3×3 convolution; otherwise with a 2×2 mean.
        - `padding`: of that convolution: one pixel on every side in OpenAI's networks, `((0, 1),
            (0, 1))` in Song's.
        - `init`, `bias_init`: its initialisers.
        - `key`: a PRNG key.
        """
        out_channels = channels if out_channels is None else out_channels
        options: dict[str, Any] = dict(
            stride=2, padding=padding, init=init, bias_init=bias_init, key=key
        )
        self.conv = Conv(channels, out_channels, **options) if conv else None

    def __call__(self, x: Float[Array, "height width c"]) -> Float[Array, "height//2 width//2 out"]:
        return average_pool(x) if self.conv is None else self.conv(x)


class Upsample(eqx.Module):
    """Twice as many pixels on each side."""

    conv: Conv | None

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        *,
        conv: bool = True,
        init: Init = torch_default,
        bias_init: Init | None = None,
        key: Key,
    ):
        """**Arguments:**

        - `channels`, `out_channels`: of the image, before and after the convolution (by default the
            same).
        - `conv`: whether a 3×3 convolution follows the repeated pixels.
        - `init`, `bias_init`: its initialisers.
        - `key`: a PRNG key.
        """
        out_channels = channels if out_channels is None else out_channels
        options: dict[str, Any] = dict(init=init, bias_init=bias_init, key=key)
        self.conv = Conv(channels, out_channels, **options) if conv else None

    def __call__(self, x: Float[Array, "height width c"]) -> Float[Array, "2*height 2*width out"]:
        x = repeat_pixels(x)
        return x if self.conv is None else self.conv(x)
