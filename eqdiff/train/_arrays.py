"""Arrays in files: one Zarr array in each folder, whole or in pieces.

The layout is Orbax's (`orbax.checkpoint.PyTreeCheckpointer` reads it), and so is the engine below:
TensorStore, which here is called directly. Orbax's own writer leaves NumPy arrays of every process
but the first unwritten, prints a traceback for each array still under way when a disk is full, and
cannot finish once the program has reached its end.
"""

import errno
import hashlib
import json
import math
import os
import pathlib
import re
import urllib.parse
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .._require import require


# The range of each axis that a piece of an array fills.
Box = tuple[tuple[int, int], ...]

# What one file holds at most, where nothing else divides an array: what is copied at a time.
_FILE_BYTES = 64 * 2**20


def tensorstore() -> Any:
    return require("tensorstore", "eqdiff.train.Checkpointer", extra="checkpoint")


def whole(shape: Sequence[int]) -> Box:
    return tuple((0, size) for size in shape)


def slices(box: Iterable[Sequence[int]]) -> tuple[Any, ...]:
    # With the dots, what comes of an array without axes is one too.
    return (*(slice(start, stop) for start, stop in box), ...)


def checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def folder_names(names: Iterable[str]) -> dict[str, str]:
    """A folder for each array: its name, where a file may be called that."""
    found, taken = {}, set()
    for name in names:
        folder = urllib.parse.quote(name, safe="")
        if len(folder) > 200 or not folder.strip(".") or folder.casefold() in taken:
            # Some file systems do not tell small letters from capitals.
            folder = f"{folder[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        taken.add(folder.casefold())
        found[name] = folder
    return found


def files_of(shape: Sequence[int], dtype: Any) -> tuple[int, ...]:
    """The shape of the part of an array that one file holds."""
    if not shape:
        return ()
    row = max(math.prod(shape[1:]) * np.dtype(dtype).itemsize, 1)
    return (max(1, min(shape[0], _FILE_BYTES // row)), *shape[1:])


def create(folder: pathlib.Path, shape: Sequence[int], dtype: Any, files: Sequence[int]) -> None:
    """An array without its numbers, one file for each part of the shape `files`."""
    metadata = {"shape": [*shape], "chunks": [*files], "compressor": None}
    spec = {**_spec(folder), "dtype": np.dtype(dtype).name, "metadata": metadata}
    tensorstore().open(spec, create=True).result()


def write(folder: pathlib.Path, box: Box, array: np.ndarray) -> None:
    """Numbers of an array that has been created; on disk when this returns."""
    # One after the other: what fails leaves nothing under way.
    store = tensorstore().open(_spec(folder), open=True).result()
    store[slices(box)].write(array, can_reference_source_data_indefinitely=True).result()


def read(folder: pathlib.Path, shape: Sequence[int], dtype: str) -> np.ndarray:
    """The numbers of an array.

    **Raises:** `ValueError` if it has another shape or dtype.
    """
    store = tensorstore().open(_spec(folder), open=True, read=True).result()
    found = tuple(store.shape), store.dtype.name
    if found != (tuple(shape), dtype):
        raise ValueError(f"an array is {found[1]}{found[0]}, not {dtype}{tuple(shape)}")
    return store.read().result()


def read_from_database(folder: pathlib.Path, name: str) -> np.ndarray:
    """An array out of the one database of all arrays that formats 1 and 2 have."""
    base = {"driver": "file", "path": f"{folder}/"}
    kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    spec = {"driver": "zarr", "kvstore": kvstore}
    return tensorstore().open(spec, open=True, read=True).result().read().result()


def _spec(folder: pathlib.Path) -> dict:
    # Numbers equal to the fill value are written too: a file that is missing is damage.
    kvstore = {"driver": "file", "path": f"{folder}/"}
    return {"driver": "zarr", "kvstore": kvstore, "store_data_equal_to_fill_value": True}


def describe_for_orbax(folders: Iterable[str]) -> str:
    """The text of the file `_METADATA`, with which Orbax reads the arrays as a dictionary."""
    value = {"value_type": "np.ndarray", "skip_deserialize": False}
    tree = {
        str((name,)): {"key_metadata": [{"key": name, "key_type": 2}], "value_metadata": value}
        for name in folders
    }
    return json.dumps(
        {
            "tree_metadata": tree,
            "use_ocdbt": False,
            "use_zarr3": False,
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": None,
        }
    )


def sync(folder: pathlib.Path) -> None:
    """Has the system put everything in a folder, and its own entries, on disk."""
    for directory, _, files in os.walk(folder):
        for path in [*(os.path.join(directory, name) for name in files), directory]:
            sync_one(path)


def sync_one(path: str | pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not sync folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def reason(error: BaseException) -> str:
    """Why reading or writing failed, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip()
    code = re.search(r"\[os_error_code='(\d+)'", text)
    if code:
        return os.strerror(int(code[1]))
    return text.splitlines()[0][:200] if text else type(error).__name__
