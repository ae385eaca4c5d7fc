"""Pictures of images: a grid in one PNG file, large enough to look at."""

import math
import os
from pathlib import Path

import numpy as np
from jaxtyping import ArrayLike, Shaped, UInt8

from .._atomic import write_whole
from .._require import require
from ._pixels import normalise, to_uint8


# Enlarge until the shorter side is at least this many pixels: an 8×8 digit can then be read.
_READABLE = 64
# Neither the black nor the white background that images have.
_GAP_GREY = 128


def _grid(
    images: UInt8[np.ndarray, "n channels height width"], columns: int, scale: int, gap: int
) -> UInt8[np.ndarray, "rows columns channels"]:
    n, channels, height, width = images.shape
    # Nearest neighbour: the picture shows the pixels there are, not an interpolation of them.
    tiles = images.repeat(scale, axis=2).repeat(scale, axis=3).transpose(0, 2, 3, 1)
    high, wide = height * scale + gap, width * scale + gap
    rows = math.ceil(n / columns)
    picture = np.full((rows * high + gap, columns * wide + gap, channels), _GAP_GREY, np.uint8)
    if channels in (2, 4):
        picture[..., -1] = 255
    for i, tile in enumerate(tiles):
        top, left = gap + (i // columns) * high, gap + (i % columns) * wide
        picture[top : top + height * scale, left : left + width * scale] = tile
    return picture


def _check(images: Shaped[np.ndarray, "..."], **sizes: int | None) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 2, 3, 4) or 0 in images.shape:
        raise ValueError(
            f"images have shape {images.shape}, expected (n, channels, height, width) with 1 "
            "(grey) to 4 (RGBA) channels: for one image write images[None]"
        )
    for name, size in sizes.items():
        least = 0 if name == "gap" else 1
        if size is not None and size < least:
            raise ValueError(f"{name}={size}: expected an integer of at least {least}, or None")


def write_grid(
    path: str | os.PathLike,
    images: Shaped[ArrayLike, "..."],
    *,
    levels: int = 256,
    columns: int | None = None,
    scale: int | None = None,
    gap: int | None = None,
) -> None:
    """Writes images as one PNG file, row by row in a grid, enlarged and drawn apart.

    The file appears whole or not at all, so that a viewer never sees half of it. Its folder is
    created if need be.

    **Arguments:**

    - `path`: of the PNG file.
    - `images`: NumPy or JAX array `(n, channels, height, width)`: floats in [-1, 1] (clipped), or
        integer grey levels from 0 to `levels - 1`.
    - `levels`: the number of grey levels, 17 for digits; floats are rounded to the nearest one.
    - `columns`: images in a row. Default: as square a grid as possible.
    - `scale`: how many times to enlarge, by nearest neighbour. Default: until the shorter side has
        64 pixels.
    - `gap`: grey pixels between images and around them. Default: a sixteenth of an enlarged image,
        at least 2.

    **Raises:** `ImportError` without Pillow; `ValueError` for another shape or sizes below these,
    and as [`eqdiff.data.normalise`][] and [`eqdiff.data.to_uint8`][].

    **Example:**

    ```python
    images = jax.random.normal(jax.random.key(0), (16, 3, 8, 8))
    eqd.data.write_grid("samples.png", images)
    ```
    """
    images = np.asarray(images)
    _check(images, columns=columns, scale=scale, gap=gap)
    if images.dtype.kind in "iu":
        images = normalise(images, levels=levels)
    pixels = to_uint8(images, levels=levels)
    n, channels, height, width = pixels.shape
    columns = math.ceil(math.sqrt(n)) if columns is None else min(columns, n)
    scale = math.ceil(_READABLE / min(height, width)) if scale is None else scale
    gap = max(2, min(height, width) * scale // 16) if gap is None else gap
    picture = _grid(pixels, columns, scale, gap)
    image = require("PIL.Image", "eqdiff.data.write_grid", extra="data").fromarray(
        picture[..., 0] if channels == 1 else picture
    )
    write_whole(Path(path).expanduser(), lambda file: image.save(file, format="PNG"))
