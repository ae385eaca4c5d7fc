"""Checkpoints: a whole training run on disk, written so that no crash can damage it.

A directory holds one folder per checkpoint, `step_00012000`, with every parameter in it under its
name in the network, however the state packs them. Orbax writes a checkpoint under a temporary name,
which becomes the final one by a single rename: a folder with a final name is complete, whatever
killed the process. A manifest next to the arrays holds the shape, dtype and checksum of each of
them, so that a checkpoint of another architecture is refused before anything is read, and a damaged
file is noticed rather than trained on.
"""

import contextlib
import json
import logging
import os
import pathlib
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import PyTree

from .._require import require
from ._leaves import (
    checksum,
    differences,
    from_numpy,
    full_record,
    named_leaves,
    record,
    to_numpy,
)
from ._upgrade import FORMAT, upgraded


_NAME = re.compile(r"step_(\d+)")


class CheckpointError(Exception):
    """A checkpoint cannot be read or written; the message says which folder and what to do."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax reports every save and restore, and its whole set-up, to the absl logger."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _orbax() -> Any:
    with _quiet():
        return require("orbax.checkpoint", "eqdiff.train.Checkpointer", extra="checkpoint")


def _seal(body: dict) -> dict:
    return {"body": body, "crc32": zlib.crc32(json.dumps(body, sort_keys=True).encode())}


class Checkpointer:
    """Saves and restores train states in a directory. Needs `pip install 'eqdiff[checkpoint]'`.

    Saving is synchronous: when `save` returns, the checkpoint is on disk and the state may be
    donated. Works on a single host only.
    """

    def __init__(
        self, directory: str | os.PathLike, *, keep: int = 3, keep_every: int | None = None
    ):
        """**Arguments:**

        - `directory`: created when first written to.
        - `keep`: how many checkpoints to keep, the latest ones.
        - `keep_every`: also keep, for good, those whose step is a multiple of this.
        """
        if keep < 1 or (keep_every is not None and keep_every < 1):
            raise ValueError(f"Checkpointer(keep={keep}, keep_every={keep_every}): expected ≥ 1.")
        self.directory = pathlib.Path(directory).absolute()
        self.keep = keep
        self.keep_every = keep_every

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, in order."""
        if not self.directory.is_dir():
            return []
        names = (_NAME.fullmatch(path.name) for path in self.directory.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def latest_step(self) -> int | None:
        """The step of the latest checkpoint, or `None` if there is none."""
        return max(self.steps(), default=None)

    def path(self, step: int) -> pathlib.Path:
        """The folder of a checkpoint."""
        return self.directory / f"step_{step:08d}"

    def check_writable(self) -> None:
        """Creates the directory and tries to write to it: call this before hours of compute.

        **Raises:** [`eqdiff.train.CheckpointError`][] if it cannot be written to.
        """
        _orbax()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.directory):
                pass
        except OSError as error:
            raise CheckpointError(
                f"checkpoints cannot be written to {self.directory} ({error.strerror or error}): "
                "choose another directory."
            ) from error

    def save(self, step: int, state: PyTree, extra: Any = None) -> None:
        """Writes a checkpoint and removes those that `keep` and `keep_every` no longer keep.

        A checkpoint of the same step is replaced. Checkpoints of later steps belong to a future
        that this run has abandoned (it was restored from before them): they are set aside as
        `step_….superseded`, not deleted.

        **Arguments:**

        - `step`: names the checkpoint.
        - `state`: a [`eqdiff.train.TrainState`][], or any pytree; every array in it is saved.
        - `extra`: whatever else the run needs in order to continue, JSON-serialisable: the state of
            the data iterator, the configuration, the time spent.

        **Raises:** [`eqdiff.train.CheckpointError`][] if the directory cannot be written to, and
        `ValueError` for an `extra` that is not JSON-serialisable.
        """
        try:
            extra = json.loads(json.dumps(extra))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"extra is not JSON-serialisable: {error}. "
                "Use numbers, strings, lists and dictionaries."
            ) from error
        self.check_writable()
        leaves = named_leaves(state)
        arrays = to_numpy(state, leaves)
        records = {name: full_record(leaf, arrays[name]) for name, leaf in leaves.items()}
        body = {"format": FORMAT, "step": step, "leaves": records, "extra": extra}

        self._remove_leftovers()
        temporary = self.directory / f"tmp_{self.path(step).name}"
        try:
            _write(temporary, arrays, _seal(body))
            self._commit(temporary, step)
        except Exception as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to "
                f"{self.directory} ({error}). "
                f"{self._good_one()}"
            ) from error
        self._prune(step)

    def restore(self, state_like: PyTree, *, step: int | None = None) -> tuple[PyTree, Any, int]:
        """Reads a checkpoint.

        **Arguments:**

        - `state_like`: a state of the same network and optimiser: a fresh one from
            [`eqdiff.train.init`][], or its shapes alone, from `eqx.filter_eval_shape`. Static
            fields, the layout of the parameters and device placement are taken from it. It is not
            changed.
        - `step`: which checkpoint; by default the latest.

        **Returns:** the state, `extra`, and the step.

        **Raises:** `ValueError`, listing what differs, for a checkpoint of another architecture;
        [`eqdiff.train.CheckpointError`][] for a damaged one; `FileNotFoundError` if there is none.
        """
        step, body = self._manifest(step)
        stored = body["leaves"]
        try:
            present, _ = upgraded(body["format"], state_like, stored)
        except ValueError as error:
            raise CheckpointError(
                f"the checkpoint {self.path(step)} cannot be read: {error}."
            ) from error
        expected = {name: record(leaf) for name, leaf in named_leaves(state_like).items()}
        lines = differences(present, expected)
        if lines:
            raise ValueError(
                "\n".join([f"the checkpoint {self.path(step)} is of another architecture:", *lines])
            )
        try:
            arrays = _read(self.path(step), stored)
        except Exception as error:
            raise self._damaged(step, error) from error
        for name, entry in stored.items():
            if checksum(arrays[name]) != entry["crc32"]:
                raise self._damaged(step, f"the checksum of {name} is wrong")
        present, arrays = upgraded(body["format"], state_like, stored, arrays)
        return from_numpy(arrays, present, state_like), body["extra"], step

    def read_extra(self, step: int | None = None) -> Any:
        """Reads only the `extra` of a checkpoint, for example to build the network it belongs to.

        Arguments and errors as for `restore`.
        """
        return self._manifest(step)[1]["extra"]

    def _manifest(self, step: int | None) -> tuple[int, dict]:
        found = self.steps()
        if not found or (step is not None and step not in found):
            wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
            have = f" (there are those of steps {', '.join(map(str, found))})" if found else ""
            raise FileNotFoundError(f"there is no {wanted} in {self.directory}{have}.")
        step = found[-1] if step is None else step
        try:
            sealed = _read_manifest(self.path(step))
            if _seal(sealed["body"]) != sealed:
                raise ValueError("the checksum of the manifest is wrong")
        except Exception as error:
            raise self._damaged(step, error) from error
        return step, sealed["body"]

    def _damaged(self, step: int, reason: Any) -> CheckpointError:
        text = str(reason).strip()
        reason = text.splitlines()[0][:200] if text else type(reason).__name__
        return CheckpointError(
            f"the checkpoint {self.path(step)} is damaged ({reason}). {self._good_one(before=step)}"
        )

    def _good_one(self, before: int | None = None) -> str:
        found = [step for step in self.steps() if before is None or step < before]
        if not found:
            return "There is no earlier one."
        return f"The one before it is of step {found[-1]}: restore(…, step={found[-1]})."

    def _commit(self, temporary: pathlib.Path, step: int) -> None:
        for later in self.steps():
            if later >= step:
                aside = self.directory / f"{self.path(later).name}.superseded"
                shutil.rmtree(aside, ignore_errors=True)
                self.path(later).rename(aside)
        temporary.rename(self.path(step))

    def _prune(self, step: int) -> None:
        shutil.rmtree(self.directory / f"{self.path(step).name}.superseded", ignore_errors=True)
        for old in self.steps()[: -self.keep]:
            if self.keep_every is None or old % self.keep_every != 0:
                # Renamed first: a kill in the middle must not leave half a checkpoint under a final
                # name.
                doomed = self.path(old).rename(self.directory / f"tmp_{self.path(old).name}")
                shutil.rmtree(doomed, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        for path in self.directory.glob("tmp_step_*"):
            shutil.rmtree(path, ignore_errors=True)


def _write(path: pathlib.Path, arrays: dict[str, np.ndarray], manifest: dict) -> None:
    ocp = _orbax()
    # Orbax refuses arrays without elements; the manifest alone describes them.
    items = {
        "state": ocp.args.PyTreeSave({k: x for k, x in arrays.items() if x.size > 0}),
        "manifest": ocp.args.JsonSave(manifest),
    }
    with _quiet(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, args=ocp.args.Composite(**items))


def _read_manifest(path: pathlib.Path) -> dict:
    ocp = _orbax()
    args = ocp.args.Composite(manifest=ocp.args.JsonRestore())
    with _quiet(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path, args=args)["manifest"]


def _read(path: pathlib.Path, records: dict[str, dict]) -> dict[str, np.ndarray]:
    ocp = _orbax()
    full = {name: entry for name, entry in records.items() if 0 not in entry["shape"]}
    restore_args = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in full}
    args = ocp.args.Composite(state=ocp.args.PyTreeRestore(restore_args=restore_args))
    with _quiet(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        arrays = checkpointer.restore(path, args=args)["state"]
    empty = {k: np.zeros(e["shape"], e["dtype"]) for k, e in records.items() if k not in full}
    return {**arrays, **empty}
