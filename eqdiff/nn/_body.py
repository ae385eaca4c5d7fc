r"""The U-Net inside the networks of score_sde and EDM, without their embeddings.

DDPM (Ho et al. 2020), NCSN++ and DDPM++ (Song et al. 2021), ADM (Dhariwal & Nichol 2021) and EDM's
versions of them (Karras et al. 2022) are one network. With levels of residual blocks, and skips $h_i$
from every block, resampling and the first convolution,

$$h_0 = \mathrm{conv}(x), \quad h_{i+1} = \mathrm{down}_i(h_i, e), \qquad
  u_i = \mathrm{up}_i([u_{i+1}, h_i], e), \qquad F = \mathrm{conv}(\mathrm{SiLU}(\mathrm{GN}(u_0))). \tag{1}$$

They differ in what a block is made of (`Style`), where attention stands on the way up — after the
last block of a level (Song) or after every one (OpenAI) — and in the pyramids beside it
(`_pyramid.py`).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Key
from ._attention import AttentionBlock
from ._block import ResBlock
from ._conv import Conv, Linear
from ._fir import DownsampleConv, Kernel, UpsampleConv
from ._init import fan_average, Init, key_stream, zeros
from ._norm import GroupNorm, Groups, song_groups
from ._pyramid import Head, Image, InputSkip, OutputSkip, OutputStart, ResidualPyramid
from ._resample import Downsample, Resample, Upsample


class Style(NamedTuple):
    """What the blocks of one family are made of; the defaults are NCSN++'s.

    - `embedding_size`: of $e$; `None` for blocks that are told nothing.
    - `dropout`: its probability.
    - `groups`, `eps`: of the group normalisations.
    - `scale`: of every sum of two branches.
    - `scale_shift_norm`: how the embedding enters a block.
    - `kernel`: the filter's taps; `None` for a strided convolution and repeated pixels.
    - `resample_in_block`: whether sides change inside a residual block, as BigGAN's do.
    - `project_resampled`: whether such a block has a 1×1 convolution in its skip.
    - `conv_resample`: whether sides change with a convolution elsewhere.
    - `channels_per_head`: of attention; `None` for one head.
    - `init`, `out_init`, `qkv_init`, `bias_init`: of maps, of the last map of a branch, of the map
        into attention, and of all biases (`None`: as their weights).
    """

    embedding_size: int | None
    dropout: float
    groups: Groups = song_groups
    eps: float = 1e-6
    scale: float = 0.5**0.5
    scale_shift_norm: bool = False
    kernel: Kernel | None = (1, 3, 3, 1)
    resample_in_block: bool = True
    project_resampled: bool = True
    conv_resample: bool = True
    channels_per_head: int | None = None
    init: Init = fan_average()
    out_init: Init = fan_average(1e-10)
    qkv_init: Init = fan_average(0.2)
    bias_init: Init | None = zeros

    def norm(self, width: int) -> GroupNorm:
        return GroupNorm(width, self.groups, eps=self.eps)

    def conv(self, width: int, out: int, key: Key, init: Init | None = None) -> Conv:
        return Conv(width, out, init=init or self.init, bias_init=self.bias_init, key=key)

    def linear(self, width: int, out: int, key: Key) -> Linear:
        return Linear(width, out, init=self.init, bias_init=self.bias_init, key=key)

    def block(self, width: int, out: int, key: Key, resample: Resample | None = None) -> ResBlock:
        return ResBlock(
            width,
            out,
            self.embedding_size,
            dropout=self.dropout,
            scale_shift_norm=self.scale_shift_norm,
            groups=self.groups,
            eps=self.eps,
            scale=self.scale,
            resample=resample,
            project_skip=resample is not None and self.project_resampled,
            init=self.init,
            out_init=self.out_init,
            bias_init=self.bias_init,
            key=key,
        )

    def attention(self, width: int, key: Key) -> AttentionBlock:
        heads = 1 if self.channels_per_head is None else width // self.channels_per_head
        if heads == 0:
            raise ValueError(
                f"attention with {self.channels_per_head} channels per head needs at least as many "
                f"channels, got {width}; use fewer channels_per_head."
            )
        return AttentionBlock(
            width,
            heads,
            groups=self.groups,
            eps=self.eps,
            scale=self.scale,
            init=self.qkv_init,
            out_init=self.out_init,
            bias_init=self.bias_init,
            key=key,
        )

    def filter(self, direction: Any) -> Resample:
        return Resample(direction, (1, 1) if self.kernel is None else self.kernel)

    def down_conv(self, width: int, out: int, key: Key) -> DownsampleConv | Downsample:
        options: dict[str, Any] = dict(init=self.init, bias_init=self.bias_init, key=key)
        if self.kernel is None:
            # Song's strided convolutions have their padding below and on the right.
            return Downsample(width, out, padding=((0, 1), (0, 1)), **options)
        return DownsampleConv(width, out, self.kernel, **options)

    def up_conv(self, width: int, out: int, key: Key) -> UpsampleConv | Upsample:
        options: dict[str, Any] = dict(init=self.init, bias_init=self.bias_init, key=key)
        if self.kernel is None:
            return Upsample(width, out, **options)
        return UpsampleConv(width, out, self.kernel, **options)

    def down(self, width: int, key: Key):
        if self.resample_in_block:
            return self.block(width, width, key, self.filter("down"))
        return self.down_conv(width, width, key) if self.conv_resample else self.filter("down")

    def up(self, width: int, key: Key):
        if self.resample_in_block:
            return self.block(width, width, key, self.filter("up"))
        return self.up_conv(width, width, key) if self.conv_resample else self.filter("up")


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
        stem: int,
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
        - `stem`: the width after the first convolution.
        - `widths`: of each level.
        - `num_res_blocks`: per level on the way down; one more on the way up.
        - `attention`: whether each level has attention. The middle always has.
        - `attention_after_every`: on the way up; otherwise after the last block of a level.
        - `encoder`, `decoder`: `"standard"`, `"skip"` or `"residual"`, the pyramids.
        - `concatenate`: how a skip pyramid joins the features.
        - `remat`: whether to compute each block again in the backward pass.
        - `key`: a PRNG key.
        """
        if num_res_blocks < 1 or not widths:
            raise ValueError(
                "a U-Net needs at least one level and one residual block per level, got "
                f"num_res_blocks={num_res_blocks} and {len(widths)} levels in channel_mult."
            )
        keys = key_stream(key)
        self.conv_in = style.conv(in_channels, stem, next(keys))
        sizes = (stem, widths, num_res_blocks, attention)
        self.encoder, skips = _encoder(style, *sizes, in_channels, encoder, concatenate, next(keys))
        width = skips[-1]
        blocks = (style.block(width, width, next(keys)), style.block(width, width, next(keys)))
        middle = style.attention(width, next(keys))
        self.middle = BodyLevel(blocks, (middle, None), None, None)
        self.decoder = _decoder(
            style, *sizes[1:], skips, attention_after_every, out_channels, decoder, next(keys)
        )
        if decoder == "skip":
            self.out = None
        else:
            self.out = _head(style, widths[0], out_channels, next(keys), style.out_init)
        self.remat = remat

    def _apply(self, block, attention, h, embedding, key):
        # One block and the attention after it: the unit of rematerialisation.
        def run(block, attention, h, embedding, key):
            h = block(h, embedding, key)
            return h if attention is None else attention(h)

        run = eqx.filter_checkpoint(run) if self.remat else run
        return run(block, attention, h, embedding, key)

    def __call__(
        self, x: Image, embedding: Float[Array, " size"] | None, key: Key | None = None
    ) -> Image:
        keys = None if key is None else key_stream(key)

        def apply(block, attention, h):
            return self._apply(block, attention, h, embedding, None if keys is None else next(keys))

        def resample(layer, h):
            return apply(layer, None, h) if isinstance(layer, ResBlock) else layer(h)

        h, pyramid = self.conv_in(x), x
        skips = [h]
        for level in self.encoder:
            for block, attention in zip(level.blocks, level.attentions, strict=True):
                h = apply(block, attention, h)
                skips.append(h)
            if level.resample is not None:
                h = resample(level.resample, h)
                if level.pyramid is not None:
                    pyramid, h = level.pyramid(pyramid, h)
                skips.append(h)
        for block, attention in zip(self.middle.blocks, self.middle.attentions, strict=True):
            h = apply(block, attention, h)
        image: Any = None
        for level in self.decoder:
            for block, attention in zip(level.blocks, level.attentions, strict=True):
                h = apply(block, attention, jnp.concatenate([h, skips.pop()], axis=-1))
            if level.pyramid is not None:
                image, h = level.pyramid(image, h)
            if level.resample is not None:
                h = resample(level.resample, h)
        return image if self.out is None else self.out(h)


def _head(style: Style, width: int, out: int, key: Key, init: Init | None = None) -> Head:
    return Head(style.norm(width), style.conv(width, out, key, init))


def _blocks(
    style: Style, ins: Iterator[int], out: int, attention: tuple[bool, ...], key: Key
) -> tuple[tuple[ResBlock, ...], tuple[AttentionBlock | None, ...]]:
    # As many blocks as `attention` has entries.
    keys = key_stream(key)
    blocks, attentions = [], []
    for has in attention:
        blocks.append(style.block(next(ins), out, next(keys)))
        attentions.append(style.attention(out, next(keys)) if has else None)
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
        blocks = _blocks(style, ins, out, has, next(keys))
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
