"""The chunks of one call among processes, and their results in all of them.

Example $i$ depends on the key and on $i$ alone, so the processes share the work by sharing the
chunks: in turn those that are still to compute, and in turn those that only have to be read. Each
process works through its own on its own devices, at its own speed. In the end the results meet: in
the folder, if there is one, and otherwise through the hosts, chunk after chunk.
"""

import functools
import json
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from ._chunks import Job
from ._failures import FailedExamples
from ._store import pack, Store, unpack
from ._together import together
from ._writer import AbstractWriter


@runtime_checkable
class _Place(Protocol):
    def create(self, call: dict[str, Any]) -> None: ...

    def open(self, call: dict[str, Any]) -> None: ...

    def present(self) -> set[int]: ...


class _Written:
    """A writer, which gives nothing back, in place of a store."""

    def __init__(self, writer: AbstractWriter):
        self.writer = writer

    def read(self, start: int, digest: str) -> list[np.ndarray] | None:
        return [] if self.writer.has(start, digest) else None

    def write(self, start: int, digest: str, leaves: list[np.ndarray]) -> None:
        (samples,) = leaves
        self.writer.write(start, digest, samples)


def in_chunks(job: Job, folder: Any, progress: bool) -> PyTree[np.ndarray]:
    """The results of all examples of a job, in every process."""
    store = None if folder is None else Store(folder)
    mine = _mine(job, store, job.describe() if store is not None else {})
    results: dict[int, list[np.ndarray]] = {}

    def work() -> None:
        results.update(job.run(mine, store, progress))

    failed, unkept = _work(job, mine, work)
    # What is in no file: everything, or chunks in which an example failed.
    results |= _gathered(job, results, unkept)
    for start in job.starts():
        if start not in results:
            assert store is not None
            results[start] = _read(job, store, start)
    leaves = [np.concatenate(parts) for parts in zip(*map(results.get, job.starts()), strict=True)]
    everything = jax.tree.unflatten(jax.tree.structure(job.shapes), leaves)
    if failed:
        raise FailedExamples(job.name, job.num, failed, everything)
    return everything


def _gathered(
    job: Job, results: dict[int, list[np.ndarray]], unkept: dict[int, list[int]]
) -> dict[int, list[np.ndarray]]:
    """Chunks that are in no file: all of them, or those in which an example failed."""
    mine, found = unkept[jax.process_index()], {}
    if len(job.peers) == 1:
        return found
    for turn in range(max(map(len, unkept.values()))):
        content = pack(results[mine[turn]]) if turn < len(mine) else b""
        for peer, sent in _together(job, functools.partial(bytes, content)).items():
            if sent:
                found[unkept[peer][turn]] = unpack(sent)
    return found


def to_writer(job: Job, writer: AbstractWriter, progress: bool) -> None:
    """The results of all examples of a job, each one array, to a writer."""
    (shape,) = jax.tree.leaves(job.shapes)
    call = job.describe() | {"shape": list(shape.shape[1:])}
    mine = _mine(job, writer, call)

    def work() -> None:
        for _ in job.run(mine, _Written(writer), progress):
            pass

    failed, _ = _work(job, mine, work)
    if failed:
        raise FailedExamples(job.name, job.num, failed, None)
    chunks = {start: job.digest(start) for start in job.starts()}
    _together(job, lambda: writer.finish(chunks) if _is_first(job) else None)


def _is_first(job: Job) -> bool:
    return jax.process_index() == job.peers[0]


def _together(job: Job, work: Callable[[], bytes | None]) -> dict[int, bytes]:
    return together(job.name, job.peers, lambda: work() or b"")


def _mine(job: Job, place: _Place | None, call: dict[str, Any]) -> list[int]:
    """The chunks of this process, once the place for them has been made."""
    present: set[int] = set()
    if place is not None:

        def create() -> bytes:
            if not _is_first(job):
                return b""
            place.create(call)
            return json.dumps(sorted(place.present())).encode()

        # All by the list of the first: a chunk may be finished between two looks.
        present = set(json.loads(_together(job, create)[job.peers[0]]))
        _together(job, lambda: None if _is_first(job) else place.open(call))
    turn, turns = job.peers.index(jax.process_index()), len(job.peers)
    to_compute = [start for start in job.starts() if start not in present]
    to_read = [start for start in job.starts() if start in present]
    return sorted(to_compute[turn::turns] + to_read[turn::turns])


def _work(
    job: Job, mine: list[int], work: Callable[[], None]
) -> tuple[dict[int, str], dict[int, list[int]]]:
    """Does the work; what failed in all processes, and which chunks of each are in no file."""

    def told() -> bytes:
        work()
        unkept = [start for start in mine if start not in job.kept]
        return json.dumps([list(job.failed.items()), unkept]).encode()

    failed: dict[int, str] = {}
    unkept: dict[int, list[int]] = {}
    for peer, content in _together(job, told).items():
        items, unkept[peer] = json.loads(content)
        failed |= dict(items)
    if len(failed) == job.num:
        raise eqx.EquinoxRuntimeError(failed[0])
    return failed, unkept


def _read(job: Job, store: Store, start: int) -> list[np.ndarray]:
    """A chunk that another process wrote."""
    kept = store.wait(start, job.digest(start))
    if kept is None:
        raise RuntimeError(
            f"{job.name}: the chunk of example {start}, which another process wrote to "
            f"{store.folder}, cannot be read here: give a folder on a file system that all of them "
            "share. The same call continues."
        )
    return kept
