"""Finished chunks of a long job, kept in a folder so that the same call continues later."""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ._types import Key


class Store:
    """One file per chunk, written whole or not at all, and a description of their call."""

    def __init__(
        self,
        folder: str | os.PathLike,
        call: str,
        args: PyTree[Any],
        results: PyTree[Any],
        num: int,
        key: Key,
        batch_size: int,
    ):
        """**Raises:** `ValueError` for a folder that holds the results of another call."""
        self.dtypes = [leaf.dtype for leaf in jax.tree.leaves(results)]
        description = {
            "call": call,
            "num": num,
            "batch_size": batch_size,
            "key": hashlib.sha256(np.asarray(jax.random.key_data(key)).tobytes()).hexdigest(),
            "args": _shapes(args),
            "results": _shapes(results),
        }
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "examples.json"
        if not path.exists():
            self._replace(path, lambda file: file.write_text(json.dumps(description)))
            return
        try:
            found = json.loads(path.read_text())
        except ValueError as e:
            raise ValueError(f"{path} is damaged ({e}): delete {self.folder}.") from e
        if found != description:
            raise ValueError(
                f"{self.folder} holds the results of another call: {found}, and this one is "
                f"{description}. Give another folder, or delete that one."
            )

    def _path(self, start: int) -> Path:
        return self.folder / f"examples_{start:09d}.npz"

    def read(self, start: int) -> list[np.ndarray] | None:
        """The chunk that begins at an index, if it was written whole."""
        path = self._path(start)
        if not path.exists():
            return None
        try:
            # Opened here: NumPy does not close what it cannot read.
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                # Types that NumPy does not know, such as bfloat16, come back as bytes.
                return [file[f"leaf_{i}"].view(dtype) for i, dtype in enumerate(self.dtypes)]
        except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def write(self, start: int, leaves: list[np.ndarray]) -> None:
        """Keeps a chunk."""

        def save(path: Path) -> None:
            with open(path, "wb") as file:
                named = {f"leaf_{i}": leaf for i, leaf in enumerate(leaves)}
                np.savez(file, allow_pickle=False, **named)

        self._replace(self._path(start), save)

    def _replace(self, path: Path, write: Callable[[Path], Any]) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            write(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _shapes(tree: PyTree[Any]) -> list[Any]:
    return [[list(leaf.shape), str(leaf.dtype)] for leaf in jax.tree.leaves(tree)]
