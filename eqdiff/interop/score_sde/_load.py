r"""Files of score_sde, as denoisers.

What the configuration's words are called here:

- `training.sde`: `"vesde"` is [`eqdiff.VESDE`][] with the network as a score
  ([`eqdiff.PredictScore`][]); `"vpsde"` is [`eqdiff.VPSDE`][] and `"subvpsde"`
  [`eqdiff.SubVPSDE`][], whose networks predict noise ([`eqdiff.PredictNoise`][]);
- `training.continuous = False`: for VP a [`eqdiff.Schedule`][] of $N$ steps,
  $\beta_i = (\beta_{\min} + \frac{i}{N-1}(\beta_{\max} - \beta_{\min}))/N$, whose `c_noise`
  is $i$; for VE only that the network rounds $\log\sigma$ to its $N$ levels;
- `data.centered = False`: data in [0, 1], in whose units σ is.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..._denoiser import Denoiser
from ..._parameterisation import PredictNoise, PredictScore
from ..._process import AbstractProcess, Schedule, SubVPSDE, VESDE, VPSDE
from ..._shown import shown
from ..._variance import FixedLarge
from .._reading import number_of_steps, reading
from .._wrapped import state_inside, without_prefix
from ..files import Given, name_of, read_flax, read_torch, state_dict
from ._config import NCSNV2, network_fields
from ._network import average, is_tree, score_sde_network, STARTS
from ._presets import score_sde_preset, SCORE_SDE_PRESETS


_SDES = ("vesde", "vpsde", "subvpsde")


def _config(config: Mapping[str, Any] | str | None, weights: Given) -> Mapping[str, Any]:
    if config is None:
        source, name = name_of(weights), ""
        if not isinstance(weights, Mapping):
            # The published folders are called like the configurations.
            name = "/".join(Path(weights).absolute().parts[-3:-1])
        if name not in SCORE_SDE_PRESETS:
            raise ValueError(
                f"{source} does not say how it was trained, and is not in a folder called like a "
                f"published configuration ({', '.join(sorted(SCORE_SDE_PRESETS))}). Give one of "
                "these names, or the configuration itself: config=..."
            )
        config = name
    return score_sde_preset(config) if isinstance(config, str) else config


def _setting(config: Mapping[str, Any]) -> tuple[str, bool, Mapping[str, Any]]:
    try:
        training, model = config["training"], config["model"]
        sde, continuous = str(training["sde"]).lower(), training["continuous"]
    except KeyError as e:
        raise ValueError(
            "config is score_sde's, with training.sde, training.continuous and model; "
            f"{e} is missing."
        ) from e
    if sde not in _SDES:
        raise ValueError(f"config.training.sde is one of {_SDES}, got {shown(sde)}.")
    if not isinstance(continuous, bool):
        raise ValueError(f"config.training.continuous={shown(continuous)}: expected True or False.")
    names = ("sigma_min", "sigma_max") if sde == "vesde" else ("beta_min", "beta_max")
    missing = [n for n in names + (() if continuous else ("num_scales",)) if n not in model]
    if missing:
        raise ValueError(f"config.model lacks {', '.join(missing)}.")
    return sde, continuous, model


def _process(sde: str, continuous: bool, model: Mapping[str, Any]) -> AbstractProcess:
    if sde == "vesde":
        # A network of levels has the lowest, which is that of t = 0.
        ends: dict[str, Any] = {} if continuous else {"t0": 0.0}
        return VESDE(float(model["sigma_min"]), float(model["sigma_max"]), **ends)
    low, high = float(model["beta_min"]), float(model["beta_max"])
    if sde == "subvpsde":
        # It has no discrete version: the network's time input is 999 t whatever `continuous` says.
        return SubVPSDE(low, high)
    if continuous:
        return VPSDE(low, high)
    steps = number_of_steps(model["num_scales"], "config.model.num_scales")
    return Schedule(np.linspace(low / steps, high / steps, steps), c_noise=np.arange(steps))


def _check_time(sde: str, continuous: bool, model: Mapping[str, Any]) -> None:
    """Whether the network's time input is one that it has in the official code, and here.

    VE networks take σ, by Fourier features of its logarithm, where training was continuous, and the
    number of a level elsewhere; VP and sub-VP networks take a time, by sinusoids.
    """
    name, scaled = model.get("name"), model.get("scale_by_sigma", False)
    fourier = name == "ncsnpp" and str(model.get("embedding_type")).lower() == "fourier"
    told = "Fourier features" if fourier else "the number of a noise level"
    if sde != "vesde" and (fourier or name in NCSNV2):
        raise ValueError(
            f"config has sde={sde!r} and a network that takes {told}, which only VE networks do "
            "here. A VP network has model.embedding_type='positional'."
        )
    if sde == "vesde" and fourier != continuous:
        raise ValueError(
            f"config has sde='vesde', continuous={continuous} and a network that takes {told}; "
            "the official code tells networks Fourier features of log σ with continuous=True, and "
            "the number of a level with continuous=False."
        )
    if sde == "vesde" and not fourier and name not in NCSNV2 and not scaled:
        raise ValueError(
            "config has sde='vesde' and a network whose time input is the number of a noise level, "
            "but scale_by_sigma=False: no published configuration has that, and eqdiff's networks "
            "know their levels only with scale_by_sigma=True."
        )
    if sde != "vesde" and scaled:
        raise ValueError(
            f"config has sde={sde!r} and scale_by_sigma=True, which only VE networks have."
        )


def load_score_sde(
    weights: Given,
    config: Mapping[str, Any] | str | None = None,
    *,
    compute_dtype: Any = jnp.float32,
) -> Denoiser:
    """Makes the denoiser of a checkpoint and a configuration of score_sde (its `get_score_fn`).

    The weights are the moving average. Neither framework is needed, and nothing of a file is run.

    **Arguments:**

    - `weights`: the path of a `.pth` of the PyTorch code or of a `checkpoint_N` of the JAX code; or
        what such a file holds, in memory: a whole checkpoint, or weights alone, as
        [`eqdiff.interop.score_sde_network`][] takes them.
    - `config`: the official configuration, a `ConfigDict` or nested dictionaries, or the name of a
        published one, such as `"ve/cifar10_ncsnpp_continuous"`. Of it are used `training.sde`,
        `training.continuous`, `data` and `model`. By default it is the published configuration
        that the file's folder is called like: `ve/cifar10_ncsnpp_continuous/checkpoint_24.pth`.
    - `compute_dtype`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.Denoiser`][]; of data in [0, 1] where `config.data.centered` is false.

    **Raises:** `ValueError` for a configuration that lacks something or does not exist, and for
    weights that do not fit, by name; for a file, also those of
    [`eqdiff.interop.read_torch`][] and [`eqdiff.interop.read_flax`][], with `ImportError` for a JAX
    checkpoint without msgpack.

    **Example:**

    ```python
    path = "vp/cifar10_ddpmpp_continuous/checkpoint_26.pth"
    denoiser = eqd.interop.load_score_sde(path)
    mine = eqd.interop.load_score_sde("checkpoint_8.pth", "ve/cifar10_ncsnpp_continuous")
    ```
    """
    with reading(name_of(weights)):
        config = _config(config, weights)
        sde, continuous, model = _setting(config)
        network_fields(config)
        _check_time(sde, continuous, model)
        net = score_sde_network(_read(weights), config, compute_dtype=compute_dtype)
        parameterisation = PredictScore() if sde == "vesde" else PredictNoise()
        process = _process(sde, continuous, model)
        # The variance of its ancestral sampler is β.
        return Denoiser(net, process, parameterisation, variance=FixedLarge())


def _read(weights: Given) -> Mapping[str, Any]:
    """The average, of a file or in memory."""
    source = name_of(weights)
    if isinstance(weights, Mapping):
        return average(weights, source)
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}.")
    with open(path, "rb") as file:
        start = file.read(2)
    # Both of PyTorch's formats begin with one of these; msgpack's map of a training state does not.
    if start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04"):
        contents = state_inside(average(read_torch(path), source), source)
        return without_prefix(state_dict(contents, source), STARTS, source)
    contents = read_flax(path)
    tree = average(contents, source)
    if not is_tree(tree):
        kind = f"a {type(contents).__name__}"
        if isinstance(contents, Mapping):
            kind = shown(list(contents), 200)
        raise ValueError(
            f"{source} holds {kind}, expected 'params_ema' of a training state of score_sde, or "
            "parameters alone."
        )
    return tree
