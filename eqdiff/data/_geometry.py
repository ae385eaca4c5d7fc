r"""Affine maps of images, resampled as well as the size of an image allows.

The image is continued by reflection, doubled in resolution with a wavelet's low-pass filter, read
bilinearly where the map says, and halved with the same filter. The filter (sym6) is orthogonal to
its even shifts, so that the identity gives every pixel back,

$$\sum_k h_k h_{k + 2m} = \delta_{m0}, \qquad \sum_k h_k = \sqrt 2. \tag{1}$$

This is what EDM does, after Karras et al. (2020), *Training Generative Adversarial Networks with
Limited Data*. There a batch shares one margin; here each image has its own, so that it does not
depend on its neighbours. Reflection and filtering are linear: one matrix per axis.
"""

import functools

import numpy as np
from jaxtyping import Float, Float32, Float64


# Daubechies' least asymmetric wavelet with six vanishing moments.
_SYM6 = np.array(
    [
        *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
        *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
        *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
    ]
)
_HALF = 5  # The tap of the filter that stands over a pixel.
_BORDER = 3  # Pixels around the image that the filter of the way back reaches.


@functools.lru_cache(maxsize=32)
def _double(size: int) -> Float32[np.ndarray, "fine size"]:
    """Reflects `size` pixels to both sides, as far as they go, and doubles their resolution."""
    margin = size - 1
    period = max(1, 2 * margin)
    place = np.abs((np.arange(-margin, size + margin) + margin) % period - margin)
    padded = len(place)
    fine = np.arange(2 * padded)[:, None] + _HALF - 2 * np.arange(padded)
    filtered = np.where((fine >= 0) & (fine < 12), _SYM6[np.clip(fine, 0, 11)], 0)
    matrix = np.zeros((2 * padded, size))
    np.add.at(matrix.T, place, filtered.T)
    return matrix.astype(np.float32)


@functools.lru_cache(maxsize=32)
def _halve(size: int) -> Float32[np.ndarray, "size fine"]:
    """The way back, from `size` pixels and the border around them, at twice the resolution."""
    fine = np.arange(2 * (size + 2 * _BORDER)) + _HALF - 2 * (np.arange(size)[:, None] + _BORDER)
    weights = np.where((fine >= 0) & (fine < 12), _SYM6[np.clip(fine, 0, 11)], 0)
    return weights.astype(np.float32)


def _bilinear(
    image: Float[np.ndarray, "channels high wide"],
    y: Float64[np.ndarray, "rows columns"],
    x: Float64[np.ndarray, "rows columns"],
) -> Float32[np.ndarray, "channels rows columns"]:
    """Reads between pixels; there is nothing outside."""
    high, wide = image.shape[1:]
    # A frame of zeros answers for everything outside.
    framed = np.zeros((image.shape[0], high + 2, wide + 2), np.float32)
    framed[:, 1:-1, 1:-1] = image
    y, x = np.clip(y + 1, 0, high + 1), np.clip(x + 1, 0, wide + 1)
    top, left = np.minimum(y.astype(np.intp), high), np.minimum(x.astype(np.intp), wide)
    v, u = (y - top).astype(np.float32), (x - left).astype(np.float32)
    flat, at = framed.reshape(image.shape[0], -1), top * (wide + 2) + left
    above = flat[:, at] * (1 - u) + flat[:, at + 1] * u
    below = flat[:, at + wide + 2] * (1 - u) + flat[:, at + wide + 3] * u
    return above * (1 - v) + below * v


def transform(
    image: Float32[np.ndarray, "channels height width"], inverse: Float64[np.ndarray, "3 3"]
) -> Float32[np.ndarray, "channels height width"]:
    """Moves an image's content by an affine map.

    **Arguments:**

    - `image`: any numbers.
    - `inverse`: the map's inverse in homogeneous pixel coordinates `(x, y, 1)` about the centre of
        the image: where each pixel of the result comes from.

    **Returns:** the image of the same shape.
    """
    height, width = image.shape[1:]
    double_y, double_x = _double(height), _double(width)
    rows, columns = 2 * (height + 2 * _BORDER), 2 * (width + 2 * _BORDER)
    # At twice the resolution pixel centres are at half-integers, half a fine pixel from those of
    # the image, hence 1/2 on the way there and back.
    x = (np.arange(columns) + 1 - columns / 2) / 2
    y = (np.arange(rows)[:, None] + 1 - rows / 2) / 2
    from_x = 2 * (inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]) - 1
    from_y = 2 * (inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2]) - 1
    from_x, from_y = from_x + len(double_x) / 2, from_y + len(double_y) / 2
    # Only what will be read is made.
    low_x, high_x = _range(from_x, len(double_x))
    low_y, high_y = _range(from_y, len(double_y))
    fine = double_y[low_y:high_y] @ image @ double_x[low_x:high_x].T
    # One more pixel on each side where there is one: cut edges are never read.
    moved = _bilinear(fine, from_y - low_y, from_x - low_x)
    return _halve(height) @ moved @ _halve(width).T


def _range(places: Float64[np.ndarray, "rows columns"], size: int) -> tuple[int, int]:
    low = int(np.clip(np.floor(places.min()) - 1, 0, size - 1))
    return low, int(np.clip(np.ceil(places.max()) + 2, low + 1, size))
