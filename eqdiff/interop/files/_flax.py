"""Flax's checkpoints without Flax.

`flax.serialization` writes nested dictionaries as msgpack, arrays as its extension type 1, a
msgpack tuple of shape, name of the dtype, and bytes. Numbers of NumPy are type 3, of the same form;
complex numbers are type 2. Large arrays are cut into chunks: a dictionary with the key
`__msgpack_chunked_array__`, the shape, and flat chunks, the last two as dictionaries from "0", "1",
… on.
"""

import math
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..._require import require
from ..._shown import reason, shown


_DTYPES = {
    np.dtype(d).name: np.dtype(d)
    for d in (
        *("float16", "float32", "float64", "int8", "int16", "int32", "int64"),
        *("uint8", "uint16", "uint32", "uint64", "bool", jnp.bfloat16),
    )
}
_CHUNKED = "__msgpack_chunked_array__"


def _msgpack() -> Any:
    return require("msgpack", "Reading Flax's checkpoints", extra="interop")


def _array(data: bytes) -> np.ndarray:
    shape, name, buffer = _msgpack().unpackb(data, raw=True)
    name = name.decode() if isinstance(name, bytes) else name
    if name not in _DTYPES:
        raise ValueError(f"an array of dtype {shown(name)}")
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array of shape {shown(shape)}")
    if len(buffer) != math.prod(shape) * _DTYPES[name].itemsize:
        raise ValueError(
            f"an array of shape {shown(tuple(shape))} and dtype {name} in {len(buffer)} bytes"
        )
    return np.frombuffer(buffer, _DTYPES[name]).reshape(shape)


def _extension(code: int, data: bytes) -> Any:
    if code == 1:
        return _array(data)
    if code == 2:
        return complex(*_msgpack().unpackb(data))
    if code == 3:
        return _array(data)[()]
    raise ValueError(f"the extension type {code}")


def _joined(value: dict) -> Any:
    if not value.get(_CHUNKED):
        return value
    shape = tuple(value["shape"][str(i)] for i in range(len(value["shape"])))
    flat = np.concatenate([value["chunks"][str(i)] for i in range(len(value["chunks"]))])
    return flat.reshape(shape)


def read_flax(path: str | os.PathLike) -> Any:
    """What a checkpoint of Flax holds, without Flax.

    **Arguments:**

    - `path`: a file of `flax.serialization` or `flax.training.checkpoints.save_checkpoint`, such as
        `checkpoint_26`.

    **Returns:** nested dictionaries of NumPy arrays and plain data.

    **Raises:** `FileNotFoundError`; `ValueError` for a truncated or damaged file; `ImportError`
    without msgpack.

    **Example:**

    ```python
    contents = eqd.interop.read_flax("checkpoint_26")
    ```
    """
    msgpack = _msgpack()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}.")
    data = path.read_bytes()
    # Every length is compared with what is left of the file before anything is made of it.
    try:
        return msgpack.unpackb(data, ext_hook=_extension, object_hook=_joined, strict_map_key=False)
    except Exception as e:
        # msgpack's own errors, and whatever data that are not Flax's make of the steps above.
        raise ValueError(
            f"{path} is truncated or damaged, or not a msgpack file of Flax ({reason(e)})."
        ) from e
