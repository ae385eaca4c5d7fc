"""Metrics on disk: one JSON object per line, readable during a run and after it was killed.

Each line is written whole and flushed, so `kill -9` costs at most the line being written; a
half-written last line is removed when the log is opened again. A resumed run drops the lines of
steps after its checkpoint, so that every step appears once.
"""

import json
import math
import os
import pathlib
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np

from .._require import require


def _plain(value: Any) -> Any:
    """JSON-serialisable: arrays become numbers or lists, NaN and infinities `null`."""
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    value = np.asarray(value).tolist() if not isinstance(value, (float, list)) else value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _parse(line: str) -> dict | None:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) and "step" in entry else None


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a [`eqdiff.train.MetricLog`][] as dictionaries, without a half-written one.

    **Arguments:**

    - `path`: the file.

    **Raises:** `FileNotFoundError` if there is none.
    """
    # A kill may cut a line in the middle of a character; such a line does not parse either.
    lines = pathlib.Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    return [entry for entry in map(_parse, lines) if entry is not None]


class MetricLog:
    """Appends metrics to a JSONL file, and to TensorBoard if asked to; a context manager."""

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        last_step: int | None = None,
        tensorboard: str | os.PathLike | None = None,
    ):
        """**Arguments:**

        - `path`: the file. It and its folder are created if missing; otherwise it is appended to.
        - `last_step`: the step from which a resumed run continues: later lines are dropped.
        - `tensorboard`: a folder for TensorBoard's event files (`pip install 'eqdiff[examples]'`).

        **Raises:** `OSError` if the file cannot be written, `ImportError` for `tensorboard`
        without tensorboardX.
        """
        self.path = pathlib.Path(path)
        self._writer = None
        if tensorboard is not None:
            purge = {} if last_step is None else {"purge_step": last_step + 1}
            writer = require(
                "tensorboardX", "MetricLog(tensorboard=…)", extra="examples"
            ).SummaryWriter
            self._writer = writer(os.fspath(tensorboard), **purge)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._mend(last_step)
        self._file = self.path.open("a", encoding="utf-8")

    def _mend(self, last_step: int | None) -> None:
        entries = read_metrics(self.path)
        kept = [e for e in entries if last_step is None or e["step"] <= last_step]
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text("".join(json.dumps(e) + "\n" for e in kept), encoding="utf-8")
        temporary.replace(self.path)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one line.

        **Arguments:**

        - `step`: written first, followed by `time`, the wall-clock time in seconds since 1970.
        - `metrics`: numbers, strings or small arrays by name. NaN and infinities, which JSON lacks,
            become `null`.
        """
        entry = {"step": step, "time": time.time(), **{k: _plain(v) for k, v in metrics.items()}}
        self._file.write(json.dumps(entry, allow_nan=False) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in entry.items():
                if isinstance(value, (int, float)) and name not in ("step", "time"):
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> "MetricLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
