r"""From an image file to integer pixels: orientation, channels, depth, size.

The size rule is the official one (Dhariwal & Nichol 2021, after Karras et al.), extended to
rectangles: halve with a box filter while both sides are at least twice the target, then resize
bicubically so that the image just covers the target, then cut out the centre. Halving first keeps
the bicubic filter within the range where it does not alias.

Depth: 16-bit grey values $v$ become the nearest 8-bit ones, $\lfloor (v + 128) / 257 \rfloor$.
(Pillow itself reads 16-bit *colour* files as 8 bits, by their high byte.)
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from .._require import require


_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_ORIENTATION = 0x0112


def _pillow(module: str) -> Any:
    return require(f"PIL.{module}", "eqdiff.data.image_folder", extra="data")


def _num_channels(image: Any) -> int:
    """The number of channels an image has, from its header alone."""
    if image.mode == "F":
        raise ValueError("it holds floats, expected 8- or 16-bit integers")
    if image.mode in ("1", "L") or image.mode.startswith("I"):
        return 1
    if image.mode in ("LA", "La"):
        return 2
    transparent = image.mode in ("RGBA", "RGBa", "PA")
    return 4 if transparent or (image.mode == "P" and "transparency" in image.info) else 3


def inspect(path: Path) -> tuple[int, int, int]:
    """`(channels, height, width)` of an image file as it will be decoded, without decoding it."""
    try:
        with _pillow("Image").open(path) as image:
            channels = _num_channels(image)
            width, height = image.size
            # Reading EXIF that a PNG's header does not announce would decode the whole file.
            asks = image.format != "PNG" or "exif" in image.info
            turned = asks and image.getexif().get(_ORIENTATION, 1) >= 5
    except ImportError:
        raise
    except Exception as error:  # A damaged file makes Pillow's parsers raise nearly anything.
        raise _cannot_read(path, error) from error
    return (channels, width, height) if turned else (channels, height, width)


def _cannot_read(path: Path, error: Exception) -> ValueError:
    return ValueError(f"cannot decode the image {path} ({error}): repair, convert or remove it")


def _to_8_bits(image: Any) -> Any:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        low, high = values.min(), values.max()
        raise ValueError(f"it holds grey values from {low} to {high}, expected 0 to 65535")
    return _pillow("Image").fromarray(((values + 128) // 257).astype(np.uint8))


def _to_channels(image: Any, channels: int) -> Any:
    Image = _pillow("Image")
    has = _num_channels(image)
    image = _to_8_bits(image) if image.mode.startswith("I") else image.convert(_MODES[has])
    if has in (2, 4) and channels in (1, 3):
        # The colours under transparent pixels are arbitrary and must not show (the official code
        # lets them).
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(_MODES[channels])


def resize(image: Any, height: int, width: int) -> Any:
    """Box-halves, resizes bicubically and crops the centre of a Pillow image."""
    Image = _pillow("Image")
    while image.width >= 2 * width and image.height >= 2 * height:
        half = (image.width // 2, image.height // 2)
        image = image.resize(half, resample=Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, resample=Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def decode(
    path: Path, shape: tuple[int, int, int], *, resizes: bool
) -> UInt8[np.ndarray, "channels height width"]:
    """Reads an image file as uint8 of a given shape; an error names the file."""
    channels, height, width = shape
    try:
        with _pillow("Image").open(path) as image:
            image = _pillow("ImageOps").exif_transpose(image)
            image = _to_channels(image, channels)
    except ImportError:
        raise
    except Exception as error:  # As above.
        raise _cannot_read(path, error) from error
    if resizes:
        image = resize(image, height, width)
    if image.size != (width, height):
        raise ValueError(
            f"{path} is {image.height}x{image.width}, expected {height}x{width}: it changed since "
            f"the folder was scanned; read the folder again, or pass image_size=({height}, {width})"
        )
    pixels = np.asarray(image).reshape(height, width, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
