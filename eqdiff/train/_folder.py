"""A folder of checkpoints: which are there, one writer at a time, and what killed ones left.

A folder with a final name, `step_00012000`, is complete: it is written under another name and gets
its own by one renaming. A checkpoint that takes the place of one of the same step waits until that
one is called `step_00012000.replaced`, which counts until the new one is there.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import time
from collections.abc import Iterator

from .._atomic import write_whole
from ._arrays import sync_one


# What is inside a checkpoint.
MANIFEST = pathlib.PurePath("manifest", "metadata")
ARRAYS = "state"
SCORES = "scores.json"

_NAME = re.compile(r"step_(\d+)(\.replaced)?")
# Seconds that a save waits for another process's to end.
_PATIENCE = 10.0


def final_path(directory: pathlib.Path, step: int) -> pathlib.Path:
    return directory / f"step_{step:08d}"


def temporary_path(directory: pathlib.Path, step: int) -> pathlib.Path:
    return directory / f"tmp_step_{step:08d}"


def found(directory: pathlib.Path) -> dict[int, pathlib.Path]:
    """The folders called like checkpoints, by step, in order."""
    if not directory.is_dir():
        return {}
    paths = {}
    # "step_1.replaced" comes after "step_1".
    for path in sorted(directory.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir():
            paths.setdefault(int(match[1]), path)
    return dict(sorted(paths.items()))


def is_complete(path: pathlib.Path) -> bool:
    """Whether a folder called like a checkpoint is one."""
    return (path / MANIFEST).is_file()


@contextlib.contextmanager
def only_writer(directory: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from writing checkpoints here. The system ends this with the process.

    Does nothing on file systems without locks.

    **Raises:** `OSError` if another process is writing, and still is after some seconds.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise OSError(
                    "another process is writing checkpoints into this folder: give each run one "
                    "of its own"
                ) from None
            time.sleep(0.05)
        except OSError:
            return


def remove_leftovers(directory: pathlib.Path) -> None:
    """What saves left that were killed. Only for the one writer."""
    for path in directory.glob("tmp_step_*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in directory.glob("step_*.replaced"):
        if _NAME.fullmatch(path.name):
            final = path.with_suffix("")
            if is_complete(final):
                shutil.rmtree(path, ignore_errors=True)
            else:
                shutil.rmtree(final, ignore_errors=True)
                path.rename(final)


def commit(directory: pathlib.Path, step: int) -> None:
    """Gives a checkpoint that is on disk its name, and sets those of later steps aside."""
    final = final_path(directory, step)
    supersede(directory, step)
    replaced = final.with_suffix(".replaced")
    if final.exists():
        final.rename(replaced)
    temporary_path(directory, step).rename(final)
    sync_one(directory)
    shutil.rmtree(replaced, ignore_errors=True)


def supersede(directory: pathlib.Path, step: int) -> None:
    """Sets the checkpoints of later steps aside, and forgets their scores."""
    later = {n: path for n, path in found(directory).items() if n > step}
    for number, path in later.items():
        aside = directory / f"{final_path(directory, number).name}.superseded"
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    if later:
        scores = {n: score for n, score in read_scores(directory).items() if n <= step}
        _replace_scores(directory, scores)


def remove(directory: pathlib.Path, step: int) -> None:
    path = found(directory)[step]
    # Renamed first: a kill in the middle must not leave half a checkpoint under a final name.
    doomed = path.rename(temporary_path(directory, step))
    shutil.rmtree(doomed, ignore_errors=True)


def read_scores(directory: pathlib.Path) -> dict[int, float]:
    """The scores that checkpoints were given after they had been saved."""
    # What is missing or damaged costs a score, not a checkpoint.
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        found = json.loads((directory / SCORES).read_text())
        return {int(step): float(score) for step, score in found.items()}
    return {}


def write_scores(directory: pathlib.Path, scores: dict[int, float]) -> None:
    """Adds to them, whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    _replace_scores(directory, {**read_scores(directory), **scores})


def _replace_scores(directory: pathlib.Path, scores: dict[int, float]) -> None:
    write_whole(directory / SCORES, lambda file: file.write(json.dumps(scores).encode()))
