"""Weights of guided-diffusion's networks in ours; those that improved-diffusion has too are named in `_openai_weights.py`.

Of the heads of its classifier, `out.*`, the positions of attention pooling are `(channels, tokens)` there and
`(tokens, channels)` here, and its queries, keys and values are in our order whatever that of the blocks.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..nn._classifier import UNetClassifier
from ..nn._pool import AttentionHead, AttentionPool, AverageHead, AveragePool, SpatialPool
from ..nn._super_resolution import SuperResolution
from ..nn._unet import UNet
from ._openai_weights import (
    ARGUMENTS,
    CONV1D,
    encoder_entries,
    read_config,
    REQUIRED,
    time_entries,
    unet_entries,
)
from ._weights import affine, CONV1X1, Entry, fill, LINEAR, official, Path, skeleton


def _head(head: Any) -> Iterator[Entry]:
    at = Path(("head",))
    if isinstance(head, AverageHead):
        yield from affine("out.0", at.at("norm"))
        yield from affine("out.3", at.at("linear"), CONV1X1)
    elif isinstance(head, AttentionHead):
        yield from affine("out.0", at.at("norm"))
        yield Entry(("out.2.positional_embedding",), at.at("positions"), LINEAR)
        yield from affine("out.2.qkv_proj", at.at("qkv"), CONV1D)
        yield from affine("out.2.c_proj", at.at("out"), CONV1D)
    else:
        yield from affine("out.0", at.at("linear1"), LINEAR)
        if head.norm is not None:
            yield from affine("out.1", at.at("norm"))
        yield from affine("out.2" if head.norm is None else "out.3", at.at("linear2"), LINEAR)


def _entries(net: UNet | UNetClassifier, new_order: bool) -> Iterator[Entry]:
    """Every parameter of `net`, in the order of the official state dict."""
    if isinstance(net, UNet):
        yield from unet_entries(net, new_order)
    else:
        yield from time_entries()
        yield from encoder_entries(net.body, new_order)
        yield from _head(net.head)


_UNET = ARGUMENTS | {
    "num_head_channels": "channels_per_head",
    "resblock_updown": "resblock_updown",
}
_CLASSIFIER = {k: v for k, v in _UNET.items() if k not in ("num_classes", "dims")} | {
    "out_channels": "num_classes"
}
_REQUIRED = ("image_size", *REQUIRED)
# Of the layout of the weights, of our `compute_dtype`, and of the side, which only a pooling looks at.
_UNUSED = ("image_size", "use_fp16", "use_new_attention_order")


def guided_diffusion_unet(
    state_dict: Mapping[str, Any], config: Mapping[str, Any], *, compute_dtype: Any = jnp.float32
) -> UNet:
    """Our `UNet` with the weights of an official guided-diffusion `UNetModel`.

    ```python
    file = torch.load("64x64_diffusion.pt", map_location="cpu", weights_only=True)
    net = eqdiff.interop.guided_diffusion_unet({k: v.numpy() for k, v in file.items()}, config)
    ```

    **Arguments:**

    - `state_dict`: official names and arrays, as `UNetModel.state_dict()` has them (convolutions
        `(out, in, height, width)`); anything that NumPy turns into arrays.
    - `config`: the keyword arguments of the official `UNetModel`: `image_size`, `in_channels`, `model_channels`,
        `out_channels`, `num_res_blocks`, `attention_resolutions` (as factors of downsampling, as there), and
        where they differ from its defaults `dropout`, `channel_mult`, `conv_resample`, `dims`, `num_classes`,
        `use_checkpoint`, `num_heads`, `num_head_channels`, `num_heads_upsample`, `use_scale_shift_norm`,
        `resblock_updown`, `use_new_attention_order`. `use_fp16` is not looked at: see `compute_dtype`.
    - `compute_dtype`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.UNet`][] with float32 parameters.

    **Raises:** `ValueError` that lists every missing, unexpected and mis-shaped weight by name, or
    the keys of `config` that are missing or unknown.
    """
    arguments = read_config(config, _UNET, _REQUIRED, "guided-diffusion's UNetModel", _UNUSED)
    net = skeleton(lambda key: UNet(**arguments, compute_dtype=compute_dtype, key=key))
    entries = _entries(net, bool(config.get("use_new_attention_order", False)))
    return fill(net, entries, state_dict)


def guided_diffusion_super_resolution(
    state_dict: Mapping[str, Any], config: Mapping[str, Any], *, compute_dtype: Any = jnp.float32
) -> SuperResolution:
    """An official guided-diffusion `SuperResModel`: our `UNet` that also sees a low-resolution image.

    **Arguments:**

    - `state_dict`, `compute_dtype`: as for [`eqdiff.interop.guided_diffusion_unet`][].
    - `config`: the keyword arguments of the official `SuperResModel`, as there; `in_channels` counts
        those of $x$ alone.

    **Returns:** an [`eqdiff.nn.SuperResolution`][], whose `args` is the low-resolution image, or the pair
    of it and a class. (The official keyword arguments are `low_res` and `y`.)

    **Raises:** as there.
    """
    doubled = {k: 2 * v if k == "in_channels" else v for k, v in config.items()}
    return SuperResolution(guided_diffusion_unet(state_dict, doubled, compute_dtype=compute_dtype))


def guided_diffusion_classifier(
    state_dict: Mapping[str, Any], config: Mapping[str, Any], *, compute_dtype: Any = jnp.float32
) -> UNetClassifier:
    """Our `UNetClassifier` with the weights of an official guided-diffusion `EncoderUNetModel`.

    **Arguments:**

    - `state_dict`, `compute_dtype`: as for [`eqdiff.interop.guided_diffusion_unet`][].
    - `config`: the keyword arguments of the official `EncoderUNetModel`: as there, without `num_classes` (its
        classes are its `out_channels`), and `pool`, one of `"adaptive"`, `"attention"`, `"spatial"` and
        `"spatial_v2"`.

    **Returns:** an [`eqdiff.nn.UNetClassifier`][] with float32 parameters.

    **Raises:** as there; and `ValueError` for another `pool` or other data than images (`dims`).
    """
    name = "guided-diffusion's EncoderUNetModel"
    arguments = read_config(config, _CLASSIFIER, _REQUIRED, name, (*_UNUSED, "dims", "pool"))
    if config.get("dims", 2) != 2:
        raise ValueError(f"{name} pools images: expected dims=2, got dims={config['dims']}.")
    arguments.pop("num_heads_upsample", None)
    # The official default is "by num_heads", ours heads of 64 channels.
    arguments = {"channels_per_head": None, "resblock_updown": False} | arguments
    arguments["pool"] = _pool(config, arguments["channels_per_head"])
    net = skeleton(lambda key: UNetClassifier(**arguments, compute_dtype=compute_dtype, key=key))
    entries = _entries(net, bool(config.get("use_new_attention_order", False)))
    return fill(net, entries, state_dict)


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


def guided_diffusion_state_dict(
    net: UNet | SuperResolution | UNetClassifier, *, use_new_attention_order: bool = False
) -> dict[str, np.ndarray]:
    """The weights of a network under their names in guided-diffusion: the inverse of the functions above.

    Also names gradients, or an EMA, where those have the structure of the network.

    **Arguments:**

    - `net`: an [`eqdiff.nn.UNet`][], an [`eqdiff.nn.SuperResolution`][] of one, or an
        [`eqdiff.nn.UNetClassifier`][].
    - `use_new_attention_order`: of the official network that is to have the weights; with one head in each
        attention both orders are the same.

    **Returns:** official names and arrays in the official layout, in the official order.
    """
    inner: Any = net.net if isinstance(net, SuperResolution) else net
    return official(inner, _entries(inner, use_new_attention_order))
