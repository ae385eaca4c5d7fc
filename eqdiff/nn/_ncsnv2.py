r"""NCSNv2 (Song & Ermon 2020): a dilated residual network and a RefineNet (Lin et al. 2017).

The network does not see the noise level: one function serves all, divided by σ,

$$s(x, \sigma) = F(x) / \sigma \tag{1}$$

(technique 3). Stages of residual blocks with InstanceNorm++ go down; after the first few their
sides no longer shrink but their convolutions are dilated. Refine blocks go up: residual units, a
sum of stages at the larger side, chained pooling.

Enlarging is bilinear with the corners aligned, as in the PyTorch code; the JAX code of score_sde
aligns edges, and its weights would see another network.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from .._types import Args, Example, Key, Time
from ._c_noise import divide_by_sigma
from ._check import check_c_noise, check_image
from ._conditions import describe
from ._conv import Conv
from ._init import key_stream
from ._norm import at_least_float32, InstanceNormPlus
from ._pyramid import Image
from ._resample import average_pool


def enlarge(x: Image, height: int, width: int) -> Image:
    """Bilinear, with the corners of both images aligned."""
    if x.shape[:2] == (height, width):
        return x
    rows = jnp.asarray(_interpolation(x.shape[0], height), x.dtype)
    columns = jnp.asarray(_interpolation(x.shape[1], width), x.dtype)
    return jnp.einsum("Hh,Ww,hwc->HWc", rows, columns, x)


def _interpolation(size: int, new_size: int) -> np.ndarray:
    at = np.linspace(0, size - 1, new_size)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(size)))


def max_pool(x: Image, size: int = 5) -> Image:
    """The largest of the `size` × `size` pixels around each.

    Maxima of shifted images: unlike a reduced window they have derivatives of every order.
    """
    half = size // 2
    for axis in (0, 1):
        config = [(0, 0, 0)] * x.ndim
        config[axis] = (half, half, 0)
        padded = jax.lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), config)
        length = x.shape[axis]
        for shift in range(size):
            x = jnp.maximum(x, jax.lax.slice_in_dim(padded, shift, shift + length, axis=axis))
    return x


class DilatedBlock(eqx.Module):
    """Norm, ELU, convolution, twice; then the mean of every 2×2 square where `pool`."""

    norm1: InstanceNormPlus
    conv1: Conv
    norm2: InstanceNormPlus
    conv2: Conv
    skip: Conv | None
    pool: bool = eqx.field(static=True)

    def __init__(
        self, in_channels: int, out_channels: int, *, dilation: int, first: bool, key: Key
    ):
        """**Arguments:**

        - `in_channels`, `out_channels`: of the image.
        - `dilation`: of the convolutions.
        - `first`: whether it is the first of a stage after the first: it halves the sides where
            there is no dilation, and has a convolution in its skip.
        - `key`: a PRNG key.
        """
        keys = key_stream(key)
        self.norm1 = InstanceNormPlus(in_channels, key=next(keys))
        self.conv1 = Conv(in_channels, in_channels, dilation=dilation, key=next(keys))
        self.norm2 = InstanceNormPlus(in_channels, key=next(keys))
        self.conv2 = Conv(in_channels, out_channels, dilation=dilation, key=next(keys))
        self.pool = first and dilation == 1
        size = 1 if self.pool else 3
        self.skip = (
            Conv(in_channels, out_channels, size, dilation=dilation, key=next(keys))
            if first
            else None
        )

    def __call__(self, x: Image) -> Image:
        h = self.conv1(jax.nn.elu(self.norm1(x)))
        h = self.conv2(jax.nn.elu(self.norm2(h)))
        y = h + (x if self.skip is None else self.skip(x))
        return average_pool(y) if self.pool else y


class ResidualUnit(eqx.Module):
    """x + conv(ELU(conv(ELU(x)))), some times, without biases."""

    convs: tuple[tuple[Conv, Conv], ...]

    def __init__(self, channels: int, repeats: int, *, key: Key):
        keys = key_stream(key)

        def conv():
            return Conv(channels, channels, bias=False, key=next(keys))

        self.convs = tuple((conv(), conv()) for _ in range(repeats))

    def __call__(self, x: Image) -> Image:
        for conv1, conv2 in self.convs:
            x = x + conv2(jax.nn.elu(conv1(jax.nn.elu(x))))
        return x


class RefineBlock(eqx.Module):
    """Joins a stage with what came from below, at the side of the former."""

    adapt: tuple[ResidualUnit, ...]
    fuse: tuple[Conv, ...] | None
    pooled: tuple[Conv, ...]
    refine: ResidualUnit

    def __init__(self, in_channels: tuple[int, ...], out_channels: int, *, repeats: int, key: Key):
        """**Arguments:**

        - `in_channels`: of every input; a block with one input keeps its channels.
        - `out_channels`: of the result.
        - `repeats`: residual units at its end.
        - `key`: a PRNG key.
        """
        keys = key_stream(key)
        self.adapt = tuple(ResidualUnit(width, 2, key=next(keys)) for width in in_channels)
        self.fuse = (
            tuple(Conv(width, out_channels, key=next(keys)) for width in in_channels)
            if len(in_channels) > 1
            else None
        )
        self.pooled = tuple(
            Conv(out_channels, out_channels, bias=False, key=next(keys)) for _ in range(2)
        )
        self.refine = ResidualUnit(out_channels, repeats, key=next(keys))

    def __call__(self, *xs: Image) -> Image:
        hs = [unit(x) for unit, x in zip(self.adapt, xs, strict=True)]
        h = hs[0]
        if self.fuse is not None:
            height, width, _ = xs[0].shape
            terms = [enlarge(conv(h), height, width) for conv, h in zip(self.fuse, hs, strict=True)]
            h = sum(terms[1:], terms[0])
        h = path = jax.nn.elu(h)
        for conv in self.pooled:
            path = conv(max_pool(path))
            h = h + path
        return self.refine(h)


class NCSNv2(eqx.Module):
    r"""The network of NCSNv2: equation (1).

    Its time input is $\log\sigma$, the `c_noise` of [`eqdiff.VESDE`][], and it returns the score:
    `eqd.Denoiser(net, eqd.VESDE(), eqd.PredictScore())`. It has neither classes nor dropout.

    One example at a time, channels first; use `jax.vmap` for a batch.

    **Example:**

    ```python
    net = eqd.nn.NCSNv2(channels=32, key=jax.random.key(0))
    score = net(jnp.log(0.1), jnp.ones((3, 16, 16)))
    ```

    ??? cite "Reference"

        Song & Ermon, *Improved Techniques for Training Score-Based Generative Models*,
        NeurIPS 2020.
    """

    conv_in: Conv
    stages: tuple[tuple[DilatedBlock, ...], ...]
    refines: tuple[RefineBlock, ...]
    norm_out: InstanceNormPlus
    conv_out: Conv
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    channel_mult: tuple[int, ...] = eqx.field(static=True)
    dilations: tuple[int, ...] = eqx.field(static=True)
    centred: bool = eqx.field(static=True)
    compute_dtype: Any = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        channels: int = 128,
        channel_mult: tuple[int, ...] = (1, 2, 2, 2),
        dilations: tuple[int, ...] = (1, 1, 2, 4),
        centred: bool = True,
        compute_dtype: Any = jnp.float32,
        remat: bool = False,
        *,
        key: Key,
    ):
        r"""**Arguments:**

        - `in_channels`, `out_channels`: of $x$ and of the score.
        - `channels`: the width of the first stage.
        - `channel_mult`: the width of each stage as a multiple of `channels`; the last two are
            equal.
        - `dilations`: of each stage; those with 1, but the first, halve the sides.
        - `centred`: whether data are in $[-1, 1]$; those in $[0, 1]$ are moved there first.
        - `compute_dtype`, `remat`, `key`: as for [`eqdiff.nn.UNet`][].

        **Raises:** `ValueError` for stages that do not fit together.
        """
        mult, dilations = tuple(channel_mult), tuple(dilations)
        if len(mult) != len(dilations) or len(mult) < 2 or mult[-1] != mult[-2] or mult[0] != 1:
            raise ValueError(
                "NCSNv2 needs a width and a dilation for each of at least two stages, the first of "
                "width 1 and the last two of equal width, such as (1, 2, 2, 2) and (1, 1, 2, 4); "
                f"got channel_mult={mult}, dilations={dilations}."
            )
        self.in_channels, self.out_channels, self.channels = in_channels, out_channels, channels
        self.channel_mult, self.dilations, self.centred = mult, dilations, centred
        self.compute_dtype, self.remat = jnp.dtype(compute_dtype), remat
        keys = key_stream(key)
        widths = [m * channels for m in mult]
        self.conv_in = Conv(in_channels, channels, key=next(keys))
        stages = []
        for i, (width, dilation) in enumerate(zip(widths, dilations, strict=True)):
            before = widths[max(i - 1, 0)]
            block1 = DilatedBlock(before, width, dilation=dilation, first=i > 0, key=next(keys))
            block2 = DilatedBlock(width, width, dilation=dilation, first=False, key=next(keys))
            stages.append((block1, block2))
        self.stages = tuple(stages)
        # From the last stage up, each to the width of the stage above it.
        refines, below = [], None
        for i in reversed(range(len(widths))):
            ins = (widths[i],) if below is None else (widths[i], below)
            below = widths[max(i - 1, 0)]
            repeats = 3 if i == 0 else 1
            refines.append(RefineBlock(ins, below, repeats=repeats, key=next(keys)))
        self.refines = tuple(refines)
        self.norm_out = InstanceNormPlus(channels, key=next(keys))
        self.conv_out = Conv(channels, out_channels, key=next(keys))

    def _apply(self, block, *xs):
        def run(block, xs):
            return block(*xs)

        return (eqx.filter_checkpoint(run) if self.remat else run)(block, xs)

    @jax.named_scope("eqdiff.nn.NCSNv2")
    def __call__(
        self, c_noise: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        r"""**Arguments:**

        - `c_noise`: the network's time input, $\log\sigma$, one number.
        - `x`: one image, `(in_channels, height, width)`, whose sides can be halved by every stage
            that does so.
        - `args`: `None`.
        - `key`: not used.

        **Returns:** the score, `(out_channels, height, width)`, in the dtype of `x`.

        **Raises:** `ValueError` where an argument has the wrong shape, or `args` is not `None`.
        """
        dtype = at_least_float32(self.compute_dtype)
        c_noise = check_c_noise(c_noise, dtype, "NCSNv2")
        unit = 2 ** sum(dilation == 1 for dilation in self.dilations[1:])
        check_image(x, self.in_channels, unit, "NCSNv2", "dilate more stages")
        if args is not None:
            raise ValueError(
                f"NCSNv2 has no classes or conditions but was given args, {describe(args)}; pass "
                "args=None, or use a network that has: eqdiff.nn.UNet(..., conditions=...)."
            )
        h = x if self.centred else 2 * x - 1
        h = rearrange(h, "c height width -> height width c").astype(self.compute_dtype)
        h = self.conv_in(h)
        stages = []
        for blocks in self.stages:
            for block in blocks:
                h = self._apply(block, h)
            stages.append(h)
        below = ()
        for refine in self.refines:
            h = self._apply(refine, stages.pop(), *below)
            below = (h,)
        h = self.conv_out(jax.nn.elu(self.norm_out(h)))
        h = rearrange(h, "height width c -> c height width").astype(dtype)
        return divide_by_sigma(h, c_noise).astype(x.dtype)
