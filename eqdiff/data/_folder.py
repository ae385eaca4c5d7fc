"""A folder or a zip archive of images as a data set: any formats, any sizes, with or without
classes.

Files are found recursively and sorted by name, so that the seeded split is the same on every
machine. Images are decoded when they are asked for, in the loader's threads.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from ._dataset import Dataset
from ._decode import decode, inspect, MAX_PIXELS
from ._files import File, Files, files_of_folder, files_of_zip, SUFFIXES, ZipMember
from ._guess import guess
from ._layout import AbstractLayout, EITHER, Reading, TEST, TRAIN
from ._source import AbstractSource


class FolderSource(AbstractSource):
    """Image files that are decoded on access.

    **Example:**

    ```python
    import numpy as np
    eqd.data.write_pngs("pictures", np.zeros((20, 3, 8, 8), np.uint8))
    data = eqd.data.image_folder("pictures")
    image, label = data.train[0]  # of an eqd.data.FolderSource
    ```
    """

    paths: tuple[Path | ZipMember, ...]
    labels: Integer[np.ndarray, " n"]
    resizes: bool
    max_pixels: int

    def __init__(
        self,
        paths: Sequence[Path | ZipMember],
        labels: Integer[np.ndarray, " n"],
        shape: tuple[int, int, int],
        *,
        resizes: bool = False,
        max_pixels: int = MAX_PIXELS,
    ):
        """**Arguments:**

        - `paths`, `labels`: one file and one integer per example.
        - `shape`: `(channels, height, width)` of every image.
        - `resizes`: whether to resize images to that height and width, or to insist on it.
        - `max_pixels`: the most pixels of a file that are decoded.
        """
        if len(paths) != len(labels):
            raise ValueError(
                f"{len(paths)} paths but {len(labels)} labels: expected one label per path"
            )
        self.paths = tuple(paths)
        self.labels = labels.astype(np.int32)
        self.shape: tuple[int, int, int] = shape
        self.levels = 256
        self.resizes, self.max_pixels = resizes, max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def take(
        self, indices: Integer[np.ndarray, " batch"]
    ) -> tuple[Integer[np.ndarray, "batch channels height width"], Integer[np.ndarray, " batch"]]:
        images = np.empty((len(indices), *self.shape), np.uint8)
        for image, index in zip(images, indices, strict=True):
            image[...] = decode(
                self.paths[index], self.shape, resizes=self.resizes, max_pixels=self.max_pixels
            )
        return images, self.labels[indices]

    def __repr__(self) -> str:
        return f"FolderSource({len(self)} images {self.shape})"


def _common_shape(
    paths: Sequence[File], *, size: bool, channels: bool, max_pixels: int
) -> tuple[int, int, int]:
    """The first image's shape, having checked that the others have its size and channels."""
    first = inspect(paths[0], max_pixels=max_pixels)
    for path in paths[1:]:
        shape = inspect(path, max_pixels=max_pixels)
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
    image_size: int | tuple[int, int] | None, channels: int | None, test_fraction: float | None
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
    if test_fraction is not None and not 0 <= test_fraction < 1:
        raise ValueError(
            f"test_fraction={test_fraction}: expected 0 (no test set) up to, not including, 1"
        )
    return size


def _find(root: Path) -> Files:
    if root.is_dir():
        files = files_of_folder(root)
    elif root.suffix.lower() == ".zip" and root.exists():
        files = files_of_zip(root)
    else:
        raise FileNotFoundError(
            f"{root} is not a directory: expected a folder of images, or a .zip of them"
        )
    if not files.names:
        raise FileNotFoundError(f"no images in {root}: expected files named {', '.join(SUFFIXES)}")
    return files


def _describe(name: str, layout: AbstractLayout, guessed: bool, reading: Reading) -> str:
    how = f"{layout}{' (guessed)' if guessed else ''}{reading.note}"
    if reading.class_names is None:
        return f"{name}: {how}, no classes"
    counts = np.bincount(reading.labels, minlength=len(reading.class_names)).tolist()
    told = [f"{c} {k}" for c, k in zip(reading.class_names, counts, strict=True) if k]
    more = f", … and {len(told) - 12} more" if len(told) > 12 else ""
    return f"{name}: {how}, {len(counts)} classes ({', '.join(told[:12])}{more})"


def _split(
    reading: Reading, test_fraction: float | None, seed: int
) -> tuple[Integer[np.ndarray, " train"], Integer[np.ndarray, " test"]]:
    if (reading.part != EITHER).all():
        if test_fraction is not None:
            raise ValueError(
                f"test_fraction={test_fraction}: {reading.files.root} has its own test images; "
                "leave it out, or pass a layout= that does not divide the images"
            )
        return np.flatnonzero(reading.part == TRAIN), np.flatnonzero(reading.part == TEST)
    n, fraction = len(reading.labels), 0.1 if test_fraction is None else test_fraction
    num_test = round(fraction * n)
    if fraction > 0:
        num_test = min(max(num_test, 1), n - 1)
    # RandomState's streams are frozen for good (NEP 19), and so is the split.
    order = np.random.RandomState(seed).permutation(n)
    return np.sort(order[num_test:]), np.sort(order[:num_test])


def image_folder(
    directory: str | os.PathLike,
    *,
    layout: AbstractLayout | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    max_pixels: int = MAX_PIXELS,
) -> Dataset[FolderSource]:
    """Reads all images of a folder and its sub-folders, or of a zip archive: 256 grey levels.

    PNG, JPEG, BMP, WebP, GIF (its first frame) and TIFF files are read; hidden files are not.
    Photographs are rotated as their EXIF orientation says.

    Where the classes are written is the *layout*. Without `layout` it is guessed, if there is only
    one reasonable reading, and `dataset.description` says how, with the classes found and their
    counts: a file `dataset.json` or `labels.csv` (`labels.jsonl`, `metadata.csv`); the folders
    `train` and `test`; first-level sub-folders, if no image lies next to them; names such as
    `cat_0001.png`.
    Otherwise the data have no classes and every label is 0.

    **Arguments:**

    - `directory`: the folder, or a `.zip` file, from which images are read without unpacking it.
    - `layout`: [`eqdiff.data.ClassFolders`][], [`eqdiff.data.FileNames`][],
        [`eqdiff.data.DatasetJSON`][], [`eqdiff.data.LabelFile`][], [`eqdiff.data.Unlabelled`][] or
        [`eqdiff.data.TrainTestFolders`][]. By default it is guessed.
    - `image_size`: the side of a square, or `(height, width)`, in pixels. Images are halved with a
        box filter, resized bicubically and cropped at the centre, as in the official code. By
        default they keep their size, which must then be the same for all.
    - `channels`: 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGBA). By default images keep the
        channels they have, which must then be the same for all. Transparency that is dropped is
        composited over white. 16-bit grey values become the nearest 8-bit ones; palettes become
        colours.
    - `test_fraction`: the share of test images, drawn at random; at least one image unless it is 0.
        By default a tenth. Not for a layout that has its own test images.
    - `seed`: of the split.
    - `max_pixels`: the most pixels of a file that are decoded, so that no file fills the memory.

    If both `image_size` and `channels` are given, no file is opened until it is needed, which saves
    a scan of all headers in a large folder.

    **Returns:** a [`eqdiff.data.Dataset`][] whose images are decoded on access.

    **Raises:** `FileNotFoundError` for a missing or empty folder; `ValueError` for images that
    differ, naming two of them and the argument to write, and for a folder with two readings, naming
    both; [`eqdiff.data.DamagedFileError`][], a `ValueError`, for a damaged image, naming it, when
    it is reached.

    **Example:**

    ```python
    import numpy as np
    eqd.data.write_pngs("pictures", np.zeros((20, 3, 8, 8), np.uint8))
    data = eqd.data.image_folder("pictures", image_size=4)
    print(data.description)
    ```
    """
    root = Path(directory).expanduser()
    size = _check_arguments(image_size, channels, test_fraction)
    files = _find(root)
    guessed = layout is None
    layout = guess(files) if layout is None else layout
    reading = layout.read(files)
    train, test = _split(reading, test_fraction, seed)
    paths, labels = reading.files.files, reading.labels
    if size is None or channels is None:
        found = _common_shape(
            paths, size=size is None, channels=channels is None, max_pixels=max_pixels
        )
        shape = (channels or found[0], *(size or found[1:]))
    else:
        shape = (channels, *size)

    def part(chosen: Integer[np.ndarray, " part"]) -> FolderSource:
        return FolderSource(
            [paths[i] for i in chosen],
            labels[chosen],
            shape,
            resizes=size is not None,
            max_pixels=max_pixels,
        )

    name = root.resolve().name
    counts = f"; {len(train)} training and {len(test)} test images {shape}"
    return Dataset(
        name=name,
        train=part(train),
        test=part(test),
        class_names=reading.class_names,
        description=_describe(name, layout, guessed, reading) + counts,
    )
