"""A folder of images as a data set: any formats, any sizes, with or without classes.

Files are found recursively and sorted by path, so that the seeded split is the same on every
machine. Images are decoded when they are asked for, in the loader's threads.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from ._decode import decode, inspect
from ._source import AbstractSource, Dataset


_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")


class FolderSource(AbstractSource):
    """Image files that are decoded on access."""

    paths: tuple[Path, ...]
    labels: Integer[np.ndarray, " n"]
    resizes: bool

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Integer[np.ndarray, " n"],
        shape: tuple[int, int, int],
        *,
        resizes: bool = False,
    ):
        """**Arguments:**

        - `paths`, `labels`: one file and one integer per example.
        - `shape`: `(channels, height, width)` of every image.
        - `resizes`: whether to resize images to that height and width, or to insist on it.
        """
        if len(paths) != len(labels):
            raise ValueError(
                f"{len(paths)} paths but {len(labels)} labels: expected one label per path"
            )
        self.paths = tuple(paths)
        self.labels = labels.astype(np.int32)
        self.shape = shape
        self.levels = 256
        self.resizes = resizes

    def __len__(self) -> int:
        return len(self.paths)

    def take(
        self, indices: Integer[np.ndarray, " batch"]
    ) -> tuple[Integer[np.ndarray, "batch channels height width"], Integer[np.ndarray, " batch"]]:
        images = np.empty((len(indices), *self.shape), np.uint8)
        for image, index in zip(images, indices, strict=True):
            image[...] = decode(self.paths[index], self.shape, resizes=self.resizes)
        return images, self.labels[indices]

    def __repr__(self) -> str:
        return f"FolderSource({len(self)} images {self.shape})"


def _find(root: Path) -> list[Path]:
    found, visited = [], set()
    # Data sets are often assembled from links to folders; remembering those visited breaks cycles.
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        found += [
            Path(folder, n)
            for n in names
            if n.lower().endswith(_SUFFIXES) and not n.startswith(".")
        ]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _classes(
    root: Path, paths: list[Path]
) -> tuple[Integer[np.ndarray, " n"], tuple[str, ...] | None]:
    parts = [path.relative_to(root).parts for path in paths]
    if any(len(p) == 1 for p in parts):
        return np.zeros(len(paths), np.int32), None
    number = {name: k for k, name in enumerate(sorted({p[0] for p in parts}))}
    return np.array([number[p[0]] for p in parts], np.int32), tuple(number)


def _common_shape(paths: list[Path], *, size: bool, channels: bool) -> tuple[int, int, int]:
    """The first image's shape, having checked that the others have its size and channels."""
    first = inspect(paths[0])
    for path in paths[1:]:
        shape = inspect(path)
        if size and shape[1:] != first[1:]:
            raise ValueError(
                f"images differ in size (height x width): {paths[0]} is {first[1]}x{first[2]}, "
                f"{path} is {shape[1]}x{shape[2]}; pass image_size={min(*first[1:], *shape[1:])}, "
                "or another size or (height, width), to resize all of them"
            )
        if channels and shape[0] != first[0]:
            raise ValueError(
                f"images differ in channels: {paths[0]} has {first[0]}, {path} has {shape[0]}; "
                "pass channels=3 to read all of them as colour, or channels=1 as grey"
            )
    return first


def _check_arguments(
    image_size: int | tuple[int, int] | None, channels: int | None, test_fraction: float
) -> tuple[int, int] | None:
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is not None and min(size) < 1:
        raise ValueError(
            f"image_size={image_size}: expected a positive integer or (height, width), in pixels"
        )
    if channels not in (None, 1, 2, 3, 4):
        raise ValueError(
            f"channels={channels}: expected 1 (grey), 2 (grey, alpha), 3 (RGB), 4 (RGBA) or None"
        )
    if not 0 <= test_fraction < 1:
        raise ValueError(
            f"test_fraction={test_fraction}: expected 0 (no test set) up to, not including, 1"
        )
    return size


def image_folder(
    directory: str | os.PathLike,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> Dataset[FolderSource]:
    """All images of a folder and its sub-folders, 256 grey levels.

    PNG, JPEG, BMP, WebP, GIF (its first frame) and TIFF files are read; hidden files are not.
    Photographs are rotated as their EXIF orientation says. If no image lies directly in
    `directory`, each first-level sub-folder is a class, in alphabetical order; otherwise there are
    no classes and every label is 0.

    **Arguments:**

    - `directory`: the folder.
    - `image_size`: the side of a square, or `(height, width)`, in pixels. Images are halved with a
        box filter, resized bicubically and cropped at the centre, as in the official code. By
        default they keep their size, which must then be the same for all.
    - `channels`: 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGBA). By default images keep the
        channels they have, which must then be the same for all. Transparency that is dropped is
        composited over white. 16-bit grey values become the nearest 8-bit ones; palettes become
        colours.
    - `test_fraction`: the share of test images, drawn at random; at least one image unless it is 0.
    - `seed`: of the split.

    If both `image_size` and `channels` are given, no file is opened until it is needed, which saves
    a scan of all headers in a large folder.

    **Returns:** a [`eqdiff.data.Dataset`][] whose images are decoded on access.

    **Raises:** `FileNotFoundError` for a missing or empty folder; `ValueError` for images that
    differ, naming two of them and the argument to write; `ValueError` for a damaged image, naming
    it, when it is reached.
    """
    root = Path(directory).expanduser()
    size = _check_arguments(image_size, channels, test_fraction)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a directory: expected a folder of images")
    paths = _find(root)
    if not paths:
        raise FileNotFoundError(f"no images in {root}: expected files named {', '.join(_SUFFIXES)}")
    labels, class_names = _classes(root, paths)
    if size is None or channels is None:
        found = _common_shape(paths, size=size is None, channels=channels is None)
        shape = (channels or found[0], *(size or found[1:]))
    else:
        shape = (channels, *size)
    num_test = round(test_fraction * len(paths))
    if test_fraction > 0:
        num_test = min(max(num_test, 1), len(paths) - 1)
    # RandomState's streams are frozen for good (NEP 19), and so is the split.
    order = np.random.RandomState(seed).permutation(len(paths))

    def part(indices: Integer[np.ndarray, " part"]) -> FolderSource:
        chosen = np.sort(indices)
        return FolderSource(
            [paths[i] for i in chosen], labels[chosen], shape, resizes=size is not None
        )

    return Dataset(
        name=root.resolve().name,
        train=part(order[num_test:]),
        test=part(order[:num_test]),
        class_names=class_names,
    )
