"""Flax's checkpoints without Flax.

`flax.serialization` writes nested dictionaries as msgpack, arrays as its extension type 1, a msgpack tuple of shape, name of the
dtype, and bytes. Numbers of NumPy are type 3, of the same form; complex numbers are type 2. Large arrays are cut into chunks:
a dictionary with the key `__msgpack_chunked_array__`, the shape, and flat chunks, the last two as dictionaries from "0", "1", … on.
"""

import math
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np


_DTYPES = {
    np.dtype(d).name: np.dtype(d)
    for d in (
        *("float16", "float32", "float64", "int8", "int16", "int32", "int64"),
        *("uint8", "uint16", "uint32", "uint64", "bool", jnp.bfloat16),
    )
}
_CHUNKED = "__msgpack_chunked_array__"


def _require_msgpack():
    try:
        import msgpack
    except ImportError as e:
        raise ImportError(
            "Reading Flax's checkpoints needs msgpack: pip install 'eqdiff[interop]'."
        ) from e
    return msgpack


def _array(data: bytes) -> np.ndarray:
    shape, name, buffer = _require_msgpack().unpackb(data, raw=True)
    name = name.decode() if isinstance(name, bytes) else name
    if name not in _DTYPES:
        raise ValueError(f"an array of dtype {name!r:.40}")
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array of shape {shape!r:.80}")
    if len(buffer) != math.prod(shape) * _DTYPES[name].itemsize:
        raise ValueError(
            f"an array of shape {tuple(shape)} and dtype {name} in {len(buffer)} bytes"
        )
    return np.frombuffer(buffer, _DTYPES[name]).reshape(shape)


def _extension(code: int, data: bytes) -> Any:
    if code == 1:
        return _array(data)
    if code == 2:
        return complex(*_require_msgpack().unpackb(data))
    if code == 3:
        return _array(data)[()]
    raise ValueError(f"the extension type {code}")


def _joined(value: dict) -> np.ndarray:
    shape = tuple(value["shape"][str(i)] for i in range(len(value["shape"])))
    flat = np.concatenate([value["chunks"][str(i)] for i in range(len(value["chunks"]))])
    return flat.reshape(shape)


def read_flax(path: str | os.PathLike) -> Any:
    """What a file of `flax.serialization` or `flax.training.checkpoints.save_checkpoint` holds, without Flax.

    **Arguments:**

    - `path`: the file, such as `checkpoint_26`.

    **Returns:** nested dictionaries of NumPy arrays and plain data.

    **Raises:** `FileNotFoundError`; `ValueError` for a truncated or damaged file; `ImportError` without msgpack.
    """
    msgpack = _require_msgpack()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}.")
    # Every length is checked against what there is before anything of it is made.
    try:
        return msgpack.unpackb(
            path.read_bytes(), ext_hook=_extension, object_hook=_unchunk, strict_map_key=False
        )
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as e:
        detail = str(e) or type(e).__name__
        raise ValueError(
            f"{path} is truncated or damaged, or no msgpack of Flax ({detail})."
        ) from e


def _unchunk(value: dict) -> Any:
    return _joined(value) if value.get(_CHUNKED) else value
