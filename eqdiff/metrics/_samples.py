"""Images to be judged, from files: an npz as guided-diffusion's, a folder, a zip archive."""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

from .._require import require
from ._reference import read_arrays


_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
_GREY = ("1", "L")
_COLOUR = ("RGB", "P")


def read_samples(
    path: str | os.PathLike,
) -> tuple[UInt8[np.ndarray, "n channels height width"], Integer[np.ndarray, " n"] | None]:
    """Reads 8-bit images and, if there are any, their classes.

    ```python
    images, labels = eqd.metrics.read_samples("samples_50000x64x64x3.npz")
    ```

    **Arguments:**

    - `path`: an npz file with `arr_0`, uint8 `(n, height, width, channels)`, and perhaps labels
        `arr_1`, as improved-diffusion, guided-diffusion and [`eqdiff.data.NPZWriter`][] write them;
        reference batches of guided-diffusion too. Or a folder of images and its sub-folders, or a
        zip archive of images, in the order of their names; these need
        `pip install 'eqdiff[metrics]'`.

    **Returns:** `(images, labels)`: uint8 `(n, channels, height, width)` and integers `(n,)` or
    `None`. Nothing is resized; images are of one channel if all of them are grey.

    **Raises:** `ValueError` for a file without images, of images of several sizes, or that cannot
    be read, naming it. `FileNotFoundError` for a missing file.

    **Example:**

    ```python
    images = jax.random.normal(jax.random.key(0), (16, 3, 8, 8))
    eqd.data.write_npz("samples.npz", images, jnp.arange(16) % 10)
    images, labels = eqd.metrics.read_samples("samples.npz")  # uint8 (16, 3, 8, 8)
    ```
    """
    path = Path(path).expanduser()
    if path.is_dir():
        files = sorted(
            Path(folder, name)
            for folder, _, names in os.walk(path, followlinks=True)
            for name in names
        )
        named = {f.relative_to(path).as_posix(): f.read_bytes for f in files if f.is_file()}
        return _decoded(path, named), None
    if not path.exists():
        raise FileNotFoundError(f"read_samples: {path} does not exist")
    if path.suffix == ".npz":
        return _from_npz(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted(archive.namelist())
            named = {m: lambda m=m: archive.read(m) for m in members}
            return _decoded(path, named), None
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"cannot read {path} ({error}): expected an npz file, a folder or a zip of images"
        ) from error


def _from_npz(path: Path) -> Any:
    stored, found = read_arrays(path, "arr_0", "arr_1")
    if "arr_0" not in stored:
        raise ValueError(f"{path} has no arr_0, but {', '.join(found)}: expected images.")
    images, labels = stored["arr_0"], stored.get("arr_1")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"{path}: arr_0 is {images.dtype} {images.shape}, expected uint8 of shape "
            "(n, height, width, channels) with 1 or 3 channels."
        )
    if len(images) == 0:
        raise ValueError(f"{path} holds no images.")
    if labels is not None and labels.shape != images.shape[:1]:
        raise ValueError(f"{path}: {len(images)} images, but labels of shape {labels.shape}.")
    return images.transpose(0, 3, 1, 2), labels


def _decoded(root: Path, files: dict[str, Callable[[], bytes]]) -> Any:
    names = [
        name
        for name in files
        if name.lower().endswith(_SUFFIXES)
        and not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    ]
    if not names:
        raise ValueError(f"{root} holds no images: expected files such as 000000.png in it.")
    images, grey = None, True
    for i, name in enumerate(names):
        image, is_grey = _decode(f"{root}/{name}", files[name])
        if images is None:
            images = np.empty((len(names), *image.shape), np.uint8)
        sizes = ["x".join(map(str, array.shape[-2:])) for array in (image, images)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{root}/{name} is {sizes[0]} (height, width), but {names[0]} is {sizes[1]}: "
                "expected one size."
            )
        images[i], grey = image, grey and is_grey
    assert images is not None
    return np.ascontiguousarray(images[:, :1]) if grey else images


def _decode(name: str, read: Callable[[], bytes]) -> tuple[UInt8[np.ndarray, "3 h w"], bool]:
    """An image in three channels, and whether these are the same."""
    Image = require("PIL.Image", "read_samples", extra="metrics")
    ops = require("PIL.ImageOps", "read_samples", extra="metrics")
    try:
        with Image.open(io.BytesIO(read())) as image:
            if image.mode not in _GREY + _COLOUR:
                raise ValueError(f"its mode is {image.mode}, expected 8-bit grey or RGB")
            turned = ops.exif_transpose(image)
            pixels = np.asarray(turned.convert("RGB"), np.uint8)
            return pixels.transpose(2, 0, 1), image.mode in _GREY
    except Exception as error:  # A damaged file makes Pillow's parsers raise nearly anything.
        raise ValueError(f"cannot decode the image {name} ({error})") from error
