r"""diffusers' `UNet2DModel` and our networks.

It is the network of Ho et al. (2020) with options, each of which is an object of
[`eqdiff.nn.Style`][] or of [`eqdiff.nn.Embedding`][] here:

| option | object |
|---|---|
| `flip_sin_to_cos`, `freq_shift`: true, 0 or false, 1 | `Sinusoids`, `SongSinusoids` |
| `downsample_padding`: 1 or 0 | `Strided()`, `Strided((0, 1))` |
| `norm_num_groups`, `norm_eps` | `Norm` |
| `attention_head_dim`: null or a number | `Heads(1)`, `HeadsOf` |
| `resnet_time_scale_shift`: `default` or `scale_shift` | `Added`, `ScaleShift` |
| `time_embedding_dim`, `num_class_embeds` | `mult` and the classes of the embedding |

`google/ddpm-*` have those of [`eqdiff.nn.styles.ddpm`][], and the defaults of diffusers are nearly
those of OpenAI, [`eqdiff.nn.styles.iddpm`][].
"""

import warnings
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from ..._shown import shortened, shown
from ..._types import Key
from ...nn._embedding import Embedding
from ...nn._ends import Centred
from ...nn._heads import Heads, HeadsOf
from ...nn._resampling import Strided
from ...nn._shape import UNetShape
from ...nn._style import Added, FanInit, Norm, ScaleShift, Style, TorchInit
from ...nn._time_features import Sinusoids, SongSinusoids
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
    attention_legacy_order=False,
)
# What does not change the network's mathematics: sizes that it does not depend on, and what
# `EMAModel.save_pretrained` writes of the average next to the network's own options.
_UNUSED = frozenset(
    "sample_size num_train_timesteps force_upcast decay min_decay optimization_step "
    "update_after_step use_ema_warmup inv_gamma power".split()
)
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
    downsample_padding=(0, 1),
    # Of other versions than 0.42.
    attention_legacy_order=(False,),
)
# `flip_sin_to_cos` and `freq_shift` of `Sinusoids` and of `SongSinusoids`.
_TIMES = ((True, 0), (False, 1))


def _said(name: Any) -> str:
    return shortened(name, 80) if isinstance(name, str) else shown(name)


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ValueError(
            "this UNet2DModel is not one of eqdiff's networks: "
            f"{shortened('; '.join(problems), 800)}."
        )


def _known(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the network itself, with the defaults of those that are missing."""
    given = {k: v for k, v in config.items() if not k.startswith("_") and k not in _UNUSED}
    unknown = sorted(set(given) - set(_DEFAULTS))
    refused = [name for name in unknown if given[name] is not None]
    name = _said(config.get("_class_name", "UNet2DModel"))
    if name != "UNet2DModel":
        raise ValueError(f"config must be that of a UNet2DModel, got a {name}.")
    if refused:
        raise ValueError(
            f"the UNet2DModel has the unknown options {shown(refused)}, which may change the "
            "network. If you know that they do not, give a config without them."
        )
    if unknown:
        warnings.warn(
            f"options of UNet2DModel that are not known here, but null, are not read: "
            f"{shown(unknown, 300)}.",
            stacklevel=2,
        )
    return _DEFAULTS | {name: given[name] for name in given if name not in unknown}


def read(config: Mapping[str, Any]) -> dict[str, Any]:
    """All options, checked.

    **Raises:** `ValueError` that names every one that no network here has.
    """
    options = _known(config)
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
    _refuse(problems + _contradictions(options))
    return options


def _contradictions(options: Mapping[str, Any]) -> list[str]:
    """What is an option of no network here together with others."""
    problems = []
    if options["mid_block_type"] is None:
        problems.append("mid_block_type=None, expected 'UNetMidBlock2D'")
    if _time(options) not in _TIMES:
        problems.append(
            f"flip_sin_to_cos, freq_shift={shown(_time(options))}, expected (True, 0) or (False, 1)"
        )
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
    size = options["time_embedding_dim"]
    if size is not None and (type(size) is not int or size < 1 or size % widths[0]):
        problems.append(
            f"time_embedding_dim={shown(size)}, expected a multiple of the first width, {widths[0]}"
        )
    return problems


def _time(options: Mapping[str, Any]) -> tuple[Any, Any]:
    return options["flip_sin_to_cos"], options["freq_shift"]


def unet(
    *,
    cosine_first: bool,
    padding: int,
    norm_groups: int,
    norm_eps: float,
    channels_per_head: int | None,
    scale_shift: bool,
    embedding_mult: int,
    dropout: float,
    compute_dtype: Any = jnp.float32,
    key: Key,
    **sizes: Any,
) -> UNet:
    """The network of these options; `padding=0` is one zero after each side."""
    # How weights would start, which these do not: as in the two published families.
    init = TorchInit() if cosine_first else FanInit()
    style = Style(
        Strided((1, 1) if padding else (0, 1)),
        Norm(norm_groups, norm_eps),
        init,
        ScaleShift() if scale_shift else Added(),
        Heads() if channels_per_head is None else HeadsOf(channels_per_head),
        dropout=dropout,
    )
    time = Sinusoids() if cosine_first else SongSinusoids()
    embed = Embedding(time, init=init, mult=embedding_mult)
    return UNet(UNetShape(**sizes), style, embed, compute_dtype=compute_dtype, key=key)


def arguments(options: Mapping[str, Any], compute_dtype: Any) -> dict[str, Any]:
    """Those of `unet`, for options that were read."""
    widths = options["block_out_channels"]
    return dict(
        cosine_first=bool(options["flip_sin_to_cos"]),
        padding=options["downsample_padding"],
        norm_groups=options["norm_num_groups"],
        norm_eps=options["norm_eps"],
        channels_per_head=options["attention_head_dim"],
        scale_shift=options["resnet_time_scale_shift"] == "scale_shift",
        embedding_mult=(options["time_embedding_dim"] or 4 * widths[0]) // widths[0],
        dropout=options["dropout"],
        compute_dtype=compute_dtype,
        in_channels=options["in_channels"],
        out_channels=options["out_channels"],
        channels=widths[0],
        channel_mult=tuple(w // widths[0] if w % widths[0] == 0 else w / widths[0] for w in widths),
        num_res_blocks=options["layers_per_block"],
        attention_downsamples=tuple(
            2**i for i, block in enumerate(options["down_block_types"]) if block.startswith("Attn")
        ),
        num_classes=options["num_class_embeds"],
    )


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

    **Warns:** of options that are not known here but null. The numbers of an average (`decay`, …),
    which diffusers writes into the configuration of `unet_ema`, and sizes such as `sample_size` are
    not read.

    **Raises:** `ValueError` that names every option that no network here has, or missing,
    unexpected and mis-shaped weights.

    **Example:**

    ```python
    import json
    weights = eqd.interop.read_torch("unet/diffusion_pytorch_model.bin")
    config = json.load(open("unet/config.json"))
    net = eqd.interop.diffusers_network(weights, config)
    ```
    """
    options = read(config)
    net = checked_skeleton(unet, arguments(options, compute_dtype), state_dict)
    arrays = {new_name(name): array for name, array in state_dict.items()}
    net = fill(net, entries(net), arrays)
    return Centred(net) if options["center_input_sample"] else net
