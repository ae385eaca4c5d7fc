r"""diffusers' `UNet2DModel` and our networks.

It is the network of Ho et al. (2020) with options. Two sets of them are networks here: that of
Ho et al. as TensorFlow had it (`google/ddpm-*`), in the style of [`eqdiff.nn.styles.ddpm`][] with
attention after every block, and the defaults of diffusers, which are those of OpenAI, in the style
of [`eqdiff.nn.styles.iddpm`][]:

| option | `ddpm` | `iddpm` |
|---|---|---|
| `flip_sin_to_cos`, `freq_shift` | false, 1 | true, 0 |
| `downsample_padding` | 0 | 1 |
| `norm_eps` | 1e-6 | 1e-5 |
| `attention_head_dim` | null: one head | any |
| `resnet_time_scale_shift` | `default` | `default`, or `scale_shift` with `attn_norm_num_groups` |
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from ..._shown import shortened, shown
from ...nn import _flags
from ...nn._ends import Centred
from ...nn._unet import UNet
from .._weights import checked_skeleton, fill
from ._entries import entries, new_name


# The defaults of the official constructor.
_DEFAULTS: dict[str, Any] = dict(
    in_channels=3,
    out_channels=3,
    center_input_sample=False,
    time_embedding_type="positional",
    time_embedding_dim=None,
    freq_shift=0,
    flip_sin_to_cos=True,
    down_block_types=("DownBlock2D", *3 * ("AttnDownBlock2D",)),
    mid_block_type="UNetMidBlock2D",
    up_block_types=(*3 * ("AttnUpBlock2D",), "UpBlock2D"),
    block_out_channels=(224, 448, 672, 896),
    layers_per_block=2,
    mid_block_scale_factor=1,
    downsample_padding=1,
    downsample_type="conv",
    upsample_type="conv",
    dropout=0.0,
    act_fn="silu",
    attention_head_dim=8,
    norm_num_groups=32,
    attn_norm_num_groups=None,
    norm_eps=1e-5,
    resnet_time_scale_shift="default",
    add_attention=True,
    class_embed_type=None,
    num_class_embeds=None,
)
# Options that do not change the network's mathematics.
_UNUSED = ("sample_size", "num_train_timesteps")
# Options of which only these values are networks here.
_FIXED: dict[str, tuple[Any, ...]] = dict(
    time_embedding_type=("positional",),
    mid_block_type=("UNetMidBlock2D", None),
    mid_block_scale_factor=(1,),
    downsample_type=("conv",),
    upsample_type=("conv",),
    act_fn=("silu", "swish"),
    add_attention=(True,),
    class_embed_type=(None,),
    resnet_time_scale_shift=("default", "scale_shift"),
)
_SONG = dict(flip_sin_to_cos=False, freq_shift=1, downsample_padding=0, norm_eps=1e-6)
_OPENAI = dict(flip_sin_to_cos=True, freq_shift=0, downsample_padding=1, norm_eps=1e-5)


def _said(name: Any) -> str:
    return shortened(name, 80) if isinstance(name, str) else shown(name)


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ValueError(
            "this UNet2DModel is not one of eqdiff's networks: "
            f"{shortened('; '.join(problems), 800)}."
        )


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    """All options; those that are the same in every network here are checked."""
    given = {k: v for k, v in config.items() if not k.startswith("_") and k not in _UNUSED}
    unknown = sorted(set(given) - set(_DEFAULTS))
    name = _said(config.get("_class_name", "UNet2DModel"))
    if name != "UNet2DModel" or unknown:
        raise ValueError(
            f"config must be that of a UNet2DModel, got a {name} with the unknown options "
            f"{shown(unknown)}."
        )
    options = _DEFAULTS | given
    for option in ("block_out_channels", "down_block_types", "up_block_types"):
        kind = int if option == "block_out_channels" else str
        value = options[option]
        good = isinstance(value, list | tuple) and value
        if not good or not all(type(v) is kind and v for v in value):
            _refuse([f"{option}={shown(value)}, expected a list, one entry for each level"])
    problems = [
        f"{name}={shown(options[name])}, expected {' or '.join(map(repr, allowed))}"
        for name, allowed in _FIXED.items()
        if options[name] not in allowed
    ]
    if options["mid_block_type"] is None:
        problems.append("mid_block_type=None, expected 'UNetMidBlock2D'")
    # With scale_shift and no attn_norm_num_groups the attention in the middle is not normalised.
    default = options["resnet_time_scale_shift"] == "default"
    groups = options["norm_num_groups"]
    if options["attn_norm_num_groups"] not in ((None, groups) if default else (groups,)):
        problems.append(
            f"attn_norm_num_groups={shown(options['attn_norm_num_groups'])} with "
            f"resnet_time_scale_shift={shown(options['resnet_time_scale_shift'])}, expected "
            f"{shown(groups)}"
        )
    widths, downs = options["block_out_channels"], options["down_block_types"]
    plain, attention = ("DownBlock2D", "AttnDownBlock2D")
    if any(block not in (plain, attention) for block in downs) or len(downs) != len(widths):
        problems.append(
            f"down_block_types={shown(downs)}, expected {plain} or {attention} for each width"
        )
    mirrored = [block.replace("Down", "Up") for block in reversed(downs)]
    if list(options["up_block_types"]) != mirrored:
        problems.append(
            f"up_block_types={shown(options['up_block_types'])}, expected {shown(mirrored)}"
        )
    if options["time_embedding_dim"] not in (None, 4 * widths[0]):
        problems.append(
            f"time_embedding_dim={shown(options['time_embedding_dim'])}, expected {4 * widths[0]}"
        )
    _refuse(problems)
    return options


def network(options: Mapping[str, Any], compute_dtype: Any) -> tuple[Any, dict[str, Any]]:
    """What makes the network of data in [−1, 1], and its arguments."""
    widths = options["block_out_channels"]
    common: dict[str, Any] = dict(
        in_channels=options["in_channels"],
        out_channels=options["out_channels"],
        channels=widths[0],
        num_res_blocks=options["layers_per_block"],
        attention_downsamples=tuple(
            2**i for i, block in enumerate(options["down_block_types"]) if block.startswith("Attn")
        ),
        dropout=options["dropout"],
        num_classes=options["num_class_embeds"],
        norm_groups=options["norm_num_groups"],
        compute_dtype=compute_dtype,
    )
    song = {name: options[name] for name in _SONG} == _SONG
    if not song and {name: options[name] for name in _OPENAI} != _OPENAI:
        found = shown({name: options[name] for name in _SONG}, 200)
        _refuse([f"{found}, expected {_SONG} (styles.ddpm) or {_OPENAI} (styles.iddpm)"])
    mults = tuple(
        width // widths[0] if width % widths[0] == 0 else width / widths[0] for width in widths
    )
    problems = []
    if not song:
        if options["center_input_sample"]:
            problems.append("center_input_sample=True, which styles.iddpm does not have")
        _refuse(problems)
        head = options["attention_head_dim"]
        return _flags.openai_unet, dict(
            channel_mult=mults,
            num_heads=1,
            channels_per_head=head,
            scale_shift_norm=options["resnet_time_scale_shift"] == "scale_shift",
            **common,
        )
    if options["attention_head_dim"] is not None:
        problems.append(
            f"attention_head_dim={shown(options['attention_head_dim'])}, expected null: "
            "styles.ddpm has one head"
        )
    if options["resnet_time_scale_shift"] != "default":
        problems.append("resnet_time_scale_shift='scale_shift', which styles.ddpm does not have")
    if not all(isinstance(mult, int) for mult in mults):
        problems.append(f"block_out_channels={shown(widths)}, expected multiples of the first")
    _refuse(problems)
    return _flags.ddpm, common | dict(channel_mult=mults, attention_after_every=True)


def diffusers_network(
    state_dict: Mapping[str, Any], config: Mapping[str, Any], *, compute_dtype: Any = jnp.float32
) -> UNet | Centred:
    """Our network with the weights of diffusers' `UNet2DModel`.

    **Arguments:**

    - `state_dict`: official names and arrays; anything that NumPy turns into arrays.
    - `config`: the contents of `config.json`; what it lacks has diffusers' default.
    - `compute_dtype`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.UNet`][] with float32 parameters, in an [`eqdiff.nn.Centred`][]
    where `center_input_sample` is true.

    **Raises:** `ValueError` that names every option that no network here has, or missing,
    unexpected and mis-shaped weights.
    """
    options = _read(config)
    net = checked_skeleton(*network(options, compute_dtype), state_dict)
    arrays = {new_name(name): array for name, array in state_dict.items()}
    net = fill(net, entries(net), arrays)
    return Centred(net) if options["center_input_sample"] else net
