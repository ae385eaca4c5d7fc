r"""The names that EDM gives its weights.

Official weights are named by side and place, `enc.32x32_block0.conv0.weight`, with attention inside
the residual blocks. With $\theta$ the official array and $\phi$ ours,

- convolution: $\phi_{hwio} = \theta_{oihw}$; linear and 1×1 convolution: $\phi_{io} = \theta_{oi}$;
- attention's qkv: official output channels are ordered $(\text{head}, c, \{q, k, v\})$, ours
  $(\{q, k, v\}, \text{head}, c)$;
- norms, biases: equal.

Filters and Fourier frequencies are buffers there and constants here.
"""

from collections.abc import Iterator
from typing import Any

from ...nn._attention import AttentionBlock
from ...nn._block import ResBlock
from ...nn._body import UNetBody
from ...nn._pyramid import InputSkipStep, OutputSkipStep, ResidualStep
from ...nn._unet import UNet
from .._weights import affine, CONV, CONV1X1, Entry, Layout, LINEAR, Path, reordered, SAME


def _qkv(heads: int) -> tuple[Layout, Layout]:
    weight = reordered("(head c qkv) i 1 1", "i (qkv head c)", head=heads, qkv=3)
    return weight, reordered("(head c qkv)", "(qkv head c)", head=heads, qkv=3)


def _block(
    name: str, where: Path, block: ResBlock, attention: AttentionBlock | None = None, at: Any = None
) -> Iterator[Entry]:
    yield from affine(f"{name}.norm0", where.at("norm1"))
    yield from affine(f"{name}.conv0", where.at("conv1"), CONV)
    yield from affine(f"{name}.affine", where.at("embedding"), LINEAR)
    yield from affine(f"{name}.norm1", where.at("norm2"))
    yield from affine(f"{name}.conv1", where.at("conv2"), CONV)
    if block.skip is not None:
        yield from affine(f"{name}.skip", where.at("skip"), CONV1X1)
    if attention is not None:
        weight, bias = _qkv(attention.num_heads)
        yield from affine(f"{name}.norm2", at.at("norm"))
        yield from affine(f"{name}.qkv", at.at("qkv"), weight, bias=bias)
        yield from affine(f"{name}.proj", at.at("out"), CONV1X1)


def _blocks(name: str, where: Path, level: Any) -> Iterator[Entry]:
    for j, (block, attention) in enumerate(zip(level.blocks, level.attentions, strict=True)):
        at = where.at("attentions", j)
        yield from _block(f"{name}{j}", where.at("blocks", j), block, attention, at)


def _encoder(body: UNetBody, side: int) -> Iterator[Entry]:
    yield from affine(f"enc.{side}x{side}_conv", Path(("body", "conv_in")), CONV)
    for i, level in enumerate(body.encoder):
        where, size = Path(("body", "encoder", i)), side >> i
        yield from _blocks(f"enc.{size}x{size}_block", where, level)
        # What leads to a level is named after it.
        name = f"enc.{size >> 1}x{size >> 1}"
        if level.resample is not None:
            yield from _block(f"{name}_down", where.at("resample"), level.resample)
        if isinstance(level.pyramid, InputSkipStep):
            yield from affine(f"{name}_aux_skip", where.at("pyramid", "project"), CONV1X1)
        elif isinstance(level.pyramid, ResidualStep):
            conv = where.at("pyramid", "resample", "conv")
            yield from affine(f"{name}_aux_residual", conv, CONV)


def _decoder(body: UNetBody, side: int) -> Iterator[Entry]:
    levels = len(body.decoder)
    lowest = side >> (levels - 1)
    yield from _blocks(f"dec.{lowest}x{lowest}_in", Path(("body", "middle")), body.middle)
    for i, level in enumerate(body.decoder):
        where, size = Path(("body", "decoder", i)), side >> (levels - 1 - i)
        name = f"dec.{size}x{size}"
        yield from _blocks(f"{name}_block", where, level)
        if isinstance(level.pyramid, OutputSkipStep):
            yield from _head(f"{name}_aux", where.at("pyramid", "head"))
        if level.resample is not None:
            up = f"dec.{2 * size}x{2 * size}_up"
            yield from _block(up, where.at("resample"), level.resample)


def _head(name: str, where: Path) -> Iterator[Entry]:
    yield from affine(f"{name}_norm", where.at("norm"))
    yield from affine(f"{name}_conv", where.at("conv"), CONV)


def entries(net: UNet, side: int) -> Iterator[Entry]:
    """Every parameter of `net`, which was trained on images of this side."""
    yield from affine("map_layer0", Path(("time_embedding", "linear1")), LINEAR)
    yield from affine("map_layer1", Path(("time_embedding", "linear2")), LINEAR)
    if net.class_embedding is not None:
        bias = None if getattr(net.class_embedding, "bias", None) is None else SAME
        yield from affine("map_label", Path(("class_embedding",)), LINEAR, bias=bias)
    if net.augment_embedding is not None:
        yield from affine("map_augment", Path(("augment_embedding",)), LINEAR, bias=None)
    yield from _encoder(net.body, side)
    yield from _decoder(net.body, side)
    if net.body.out is not None:
        # Only DDPM++ and NCSN++ have attention after the last block alone.
        name = "out" if net.style.attention_up.every else f"dec.{side}x{side}_aux"
        yield from _head(name, Path(("body", "out")))
