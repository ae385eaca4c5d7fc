"""Checkpoints of earlier versions, read as if this version had written them.

The one place that knows what leaves were called and how their axes were ordered before. Whoever
changes either adds one to `FORMAT`, and to `UPGRADES` what became of each leaf since the format
before. A leaf of the network and its moving averages and moments are moved by the same function:
their names end alike.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


Record = dict[str, Any]

# The format that is written. 1: named leaves, as they are in the network.
FORMAT = 1


class Moved(NamedTuple):
    """What became of a leaf: its name, and which of its axes became each axis (`None`: as is)."""

    name: str
    axes: tuple[int, ...] | None = None


# What became of the leaves of each format in the one after it, from their names and records.
UPGRADES: dict[int, Callable[[str, Record], Moved]] = {}


def upgraded(
    version: int, records: dict[str, Record], arrays: dict[str, np.ndarray] | None = None
) -> tuple[dict[str, Record], dict[str, np.ndarray]]:
    """Records, and arrays if they have been read, under their present names and orders of axes.

    **Raises:** `ValueError` for a format of the future.
    """
    if version > FORMAT:
        raise ValueError(
            f"it has format {version}, and this version of eqdiff reads those up to {FORMAT}: "
            "install a newer one"
        )
    arrays = {} if arrays is None else arrays
    for each in range(version, FORMAT):
        moves = {name: UPGRADES[each](name, entry) for name, entry in records.items()}
        arrays = {
            moves[name].name: x if moves[name].axes is None else np.transpose(x, moves[name].axes)
            for name, x in arrays.items()
        }
        records = {moves[name].name: _moved(entry, moves[name]) for name, entry in records.items()}
    return records, arrays


def _moved(entry: Record, move: Moved) -> Record:
    if move.axes is None:
        return entry
    return {**entry, "shape": [entry["shape"][axis] for axis in move.axes]}
