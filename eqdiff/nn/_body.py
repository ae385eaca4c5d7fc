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
first convolution and of every downsampling. Where there are tokens to attend to, a cross-attention
(`_cross.py`) follows every attention. What the families differ in, a style chooses
(`_style.py`). A classifier is the way down and the middle alone.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Key
from ._attention import AttentionBlock
from ._block import modulations, ResBlock
from ._conv import Conv
from ._cross import Context, ContextAttention, CrossAttention
from ._init import key_stream
from ._pyramid import Head, Image
from ._shape import UNetShape
from ._style import Layers


class BodyLevel(eqx.Module):
    """The blocks at one resolution, in order; then what links it to the next resolution."""

    blocks: tuple[ResBlock, ...]
    attentions: tuple[AttentionBlock | None, ...]
    pyramid: Any
    resample: Any
    # After each attention, in a network that attends to tokens.
    cross_attentions: tuple[CrossAttention | None, ...] = ()

    def steps(self) -> Iterator[tuple[ResBlock, AttentionBlock | None, CrossAttention | None]]:
        """The blocks in order, each with the attentions after it."""
        cross = self.cross_attentions or len(self.blocks) * (None,)
        return zip(self.blocks, self.attentions, cross, strict=True)


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
        shape: UNetShape,
        layers: Layers,
        *,
        context_size: int | None = None,
        remat: bool = False,
        key: Key,
    ):
        """**Arguments:**

        - `shape`: the network's.
        - `layers`: those of its style.
        - `context_size`: of the tokens that it attends to; `None` for a network without.
        - `remat`: whether to compute each block again in the backward pass.
        - `key`: a PRNG key.
        """
        keys = key_stream(key)
        self.conv_in, self.encoder, self.middle, skips = _down(shape, layers, keys)
        self.decoder = _decoder(shape, layers, skips, keys)
        pyramid = layers.style.output_pyramid
        self.out = None
        if pyramid is None or not pyramid.is_output:
            init = layers.init.out
            self.out = layers.head(shape.widths[0], shape.out_channels, next(keys), init)
        if context_size is not None:
            levels = self.encoder, self.middle, self.decoder
            levels = _with_context(levels, layers, context_size, keys)
            self.encoder, self.middle, self.decoder = levels
        self.remat = remat

    def __call__(
        self,
        x: Image,
        embedding: Float[Array, " size"] | None,
        key: Key | None = None,
        context: Context | None = None,
    ) -> Image:
        apply = _applier(self, embedding, key, context)
        h, skips = _descend(self, x, apply)
        image: Any = None
        for level in self.decoder:
            for block, *attentions in level.steps():
                h = apply(block, attentions, jnp.concatenate([h, skips.pop()], axis=-1))
            if level.pyramid is not None:
                image, h = level.pyramid(image, h)
            if level.resample is not None:
                h = _resample(level.resample, h, apply)
        return image if self.out is None else self.out(h)


class UNetEncoder(eqx.Module):
    """The way down and the middle of equation (1)."""

    conv_in: Conv
    encoder: tuple[BodyLevel, ...]
    middle: BodyLevel
    widths: tuple[int, ...] = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(self, shape: UNetShape, layers: Layers, *, remat: bool = False, key: Key):
        """**Arguments:** as for `UNetBody`."""
        self.conv_in, self.encoder, self.middle, skips = _down(shape, layers, key_stream(key))
        # Of what a call returns.
        self.widths = (*skips, shape.widths[-1])
        self.remat = remat

    def __call__(
        self, x: Image, embedding: Float[Array, " size"] | None, key: Key | None = None
    ) -> list[Image]:
        """Every $h_i$, and last what the middle makes of the last."""
        h, skips = _descend(self, x, _applier(self, embedding, key))
        return [*skips, h]


def _applier(
    net: "UNetBody | UNetEncoder",
    embedding: Array | None,
    key: Key | None,
    context: Context | None = None,
) -> Callable[..., Image]:
    # One block and the attentions after it: the unit of rematerialisation.
    def run(block, attentions, h, modulation, key, context):
        h = block(h, modulation, key)
        attention, cross = attentions
        h = h if attention is None else attention(h)
        return h if cross is None else cross(h, context)

    run = eqx.filter_checkpoint(run) if net.remat else run
    blocks = _blocks_of(net)
    # What all blocks need of the embedding and of the key, in one product and one draw.
    each = {id(b): m for b, m in zip(blocks, modulations(blocks, embedding), strict=True)}
    keys = [None] * len(blocks) if key is None else jax.random.split(key, len(blocks))
    key_of = {id(b): k for b, k in zip(blocks, keys, strict=True)}

    def apply(block, attentions, h):
        return run(block, attentions, h, each[id(block)], key_of[id(block)], context)

    return apply


def _blocks_of(net: "UNetBody | UNetEncoder") -> list[ResBlock]:
    leaves = jax.tree.leaves(net, is_leaf=lambda x: isinstance(x, ResBlock))
    return [leaf for leaf in leaves if isinstance(leaf, ResBlock)]


def _resample(layer: Any, h: Image, apply: Callable[..., Image]) -> Image:
    return apply(layer, (None, None), h) if isinstance(layer, ResBlock) else layer(h)


def _descend(
    net: "UNetBody | UNetEncoder", x: Image, apply: Callable[..., Image]
) -> tuple[Image, list[Image]]:
    # What the middle returns, and the skips.
    h, pyramid = net.conv_in(x), x
    skips = [h]
    for level in net.encoder:
        for block, *attentions in level.steps():
            h = apply(block, attentions, h)
            skips.append(h)
        if level.resample is not None:
            h = _resample(level.resample, h, apply)
            if level.pyramid is not None:
                pyramid, h = level.pyramid(pyramid, h)
            skips.append(h)
    for block, *attentions in net.middle.steps():
        h = apply(block, attentions, h)
    return h, skips


def _blocks(
    layers: Layers, ins: Sequence[int], out: int, attention: Sequence[bool], up: bool, key: Key
) -> tuple[tuple[ResBlock, ...], tuple[AttentionBlock | None, ...]]:
    keys = key_stream(key)
    blocks, attentions = [], []
    for width, has in zip(ins, attention, strict=True):
        blocks.append(layers.block(width, out, next(keys)))
        attentions.append(layers.attention(out, next(keys), up=up) if has else None)
    return tuple(blocks), tuple(attentions)


def _down(
    shape: UNetShape, layers: Layers, keys: Iterator[Key]
) -> tuple[Conv, tuple[BodyLevel, ...], BodyLevel, list[int]]:
    """The first convolution, the way down, the middle, and the widths of the skips."""
    style, number, last = layers.style, shape.num_res_blocks, shape.num_levels - 1
    width = shape.stem
    conv_in = layers.conv(shape.in_channels, width, next(keys))
    image, skips, levels = shape.in_channels, [width], []
    for i, (out, has) in enumerate(zip(shape.widths, shape.attention, strict=True)):
        ins = (width, *(number - 1) * (out,))
        blocks = _blocks(layers, ins, out, number * (has,), False, next(keys))
        width, pyramid, resample = out, None, None
        skips += number * [out]
        if i < last:
            resample = style.resampling.down(layers, out, out, next(keys))
            if style.input_pyramid is not None:
                pyramid, image, width = style.input_pyramid.down(layers, image, out, next(keys))
            skips.append(width)
        levels.append(BodyLevel(*blocks, pyramid, resample))
    blocks = _blocks(layers, 2 * (width,), width, (True, False), False, next(keys))
    return conv_in, tuple(levels), BodyLevel(*blocks, None, None), skips


def _decoder(
    shape: UNetShape, layers: Layers, skips: list[int], keys: Iterator[Key]
) -> tuple[BodyLevel, ...]:
    style, number = layers.style, shape.num_res_blocks
    skips, width, image, levels = list(skips), skips[-1], None, []
    for i in reversed(range(shape.num_levels)):
        out, has = shape.widths[i], shape.attention[i]
        ins = [h + skips.pop() for h in (width, *number * (out,))]
        attention = (*number * (has and style.attention_up.every,), has)
        blocks = _blocks(layers, ins, out, attention, True, next(keys))
        width, pyramid, resample = out, None, None
        if style.output_pyramid is not None:
            pyramid, image = style.output_pyramid.up(
                layers, image, out, shape.out_channels, next(keys)
            )
        if i > 0:
            resample = style.resampling.up(layers, out, out, next(keys))
        levels.append(BodyLevel(*blocks, pyramid, resample))
    return tuple(levels)


def _with_context(levels: Any, layers: Layers, context_size: int, keys: Iterator[Key]) -> Any:
    """The levels with a cross-attention after every attention, with as many heads."""
    init = layers.init
    start: dict[str, Any] = dict(init=init.qkv, out_init=init.out, bias_init=init.bias)

    def crossed(attention: AttentionBlock | None) -> CrossAttention | None:
        if attention is None:
            return None
        width, heads = attention.norm.weight.shape[0], attention.num_heads
        inner = ContextAttention(width, context_size, heads, **start, key=next(keys))
        return CrossAttention(layers.norm(width), inner, layers.style.scale)

    def with_them(level: BodyLevel) -> BodyLevel:
        cross = tuple(crossed(attention) for attention in level.attentions)
        return dataclasses.replace(level, cross_attentions=cross)

    return jax.tree.map(with_them, levels, is_leaf=lambda node: isinstance(node, BodyLevel))
