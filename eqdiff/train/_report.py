"""The report of a finished run: report.md to be read, report.json to be computed with."""

import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from ._curve import plot_metrics
from ._processes import is_writer
from ._run import Run
from ._run_folder import write_text
from ._state import TrainState


def write_report(
    run: Run,
    state: TrainState,
    *,
    title: str,
    tables: Mapping[str, Sequence[Sequence[Any]]],
    **values: Any,
) -> None:
    """Writes `report.md` and `report.json` into a run's folder, and the curve of its loss.

    The report shows `samples.png` if that is there, the tables, the curve `loss.png`, the time that
    the run took in all its parts, the command and the versions of everything that may change a
    number. Several processes may call it; one writes.

    **Arguments:**

    - `run`, `state`: as [`eqdiff.train.fit`][] left them.
    - `title`: the heading.
    - `tables`: by their headings, rows of cells, the first row being the names of the columns.
    - `values`: what else goes into `report.json`: numbers, texts, named tuples of them.

    **Example:**

    ```python
    import optax
    times = eqd.Uniform(eqd.VPSDE())
    state = eqd.train.init(jnp.zeros(2), optax.sgd(0.1), timesteps=times, key=jax.random.key(0))
    with eqd.train.Run("runs/mean", {"rate": 0.1}) as run:
        run.restore(state, None)
        run.write(1, {"loss": 0.5, "steps": 1})
        eqd.train.write_report(run, state, title="A mean", tables={}, bits=3.5)
    ```
    """
    if not is_writer():
        return
    seconds = dict(run.seconds)
    report = {
        "title": title,
        "step": int(state.step),
        "parameters": sum(slot.size for slot in state.packing.slots),
        "settings": run.settings,
        "seconds": seconds,
        **{name: _plain(value) for name, value in values.items()},
        "command": shlex.join(["python", *sys.argv]),
        "versions": versions(),
    }
    plot_metrics(run.metrics, run.folder / "loss.png")
    write_text(run.folder / "report.json", json.dumps(report, indent=2) + "\n")
    picture = ["![samples](samples.png)", ""] if (run.folder / "samples.png").exists() else []
    lines = [f"# {title}", "", *picture]
    for heading, rows in tables.items():
        lines += [f"## {heading}", "", *_table(rows), ""]
    speed = seconds["images"] / max(seconds["training"], 1e-9)
    lines += [
        "## Training",
        "",
        "![loss](loss.png)",
        "",
        f"{report['parameters'] / 1e6:.2f} M parameters, {report['step']} steps, "
        f"{seconds['images']:.0f} examples, {speed:.0f} a second while training.",
        "",
        f"The run took {seconds['wall']:.0f} s until its last checkpoint, in all its parts: "
        f"{seconds['training']:.0f} s of training, {seconds['compilation']:.0f} s until a first "
        "step had ended, the rest pictures, evaluation and checkpoints.",
        "",
        f"```\n{report['command']}\n```",
        "",
        ", ".join(f"{name} {v}" for name, v in report["versions"].items()),
        "",
    ]
    write_text(run.folder / "report.md", "\n".join(lines))


def versions() -> dict[str, str]:
    """Versions of Python and packages, and the devices."""
    names = ("eqdiff", "jax", "equinox", "diffrax", "optax", "numpy")
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "device": f"{jax.device_count()} x {device.device_kind}",
    }


def _table(rows: Sequence[Sequence[Any]]) -> list[str]:
    first, *others = ("| " + " | ".join(map(str, row)) + " |" for row in rows)
    return [first, "|" + "---|" * len(rows[0]), *others]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        # A named one.
        fields = getattr(value, "_fields", range(len(value)))
        return {str(name): _plain(part) for name, part in zip(fields, value, strict=True)}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    return value
