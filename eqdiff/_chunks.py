"""Many examples through one compiled, batched program, chunk after chunk.

A device is kept busy: while a chunk is computed the next has been dispatched already, and the
host's work on the one before (the copy, the file) happens meanwhile. Two chunks are under way at a
time, so that memory does not grow with their number.

On a mesh of several processes' devices each process runs the program of its own chunks on its own
devices (`_share.py` says which): examples do not depend on one another, so nothing is sent.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import math
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ._check import whole
from ._failures import FAILURES, forget, HOPELESS, message, missing, quiet, said
from ._require import require
from ._types import Key


# How many chunks are under way: one that the device computes and one that waits for it.
_AHEAD = 2

Item, Begun, Result = TypeVar("Item"), TypeVar("Begun"), TypeVar("Result")


@runtime_checkable
class Keeper(Protocol):
    """What keeps finished chunks."""

    def read(self, start: int, digest: str) -> list[np.ndarray] | None:
        """A chunk; `None` unless a sound one with this digest exists."""

    def write(self, start: int, digest: str, leaves: list[np.ndarray]) -> None:
        """Keeps a chunk."""


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def program(arrays, rows, indices, key, one, rest, mesh):
    """`one(what, row, key)` of each row, with the key of its index, for `what` in two parts.

    `jax.jit`, not `equinox.filter_jit`, which waits for the result.
    """

    def batch(arrays, rows, indices, key):
        what = _join(arrays, rest)

        def example(row, index):
            return one(what, row, jax.random.fold_in(key, index))

        return jax.vmap(example)(rows, indices)

    if mesh is not None:
        # Each device by itself. In a program that devices run together, one that fails would leave
        # the others waiting for it, and XLA ends the process.
        split, same = PartitionSpec(mesh.axis_names[0]), PartitionSpec()
        batch = jax.shard_map(
            batch,
            mesh=mesh,
            in_specs=(same, split, split, same),
            out_specs=split,
            check_vma=False,
        )
    return batch(arrays, rows, indices, key)


def _split(what: PyTree[Any]) -> tuple[list[Any], tuple[Any, ...]]:
    """The arrays of a tree, and the rest of it, which can be hashed."""
    leaves, structure = jax.tree.flatten(what)
    is_array = [eqx.is_array(leaf) for leaf in leaves]
    arrays = [leaf for leaf, array in zip(leaves, is_array, strict=True) if array]
    # With their types: 1 and True are equal, and so would be the programs.
    others = tuple(
        None if array else (type(leaf), leaf) for leaf, array in zip(leaves, is_array, strict=True)
    )
    return arrays, (others, structure)


def _join(arrays: list[Any], rest: tuple[Any, ...]) -> PyTree[Any]:
    others, structure = rest
    remaining = iter(arrays)
    leaves = [next(remaining) if other is None else other[1] for other in others]
    return jax.tree.unflatten(structure, leaves)


class Job:
    """The chunks of one call: how each begins, and how it is finished."""

    def __init__(
        self,
        name: str,
        one: Callable[..., Any],
        what: PyTree[Any],
        args: PyTree[Any],
        num: int,
        key: Key,
        batch_size: int,
        mesh: Mesh | None,
    ):
        """**Arguments:**

        - `name`: of the call.
        - `one`: a function `one(what, row, key)` that returns a result and the `Deferred` checks of
            the row.
        - `what`: what all rows have in common.
        - `args`: one row for each of the `num` examples; example `i` has the key `fold_in(key, i)`.
        - `batch_size`: how many make a chunk.
        - `mesh`: of devices, of this process and of others, that compute; or `None`.
        """
        batch_size = min(whole(name, "batch_size", batch_size), num)
        self.name, self.num, self.one = name, num, one
        # Once, not for each chunk: from an accelerator this copies.
        self.args = jax.tree.map(lambda leaf: np.asarray(_local(leaf)), args)
        arrays, self.rest = _split(what)
        arrays, self.key = jax.tree.map(_local, (arrays, key))
        self.peers, self.mesh, self.batch_size, place, self.spread = _placement(mesh, batch_size)
        self.arrays, self.key = place((arrays, self.key))
        # What a chunk will look like, also where it is read from a file or fails.
        inputs = self._inputs(np.arange(self.batch_size))
        self.shapes, deferred = jax.eval_shape(
            lambda *dynamic: program(*dynamic, *inputs[4:]), *inputs[:4]
        )
        deferred.check(name, self.args)
        self.keeper: Keeper | None = None
        self.call: dict[str, Any] = {}
        # What failing examples said, how many have been tried so far, and the chunks that are kept.
        self.failed: dict[int, str] = {}
        self.tried = 0
        self.kept: set[int] = set()

    def describe(self) -> dict[str, Any]:
        """All that the results depend on but `args`, in types that JSON has."""
        self.call = {
            "call": self.name,
            "num": self.num,
            "batch_size": self.batch_size,
            "key": _digest([jax.random.key_data(self.key)]),
            "args": _shapes(self.args),
            "results": _shapes(self.shapes),
            "weights": _digest(self.arrays),
            "program": _settings(self.rest),
        }
        return self.call

    def digest(self, start: int) -> str:
        """Of all that a chunk depends on."""
        rows = jax.tree.map(lambda leaf: leaf[start : start + self.batch_size], self.args)
        call = json.dumps([self.call, start]).encode()
        return hashlib.sha256(call + _digest(jax.tree.leaves(rows)).encode()).hexdigest()

    def starts(self) -> range:
        return range(0, self.num, self.batch_size)

    def size(self, start: int) -> int:
        return min(self.batch_size, self.num - start)

    def run(
        self, starts: Sequence[int], keeper: Keeper | None, progress: bool
    ) -> Iterator[tuple[int, list[np.ndarray]]]:
        """The chunks that begin at these indices, in order."""
        self.keeper = keeper
        total = sum(map(self.size, starts))
        try:
            with quiet(), _bar(total, self.name, progress) as advance:
                for start, result in _ahead(starts, self._begin, self._finish):
                    yield start, result
                    advance(self.size(start))
        finally:
            if self.failed and self.mesh is not None:
                forget(self.mesh.local_devices)

    def _inputs(self, indices: np.ndarray) -> tuple[Any, ...]:
        rows = np.minimum(indices, self.num - 1)
        batch = jax.tree.map(lambda leaf: leaf[rows], self.args)
        inputs = self.spread((batch, jnp.asarray(indices, jnp.uint32)))
        return self.arrays, *inputs, self.key, self.one, self.rest, self.mesh

    def _dispatch(self, indices: np.ndarray) -> list[Any]:
        """Begins the program for examples of these indices, and does not wait for it."""
        return jax.tree.leaves(program(*self._inputs(indices)))

    def _begin(self, start: int) -> list[Any] | None:
        """Results that are on their way, or kept ones; `None` if the program failed at once."""
        kept = None if self.keeper is None else self.keeper.read(start, self.digest(start))
        if kept is not None:
            self.kept.add(start)
            return kept
        try:
            return self._dispatch(np.arange(start, start + self.batch_size))
        except FAILURES:
            return None

    def _finish(self, start: int, begun: list[Any] | None) -> list[np.ndarray]:
        """Waits for the results."""
        try:
            results = None if begun is None else [np.asarray(leaf) for leaf in begun]
        except FAILURES:
            results = None
        if results is None:
            return self._one_by_one(start)
        self.tried += self.size(start)
        results = [leaf[: self.size(start)] for leaf in results]
        if self.keeper is not None and start not in self.kept:
            self._keep(self.keeper, start, results)
        return results

    def _keep(self, keeper: Keeper, start: int, results: list[np.ndarray]) -> None:
        try:
            keeper.write(start, self.digest(start), results)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self.name}: {error.strerror}, so examples {start} to "
                f"{start + self.size(start) - 1} could not be written. All chunks that were "
                "finished before are kept: once this is fixed, the same call continues",
                error.filename,
            ) from error
        self.kept.add(start)

    def _one_by_one(self, start: int) -> list[np.ndarray]:
        """The results of a chunk that failed as a whole, NaN for the examples that fail alone."""
        nan = [missing(leaf) for leaf in jax.tree.leaves(self.shapes)]
        rows = []
        for index in range(start, start + self.size(start)):
            # The same program, filled with copies of one example: nothing is compiled anew.
            copies = np.full(self.batch_size, index)
            self.tried += 1
            try:
                rows.append([np.asarray(leaf)[0] for leaf in self._dispatch(copies)])
            except FAILURES as error:
                self.failed[index] = said(error)
                # None so far that did not fail: it is the function that is bad, not the examples.
                if len(self.failed) == self.tried == min(self.num, HOPELESS):
                    if "EquinoxRuntimeError" not in str(error):
                        raise
                    raise eqx.EquinoxRuntimeError(message(error)) from None
                rows.append(nan)
        return [np.stack(parts) for parts in zip(*rows, strict=True)]


def _local(leaf: Any) -> Any:
    """An array, or the part of one on several hosts that is on this one; the part is all of it."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    if not leaf.is_fully_replicated:
        # Every process of the array is here at this moment.
        everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec())  # pyright: ignore
        leaf = jax.jit(lambda x: x, out_shardings=everywhere)(leaf)
    return leaf.addressable_data(0)


def _placement(mesh: Mesh | None, batch_size: int) -> tuple[Any, ...]:
    """Who computes on what: the processes, and of this one the mesh, the batch size, and what puts
    arrays on every device, or splits them."""
    me = jax.process_index()
    if mesh is None:
        return (me,), mesh, batch_size, lambda arrays: arrays, lambda arrays: arrays
    # However many axes the mesh has, examples need only one, of all devices.
    counts = Counter(device.process_index for device in mesh.devices.flat)
    if me not in counts:
        raise ValueError(
            f"mesh={mesh} has no device of process {me}: make the call only in the processes "
            f"{sorted(counts)}, or on a mesh of all processes' devices."
        )
    mine = [device for device in mesh.devices.flat if device.process_index == me]
    # Axes of type Auto: those of jax.make_mesh are Explicit, and shardings would be part of the
    # types that a function is traced with.
    mesh = Mesh(np.array(mine), ("examples",))
    # Weights that sit on one device could not meet inputs that are spread over several.
    everywhere = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("examples"))
    # Chunks are the same in all processes, whatever each has.
    size = math.lcm(*counts.values())
    return (
        tuple(sorted(counts)),
        mesh,
        -(-batch_size // size) * size,
        lambda arrays: jax.device_put(arrays, everywhere),
        lambda arrays: jax.device_put(arrays, split),
    )


def _shapes(tree: PyTree[Any]) -> list[Any]:
    return [[list(leaf.shape), str(leaf.dtype)] for leaf in jax.tree.leaves(tree)]


def _digest(leaves: Iterable[Any]) -> str:
    found = hashlib.sha256()
    for leaf in leaves:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.ascontiguousarray(leaf)
        found.update(f"{array.dtype} {array.shape};".encode())
        found.update(array.view(np.uint8).data if array.size else b"")
    return found.hexdigest()


def _settings(rest: tuple[Any, ...]) -> str:
    """A digest of everything but arrays: the class of a sampler, 50 steps or 100, the program of a
    plain function. Where objects lie in memory is not part of it.
    """
    told = re.sub(r"0x[0-9a-f]+", "", repr(rest))
    return hashlib.sha256(told.encode()).hexdigest()


def _ahead(
    items: Iterable[Item],
    begin: Callable[[Item], Begun],
    finish: Callable[[Item, Begun], Result],
) -> Iterator[tuple[Item, Result]]:
    """Each item with its result, in order; the next has begun before one is finished."""
    remaining = iter(items)
    under_way = deque((item, begin(item)) for item in itertools.islice(remaining, _AHEAD))
    while under_way:
        item, begun = under_way.popleft()
        yield item, finish(item, begun)
        under_way.extend((item, begin(item)) for item in itertools.islice(remaining, 1))


@contextlib.contextmanager
def _bar(num: int, what: str, shown: bool) -> Iterator[Callable[[int], Any]]:
    """How far the examples are; gives the function that counts them."""
    if not shown:
        yield lambda count: None
        return
    tqdm = require("tqdm", "A progress bar", extra="data").tqdm
    with tqdm(total=num, unit="example", desc=what) as bar:
        yield bar.update
