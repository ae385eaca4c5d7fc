r"""From an image file to integer pixels: orientation, channels, depth, size.

The size rule is the official one (Dhariwal & Nichol 2021, after Karras et al.), extended to
rectangles: halve with a box filter while both sides are at least twice the target, then resize
bicubically so that the image just covers the target, then cut out the centre. Halving first keeps
the bicubic filter within the range where it does not alias.

Depth: 16-bit grey values $v$ become the nearest 8-bit ones, $\lfloor (v + 128) / 257 \rfloor$.
(Pillow itself reads 16-bit *colour* files as 8 bits, by their high byte.)

Memory is bounded: a header tells the number of pixels before anything is decoded, and of an
extremely long image no more is scaled than is kept.
"""

from typing import Any

import numpy as np
from jaxtyping import UInt8

from .._require import require
from ._files import File, open_file
from ._source import DamagedFileError


_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_ORIENTATION = 0x0112
# 67 megapixels; Pillow itself warns above 89 and refuses above 179.
MAX_PIXELS = 2**26
# Larger intermediates are not made: what will be cropped is not scaled.
_LARGE = 2**24


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


def _check_pixels(image: Any, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(
            f"it is {height}x{width}, {width * height / 1e6:.0f} megapixels, more than "
            f"max_pixels={max_pixels}; where that is right, pass max_pixels={width * height}"
        )


def inspect(file: File, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int, int]:
    """`(channels, height, width)` of an image file as it will be decoded, without decoding it."""
    Image = _pillow("Image")
    try:
        with open_file(file) as stream, Image.open(stream) as image:
            _check_pixels(image, max_pixels)
            channels = _num_channels(image)
            width, height = image.size
            # Reading EXIF that a PNG's header does not announce would decode the whole file.
            asks = image.format != "PNG" or "exif" in image.info
            turned = asks and image.getexif().get(_ORIENTATION, 1) >= 5
    except Exception as error:  # A damaged file makes Pillow's parsers raise nearly anything.
        raise _cannot_read(file, error) from error
    return (channels, width, height) if turned else (channels, height, width)


def _cannot_read(file: File, error: Exception) -> DamagedFileError:
    Image = _pillow("Image")
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return DamagedFileError(
            f"did not decode the image {file} ({error}): where its size is right, pass max_pixels= "
            "and set PIL.Image.MAX_IMAGE_PIXELS = None"
        )
    return DamagedFileError(
        f"cannot decode the image {file} ({error}): repair, convert or remove it"
    )


def _to_8_bits(image: Any) -> Any:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        low, high = values.min(), values.max()
        raise ValueError(f"it holds grey values from {low} to {high}, expected 0 to 65535")
    return _pillow("Image").fromarray(((values + 128) // 257).astype(np.uint8))


def _to_channels(image: Any, channels: int) -> Any:
    Image = _pillow("Image")
    has = _num_channels(image)
    if image.mode.startswith("I"):
        image = _to_8_bits(image)
    elif image.mode != _MODES[has]:
        image = image.convert(_MODES[has])
    if has in (2, 4) and channels in (1, 3):
        # The colours under transparent pixels are arbitrary and must not show (the official code
        # lets them).
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == _MODES[channels] else image.convert(_MODES[channels])


def resize(image: Any, height: int, width: int) -> Any:
    """Box-halves, resizes bicubically and crops the centre of a Pillow image."""
    Image = _pillow("Image")
    while image.width >= 2 * width and image.height >= 2 * height:
        half = (image.width // 2, image.height // 2)
        image = image.resize(half, resample=Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    wide, high = round(image.width * scale), round(image.height * scale)
    left, top = (wide - width) // 2, (high - height) // 2
    if wide * high <= _LARGE or wide * high <= 4 * width * height:
        image = image.resize((wide, high), resample=Image.Resampling.BICUBIC)
        return image.crop((left, top, left + width, top + height))
    # The same pixels, to rounding, of the part that is kept. Its ends are single precision inside
    # Pillow, so the part is first cut out with a margin.
    x, y = image.width / wide, image.height / high
    box = (left * x, top * y, (left + width) * x, (top + height) * y)
    margin = 4 * max(1, x, y)
    west, north = max(0, int(box[0] - margin)), max(0, int(box[1] - margin))
    east = min(image.width, int(box[2] + margin) + 1)
    south = min(image.height, int(box[3] + margin) + 1)
    part = (box[0] - west, box[1] - north, box[2] - west, box[3] - north)
    return image.crop((west, north, east, south)).resize(
        (width, height), resample=Image.Resampling.BICUBIC, box=part
    )


def _planes(image: Any, channels: int) -> UInt8[np.ndarray, "channels height width"]:
    values = np.asarray(image).reshape(image.height, image.width, channels)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def pixels(
    image: Any, size: tuple[int, int] | None, channels: int | None
) -> UInt8[np.ndarray, "channels height width"]:
    """The pixels of a picture of Pillow, turned, converted and resized."""
    image = _pillow("ImageOps").exif_transpose(image)
    channels = channels or _num_channels(image)
    image = _to_channels(image, channels)
    return _planes(image if size is None else resize(image, *size), channels)


def decode(
    file: File, shape: tuple[int, int, int], *, resizes: bool, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "channels height width"]:
    """Reads an image file as uint8 of a given shape; an error names the file."""
    channels, height, width = shape
    Image = _pillow("Image")
    try:
        with open_file(file) as stream, Image.open(stream) as image:
            _check_pixels(image, max_pixels)
            _pillow("ImageOps").exif_transpose(image, in_place=True)
            converted = _to_channels(image, channels)
            converted.load()
            if resizes:
                converted = resize(converted, height, width)
            if converted.size != (width, height):
                raise DamagedFileError(
                    f"{file} is {converted.height}x{converted.width}, expected {height}x{width}: "
                    "it changed since the folder was scanned; read the folder again, or pass "
                    f"image_size=({height}, {width})"
                )
            # Before the file is closed, which frees the pixels.
            return _planes(converted, channels)
    except DamagedFileError:
        raise
    except Exception as error:  # As above.
        raise _cannot_read(file, error) from error
