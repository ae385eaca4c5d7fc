r"""What tensors, arrays and objects are while a pickle is being read.

A tensor is a view of a storage,

$$\theta_{i_1 \dots i_n} = s_{o + \sum_k i_k d_k}, \qquad 0 \le i_k < n_k, \tag{1}$$

with an offset $o$ and strides $d_k$ that the file chooses. They are checked before anything is made
of them: the last number must lie inside the storage, and there may be no more numbers than the
storage has, since views that overlap (strides of 0) could fill any memory from a few bytes.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .._shown import shortened, shown


class Refused(Exception):
    """What a file must not say, as the rest of a sentence that begins with its name."""


class Global(NamedTuple):
    """A name in a pickle: never imported, only compared."""

    module: str
    name: str

    def __str__(self) -> str:
        return shortened(f"{self.module}.{self.name}", 80)


class Storage:
    """`numel` numbers of a dtype in a row, in a buffer that may be found later than its views."""

    def __init__(self, dtype: np.dtype, numel: int):
        self.dtype, self.numel = dtype, numel
        self.buffer: Any = None
        # Whether the file's order of bytes is not this machine's.
        self.swapped = False

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """All of them, as they lie in the buffer; once, however many tensors view them."""
        bits = np.frombuffer(self.buffer, f"u{self.dtype.itemsize}", self.numel)
        return (bits.byteswap() if self.swapped else bits).view(self.dtype)


class Tensor(NamedTuple):
    """A view of a storage, known to lie inside it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def numpy(self) -> np.ndarray:
        """The numbers, without a copy where it can be avoided; not to be written to."""
        dtype = self.storage.dtype
        if 0 in self.shape:
            return np.broadcast_to(np.zeros((), dtype), self.shape)
        flat = self.storage.numbers[self.offset :]
        strides = tuple(dtype.itemsize * stride for stride in self.strides)
        view = np.lib.stride_tricks.as_strided
        return view(flat, self.shape, strides, writeable=False)


class Instance:
    """An object of the file: its class's name and its attributes. The class is never looked up."""

    def __init__(self, class_name: str, state: Mapping[str, Any] | None = None):
        self.class_name, self.state = class_name, state


class Dtype:
    """NumPy's dtype while it is being unpickled."""

    def __init__(self, code: str):
        if code not in _NUMPY_CODES:
            raise Refused(
                f"holds NumPy numbers of dtype {shown(code)}, expected one of {_NUMPY_CODES}"
            )
        self.dtype = np.dtype(code)


class NumpyArray:
    """NumPy's array while it is being unpickled."""

    array: np.ndarray | None = None


_NUMPY_CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")

STORAGES = {
    Global("torch", f"{name}Storage"): np.dtype(dtype)
    for name, dtype in {
        "Double": np.float64,
        "Float": np.float32,
        "Half": np.float16,
        "BFloat16": jnp.bfloat16,
        "Long": np.int64,
        "Int": np.int32,
        "Short": np.int16,
        "Char": np.int8,
        "Byte": np.uint8,
        "Bool": np.bool_,
    }.items()
}

# Attributes that a file gives to a mapping are dropped: PyTorch's state dicts carry versions.
MAPPINGS = {Global("collections", "OrderedDict"), Global("dnnlib.util", "EasyDict")}
CONTAINERS = {
    Global("torch.nn.modules.container", name)
    for name in ("ModuleDict", "ModuleList", "Sequential")
}
# More axes than any network has; NumPy's own limit is 64.
_MOST_AXES = 16


def _sizes(value: Any, what: str) -> tuple[int, ...]:
    good = isinstance(value, tuple | list) and len(value) <= _MOST_AXES
    if not good or not all(type(n) is int and 0 <= n < 2**48 for n in value):
        raise Refused(f"has a tensor whose {what} is {shown(value)}")
    # NumPy's own limit, which it has for arrays without numbers too.
    if math.prod(n for n in value if n > 0) >= 2**60:
        raise Refused(f"has a tensor whose {what} is {shown(value)}")
    return tuple(value)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    # What follows the strides — requires_grad, hooks, metadata — does not concern the numbers.
    if not isinstance(storage, Storage) or type(offset) is not int or offset < 0:
        raise Refused("has a tensor without a storage")
    shape, strides = _sizes(shape, "shape"), _sizes(strides, "strides")
    if len(shape) != len(strides):
        raise Refused(f"has a tensor of shape {shape} with strides {strides}")
    count, last = 1, offset
    for size, stride in zip(shape, strides, strict=True):
        count *= size
        last += (size - 1) * stride
    # At most as many numbers as the storage has: see the top of this file.
    if count > 0 and (last >= storage.numel or count > storage.numel):
        raise Refused(
            f"has a tensor of shape {shape} with strides {strides} from {offset} on, which reaches "
            f"outside its storage of {storage.numel} numbers"
        )
    return Tensor(storage, offset, shape, strides)


def _parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise Refused("has a parameter that is not a tensor")
    return data


def _mapping(*args: Any) -> dict:
    # Python 2 wrote the items as an argument.
    return dict_of([part for key, value in (args[0] if args else ()) for part in (key, value)])


def _encode(text: str, coding: str = "latin1") -> bytes:
    # How bytes are written for Python 2.
    if not isinstance(text, str) or coding not in ("latin1", "latin-1"):
        raise Refused(f"has text in the coding {shown(coding, 40)}")
    return text.encode("latin1")


def _scalar(dtype: Any, data: Any) -> Any:
    if not isinstance(dtype, Dtype) or not isinstance(data, bytes):
        raise Refused("has a NumPy number without a dtype")
    if len(data) != dtype.dtype.itemsize:
        raise Refused(f"has a NumPy number of {len(data)} bytes, expected {dtype.dtype.itemsize}")
    return np.frombuffer(data, dtype.dtype)[0]


def dict_of(items: list[Any]) -> dict:
    """A dictionary of keys and values in turn."""
    # Nested tuples that share their parts would never finish hashing.
    if not all(isinstance(key, str | bytes | int | float | None) for key in items[::2]):
        raise TypeError("a key that is neither text nor number")
    return dict(zip(items[::2], items[1::2], strict=True))


def _size(value: Any = ()) -> tuple[int, ...]:
    return _sizes(value, "size")


def _set(value: Any = ()) -> list | tuple:
    if not isinstance(value, tuple | list):
        raise Refused(f"has a set of {shown(value)}")
    return value


def _device(kind: Any, index: Any = None) -> str:
    if not isinstance(kind, str) or len(kind) > 40 or type(index) not in (int, type(None)):
        raise Refused(f"has the device {shown((kind, index))}")
    return kind if index is None else f"{kind}:{index}"


def numpy_array(_: Any, shape: Any, dtype: Any, fortran: Any, data: Any) -> np.ndarray:
    shape = _sizes(shape, "shape")
    count = 1
    for size in shape:
        count *= size
    if not isinstance(dtype, Dtype) or not isinstance(data, bytes):
        raise Refused("has a NumPy array of objects")
    if len(data) != count * dtype.dtype.itemsize:
        raise Refused(f"has a NumPy array of shape {shape} in {len(data)} bytes")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if fortran else "C")


# What a pickle may call, all of it harmless, and what is done instead.
CALLS: dict[Global, Callable[..., Any]] = {
    Global("torch._utils", "_rebuild_tensor"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Global("torch._utils", "_rebuild_parameter"): _parameter,
    Global("torch", "Size"): _size,
    Global("torch", "device"): _device,
    Global("_codecs", "encode"): _encode,
    Global("builtins", "set"): _set,
    Global("__builtin__", "set"): _set,
    Global("numpy", "dtype"): lambda code, *_: Dtype(code),
    **{name: _mapping for name in MAPPINGS},
}
for _core in ("numpy.core.multiarray", "numpy._core.multiarray"):
    CALLS[Global(_core, "scalar")] = _scalar
    CALLS[Global(_core, "_reconstruct")] = lambda *_: NumpyArray()

SYMBOLS = {*STORAGES, *CONTAINERS, Global("numpy", "ndarray")}
