r"""The names that diffusers' `UNet2DModel` gives its weights.

With $\theta$ diffusers' array and $\phi$ ours: convolutions $\phi_{hwio} = \theta_{oihw}$, linear
maps $\phi_{io} = \theta_{oi}$, and attention's queries, keys and values, three maps there, are one
here. Before version 0.18 they were called `query`, `key`, `value` and `proj_attn`; both are read.
"""

from collections.abc import Iterator
from typing import Any

from ...nn._unet import UNet
from .._weights import affine, CONV, CONV1X1, Entry, LINEAR, Path, SAME, stacked


_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def new_name(name: str) -> str:
    """The name since version 0.18."""
    parts = name.split(".")
    # A level named key does not exist: these are the layers of an attention alone.
    if len(parts) >= 3 and "attentions" in parts and parts[-2] in _OLD:
        parts[-2] = _OLD[parts[-2]]
    return ".".join(parts)


def _resnet(name: str, where: Path, block: Any) -> Iterator[Entry]:
    yield from affine(f"{name}.norm1", where.at("norm1"))
    yield from affine(f"{name}.conv1", where.at("conv1"), CONV)
    yield from affine(f"{name}.time_emb_proj", where.at("embedding"), LINEAR)
    yield from affine(f"{name}.norm2", where.at("norm2"))
    yield from affine(f"{name}.conv2", where.at("conv2"), CONV)
    if block.skip is not None:
        yield from affine(f"{name}.conv_shortcut", where.at("skip"), CONV1X1)


def _attention(name: str, where: Path) -> Iterator[Entry]:
    yield from affine(f"{name}.group_norm", where.at("norm"))
    for part, layout in (("weight", stacked(LINEAR)), ("bias", stacked())):
        names = tuple(f"{name}.to_{letter}.{part}" for letter in "qkv")
        yield Entry(names, where.at("qkv", part), layout)
    yield from affine(f"{name}.to_out.0", where.at("out"), LINEAR)


def _level(name: str, where: Path, level: Any) -> Iterator[Entry]:
    for j, (block, attention) in enumerate(zip(level.blocks, level.attentions, strict=True)):
        yield from _resnet(f"{name}.resnets.{j}", where.at("blocks", j), block)
        if attention is not None:
            yield from _attention(f"{name}.attentions.{j}", where.at("attentions", j))


def entries(net: UNet) -> Iterator[Entry]:
    """Every parameter of `net`."""
    yield from affine("time_embedding.linear_1", Path(("time_embedding", "linear1")), LINEAR)
    yield from affine("time_embedding.linear_2", Path(("time_embedding", "linear2")), LINEAR)
    if net.class_embedding is not None:
        yield Entry(("class_embedding.weight",), Path(("class_embedding", "weight")), SAME)
    body, at = net.body, Path(("body",))
    yield from affine("conv_in", at.at("conv_in"), CONV)
    for i, level in enumerate(body.encoder):
        where, name = at.at("encoder", i), f"down_blocks.{i}"
        yield from _level(name, where, level)
        if level.resample is not None:
            yield from affine(f"{name}.downsamplers.0.conv", where.at("resample", "conv"), CONV)
    yield from _level("mid_block", at.at("middle"), body.middle)
    for i, level in enumerate(body.decoder):
        where, name = at.at("decoder", i), f"up_blocks.{i}"
        yield from _level(name, where, level)
        if level.resample is not None:
            yield from affine(f"{name}.upsamplers.0.conv", where.at("resample", "conv"), CONV)
    yield from affine("conv_norm_out", at.at("out", "norm"))
    yield from affine("conv_out", at.at("out", "conv"), CONV)
