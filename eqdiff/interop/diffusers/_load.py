r"""Folders of diffusers, as denoisers.

A folder holds the network, `config.json` and `diffusion_pytorch_model.safetensors` (or `.bin`), and
the diffusion, `scheduler_config.json`, next to them or in a folder `scheduler`. What concerns
sampling (`clip_sample`, `timestep_spacing`, `steps_offset`, …) is not part of a denoiser:
[`eqdiff.interop.load_diffusers_pipeline`][] returns it as a sampler, and otherwise you choose it
where you sample.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from ..._denoiser import Denoiser
from ..._shown import shown
from .._reading import reading
from ..files import Given, name_of
from . import _folder
from ._network import diffusers_network
from ._scheduler import meaning


def load_diffusers(
    weights: Given,
    config: Mapping[str, Any] | None = None,
    scheduler: Mapping[str, Any] | None = None,
    *,
    variant: str | None = None,
    compute_dtype: Any = jnp.float32,
) -> Denoiser:
    """Makes a denoiser of a `UNet2DModel` and a scheduler of diffusers.

    Of a folder such as a copy of `google/ddpm-cifar10-32`; neither diffusers nor PyTorch is needed.

    **Arguments:**

    - `weights`: the path of a folder with `config.json` and the weights, in one file or several,
        as `model.save_pretrained` writes it, such as `unet` or `unet_ema` of a checkpoint; the
        scheduler's `scheduler_config.json` is in it, or in `scheduler/` in it or in one of the two
        folders above. Or the path of a pipeline's folder, with `unet/` and `scheduler/`. Or a state
        dict in memory, official names and arrays.
    - `config`: the contents of `config.json`; by default those in the folder.
    - `scheduler`: the contents of `scheduler_config.json`, of a `DDPMScheduler` or of another with
        rates β; by default those in the folder.
    - `variant`: of the files of weights, such as `"fp16"` for
        `diffusion_pytorch_model.fp16.safetensors`; by default the file without one, or the only
        one there is.
    - `compute_dtype`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.Denoiser`][] on a schedule; data in [−1, 1].

    **Warns:** of options of the network or the scheduler that are not known here, but null.

    **Raises:** `FileNotFoundError` for a missing file; `ValueError` for a damaged one, for options
    that eqdiff does not have, by name, and for weights that do not fit; `ImportError`
    for safetensors without the package.

    **Example:**

    ```python
    denoiser = eqd.interop.load_diffusers("ddpm-cifar10-32")  # a copy of google/ddpm-cifar10-32
    ```
    """
    source = name_of(weights)
    with reading(source):
        if isinstance(weights, Mapping):
            if config is None or scheduler is None:
                raise ValueError(
                    f"{source} says neither how its network was made nor on what it was trained. "
                    "Give the contents of both files: load_diffusers(weights, config, scheduler)."
                )
            return _denoiser(weights, config, scheduler, compute_dtype)
        folder = _folder.network_folder(Path(weights).expanduser())
        config = _folder.network_config(folder) if config is None else config
        scheduler = _folder.scheduler_config(folder) if scheduler is None else scheduler
        return _denoiser(_folder.weights(folder, variant), config, scheduler, compute_dtype)


def _denoiser(
    weights: Mapping[str, Any],
    config: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    compute_dtype: Any,
) -> Denoiser:
    schedule, parameterisation, variance = meaning(scheduler)
    net = diffusers_network(weights, config, compute_dtype=compute_dtype)
    given, found = config.get("in_channels", 3), config.get("out_channels", 3)
    expected = (2 if variance.learned else 1) * given
    if found != expected:
        raise ValueError(
            f"the network returns {shown(found)} channels for {shown(given)}, expected "
            f"{expected} with the scheduler's "
            f"variance_type={scheduler.get('variance_type', 'fixed_small')!r}."
        )
    return Denoiser(net, schedule, parameterisation, variance=variance)
