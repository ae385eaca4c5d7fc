"""CIFAR-10 in its official binary form: found, downloaded, read.

Each of six files is a row of records of 3,073 bytes: a label from 0 to 9, then 1,024 red, 1,024
green and 1,024 blue pixels in row-major order (Krizhevsky 2009,
<https://www.cs.toronto.edu/~kriz/cifar.html>). The official files hold 10,000 records; yours may
hold fewer, so that a subset reads like the whole.

A download is all or nothing. It happens in a temporary folder next to the target: the archive is
checked against its MD5, only files with known names and sizes are extracted, and one rename makes
the result visible. An interrupted or refused download, a wrong archive or a full disk leave the
directory as it was.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from .._download import cache_directory, download as download_file, DownloadError, unpack
from ._dataset import Dataset
from ._source import ArraySource


_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
# The official archive has 170 MB and unpacks to 185 MB.
_MOST_BYTES = 2**28

_FOLDER = "cifar-10-batches-bin"
_TRAIN = tuple(f"data_batch_{k}.bin" for k in range(1, 6))
_TEST = ("test_batch.bin",)
_FILES = _TRAIN + _TEST
_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
_RECORD = 1 + 3 * 32 * 32


def _locate(directory: str | os.PathLike | None) -> tuple[Path, list[str]]:
    root = cache_directory() if directory is None else Path(directory).expanduser()
    found = {c: [n for n in _FILES if not (c / n).is_file()] for c in (root, root / _FOLDER)}
    folder = min(found, key=lambda c: len(found[c]))
    return folder, found[folder]


def _missing_message(folder: Path, missing: list[str]) -> str:
    return (
        f"no complete CIFAR-10 in {folder}: missing {', '.join(missing)}. Pass the directory that "
        f"holds {_FOLDER}, or none to download it into the user's cache, or download it into an "
        "empty one with eqdiff.data.fetch_cifar10(directory)"
    )


def find_cifar10(directory: str | os.PathLike | None = None) -> Path:
    """Finds the folder of CIFAR-10's binary files, without downloading anything.

    **Arguments:**

    - `directory`: the folder `cifar-10-batches-bin` itself or the one that holds it. Default:
        `eqdiff` in `$XDG_CACHE_HOME`, or in `~/.cache`.

    **Returns:** the folder that holds `data_batch_1.bin` … `data_batch_5.bin` and `test_batch.bin`.

    **Raises:** `FileNotFoundError`, with the names that are missing.

    **Example:**

    ```python
    folder = eqd.data.find_cifar10("/data/cifar-10-batches-bin")
    ```
    """
    folder, missing = _locate(directory)
    if missing:
        raise FileNotFoundError(_missing_message(folder, missing))
    return folder


def _count(path: Path) -> int:
    size = path.stat().st_size
    if size == 0 or size % _RECORD:
        raise ValueError(
            f"{path} has {size} bytes, expected a positive multiple of {_RECORD} (one label and "
            f"3×32×32 pixels; {10_000 * _RECORD} bytes in the official file): it is damaged or not "
            "CIFAR-10's binary format"
        )
    return size // _RECORD


def _read(folder: Path, names: tuple[str, ...]) -> ArraySource:
    counts = [_count(folder / name) for name in names]
    # Filled in place: concatenating would hold the whole set twice.
    images = np.empty((sum(counts), 3, 32, 32), np.uint8)
    labels = np.empty(sum(counts), np.int32)
    start = 0
    for name, count in zip(names, counts, strict=True):
        records = np.fromfile(folder / name, np.uint8).reshape(count, _RECORD)
        if records[:, 0].max() > 9:
            at = int(np.argmax(records[:, 0] > 9))
            raise ValueError(
                f"{folder / name} ({count * _RECORD} bytes) has label {records[at, 0]} in record "
                f"{at}, expected 0 to 9: it is damaged or not CIFAR-10's binary format (CIFAR-100 "
                "has two label bytes)"
            )
        labels[start : start + count] = records[:, 0]
        images[start : start + count] = records[:, 1:].reshape(count, 3, 32, 32)
        start += count
    return ArraySource(images, labels)


def _extract(archive: Path, into: Path) -> list[str]:
    """Takes the known files out of the archive; returns the names that it lacks."""
    sizes = {f"{_FOLDER}/{name}": 10_000 * _RECORD for name in _FILES}
    more = {f"{_FOLDER}/{name}": 2**20 for name in ("batches.meta.txt", "readme.html")}
    return sorted(set(sizes) - unpack(archive, into, sizes | more, limit=_MOST_BYTES))


def _install(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        # Another process may have finished first; whatever is there now is its complete download.
        if not all((target / name).is_file() for name in _FILES):
            raise


@contextlib.contextmanager
def _scratch(parent: Path):
    """A temporary folder in `parent`, which is created if need be; an error leaves neither."""
    made = [p for p in (parent, *parent.parents) if not p.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".cifar10-", dir=parent))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def fetch_cifar10(
    directory: str | os.PathLike | None = None,
    *,
    url: str = _URL,
    md5: str = _MD5,
    timeout: float = 5.0,
    total_timeout: float = 3600.0,
    min_rate: float = 1000.0,
    progress: bool = True,
) -> Path:
    """Downloads CIFAR-10's official binary archive (170 MB) and unpacks it.

    **Arguments:**

    - `directory`: where to put the folder `cifar-10-batches-bin` (or that folder itself). Default:
        `eqdiff` in `$XDG_CACHE_HOME`, or in `~/.cache`.
    - `url`, `md5`: of the archive; change them for a mirror.
    - `timeout`: seconds without an answer after which to give up.
    - `total_timeout`: seconds after which to give up in any case.
    - `min_rate`: the bytes per second, over half a minute, below which to give up.
    - `progress`: whether to show a progress bar.

    **Returns:** the folder with the files.

    **Raises:** [`eqdiff.data.DownloadError`][] if the archive cannot be downloaded or is not the
    right one, and `FileExistsError` if the folder already holds something. Either way nothing is
    left behind.

    **Example:**

    ```python
    folder = eqd.data.fetch_cifar10("/data")
    data = eqd.data.cifar10(folder)
    ```
    """
    root = cache_directory() if directory is None else Path(directory).expanduser()
    target = root if root.name == _FOLDER else root / _FOLDER
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(
            f"{target} already exists and nothing is overwritten: read it with "
            "eqdiff.data.cifar10, or remove it to download again"
        )
    try:
        with _scratch(target.parent) as scratch:
            archive = scratch / "archive.tar.gz"
            found, size = download_file(
                url,
                archive,
                digest=hashlib.md5(usedforsecurity=False),
                timeout=timeout,
                total_timeout=total_timeout,
                min_rate=min_rate,
                max_bytes=_MOST_BYTES,
                label="CIFAR-10",
                progress=progress,
            )
            if found != md5:
                raise DownloadError(
                    f"it gave {size} bytes with MD5 {found}, expected {md5}: the download was "
                    "interrupted or the file is another, for which pass a mirror's url="
                )
            if missing := _extract(archive, scratch):
                raise DownloadError(f"the archive lacks {', '.join(missing)}")
            _install(scratch / _FOLDER, target)
    except OSError as error:
        raise DownloadError(
            f"could not download CIFAR-10 from {url} to {target} ({error}): put the folder "
            f"{_FOLDER} somewhere and pass directory=, or try again"
        ) from error
    return target


def cifar10(
    directory: str | os.PathLike | None = None, *, download: bool = True
) -> Dataset[ArraySource]:
    """CIFAR-10: 50,000 training and 10,000 test images, shape `(3, 32, 32)`, ten classes.

    Files with fewer than 10,000 records are accepted: the data set then holds what they hold.

    **Arguments:**

    - `directory`: the folder `cifar-10-batches-bin` itself or the one that holds it. It is only
        read. Default: `eqdiff` in `$XDG_CACHE_HOME`, or in `~/.cache`.
    - `download`: whether to fetch the official archive (170 MB) into the default directory, if no
        other is given and none of its files is there.

    **Returns:** a [`eqdiff.data.Dataset`][], held in memory.

    **Raises:** `FileNotFoundError` if files are missing and not downloaded (or only some are
    missing: nothing is ever overwritten); [`eqdiff.data.DownloadError`][], a `ConnectionError`, if
    the download fails; `ValueError` for a file that is not in the format.

    **Example:**

    ```python
    data = eqd.data.cifar10()
    x, labels = data.held_out(256)  # (256, 3, 32, 32) in [-1, 1]
    ```

    ??? cite "Reference"

        Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, University of Toronto,
        2009.
    """
    folder, missing = _locate(directory)
    if missing and download and directory is None and len(missing) == len(_FILES):
        folder = fetch_cifar10()
    elif missing:
        raise FileNotFoundError(_missing_message(folder, missing))
    return Dataset(
        name="cifar10",
        train=_read(folder, _TRAIN),
        test=_read(folder, _TEST),
        class_names=tuple(_CLASSES.split()),
    )
