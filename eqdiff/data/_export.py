"""What files of samples have in common: pixels, and their labels."""

import hashlib
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Int64, Integer, Shaped, UInt8

from ._pixels import check_levels, normalise, to_uint8


def pixels(
    images: Shaped[np.ndarray, "..."], levels: int, *, first: int = 0
) -> UInt8[np.ndarray, "n height width channels"]:
    """Floats in [-1, 1], or grey levels, as pictures have them; `first` is the first's index."""
    if images.ndim != 4 or images.shape[1] not in (1, 2, 3, 4) or 0 in images.shape[1:]:
        raise ValueError(
            f"images have shape {images.shape}, expected (n, channels, height, width) with 1 "
            "(grey) to 4 (RGBA) channels: for one image write images[None]"
        )
    if images.dtype.kind in "iu":
        images = normalise(images, levels=levels)
    bad = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
    if bad.size:
        shown = ", ".join(map(str, first + bad[:10])) + (", …" if bad.size > 10 else "")
        raise ValueError(
            f"{bad.size} samples have values that are not finite, and no picture shows those: "
            f"{shown}"
        )
    return to_uint8(images, levels=levels).transpose(0, 2, 3, 1)


def whole_labels(labels: Integer[ArrayLike, " n"] | None) -> Int64[np.ndarray, " n"] | None:
    if labels is None:
        return None
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels are {labels.dtype} of shape {labels.shape}, expected one whole number for "
            "each image"
        )
    return labels.astype(np.int64)


def check_number(labels: Int64[np.ndarray, " n"] | None, num: int) -> None:
    if labels is not None and len(labels) != num:
        raise ValueError(f"{len(labels)} labels for {num} images: expected one for each")


def described(
    call: dict[str, Any], labels: Int64[np.ndarray, " n"] | None, levels: int
) -> dict[str, Any]:
    """The call with what a writer adds, once it has been checked that it can be written."""
    check_levels(levels)
    pixels(np.zeros((1, *call["shape"])), levels)
    check_number(labels, call["num"])
    said = b"" if labels is None else labels.tobytes()
    return call | {"levels": levels, "labels": hashlib.sha256(said).hexdigest()}
