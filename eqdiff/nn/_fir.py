r"""Halving and doubling the sides of an image with a finite impulse response filter.

Taking every second pixel aliases, and repeating pixels leaves blocks; StyleGAN2 (Karras et al.
2020, after Zhang 2019) and NCSN++ (Song et al. 2021, appendix H) low-pass filter instead. Along one
axis, with taps $f_0, \dots, f_{K-1}$ of sum one, factors $u$ up and $d$ down and $p$ zeros before
the image,

$$y_m = \sum_k f_{K-1-k}\, z_{dm + k - p}, \qquad
  z_{ui} = x_i, \quad z_j = 0 \text{ elsewhere}, \tag{1}$$

which is a true convolution: the taps run backwards. Halving has $u = 1$, $d = 2$. Doubling has
$u = 2$, $d = 1$ and taps $2f$, since half of what they meet is zero. The taps of two axes are
separable here, $f \otimes f$. With $f = (\tfrac12, \tfrac12)$ the two are the 2×2 mean and repeated
pixels.

A strided convolution is filtered before it, and its transpose after it, so that both see only one
grid.
"""

import functools as ft
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._types import Key
from ._conv import Conv
from ._init import Init, torch_default


Kernel = tuple[float | int, ...]


def _window(x: Array, axis: int, start: int, count: int) -> Array:
    # x[start : start + count] along one axis, with zeros outside the image.
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (-start, start + count - x.shape[axis], 0)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), config)


def filter_axis(
    x: Float[Array, "..."],
    taps: Kernel,
    axis: int,
    *,
    up: int = 1,
    down: int = 1,
    padding: tuple[int, int] = (0, 0),
) -> Float[Array, "..."]:
    """Equation (1) along one axis, as sums of shifted images: no product with an inserted zero.

    **Arguments:**

    - `x`: an array.
    - `taps`: $f$.
    - `axis`: which.
    - `up`, `down`: $u$ and $d$.
    - `padding`: zeros before ($p$) and after the stretched image; negative numbers crop it.
    """
    before, after = padding
    backwards = tuple(enumerate(reversed(taps)))
    full = up * x.shape[axis] + before + after - len(taps) + 1
    if up == 1:
        # Only the outputs that are kept are computed.
        stop = down * ((full - 1) // down) + 1
        z = _window(x, axis, -before, full + len(taps) - 1)
        slices = (jax.lax.slice_in_dim(z, k, k + stop, down, axis) * tap for k, tap in backwards)
        return ft.reduce(jnp.add, slices)
    count = -(-full // up)
    phases = []
    for phase in range(up):
        # The taps that meet a pixel of x at the outputs phase, phase + up, ...
        terms = (
            _window(x, axis, (phase + k - before) // up, count) * tap
            for k, tap in backwards
            if (phase + k - before) % up == 0
        )
        phases.append(ft.reduce(jnp.add, terms, jnp.zeros((), x.dtype)))
    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    phases = [jnp.broadcast_to(p, shape) for p in phases]
    y = jnp.reshape(jnp.stack(phases, axis + 1), (*shape[:axis], up * count, *shape[axis + 1 :]))
    return jax.lax.slice_in_dim(y, 0, full, down, axis)


def resampled_axes(x: Array) -> range:
    """The axes of a channels-last image that change: at most the last two, so that depth stays."""
    return range(x.ndim - 1)[-2:]


def _every_axis(x: Array, taps: Kernel, **kwargs) -> Array:
    for axis in resampled_axes(x):
        x = filter_axis(x, taps, axis, **kwargs)
    return x


def _normalised(kernel: Kernel, gain: float = 1.0) -> Kernel:
    total = float(np.sum(kernel))
    if len(kernel) == 0 or total == 0:
        raise ValueError(f"a filter needs taps whose sum is not zero, got {kernel}.")
    return tuple(gain * float(tap) / total for tap in kernel)


def downsample(x: Float[Array, "*spatial c"], kernel: Kernel) -> Float[Array, "*new_spatial c"]:
    """Half as many pixels on each side (see `resampled_axes`); the mean of the image stays away
    from its edge."""
    extra = len(kernel) - 2
    return _every_axis(x, _normalised(kernel), down=2, padding=((extra + 1) // 2, extra // 2))


def upsample(x: Float[Array, "*spatial c"], kernel: Kernel) -> Float[Array, "*new_spatial c"]:
    """Twice as many pixels on each side."""
    extra = len(kernel) - 2
    return _every_axis(
        x, _normalised(kernel, 2.0), up=2, padding=((extra + 1) // 2 + 1, extra // 2)
    )


class DownsampleConv(eqx.Module):
    """A filter, then a convolution with stride 2."""

    conv: Conv
    kernel: Kernel = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Kernel,
        *,
        init: Init = torch_default,
        bias_init: Init | None = None,
        key: Key,
    ):
        """**Arguments:**

        - `in_channels`, `out_channels`: of the image.
        - `kernel`: the filter's taps along one axis.
        - `init`, `bias_init`: of the convolution.
        - `key`: a PRNG key.
        """
        none = ((0, 0), (0, 0))
        options: dict[str, Any] = dict(init=init, bias_init=bias_init, key=key)
        self.conv = Conv(in_channels, out_channels, stride=2, padding=none, **options)
        self.kernel = tuple(kernel)

    def __call__(
        self, x: Float[Array, "height width in"]
    ) -> Float[Array, "height//2 width//2 out"]:
        extra = len(self.kernel) - 2 + self.conv.weight.shape[1] - 1
        padding = ((extra + 1) // 2, extra // 2)
        return self.conv(_every_axis(x, _normalised(self.kernel), padding=padding))


class UpsampleConv(eqx.Module):
    """The transpose of a convolution with stride 2, then a filter, then the bias."""

    conv: Conv
    kernel: Kernel = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Kernel,
        *,
        init: Init = torch_default,
        bias_init: Init | None = None,
        key: Key,
    ):
        """**Arguments:** as for `DownsampleConv`."""
        self.conv = Conv(in_channels, out_channels, init=init, bias_init=bias_init, key=key)
        self.kernel = tuple(kernel)

    def __call__(self, x: Float[Array, "height width in"]) -> Float[Array, "2*height 2*width out"]:
        size = self.conv.weight.shape[1]
        y = jax.lax.conv_general_dilated(
            x[None],
            jnp.moveaxis(self.conv.weight.astype(x.dtype), 0, -1),
            (1, 1),
            ((size - 1, size - 1),) * 2,
            lhs_dilation=(2, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )[0]
        extra = len(self.kernel) - 2 - (size - 1)
        padding = ((extra + 1) // 2 + 1, extra // 2 + 1)
        y = _every_axis(y, _normalised(self.kernel, 2.0), padding=padding)
        if self.conv.bias is None:
            return y
        return y + jax.lax.broadcast(self.conv.bias.astype(y.dtype), y.shape[:-1])
