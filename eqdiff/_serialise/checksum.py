"""CRC-32 of what a file holds, so that a damaged one is noticed and not computed with.

The description has one for every tensor, over its name, type, shape and numbers; the file's
metadata have one over the description and the format's version. Files that were written before
there were any have none, and are read as they are.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def crc_of_tensor(name: str, array: np.ndarray) -> str:
    """Of a name and an array, as eight hexadecimal digits."""
    start = zlib.crc32(f"{name} {array.dtype.name} {array.shape}".encode())
    numbers = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return f"{zlib.crc32(numbers, start):08x}"


def crc_of_text(format_version: str, model: str) -> str:
    """Of a description and the version of its format."""
    return f"{zlib.crc32(f'{format_version} {model}'.encode()):08x}"


def changed(checksums: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> list[str]:
    """The names of the tensors that are not what was saved."""
    return [n for n, array in tensors.items() if checksums.get(n) != crc_of_tensor(n, array)]
