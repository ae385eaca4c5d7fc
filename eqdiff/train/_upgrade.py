"""Checkpoints of earlier versions, read as if this version had written them.

The one place that knows what leaves were called and how their axes were ordered before. Whoever
changes either adds one to `FORMAT` and says in `SINCE` what became of each leaf since every earlier
format. What a leaf is, is not guessed from its name or shape: the network that the checkpoint is
restored for knows. A parameter, its averages and its moments are moved by one rule.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from .._serialise.classes import leaves_of
from .._serialise.old_networks import old_names
from ..nn._conv import filter_names
from ._leaves import dotted, is_state, Leaf, named_leaves, Record


# The format that is written.
# 1: named leaves, as they are in the network.
# 2: filters with their outputs first; `Centred` and `DividedBySigma` around networks.
# 3: the same leaves, stored as the state has them, in its vectors.
FORMAT = 3


class Moved(NamedTuple):
    """What became of a leaf: its name, and which of its axes became each axis (`None`: as is)."""

    name: str
    axes: tuple[int, ...] | None = None


def _networks(like: PyTree) -> Iterator[tuple[str, PyTree, dict[str, Leaf]]]:
    """Each train state in a pytree: its name, its network and its leaves. Also the pytree itself,
    as if it were a network."""
    yield "", like, named_leaves(like, states=False)
    for path, state in jax.tree_util.tree_leaves_with_path(like, is_leaf=is_state):
        if is_state(state):
            slots = state.packing.slots
            shapes = [jax.ShapeDtypeStruct(slot.shape, slot.dtype) for slot in slots]
            net = state.packing.network(shapes, state.constants)
            yield dotted(path), net, named_leaves(state)


def _since_1(like: PyTree) -> dict[str, Moved]:
    """Filters were `(*kernel, in, out)`, and a network had no others around it."""
    moved = {}
    for prefix, net, leaves in _networks(like):
        parameters, filters, old = leaves_of(net), filter_names(net), old_names(net)
        for name, leaf in leaves.items():
            parameter = leaf.parameter
            if parameter is None:
                continue
            before = name.removesuffix(parameter) + old.get(parameter, parameter)
            # Not what an optimiser such as Adafactor has in place of a filter's moments.
            turned = parameter in filters and leaf.shape == parameters[parameter].shape
            rank = len(leaf.shape)
            axes = (rank - 1, *range(rank - 1)) if turned else None
            moved[dotted(prefix, before)] = Moved(dotted(prefix, name), axes)
    return moved


# From the state that is to be restored: what became of the leaves of each format until today.
# Those that are not named are as they were.
SINCE: dict[int, Callable[[PyTree], dict[str, Moved]]] = {1: _since_1, 2: lambda like: {}}


def upgraded(
    version: int,
    like: PyTree,
    records: dict[str, Record],
    arrays: dict[str, np.ndarray] | None = None,
) -> tuple[dict[str, Record], dict[str, np.ndarray]]:
    """Records, and arrays if they have been read, under their present names and orders of axes.

    **Arguments:**

    - `version`: the format of the checkpoint.
    - `like`: the state that it is restored for.
    - `records`, `arrays`: as they were stored.

    **Raises:** `ValueError` for a format of the future.
    """
    if version > FORMAT:
        raise ValueError(
            f"it has format {version}, and this version of eqdiff reads those up to {FORMAT}: "
            "install a newer one"
        )
    moves = SINCE[version](like) if version < FORMAT else {}

    def move(name: str) -> Moved:
        return moves.get(name, Moved(name))

    turned = {
        move(name).name: x if (axes := _axes(move(name), x.ndim)) is None else np.transpose(x, axes)
        for name, x in (arrays or {}).items()
    }
    return {move(k).name: _moved(entry, move(k)) for k, entry in records.items()}, turned


def _axes(move: Moved, rank: int) -> tuple[int, ...] | None:
    # A checkpoint of another architecture may have anything under this name.
    return move.axes if move.axes is not None and len(move.axes) == rank else None


def _moved(entry: Record, move: Moved) -> Record:
    axes = _axes(move, len(entry["shape"]))
    return entry if axes is None else {**entry, "shape": [entry["shape"][axis] for axis in axes]}
