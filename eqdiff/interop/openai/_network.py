"""OpenAI's networks and ours: their constructors' arguments, and their weights there and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...nn import _flags
from ...nn._classifier import UNetClassifier
from ...nn._pool import AttentionPool, AveragePool, SpatialPool
from ...nn._super_resolution import SuperResolution
from ...nn._unet import UNet
from .._weights import checked_skeleton, fill, official
from ._entries import entries


# Official keyword arguments and ours.
_BOTH = {
    "in_channels": "in_channels",
    "model_channels": "channels",
    "num_res_blocks": "num_res_blocks",
    "attention_resolutions": "attention_downsamples",
    "dropout": "dropout",
    "channel_mult": "channel_mult",
    "conv_resample": "conv_resample",
    "use_checkpoint": "remat",
    "num_heads": "num_heads",
    "num_heads_upsample": "num_heads_upsample",
    "num_head_channels": "channels_per_head",
    "use_scale_shift_norm": "scale_shift_norm",
    "resblock_updown": "resblock_updown",
}
_UNET = _BOTH | {"out_channels": "out_channels", "num_classes": "num_classes", "dims": "dims"}
_CLASSIFIER = _BOTH | {"out_channels": "num_classes"}
# The official defaults, where ours differ.
_DEFAULTS = {"channel_mult": (1, 2, 4, 8), "num_heads": 1, "use_scale_shift_norm": False}
# Those without defaults.
_REQUIRED = (
    "in_channels",
    "model_channels",
    "out_channels",
    "num_res_blocks",
    "attention_resolutions",
)
# The side only matters to a pooling; the others concern the weights' layout and `compute_dtype`.
_UNUSED = ("image_size", "use_fp16", "use_new_attention_order")


def _read(
    config: Mapping[str, Any],
    known: Mapping[str, str],
    required: Sequence[str],
    unused: Sequence[str],
    network: str,
) -> dict[str, Any]:
    """Our arguments, from the official ones of `network`."""
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


def openai_unet(
    state_dict: Mapping[str, Any], config: Mapping[str, Any], *, compute_dtype: Any = jnp.float32
) -> UNet:
    """Our `UNet` with the weights of a `UNetModel` of improved-diffusion or guided-diffusion.

    A `SuperResModel` is a `UNetModel` that sees twice the channels, those of $x$ and of the
    enlarged low-resolution image:

    ```python
    unet = eqd.interop.openai_unet(weights, config | {"in_channels": 6})
    net = eqd.nn.SuperResolution(unet)
    ```

    **Arguments:**

    - `state_dict`: official names and arrays, as `UNetModel.state_dict()` has them (convolutions
        `(out, in, height, width)`); anything that NumPy turns into arrays.
    - `config`: the keyword arguments of the official `UNetModel`: `in_channels`, `model_channels`,
        `out_channels`, `num_res_blocks`, `attention_resolutions` (as factors of downsampling, as
        there), and where they differ from its defaults `dropout`, `channel_mult`, `conv_resample`,
        `dims`, `num_classes`, `use_checkpoint`, `num_heads`, `num_heads_upsample`,
        `use_scale_shift_norm`; guided-diffusion has `num_head_channels`, `resblock_updown` and
        `use_new_attention_order` in addition. `image_size` and `use_fp16` are ignored.
    - `compute_dtype`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.UNet`][] with float32 parameters.

    **Raises:** `ValueError` with the names of missing, unexpected and mis-shaped weights, or the
    keys of `config` that are missing or unknown.

    **Example:**

    ```python
    weights = eqd.interop.read_torch("64x64_diffusion.pt")
    net = eqd.interop.openai_unet(weights, config)  # `config` as given to UNetModel
    ```
    """
    arguments = _read(config, _UNET, _REQUIRED, _UNUSED, "OpenAI's UNetModel")
    arguments["compute_dtype"] = compute_dtype
    net = checked_skeleton(_flags.openai_unet, arguments, state_dict)
    new_order = bool(config.get("use_new_attention_order", False))
    return fill(net, entries(net, new_order), state_dict)


def openai_classifier(
    state_dict: Mapping[str, Any], config: Mapping[str, Any], *, compute_dtype: Any = jnp.float32
) -> UNetClassifier:
    """Our `UNetClassifier` with the weights of guided-diffusion's `EncoderUNetModel`.

    **Arguments:**

    - `state_dict`: official names and arrays; anything that NumPy turns into arrays.
    - `config`: the keyword arguments of the official `EncoderUNetModel`: those of
        [`eqdiff.interop.openai_unet`][] without `num_classes` (its classes are its `out_channels`),
        with `image_size`, and `pool`, one of `"adaptive"`, `"attention"`, `"spatial"` and
        `"spatial_v2"`.
    - `compute_dtype`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.UNetClassifier`][] with float32 parameters.

    **Raises:** `ValueError` with the names of missing, unexpected and mis-shaped weights, or the
    keys of `config` that are missing or unknown; and for another `pool`, or for data other than
    images (`dims`).

    **Example:**

    ```python
    weights = eqd.interop.read_torch("64x64_classifier.pt")
    net = eqd.interop.openai_classifier(weights, config)  # as given to EncoderUNetModel
    ```
    """
    name = "guided-diffusion's EncoderUNetModel"
    required, unused = ("image_size", *_REQUIRED), (*_UNUSED, "dims", "pool")
    arguments = _read(config, _CLASSIFIER, required, unused, name)
    if config.get("dims", 2) != 2:
        raise ValueError(f"{name} pools images: expected dims=2, got dims={config['dims']}.")
    arguments.pop("num_heads_upsample", None)
    # The official default is "by num_heads", ours heads of 64 channels.
    arguments = {"channels_per_head": None, "resblock_updown": False} | arguments
    arguments["pool"] = _pool(config, arguments["channels_per_head"])
    arguments["compute_dtype"] = compute_dtype
    net = checked_skeleton(_flags.openai_classifier, arguments, state_dict)
    new_order = bool(config.get("use_new_attention_order", False))
    return fill(net, entries(net, new_order), state_dict)


def _pool(
    config: Mapping[str, Any], channels_per_head: int | None
) -> AveragePool | AttentionPool | SpatialPool:
    name = config.get("pool", "adaptive")
    if name == "attention":
        if channels_per_head is None:
            raise ValueError("config with pool='attention' needs num_head_channels.")
        return AttentionPool(config["image_size"], channels_per_head)
    pools = {
        "adaptive": AveragePool(),
        "spatial": SpatialPool(),
        "spatial_v2": SpatialPool(normalise=True),
    }
    if name not in pools:
        raise ValueError(f"pool is one of {sorted((*pools, 'attention'))}, got {name!r}.")
    return pools[name]


def openai_state_dict(
    net: UNet | SuperResolution | UNetClassifier, *, use_new_attention_order: bool = False
) -> dict[str, np.ndarray]:
    """The weights of a network under their official names: the inverse of the functions above.

    Gradients and an EMA, which have the structure of the network, can be given instead.

    **Arguments:**

    - `net`: an [`eqdiff.nn.UNet`][], an [`eqdiff.nn.SuperResolution`][] of one, or an
        [`eqdiff.nn.UNetClassifier`][].
    - `use_new_attention_order`: the argument of guided-diffusion's network that is to receive the
        weights; with one head in each attention both orders are the same.

    **Returns:** official names and arrays in the official layout, in the official order, for
    `UNetModel.load_state_dict({k: torch.from_numpy(v) for k, v in ...})`.

    **Example:**

    ```python
    net = eqd.nn.presets.iddpm_digits(key=jax.random.key(0))
    weights = eqd.interop.openai_state_dict(net)  # official names and arrays
    ```
    """
    inner: Any = net.net if isinstance(net, SuperResolution) else net
    return official(inner, entries(inner, use_new_attention_order))
