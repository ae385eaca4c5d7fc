"""Weights of improved-diffusion's `UNetModel` in our `UNet`; their names are in `_openai_weights.py`."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..nn._super_resolution import SuperResolution
from ..nn._unet import UNet
from ._openai_weights import ARGUMENTS, read_config, REQUIRED, unet_entries
from ._weights import fill, official, skeleton


def improved_diffusion_unet(
    state_dict: Mapping[str, Any], config: Mapping[str, Any], *, compute_dtype: Any = jnp.float32
) -> UNet:
    """Our `UNet` with the weights of an official improved-diffusion `UNetModel`.

    ```python
    state_dict = {k: v.numpy() for k, v in torch.load("cifar10.pt", weights_only=True).items()}
    net = eqdiff.interop.improved_diffusion_unet(state_dict, config)
    ```

    **Arguments:**

    - `state_dict`: official names and arrays, as `UNetModel.state_dict()` has them (convolutions
        `(out, in, height, width)`); anything that NumPy turns into arrays.
    - `config`: the keyword arguments of the official `UNetModel`: `in_channels`, `model_channels`,
        `out_channels`, `num_res_blocks`, `attention_resolutions` (as factors of downsampling, as
        there), and where they differ from its defaults `dropout`, `channel_mult`, `conv_resample`, `dims`,
        `num_classes`, `use_checkpoint`, `num_heads`, `num_heads_upsample`, `use_scale_shift_norm`.
    - `compute_dtype`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.UNet`][] with float32 parameters.

    **Raises:** `ValueError` that lists every missing, unexpected and mis-shaped weight by name, or
    the keys of `config` that are missing or unknown.
    """
    arguments = read_config(config, ARGUMENTS, REQUIRED, "improved-diffusion's UNetModel")
    net = skeleton(lambda key: UNet(**arguments, compute_dtype=compute_dtype, key=key))
    return fill(net, unet_entries(net), state_dict)


def improved_diffusion_super_resolution(
    state_dict: Mapping[str, Any], config: Mapping[str, Any], *, compute_dtype: Any = jnp.float32
) -> SuperResolution:
    """An official improved-diffusion `SuperResModel`: our `UNet` that also sees a low-resolution image.

    Its weights are those of a `UNetModel` with twice the `in_channels`.

    **Arguments:**

    - `state_dict`, `compute_dtype`: as for [`eqdiff.interop.improved_diffusion_unet`][].
    - `config`: the keyword arguments of the official `SuperResModel`, as there; `in_channels` counts
        those of $x$ alone.

    **Returns:** an [`eqdiff.nn.SuperResolution`][], whose `args` is the low-resolution image, or the pair
    of it and a class. (The official keyword arguments are `low_res` and `y`.)

    **Raises:** as there.
    """
    doubled = {k: 2 * v if k == "in_channels" else v for k, v in config.items()}
    return SuperResolution(
        improved_diffusion_unet(state_dict, doubled, compute_dtype=compute_dtype)
    )


def improved_diffusion_state_dict(net: UNet | SuperResolution) -> dict[str, np.ndarray]:
    """The weights of a `UNet` under their official names: the inverse of `improved_diffusion_unet`.

    Also names gradients, or an EMA, where those have the structure of the network.

    **Arguments:**

    - `net`: an [`eqdiff.nn.UNet`][], or an [`eqdiff.nn.SuperResolution`][] of one.

    **Returns:** official names and arrays in the official layout, in the official order, for
    `UNetModel.load_state_dict({k: torch.from_numpy(v) for k, v in ...})`.
    """
    unet: Any = net.net if isinstance(net, SuperResolution) else net
    return official(unet, unet_entries(unet))
