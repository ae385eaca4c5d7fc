r"""Files of score_sde, as denoisers.

What the configuration's words are called here:

- `training.sde`: `"vesde"` is [`eqdiff.VESDE`][] with the network as a score ([`eqdiff.PredictScore`][]), `"vpsde"` [`eqdiff.VPSDE`][] and
  `"subvpsde"` [`eqdiff.SubVPSDE`][], whose networks predict noise ([`eqdiff.PredictNoise`][]);
- `training.continuous = False`: for VP the chain of $N$ steps, $\beta_i = (\beta_{\min} + \frac{i}{N-1}(\beta_{\max} - \beta_{\min}))/N$,
  whose network is told $i$; for VE nothing but that the network rounds $\log\sigma$ to its $N$ levels;
- `data.centered = False`: data in [0, 1], in whose units σ is.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._denoiser import Denoiser
from .._parameterisation import PredictNoise, PredictScore
from .._process import AbstractProcess, SubVPSDE, VESDE, VPSDE
from .._schedule import Schedule
from .._variance import FixedLarge
from ._flax_file import read_flax
from ._score_sde import score_sde_ema, score_sde_network
from ._score_sde_flax import score_sde_flax_network
from ._score_sde_presets import score_sde_preset, SCORE_SDE_PRESETS
from ._torch_file import read_torch, state_dict as check_state_dict


_SDES = ("vesde", "vpsde", "subvpsde")


def _config(config: Mapping[str, Any] | str | None, source: str) -> Mapping[str, Any]:
    if config is None:
        # The published folders are called like the configurations.
        config = "/".join(Path(source).absolute().parts[-3:-1])
        if config not in SCORE_SDE_PRESETS:
            raise ValueError(
                f"{source} does not say how it was trained, and its folder is not called like a published configuration "
                f"({', '.join(sorted(SCORE_SDE_PRESETS))}). Give one of these names, or the configuration itself: config=..."
            )
    return score_sde_preset(config) if isinstance(config, str) else config


def _setting(config: Mapping[str, Any]) -> tuple[str, bool, Mapping[str, Any]]:
    try:
        training, model = config["training"], config["model"]
        sde, continuous = training["sde"].lower(), bool(training["continuous"])
    except KeyError as e:
        raise ValueError(
            f"config is score_sde's, with training.sde, training.continuous and model; {e} is missing."
        ) from e
    if sde not in _SDES:
        raise ValueError(f"config.training.sde is one of {_SDES}, got {sde!r}.")
    names = ("sigma_min", "sigma_max") if sde == "vesde" else ("beta_min", "beta_max")
    missing = [n for n in names + (() if continuous else ("num_scales",)) if n not in model]
    if missing:
        raise ValueError(f"config.model lacks {', '.join(missing)}.")
    return sde, continuous, model


def _process(sde: str, continuous: bool, model: Mapping[str, Any]) -> AbstractProcess:
    if sde == "vesde":
        return VESDE(float(model["sigma_min"]), float(model["sigma_max"]))
    low, high = float(model["beta_min"]), float(model["beta_max"])
    if sde == "subvpsde":
        # It has no chain: the official code tells its network 999 t whatever `continuous` says.
        return SubVPSDE(low, high)
    if continuous:
        return VPSDE(low, high)
    steps = model["num_scales"]
    return Schedule(np.linspace(low / steps, high / steps, steps), labels=np.arange(steps))


def _check_label(sde: str, continuous: bool, config: Mapping[str, Any]) -> None:
    model = config["model"]
    levels = model.get("name") == "ddpm" or model.get("embedding_type") == "positional"
    if sde == "vesde" and levels and not model.get("scale_by_sigma", False):
        raise ValueError(
            "config has sde='vesde' and a network that is told the number of a noise level, but scale_by_sigma=False: no "
            "published configuration has, and eqdiff's networks know their levels only with it."
        )
    if sde != "vesde" and model.get("scale_by_sigma", False):
        raise ValueError(
            f"config has sde={sde!r} and scale_by_sigma=True, which only VE networks have."
        )


def _denoiser(weights, config, network, compute_dtype) -> Denoiser:
    sde, continuous, model = _setting(config)
    _check_label(sde, continuous, config)
    net = network(weights, config, compute_dtype=compute_dtype)
    parameterisation = PredictScore() if sde == "vesde" else PredictNoise()
    process = _process(sde, continuous, model)
    # Its ancestral sampler of the chain has the variance β.
    return Denoiser(net, process, parameterisation, variance=FixedLarge())


def score_sde_denoiser(
    weights: Mapping[str, Any],
    config: Mapping[str, Any] | str,
    *,
    compute_dtype: Any = jnp.float32,
) -> Denoiser:
    """The denoiser that score_sde makes of weights and a configuration (`get_score_fn` there).

    **Arguments:**

    - `weights`: a state dict of score_sde_pytorch ([`eqdiff.interop.score_sde_ema`][] makes that of the average), or the nested
        dictionary of parameters of the JAX code, which has other names.
    - `config`: the official configuration, a `ConfigDict` or nested dictionaries, or the name of a published one, such as
        `"ve/cifar10_ncsnpp_continuous"`. Of it are used `training.sde`, `training.continuous`, `data` and `model`.
    - `compute_dtype`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.Denoiser`][]; of data in [0, 1] where `config.data.centered` is false.

    **Raises:** `ValueError` for a configuration that lacks something or does not exist, and for weights that do not fit, all listed
        by name.
    """
    # The names of PyTorch's are flat.
    nested = any(isinstance(value, Mapping) for value in weights.values())
    network = score_sde_flax_network if nested else score_sde_network
    return _denoiser(weights, _config(config, ""), network, compute_dtype)


def load_score_sde(
    path: str | os.PathLike,
    config: Mapping[str, Any] | str | None = None,
    *,
    compute_dtype: Any = jnp.float32,
) -> Denoiser:
    """Reads a checkpoint of score_sde: a `.pth` of the PyTorch code, or a `checkpoint_N` of the JAX code. The weights are the moving
    average. Neither framework is needed, and nothing of the file is run.

    ```python
    denoiser = eqdiff.interop.load_score_sde("vp/cifar10_ddpmpp_continuous/checkpoint_26.pth")
    mine = eqdiff.interop.load_score_sde("checkpoint_8.pth", "ve/cifar10_ncsnpp_continuous")
    ```

    **Arguments:**

    - `path`: the file.
    - `config`: as for [`eqdiff.interop.score_sde_denoiser`][]; by default the published configuration that the file's folder is
        called like, `ve/cifar10_ncsnpp_continuous/checkpoint_24.pth`.
    - `compute_dtype`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.Denoiser`][], as there.

    **Raises:** `FileNotFoundError`; `ValueError` as there, as [`eqdiff.interop.read_torch`][] and as
        [`eqdiff.interop.read_flax`][]; `ImportError` for a JAX checkpoint without msgpack.
    """
    source = str(path)
    config = _config(config, source)
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file at {path}.")
    with open(path, "rb") as file:
        start = file.read(2)
    # Both of PyTorch's formats begin with these; msgpack's map of a training state does with neither.
    if start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04"):
        weights = _torch_average(read_torch(path), source)
        return _denoiser(weights, config, score_sde_network, compute_dtype)
    return _denoiser(
        _flax_average(read_flax(path), source), config, score_sde_flax_network, compute_dtype
    )


def _torch_average(file: Any, source: str) -> dict[str, Any]:
    if isinstance(file, dict) and "model" in file and "ema" in file:
        shadow = file["ema"].get("shadow_params") if isinstance(file["ema"], dict) else None
        if not isinstance(shadow, list):
            raise ValueError(
                f"{source} has an 'ema' without 'shadow_params', expected a list of tensors."
            )
        return score_sde_ema(check_state_dict(file["model"], source), shadow)
    # Also the weights alone.
    return check_state_dict(file, source)


def _flax_average(file: Any, source: str) -> dict[str, Any]:
    if not isinstance(file, dict):
        raise ValueError(
            f"{source} holds a {type(file).__name__}, expected a training state of score_sde."
        )
    average = file.get("params_ema", file)
    if not isinstance(average, dict) or not any(isinstance(v, dict) for v in average.values()):
        raise ValueError(
            f"{source} holds {sorted(map(str, file))[:8]}, expected 'params_ema' of a training state, or parameters alone."
        )
    return average
