r"""The names that OpenAI's networks give their weights.

Improved-diffusion and guided-diffusion share them: `input_blocks` counts the first convolution,
every residual block and every downsampling, `output_blocks` residual blocks only, with attention
and upsampling as further parts of them. With $\theta$ the official array and $\phi$ ours,

- convolution: $\phi_{hwio} = \theta_{oihw}$; linear and pointwise convolution:
  $\phi_{io} = \theta_{oi}$;
- attention's qkv: official output channels are ordered $(\text{head}, \{q, k, v\}, c)$, ours
  $(\{q, k, v\}, \text{head}, c)$; guided-diffusion's "new attention order" is ours;
- norms, biases and embeddings are equal.

In the heads of guided-diffusion's classifier, `out.*`, the positions of attention pooling are
`(channels, tokens)` there and `(tokens, channels)` here, and its queries, keys and values are in
our order whatever that of the blocks.
"""

from collections.abc import Iterator
from typing import Any

from ...nn._attention import AttentionBlock
from ...nn._block import ResBlock
from ...nn._body import UNetBody, UNetEncoder
from ...nn._classifier import UNetClassifier
from ...nn._pool import AttentionHead, AverageHead
from ...nn._unet import UNet
from .._weights import (
    affine,
    CONV,
    CONV1D,
    CONV1X1,
    Entry,
    LINEAR,
    Path,
    pointwise,
    reordered,
    SAME,
)


def _res_block(name: str, where: Path, block: ResBlock) -> Iterator[Entry]:
    yield from affine(f"{name}.in_layers.0", where.at("norm1"))
    yield from affine(f"{name}.in_layers.2", where.at("conv1"), CONV)
    yield from affine(f"{name}.emb_layers.1", where.at("embedding"), LINEAR)
    yield from affine(f"{name}.out_layers.0", where.at("norm2"))
    yield from affine(f"{name}.out_layers.3", where.at("conv2"), CONV)
    if block.skip is not None:
        dims = block.conv1.weight.ndim - 2
        yield from affine(f"{name}.skip_connection", where.at("skip"), pointwise(dims))


def _attention(name: str, where: Path, block: AttentionBlock, new_order: bool) -> Iterator[Entry]:
    # The new order is the old one of a single head: q, then k, then v.
    heads = 1 if new_order else block.num_heads
    weight = reordered("(head qkv c) i 1", "i (qkv head c)", head=heads, qkv=3)
    bias = reordered("(head qkv c)", "(qkv head c)", head=heads, qkv=3)
    yield from affine(f"{name}.norm", where.at("norm"))
    yield from affine(f"{name}.qkv", where.at("qkv"), weight, bias=bias)
    yield from affine(f"{name}.proj_out", where.at("out"), CONV1D)


def _resample(name: str, part: str, where: Path, layer: Any) -> Iterator[Entry]:
    # A residual block, a convolution that is a part of the official layer, or nothing to train.
    if isinstance(layer, ResBlock):
        yield from _res_block(name, where, layer)
    elif getattr(layer, "conv", None) is not None:
        yield from affine(f"{name}.{part}", where.at("conv"), CONV)


def _block(name: str, at: Path, level: Any, j: int, new_order: bool) -> Iterator[Entry]:
    yield from _res_block(f"{name}.0", at.at("blocks", j), level.blocks[j])
    if level.attentions[j] is not None:
        where = at.at("attentions", j)
        yield from _attention(f"{name}.1", where, level.attentions[j], new_order)


def _down(body: UNetBody | UNetEncoder, where: Path, new_order: bool) -> Iterator[Entry]:
    yield from affine("input_blocks.0.0", where.at("conv_in"), CONV)
    number = 1
    for i, level in enumerate(body.encoder):
        at = where.at("encoder", i)
        for j in range(len(level.blocks)):
            yield from _block(f"input_blocks.{number}", at, level, j, new_order)
            number += 1
        if level.resample is not None:
            name = f"input_blocks.{number}.0"
            yield from _resample(name, "op", at.at("resample"), level.resample)
            number += 1


def _middle(body: UNetBody | UNetEncoder, where: Path, new_order: bool) -> Iterator[Entry]:
    at, level = where.at("middle"), body.middle
    yield from _block("middle_block", at, level, 0, new_order)
    yield from _res_block("middle_block.2", at.at("blocks", 1), level.blocks[1])


def _up(body: UNetBody, where: Path, new_order: bool) -> Iterator[Entry]:
    number = 0
    for i, level in enumerate(body.decoder):
        at = where.at("decoder", i)
        for j in range(len(level.blocks)):
            yield from _block(f"output_blocks.{number}", at, level, j, new_order)
            number += 1
        if level.resample is not None:
            part = 1 if level.attentions[-1] is None else 2
            name = f"output_blocks.{number - 1}.{part}"
            yield from _resample(name, "conv", at.at("resample"), level.resample)


def _unet(net: UNet, new_order: bool) -> Iterator[Entry]:
    where = Path(("body",))
    if net.class_embedding is not None:
        yield Entry(("label_emb.weight",), Path(("class_embedding", "weight")), SAME)
    yield from _down(net.body, where, new_order)
    yield from _middle(net.body, where, new_order)
    yield from _up(net.body, where, new_order)
    yield from affine("out.0", where.at("out", "norm"))
    yield from affine("out.2", where.at("out", "conv"), CONV)


def _classifier(net: UNetClassifier, new_order: bool) -> Iterator[Entry]:
    where, at = Path(("body",)), Path(("head",))
    head: Any = net.head
    yield from _down(net.body, where, new_order)
    yield from _middle(net.body, where, new_order)
    if isinstance(head, AverageHead):
        yield from affine("out.0", at.at("norm"))
        yield from affine("out.3", at.at("linear"), CONV1X1)
    elif isinstance(head, AttentionHead):
        yield from affine("out.0", at.at("norm"))
        positions = reordered("channel token", "token channel")
        yield Entry(("out.2.positional_embedding",), at.at("positions"), positions)
        yield from affine("out.2.qkv_proj", at.at("qkv"), CONV1D)
        yield from affine("out.2.c_proj", at.at("out"), CONV1D)
    else:
        yield from affine("out.0", at.at("linear1"), LINEAR)
        if head.norm is not None:
            yield from affine("out.1", at.at("norm"))
        yield from affine("out.2" if head.norm is None else "out.3", at.at("linear2"), LINEAR)


def entries(net: UNet | UNetClassifier, new_order: bool = False) -> Iterator[Entry]:
    """Every parameter of `net`, in the order of the official state dict."""
    yield from affine("time_embed.0", Path(("time_embedding", "linear1")), LINEAR)
    yield from affine("time_embed.2", Path(("time_embedding", "linear2")), LINEAR)
    if isinstance(net, UNet):
        yield from _unet(net, new_order)
    else:
        yield from _classifier(net, new_order)
