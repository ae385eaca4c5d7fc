"""Decoded examples on disk: written once, mapped into memory, each checked when it is read.

A cache is a folder whose name holds a digest of all that its examples depend on, so that changed
data find another one. It is written under a temporary name and renamed: it is there whole or not
at all, and of two processes that write at once the second finds the first one's and drops its own.
Every example has a CRC-32, which is compared whenever the example is read.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, Shaped

from .._download import cache_directory
from .._require import require
from ._adapters import RandomAccessSource
from ._damaged import Skipping
from ._dataset import Dataset
from ._files import ZipMember
from ._folder import FolderSource
from ._source import AbstractSource, ArraySource, DamagedFileError


_FORMAT = 1
_CHUNK = 16


def _crc(array: Shaped[np.ndarray, "..."]) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


class MappedSource(AbstractSource):
    """Examples in a file that is mapped into memory, made by [`eqdiff.data.cached`][].

    **Example:**

    ```python
    import numpy as np
    eqd.data.write_pngs("pictures", np.zeros((20, 3, 8, 8), np.uint8))
    data = eqd.data.cached(eqd.data.image_folder("pictures"), "caches")
    image, label = data.train[0]  # of an eqd.data.MappedSource
    ```
    """

    folder: Path

    def __init__(self, folder: Path, part: str, entry: dict[str, Any]):
        """**Arguments:**

        - `folder`: of the cache.
        - `part`: `"train"` or `"test"`.
        - `entry`: what `cache.json` says of that part.
        """
        self.folder, self._part = folder, part
        self.shape, self.levels = tuple(entry["shape"]), entry["levels"]
        try:
            self._labels = np.load(folder / f"{part}-labels.npy", allow_pickle=False)
            self._crcs = np.load(folder / f"{part}-crcs.npy", allow_pickle=False)
            mode = "r" if entry["length"] else None  # Nothing cannot be mapped.
            path = folder / f"{part}.npy"
            self._examples = np.load(path, mmap_mode=mode, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise _damaged(folder, str(error)) from error
        right = (
            self._examples.shape == (entry["length"], *self.shape)
            and self._examples.dtype == np.dtype(entry["dtype"])
            and len(self._labels) == len(self._crcs) == entry["length"]
            and _crc(self._labels) == entry["labels"]
            and _crc(self._crcs) == entry["crcs"]
        )
        if not right:
            raise _damaged(folder, f"{part}.npy and its labels are not what was written")

    def __len__(self) -> int:
        return len(self._examples)

    def take(
        self, indices: Integer[np.ndarray, " batch"]
    ) -> tuple[Shaped[np.ndarray, "batch ..."], Shaped[np.ndarray, "batch ..."]]:
        examples = np.asarray(self._examples[indices])
        for index, example in zip(indices.tolist(), examples, strict=True):
            if _crc(example) != self._crcs[index]:
                raise DamagedFileError(
                    f"example {index} of {self.folder / self._part}.npy is not what was written: "
                    "remove the folder to have it written anew"
                )
        return examples, self._labels[indices]

    def __repr__(self) -> str:
        return f"MappedSource({len(self)} examples {self.shape} in {self.folder})"


def _damaged(folder: Path, why: str) -> ValueError:
    return ValueError(
        f"the cache {folder} is damaged ({why}): remove the folder to have it written anew"
    )


def _fingerprint(source: AbstractSource) -> Iterator[str]:
    """All that a source's examples depend on."""
    if isinstance(source, FolderSource):
        yield repr((source.shape, source.resizes))
        for path, label in zip(source.paths, source.labels.tolist(), strict=True):
            if isinstance(path, ZipMember):
                info = path.archive.getinfo(path.member)
                yield repr((path.member, info.CRC, info.file_size, label))
            else:
                stat = path.stat()
                yield repr((str(path.absolute()), stat.st_size, stat.st_mtime_ns, label))
        return
    # Hugging Face's data sets have their own fingerprint.
    known = getattr(getattr(source, "examples", None), "_fingerprint", None)
    if not isinstance(source, RandomAccessSource) or not isinstance(known, str):
        raise ValueError(
            f"nothing says when the examples of {source} change: pass key= with a text that "
            "changes with them, such as a version"
        )
    yield repr((known, source.shape, source.levels, source.column, source.label_column))


def _digest(dataset: Dataset, key: str | None, skip_damaged: int) -> str:
    digest = hashlib.sha256(repr((_FORMAT, skip_damaged, dataset.class_names)).encode())
    for name, source in (("train", dataset.train), ("test", dataset.test)):
        digest.update(repr((name, len(source), source.shape, source.levels)).encode())
        for text in [key] if key is not None else _fingerprint(source) if len(source) else []:
            digest.update(text.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()[:20]


def _in_order(source: Skipping, length: int, num_threads: int) -> Iterator[tuple[Any, Any]]:
    """Chunks of a source, made ahead by threads."""
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        ahead: collections.deque = collections.deque()
        try:
            for start in range(0, length, _CHUNK):
                chunk = np.arange(start, min(start + _CHUNK, length))
                ahead.append(pool.submit(source.take, chunk))
                if len(ahead) > 2 * num_threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _write_part(folder: Path, part: str, source: AbstractSource, skip: int, bar: Any) -> dict:
    levels, length = source.levels, len(source)
    dtype = np.dtype(np.float32 if levels is None else np.uint8 if levels <= 256 else np.uint16)
    labels, crcs = [], np.empty(length, np.uint32)
    # Written, not mapped: a full disk is then an error, and not the end of the process.
    with open(folder / f"{part}.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(
            file,
            {
                "descr": np.lib.format.dtype_to_descr(dtype),
                "fortran_order": False,
                "shape": (length, *source.shape),
            },
        )
        done = 0
        num_threads = min(16, os.cpu_count() or 1)
        for examples, chunk_labels in _in_order(Skipping(source, skip), length, num_threads):
            examples = np.ascontiguousarray(examples, dtype)
            file.write(examples.tobytes())
            crcs[done : done + len(examples)] = [_crc(example) for example in examples]
            labels.append(chunk_labels)
            done += len(examples)
            bar.update(len(examples))
    all_labels = np.concatenate(labels) if labels else np.zeros(0, np.int32)
    np.save(folder / f"{part}-labels.npy", all_labels)
    np.save(folder / f"{part}-crcs.npy", crcs)
    return {
        "length": length,
        "shape": source.shape,
        "levels": levels,
        "dtype": dtype.str,
        "labels": _crc(all_labels),
        "crcs": _crc(crcs),
    }


@contextlib.contextmanager
def _temporary(parent: Path, name: str) -> Iterator[Path]:
    """A folder next to the cache, locked while its writer lives; those of killed ones go."""
    try:
        import fcntl
    except ImportError:  # No such locks: leftovers stay.
        fcntl = None
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f".{name}.*.tmp"):
        if fcntl is None:
            break
        with contextlib.suppress(OSError), open(left / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=parent))
    try:
        with open(folder / "lock", "w") as lock:
            if fcntl:
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(dataset: Dataset, target: Path, skip: int, progress: bool) -> None:
    bar = require("tqdm", "eqdiff.data.cached", extra="data").tqdm(
        total=len(dataset.train) + len(dataset.test),
        desc=f"caching {dataset.name}",
        disable=not progress,
    )
    with _temporary(target.parent, target.name) as folder, bar:
        parts = {
            part: _write_part(folder, part, source, skip, bar)
            for part, source in (("train", dataset.train), ("test", dataset.test))
        }
        (folder / "cache.json").write_text(json.dumps({"format": _FORMAT, **parts}, indent=1))
        try:
            folder.rename(target)
        except OSError:
            # Another process was first: what it wrote is the same.
            if not (target / "cache.json").is_file():
                raise


def _open(target: Path) -> list[MappedSource]:
    try:
        content = json.loads((target / "cache.json").read_text())
        return [MappedSource(target, part, content[part]) for part in ("train", "test")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ValueError) and str(target) in str(error):
            raise
        raise _damaged(target, f"cache.json: {error}") from error


def cached(
    dataset: Dataset,
    directory: str | os.PathLike | None = None,
    *,
    key: str | None = None,
    skip_damaged: int = 0,
    progress: bool = True,
) -> Dataset:
    """Decodes a data set once, and reads it from a file that is mapped into memory.

    Pixels take one byte each (two beyond 256 levels, floats four). What is written is whole or not
    there, whenever the process is killed, and processes that write at the same time do no harm.
    Changed files, sizes or labels make another cache; remove old ones when you like. Each example
    is checked whenever it is read.

    **Arguments:**

    - `dataset`: of files, or of a [`eqdiff.data.RandomAccessSource`][]. One that is held in memory
        is returned as it is.
    - `directory`: where caches lie. Default: `eqdiff/datasets` in `$XDG_CACHE_HOME`, or in
        `~/.cache`.
    - `key`: a text that changes with the examples, for sources that do not know whether they
        changed: all but folders, archives and Hugging Face's data sets.
    - `skip_damaged`: as for [`eqdiff.data.loader`][], for each of the two parts.
    - `progress`: whether to show a progress bar while writing.

    **Returns:** a [`eqdiff.data.Dataset`][] whose sources are
    [`eqdiff.data.MappedSource`][]s.

    **Raises:** `ValueError` for a damaged cache, naming it, and for a source that needs a `key`;
    [`eqdiff.data.DamagedFileError`][] for an example that cannot be read; `OSError` for a full
    disk. Nothing is left behind.

    **Example:**

    ```python
    import numpy as np
    eqd.data.write_pngs("pictures", np.zeros((20, 3, 8, 8), np.uint8))
    data = eqd.data.image_folder("pictures")
    data = eqd.data.cached(data, "caches")  # decoded now; the next time it is there at once
    ```
    """
    if isinstance(dataset.train, ArraySource) and isinstance(dataset.test, ArraySource):
        return dataset
    root = cache_directory() / "datasets" if directory is None else Path(directory).expanduser()
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in dataset.name)[:60]
    target = root / f"{name}-{_digest(dataset, key, skip_damaged)}"
    if not target.exists():
        _write(dataset, target, skip_damaged, progress)
    train, test = _open(target)
    return dataclasses.replace(dataset, train=train, test=test)
