"""Where metrics go besides the log's own file: TensorBoard, Weights & Biases, or your own sink.

A sink shows a run while it lasts. The file is what a run is judged by: nothing reads a sink back,
and one that fails is dropped with a warning, while training goes on.
"""

import abc
import os
from collections.abc import Mapping
from typing import Any

from .._require import require


class AbstractSink(abc.ABC):
    """A further place for the lines of an [`eqdiff.train.MetricLog`][], besides its file."""

    @abc.abstractmethod
    def open(self, last_step: int | None) -> None:
        """Called once, before the first line.

        **Arguments:**

        - `last_step`: as for the log: steps after it are written again. `None` if nothing is known.
        """

    @abc.abstractmethod
    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes one line.

        **Arguments:**

        - `step`: of the line.
        - `metrics`: numbers, strings and lists by name, as the file has them: `None` for NaN and
            infinities.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Called once, after the last line."""


def _numbers(metrics: Mapping[str, Any]) -> dict[str, int | float]:
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float))}


class TensorBoard(AbstractSink):
    """Numbers for TensorBoard: `tensorboard --logdir FOLDER`.

    Steps that a resumed run takes again replace those of before. Needs
    `pip install 'eqdiff[examples]'`.

    **Example:**

    ```python
    sinks = [eqd.train.TensorBoard("tensorboard")]
    with eqd.train.MetricLog("metrics.jsonl", sinks=sinks) as log:
        log.write(100, {"loss": 0.5})
    ```
    """

    def __init__(self, folder: str | os.PathLike):
        """**Arguments:**

        - `folder`: of the event files; created when the log is opened.

        **Raises:** `ImportError` without tensorboardX.
        """
        self.folder = folder
        self._make = require(
            "tensorboardX", "eqdiff.train.TensorBoard", extra="examples"
        ).SummaryWriter

    def open(self, last_step: int | None) -> None:
        purge = {} if last_step is None else {"purge_step": last_step + 1}
        self._writer = self._make(os.fspath(self.folder), **purge)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        for name, value in _numbers(metrics).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB(AbstractSink):
    """Metrics for Weights & Biases, <https://wandb.ai>.

    With an `id` a resumed run goes on as the same one there. W&B keeps the first line of each step,
    so those that a resumed run takes again are not replaced; they are the same numbers, unless its
    settings were changed. Needs `pip install 'eqdiff[wandb]'`.

    **Example:**

    ```python
    run = eqd.train.Run("run", {"rate": 1e-4}, sinks=[eqd.train.WandB("cifar10", id="run-7")])
    ```
    """

    def __init__(self, project: str, *, id: str | None = None, **options: Any):
        """**Arguments:**

        - `project`: the project there.
        - `id`: names the run for good, any text that is unique in the project; by default every
            start is a new run.
        - `options`: further ones of `wandb.init`, such as `name`, `config`, `dir`, `entity`, or
            `mode="offline"` on a machine without a network.

        **Raises:** `ImportError` without wandb.
        """
        self._wandb = require("wandb", "eqdiff.train.WandB", extra="wandb")
        resume = {} if id is None else {"id": id, "resume": "allow"}
        self._options = {"project": project, **resume, **options}

    def open(self, last_step: int | None) -> None:
        self._run = self._wandb.init(**self._options)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._run.log({k: v for k, v in metrics.items() if v is not None}, step=step)

    def close(self) -> None:
        self._run.finish()
