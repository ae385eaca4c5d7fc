"""EDM's networks and ours: their constructors' arguments, and their weights there and back."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..._shown import shortened, shown
from ...nn import _flags
from ...nn._unet import UNet
from .._weights import checked_skeleton, fill, official, strip
from ._entries import entries


# Official keyword arguments and ours; the first is turned into factors of `img_resolution`.
_BOTH = {
    "attn_resolutions": "attention_downsamples",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "model_channels": "channels",
    "channel_mult": "channel_mult",
    "channel_mult_emb": "embedding_mult",
    "num_blocks": "num_res_blocks",
    "dropout": "dropout",
    "label_dim": "num_classes",
    "label_dropout": "class_dropout",
    "augment_dim": "augment_size",
}
_SONG = _BOTH | {
    "embedding_type": "embedding",
    "encoder_type": "encoder",
    "decoder_type": "decoder",
    "channel_mult_noise": "noise_mult",
    "resample_filter": "kernel",
}
# Official defaults, where ours differ.
_DEFAULTS = {
    "SongUNet": {
        "model_channels": 128,
        "channel_mult": (1, 2, 2, 2),
        "attn_resolutions": (16,),
        "dropout": 0.1,
    },
    "DhariwalUNet": {"attn_resolutions": (32, 16, 8)},
}


def _arguments(config: Mapping[str, Any]) -> tuple[str, int, dict[str, Any]]:
    kind = config.get("model_type", "SongUNet")
    if kind not in _DEFAULTS:
        raise ValueError(f"model_type is 'SongUNet' or 'DhariwalUNet', got {shown(kind)}.")
    names = _SONG if kind == "SongUNet" else _BOTH
    given = {k: v for k, v in config.items() if k not in ("model_type", "img_resolution")}
    unknown = sorted(set(given) - set(names))
    needed = ("img_resolution", "in_channels", "out_channels")
    missing = [name for name in needed if name not in config]
    if unknown or missing:
        raise ValueError(
            f"config must hold the keyword arguments of EDM's {kind}; unknown: "
            f"{shown(unknown)}, missing: {missing}. Known are "
            f"{sorted((*needed[:1], *names))}, and model_type."
        )
    side = config["img_resolution"]
    arguments = {names[k]: v for k, v in (_DEFAULTS[kind] | given).items()}
    for name in ("channel_mult", "kernel"):
        if name in arguments:
            arguments[name] = tuple(arguments[name])
    sides = arguments["attention_downsamples"]
    arguments["attention_downsamples"] = tuple(side // a for a in sides if a <= side)
    arguments["num_classes"] = arguments.get("num_classes") or None
    return kind, side, arguments


def _constants(arrays: dict[str, np.ndarray], arguments: dict[str, Any]) -> dict[str, np.ndarray]:
    # The weights without the buffers, whose filters must be those of the arguments.
    taps = tuple(arguments.get("kernel", (1, 1)))
    expected = np.outer(taps, taps) / np.sum(taps) ** 2
    weights = {}
    for name, array in arrays.items():
        if name == "map_noise.freqs":
            continue
        if not name.endswith(".resample_filter"):
            weights[name] = array
        elif array.size != expected.size or not np.allclose(
            np.reshape(array, expected.shape), expected
        ):
            raise ValueError(
                f"{shortened(name, 80)} is not the filter {shown(taps)} of config's "
                f"resample_filter: {shown(np.ravel(array)[:16].tolist())}."
            )
    return weights


def edm_network(
    state_dict: Mapping[str, Any], config: Mapping[str, Any], *, compute_dtype: Any = jnp.float32
) -> UNet:
    """Our network with the weights of EDM's `SongUNet` or `DhariwalUNet`.

    For a network without a preconditioner; [`eqdiff.interop.load_edm`][] reads files.

    **Arguments:**

    - `state_dict`: official names and arrays, of the network or of the preconditioned one around it
        (whose names begin with `model.`); anything that NumPy turns into arrays.
    - `config`: the keyword arguments of the official network, and as `model_type` its class.
    - `compute_dtype`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.UNet`][] with float32 parameters.

    **Raises:** `ValueError` with the names of missing, unexpected and mis-shaped weights, or the
    keys of `config` that are missing or unknown.

    **Example:**

    ```python
    config = {"model_type": type(net).__name__, **net.init_kwargs}  # net is EDM's
    ours = eqd.interop.edm_network({k: v.numpy() for k, v in net.state_dict().items()}, config)
    ```
    """
    kind, side, arguments = _arguments(config)
    arrays = {k: np.asarray(a) for k, a in strip(strip(state_dict, "module."), "model.").items()}
    build = _flags.edm_song if kind == "SongUNet" else _flags.edm_dhariwal
    if "map_noise.freqs" in arrays and kind == "SongUNet":
        arguments["frequencies"] = tuple(float(f) for f in arrays["map_noise.freqs"])
    arguments["compute_dtype"] = compute_dtype
    net = checked_skeleton(build, arguments, arrays)
    weights = _constants(arrays, arguments)
    return fill(net, entries(net, side), weights)


def edm_state_dict(net: UNet, img_resolution: int) -> dict[str, np.ndarray]:
    """The weights of a network under their names in EDM.

    This is the inverse of [`eqdiff.interop.edm_network`][]. Gradients and an EMA, which have the
    structure of the network, can be given instead.

    **Arguments:**

    - `net`: an [`eqdiff.nn.UNet`][] in the style of EDM's.
    - `img_resolution`: the side of the images, which the official names mention.

    **Returns:** official names and arrays in the official layout, without the buffers (filters and
    Fourier frequencies).

    **Example:**

    ```python
    sizes = dict(channels=32, channel_mult=(1,), num_res_blocks=1)
    net = eqd.nn.presets.edm_ddpmpp_cifar10(**sizes, key=jax.random.key(0))
    weights = eqd.interop.edm_state_dict(net, 32)  # official names and arrays
    ```
    """
    return official(net, entries(net, img_resolution))
