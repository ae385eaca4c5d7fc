"""Metrics on disk: one JSON object per line, readable during a run and after it was killed.

Each line is written whole, so `kill -9` costs at most the line being written; a half-written last
line is removed when the log is opened again. A resumed run drops the lines of steps after its
checkpoint, so that every step appears once. Lines that are kept keep their every byte. A file
that was damaged otherwise is set aside as it was, and a warning says which lines are missing.
"""

import json
import math
import os
import pathlib
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from .._check import whole
from ._sinks import AbstractSink


# How many line numbers a warning lists.
_LISTED = 6


def _plain(value: Any) -> Any:
    """JSON-serialisable: arrays become numbers or lists, NaN and infinities `null`."""
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    value = np.asarray(value).tolist() if not isinstance(value, (float, list)) else value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None


class _Lines(NamedTuple):
    """The whole lines of a file, parsed and as they are, and the numbers of the damaged ones."""

    entries: list[dict[str, Any]]
    texts: list[bytes]
    damaged: list[int]


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    step = entry.get("step") if isinstance(entry, dict) else None
    if isinstance(step, bool) or not isinstance(step, (int, float)):
        return None
    # Floats of other programs, such as 100.0, are steps as well.
    return entry if math.isfinite(step) else None


def _read(path: pathlib.Path) -> _Lines:
    lines = _Lines([], [], [])
    *whole_lines, last = path.read_bytes().split(b"\n")
    for number, text in enumerate([*whole_lines, last], start=1):
        entry = _parse(text)
        if entry is not None:
            lines.entries.append(entry)
            lines.texts.append(text)
        elif text.strip() and number <= len(whole_lines):
            # Only the last one may be half of a line: a kill may cut it anywhere.
            lines.damaged.append(number)
    return lines


def _said(path: pathlib.Path, damaged: Sequence[int]) -> str:
    numbers = ", ".join(map(str, damaged[:_LISTED])) + ", …" * (len(damaged) > _LISTED)
    plural = "line" if len(damaged) == 1 else "lines"
    return f"{path}: {len(damaged)} damaged {plural} (number {numbers}) left out"


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a [`eqdiff.train.MetricLog`][] as dictionaries, without a half-written one.

    Other damaged lines, and those whose step is not a number, are left out with a warning that says
    which.

    **Arguments:**

    - `path`: the file.

    **Raises:** `FileNotFoundError` if there is none.

    **Example:**

    ```python
    with eqd.train.MetricLog("metrics.jsonl") as log:
        log.write(100, {"loss": 0.5, "steps": 100})
    losses = [line["loss"] for line in eqd.train.read_metrics("metrics.jsonl")]
    ```
    """
    path = pathlib.Path(path)
    lines = _read(path)
    if lines.damaged:
        warnings.warn(f"{_said(path, lines.damaged)}.", stacklevel=2)
    return lines.entries


class MetricLog:
    """Appends metrics to a JSONL file and to its sinks; a context manager.

    **Example:**

    ```python
    with eqd.train.MetricLog("metrics.jsonl") as log:
        log.write(100, {"loss": 0.5, "steps": 100})
    ```
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        last_step: int | None = None,
        sinks: Sequence[AbstractSink] = (),
    ):
        """**Arguments:**

        - `path`: the file. It and its folder are created if missing; otherwise it is appended to.
            If it has damaged lines, it is kept as `….damaged` and a warning says which they are.
        - `last_step`: the step from which a run continues: later lines are dropped, since they will
            be written again. A run that begins anew says 0, and all lines are dropped.
        - `sinks`: where lines go besides the file: [`eqdiff.train.TensorBoard`][],
            [`eqdiff.train.WandB`][] or your own [`eqdiff.train.AbstractSink`][].

        **Raises:** `OSError` if the file cannot be written, `ValueError` for a `last_step` that is
        not a whole number.
        """
        self.path = pathlib.Path(path)
        if last_step is not None:
            last_step = whole("MetricLog", "last_step", last_step, least=0)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._mend(last_step)
        # Without a buffer: what could not be written must not come after all, behind a later line.
        self._file = self.path.open("ab", buffering=0)
        self._sinks: list[AbstractSink] = []
        try:
            for sink in sinks:
                sink.open(last_step)
                self._sinks.append(sink)
        except BaseException:
            self.close()
            raise

    def _mend(self, last_step: int | None) -> None:
        lines = _read(self.path)
        # A run at step 0 begins anew: whatever is there is of an attempt that left no checkpoint.
        last = {None: math.inf, 0: -math.inf}.get(last_step, last_step)
        pairs = zip(lines.entries, lines.texts, strict=True)
        kept = [text for entry, text in pairs if entry["step"] <= last]
        if lines.damaged:
            aside = _unused(self.path.with_name(self.path.name + ".damaged"))
            shutil.copyfile(self.path, aside)
            warnings.warn(
                f"{_said(self.path, lines.damaged)}; the file as it was is {aside.name}.",
                stacklevel=3,
            )
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_bytes(b"".join(text + b"\n" for text in kept))
        temporary.replace(self.path)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one line.

        A sink that fails is dropped with a warning; the file is still written.

        **Arguments:**

        - `step`: written first, followed by `time`, the wall-clock time in seconds since 1970.
        - `metrics`: numbers, strings or small arrays by name. NaN and infinities, which JSON lacks,
            become `null`.

        **Raises:** `ValueError` for a step that is not a whole number, or a metric called `step`;
        `OSError` if the file cannot be written, as on a full disk: it then ends with the line
        before.
        """
        step = whole("MetricLog.write", "step", step, least=0)
        if "step" in metrics:
            raise ValueError("MetricLog.write: the metrics have a 'step'; give it another name.")
        plain = {name: _plain(value) for name, value in metrics.items()}
        entry = {"step": step, "time": time.time(), **plain}
        self._append(json.dumps(entry, allow_nan=False).encode() + b"\n")
        for sink in tuple(self._sinks):
            try:
                sink.write(step, plain)
            except Exception as error:
                self._let_go(sink, error)

    def _append(self, line: bytes) -> None:
        start = os.fstat(self._file.fileno()).st_size
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:]) or 0
        except BaseException:
            # The next line must not begin in the middle of this one.
            self._file.truncate(start)
            raise

    def _let_go(self, sink: AbstractSink, error: Exception) -> None:
        self._sinks.remove(sink)
        warnings.warn(
            f"{type(sink).__name__} failed ({type(error).__name__}: {error}) and gets no more "
            f"metrics; {self.path} goes on.",
            stacklevel=3,
        )

    def close(self) -> None:
        """Closes the file and the sinks."""
        self._file.close()
        while self._sinks:
            sink = self._sinks[0]
            try:
                sink.close()
                self._sinks.remove(sink)
            except Exception as error:
                self._let_go(sink, error)

    def __enter__(self) -> "MetricLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _unused(path: pathlib.Path) -> pathlib.Path:
    """The path, or the first one with a number behind it that does not exist."""
    number = 1
    found = path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}{number}")
    return found
