"""The folder of a run: what was asked for, what was measured, and every state it can go on from.

```
runs/cifar10/config.json      settings, and the changes that were made to them
             metrics.jsonl    one line for every so many steps
             checkpoints/     step_00010000, …
```

A folder belongs to one run and one job at a time. It is refused to settings that are another
run's, before anything is computed or overwritten; nothing in it is ever deleted but checkpoints
that `keep` no longer keeps. Several processes of one job share it: process 0 writes.
"""

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from .._atomic import remove_stale
from ._checkpoint import Checkpointer, CheckpointError
from ._exit import GracefulExit
from ._log import AbstractSink, MetricLog, read_metrics
from ._processes import from_writer, is_writer
from ._run_folder import contents, Lock, set_aside, write_text
from ._settings import change, Changes, compare, Configuration, listed, plain
from ._state import TrainState


class Stopped(KeyboardInterrupt):
    """A run was stopped by a signal; the message says what is saved.

    **Fields:**

    - `signal`: which, `None` if another process of the job received it.

    **Example:**

    ```python
    try:
        with eqd.train.Run("runs/cifar10", {"rate": 1e-3}):
            raise KeyboardInterrupt  # Ctrl-C
    except eqd.train.Stopped as stopped:
        print(stopped)
    ```
    """

    def __init__(self, signal: signal.Signals | None, safe: str):
        self.signal = signal
        name = "a signal to another process" if signal is None else signal.name
        super().__init__(f"{name}: {safe}")


@runtime_checkable
class ResumableBatches(Protocol):
    """Batches that can continue where they were: those of `eqdiff.data.loader`.

    **Example:**

    ```python
    batches: eqd.train.ResumableBatches = eqd.data.loader(eqd.data.digits().train, 64, seed=0)
    batches.set_state(batches.get_state())
    ```
    """

    def get_state(self) -> Any:
        """What to save, JSON-serialisable."""

    def set_state(self, state: Any) -> None:
        """Continues from there."""


def read_settings(folder: str | os.PathLike) -> dict[str, Any]:
    """Reads the settings that a run was last continued with.

    **Arguments:**

    - `folder`: of the run.

    **Raises:** `FileNotFoundError` for a folder without a run, `ValueError` for a damaged one.

    **Example:**

    ```python
    with eqd.train.Run("runs/cifar10", {"rate": 1e-3}):
        pass
    print(eqd.train.read_settings("runs/cifar10"))
    ```
    """
    configuration = Configuration(Path(folder).expanduser() / "config.json")
    if not configuration.exists():
        raise FileNotFoundError(
            f"{folder} holds no run (no config.json): give the folder that a training program "
            "wrote."
        )
    return configuration.read()[0]


_AGAIN = "the same call"

# Seconds of a run, in all its parts, and what was done in them.
_NOTHING = {"wall": 0.0, "training": 0.0, "compilation": 0.0, "images": 0}


class Run:
    """A run's folder; a context manager.

    ```python
    settings = {"dataset": "cifar10", "learning_rate": 1e-4, "steps": 500_000}
    with eqd.train.Run("runs/cifar10", settings, free=("steps",)) as run:
        for state in eqd.train.fit(step, state, batches, num_steps=500_000, run=run):
            denoiser = eqd.Denoiser(state.ema_net(), schedule)
            eqd.save_model(run.folder / "model.safetensors", denoiser, overwrite=True)
            run.record(state, bits=bits(denoiser))
    ```

    A folder that holds a run of the same settings is continued by [`eqdiff.train.fit`][]. Inside
    the block Ctrl-C and SIGTERM end the run with [`eqdiff.train.Stopped`][], whose message says
    what is saved. A step is finished and saved first; anything else, such as a compilation, ends at
    once.

    **Fields:**

    - `folder`: its path.
    - `checkpoints`: the [`eqdiff.train.Checkpointer`][] in it.
    - `seconds`: what the run has taken in all its parts until the last checkpoint: `"wall"`,
        `"training"`, `"compilation"`, and how many `"images"` it has seen.

    **Example:**

    ```python
    with eqd.train.Run("runs/cifar10", {"rate": 1e-3, "steps": 1000}, free=("steps",)) as run:
        print(run.folder, run.checkpoints.steps())
    ```
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        settings: Mapping[str, Any],
        *,
        free: Collection[str] = (),
        adjustable: Collection[str] = (),
        adjust: bool = False,
        overwrite: bool = False,
        from_step: int | None = None,
        keep: int = 2,
        keep_every: int | None = None,
        keep_best: int = 0,
        sinks: Sequence[AbstractSink] = (),
        again: str = _AGAIN,
    ):
        """**Arguments:**

        - `folder`: created if it is not there.
        - `settings`: the choices that make the run: numbers, texts, lists and dictionaries by name.
        - `free`: names of settings that may differ when a run is continued.
        - `adjustable`: names of settings that may differ if `adjust` says so: a learning rate, a
            clipping threshold, a compute dtype. The change is recorded in `config.json`, with the
            step after which it applies. They must leave the shapes of the optimiser's state as they
            are; for another optimiser see [`eqdiff.train.Checkpointer.restore_net`][].
        - `adjust`: go on with the present values of adjustable settings.
        - `overwrite`: begin anew where there is a run. What is in the folder is moved into a folder
            `replaced_1` in it, not deleted.
        - `from_step`: go on from the checkpoint of this step, not from the latest; later ones are
            set aside. Once only: a call that goes on from there must not have it.
        - `keep`, `keep_every`, `keep_best`: as for [`eqdiff.train.Checkpointer`][].
        - `sinks`: where metrics go besides `metrics.jsonl`.
        - `again`: what continues the run, for messages: a command line.

        **Raises:** on entering the block, and before anything is written: `ValueError` for a folder
        that holds a run of other settings, or files but no run, or that another job uses, or that
        has no such step; [`eqdiff.train.CheckpointError`][] if it cannot be written to.
        """
        self.folder = Path(folder).expanduser()
        self.settings = plain(settings)
        self.free, self.adjustable = frozenset(free), frozenset(adjustable)
        if overwrite and from_step is not None:
            raise ValueError(
                f"Run(overwrite=True, from_step={from_step}): overwriting begins anew, at step 0. "
                "Give one of them."
            )
        self.adjust, self.overwrite, self.from_step = adjust, overwrite, from_step
        self.again = again
        self.checkpoints = Checkpointer(
            self.folder / "checkpoints", keep=keep, keep_every=keep_every, keep_best=keep_best
        )
        self.seconds: dict[str, float] = dict(_NOTHING)
        self.exit = GracefulExit()
        self.sinks = tuple(sinks)
        self._configuration = Configuration(self.folder / "config.json")
        self._seen = self.folder / ".seen"
        self._log: MetricLog | None = None
        self._recorded: set[tuple[int, frozenset[str]]] = set()
        self._stack = contextlib.ExitStack()
        self._began = time.monotonic()
        self._earlier_wall = 0.0

    @property
    def metrics(self) -> Path:
        """The file of the metrics."""
        return self.folder / "metrics.jsonl"

    def __enter__(self) -> "Run":
        self._began = time.monotonic()
        with contextlib.ExitStack() as stack:
            # One process looks and writes; all raise what it found.
            problem = ""
            if is_writer():
                try:
                    self._open(stack)
                except ValueError as error:
                    problem = str(error)
                except OSError as error:
                    reason = error.strerror or str(error)
                    problem = f"{self.folder} cannot be written to ({reason}): choose another."
            if problem := from_writer(problem, "run"):
                raise ValueError(problem)
            if is_writer():
                self.checkpoints.check_writable()
            stack.enter_context(self.exit)
            stack.enter_context(self.exit.at_once(self.safe))
            self._stack = stack.pop_all()
        return self

    def _open(self, stack: contextlib.ExitStack) -> None:
        known = self._configuration.exists()
        if not known and contents(self.folder) and not self.checkpoints.steps():
            raise ValueError(
                f"{self.folder} exists, is not empty and holds no run (no config.json): choose "
                "another folder."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        stack.callback(Lock(self.folder).release)
        remove_stale(self.folder)
        steps = self.checkpoints.steps()
        if self.from_step is not None and self.from_step not in steps:
            raise ValueError(
                f"from_step={self.from_step}: the checkpoints in {self.folder} are of the steps "
                f"{', '.join(map(str, steps)) or '(there are none)'}."
            )
        changes: list[dict[str, Any]] = []
        if self.overwrite:
            if (aside := set_aside(self.folder)) is not None:
                print(f"The run in {self.folder} is moved to {aside}.")
        elif known or steps:
            changes = self._compare()
        self._configuration.write(self.settings, changes)

    def _compare(self) -> list[dict[str, Any]]:
        """The changes that were made to the run's settings, those of now included."""
        try:
            saved, changes = self._configuration.read()
        except (ValueError, OSError) as error:
            if not self.adjust:
                raise ValueError(
                    f"{error if isinstance(error, ValueError) else 'config.json is missing.'} The "
                    f"checkpoints in {self.folder} are of the steps {self.checkpoints.steps()}; to "
                    "go on from them with the settings given here, say adjust."
                ) from error
            return [change(self._first_step(), {})]
        differ = compare(saved, self.settings, self.free, self.adjustable)
        self._refuse(differ)
        if differ.adjustable:
            changes.append(change(self._first_step(), differ.adjustable))
            print(f"Continuing with other settings: {listed(differ.adjustable)}.")
        return changes

    def _refuse(self, differ: Changes) -> None:
        if differ.others:
            raise ValueError(
                f"{self.folder} holds a run of other settings: {listed(differ.others)}. Choose "
                "another folder, or begin anew in this one with overwrite."
            )
        if differ.adjustable and not self.adjust:
            raise ValueError(
                f"{self.folder} holds a run of other settings: {listed(differ.adjustable)}. To go "
                "on with those given here, which will be recorded, say adjust; otherwise choose "
                "another folder."
            )

    def _first_step(self) -> int:
        return self.from_step or self.checkpoints.latest_step() or 0

    def restore(self, state: TrainState, batches: Any) -> tuple[TrainState, int | None]:
        """The state and the batches of the run's checkpoint, if there is one, and its step.

        [`eqdiff.train.fit`][] calls it. It also opens the log, from which later lines are dropped.
        """
        step = None
        if self.from_step is not None or self.checkpoints.latest_step() is not None:
            state, extra, step = self.checkpoints.restore(state, step=self.from_step)
            extra = extra or {}
            self.checkpoints.supersede(step)
            if isinstance(batches, ResumableBatches) and extra.get("batches") is not None:
                batches.set_state(extra["batches"])
            elif step > 0:
                print("These batches cannot be continued where they were: they begin anew.")
            self.seconds = {**_NOTHING, **extra.get("seconds", {})}
            self._earlier_wall = self.seconds["wall"]
        if is_writer():
            log = MetricLog(self.metrics, last_step=step or 0, sinks=self.sinks)
            self._log = self._stack.enter_context(log)
            self._recorded = {
                (line["step"], frozenset(line) - {"step", "time"})
                for line in read_metrics(self.metrics)
            }
        return state, step

    def extra(self, batches: Any) -> dict[str, Any]:
        """The contents of a checkpoint besides the state.

        **Raises:** [`eqdiff.train.CheckpointError`][] if the run's folder is no longer there.
        """
        if not self._configuration.exists():
            raise CheckpointError(
                f"{self.folder} was there and is gone: deleted, moved or unmounted. What this run "
                "has learned since its last checkpoint cannot be saved there."
            )
        self.seconds["wall"] = self._earlier_wall + time.monotonic() - self._began
        resumable = isinstance(batches, ResumableBatches)
        return {
            "batches": batches.get_state() if resumable else None,
            "seconds": dict(self.seconds),
        }

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes a line of metrics, in process 0."""
        if self._log is not None:
            self._log.write(step, metrics)

    def seen(self) -> int:
        """The last step whose state has been yielded and looked at."""
        found = ""
        if is_writer():
            with contextlib.suppress(OSError):
                found = self._seen.read_text()
        found = from_writer(found, "seen")
        return int(found) if found.isdecimal() else 0

    def see(self, step: int) -> None:
        """Notes that a state has been looked at: the body of the loop has run."""
        if is_writer():
            write_text(self._seen, str(step))

    def record(self, state: TrainState, *, score: float | None = None, **metrics: Any) -> None:
        """Logs what was measured of a state, such as bits/dim or the quality of samples.

        **Arguments:**

        - `state`: as [`eqdiff.train.fit`][] yielded it.
        - `score`: makes its checkpoint one of the best if it is low; those are kept
            (`keep_best`).
        - `metrics`: numbers by name.
        """
        step = int(state.step)
        line = metrics | ({} if score is None else {"score": score})
        # A finished run that is called again says the same again.
        if (step, frozenset(line)) not in self._recorded:
            self.write(step, line)
        if score is not None:
            self.checkpoints.set_score(step, score)

    def safe(self) -> str:
        """What would be left if the run ended now, in one sentence. Waits for a save."""
        with contextlib.suppress(CheckpointError):
            self.checkpoints.wait()
        step = self.checkpoints.latest_step()
        if step is None:
            return f"stopped before the first checkpoint; {self.again} begins anew."
        again = self.again
        if self.from_step is not None and again == _AGAIN:
            again += ", without from_step,"
        return f"stopped; step {step} is saved in {self.folder}, and {again} goes on from it."

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        interrupted = isinstance(error, KeyboardInterrupt) and not isinstance(error, Stopped)
        try:
            # A save that is under way is finished; what it says must not hide another error.
            with contextlib.suppress(Exception) if error is not None else _nothing():
                self.checkpoints.close()
        finally:
            self._stack.close()
        if interrupted:
            raise Stopped(self.exit.signal or signal.SIGINT, self.safe()) from None


@contextlib.contextmanager
def _nothing() -> Iterator[None]:
    yield
