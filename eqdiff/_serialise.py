r"""A file that explains itself.

One safetensors file holds a denoiser whole: the network's weights as tensors, and in its metadata, as JSON, the classes and
arguments from which network, process, parameterisation and variance are built again. Nothing in a file is executed: class
names are looked up in an explicit table, arguments are plain data, and tensors are numbers.

A class can be saved if each argument of its constructor (but `key`) is kept as an attribute of the same name; all of
eqdiff's are.

The format has a version, which a file names. Files are written in format 3; those of formats 1 and 2 are still
read, by the names and arguments that classes had then.

1. network, process, parameterisation and variance;
2. also the denoiser's own time input (its "label"), of a class that can be saved;
3. the names of today: `c_noise` for "label", one process for a chain and its continuous view.
"""

import functools
import inspect
import json
import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from . import nn
from ._denoiser import Denoiser
from ._parameterisation import (
    EDMPreconditioning,
    PredictData,
    PredictFlow,
    PredictNoise,
    PredictScore,
    PredictVelocity,
    PreviousMean,
)
from ._process import (
    CosineVPSDE,
    EDMSDE,
    KernelSDE,
    LogNoise,
    RectifiedFlow,
    ScaledTime,
    Schedule,
    SubVPSDE,
    VESDE,
    VPSDE,
)
from ._process.schedule import MAX_BETA
from ._require import require
from ._variance import AnalyticVariance, FixedLarge, FixedSmall, Learned, LearnedRange


_FORMAT_VERSION = 3

_NETWORKS = (
    *(nn.DDPM, nn.NCSNpp, nn.NCSNv2, nn.SongUNet, nn.DhariwalUNet, nn.DiT),
    *(nn.UNetClassifier, nn.AttentionPool, nn.AveragePool, nn.SpatialPool),
)

_CLASSES = {
    f"eqdiff.{cls.__name__}": cls
    for cls in (
        *(VPSDE, VESDE, SubVPSDE, CosineVPSDE, EDMSDE, RectifiedFlow),
        Schedule,
        *(
            PredictNoise,
            PredictData,
            PredictVelocity,
            PredictScore,
            PredictFlow,
            EDMPreconditioning,
            PreviousMean,
        ),
        *(FixedSmall, FixedLarge, Learned, LearnedRange, AnalyticVariance),
        *(ScaledTime, LogNoise),
    )
} | {f"eqdiff.nn.{cls.__name__}": cls for cls in (nn.UNet, nn.MLP, nn.SuperResolution, *_NETWORKS)}


_PARTS = ("net", "process", "parameterisation", "variance", "c_noise")

# What classes and their arguments were called in formats 1 and 2; an argument without a new name is gone.
_OLD_CLASSES = {
    "eqdiff.Noise": "eqdiff.PredictNoise",
    "eqdiff.Data": "eqdiff.PredictData",
    "eqdiff.Velocity": "eqdiff.PredictVelocity",
    "eqdiff.Score": "eqdiff.PredictScore",
    "eqdiff.Flow": "eqdiff.PredictFlow",
    "eqdiff.EDM": "eqdiff.EDMPreconditioning",
    "eqdiff.LogNoiseLevel": "eqdiff.LogNoise",
}
_OLD_ARGUMENTS = {
    "eqdiff.Schedule": {"labels": "c_noise"},
    "eqdiff.LogNoise": {"process": None},
}
# Arguments that are kept under another name, because a method has theirs.
_ATTRIBUTES = {(Schedule, "c_noise"): "c_noises"}


def _safetensors():
    return require("safetensors.numpy", "Saving and loading models", extra="checkpoint")


def _table(extra: Iterable[type]) -> dict[str, Any]:
    return _CLASSES | {f"{cls.__module__}.{cls.__qualname__}": cls for cls in extra}


class _Writer:
    """Turns objects into JSON, putting arrays aside as tensors."""

    def __init__(self, table: dict[str, type]):
        self.names = {cls: name for name, cls in table.items()}
        self.tensors: dict[str, np.ndarray] = {}

    def object(self, value: Any, path: str) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (tuple, list)):
            return {"tuple": [self.object(v, f"{path}.{i}") for i, v in enumerate(value)]}
        if isinstance(value, np.dtype):
            return {"dtype": value.name}
        if isinstance(value, (np.ndarray, jax.Array)):
            self.tensors[path] = np.asarray(value)
            # NumPy tables stay NumPy: JAX would round float64 to its own precision.
            return {"tensor" if isinstance(value, np.ndarray) else "array": path}
        if type(value) not in self.names:
            raise ValueError(
                f"save_model: {path} is a {type(value).__module__}.{type(value).__qualname__}, which the format does not "
                "know. For a class of your own write classes=(YourClass,), here and in load_model."
            )
        names = _arguments(type(value))
        kept = {name: _ATTRIBUTES.get((type(value), name), name) for name in names}
        missing = [name for name in names if not hasattr(value, kept[name])]
        if missing:
            raise ValueError(
                f"save_model: {path} is a {type(value).__qualname__}, whose constructor takes {', '.join(missing)}, but it "
                "has no attribute of that name. Keep each argument (but key) as an attribute: self.name = name."
            )
        arguments = {
            name: self.object(getattr(value, kept[name]), f"{path}.{name}") for name in names
        }
        return {"class": self.names[type(value)], "arguments": arguments}


def _arguments(cls: type) -> list[str]:
    return [name for name in inspect.signature(cls).parameters if name != "key"]


def _leaves(net: Any) -> dict[str, Any]:
    """Every array of a network under its path, such as `encoder.0.blocks.0.conv1.weight`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(net)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in leaves
        if isinstance(leaf, (jax.Array, np.ndarray, jax.ShapeDtypeStruct))
    }


def save_model(
    path: str | os.PathLike,
    denoiser: Denoiser,
    *,
    classes: Iterable[type] = (),
    overwrite: bool = False,
) -> None:
    """Writes a denoiser to one safetensors file: weights, architecture, process, parameterisation and variance.

    The file appears whole or not at all.

    **Arguments:**

    - `path`: the file.
    - `denoiser`: the denoiser, with concrete weights.
    - `classes`: classes of your own among its parts, such as a network, which keep each argument of their constructor
        as an attribute of the same name.
    - `overwrite`: whether an existing file may be replaced.

    **Raises:** `ValueError` for a part that the format does not know; `FileExistsError` if the file exists and
    `overwrite` is false; `ImportError` without safetensors.
    """
    safetensors = _safetensors()
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; write overwrite=True to replace it.")
    if not isinstance(denoiser, Denoiser):
        raise ValueError(
            f"save_model: expected an eqdiff.Denoiser, got a {type(denoiser).__name__}. Save the denoiser that it wraps, "
            "and wrap what load_model returns."
        )
    table = _table(classes)
    if denoiser.c_noise is not None and type(denoiser.c_noise) not in table.values():
        raise ValueError(
            "save_model: the denoiser's c_noise is a function, which cannot be saved. Write it as "
            "eqdiff.ScaledTime(...) or eqdiff.LogNoise(...), or as a class of your own named in classes=; or put "
            "the numbers into the process (Schedule(betas, c_noise=...))."
        )
    if isinstance(denoiser.process, KernelSDE):
        raise ValueError(
            "save_model: the process is a KernelSDE, which holds functions, and a file cannot. Write it as a "
            "subclass of eqdiff.AbstractProcess whose constructor takes numbers, and name that class in classes=."
        )
    writer = _Writer(table)
    model = {part: writer.object(getattr(denoiser, part), part) for part in _PARTS}
    leaves = _leaves(denoiser.net)
    weights = {f"net/{name}": np.asarray(leaf) for name, leaf in leaves.items()}
    # Tables that are NumPy's in a network stay so.
    model["tables"] = [name for name, leaf in leaves.items() if isinstance(leaf, np.ndarray)]
    metadata = {
        "format": "eqdiff",
        "format_version": str(_FORMAT_VERSION),
        "eqdiff_version": version("eqdiff"),
        "model": json.dumps(model),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # safetensors makes private files; a model is for whoever may read the folder.
        temporary.touch()
        mode = temporary.stat().st_mode
        safetensors.save_file(writer.tensors | weights, temporary, metadata)
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_model(path: str | os.PathLike, *, classes: Iterable[type] = ()) -> Denoiser:
    """Reads a denoiser written by [`eqdiff.save_model`][], without any other code or flag.

    **Arguments:**

    - `path`: the file.
    - `classes`: the classes of your own that were named when it was saved.

    **Raises:** `FileNotFoundError`; `ValueError` for a file that is truncated, of another format or a newer version, names
    an unknown class, or whose weights do not fit its architecture (listed by name); `ImportError` without safetensors.
    """
    path = Path(path)
    tensors, metadata = read_safetensors(path)
    model = _read_model(metadata, path)
    reader = _Reader(_table(classes), tensors, path)
    try:
        net: Any = reader.network(model["net"], model["tables"])
        rest = {name: reader.object(model[name]) for name in _PARTS[1:]}
    except KeyError as e:
        raise ValueError(f"{path} is damaged: its description lacks {e}.") from e
    return Denoiser(
        net,
        rest["process"],
        rest["parameterisation"],
        variance=rest["variance"],
        c_noise=rest["c_noise"],
    )


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    **Raises:** `FileNotFoundError`; `ValueError` for a file that is truncated or of another format; `ImportError` without
    safetensors.
    """
    safetensors = require("safetensors", "Saving and loading models", extra="checkpoint")
    if not path.is_file():
        raise FileNotFoundError(f"no model file at {path}.")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (safetensors.SafetensorError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is truncated or not a safetensors file ({e}).") from e


def _read_model(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    if metadata.get("format") != "eqdiff":
        raise ValueError(
            f"{path} is a safetensors file, but not one written by eqdiff.save_model. For other projects' weights see "
            "eqdiff.interop."
        )
    said, writer = metadata.get("format_version", ""), metadata.get("eqdiff_version", "(unknown)")
    if not said.isdecimal() or int(said) < 1:
        raise ValueError(
            f"{path} is damaged: its format version is {said!r:.40}, expected a number."
        )
    if int(said) > _FORMAT_VERSION:
        raise ValueError(
            f"{path} was written by eqdiff {writer} in format {said}; this "
            f"version reads up to {_FORMAT_VERSION}. Upgrade with pip install -U eqdiff."
        )
    try:
        model = json.loads(metadata.get("model", ""))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} is damaged: its description is not valid JSON ({e}).") from e
    if not isinstance(model, dict) or not isinstance(model.get("tables"), list):
        raise ValueError(f"{path} is damaged: its description is not one of a model.")
    return _of_today(model) if int(said) < 3 else model


def _of_today(model: dict[str, Any]) -> dict[str, Any]:
    """A description of format 1 or 2 in the names of format 3."""

    def translate(value: Any) -> Any:
        if isinstance(value, list):
            return [translate(v) for v in value]
        if not isinstance(value, dict):
            return value
        value = {k: translate(v) for k, v in value.items()}
        if not isinstance(value.get("class"), str) or not isinstance(value.get("arguments"), dict):
            return value
        name = _OLD_CLASSES.get(value["class"], value["class"])
        new = _OLD_ARGUMENTS.get(name, {})
        arguments = {new.get(k, k): v for k, v in value["arguments"].items()}
        arguments.pop(None, None)
        return {"class": name, "arguments": arguments}

    model = {part: translate(value) for part, value in model.items()}
    return model | {"c_noise": model.pop("label", None)}


def _from_continuous_schedule(log_snrs: Any, labels: Any, t1: float) -> Schedule:
    """What formats 1 and 2 called a ContinuousSchedule: its schedule, which is a process in continuous time."""
    alpha_bar = 1 / (1 + np.exp(-np.asarray(log_snrs, np.float64)))
    betas = 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])
    if t1 < betas.size - 1:
        # Clipped, which rounding must not hide.
        betas[-1] = max(betas[-1], MAX_BETA)
    return Schedule(betas, c_noise=labels)


class _Reader:
    """Builds objects from JSON and tensors."""

    def __init__(self, table: dict[str, type], tensors: dict[str, np.ndarray], path: Path):
        self.table, self.tensors, self.path = table, tensors, path

    def object(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "tuple" in value:
            return tuple(self.object(v) for v in value["tuple"])
        if "dtype" in value:
            return self._dtype(value["dtype"])
        if "tensor" in value:
            return self._tensor(value["tensor"])
        if "array" in value:
            return jnp.asarray(self._tensor(value["array"]))
        cls, arguments = self._call(value)
        try:
            if "key" not in inspect.signature(cls).parameters:
                return cls(**arguments)
            # The shape of the network without its weights: nothing is drawn or allocated.
            make = functools.partial(cls, **arguments)
            return eqx.filter_eval_shape(lambda key: make(key=key), jax.random.key(0))
        except (TypeError, AttributeError, OverflowError) as e:
            raise ValueError(
                f"{self.path} describes a {cls.__name__} that this version of eqdiff does not make: {e}."
            ) from e

    def _dtype(self, name: Any) -> Any:
        try:
            return jnp.dtype(name)
        except TypeError as e:
            raise ValueError(f"{self.path} is damaged: {e}.") from e

    def _tensor(self, name: Any) -> np.ndarray:
        if name not in self.tensors:
            raise ValueError(f"{self.path} is damaged: the tensor {name} is missing.")
        return self.tensors[name]

    def _call(self, value: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        name, arguments = value["class"], value["arguments"]
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise ValueError(f"{self.path} is damaged: it describes an object as {value!s:.80}.")
        if name == "eqdiff.ContinuousSchedule":
            return _from_continuous_schedule, {k: self.object(v) for k, v in arguments.items()}
        if name not in self.table:
            raise ValueError(
                f"{self.path} needs the class {name}, which this version of eqdiff does not know. If it is your own, "
                f"write load_model(path, classes=({name.rpartition('.')[2]},))."
            )
        return self.table[name], {k: self.object(v) for k, v in arguments.items()}

    def network(self, value: dict[str, Any], tables: list[str]) -> eqx.Module:
        net = self.object(value)
        weights = {k[4:]: v for k, v in self.tensors.items() if k.startswith("net/")}
        self._check(_leaves(net), weights)

        def fill(path, leaf):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            if name not in weights:
                return leaf
            return weights[name] if name in tables else jnp.asarray(weights[name])

        return jax.tree_util.tree_map_with_path(fill, net)

    def _check(self, expected: dict[str, Any], weights: dict[str, np.ndarray]) -> None:
        problems = [f"missing {name}" for name in expected if name not in weights]
        problems += [f"unexpected {name}" for name in weights if name not in expected]
        problems += [
            f"{name} has shape {weights[name].shape}, expected {leaf.shape}"
            for name, leaf in expected.items()
            if name in weights and weights[name].shape != leaf.shape
        ]
        problems += [
            f"{name} holds {weights[name].dtype}, expected {leaf.dtype}"
            for name, leaf in expected.items()
            if name in weights and not _same_kind(weights[name].dtype, leaf.dtype)
        ]
        if problems:
            shown = "; ".join(problems[:10]) + ("; …" if len(problems) > 10 else "")
            raise ValueError(f"{self.path}: the weights do not fit the architecture: {shown}.")


def _same_kind(given: Any, expected: Any) -> bool:
    # Weights may have been saved in another precision than that of a new network.
    floats = jnp.issubdtype(given, jnp.floating) and jnp.issubdtype(expected, jnp.floating)
    return floats or given == expected
