r"""Folders of diffusers, as denoisers.

A folder holds the network, `config.json` and `diffusion_pytorch_model.safetensors` (or `.bin`), and
the diffusion, `scheduler_config.json`, next to them or in a folder `scheduler`. What the
scheduler's words are called here:

- `beta_schedule` and its ends, or `trained_betas`: a [`eqdiff.Schedule`][] of these rates, in
  float64 (diffusers' are float32), whose `c_noise` are the steps $0, \dots, T-1$; with
  `rescale_betas_zero_snr` its [`eqdiff.zero_terminal_snr`][];
- `prediction_type`: `epsilon`, `sample` and `v_prediction` are [`eqdiff.PredictNoise`][],
  [`eqdiff.PredictData`][] and [`eqdiff.PredictVelocity`][];
- `variance_type`: [`eqdiff.FixedSmall`][], [`eqdiff.FixedLarge`][] or [`eqdiff.LearnedRange`][].

What concerns sampling (`clip_sample`, `timestep_spacing`, `steps_offset`, …) is chosen where you
sample.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..._denoiser import Denoiser
from ..._parameterisation import (
    AbstractParameterisation,
    PredictData,
    PredictNoise,
    PredictVelocity,
)
from ..._process import cosine_schedule, Schedule, zero_terminal_snr
from ..._serialise import read_safetensors
from ..._shown import reason, shown
from ..._variance import AbstractVariance, FixedLarge, FixedSmall, LearnedRange
from .._reading import number_of_steps, reading
from ..files import Given, name_of, read_torch, state_dict
from ._network import diffusers_network


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
    if not isinstance(value, str) or value not in table:
        raise ValueError(
            f"the scheduler has {name}={shown(value)}, expected one of {sorted(table)}."
        )
    return table[value]


def _betas(config: Mapping[str, Any]) -> np.ndarray:
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], np.float64)
    steps = number_of_steps(config.get("num_train_timesteps", 1000), "num_train_timesteps")
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
    name = shown(config.get("_class_name", "DDPMScheduler")).strip("'")
    if not {"beta_schedule", "trained_betas", "beta_start"} & set(config):
        raise ValueError(
            f"the scheduler is a {name}, which has no rates β: expected one of a discrete "
            "schedule, such as DDPMScheduler."
        )
    betas = _betas(config)
    schedule = Schedule(betas, c_noise=np.arange(betas.size))
    return zero_terminal_snr(schedule) if config.get("rescale_betas_zero_snr") else schedule


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} is damaged: it is not JSON ({reason(e)}).") from e
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: expected a dictionary.")
    return value


def _weights(folder: Path) -> dict[str, Any]:
    name = "diffusion_pytorch_model"
    for path in (folder / f"{name}.safetensors", folder / f"{name}.bin"):
        if path.is_file() and path.suffix == ".bin":
            return state_dict(read_torch(path), str(path))
        if path.is_file():
            return read_safetensors(path)[0]
    raise FileNotFoundError(f"no {name}.safetensors or {name}.bin in {folder}.")


def _network_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no config.json in {folder}, nor in a folder 'unet' in it.")
    return _json(path)


def _scheduler_config(folder: Path) -> dict[str, Any]:
    name = "scheduler_config.json"
    places = [p / name for p in (folder, folder / "scheduler", folder.parent / "scheduler")]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"no {name} at {', '.join(map(str, places))}: without the scheduler's configuration "
            "nothing says what the network was trained on. If you know it, give it: "
            "load_diffusers(folder, scheduler={...})."
        )
    return _json(found)


def load_diffusers(
    weights: Given,
    config: Mapping[str, Any] | None = None,
    scheduler: Mapping[str, Any] | None = None,
    *,
    compute_dtype: Any = jnp.float32,
) -> Denoiser:
    """The denoiser that a `UNet2DModel` and a scheduler of diffusers are.

    Of a folder such as a copy of `google/ddpm-cifar10-32`; neither diffusers nor PyTorch is needed.

    ```python
    denoiser = eqd.interop.load_diffusers("ddpm-cifar10-32")
    ```

    **Arguments:**

    - `weights`: the path of a folder with `config.json` and the weights, as `model.save_pretrained`
        writes it, and the scheduler's `scheduler_config.json` in it, in `scheduler/` in it, or in
        `scheduler/` next to it; or of a pipeline's, with `unet/` and `scheduler/`. Or a state dict
        in memory, official names and arrays.
    - `config`: the contents of `config.json`; by default those in the folder.
    - `scheduler`: the contents of `scheduler_config.json`, of a `DDPMScheduler` or of another with
        rates β; by default those in the folder.
    - `compute_dtype`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.Denoiser`][] on a schedule; data in [−1, 1].

    **Raises:** `FileNotFoundError` for a missing file; `ValueError` for a damaged one, for options
    that eqdiff does not have, by name, and for weights that do not fit; `ImportError`
    for safetensors without the package.
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
        folder = Path(weights)
        if not (folder / "config.json").is_file() and (folder / "unet").is_dir():
            folder = folder / "unet"
        config = _network_config(folder) if config is None else config
        scheduler = _scheduler_config(folder) if scheduler is None else scheduler
        return _denoiser(_weights(folder), config, scheduler, compute_dtype)


def _denoiser(
    weights: Mapping[str, Any],
    config: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    compute_dtype: Any,
) -> Denoiser:
    schedule = _schedule(scheduler)
    parameterisation = _one_of(scheduler, "prediction_type", "epsilon", _PARAMETERISATIONS)
    variance = _one_of(scheduler, "variance_type", "fixed_small", _VARIANCES)
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
