"""The errors of a file's contents, as one kind that names the file."""

import contextlib
from collections.abc import Iterator
from typing import Any

from .._shown import reason, shown


# Letters of a message, next to the name of its file.
_LONGEST = 900


@contextlib.contextmanager
def reading(source: str) -> Iterator[None]:
    """Makes a `ValueError` that names `source` of what goes wrong inside.

    A configuration and weights from a file may be anything: a text where there should be a number,
    an array of other axes. Each step checks what it can say better; what is left is caught here.
    Files that are not there, or cannot be read, and packages that are missing, stay what they are.
    """
    try:
        yield
    except (OSError, ImportError):
        raise
    except ValueError as e:
        text = str(e)
        if source in text and len(text) <= _LONGEST + len(source):
            raise
        raise ValueError(f"{source}: {reason(e, _LONGEST)}.") from e
    except Exception as e:
        raise ValueError(
            f"{source} does not describe a network of eqdiff "
            f"({type(e).__name__}: {reason(e, _LONGEST // 2)})."
        ) from e


def number_of_steps(value: Any, name: str) -> int:
    """The number of steps of a schedule, whose tables are made before anything else is compared.

    **Raises:** `ValueError` for anything but a whole number up to a million.
    """
    if type(value) is not int or not 1 <= value <= 1_000_000:
        raise ValueError(f"{name} is {shown(value)}, expected a whole number up to a million.")
    return value
