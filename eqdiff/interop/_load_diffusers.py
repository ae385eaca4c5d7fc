r"""Folders of diffusers, as denoisers.

A folder holds the network, `config.json` beside `diffusion_pytorch_model.safetensors` (or `.bin`), and the diffusion,
`scheduler_config.json`, beside it or in a folder `scheduler`. What the scheduler's words are called here:

- `beta_schedule` and its ends, or `trained_betas`: a [`eqdiff.Schedule`][] of these rates, in float64 (diffusers' are float32), whose
  labels are the steps $0, \dots, T-1$;
- `prediction_type`: `epsilon`, `sample` and `v_prediction` are [`eqdiff.PredictNoise`][], [`eqdiff.PredictData`][] and [`eqdiff.PredictVelocity`][];
- `variance_type`: [`eqdiff.FixedSmall`][], [`eqdiff.FixedLarge`][] or [`eqdiff.LearnedRange`][].

What concerns sampling (`clip_sample`, `timestep_spacing`, `steps_offset`, …) is chosen where one samples.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._denoiser import Denoiser
from .._parameterisation import AbstractParameterisation, PredictData, PredictNoise, PredictVelocity
from .._schedule import cosine_schedule, Schedule
from .._serialise import read_safetensors
from .._variance import AbstractVariance, FixedLarge, FixedSmall, LearnedRange
from ._diffusers import diffusers_network
from ._torch_file import read_torch, state_dict as check_state_dict


_PARAMETERISATIONS: dict[str, AbstractParameterisation] = {
    "epsilon": PredictNoise(),
    "sample": PredictData(),
    "v_prediction": PredictVelocity(),
}
_VARIANCES: dict[str, AbstractVariance] = {
    "fixed_small": FixedSmall(),
    "fixed_small_log": FixedSmall(),
    "fixed_large": FixedLarge(),
    "fixed_large_log": FixedLarge(),
    "learned_range": LearnedRange(),
}


def _one_of(config: Mapping[str, Any], name: str, default: str, table: Mapping[str, Any]) -> Any:
    value = config.get(name, default)
    if value not in table:
        raise ValueError(f"the scheduler has {name}={value!r}, expected one of {sorted(table)}.")
    return table[value]


def _betas(config: Mapping[str, Any]) -> np.ndarray:
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], np.float64)
    steps = config.get("num_train_timesteps", 1000)
    low, high = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    ramp = np.linspace(0, 1, steps)
    kinds = {
        "linear": lambda: low + (high - low) * ramp,
        "scaled_linear": lambda: (low**0.5 + (high**0.5 - low**0.5) * ramp) ** 2,
        "squaredcos_cap_v2": lambda: cosine_schedule(steps).betas,
        "sigmoid": lambda: low + (high - low) / (1 + np.exp(-(12 * ramp - 6))),
    }
    return _one_of(config, "beta_schedule", "linear", kinds)()


def _schedule(config: Mapping[str, Any]) -> Schedule:
    name = config.get("_class_name", "DDPMScheduler")
    if not {"beta_schedule", "trained_betas", "beta_start"} & set(config):
        raise ValueError(
            f"the scheduler is a {name}, which has no rates β: expected one of a discrete chain, such as DDPMScheduler."
        )
    if config.get("rescale_betas_zero_snr", False):
        raise ValueError(
            "the scheduler has rescale_betas_zero_snr=True, a chain that ends without any signal; eqdiff's rates lie in (0, 1)."
        )
    betas = _betas(config)
    return Schedule(betas, labels=np.arange(betas.size))


def diffusers_denoiser(
    state_dict: Mapping[str, Any],
    config: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    *,
    compute_dtype: Any = jnp.float32,
) -> Denoiser:
    """The denoiser that a `UNet2DModel` and a scheduler of diffusers are.

    **Arguments:**

    - `state_dict`: official names and arrays.
    - `config`: the contents of `config.json`.
    - `scheduler`: the contents of `scheduler_config.json`: of a `DDPMScheduler`, or of another with rates β.
    - `compute_dtype`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.Denoiser`][] on a chain; data in [−1, 1].

    **Raises:** `ValueError` that names every option which eqdiff has not, or lists every missing, unexpected and mis-shaped weight.
    """
    schedule = _schedule(scheduler)
    parameterisation = _one_of(scheduler, "prediction_type", "epsilon", _PARAMETERISATIONS)
    variance = _one_of(scheduler, "variance_type", "fixed_small", _VARIANCES)
    net = diffusers_network(state_dict, config, compute_dtype=compute_dtype)
    factor = 2 if variance.learned else 1
    if net.out_channels != factor * net.in_channels:
        raise ValueError(
            f"the network returns {net.out_channels} channels for {net.in_channels}, expected {factor * net.in_channels} with the "
            f"scheduler's variance_type={scheduler.get('variance_type', 'fixed_small')!r}."
        )
    return Denoiser(net, schedule, parameterisation, variance=variance)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"{path} is damaged: it is no JSON ({e}).") from e
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: expected a dictionary.")
    return value


def _weights(folder: Path) -> dict[str, Any]:
    name = "diffusion_pytorch_model"
    for path in (folder / f"{name}.safetensors", folder / f"{name}.bin"):
        if path.is_file() and path.suffix == ".bin":
            return check_state_dict(read_torch(path), str(path))
        if path.is_file():
            return read_safetensors(path)[0]
    raise FileNotFoundError(f"no {name}.safetensors or {name}.bin in {folder}.")


def load_diffusers(folder: str | os.PathLike, *, compute_dtype: Any = jnp.float32) -> Denoiser:
    """Reads a folder of diffusers with a `UNet2DModel`, such as a copy of `google/ddpm-cifar10-32`. Neither diffusers nor PyTorch is
    needed.

    ```python
    denoiser = eqdiff.interop.load_diffusers("ddpm-cifar10-32")
    ```

    **Arguments:**

    - `folder`: one with `config.json` and the weights, as `model.save_pretrained` writes it, and the scheduler's
        `scheduler_config.json` in it, in `scheduler/` in it, or in `scheduler/` beside it; or a pipeline's, with `unet/` and `scheduler/`.
    - `compute_dtype`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.Denoiser`][] as of [`eqdiff.interop.diffusers_denoiser`][].

    **Raises:** `FileNotFoundError` for a missing file; `ValueError` for a damaged one, and as `diffusers_denoiser`; `ImportError` for
    safetensors without the package.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file() and (folder / "unet" / "config.json").is_file():
        folder = folder / "unet"
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no config.json in {folder}, nor in a folder 'unet' of it.")
    name = "scheduler_config.json"
    places = (folder / name, folder / "scheduler" / name, folder.parent / "scheduler" / name)
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"no {name} at {', '.join(map(str, places))}: without the scheduler's configuration nobody knows what the network was "
            "trained on. Write diffusers_denoiser(weights, config, scheduler) if you do."
        )
    config = _json(folder / "config.json")
    return diffusers_denoiser(_weights(folder), config, _json(found), compute_dtype=compute_dtype)
