"""Reading a denoiser, every part of it checked before it is used."""

import functools
import inspect
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._denoiser import Denoiser
from .._require import require
from ..nn._conv import filter_names
from .classes import FORMAT_VERSION, KINDS, leaves_of, PARTS, table
from .old import from_continuous_schedule, of_today
from .old_networks import old_names, OLD_NETWORKS


def load_model(path: str | os.PathLike, *, classes: Iterable[type] = ()) -> Denoiser:
    """Reads a denoiser written by [`eqdiff.save_model`][], without any other code or flag.

    **Arguments:**

    - `path`: the file.
    - `classes`: the classes of your own that were named when it was saved.

    **Raises:** `FileNotFoundError`; `ValueError` for a file that is truncated, damaged, of another
    format or of a newer version, that names an unknown class, or whose weights do not fit its
    architecture (listed by name); `ImportError` without safetensors.
    """
    path = Path(path)
    tensors, metadata = read_safetensors(path)
    model = _read_model(metadata, path)
    old = int(metadata["format_version"]) < 4
    known = table(classes) | (OLD_NETWORKS if old else {})
    reader = _Reader(known, tensors, path, old)
    try:
        net: Any = reader.network(model["net"], model["tables"])
        rest = {name: reader.part(name, model[name]) for name in PARTS[1:]}
    except KeyError as e:
        raise ValueError(f"{path} is damaged: its description lacks {e}.") from e
    except TypeError as e:
        raise ValueError(f"{path} is damaged: its description makes no model ({e}).") from e
    return Denoiser(
        net,
        rest["process"],
        rest["parameterisation"],
        variance=rest["variance"],
        c_noise=rest["c_noise"],
    )


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    **Raises:** `FileNotFoundError`; `ValueError` for a file that is truncated or of another format;
    `ImportError` without safetensors.
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
            f"{path} is a safetensors file, but not one written by eqdiff.save_model. For other "
            "projects' weights see eqdiff.interop."
        )
    said, writer = metadata.get("format_version", ""), metadata.get("eqdiff_version", "(unknown)")
    if not said.isdecimal() or int(said) < 1:
        raise ValueError(
            f"{path} is damaged: its format version is {said!r:.40}, expected a number."
        )
    if int(said) > FORMAT_VERSION:
        raise ValueError(
            f"{path} was written by eqdiff {writer} in format {said}; this "
            f"version reads up to {FORMAT_VERSION}. Upgrade with pip install -U eqdiff."
        )
    try:
        model = json.loads(metadata.get("model", ""))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} is damaged: its description is not valid JSON ({e}).") from e
    if not isinstance(model, dict) or not isinstance(model.get("tables"), list):
        raise ValueError(f"{path} is damaged: its description is not one of a model.")
    return of_today(model, path) if int(said) < 3 else model


class _Reader:
    """Builds objects from JSON and tensors."""

    def __init__(
        self, table: dict[str, Any], tensors: dict[str, np.ndarray], path: Path, old: bool
    ):
        self.table, self.tensors, self.path, self.old = table, tensors, path, old

    def part(self, name: str, value: Any) -> Any:
        part = self.object(value)
        if not isinstance(part, KINDS[name]) and not (name == "c_noise" and part is None):
            raise ValueError(f"{self.path} is damaged: its {name} is {value!s:.80}.")
        return part

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
                f"{self.path} describes a {cls.__name__} that this version of eqdiff does not "
                f"make: {e}."
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
            return from_continuous_schedule, {k: self.object(v) for k, v in arguments.items()}
        if name not in self.table:
            raise ValueError(
                f"{self.path} needs the class {name}, which this version of eqdiff does not know. "
                f"If it is your own, write load_model(path, classes=({name.rpartition('.')[2]},))."
            )
        return self.table[name], {k: self.object(v) for k, v in arguments.items()}

    def network(self, value: dict[str, Any], tables: list[str]) -> eqx.Module:
        net = self.object(value)
        if not isinstance(net, eqx.Module):
            raise ValueError(f"{self.path} is damaged: its network is {value!s:.80}.")
        weights = {k[4:]: v for k, v in self.tensors.items() if k.startswith("net/")}
        if self.old:
            new = {old: name for name, old in old_names(net).items()}
            weights = {new.get(k, k): v for k, v in weights.items()}
            # Filters were stored with their outputs last.
            weights |= {k: np.moveaxis(weights[k], -1, 0) for k in filter_names(net) & {*weights}}
            tables = [new.get(k, k) for k in tables]
        self._check(leaves_of(net), weights)

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
