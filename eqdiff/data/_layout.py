"""Where the class of an image is written: its folder, its name, or a list of labels.

A *layout* reads the labels of a folder's (or an archive's) images. Class names are sorted, and a
label is a name's place among them; labels that are numbers in a list stay the numbers they are.
"""

import abc
import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int32

from ._files import Files


# A class is a row of a table in the network: no number of classes beyond it is meant.
_MOST_CLASSES = 2**20

TRAIN, TEST, EITHER = 0, 1, 2


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """What a layout found.

    The label of each of `files`, the names of the classes, and for each file whether it is for
    training, for tests, or either.
    """

    files: Files
    labels: Int32[np.ndarray, " n"]
    class_names: tuple[str, ...] | None
    part: Int32[np.ndarray, " n"]
    note: str = ""


def _reading(files: Files, labels: Sequence[int], class_names: tuple[str, ...] | None) -> Reading:
    part = np.full(len(files.names), EITHER, np.int32)
    return Reading(files, np.asarray(labels, np.int32), class_names, part)


def _by_name(files: Files, names: Sequence[str]) -> Reading:
    number = {name: k for k, name in enumerate(sorted(set(names)))}
    return _reading(files, [number[name] for name in names], tuple(number))


def _by_number(files: Files, labels: Sequence[int], where: str) -> Reading:
    low, high = min(labels), max(labels)
    if low < 0 or high >= _MOST_CLASSES:
        raise ValueError(
            f"{where} has labels from {low} to {high}, expected class numbers from 0 to "
            f"{_MOST_CLASSES - 1}"
        )
    return _reading(files, labels, tuple(str(k) for k in range(high + 1)))


class AbstractLayout(abc.ABC):
    """Base class of layouts, for `image_folder(layout=)`."""

    @abc.abstractmethod
    def read(self, files: Files) -> Reading:
        """The labels of all images; `ValueError` where the files are not laid out so."""


@dataclasses.dataclass(frozen=True)
class Unlabelled(AbstractLayout):
    """Images without classes, wherever they lie: every label is 0.

    **Example:**

    ```python
    layout = eqd.data.Unlabelled()  # the `layout` of eqd.data.image_folder
    ```
    """

    def read(self, files: Files) -> Reading:
        return _reading(files, [0] * len(files.names), None)


@dataclasses.dataclass(frozen=True)
class ClassFolders(AbstractLayout):
    """Each first-level sub-folder is a class: `cat/1.png`, `dog/puppies/2.png`.

    **Example:**

    ```python
    layout = eqd.data.ClassFolders()  # the `layout` of eqd.data.image_folder
    ```
    """

    def read(self, files: Files) -> Reading:
        lost = [name for name in files.names if "/" not in name]
        if lost:
            raise ValueError(
                f"layout=ClassFolders(): {files.root}/{lost[0]} lies in no sub-folder (of "
                f"{len(lost)} such images); move it into its class's"
            )
        return _by_name(files, [name.partition("/")[0] for name in files.names])


@dataclasses.dataclass(frozen=True)
class FileNames(AbstractLayout):
    """The class is a file's name up to the first `_`, as improved-diffusion and guided-diffusion
    read it: `cat_00001.png`.

    **Example:**

    ```python
    layout = eqd.data.FileNames()  # the `layout` of eqd.data.image_folder
    ```
    """

    def read(self, files: Files) -> Reading:
        names = [name.rpartition("/")[2] for name in files.names]
        for name, whole in zip(names, files.names, strict=True):
            if name.partition("_")[0] in ("", name):
                raise ValueError(
                    f"layout=FileNames(): {files.root}/{whole} has no class before a '_', expected "
                    "names such as cat_00001.png"
                )
        return _by_name(files, [name.partition("_")[0] for name in names])


def _whole_number(value: object) -> int | None:
    """A label as an integer, or `None` if it is not one; `True` is not."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = value.strip() if isinstance(value, str) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


@dataclasses.dataclass(frozen=True)
class DatasetJSON(AbstractLayout):
    """`dataset.json` as NVIDIA's `dataset_tool.py` writes it: `{"labels": [["00000/img1.png", 6],
    …]}`, or `{"labels": null}` for images without classes. Folders are shards, not classes.

    - `name`: of the file, relative to the folder or the archive.

    **Example:**

    ```python
    layout = eqd.data.DatasetJSON("labels.json")  # the `layout` of eqd.data.image_folder
    ```
    """

    name: str = "dataset.json"

    def read(self, files: Files) -> Reading:
        where = f"{files.root}/{self.name}"
        text = files.read_text(self.name)
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON ({error})") from error
        entries = content.get("labels", "none") if isinstance(content, dict) else "none"
        if entries is None:
            return Unlabelled().read(files)
        pairs = entries if isinstance(entries, list) else [entries]
        label_of = {}
        for pair in pairs:
            good = isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)
            label = _whole_number(pair[1]) if good and not isinstance(pair[1], str) else None
            if label is None:
                raise ValueError(
                    f'{where} is not laid out as {{"labels": [["name.png", 3], …]}} with class '
                    f"numbers: its entry {str(pair)[:80] if good else '…'} is another"
                )
            label_of[pair[0]] = label
        return _by_number(files, _matched(files, label_of, self.name), where)


def _matched(files: Files, label_of: dict, name: str) -> list:
    """The label of each image, by its name relative to the root or, where unique, its last part."""
    missing = [image for image in files.names if image not in label_of]
    if missing and len(missing) == len(files.names):
        last = [image.rpartition("/")[2] for image in files.names]
        if len(set(last)) == len(last) and set(last) <= set(label_of):
            return [label_of[image] for image in last]
    if missing:
        raise ValueError(
            f"{files.root}/{missing[0]} has no label in {name} ({len(missing)} of "
            f"{len(files.names)} images have none): add it, or move it elsewhere"
        )
    return [label_of[image] for image in files.names]


_FILE_COLUMNS = ("file", "file_name", "filename", "image", "path")
_LABEL_COLUMNS = ("label", "class", "class_name")


def _rows_of_jsonl(text: str, where: str) -> Iterable[dict]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}, line {number}, is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}, line {number}, is not an object with a file and a label")
        yield row


def _rows_of_csv(text: str, where: str, images: Iterable[str]) -> Iterable[dict]:
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error as error:
        raise ValueError(f"{where} is not CSV ({error})") from error
    if not rows:
        return
    names = {*images, *(image.rpartition("/")[2] for image in images)}
    bare = len(rows[0]) == 2 and rows[0][0] in names
    header = ["file", "label"] if bare else [cell.strip() for cell in rows.pop(0)]
    for number, row in enumerate(rows, 1 if bare else 2):
        if len(row) != len(header):
            raise ValueError(
                f"{where}, row {number}, has {len(row)} cells, expected {len(header)}: "
                f"{', '.join(header)[:200]}"
            )
        yield dict(zip(header, row, strict=True))


@dataclasses.dataclass(frozen=True)
class LabelFile(AbstractLayout):
    """A list of files and their labels: CSV (`cat1.png,cat`, with or without a header) or JSONL
    (`{"file": "cat1.png", "label": "cat"}`), as in Hugging Face's `metadata.jsonl`.

    Labels that are all whole numbers are kept; others are names of classes.

    - `path`: of the file, relative to the folder or the archive.
    - `file`, `label`: which columns. By default the one named `file`, `file_name`, `filename`,
        `image` or `path`, and the one named `label`, `class` or `class_name`.

    **Example:**

    ```python
    layout = eqd.data.LabelFile("birds.csv", label="species")  # of eqd.data.image_folder
    ```
    """

    path: str
    file: str | None = None
    label: str | None = None

    def _pick(self, row: dict, given: str | None, known: tuple[str, ...], what: str) -> str:
        found = [given] if given is not None else [name for name in known if name in row]
        if len(found) != 1 or found[0] not in row:
            columns = ", ".join(map(str, row))[:200]
            raise ValueError(
                f"{self.path} has columns {columns}: say which one holds the {what} with "
                f"LabelFile({self.path!r}, {what}=)"
            )
        return found[0]

    def read(self, files: Files) -> Reading:
        where = f"{files.root}/{self.path}"
        text = files.read_text(self.path)
        if self.path.lower().endswith((".jsonl", ".json")):
            rows = _rows_of_jsonl(text, where)
        else:
            rows = _rows_of_csv(text, where, files.names)
        label_of = {}
        for row in rows:
            file = row[self._pick(row, self.file, _FILE_COLUMNS, "file")]
            label = row[self._pick(row, self.label, _LABEL_COLUMNS, "label")]
            if not isinstance(file, str) or not isinstance(label, str | int):
                raise ValueError(
                    f"{where} has the file {str(file)[:80]!r} with the label {str(label)[:80]!r}, "
                    "expected a name and a name or a number"
                )
            if label_of.setdefault(file, label) != label:
                raise ValueError(f"{where} has two labels for {file}: {label_of[file]} and {label}")
        labels = _matched(files, label_of, self.path)
        numbers = [_whole_number(label) for label in labels]
        if None not in numbers:
            return _by_number(files, [n for n in numbers if n is not None], where)
        return _by_name(files, [str(label).strip() for label in labels])
