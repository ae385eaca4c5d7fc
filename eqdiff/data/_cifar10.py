"""CIFAR-10 in its official binary form.

Each of six files is a row of records of 3,073 bytes: a label from 0 to 9, then 1,024 red, 1,024
green and 1,024 blue pixels in row-major order (Krizhevsky 2009,
<https://www.cs.toronto.edu/~kriz/cifar.html>). The official files hold 10,000 records; ours may
hold fewer, so that a subset reads like the whole.
"""

import os
from pathlib import Path

import numpy as np

from ._dataset import Dataset
from ._download import fetch_cifar10
from ._files import CLASS_NAMES, default_directory, FOLDER, TEST_FILES, TRAIN_FILES
from ._source import ArraySource


_RECORD = 1 + 3 * 32 * 32


def _locate(directory: str | os.PathLike | None) -> tuple[Path, list[str]]:
    root = default_directory() if directory is None else Path(directory).expanduser()
    names = TRAIN_FILES + TEST_FILES
    found = {c: [n for n in names if not (c / n).is_file()] for c in (root, root / FOLDER)}
    folder = min(found, key=lambda c: len(found[c]))
    return folder, found[folder]


def _missing_message(folder: Path, missing: list[str]) -> str:
    return (
        f"no complete CIFAR-10 in {folder}: missing {', '.join(missing)}. Pass the directory that "
        f"holds {FOLDER}, or download it into an empty one with "
        "eqdiff.data.fetch_cifar10(directory)"
    )


def find_cifar10(directory: str | os.PathLike | None = None) -> Path:
    """Finds the folder of CIFAR-10's binary files, without downloading anything.

    **Arguments:**

    - `directory`: the folder `cifar-10-batches-bin` itself or the one that holds it. Default:
        `eqdiff` in `$XDG_CACHE_HOME`, or in `~/.cache`.

    **Returns:** the folder that holds `data_batch_1.bin` … `data_batch_5.bin` and `test_batch.bin`.

    **Raises:** `FileNotFoundError`, with the names that are missing.
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


def cifar10(
    directory: str | os.PathLike | None = None, *, download: bool = True
) -> Dataset[ArraySource]:
    """CIFAR-10: 50,000 training and 10,000 test images, shape `(3, 32, 32)`, ten classes.

    Files with fewer than 10,000 records are accepted: the data set then holds what they hold.

    **Arguments:**

    - `directory`: the folder `cifar-10-batches-bin` itself or the one that holds it. Default:
        `eqdiff` in `$XDG_CACHE_HOME`, or in `~/.cache`.
    - `download`: whether to fetch the official archive (170 MB) if there is not one of its files
        yet.

    **Returns:** a [`eqdiff.data.Dataset`][], held in memory.

    **Raises:** `FileNotFoundError` if files are missing and not downloaded (or only some are
    missing: nothing is ever overwritten); [`eqdiff.data.DownloadError`][], a `ConnectionError`, if
    the download fails; `ValueError` for a file that is not in the format.

    ??? cite "Reference"

        ```bibtex
        @techreport{krizhevsky2009learning,
            author={Krizhevsky, Alex},
            title={Learning Multiple Layers of Features from Tiny Images},
            institution={University of Toronto},
            year={2009},
        }
        ```
    """
    folder, missing = _locate(directory)
    if missing and download and len(missing) == len(TRAIN_FILES + TEST_FILES):
        folder = fetch_cifar10(directory)
    elif missing:
        raise FileNotFoundError(_missing_message(folder, missing))
    return Dataset(
        name="cifar10",
        train=_read(folder, TRAIN_FILES),
        test=_read(folder, TEST_FILES),
        class_names=CLASS_NAMES,
    )
