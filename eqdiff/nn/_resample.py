"""Halving and doubling the sides of a channels-last image.

Improved DDPM halves with a strided convolution and doubles by repeating pixels before a
convolution; without convolutions (`conv_resample=False`), and inside residual blocks (ADM), it
halves with a 2×2 mean. Later networks filter (`_fir.py`).

Signals of one dimension are halved along it. Volumes keep their depth: only their last two sides
change, as in OpenAI's networks.
"""

from typing import Any, Literal

import equinox as eqx
from einops import reduce, repeat
from jaxtyping import Array, Float

from .._types import Key
from ._conv import Conv
from ._fir import downsample, upsample
from ._init import Init, torch_default


# The axes of a small and of a large image, by the number of spatial dimensions.
_SIDES = {
    1: ("w c", "(w 2) c"),
    2: ("h w c", "(h 2) (w 2) c"),
    3: ("d h w c", "d (h 2) (w 2) c"),
}


def average_pool(x: Float[Array, "*spatial c"]) -> Float[Array, "*new_spatial c"]:
    """The mean of every two pixels along each side: of every 2×2 square of an image."""
    small, large = _SIDES[x.ndim - 1]
    return reduce(x, f"{large} -> {small}", "mean")


def repeat_pixels(x: Float[Array, "*spatial c"]) -> Float[Array, "*new_spatial c"]:
    """Every pixel twice along each side (nearest-neighbour upsampling)."""
    small, large = _SIDES[x.ndim - 1]
    return repeat(x, f"{small} -> {large}")


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

    def __call__(self, x: Float[Array, "*spatial c"]) -> Float[Array, "*new_spatial c"]:
        return downsample(x, self.kernel) if self.direction == "down" else upsample(x, self.kernel)


class Downsample(eqx.Module):
    """Half as many pixels on each side by a strided 3×3 convolution."""

    conv: Conv

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        dims: int = 2,
        padding: tuple[int, int] = (1, 1),
        init: Init = torch_default,
        bias_init: Init | None = None,
        key: Key,
    ):
        """**Arguments:**

        - `channels`, `out_channels`: of the image, before and after.
        - `dims`: the number of spatial dimensions; of three, the first has stride 1.
        - `padding`: zeros before and after each side: one pixel on both in OpenAI's networks,
            `(0, 1)` in Song's.
        - `init`, `bias_init`: initialisers.
        - `key`: a PRNG key.
        """
        options: dict[str, Any] = dict(init=init, bias_init=bias_init, key=key)
        stride = (1, 2, 2) if dims == 3 else dims * (2,)
        self.conv = Conv(
            channels, out_channels, dims=dims, stride=stride, padding=dims * (padding,), **options
        )

    def __call__(self, x: Float[Array, "*spatial c"]) -> Float[Array, "*new_spatial out"]:
        return self.conv(x)


class Upsample(eqx.Module):
    """Twice as many pixels on each side: repeated ones, then a 3×3 convolution."""

    conv: Conv

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        dims: int = 2,
        init: Init = torch_default,
        bias_init: Init | None = None,
        key: Key,
    ):
        """**Arguments:** as for `Downsample`."""
        self.conv = Conv(channels, out_channels, dims=dims, init=init, bias_init=bias_init, key=key)

    def __call__(self, x: Float[Array, "*spatial c"]) -> Float[Array, "*new_spatial out"]:
        return self.conv(repeat_pixels(x))
