"""How a checkpoint is written: begun by one process, filled by all, committed by one.

Between these, all processes learn whether any of them has failed, and then all fail: none waits for
another that has given up, and none reports a checkpoint that is not there.
"""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from . import _arrays
from ._folder import ARRAYS, commit, only_writer, remove_leftovers, temporary_path
from ._manifest import merged, write_manifest
from ._processes import gather, is_writer
from ._snapshot import Stored


_T = TypeVar("_T")


def write_checkpoint(
    directory: pathlib.Path,
    step: int,
    arrays: list[Stored],
    body: dict,
    prune: Callable[[int, float | None], None],
) -> None:
    """Writes a checkpoint, which is on disk under its final name when this returns.

    Empties `arrays`, so that each goes as soon as it has been written.

    **Arguments:**

    - `directory`: exists.
    - `arrays`: what to store; empty in this process where others have it.
    - `body`: the manifest but for the arrays.
    - `prune`: called after the checkpoint is there, by the process that writes, while no other
        may write.

    **Raises:** whatever went wrong, in every process; nothing of the checkpoint is left then.
    """
    folders = _arrays.folder_names(each.name for each in arrays)
    records = {
        each.name: {
            "shape": [*each.shape],
            "dtype": np.dtype(each.dtype).name,
            "folder": folders[each.name],
        }
        for each in arrays
    }
    temporary = temporary_path(directory, step)
    with contextlib.ExitStack() as stack:

        def begin() -> None:
            stack.enter_context(only_writer(directory))
            remove_leftovers(directory)
            stack.callback(shutil.rmtree, temporary, ignore_errors=True)
            _begin(temporary, arrays, folders)

        def finish() -> None:
            manifest = {**body, "arrays": merged(records, map(json.loads, parts.values()))}
            write_manifest(temporary, manifest)
            _arrays.sync(temporary)
            commit(directory, step)
            # Of what is there already, and no reason to call the new one a failure.
            with contextlib.suppress(OSError):
                prune(step, body["score"])

        _together("begin", begin if is_writer() else _nothing)
        part = _together("write", lambda: _fill(temporary, arrays, folders))
        parts = gather(json.dumps(part), "checkpoint/pieces")
        _together("commit", finish if is_writer() else _nothing)


def _nothing() -> None:
    pass


def _begin(temporary: pathlib.Path, arrays: list[Stored], folders: dict[str, str]) -> None:
    (temporary / ARRAYS).mkdir(parents=True)
    full = [each for each in arrays if 0 not in each.shape]
    for each in full:
        folder = temporary / ARRAYS / folders[each.name]
        _arrays.create(folder, each.shape, each.dtype, each.files)
    text = _arrays.describe_for_orbax(folders[each.name] for each in full)
    (temporary / ARRAYS / "_METADATA").write_text(text)


def _fill(temporary: pathlib.Path, arrays: list[Stored], folders: dict[str, str]) -> dict:
    """Writes the numbers that this process has; the boxes and checksums of the pieces."""
    part = {}
    arrays.reverse()
    while arrays:
        each = arrays.pop()
        folder = temporary / ARRAYS / folders[each.name]
        pieces = []
        for box, array in each.pieces():
            _arrays.write(folder, box, array)
            pieces.append([box, _arrays.checksum(array)])
        if pieces:
            part[each.name] = pieces
    return part


def _together(name: str, work: Callable[[], _T]) -> _T:
    """The result of this process's work, once that of all has succeeded."""
    done, error = None, None
    try:
        done = work()
    except Exception as raised:
        error = raised
    failed = gather("" if error is None else _arrays.reason(error), f"checkpoint/{name}")
    if error is not None:
        raise error
    for process, text in failed.items():
        raise RuntimeError(f"in process {process}: {text}")
    return done  # pyright: ignore[reportReturnType]
