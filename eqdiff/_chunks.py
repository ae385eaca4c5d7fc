"""Many examples through one compiled, batched program, chunk after chunk.

A device is kept busy: while a chunk is computed the next has been dispatched already, and the
host's work on the one before (the copy, the file) happens meanwhile. Two chunks are under way at a
time, so that memory does not grow with their number.
"""

import contextlib
import functools
import itertools
import logging
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ._check import whole
from ._require import require
from ._store import Store


# What a failing program raises: XLA, or a check of eqdiff's or Equinox's, which JAX may raise as
# either.
_FAILURES = (jax.errors.JaxRuntimeError, ValueError)

# If the first examples all fail, this many of them, the others are not tried.
_HOPELESS = 16

# How many chunks are under way: one that the device computes and one that waits for it.
_AHEAD = 2

Item, Begun, Result = TypeVar("Item"), TypeVar("Begun"), TypeVar("Result")


class FailedExamples(RuntimeError):
    """Raised after all examples were tried, where some of them failed.

    ```python
    try:
        values = eqd.map_examples(bits, images, key=key)
    except eqd.FailedExamples as error:
        print(error)
        values = error.results  # NaN where an example failed
    ```

    - `errors`: what each failed example's check said, by its index.
    - `results`: what would have been returned, with NaN for the failed examples.
    """

    def __init__(self, name: str, num: int, errors: dict[int, str], results: PyTree[np.ndarray]):
        shown = ", ".join(map(str, sorted(errors)[:20])) + (", …" if len(errors) > 20 else "")
        super().__init__(
            f"{name}: {len(errors)} of {num} examples failed, and their results are NaN in this "
            f"error's `results`, with those of the others. Their indices: {shown}. The first: "
            f"{errors[min(errors)]}"
        )
        self.errors, self.results = errors, results


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


def in_chunks(name, one, what, args, num, key, batch_size, mesh, progress, folder):
    """The results of `one(what, args[i], fold_in(key, i))` for all i, in chunks.

    `one` returns them with the `Deferred` checks of `args`.
    """
    batch_size = min(whole(name, "batch_size", batch_size), num)
    # Once, not for each chunk: from an accelerator this copies.
    args = jax.tree.map(np.asarray, args)
    arrays, rest = _split(what)
    mesh, batch_size, place, spread = _placement(mesh, batch_size)
    arrays, key = place((arrays, key))

    def inputs_of(indices: np.ndarray) -> tuple[Any, ...]:
        rows = np.minimum(indices, num - 1)
        batch = jax.tree.map(lambda leaf: leaf[rows], args)
        inputs = spread((batch, jnp.asarray(indices, jnp.uint32)))
        return arrays, *inputs, key, one, rest, mesh

    def dispatch(indices: np.ndarray) -> list[Any]:
        return jax.tree.leaves(program(*inputs_of(indices)))

    # What a chunk will look like, also where it is read from a file or fails.
    inputs = inputs_of(np.arange(batch_size))
    shapes, deferred = jax.eval_shape(lambda *dynamic: program(*dynamic, *inputs[4:]), *inputs[:4])
    deferred.check(name, args)
    store = None if folder is None else Store(folder, name, args, shapes, num, key, batch_size)
    job = _Job(dispatch, shapes, num, batch_size, store)
    results = []
    try:
        with _quiet(), _bar(num, name, progress) as advance:
            for start, result in _ahead(range(0, num, batch_size), job.begin, job.finish):
                results.append(result)
                advance(min(batch_size, num - start))
    finally:
        if job.failed and mesh is not None:
            _forget_failures(mesh.local_devices)
    leaves = [np.concatenate(parts) for parts in zip(*results, strict=True)]
    everything = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    if job.failed:
        raise FailedExamples(name, num, job.failed, everything)
    return everything


def _placement(mesh: Mesh | None, batch_size: int) -> tuple[Any, ...]:
    """The mesh and the batch size to use, and what puts arrays on every device, or splits them."""
    if mesh is None:
        return mesh, batch_size, lambda arrays: arrays, lambda arrays: arrays
    size = mesh.shape[mesh.axis_names[0]]
    # Axes of type Auto: those of jax.make_mesh are Explicit, and shardings would be part of the
    # types that a function is traced with.
    mesh = Mesh(mesh.devices, mesh.axis_names)
    # Weights that sit on one device could not meet inputs that are spread over several.
    everywhere = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    return (
        mesh,
        -(-batch_size // size) * size,
        lambda arrays: jax.device_put(arrays, everywhere),
        lambda arrays: jax.device_put(arrays, split),
    )


class _Job:
    """The chunks of one call: how one begins, and how it is finished."""

    def __init__(
        self,
        dispatch: Callable[[np.ndarray], list[Any]],
        shapes: PyTree[Any],
        num: int,
        batch_size: int,
        store: Store | None,
    ):
        """**Arguments:**

        - `dispatch`: begins the program for examples of these indices, and does not wait for it.
        - `shapes`: of the results of a chunk.
        - `num`, `batch_size`: how many examples there are, and how many make a chunk.
        - `store`: where chunks are kept.
        """
        self.dispatch, self.shapes, self.num = dispatch, shapes, num
        self.batch_size, self.store = batch_size, store
        # What failing examples said, and which chunks were read from the store.
        self.failed: dict[int, str] = {}
        self.read: set[int] = set()

    def begin(self, start: int) -> list[Any] | None:
        """Results that are on their way, or kept ones; `None` if the program failed at once."""
        kept = None if self.store is None else self.store.read(start)
        if kept is not None:
            self.read.add(start)
            return kept
        try:
            return self.dispatch(np.arange(start, start + self.batch_size))
        except _FAILURES:
            return None

    def finish(self, start: int, begun: list[Any] | None) -> list[np.ndarray]:
        """Waits for the results."""
        try:
            results = None if begun is None else [np.asarray(leaf) for leaf in begun]
        except _FAILURES:
            results = None
        if results is None:
            return self._one_by_one(start)
        results = [leaf[: self.num - start] for leaf in results]
        if self.store is not None and start not in self.read:
            self.store.write(start, results)
        return results

    def _one_by_one(self, start: int) -> list[np.ndarray]:
        """The results of a chunk that failed as a whole, NaN for the examples that fail alone."""
        missing = [_nan(leaf) for leaf in jax.tree.leaves(self.shapes)]
        rows = []
        for index in range(start, min(start + self.batch_size, self.num)):
            # The same program, filled with copies of one example: nothing is compiled anew.
            copies = np.full(self.batch_size, index)
            try:
                rows.append([np.asarray(leaf)[0] for leaf in self.dispatch(copies)])
            except _FAILURES as error:
                self.failed[index] = _said(error)
                # None so far that did not fail: it is the function that is bad, not the examples.
                if len(self.failed) == index + 1 == min(self.num, _HOPELESS):
                    if "EquinoxRuntimeError" not in str(error):
                        raise
                    raise eqx.EquinoxRuntimeError(_message(error)) from None
                rows.append(missing)
        return [np.stack(parts) for parts in zip(*rows, strict=True)]


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


def _forget_failures(devices: Iterable[jax.Device]) -> None:
    """Lets JAX forget a failed program of several devices.

    It is kept with each device, and `jax.effects_barrier`, also called at Python's exit, would
    raise its error again.
    """
    for device in devices:
        jax.jit(lambda x: jax.debug.callback(lambda _: None, x))(jax.device_put(0, device))


def _nan(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
    return np.full(leaf.shape[1:], np.nan, leaf.dtype if inexact else np.float64)


def _message(error: Exception) -> str:
    """What a failing check said, without what Equinox and JAX wrap around it."""
    said = re.search(r"EquinoxRuntimeError: (.+?)(\n\s*\n|$)", str(error), re.DOTALL)
    return " ".join((said[1] if said else str(error)).split()) or type(error).__name__


def _said(error: Exception) -> str:
    text = _message(error)
    return text if len(text) < 400 else text[:400] + " …"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps JAX from logging the traceback of a check that fails, whose error is raised anyway."""
    logger = logging.getLogger("jax._src.callback")

    def not_a_failure(record: logging.LogRecord) -> bool:
        return record.getMessage() != "jax.pure_callback failed"

    logger.addFilter(not_a_failure)
    try:
        yield
    finally:
        logger.removeFilter(not_a_failure)


@contextlib.contextmanager
def _bar(num: int, what: str, shown: bool) -> Iterator[Callable[[int], Any]]:
    """How far the examples are; gives the function that counts them."""
    if not shown:
        yield lambda count: None
        return
    tqdm = require("tqdm", "A progress bar", extra="data").tqdm
    with tqdm(total=num, unit="example", desc=what) as bar:
        yield bar.update
