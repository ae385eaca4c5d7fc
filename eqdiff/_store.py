"""Finished chunks of a long job, kept in a folder so that the same call continues later.

A folder belongs to one call, which `examples.json` describes. Each chunk is a file of its own,
written whole or not at all: arrays as NumPy writes them, then a checksum over them *and* over what
the chunk depends on (the call, its place, its examples). A damaged chunk, or one of other data, is
therefore no chunk, and is computed again.
"""

import hashlib
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ._atomic import create_whole, remove_stale, write_whole


# Of `examples.json` and the chunks. Format 1 had no checksums, and no number.
FORMAT = 2

# Seconds until a file that another host wrote is seen here.
_PATIENCE = 30.0

_SUM = hashlib.sha256().digest_size


def pack(leaves: list[np.ndarray]) -> bytes:
    """Arrays as bytes: an npz file."""
    file = io.BytesIO()
    # Types that NumPy does not know, such as bfloat16, would come back as bytes.
    types = np.array([leaf.dtype.name for leaf in leaves], np.str_)
    named = {f"leaf_{i}": leaf for i, leaf in enumerate(leaves)}
    np.savez(file, allow_pickle=False, types=types, **named)
    return file.getvalue()


def unpack(content: bytes) -> list[np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return [file[f"leaf_{i}"].view(jnp.dtype(str(t))) for i, t in enumerate(file["types"])]


class Store:
    """One file per chunk, written whole or not at all, and a description of their call.

    `create` or `open` comes first.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder).expanduser()
        self._description = self.folder / "examples.json"

    def create(self, call: dict[str, Any]) -> None:
        """Begins a folder, or continues that of the same call.

        **Raises:** `ValueError` for the folder of another call.
        """
        content = json.dumps({"format": FORMAT} | call).encode()
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_stale(self.folder)
        self._check(create_whole(self._description, content), call)

    def open(self, call: dict[str, Any]) -> None:
        """Continues the folder that another process has created.

        **Raises:** `ValueError` for the folder of another call, or where there is none.
        """
        if not appears(self._description):
            raise ValueError(
                f"{self.folder} was created by another process of this job, but is not there for "
                "this one: give a folder on a file system that all of them share."
            )
        self._check(self._description.read_bytes(), call)

    def _check(self, content: bytes, call: dict[str, Any]) -> None:
        try:
            found = json.loads(content)
            if not isinstance(found, dict):
                raise ValueError("not a description")
        except (ValueError, RecursionError) as e:
            raise ValueError(
                f"{self._description} is damaged ({e!s:.100}): delete this one file and repeat the "
                "call. Each chunk next to it is checked, and kept if it is of that call."
            ) from e
        version = found.pop("format", 1)
        if version != FORMAT:
            raise ValueError(
                f"{self.folder} was written by another version of eqdiff (format {version}, and "
                f"this version writes {FORMAT}): finish that call with the version that began it, "
                "or give another folder."
            )
        # As JSON has it, where tuples are lists.
        call = json.loads(json.dumps(call))
        differing = [n for n in sorted({*found, *call}) if found.get(n) != call.get(n)]
        if differing:
            told = ", ".join(
                f"{name} is {found.get(name)!r:.80} there and {call.get(name)!r:.80} here"
                for name in differing
            )
            raise ValueError(
                f"{self.folder} holds the results of another call: {told}. Give another folder, or "
                "delete that one."
            )

    def _path(self, start: int) -> Path:
        return self.folder / f"examples_{start:09d}.npz"

    def present(self) -> set[int]:
        """Where chunks begin that are there, damaged or not."""
        names = [path.stem.removeprefix("examples_") for path in self.folder.glob("*.npz")]
        return {int(name) for name in names if name.isdecimal()}

    def read(self, start: int, digest: str) -> list[np.ndarray] | None:
        """The chunk that begins at an index, if it was written whole with this digest."""
        try:
            content = self._path(start).read_bytes()
        except OSError:
            return None
        content, found = content[:-_SUM], content[-_SUM:]
        return unpack(content) if found == _checksum(digest, content) else None

    def wait(self, start: int, digest: str) -> list[np.ndarray] | None:
        """The chunk that another process has written at an index."""
        appears(self._path(start))
        return self.read(start, digest)

    def write(self, start: int, digest: str, leaves: list[np.ndarray]) -> None:
        """Keeps a chunk.

        **Raises:** `OSError`, if it cannot, for example on a full disk.
        """
        content = pack(leaves)
        # Behind the end of a zip archive, where `numpy.load` does not look.
        content += _checksum(digest, content)
        write_whole(self._path(start), lambda file: file.write(content))


def _checksum(digest: str, content: bytes) -> bytes:
    return hashlib.sha256(digest.encode() + content).digest()


def appears(path: Path) -> bool:
    """Whether a file is there, now or soon: a shared file system may be slow to show it."""
    end = time.monotonic() + _PATIENCE
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
