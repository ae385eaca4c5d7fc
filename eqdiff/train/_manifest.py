"""The manifest of a checkpoint: what is inside, with a checksum of everything, itself included.

`leaves` has the shape and dtype of each leaf, and in which array it lies, from which element on,
where that is not an array of the same name; `arrays` has the shape, dtype, folder and pieces of
each array, every piece with its checksum. Formats 1 and 2 had an array and a checksum per leaf.
"""

import json
import math
import pathlib
import zlib
from collections.abc import Iterable

import numpy as np

from . import _arrays
from ._folder import ARRAYS, MANIFEST


def seal(body: dict) -> dict:
    return {"body": body, "crc32": zlib.crc32(json.dumps(body, sort_keys=True).encode())}


def write_manifest(folder: pathlib.Path, body: dict) -> None:
    path = folder / MANIFEST
    path.parent.mkdir()
    path.write_text(json.dumps(seal(body)))


def read_manifest(folder: pathlib.Path) -> dict:
    """**Raises:** `ValueError` or `OSError` if it is damaged."""
    sealed = json.loads((folder / MANIFEST).read_text())
    if not isinstance(sealed, dict) or "body" not in sealed or seal(sealed["body"]) != sealed:
        raise ValueError("the checksum of the manifest is wrong")
    return sealed["body"]


def merged(arrays: dict[str, dict], parts: Iterable[dict[str, list]]) -> dict[str, dict]:
    """The records of arrays with the pieces of all processes.

    **Raises:** `ValueError` unless every number of every array is in one piece.
    """
    pieces: dict[str, list] = {name: [] for name in arrays}
    for part in parts:
        for name, each in part.items():
            pieces[name] += each
    for name, entry in arrays.items():
        sizes = [math.prod(stop - start for start, stop in box) for box, _ in pieces[name]]
        if sum(sizes) != math.prod(entry["shape"]):
            raise ValueError(f"no process has all of {name}")
    return {name: {**entry, "pieces": pieces[name]} for name, entry in arrays.items()}


def read_leaves(folder: pathlib.Path, body: dict, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Leaves of a checkpoint, compared with their checksums.

    **Raises:** `ValueError` or `OSError` if anything is damaged.
    """
    if "arrays" not in body:
        return {name: _from_database(folder, name, body["leaves"][name]) for name in names}
    arrays: dict[str, np.ndarray] = {}
    leaves = {}
    for name in names:
        entry = body["leaves"][name]
        array = entry.get("array", name)
        if array not in arrays:
            arrays[array] = _read_array(folder, array, body["arrays"][array])
        if "start" in entry:
            end = entry["start"] + math.prod(entry["shape"])
            leaves[name] = arrays[array][entry["start"] : end].reshape(entry["shape"])
        else:
            leaves[name] = arrays[array]
    return leaves


def _read_array(folder: pathlib.Path, name: str, entry: dict) -> np.ndarray:
    shape = tuple(entry["shape"])
    if 0 in shape:
        return np.zeros(shape, np.dtype(entry["dtype"]))
    array = _arrays.read(folder / ARRAYS / entry["folder"], shape, entry["dtype"])
    for box, crc32 in entry["pieces"]:
        _compare(name, array[_arrays.slices(box)], crc32)
    return array


def _from_database(folder: pathlib.Path, name: str, entry: dict) -> np.ndarray:
    if 0 in entry["shape"]:
        return np.zeros(entry["shape"], np.dtype(entry["dtype"]))
    array = _arrays.read_from_database(folder / ARRAYS, name)
    _compare(name, array, entry["crc32"])
    return array


def _compare(name: str, array: np.ndarray, crc32: int) -> None:
    if _arrays.checksum(array) != crc32:
        raise ValueError(f"the checksum of {name} is wrong")
