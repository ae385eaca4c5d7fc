"""PyTorch's files without PyTorch.

`torch.save` writes one of two formats. Since 1.6 it is an uncompressed zip archive that holds
`NAME/data.pkl`, a pickle that refers to its storages as `("storage", type, key, device, numel)`,
the storages as `NAME/data/KEY`, and `NAME/byteorder`. Before that (and inside pickles of whole
objects to this day) it is a stream: a magic number, a version, the sizes of C's integers and the
order of bytes, the pickled object, the keys of its storages, and each storage after the number of
its elements.

The file is mapped, not copied: a storage costs memory when its numbers are used. What is used of an
archive is read once to verify its CRC-32; the older format has none.
"""

import io
import mmap
import os
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from .._shown import reason, shortened, shown
from ._records import Global, Refused, Storage, STORAGES
from ._unpickle import plain, Unpickler


_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_NATIVE = "<" if sys.byteorder == "little" else ">"


def map_file(path: str | os.PathLike) -> mmap.mmap:
    """The bytes of a file, which are read when they are looked at.

    **Raises:** `FileNotFoundError`; `ValueError` for an empty file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}.")
    with open(path, "rb") as file:
        if path.stat().st_size == 0:
            raise ValueError(f"{path} is empty.")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class _References:
    """Storages that a pickle refers to, by key; their numbers come later."""

    def __init__(self):
        self.found: dict[str, Storage] = {}

    def __call__(self, identity: Any) -> Storage:
        if not (isinstance(identity, tuple) and len(identity) >= 5 and identity[0] == "storage"):
            raise Refused(f"refers to {shown(identity)}, which is not a storage")
        _, kind, key, _, numel, *view = identity
        if not isinstance(kind, Global) or kind not in STORAGES:
            raise Refused(f"has a storage of the type {shown(kind)}")
        if type(numel) is not int or numel < 0 or any(part is not None for part in view):
            raise Refused(f"has a storage of {shown(numel)} numbers, or a view of one")
        key = _key(key)
        storage = self.found.setdefault(key, Storage(STORAGES[kind], numel))
        if (storage.dtype, storage.numel) != (STORAGES[kind], numel):
            raise Refused(f"refers to the storage {shown(key)} as two different ones")
        return storage


def _key(key: Any) -> str:
    if not isinstance(key, str | int) or len(shown(key, 40)) > 39:
        raise Refused(f"has a storage under the key {shown(key)}")
    return str(key)


def read_torch(path: str | os.PathLike) -> Any:
    """What a file of `torch.save` holds, without PyTorch and without running anything.

    Tensors and parameters become NumPy arrays, which are read-only views of the file; mappings
    become dictionaries, sets lists, and devices text. Numbers, text and sequences stay what they
    are.

    ```python
    weights = eqd.interop.read_torch("cifar10_uncond_50M_500K.pt")
    ```

    **Arguments:**

    - `path`: a `.pt`, `.pth` or `.bin` file, in the zip format or the one before it.

    **Returns:** plain data, usually a dictionary of names and arrays.

    **Raises:** `FileNotFoundError`; `ValueError` for a truncated or damaged file, for one that
    holds anything but tensors and plain data (with the name of what it asks for; nothing is
    executed), and for tensors that reach outside their storage.

    **Example:**

    ```python
    contents = eqd.interop.read_torch("checkpoint.pt")
    ```
    """
    with map_file(path) as buffer:
        start = buffer[:4]
    source = str(path)
    if start == b"PK\x03\x04":
        return plain(_read_archive(path), source)
    buffer = map_file(path)
    return plain(read_stream(buffer, memoryview(buffer), source), source)


def _read_archive(path: str | os.PathLike) -> Any:
    source = str(path)
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as e:
        raise ValueError(f"{source} is a truncated or damaged archive ({reason(e)}).") from e
    with archive:
        entries = {info.filename: info for info in archive.infolist()}
        roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(roots) != 1 or roots[0].count("/") != 1:
            raise ValueError(
                f"{source} is an archive, but not one of torch.save: it has no data.pkl."
            )
        buffer = memoryview(map_file(path))

        def entry(name: str) -> memoryview:
            if roots[0] + name not in entries:
                raise ValueError(f"{source} is damaged: it lacks {roots[0]}{name}.")
            return _entry(entries[roots[0] + name], buffer, source)

        for info in entries.values():
            _start(info, buffer, source)
        references = _References()
        pickled, size = io.BytesIO(entry("data.pkl")), len(buffer)
        value = Unpickler(pickled, source, persistent=references, size=size).load()
        order = bytes(entry("byteorder")) if roots[0] + "byteorder" in entries else b"little"
        if order not in (b"little", b"big"):
            raise ValueError(f"{source} is damaged: the order of its bytes is {shown(order)}.")
        for key, storage in references.found.items():
            storage.swapped = order.decode() != sys.byteorder
            data, expected = entry(f"data/{key}"), storage.numel * storage.dtype.itemsize
            if len(data) < expected:
                raise ValueError(
                    f"{source} is damaged: the storage {key} has {len(data)} bytes, expected "
                    f"{expected}."
                )
            storage.buffer = data[:expected]
        return value


def _start(info: zipfile.ZipInfo, buffer: memoryview, source: str) -> int:
    # Where an entry's bytes begin: behind its own header, which repeats its name.
    at = info.header_offset
    header = bytes(buffer[at : at + 30]) if at >= 0 else b""
    name, extra = struct.unpack("<HH", header[26:30]) if len(header) == 30 else (0, 0)
    said = bytes(buffer[at + 30 : at + 30 + name])
    if header[:4] != b"PK\x03\x04" or said not in _spellings(info.orig_filename):
        what = shortened(info.filename, 80)
        raise ValueError(f"{source} is damaged: {what} is not where its directory says.")
    return at + 30 + name + extra


def _spellings(name: str) -> list[bytes]:
    return [name.encode(coding, "replace") for coding in ("utf-8", "cp437")]


def _entry(info: zipfile.ZipInfo, buffer: memoryview, source: str) -> memoryview:
    # The bytes of an archive's entry, in place. The directory says where its header begins, whose
    # length is not known before it is read.
    what = shortened(info.filename, 80)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise ValueError(
            f"{source}: {what} is compressed, which torch.save does not do, and so was not "
            "unpacked."
        )
    start = _start(info, buffer, source)
    if start + info.file_size > len(buffer):
        raise ValueError(f"{source} is truncated: {what} reaches beyond its end.")
    data = buffer[start : start + info.file_size]
    # Zero is what PyTorch writes where it was asked not to compute any.
    if info.CRC != 0 and zlib.crc32(data) != info.CRC:
        raise ValueError(
            f"{source} is damaged: {what} is not what was written there (CRC-32). Copy or download "
            "the file again."
        )
    return data


def read_stream(file: Any, data: memoryview, source: str) -> Any:
    """The older format, as records.

    **Arguments:**

    - `file`: the bytes as a file, `data`: the same in memory.
    - `source`: its name, for messages.
    """

    def load(**options: Any) -> Any:
        return Unpickler(file, source, **options).load()

    if load() != _MAGIC:
        raise ValueError(f"{source} is not a file of torch.save.")
    version, system = load(), load()
    if version != _VERSION or not isinstance(system, dict):
        raise ValueError(
            f"{source} is in version {shown(version)} of torch.save's format, expected 1001."
        )
    order = "<" if system.get("little_endian", True) else ">"
    references = _References()
    value, keys = load(persistent=references), load()
    known = isinstance(keys, list) and all(isinstance(key, str | int) for key in keys)
    if not known or sorted(map(_text, keys)) != sorted(references.found):
        raise ValueError(f"{source} is damaged: its storages are not those that it refers to.")
    for key in map(_text, keys):
        storage, start = references.found[key], file.tell() + 8
        size = bytes(data[start - 8 : start])
        if len(size) < 8 or struct.unpack(order + "q", size)[0] != storage.numel:
            raise ValueError(
                f"{source} is truncated or damaged: the storage {key} has another size."
            )
        end = start + storage.numel * storage.dtype.itemsize
        if end > len(data):
            raise ValueError(f"{source} is truncated: the storage {key} reaches beyond its end.")
        storage.swapped = order != _NATIVE
        storage.buffer = data[start:end]
        file.seek(end)
    return value


def _text(key: Any) -> str:
    return key if isinstance(key, str) else shown(key)


def load_from_bytes(data: Any, source: str) -> Storage:
    """A storage that a pickle of whole objects holds as a file of `torch.save` inside it."""
    if not isinstance(data, bytes):
        raise Refused("has a storage that is not bytes")
    inner = f"{source} (a storage inside of it)"
    storage = read_stream(io.BytesIO(data), memoryview(data), inner)
    if not isinstance(storage, Storage):
        raise Refused("has a storage that is something else")
    return storage


def state_dict(value: Any, source: str) -> dict[str, np.ndarray]:
    """Names and arrays, if that is what a file holds.

    **Raises:** `ValueError` otherwise, with the keys that it has.
    """
    good = (
        isinstance(value, dict) and value and all(isinstance(a, np.ndarray) for a in value.values())
    )
    if not good or not all(isinstance(name, str) for name in value):
        kind = f"a {type(value).__name__}"
        if isinstance(value, dict):
            kind = f"a dictionary with the keys {shown(list(value), 300)}"
        raise ValueError(f"{source} holds {kind}, expected names and tensors alone (a state dict).")
    return value
