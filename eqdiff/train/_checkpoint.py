"""Checkpoints: a whole training run on disk, written so that no crash can damage it.

A directory holds one folder per checkpoint, `step_00012000`. It is written under a temporary name,
put on disk, and gets its name by a single renaming: a folder with a final name is complete,
whatever killed the process (`_folder.py`). The arrays are stored as the state has them, a dozen
long vectors (`_arrays.py`); a manifest next to them says which parameter lies where, by its name in
the network, and holds shapes, dtypes and checksums (`_manifest.py`). So a checkpoint of another
architecture is refused before anything is read, and a damaged file is noticed, not trained on.

A copy of the state on its devices (`_snapshot.py`) lets the run go on while a thread moves it to
disk (`_background.py`). Of several processes each writes its own shards; they agree that all are
there before the first commits, on the host, since devices are busy with the next step by then.
"""

import contextlib
import json
import math
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable
from typing import Any, SupportsFloat, TypeVar

from jaxtyping import PyTree

from . import _arrays, _folder
from ._background import Background
from ._leaves import full_record, named_leaves
from ._manifest import read_manifest
from ._processes import any_process, from_writer, is_writer
from ._restoring import attempt, CheckpointError, Damaged, read_net, read_state
from ._saving import write_checkpoint
from ._snapshot import snapshot, Stored
from ._upgrade import FORMAT


_T = TypeVar("_T")


class Checkpointer:
    """Saves and restores train states in a directory. Needs `pip install 'eqdiff[checkpoint]'`.

    One run writes into a directory at a time. Of several processes, all make the same calls in the
    same order, with a directory that they share; each writes the shards that it alone has.

    **Example:**

    ```python
    with eqd.train.Checkpointer("checkpoints", keep=3) as checkpointer:
        checkpointer.save(1000, {"weights": jnp.ones(3)}, {"seconds": 60})
    state, extra, step = checkpointer.restore({"weights": jnp.zeros(3)})
    ```
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        keep: int = 3,
        keep_every: int | None = None,
        keep_best: int = 0,
    ):
        """**Arguments:**

        - `directory`: created when first written to.
        - `keep`: how many checkpoints to keep, the latest ones.
        - `keep_every`: also keep, for good, those whose step is a multiple of this.
        - `keep_best`: also keep this many of those with the lowest scores (see `save`).
        """
        if keep < 1 or keep_best < 0 or (keep_every is not None and keep_every < 1):
            raise ValueError(
                f"Checkpointer(keep={keep}, keep_every={keep_every}, keep_best={keep_best}): "
                "expected keep and keep_every ≥ 1, and keep_best ≥ 0."
            )
        self.directory = pathlib.Path(os.path.abspath(pathlib.Path(directory).expanduser()))
        self.keep = keep
        self.keep_every = keep_every
        self.keep_best = keep_best
        self._background = Background()
        self._scores: dict[int, float | None] = {}
        # Set once the directory was there.
        self._seen = False

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.close()
        elif failure := self._background.failure():
            # Beside what ended the run, not in its place.
            error.add_note(str(failure))

    def close(self) -> None:
        """As `wait`. A program that ends without it still finishes the save under way."""
        self.wait()

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, in order."""
        paths = _folder.found(self.directory)
        return [step for step, path in paths.items() if _folder.is_complete(path)]

    def latest_step(self) -> int | None:
        """The step of the latest checkpoint, or `None` without one."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step of the checkpoint with the lowest score, or `None` if none has a score."""
        return next(iter(self._by_score()), None)

    def path(self, step: int) -> pathlib.Path:
        """The folder of a checkpoint."""
        final = _folder.final_path(self.directory, step)
        return _folder.found(self.directory).get(step, final)

    def check_writable(self) -> None:
        """Creates the directory and tries to write to it: call it before hours of compute.

        **Raises:** [`eqdiff.train.CheckpointError`][] if it cannot be written to.
        """
        _arrays.tensorstore()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.directory):
                pass
        except OSError as error:
            raise CheckpointError(
                f"checkpoints cannot be written to {self.directory} ({_arrays.reason(error)}): "
                "choose another directory."
            ) from error
        self._seen = True

    def save(
        self, step: int, state: PyTree, extra: Any = None, *, score: SupportsFloat | None = None
    ) -> None:
        """Writes a checkpoint and removes those that need not be kept.

        It is on disk when this returns. A checkpoint of the same step is replaced. Checkpoints of
        later steps belong to a future that this run has abandoned (it was restored from before
        them): they are set aside as `step_….superseded`, not deleted.

        **Arguments:**

        - `step`: names the checkpoint.
        - `state`: a [`eqdiff.train.TrainState`][], or any pytree; every array in it is saved.
        - `extra`: whatever else the run needs in order to continue, JSON-serialisable: the state of
            the data iterator, the configuration, the time spent.
        - `score`: how good it is, for `keep_best` and `best_step`: lower is better. One that is not
            finite does not count.

        **Raises:** [`eqdiff.train.CheckpointError`][] if it cannot be written, and `ValueError` for
        an `extra` that is not JSON-serialisable. A save in the background that failed before this
        one, which has now succeeded, is a warning.
        """
        work = self._work(step, state, extra, score, copy=False)
        earlier = self._background.failure()
        self._background.start(work)
        try:
            self.wait()
        except KeyboardInterrupt:
            # A matter of seconds; a second one stops at once.
            self._background.join()
            raise
        if earlier is not None:
            warnings.warn(f"{earlier} The one of step {step} has been written.", stacklevel=2)

    def save_in_background(
        self, step: int, state: PyTree, extra: Any = None, *, score: SupportsFloat | None = None
    ) -> None:
        """As `save`, but returns once the state may be donated or changed.

        That takes a copy of the state on its devices, which stays there until a thread has moved it
        to the host: there must be memory for it. A save that is still under way is waited for.

        **Raises:** as `save`. What goes wrong in the thread is raised by the next
        `save_in_background` or `wait`, which then has not saved.
        """
        self.wait()
        self._background.start(self._work(step, state, extra, score, copy=True))

    def wait(self) -> None:
        """Returns once nothing is being saved.

        **Raises:** [`eqdiff.train.CheckpointError`][] if a save in the background failed.
        """
        failure = self._background.failure()
        if failure is not None:
            raise failure

    def restore(self, state_like: PyTree, *, step: int | None = None) -> tuple[PyTree, Any, int]:
        """Reads a checkpoint.

        **Arguments:**

        - `state_like`: a state of the same network and optimiser: a fresh one from
            [`eqdiff.train.init`][], or its shapes alone, from `eqx.filter_eval_shape`. Static
            fields, the layout of the parameters and device placement are taken from it: another
            number of devices or processes than it was saved from will do. It is not changed.
        - `step`: which checkpoint; by default the latest. If that one is damaged, then the one
            before it, with a warning that names both.

        **Returns:** the state, `extra`, and the step.

        **Raises:** `ValueError`, listing what differs, for a checkpoint of another architecture;
        [`eqdiff.train.CheckpointError`][] for a damaged one, if there is no other or it was asked
        for; `FileNotFoundError` without any.
        """
        return self._read(step, lambda path, body: read_state(path, body, state_like))

    def restore_net(
        self, net_like: PyTree, *, step: int | None = None, average: int | None = None
    ) -> PyTree:
        """Reads only the network of a checkpoint, for any optimiser and averages.

        For [`eqdiff.train.init`][] with another optimiser, or to sample from.

        **Arguments:**

        - `net_like`: a network like the one saved, or its shapes alone, from
            `eqx.filter_eval_shape`. It is not changed.
        - `step`: as for `restore`.
        - `average`: which of the averages, in the order of `init(..., ema=...)`; by default the
            parameters themselves.

        **Returns:** the network.

        **Raises:** `ValueError`, listing what differs, for another network, and for an average that
        is not there; otherwise as `restore`.
        """

        return self._read(step, lambda path, body: read_net(path, body, net_like, average))

    def read_extra(self, step: int | None = None) -> Any:
        """Reads only the `extra` of a checkpoint, for example to build the network it belongs to.

        Arguments and errors as for `restore`.
        """
        return self._read(step, lambda path, body: body["extra"])

    def supersede(self, step: int) -> None:
        """Sets the checkpoints of later steps aside, as `step_….superseded`: a run goes back.

        Saving does so too, for those later than what is saved.
        """
        self.wait()
        if is_writer() and self.directory.is_dir():
            _folder.supersede(self.directory, step)
        self._scores = {n: score for n, score in self._scores.items() if n <= step}

    def set_score(self, step: int, score: float) -> None:
        """Scores a checkpoint that has been saved, for `keep_best` and `best_step`.

        **Arguments:**

        - `step`: of a checkpoint, which may still be under way.
        - `score`: lower is better. One that is not finite does not count.

        **Raises:** [`eqdiff.train.CheckpointError`][] if that cannot be written down.
        """
        if not math.isfinite(score):
            return
        self._scores[step] = float(score)
        if is_writer():
            try:
                _folder.write_scores(self.directory, {step: float(score)})
            except OSError as error:
                raise CheckpointError(
                    f"the score of step {step} could not be written to {self.directory} "
                    f"({_arrays.reason(error)})."
                ) from error

    def _work(
        self, step: int, state: PyTree, extra: Any, score: SupportsFloat | None, *, copy: bool
    ) -> Callable[[], None]:
        """What is left to do in the thread once the arrays have been taken."""
        try:
            extra = json.loads(json.dumps(extra))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"extra is not JSON-serialisable: {error}. "
                "Use numbers, strings, lists and dictionaries."
            ) from error
        _arrays.tensorstore()
        leaves = named_leaves(state)
        score = None if score is None or not math.isfinite(score) else float(score)
        body = {"format": FORMAT, "step": step, "score": score, "extra": extra}
        arrays = snapshot(state, leaves, copy=copy)

        def work() -> None:
            records = {name: full_record(leaf) for name, leaf in leaves.items()}
            self._write(step, arrays, {**body, "leaves": records})

        return work

    def _write(self, step: int, arrays: list[Stored], body: dict) -> None:
        try:
            if self._seen and not self.directory.is_dir():
                raise OSError("the directory was there and is gone: deleted, moved or unmounted")
            if not self._seen and is_writer():
                self.check_writable()
            self._seen = True
            write_checkpoint(self.directory, step, arrays, body, self._prune)
        except CheckpointError:
            raise
        except Exception as error:
            good = self.latest_step()
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.directory} "
                f"({_arrays.reason(error)}). "
                + ("There is none yet." if good is None else f"That of step {good} is still good.")
            ) from error

    def _prune(self, step: int, score: float | None) -> None:
        if score is not None:
            self._scores[step] = score
        kept = {*self.steps()[-self.keep :], *self._by_score()[: self.keep_best]}
        for old in _folder.found(self.directory):
            if old not in kept and (self.keep_every is None or old % self.keep_every != 0):
                _folder.remove(self.directory, old)

    def _by_score(self) -> list[int]:
        """The steps that have a score, the lowest first."""
        scores, later = {}, _folder.read_scores(self.directory)
        for step in self.steps():
            if step in later:
                self._scores.setdefault(step, later[step])
            if step not in self._scores:
                # One that is damaged has none.
                with contextlib.suppress(Exception):
                    self._scores[step] = read_manifest(self.path(step)).get("score")
            score = self._scores.get(step)
            if score is not None:
                scores[step] = score
        return sorted(scores, key=lambda step: scores[step])

    def _read(self, step: int | None, read: Callable[[pathlib.Path, dict], _T]) -> _T:
        """What `read` makes of a checkpoint: of the first that is not damaged, if any will do."""
        _arrays.tensorstore()
        self.wait()
        paths = _folder.found(self.directory)
        wanted = [step for step in (reversed(paths) if step is None else [step]) if step in paths]
        wanted = json.loads(from_writer(json.dumps(wanted), "checkpoint/wanted"))
        if not wanted:
            what = "checkpoint" if step is None else f"checkpoint of step {step}"
            have = f" (there are those of steps {', '.join(map(str, paths))})" if paths else ""
            raise FileNotFoundError(f"there is no {what} in {self.directory}{have}.")
        damaged: list[str] = []
        for each in wanted:
            path = self.path(each)
            done = attempt(path, read)
            if any_process(isinstance(done, Damaged), "checkpoint/damaged"):
                other = f"the checkpoint {path} could not be read by another process."
                damaged.append(str(done) if isinstance(done, Damaged) else other)
                continue
            assert not isinstance(done, Damaged)
            if damaged:
                text = f"{' '.join(damaged)} This is the one before: {path}."
                warnings.warn(text, stacklevel=3)
            self._seen = True
            return done
        before = [each for each in self.steps() if each < wanted[-1]]
        last = before[-1] if before else None
        advice = f"The one before it is of step {last}: restore(…, step={last})."
        raise CheckpointError(
            f"{' '.join(damaged)} {advice if before else 'There is no earlier one.'}"
        )
