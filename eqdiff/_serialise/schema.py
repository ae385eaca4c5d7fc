"""What a description may say, checked before anything is made of it.

A file describes objects by the arguments of their constructors, whose annotations say what each
takes: they are the schema, one per class. Types alone would let a small file ask for much, a
network of 10^18 blocks or a filter of 10^10 taps, which is found only after it was built. So what a
description asks for is compared with what is there: a network has no more blocks than there are
tensors, and no layer is wider than all their numbers together.
"""

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from .._shown import shown
from ..nn import UNetShape


# How often a network repeats its blocks: as a number, or as a list with an entry for each time.
_REPEATS, _LISTS = ("num_res_blocks", "depth"), ("channel_mult", "dilations")
# Small numbers and short lists in every network; what they multiply is bounded by the tensors.
_FACTORS, _TAPS = ("mult", "noise_mult", "embedding_mult"), ("kernel", "fir_kernel")
_MOST = 64
# Numbers that no tensor has as a side, such as of groups, may be as large as this in any file.
_LEAST_BOUND = 2**16


class Room(NamedTuple):
    """How many tensors there are, and how many numbers in all of them."""

    tensors: int
    numbers: int

    @staticmethod
    def of(tensors: Mapping[str, Any]) -> "Room":
        return Room(len(tensors), sum(math.prod(np.shape(a)) for a in tensors.values()))


def check_arguments(make: Callable[..., Any], arguments: Mapping[str, Any], room: Room) -> None:
    """Checks what a constructor, or a function that makes a network, is about to be given.

    **Arguments:**

    - `make`: the constructor.
    - `arguments`: by name.
    - `room`: of the file.

    **Raises:** `ValueError` for an argument that is missing or unknown, of another type, or larger
    than the file has room for.
    """
    hints, needed = _schema(make)
    name = make.__name__.lstrip("_")
    unknown = [n for n in arguments if n not in hints]
    missing = [n for n in needed if n not in arguments]
    if unknown or missing:
        raise ValueError(
            f"{name} takes {', '.join(hints)}; unknown: {shown(unknown)}, missing: {shown(missing)}"
        )
    most = max(room.numbers, _LEAST_BOUND)
    for key, value in arguments.items():
        if not _matches(value, hints[key], most):
            expected = inspect.formatannotation(hints[key])
            raise ValueError(f"{name}({key}={shown(value)}): expected {expected}, at most {most}")
        factor = value if key in _FACTORS else len(value or ()) if key in _TAPS else 0
        if factor > _MOST:
            raise ValueError(f"{name}({key}={shown(value)}): expected at most {_MOST}")
    count = math.prod(max(arguments.get(key, 1), 1) for key in _REPEATS)
    count *= math.prod(max(len(arguments.get(key, ())), 1) for key in _LISTS)
    # A network of a few blocks is quickly built, and then every weight that it lacks is named.
    if count > max(room.tensors, _MOST):
        raise ValueError(
            f"{name} of {shown(count)} blocks or more was described, but there are "
            f"{room.tensors} tensors"
        )


@functools.cache
def _schema(make: Callable[..., Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What each argument is, and which have no default."""
    hints = typing.get_type_hints(make.__init__ if isinstance(make, type) else make)
    found, needed = {}, []
    for name, parameter in inspect.signature(make).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            # Only flags of whole families have these: the sizes of a U-Net.
            found = {**_schema(UNetShape)[0], **found}
        elif name != "key":
            found[name] = hints.get(name, Any)
            if parameter.default is inspect.Parameter.empty:
                needed.append(name)
    return found, tuple(needed)


def _matches(value: Any, hint: Any, most: int) -> bool:
    """Whether a value is what an annotation says, and its whole numbers not above `most`."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, part, most) for part in parts)
    if hint is Any:
        return True
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    if hint is int:
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        return bool(whole and -most <= value <= most)
    if hint is float:
        real = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        return bool(real and abs(value) <= 1e300)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        each = len(value) * parts[:1] if parts[1:] == (...,) else parts
        pairs = zip(value, each, strict=True)
        return len(value) == len(each) and all(_matches(v, part, most) for v, part in pairs)
    if origin is not None and issubclass(origin, Callable):
        return callable(value)
    if origin is not None and issubclass(origin, Iterable):
        return isinstance(value, tuple)
    if getattr(hint, "array_type", None) is not None or hint in (jax.Array, np.ndarray):
        return isinstance(value, np.ndarray | jax.Array)
    return not isinstance(hint, type) or isinstance(value, hint)
