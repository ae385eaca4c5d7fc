"""Reading a denoiser, every part of it checked before it is used."""

import functools
import inspect
import json
import os
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._denoiser import Denoiser
from .._require import require
from .._shown import reason, shortened, shown
from ..nn._conv import filter_names
from .checksum import changed, crc_of_text
from .classes import FORMAT_VERSION, KINDS, leaves_of, PARTS, table
from .old import from_continuous_schedule, of_today
from .old_networks import old_names, OLD_NETWORKS
from .schema import check_arguments, Room


# Objects inside objects, of which no network has more than a few.
_DEEPEST = 32
# Letters of a message, next to the name of the file.
_LONGEST = 800


def load_model(path: str | os.PathLike, *, classes: Iterable[type] = ()) -> Denoiser:
    """Reads a denoiser written by [`eqdiff.save_model`][], without any other code or options.

    **Arguments:**

    - `path`: the file; `~` stands for your home folder.
    - `classes`: your own classes among its parts, the same as for [`eqdiff.save_model`][].

    **Raises:** `FileNotFoundError`; `ValueError` for a file that is truncated, damaged (its
    checksums are verified), of another format or of a newer version, that names an unknown class,
    or whose weights do not fit its architecture, by name; `ImportError` without safetensors.

    **Example:**

    ```python
    net = eqd.nn.MLP(2, 2, key=jax.random.key(0))
    eqd.save_model("mine.safetensors", eqd.Denoiser(net, eqd.VPSDE()))
    denoiser = eqd.load_model("mine.safetensors")
    ```
    """
    path = Path(path).expanduser()
    tensors, metadata = read_safetensors(path)
    model = _read_model(metadata, path)
    _check_sums(model, metadata, tensors, path)
    old = int(metadata["format_version"]) < 4
    known = table(classes) | (OLD_NETWORKS if old else {})
    reader = _Reader(known, set(table(())) | set(OLD_NETWORKS), tensors, path, old)
    try:
        net: Any = reader.network(model["net"], model["tables"])
        rest = {name: reader.part(name, model[name]) for name in PARTS[1:]}
    except KeyError as e:
        raise damaged(path, f"its description lacks {reason(e)}") from e
    try:
        return Denoiser(
            net,
            rest["process"],
            rest["parameterisation"],
            variance=rest["variance"],
            c_noise=rest["c_noise"],
        )
    except (TypeError, ValueError) as e:
        raise damaged(path, f"its parts do not make a denoiser ({reason(e)})") from e


def damaged(path: Path, text: str) -> ValueError:
    """The error of a file that is not as it was written."""
    return ValueError(f"{path} is damaged: {shortened(text, _LONGEST)}.")


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
    except OSError:
        raise
    except Exception as e:
        # The library's own error for its header; NumPy's for a type or a shape that it does not
        # have, of several classes.
        raise ValueError(f"{path} is truncated or not a safetensors file ({reason(e)}).") from e


def _read_model(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    if metadata.get("format") != "eqdiff":
        raise ValueError(
            f"{path} is a safetensors file, but not one written by eqdiff.save_model. For other "
            "projects' weights see eqdiff.interop."
        )
    said, writer = metadata.get("format_version", ""), metadata.get("eqdiff_version", "(unknown)")
    if not (said.isascii() and said.isdecimal()) or len(said) > 9 or int(said) < 1:
        raise damaged(path, f"its format version is {shown(said)}, expected a number")
    if int(said) > FORMAT_VERSION:
        raise ValueError(
            f"{path} was written by eqdiff {shortened(writer, 40)} in format {said}; this "
            f"version reads up to {FORMAT_VERSION}. Upgrade with pip install -U eqdiff."
        )
    text = metadata.get("model", "")
    if metadata.get("crc32", crc := crc_of_text(said, text)) != crc:
        raise damaged(path, "its description is not the one that was saved (CRC-32)")
    try:
        model = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise damaged(path, f"its description is not valid JSON ({reason(e)})") from e
    if not isinstance(model, dict) or not isinstance(model.get("tables"), list):
        raise damaged(path, "its description is not one of a model")
    try:
        return of_today(model, path) if int(said) < 3 else model
    except (RecursionError, TypeError, AttributeError) as e:
        raise damaged(path, f"its description is not one of a model ({reason(e)})") from e


def _check_sums(
    model: dict[str, Any], metadata: dict[str, str], tensors: dict[str, np.ndarray], path: Path
) -> None:
    checksums = model.get("checksums")
    if checksums is None and "crc32" not in metadata:
        return  # written before there were any
    if not isinstance(checksums, dict) or "crc32" not in metadata:
        raise damaged(path, "it has lost a part of its checksums")
    names = changed(checksums, tensors)
    if names:
        raise damaged(
            path,
            f"the numbers of {len(names)} of its {len(tensors)} tensors are not those that were "
            f"saved (CRC-32), {shown(names, 200)}; take a copy of the file, or save it again",
        )


class _Reader:
    """Builds objects from JSON and tensors."""

    def __init__(
        self,
        table: dict[str, Any],
        ours: Container[str],
        tensors: dict[str, np.ndarray],
        path: Path,
        old: bool,
    ):
        self.table, self.ours, self.tensors, self.path, self.old = table, ours, tensors, path, old
        self.room = Room.of(tensors)
        # How many arrays the networks described so far have.
        self.built = 0

    def part(self, name: str, value: Any) -> Any:
        part = self.object(value)
        if not isinstance(part, KINDS[name]) and not (name == "c_noise" and part is None):
            raise damaged(self.path, f"its {name} is {shown(value)}")
        return part

    def object(self, value: Any, depth: int = 0) -> Any:
        if not isinstance(value, dict):
            return value
        if depth > _DEEPEST:
            raise damaged(self.path, f"its description is deeper than {_DEEPEST} levels")
        if "tuple" in value:
            parts = value["tuple"]
            if not isinstance(parts, list):
                raise damaged(self.path, f"it describes a tuple as {shown(parts)}")
            return tuple(self.object(v, depth + 1) for v in parts)
        if "dict" in value:
            parts = value["dict"]
            if not isinstance(parts, dict):
                raise damaged(self.path, f"it describes a dictionary as {shown(parts)}")
            return {name: self.object(v, depth + 1) for name, v in parts.items()}
        if "dtype" in value:
            return self._dtype(value["dtype"])
        if "tensor" in value:
            return self._tensor(value["tensor"])
        if "array" in value:
            return jnp.asarray(self._tensor(value["array"]))
        name, make, arguments = self._call(value, depth)
        try:
            if name in self.ours:
                check_arguments(make, arguments, self.room)
            if "key" not in inspect.signature(make).parameters:
                return make(**arguments)
            return self._skeleton(functools.partial(make, **arguments))
        except Exception as e:
            # Whatever a constructor makes of arguments that nobody else would give it.
            raise ValueError(
                f"{self.path} describes a {shortened(name.rpartition('.')[2], 80)} that this "
                f"version of eqdiff does not make: {reason(e, 600)}."
            ) from e

    def _skeleton(self, make: Callable[..., Any]) -> Any:
        # The shape of the network without its weights: nothing is drawn or allocated.
        net = eqx.filter_eval_shape(lambda key: make(key=key), jax.random.key(0))
        # Networks inside others are few; a file with more of them than weights wastes our time.
        self.built += len(jax.tree.leaves(net))
        if self.built > 2 * self.room.tensors + 100:
            raise ValueError(f"{self.built} arrays, but the file holds {self.room.tensors}")
        return net

    def _dtype(self, name: Any) -> Any:
        try:
            dtype = jnp.dtype(name if isinstance(name, str) and name.isidentifier() else None)
        except TypeError as e:
            raise damaged(self.path, reason(e)) from e
        if not isinstance(name, str) or dtype.name != name:
            raise damaged(self.path, f"it has the dtype {shown(name)}")
        return dtype

    def _tensor(self, name: Any) -> np.ndarray:
        if not isinstance(name, str) or name not in self.tensors:
            raise damaged(self.path, f"the tensor {_plain(name)} is missing")
        return self.tensors[name]

    def _call(self, value: Any, depth: int) -> tuple[str, Any, dict[str, Any]]:
        name, arguments = value["class"], value["arguments"]
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise damaged(self.path, f"it describes an object as {shown(value)}")
        old_schedule = name == "eqdiff.ContinuousSchedule"
        if not old_schedule and name not in self.table:
            own = shortened(name.rpartition(".")[2], 80)
            raise ValueError(
                f"{self.path} needs the class {shortened(name, 80)}, which this version of eqdiff "
                f"does not know. If it is your own, write load_model(path, classes=({own},))."
            )
        make = from_continuous_schedule if old_schedule else self.table[name]
        return name, make, {k: self.object(v, depth + 1) for k, v in arguments.items()}

    def network(self, value: Any, tables: list[Any]) -> eqx.Module:
        net = self.object(value)
        if not isinstance(net, eqx.Module) or not callable(net):
            raise damaged(self.path, f"its network is {shown(value)}")
        weights = {k[4:]: v for k, v in self.tensors.items() if k.startswith("net/")}
        if self.old:
            new = {old: name for name, old in old_names(net).items()}
            weights = {new.get(k, k): v for k, v in weights.items()}
            # Filters were stored with their outputs last.
            filters = filter_names(net) & {*weights}
            weights |= {k: np.moveaxis(weights[k], -1, 0) for k in filters if weights[k].ndim}
            tables = [new.get(k, k) for k in tables if isinstance(k, str)]
        self._check(leaves_of(net), weights)
        kept = {name for name in tables if isinstance(name, str)}

        def fill(path, leaf):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            if name not in weights:
                return leaf
            return weights[name] if name in kept else jnp.asarray(weights[name])

        return jax.tree_util.tree_map_with_path(fill, net)

    def _check(self, expected: dict[str, Any], weights: dict[str, np.ndarray]) -> None:
        problems = [f"missing {name}" for name in expected if name not in weights]
        problems += [f"unexpected {_plain(n)}" for n in weights if n not in expected]
        problems += [
            f"{name} has shape {shown(weights[name].shape)}, expected {shown(leaf.shape)}"
            for name, leaf in expected.items()
            if name in weights and weights[name].shape != leaf.shape
        ]
        problems += [
            f"{name} holds {weights[name].dtype}, expected {leaf.dtype}"
            for name, leaf in expected.items()
            if name in weights and not _same_kind(weights[name].dtype, leaf.dtype)
        ]
        if problems:
            few = "; ".join(problems[:10]) + ("; …" if len(problems) > 10 else "")
            raise ValueError(
                f"{self.path}: the weights do not fit the architecture: {shortened(few, _LONGEST)}."
            )


def _plain(name: Any) -> str:
    """A name from a file, without quotation marks."""
    return shortened(name, 80) if isinstance(name, str) else shown(name)


def _same_kind(given: Any, expected: Any) -> bool:
    # Weights may have been saved in another precision than that of a new network.
    floats = jnp.issubdtype(given, jnp.floating) and jnp.issubdtype(expected, jnp.floating)
    return floats or given == expected
