"""Samples as a folder of PNG files, the form in which people and evaluators look at them.

Sample $i$ is `000000/000017.png`, a sub-folder for every thousand, as in EDM's samples, and
`dataset.json` has their classes, as NVIDIA's data sets have theirs.
"""

import io
import json
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Float, Int64, Integer, Shaped, UInt8, UInt32

from .._atomic import remove_stale, write_whole
from .._require import require
from .._store import Store
from .._writer import AbstractWriter
from ._export import check_number, described, pixels, whole_labels


def write_pngs(
    folder: str | os.PathLike,
    images: Shaped[ArrayLike, "..."],
    labels: Integer[ArrayLike, " n"] | None = None,
    *,
    levels: int = 256,
) -> None:
    """Writes each image as a PNG file: `000000/000000.png`, `000000/000001.png`, …

    There is a sub-folder for every thousand, and a `dataset.json` with the labels, so that
    [`eqdiff.data.image_folder`][] and NVIDIA's tools read the folder.

    **Arguments:**

    - `folder`: a new or empty folder.
    - `images`, `labels`, `levels`: as [`eqdiff.data.write_npz`][].

    **Raises:** `ValueError` for a folder that is not empty, other shapes, and values that are not
    finite; `ImportError` without Pillow.

    **Example:**

    ```python
    images = jax.random.normal(jax.random.key(0), (16, 3, 8, 8))
    eqd.data.write_pngs("samples", images, jnp.arange(16) % 10)
    ```
    """
    array, classes = pixels(np.asarray(images), levels), whole_labels(labels)
    check_number(classes, len(array))
    folder = Path(folder).expanduser()
    _check_empty(folder)
    _write(folder, 0, array)
    _write_labels(folder, len(array), classes)


class PNGWriter(AbstractWriter):
    """A folder of PNG files, for [`eqdiff.generate_to`][].

    The same files as [`eqdiff.data.write_pngs`][] writes, without all samples in memory, and a
    hidden folder `.chunks` with the checksums of those that are written. Called again, it writes
    what is missing or damaged.

    **Example:**

    ```python
    sampler, denoiser = eqd.DDIM(2), eqd.GaussianDenoiser(eqd.cosine_schedule(10))
    writer = eqd.data.PNGWriter("samples")
    eqd.generate_to(writer, sampler, denoiser, 4, (3, 8, 8), key=jax.random.key(0))
    ```
    """

    folder: Path
    labels: Int64[np.ndarray, " n"] | None
    levels: int

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        labels: Integer[ArrayLike, " n"] | None = None,
        levels: int = 256,
    ):
        """**Arguments:** `folder`, `labels` and `levels` as [`eqdiff.data.write_pngs`][]."""
        self.folder, self.levels = Path(folder).expanduser(), levels
        self.labels = whole_labels(labels)
        self._sums = Store(self.folder / ".chunks")
        self._num = 0

    def create(self, call: dict[str, Any]) -> None:
        call = described(call, self.labels, self.levels)
        self._num = call["num"]
        if not self._sums.folder.exists():
            _check_empty(self.folder)
        self._sums.create(call)
        for path in (self.folder, *self.folder.glob("[0-9]*")):
            remove_stale(path)

    def open(self, call: dict[str, Any]) -> None:
        call = described(call, self.labels, self.levels)
        self._num = call["num"]
        self._sums.open(call)

    def present(self) -> set[int]:
        return self._sums.present()

    def has(self, start: int, digest: str) -> bool:
        kept = self._sums.read(start, digest)
        if kept is None:
            return False

        def is_sound(i: int) -> bool:
            try:
                found = zlib.crc32(_path(self.folder, start + i).read_bytes())
                return found == int(kept[0][i])
            except OSError:
                return False

        return all(_in_threads(is_sound, len(kept[0])))

    def write(self, start: int, digest: str, samples: Float[np.ndarray, "n ..."]) -> None:
        sums = _write(self.folder, start, pixels(samples, self.levels, first=start))
        self._sums.write(start, digest, [sums])

    def finish(self, chunks: dict[int, str]) -> None:
        _write_labels(self.folder, self._num, self.labels)


def _path(folder: Path, i: int) -> Path:
    return folder / f"{i - i % 1000:06d}" / f"{i:06d}.png"


def _check_empty(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} is not empty, and nobody could tell samples from what is there: give a new "
            "folder, or delete that one."
        )


def _write(
    folder: Path, start: int, images: UInt8[np.ndarray, "n height width channels"]
) -> UInt32[np.ndarray, " n"]:
    """Writes images and returns the checksum of each file."""
    pillow = require("PIL.Image", "Writing PNG files", extra="data")

    def write(i: int) -> int:
        image, file = images[i], io.BytesIO()
        pillow.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, format="PNG")
        content = file.getvalue()
        write_whole(_path(folder, start + i), lambda file: file.write(content))
        return zlib.crc32(content)

    return np.array(_in_threads(write, len(images)), np.uint32)


def _in_threads(work: Callable[[int], Any], num: int) -> list[Any]:
    # Compression and checksums let other threads run.
    with ThreadPoolExecutor() as pool:
        return list(pool.map(work, range(num)))


def _write_labels(folder: Path, num: int, labels: Int64[np.ndarray, " n"] | None) -> None:
    names = [_path(folder, i).relative_to(folder).as_posix() for i in range(num)]
    pairs = None if labels is None else list(zip(names, labels.tolist(), strict=True))
    content = json.dumps({"labels": pairs}).encode()
    write_whole(folder / "dataset.json", lambda file: file.write(content))
