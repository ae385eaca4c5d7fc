"""Layouts that consist of others: train and test trees, and the guess where none is given.

A guess must be the only reasonable reading. Where there are two, the user is asked.
"""

import dataclasses
import re

import numpy as np

from ._files import Files
from ._layout import (
    AbstractLayout,
    ClassFolders,
    DatasetJSON,
    FileNames,
    LabelFile,
    Reading,
    TEST,
    TRAIN,
    Unlabelled,
)


_TRAINS = ("train", "training")
_TESTS = ("test", "testing", "val", "valid", "validation")
_LISTS = ("labels.csv", "labels.jsonl", "metadata.csv", "metadata.jsonl")


@dataclasses.dataclass(frozen=True)
class TrainTestFolders(AbstractLayout):
    """A tree for training and one for tests: `train/cat/1.png`, `test/cat/2.png`.

    - `train`, `test`: the names of the two first-level folders. Others are not read.
    - `within`: the layout of each of them; guessed by default.

    **Example:**

    ```python
    layout = eqd.data.TrainTestFolders("train", "val", within=eqd.data.ClassFolders())
    ```
    """

    train: str = "train"
    test: str = "test"
    within: AbstractLayout | None = None

    def read(self, files: Files) -> Reading:
        trees = [files.within(self.train), files.within(self.test)]
        for tree in trees:
            if not tree.names:
                raise ValueError(f"layout={self}: there are no images in {tree.root}")
        within = [self.within or guess(tree) for tree in trees]
        if within[0] != within[1]:
            raise ValueError(
                f"{trees[0].root} looks like {within[0]} but {trees[1].root} like {within[1]}: "
                f"write layout=TrainTestFolders({self.train!r}, {self.test!r}, within=…)"
            )
        train, test = (within[0].read(tree) for tree in trees)
        names, labels = _merge(train, test)
        part = np.repeat(np.array([TRAIN, TEST], np.int32), [len(train.labels), len(test.labels)])
        both = Files(
            files.root,
            (
                *(f"{self.train}/{n}" for n in trees[0].names),
                *(f"{self.test}/{n}" for n in trees[1].names),
            ),
            (*trees[0].files, *trees[1].files),
            {},
        )
        left = sorted({n.partition("/")[0] for n in files.names} - {self.train, self.test})
        note = f"; not read: {', '.join(left)[:100]}" if left else ""
        return Reading(both, labels, names, part, f" within {within[0]}{note}")


def _merge(train: Reading, test: Reading):
    """The classes of both trees, and their labels one after the other."""
    found = [r.class_names for r in (train, test)]
    known = [names for names in found if names is not None]
    labels = [train.labels, test.labels]
    if len(known) == 1:
        raise ValueError("one of the two trees has classes and the other one has none")
    if not known:
        return None, np.concatenate(labels)
    # Numbers in a list are kept as they are; names get their place among all of them.
    if all(names == tuple(map(str, range(len(names)))) for names in known):
        return max(known, key=len), np.concatenate(labels)
    union = tuple(sorted({name for names in known for name in names}))
    place = {name: k for k, name in enumerate(union)}
    moved = [
        np.array([place[name] for name in names], np.int32)[ys]
        for names, ys in zip(known, labels, strict=True)
    ]
    return union, np.concatenate(moved)


def _ambiguous(files: Files, first: object, why: str, second: object, why_not: str) -> ValueError:
    return ValueError(
        f"{files.root} can be read in two ways: as {first} ({why}), or as {second} ({why_not}). "
        f"Write layout=eqd.data.{first} or layout=eqd.data.{second}"
    )


def _tree(files: Files, folders: list[str]) -> TrainTestFolders | None:
    train = [f for f in folders if f.lower() in _TRAINS]
    test = sorted(
        (f for f in folders if f.lower() in _TESTS), key=lambda f: _TESTS.index(f.lower())
    )
    others = len(folders) - len(train) - len(test)
    return TrainTestFolders(train[0], test[0]) if len(train) == 1 and test and not others else None


def _agrees(files: Files, layout: AbstractLayout) -> bool:
    """Whether sub-folders divide the images as another layout does."""
    pairs = set(
        zip(
            ClassFolders().read(files).labels.tolist(),
            layout.read(files).labels.tolist(),
            strict=True,
        )
    )
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def _from_names(files: Files) -> AbstractLayout:
    """Of images that lie in the folder itself: by their names, or none."""
    stems = [name.rpartition(".")[0] for name in files.names]
    matches = [re.fullmatch(r"([^_]+)_[0-9]+", stem) for stem in stems]
    prefixes = [match[1] for match in matches if match]
    counts = {prefix: prefixes.count(prefix) for prefix in set(prefixes)}
    if len(prefixes) < len(stems) or len(counts) < 2 or min(counts.values()) < 2:
        return Unlabelled()
    if any(prefix.isdigit() for prefix in counts):
        example = files.names[0]
        raise _ambiguous(
            files,
            FileNames(),
            f"{example!r} is of class {prefixes[0]!r}",
            Unlabelled(),
            "the numbers before '_' mean nothing",
        )
    return FileNames()


def guess(files: Files) -> AbstractLayout:
    """The only reasonable layout of files; `ValueError` with both where there are two."""
    at_root = [name for name in files.names if "/" not in name]
    folders = [] if at_root else sorted({name.partition("/")[0] for name in files.names})
    listed: list[AbstractLayout] = [LabelFile(name) for name in _LISTS if name in files.texts]
    if "dataset.json" in files.texts:
        listed.insert(0, DatasetJSON())
    shards = len(folders) > 1 and all(f.isdigit() and len(f) > 3 for f in folders)
    if len(listed) > 1:
        raise _ambiguous(files, listed[0], "it is there", listed[1], "it is there too")
    if listed:
        if len(folders) > 1 and not shards and not _agrees(files, listed[0]):
            raise _ambiguous(
                files,
                listed[0],
                "it is there",
                ClassFolders(),
                f"sub-folders {', '.join(folders)[:80]} divide the images differently",
            )
        return listed[0]
    if tree := _tree(files, folders):
        return tree
    if shards:
        raise _ambiguous(
            files,
            ClassFolders(),
            f"sub-folders {', '.join(folders[:3])} … are classes",
            Unlabelled(),
            "they are shards",
        )
    if folders:
        return ClassFolders()
    return Unlabelled() if len(at_root) < len(files.names) else _from_names(files)
