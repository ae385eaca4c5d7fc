"""Short texts of values that may come from a file (floor 0).

A file chooses what a message about it shows: a name of a megabyte, or thirty tuples that each hold
the one before twice, whose `repr` has a billion letters. So nothing of a file is formatted by `str`
or `repr`: `shown` looks at a few parts of a value and no deeper than two levels, and `reason` says
what an exception says. Neither takes longer, or returns more, for a larger value.
"""

import itertools
from collections.abc import Mapping
from typing import Any


# How many parts of a container are shown, and how deep.
_PARTS, _DEEPEST = 8, 2
# Whole numbers of more bits are described: their digits take quadratic time.
_BITS = 256


def shown(value: Any, most: int = 80) -> str:
    """A value as a text of at most `most` letters, in bounded time."""
    return shortened(_shown(value, most, 0), most)


def reason(error: BaseException, most: int = 300) -> str:
    """What an exception says, as a text of at most `most` letters without its last full stop."""
    if isinstance(error, OSError) and error.strerror:
        texts = [error.strerror]
    else:
        # A KeyError says the `repr` of its key.
        plain = not isinstance(error, KeyError)
        texts = [a if plain and isinstance(a, str) else shown(a, most) for a in error.args]
    return shortened(", ".join(texts).rstrip(".") or type(error).__name__, most)


def shortened(text: str, most: int) -> str:
    """A text, with its end replaced by "…" where it has more than `most` letters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _shown(value: Any, most: int, depth: int) -> str:
    if value is None or isinstance(value, bool | float):
        return str(value)
    if isinstance(value, str | bytes):
        return repr(value[: most + 1])
    if isinstance(value, int):
        bits = value.bit_length()
        return str(value) if bits <= _BITS else f"a number of {bits} bits"
    if isinstance(value, type):
        return shortened(value.__qualname__, most)
    if isinstance(value, tuple | list | set | frozenset | Mapping):
        return _container(value, most, depth)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"an array of {value.dtype!s:.20} and shape {_shown(tuple(value.shape), most, 1)}"
    return f"a {shortened(type(value).__name__, most)}"


def _container(value: Any, most: int, depth: int) -> str:
    left, right = "()" if isinstance(value, tuple) else "[]" if isinstance(value, list) else "{}"
    if depth == _DEEPEST and value:
        return f"{left}…{right}"
    if isinstance(value, Mapping):
        pairs = itertools.islice(value.items(), _PARTS)
        parts = [": ".join(_shown(v, most, depth + 1) for v in pair) for pair in pairs]
    else:
        parts = [_shown(v, most, depth + 1) for v in itertools.islice(value, _PARTS)]
    if len(value) > _PARTS:
        parts.append("…")
    if isinstance(value, tuple) and len(value) == 1:
        parts.append("")
    return left + ", ".join(parts).rstrip() + right
