r"""The U-Net inside every network of convolutions but NCSNv2, without their embeddings.

DDPM (Ho et al. 2020), Improved DDPM (Nichol & Dhariwal 2021), NCSN++ and DDPM++ (Song et al. 2021),
ADM (Dhariwal & Nichol 2021) and EDM's versions of them (Karras et al. 2022) are one network. An
image goes down through levels of residual blocks, each at half the side of the one above, through a
middle with attention, and up again. On the way up a block also sees its counterpart on the way
down: with skips $h_i$ from every block, resampling and the first convolution, and an embedding $e$
of the time,

$$h_0 = \mathrm{conv}(x), \quad h_{i+1} = \mathrm{down}_i(h_i, e), \qquad
  u_i = \mathrm{up}_i([u_{i+1}, h_i], e), \qquad
  F = \mathrm{conv}(\mathrm{SiLU}(\mathrm{GN}(u_0))). \tag{1}$$

The way up has one block more per level than the way down, because it also sees the output of the
first convolution and of every downsampling. The families differ in what a block is made of
(`_style.py`), where attention stands on the way up — after the last block of a level (Song) or
after every one (OpenAI) — and in the pyramids next to it (`_pyramid.py`). A classifier is the way
down and the middle alone.
"""

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Key
from ._attention import AttentionBlock
from ._block import ResBlock
from ._conv import Conv
from ._init import Init, key_stream
from ._pyramid import Head, Image, InputSkip, OutputSkip, OutputStart, ResidualPyramid
from ._style import Style


class BodyLevel(eqx.Module):
    """The blocks at one resolution, in order; then what links it to the next resolution."""

    blocks: tuple[ResBlock, ...]
    attentions: tuple[AttentionBlock | None, ...]
    pyramid: Any
    resample: Any


class UNetBody(eqx.Module):
    """Equation (1), of one channels-last image and an embedding."""

    conv_in: Conv
    encoder: tuple[BodyLevel, ...]
    middle: BodyLevel
    decoder: tuple[BodyLevel, ...]
    out: Head | None
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        style: Style,
        *,
        in_channels: int,
        out_channels: int,
        stem: int | None = None,
        widths: tuple[int, ...],
        num_res_blocks: int,
        attention: tuple[bool, ...],
        attention_after_every: bool = False,
        encoder: str = "standard",
        decoder: str = "standard",
        concatenate: bool = False,
        remat: bool = False,
        key: Key,
    ):
        """**Arguments:**

        - `style`: what blocks are made of.
        - `in_channels`, `out_channels`: of the image.
        - `stem`: the width after the first convolution, by default that of the first level.
        - `widths`: of each level.
        - `num_res_blocks`: per level on the way down; one more on the way up.
        - `attention`: whether each level has attention. The middle always has.
        - `attention_after_every`: on the way up; otherwise after the last block of a level.
        - `encoder`, `decoder`: `"standard"`, `"skip"` or `"residual"`, the pyramids.
        - `concatenate`: how a skip pyramid joins the features.
        - `remat`: whether to compute each block again in the backward pass.
        - `key`: a PRNG key.
        """
        _check_levels(widths, num_res_blocks)
        stem = widths[0] if stem is None else stem
        keys = key_stream(key)
        self.conv_in = style.conv(in_channels, stem, next(keys))
        sizes = (stem, widths, num_res_blocks, attention)
        self.encoder, skips = _encoder(style, *sizes, in_channels, encoder, concatenate, next(keys))
        self.middle = _middle(style, skips[-1], keys)
        self.decoder = _decoder(
            style, *sizes[1:], skips, attention_after_every, out_channels, decoder, next(keys)
        )
        if decoder == "skip":
            self.out = None
        else:
            self.out = _head(style, widths[0], out_channels, next(keys), style.out_init)
        self.remat = remat

    def __call__(
        self, x: Image, embedding: Float[Array, " size"] | None, key: Key | None = None
    ) -> Image:
        apply = _applier(self.remat, embedding, key)
        h, skips = _descend(self, x, apply)
        image: Any = None
        for level in self.decoder:
            for block, attention in zip(level.blocks, level.attentions, strict=True):
                h = apply(block, attention, jnp.concatenate([h, skips.pop()], axis=-1))
            if level.pyramid is not None:
                image, h = level.pyramid(image, h)
            if level.resample is not None:
                h = _resample(level.resample, h, apply)
        return image if self.out is None else self.out(h)


class UNetEncoder(eqx.Module):
    """The way down and the middle of equation (1), without pyramids."""

    conv_in: Conv
    encoder: tuple[BodyLevel, ...]
    middle: BodyLevel
    widths: tuple[int, ...] = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        style: Style,
        *,
        in_channels: int,
        widths: tuple[int, ...],
        num_res_blocks: int,
        attention: tuple[bool, ...],
        remat: bool = False,
        key: Key,
    ):
        """**Arguments:** as for `UNetBody`; the stem is as wide as the first level."""
        _check_levels(widths, num_res_blocks)
        keys = key_stream(key)
        stem = widths[0]
        self.conv_in = style.conv(in_channels, stem, next(keys))
        sizes = (stem, widths, num_res_blocks, attention)
        self.encoder, skips = _encoder(style, *sizes, in_channels, "standard", False, next(keys))
        self.middle = _middle(style, widths[-1], keys)
        # Of what a call returns.
        self.widths = (*skips, widths[-1])
        self.remat = remat

    def __call__(
        self, x: Image, embedding: Float[Array, " size"] | None, key: Key | None = None
    ) -> list[Image]:
        """Every $h_i$, and last what the middle makes of the last."""
        h, skips = _descend(self, x, _applier(self.remat, embedding, key))
        return [*skips, h]


def _check_levels(widths: tuple[int, ...], num_res_blocks: int) -> None:
    if num_res_blocks < 1 or not widths:
        raise ValueError(
            "a U-Net needs at least one level and one residual block per level, got "
            f"num_res_blocks={num_res_blocks} and {len(widths)} levels in channel_mult."
        )


def _applier(remat: bool, embedding: Array | None, key: Key | None) -> Callable[..., Image]:
    # One block and the attention after it: the unit of rematerialisation.
    def run(block, attention, h, embedding, key):
        h = block(h, embedding, key)
        return h if attention is None else attention(h)

    run = eqx.filter_checkpoint(run) if remat else run
    keys = None if key is None else key_stream(key)

    def apply(block, attention, h):
        return run(block, attention, h, embedding, None if keys is None else next(keys))

    return apply


def _resample(layer: Any, h: Image, apply: Callable[..., Image]) -> Image:
    return apply(layer, None, h) if isinstance(layer, ResBlock) else layer(h)


def _descend(
    net: "UNetBody | UNetEncoder", x: Image, apply: Callable[..., Image]
) -> tuple[Image, list[Image]]:
    # What the middle returns, and the skips.
    h, pyramid = net.conv_in(x), x
    skips = [h]
    for level in net.encoder:
        for block, attention in zip(level.blocks, level.attentions, strict=True):
            h = apply(block, attention, h)
            skips.append(h)
        if level.resample is not None:
            h = _resample(level.resample, h, apply)
            if level.pyramid is not None:
                pyramid, h = level.pyramid(pyramid, h)
            skips.append(h)
    for block, attention in zip(net.middle.blocks, net.middle.attentions, strict=True):
        h = apply(block, attention, h)
    return h, skips


def _middle(style: Style, width: int, keys: Iterator[Key]) -> BodyLevel:
    blocks = (style.block(width, width, next(keys)), style.block(width, width, next(keys)))
    return BodyLevel(blocks, (style.attention(width, next(keys)), None), None, None)


def _head(style: Style, width: int, out: int, key: Key, init: Init | None = None) -> Head:
    return Head(style.norm(width), style.conv(width, out, key, init))


def _blocks(
    style: Style,
    ins: Iterator[int],
    out: int,
    attention: tuple[bool, ...],
    key: Key,
    up: bool = False,
) -> tuple[tuple[ResBlock, ...], tuple[AttentionBlock | None, ...]]:
    # As many blocks as `attention` has entries.
    keys = key_stream(key)
    blocks, attentions = [], []
    for has in attention:
        blocks.append(style.block(next(ins), out, next(keys)))
        attentions.append(style.attention(out, next(keys), up=up) if has else None)
    return tuple(blocks), tuple(attentions)


def _encoder(style, stem, widths, num_res_blocks, attention, in_channels, kind, concatenate, key):
    # Also returns the widths of the skips, in the order in which they are made.
    keys = key_stream(key)
    width, pyramid_width, skips, levels = stem, in_channels, [stem], []
    for i, out in enumerate(widths):
        ins = iter((width, *(num_res_blocks - 1) * (out,)))
        blocks = _blocks(style, ins, out, num_res_blocks * (attention[i],), next(keys))
        width = out
        skips += num_res_blocks * [width]
        pyramid = resample = None
        if i < len(widths) - 1:
            resample = style.down(width, next(keys))
            if kind == "skip":
                project = style.linear(pyramid_width, width, next(keys))
                pyramid = InputSkip(style.filter("down"), project, concatenate)
                width = 2 * width if concatenate else width
            elif kind == "residual":
                conv = style.down_conv(pyramid_width, width, next(keys))
                pyramid, pyramid_width = ResidualPyramid(conv, style.scale), width
            skips.append(width)
        levels.append(BodyLevel(*blocks, pyramid, resample))
    return tuple(levels), skips


def _decoder(style, widths, num_res_blocks, attention, skips, every, out_channels, kind, key):
    keys = key_stream(key)
    skips, levels, width, pyramid_width = list(skips), [], skips[-1], None
    for i, out in reversed(list(enumerate(widths))):
        ins = iter([h + skips.pop() for h in (width, *num_res_blocks * (out,))])
        has = (*num_res_blocks * (every and attention[i],), attention[i])
        blocks = _blocks(style, ins, out, has, next(keys), up=True)
        width, pyramid = out, None
        if kind == "skip":
            head = _head(style, width, out_channels, next(keys), style.out_init)
            pyramid = OutputSkip(None if pyramid_width is None else style.filter("up"), head)
            pyramid_width = out_channels
        elif kind == "residual":
            if pyramid_width is None:
                pyramid = OutputStart(_head(style, width, width, next(keys)))
            else:
                conv = style.up_conv(pyramid_width, width, next(keys))
                pyramid = ResidualPyramid(conv, style.scale)
            pyramid_width = width
        resample = style.up(width, next(keys)) if i > 0 else None
        levels.append(BodyLevel(*blocks, pyramid, resample))
    return tuple(levels)
