"""The arrays of a state as they are at one moment, taken without waiting for any of them.

A step donates its state, so a state that is written in the background is copied first: on its
devices, which are only told to here. What is computed next is queued behind it.

Of several processes, each keeps what it writes: the first all that is in one piece or the same
everywhere, and every one its own shards of an array that is spread over them.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from ._arrays import Box, files_of, slices, whole
from ._leaves import is_array, is_key, Leaf
from ._processes import is_writer


class Stored(NamedTuple):
    """An array as it is stored, and what of it this process has: `None` for nothing.

    `shape` leaves out what pads a vector, so that no file depends on the number of devices.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any
    value: np.ndarray | jax.Array | None
    files: tuple[int, ...]
    sharded: bool

    def pieces(self) -> Iterator[tuple[Box, np.ndarray]]:
        """What this process writes of it: where it belongs, and the numbers. Waits for them."""
        if self.value is None or 0 in self.shape:
            return
        if not self.sharded:
            box = whole(self.shape)
            yield box, np.asarray(self.value)[slices(box)]
            return
        assert isinstance(self.value, jax.Array)
        for shard in self.value.addressable_shards:
            ends = [range(size)[part] for part, size in zip(shard.index, self.shape, strict=True)]
            if shard.replica_id == 0 and all(map(len, ends)):
                box = tuple((each.start, each.stop) for each in ends)
                yield box, np.asarray(shard.data)[slices(whole([len(each) for each in ends]))]


def snapshot(tree: PyTree, leaves: dict[str, Leaf], *, copy: bool) -> list[Stored]:
    """The arrays of a pytree by the names under which they are stored.

    With `copy`, the pytree may be donated or changed at once; otherwise not before the arrays have
    been written.
    """
    arrays = jax.tree.leaves(eqx.filter(tree, is_array))
    arrays = [jax.random.key_data(x) if is_key(x) else x for x in arrays]
    names, shapes = {}, {place: tuple(x.shape) for place, x in enumerate(arrays)}
    for leaf in leaves.values():
        names[leaf.place] = leaf.array
        if leaf.start is not None:
            # Pieces come in the order in which they lie.
            shapes[leaf.place] = (leaf.start + leaf.size,)
    mine = [x if _is_sharded(x) else _for_writer(x) for x in arrays]
    mine = _copies(mine) if copy else mine

    def stored(place: int) -> Stored:
        x, shape = arrays[place], shapes[place]
        sharded = _is_sharded(x)
        files = x.sharding.shard_shape(x.shape) if sharded else files_of(shape, x.dtype)
        return Stored(names[place], shape, x.dtype, mine[place], tuple(files), sharded)

    return [stored(place) for place in names]


def _is_sharded(x: Any) -> bool:
    """Whether an array is spread over processes."""
    return isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)


def _for_writer(x: Any) -> Any:
    if not is_writer():
        return None
    # The copy of one device is enough.
    return x.addressable_data(0) if isinstance(x, jax.Array) and x.is_fully_replicated else x


def _copies(arrays: list[Any]) -> list[Any]:
    copies = [np.array(x) if isinstance(x, np.ndarray) else x for x in arrays]
    places = [place for place, x in enumerate(arrays) if isinstance(x, jax.Array)]
    on_devices = [arrays[place] for place in places]
    # Not by a program: XLA runs one that only copies in the calling thread of a CPU, and would
    # have to compile it.
    copied = jax.device_put(on_devices, [x.sharding for x in on_devices], may_alias=False)
    for place, x in zip(places, copied, strict=True):
        copies[place] = x
    return copies
