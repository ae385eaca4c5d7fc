"""Weights and images by a rule, so that the fixtures here hold answers alone (NumPy alone)."""

import math
import zlib

import numpy as np


def weights(shapes):
    """A state dict with arrays of these shapes: each depends on its own name alone."""
    return {name: _weight(name, tuple(shape)) for name, shape in shapes.items()}


def _weight(name, shape):
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if len(shape) > 1:  # A convolution or a matrix: keeps the size of what it is given.
        values = random.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    elif name.endswith("running_var"):
        values = random.uniform(0.5, 1.5, shape)
    elif name.endswith("weight"):
        values = random.uniform(0.8, 1.2, shape)
    else:
        values = random.normal(0, 0.2, shape)
    return np.asarray(values, np.float32)


def image(seed, channels, height, width):
    """Smooth waves and grains of noise, uint8."""
    random = np.random.RandomState(seed)
    rows, columns = np.mgrid[:height, :width] / 8
    phases = random.uniform(0, 6, (channels, 3, 1, 1))
    waves = np.sin(rows + phases[:, 0]) + np.sin(columns * (1 + phases[:, 2] / 4) + phases[:, 1])
    noise = random.standard_normal((channels, height, width))
    return np.clip(128 + 50 * waves + 25 * noise, 0, 255).astype(np.uint8)
