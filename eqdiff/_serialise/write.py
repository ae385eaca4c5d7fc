"""A safetensors file on the disk, whole or not at all.

It is the length of a header, the header in JSON, and the numbers of every tensor in a row. It is
written here and not by the library so that it is one file under one name: a process that is killed
while it writes leaves a part of it as `.NAME.tmp`, which the next one to write there overwrites.
"""

import contextlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_TYPES = {
    **{"bool": "BOOL", "int8": "I8", "uint8": "U8", "bfloat16": "BF16", "complex64": "C64"},
    **{"int16": "I16", "int32": "I32", "int64": "I64"},
    **{"uint16": "U16", "uint32": "U32", "uint64": "U64"},
    **{"float16": "F16", "float32": "F32", "float64": "F64"},
    **{"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"},
}


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes tensors and metadata.

    **Raises:** `ValueError` for a dtype that the format does not have; `OSError` where the file
    cannot be written, which says what is at `path` then; `BlockingIOError` while another process
    writes it.
    """
    for name, array in tensors.items():
        if array.dtype.name not in _TYPES:
            raise ValueError(
                f"{name} holds {array.dtype}, expected one of {', '.join(sorted(_TYPES))}."
            )
    # Every tensor then begins at a multiple of its itemsize.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        array, start = tensors[name], end
        end += array.nbytes
        dtype, shape = _TYPES[array.dtype.name], list(array.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with _replacing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            array = np.ascontiguousarray(tensors[name], tensors[name].dtype.newbyteorder("<"))
            file.write(array.reshape(-1).view(np.uint8).data)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` once it is on the disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _claimed(temporary) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        _sync_folder(path.parent)
    except BlockingIOError as e:
        raise BlockingIOError(f"{path} is being written by another process.") from e
    except OSError as e:
        kept = "the file that was there is unchanged" if path.exists() else "nothing is left of it"
        text = f"{path} could not be written ({e.strerror or e}); {kept}"
        raise (OSError(e.errno, text) if e.errno else OSError(text)) from e


@contextlib.contextmanager
def _claimed(temporary: Path) -> Iterator[BinaryIO]:
    """The temporary file, empty, and nobody else's while it is open."""
    while True:
        # Not `open`, which would empty the file of a process that is still writing it.
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            _lock(file)
            # Whoever had it may have renamed it since it was opened: then it is no longer ours.
            if _same(temporary, file):
                file.truncate(0)
                yield file
                return


def _lock(file: BinaryIO) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass  # a file system without locks


def _same(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    # Without it the new name may be lost with the power, though not the file.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
