r"""Convolutions and linear maps that compute channels-last.

Inside a network an image is `(height, width, channels)` and a kernel `(out, height, width, in)`;
data of one or three spatial dimensions have one axis fewer or more. One example has no batch axis;
`jax.vmap` puts its axis where the convolution's own batch axis is, so that a batch is one NHWC
convolution.

Parameters are float32. They are cast to the dtype of the activation they meet, so the dtype in
which a network computes is decided once, where its input enters.
"""

import copy
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._padding import AbstractPadding, ZeroPadding
from .._types import Key
from ._init import Init, torch_default


# Cells before and after each spatial axis, by default zeros.
Padding = tuple[tuple[int, int], ...]

_DIMENSIONS = {
    1: ("NWC", "WIO", "NWC"),
    2: ("NHWC", "HWIO", "NHWC"),
    3: ("NDHWC", "DHWIO", "NDHWC"),
}


def convolve(
    x: Float[Array, "*spatial in"],
    weight: Float[Array, "out *kernel in"],
    stride: tuple[int, ...],
    padding: Padding,
    dilation: int = 1,
) -> Float[Array, "*new_spatial out"]:
    """A cross-correlation, as every deep-learning library calls a convolution."""
    # The order of axes is turned here, for CPUs: inside a loop, which a sampler is, XLA has its
    # fast convolutions for this order alone. For a GPU it chooses the layout in memory itself, and
    # then this copies nothing.
    dims = x.ndim - 1
    y = jax.lax.conv_general_dilated(
        x[None],
        jnp.moveaxis(weight, 0, -1),
        stride,
        padding,
        rhs_dilation=dims * (dilation,),
        dimension_numbers=_DIMENSIONS[dims],
    )
    return y[0]


def add_bias(y: Array, bias: Array | None) -> Array:
    """`y` and a bias of its last axes, in the precision of `y`."""
    if bias is None:
        return y
    return y + jax.lax.broadcast(bias.astype(y.dtype), y.shape[: y.ndim - bias.ndim])


class Conv(eqx.Module):
    """A convolution of one channels-last image."""

    weight: Float[Array, "out *kernel in"]
    bias: Float[Array, " out"] | None
    stride: tuple[int, ...] = eqx.field(static=True)
    padding: Padding = eqx.field(static=True)
    dilation: int = eqx.field(static=True)
    beyond: AbstractPadding = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        dims: int = 2,
        stride: int | tuple[int, ...] = 1,
        padding: Padding | None = None,
        dilation: int = 1,
        bias: bool = True,
        init: Init = torch_default,
        bias_init: Init | None = None,
        key: Key,
    ):
        """**Arguments:**

        - `in_channels`, `out_channels`, `kernel_size`: as usual.
        - `dims`: the number of spatial dimensions, 1 to 3.
        - `stride`: of every axis, or of each.
        - `padding`: cells before and after each axis, zeros unless `padded` says otherwise. The
            default pads half a kernel on every side (OpenAI, also with stride 2); Song's JAX code
            pads `((0, 1), (0, 1))` where the stride is 2.
        - `dilation`: the distance between two taps of the kernel, in pixels.
        - `bias`: whether a number is added to each output channel.
        - `init`, `bias_init`: initialisers; the bias's defaults to the weight's.
        - `key`: a PRNG key.
        """
        key1, key2 = jax.random.split(key)
        half = dilation * (kernel_size // 2)
        taps = kernel_size**dims
        fans = in_channels * taps, out_channels * taps
        weight = init(key1, (*dims * (kernel_size,), in_channels, out_channels), *fans)
        # As cuDNN reads them: other orders are turned at every use, and gradients turned back.
        self.weight = jnp.moveaxis(weight, -1, 0)
        self.bias = (bias_init or init)(key2, (out_channels,), *fans) if bias else None
        self.stride = dims * (stride,) if isinstance(stride, int) else stride
        self.padding = dims * ((half, half),) if padding is None else padding
        self.dilation, self.beyond = dilation, ZeroPadding()

    def with_padding(self, padding: AbstractPadding) -> "Conv":
        """The same convolution, with something else beyond the edges."""
        # A static field is not a leaf of a tree, and the constructor would draw new weights.
        conv = copy.copy(self)
        object.__setattr__(conv, "beyond", padding)
        return conv

    def without_bias(self, x: Float[Array, "*spatial in"]) -> Float[Array, "*new_spatial out"]:
        """For a caller that adds the bias where it costs nothing."""
        padding = self.padding
        if not isinstance(self.beyond, ZeroPadding):
            x = self.beyond.pad(x, range(x.ndim - 1), padding)
            padding = (x.ndim - 1) * ((0, 0),)
        return convolve(x, self.weight.astype(x.dtype), self.stride, padding, self.dilation)

    def __call__(self, x: Float[Array, "*spatial in"]) -> Float[Array, "*new_spatial out"]:
        return add_bias(self.without_bias(x), self.bias)


def filter_names(net: Any) -> set[str]:
    """The paths of all filters in a network, such as `body.conv_in.weight`."""
    found, _ = jax.tree_util.tree_flatten_with_path(net, is_leaf=lambda x: isinstance(x, Conv))
    paths = [path for path, leaf in found if isinstance(leaf, Conv)]
    weight = jax.tree_util.GetAttrKey("weight")
    return {jax.tree_util.keystr((*p, weight), simple=True, separator=".") for p in paths}


class Linear(eqx.Module):
    """A linear map of the last axis: of a vector, or of every pixel (then a 1×1 convolution)."""

    weight: Float[Array, "in out"]
    bias: Float[Array, " out"] | None

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        bias: bool = True,
        init: Init = torch_default,
        bias_init: Init | None = None,
        key: Key,
    ):
        """**Arguments:** as for `Conv`."""
        key1, key2 = jax.random.split(key)
        self.weight = init(key1, (in_size, out_size), in_size, out_size)
        self.bias = (bias_init or init)(key2, (out_size,), in_size, out_size) if bias else None

    def without_bias(self, x: Float[Array, "*spatial in"]) -> Float[Array, "*spatial out"]:
        """For a caller that adds the bias where it costs nothing."""
        return x @ self.weight.astype(x.dtype)

    def __call__(self, x: Float[Array, "*spatial in"]) -> Float[Array, "*spatial out"]:
        return add_bias(self.without_bias(x), self.bias)
