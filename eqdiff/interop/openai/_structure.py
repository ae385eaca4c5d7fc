"""What a state dict of OpenAI's U-Nets says about the network.

Names and shapes tell the widths, the levels, which of them have attention, the classes, whether the
embedding scales and shifts, and how sides change. With $n_\\text{up}$ upsamplings in
`output_blocks` there are $L = n_\\text{up} + 1$ levels, and `output_blocks` counts $L(r + 1)$
residual blocks for $r$ of them per level on the way down. Names and shapes do not tell the number
of heads, in which order their channels are, nor anything about the diffusion.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..._shown import shown


class Structure(NamedTuple):
    """The network of a state dict, in the words of the official constructors."""

    in_channels: int
    out_channels: int
    model_channels: int
    channel_mult: tuple[int | float, ...]
    num_res_blocks: int
    attention_factors: tuple[int, ...]
    num_classes: int | None
    use_scale_shift_norm: bool
    resblock_updown: bool
    conv_resample: bool


def _indices(names: Mapping[str, Any], prefix: str) -> list[int]:
    starts = (name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix))
    # The official codes count in a few digits.
    return sorted({int(start) for start in starts if start.isdecimal() and len(start) < 6})


def _levels(names: Mapping[str, Any], source: str) -> tuple[int, int, bool, bool]:
    """The number of levels, blocks per level, and whether blocks and convolutions change sides."""
    blocks = _indices(names, "input_blocks.")
    ups = [_indices(names, f"output_blocks.{i}.") for i in _indices(names, "output_blocks.")]
    inside = convolved = 0
    for i, parts in enumerate(ups):
        last = f"output_blocks.{i}.{parts[-1]}."
        inside += parts[-1] > 0 and f"{last}in_layers.0.weight" in names
        convolved += f"{last}conv.weight" in names
    # Sides that change without parameters leave gaps in the numbers on the way down.
    gaps = blocks[-1] + 1 - len(blocks)
    levels = 1 + (inside or convolved or gaps)
    if levels > len(names):
        raise ValueError(f"{source} numbers its input_blocks up to {blocks[-1]}, with gaps.")
    return levels, len(ups) // levels - 1, inside > 0, inside > 0 or convolved > 0 or levels == 1


def unet_structure(names: Mapping[str, Any], source: str) -> Structure:
    """Reads the network off its state dict.

    **Raises:** `ValueError` where these are not the weights of a `UNetModel`.
    """
    needed = (
        "time_embed.0.weight",
        "input_blocks.0.0.weight",
        "output_blocks.0.0.in_layers.0.weight",
    )
    missing = [name for name in (*needed, "out.2.weight") if name not in names]
    if missing:
        raise ValueError(
            f"{source} does not hold the weights of a UNetModel of improved-diffusion or "
            f"guided-diffusion: {missing} are missing among {len(names)} names, of which the first "
            f"are {shown(list(names)[:4], 200)}."
        )
    shapes = {name: np.shape(array) for name, array in names.items()}
    levels, per_level, updown, convolutions = _levels(names, source)
    channels = shapes["time_embed.0.weight"][1]
    firsts = [1 + i * (per_level + 1) for i in range(levels)]
    block = f"input_blocks.{firsts[-1]}.0.out_layers.3.weight"
    if per_level < 1 or block not in names:
        raise ValueError(f"{source} has levels that cannot be told apart: {block} is missing.")
    widths = [shapes[f"input_blocks.{i}.0.out_layers.3.weight"][0] for i in firsts]
    mults = tuple(
        width // channels if width % channels == 0 else width / channels for width in widths
    )
    attention = tuple(
        2**i for i, n in enumerate(firsts) if f"input_blocks.{n}.1.qkv.weight" in names
    )
    first = "input_blocks.1.0.emb_layers.1.weight"
    classes = shapes["label_emb.weight"][0] if "label_emb.weight" in names else None
    return Structure(
        in_channels=shapes["input_blocks.0.0.weight"][1],
        out_channels=shapes["out.2.weight"][0],
        model_channels=channels,
        channel_mult=mults,
        num_res_blocks=per_level,
        attention_factors=attention,
        num_classes=classes,
        use_scale_shift_norm=shapes[first][0] == 2 * widths[0],
        resblock_updown=updown,
        conv_resample=convolutions,
    )
