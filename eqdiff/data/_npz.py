"""Samples as one npz file, the form in which evaluators read them.

`arr_0` holds uint8 pixels (n, height, width, channels), `arr_1` the classes if there are any, as
improved-diffusion and guided-diffusion write them. The archive is written member by member and
piece by piece, so that it may be larger than the memory, and appears whole or not at all.
"""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import ArrayLike, Float, Int64, Integer, Shaped, UInt8

from .._atomic import remove_stale, write_whole
from .._store import Store
from .._writer import AbstractWriter
from ._export import check_number, described, pixels, whole_labels


def write_npz(
    path: str | os.PathLike,
    images: Shaped[ArrayLike, "..."],
    labels: Integer[ArrayLike, " n"] | None = None,
    *,
    levels: int = 256,
) -> None:
    """Writes images as one npz file, as evaluators of FID and others read them.

    `arr_0` is uint8 `(n, height, width, channels)`, `arr_1` the labels, int64 `(n,)`. The file
    appears whole or not at all, in place of one of that name.

    **Arguments:**

    - `path`: of the file.
    - `images`: NumPy or JAX array `(n, channels, height, width)`: floats in [-1, 1] (clipped), or
        integer grey levels from 0 to `levels - 1`.
    - `labels`: a class for each, or `None`.
    - `levels`: the number of grey levels; floats are rounded to the nearest one, as
        [`eqdiff.data.to_uint8`][] does.

    **Raises:** `ValueError` for other shapes, and values that are not finite.

    **Example:**

    ```python
    images = jax.random.normal(jax.random.key(0), (16, 3, 8, 8))
    eqd.data.write_npz("samples.npz", images)
    ```
    """
    array, classes = pixels(np.asarray(images), levels), whole_labels(labels)
    check_number(classes, len(array))
    _stream(_npz(path), array.shape, [array], classes, b"")


class NPZWriter(AbstractWriter):
    """One npz file of samples, for [`eqdiff.generate_to`][].

    The same file as [`eqdiff.data.write_npz`][] writes, without all samples in memory. Finished
    chunks are kept, as pixels, in a folder `PATH.parts` next to it, which is deleted when the file
    is there: while it is written, both need room.

    Where the file exists already, and this call wrote it, nothing is left to do.

    **Example:**

    ```python
    sampler, denoiser = eqd.DDIM(2), eqd.GaussianDenoiser(eqd.cosine_schedule(10))
    writer = eqd.data.NPZWriter("samples.npz")
    eqd.generate_to(writer, sampler, denoiser, 4, (3, 8, 8), key=jax.random.key(0))
    ```
    """

    path: Path
    labels: Int64[np.ndarray, " n"] | None
    levels: int

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        labels: Integer[ArrayLike, " n"] | None = None,
        levels: int = 256,
    ):
        """**Arguments:** `path`, `labels` and `levels` as [`eqdiff.data.write_npz`][]."""
        self.path, self.labels, self.levels = _npz(path), whole_labels(labels), levels
        self._parts = Store(self.path.with_name(self.path.name + ".parts"))
        self._call: dict[str, Any] = {}

    def create(self, call: dict[str, Any]) -> None:
        self._call = described(call, self.labels, self.levels)
        if self._is_finished():
            return
        if self.path.exists():
            raise ValueError(
                f"{self.path} exists, and another call has written it: give another name, or "
                "delete it."
            )
        remove_stale(self.path.parent)
        self._parts.create(self._call)

    def open(self, call: dict[str, Any]) -> None:
        self._call = described(call, self.labels, self.levels)
        if not self._is_finished():
            self._parts.open(self._call)

    def present(self) -> set[int]:
        return self._parts.present()

    def has(self, start: int, digest: str) -> bool:
        return self._is_finished() or self._parts.read(start, digest) is not None

    def write(self, start: int, digest: str, samples: Float[np.ndarray, "n ..."]) -> None:
        self._parts.write(start, digest, [pixels(samples, self.levels, first=start)])

    def finish(self, chunks: dict[int, str]) -> None:
        if not self._is_finished():
            channels, height, width = self._call["shape"]
            shape = (self._call["num"], height, width, channels)
            parts = self._read(sorted(chunks.items()))
            try:
                _stream(self.path, shape, parts, self.labels, _comment(self._call))
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"{error.strerror}, so the samples could not be joined to one file. All of "
                    f"them are in {self._parts.folder}: with this mended, the same call joins them",
                    str(self.path),
                ) from error
        shutil.rmtree(self._parts.folder, ignore_errors=True)

    def _read(self, chunks: list[tuple[int, str]]) -> Iterator[UInt8[np.ndarray, "..."]]:
        for start, digest in chunks:
            part = self._parts.wait(start, digest)
            if part is None:
                raise RuntimeError(
                    f"the chunk of sample {start} cannot be read from {self._parts.folder}, though "
                    "it has been written: with several processes that folder has to be on a file "
                    "system that all of them share. The same call continues."
                )
            yield part[0]

    def _is_finished(self) -> bool:
        try:
            with zipfile.ZipFile(self.path) as file:
                return file.comment == _comment(self._call)
        except (OSError, zipfile.BadZipFile):
            return False


def _npz(path: str | os.PathLike) -> Path:
    path = Path(path).expanduser()
    if path.suffix != ".npz":
        raise ValueError(f"{path}: expected a name that ends in .npz")
    return path


def _comment(call: dict[str, Any]) -> bytes:
    """Stands in the archive where no reader of arrays looks, and says which call wrote it."""
    return b"eqdiff " + hashlib.sha256(json.dumps(call).encode()).hexdigest().encode()


def _stream(
    path: Path,
    shape: tuple[int, ...],
    parts: Iterable[UInt8[np.ndarray, "..."]],
    labels: Int64[np.ndarray, " n"] | None,
    comment: bytes,
) -> None:
    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.comment = comment
            # Of one date, so that equal samples are equal files.
            with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for part in parts:
                    member.write(np.ascontiguousarray(part).data)
            if labels is not None:
                with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as member:
                    np.lib.format.write_array(member, labels, allow_pickle=False)
        # Parts are deleted when this file is there, so it must survive a power cut.
        file.flush()
        os.fsync(file.fileno())

    write_whole(path, write)
