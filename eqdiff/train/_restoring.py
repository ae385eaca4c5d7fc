"""What is made of a checkpoint that has been found: a state, or a network alone."""

import contextlib
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from . import _arrays, _folder
from ._leaves import differences, from_numpy, named_leaves, Record, record
from ._manifest import read_leaves, read_manifest
from ._upgrade import upgraded


_T = TypeVar("_T")

_AVERAGE = re.compile(r"ema\.\d+\.")


class CheckpointError(Exception):
    """A checkpoint cannot be read or written; the message says which folder and what to do.

    **Example:**

    ```python
    checkpointer = eqd.train.Checkpointer("checkpoints")
    try:
        checkpointer.check_writable()
    except eqd.train.CheckpointError as error:
        print(error)
    ```
    """


class Damaged(Exception):
    """A checkpoint cannot be read, and one from before it may stand in for it."""


def attempt(path: pathlib.Path, read: Callable[[pathlib.Path, dict], _T]) -> _T | Damaged:
    """What `read` makes of the checkpoint and its manifest, or how it is damaged."""
    try:
        with _noticing_damage(path):
            if not _folder.is_complete(path):
                raise ValueError("it has no manifest")
            body = read_manifest(path)
        return read(path, body)
    except Damaged as error:
        return error


@contextlib.contextmanager
def _noticing_damage(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        text = f"the checkpoint {path} is damaged ({_arrays.reason(error)})."
        raise Damaged(text) from error


def read_state(path: pathlib.Path, body: dict, like: PyTree) -> tuple[PyTree, Any, int]:
    """The state, what was saved with it, and its step."""
    expected = _expected(like)
    present = _present(path, body, body["leaves"], like)
    lines = differences(present, expected)
    if lines:
        nets = [{k: r for k, r in each.items() if _in_net(k)} for each in (present, expected)]
        if nets[0] and not differences(*nets):
            lines.append("  The network is the same: restore_net(net) reads it or its averages.")
        first = f"the checkpoint {path} is of another architecture:"
        raise ValueError("\n".join([first, *lines]))
    return _filled(path, body, body["leaves"], like), body["extra"], body["step"]


def read_net(path: pathlib.Path, body: dict, like: PyTree, average: int | None) -> PyTree:
    """The network alone, with its parameters or one of their averages."""
    stored = body["leaves"]
    found = sorted({int(name.split(".")[1]) for name in stored if _AVERAGE.match(name)})
    if average is not None and not -len(found) <= average < len(found):
        raise ValueError(
            f"restore_net(…, average={average}): the checkpoint {path} has {len(found)} averages, "
            "numbered from 0; without average, its parameters are read."
        )
    sources = {name.removeprefix("net."): name for name in stored if _in_net(name)}
    if average is not None:
        # What is not trained has no average.
        prefix = f"ema.{found[average]}."
        sources |= {k.removeprefix(prefix): k for k in stored if k.startswith(prefix)}
    # Of any kind of array, since a state makes JAX's of them.
    like = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, like)
    records = {name: stored[source] for name, source in sources.items()}
    lines = differences(_present(path, body, records, like), _expected(like))
    if lines:
        raise ValueError("\n".join([f"the checkpoint {path} is of another network:", *lines]))
    return _filled(path, body, records, like, sources)


def _in_net(name: str) -> bool:
    return name.startswith("net.")


def _expected(like: PyTree) -> dict[str, Record]:
    return {name: record(leaf) for name, leaf in named_leaves(like).items()}


def _present(
    path: pathlib.Path, body: dict, records: dict[str, Record], like: PyTree
) -> dict[str, Record]:
    try:
        return upgraded(body["format"], like, records)[0]
    except ValueError as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {error}.") from error


def _filled(
    path: pathlib.Path,
    body: dict,
    records: dict[str, Record],
    like: PyTree,
    sources: dict[str, str] | None = None,
) -> PyTree:
    """`like` with the numbers of a checkpoint, of each leaf those of its source."""
    sources = {name: name for name in records} if sources is None else sources
    with _noticing_damage(path):
        leaves = read_leaves(path, body, sources.values())
    arrays = {name: leaves[source] for name, source in sources.items()}
    present, arrays = upgraded(body["format"], like, records, arrays)
    return from_numpy(arrays, present, like)
