r"""The names that OpenAI's networks give their weights.

Improved-diffusion and guided-diffusion share them: `input_blocks` counts the first convolution, every residual
block and every downsampling, `output_blocks` residual blocks only, with attention and upsampling as further
parts of them. With $\theta$ the official array and $\phi$ ours,

- convolution: $\phi_{hwio} = \theta_{oihw}$; linear and pointwise convolution: $\phi_{io} = \theta_{oi}$;
- attention's qkv: official output channels are ordered $(\text{head}, \{q, k, v\}, c)$, ours
  $(\{q, k, v\}, \text{head}, c)$; guided-diffusion's "new attention order" is ours;
- norms, biases and embeddings are equal.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..nn._attention import AttentionBlock
from ..nn._block import ResBlock
from ..nn._body import UNetBody, UNetEncoder
from ..nn._unet import UNet
from ._weights import affine, CONV, Entry, Layout, layout, LINEAR, Path, pointwise, SAME


CONV1D = pointwise(1)


def _qkv(heads: int) -> tuple[Layout, Layout]:
    # The last axis from (head, 3, c) to (3, head, c), and back.
    def swap(a, first, second):
        return a.reshape(*a.shape[:-1], first, second, -1).swapaxes(-3, -2).reshape(a.shape)

    weight = layout(
        lambda a: swap(CONV1D.to_ours(a), heads, 3),
        lambda a: CONV1D.to_official(swap(a, 3, heads))[0],
    )
    return weight, layout(lambda a: swap(a, heads, 3), lambda a: swap(a, 3, heads))


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
    weight, bias = _qkv(1 if new_order else block.num_heads)
    yield from affine(f"{name}.norm", where.at("norm"))
    yield Entry((f"{name}.qkv.weight",), where.at("qkv", "weight"), weight)
    yield Entry((f"{name}.qkv.bias",), where.at("qkv", "bias"), bias)
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


def time_entries() -> Iterator[Entry]:
    """The perceptron of the time label."""
    yield from affine("time_embed.0", Path(("time_embedding", "linear1")), LINEAR)
    yield from affine("time_embed.2", Path(("time_embedding", "linear2")), LINEAR)


def encoder_entries(body: UNetBody | UNetEncoder, new_order: bool) -> Iterator[Entry]:
    """The way down and the middle."""
    where = Path(("body",))
    yield from _down(body, where, new_order)
    yield from _middle(body, where, new_order)


def unet_entries(net: UNet, new_order: bool = False) -> Iterator[Entry]:
    """Every parameter of a `UNet`, in the order of the official state dict."""
    yield from time_entries()
    if net.class_embedding is not None:
        yield Entry(("label_emb.weight",), Path(("class_embedding", "weight")), SAME)
    yield from encoder_entries(net.body, new_order)
    yield from _up(net.body, Path(("body",)), new_order)
    yield from affine("out.0", Path(("body", "out", "norm")))
    yield from affine("out.2", Path(("body", "out", "conv")), CONV)


# Keyword arguments that both codes' `UNetModel` has, and ours.
ARGUMENTS = {
    "in_channels": "in_channels",
    "model_channels": "channels",
    "out_channels": "out_channels",
    "num_res_blocks": "num_res_blocks",
    "attention_resolutions": "attention_downsamples",
    "dropout": "dropout",
    "channel_mult": "channel_mult",
    "conv_resample": "conv_resample",
    "dims": "dims",
    "num_classes": "num_classes",
    "use_checkpoint": "remat",
    "num_heads": "num_heads",
    "num_heads_upsample": "num_heads_upsample",
    "use_scale_shift_norm": "scale_shift_norm",
}
# The official defaults, where ours differ.
_DEFAULTS = {"channel_mult": (1, 2, 4, 8), "num_heads": 1, "use_scale_shift_norm": False}
# Those without defaults.
REQUIRED = (
    "in_channels",
    "model_channels",
    "out_channels",
    "num_res_blocks",
    "attention_resolutions",
)


def read_config(
    config: Mapping[str, Any],
    known: Mapping[str, str],
    required: Sequence[str],
    network: str,
    unused: Sequence[str] = (),
) -> dict[str, Any]:
    """Our arguments, from official ones.

    **Arguments:**

    - `config`: official keyword arguments.
    - `known`: their names and ours.
    - `required`: those without defaults.
    - `network`: whose they are, for errors.
    - `unused`: official ones that are no argument of our network.

    **Raises:** `ValueError` that lists what is unknown and what is missing.
    """
    unknown = sorted(set(config) - set(known) - set(unused))
    missing = [name for name in required if name not in config]
    if unknown or missing:
        raise ValueError(
            f"config must hold the keyword arguments of {network}; unknown: {unknown}, missing: "
            f"{missing}. Known are {sorted((*known, *unused))}."
        )
    arguments = {known[k]: v for k, v in (_DEFAULTS | dict(config)).items() if k in known}
    # The official codes write "as num_heads" and "by num_heads" as −1.
    for name in ("num_heads_upsample", "channels_per_head"):
        if arguments.get(name) == -1:
            arguments[name] = None
    for name in ("channel_mult", "attention_downsamples"):
        arguments[name] = tuple(arguments[name])
    return arguments
