r"""The curves of a run as a picture.

A line of the log is the mean over a window of steps, and windows differ in length: the last one
before a stop or a checkpoint is shorter. A curve is smoothed by joining neighbouring windows, and
their mean is that over all of their steps,

$$\bar m = \frac{\sum_i n_i m_i}{\sum_i n_i}, \tag{1}$$

with $n_i$ the `steps` of line $i$, drawn at the middle of what it is the mean of. Nothing is
carried from one point to the next, so that a curve shows a jump where it is. Behind the smoothed
curve is that of all lines, faintly.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from .._require import require
from ._log import read_metrics


# To how many points the lines of a long run are joined.
_POINTS = 150


class _Curve(NamedTuple):
    """The middle of each window, its mean (NaN if it was not finite) and its number of steps."""

    steps: Float[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]
    windows: Float[np.ndarray, " n"]


def _curve(entries: Sequence[dict[str, Any]], name: str) -> _Curve:
    """A metric of all lines that have it, by step."""
    # Of two lines of one step the later one counts: the log of a run before it was resumed.
    lines = {entry["step"]: entry for entry in entries if _is_number(entry.get(name, ""))}
    ends = np.array(sorted(lines), np.float64)
    found = [lines[step] for step in sorted(lines)]
    values = np.array([entry[name] for entry in found], np.float64)  # None becomes NaN.
    # Lines that do not say how many steps they are of reach back to the one before.
    gaps = np.diff(ends, prepend=0.0)
    windows = [e.get("steps") or gap for e, gap in zip(found, gaps, strict=True)]
    windows = np.maximum(np.array(windows, np.float64), 1e-9)
    return _Curve(ends - (windows - 1) / 2, values, windows)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _joined(curve: _Curve, points: int) -> _Curve:
    """Neighbouring windows joined to about this many, of equal numbers of lines: equation (1)."""
    finite = np.isfinite(curve.values)
    steps, values, windows = (column[finite] for column in curve)
    groups = np.array_split(np.arange(len(values)), min(points, max(len(values), 1)))
    totals = [(windows[g].sum(), g) for g in groups if len(g)]

    def means(x: np.ndarray) -> np.ndarray:
        return np.array([np.sum(windows[g] * x[g]) / total for total, g in totals])

    return _Curve(means(steps), means(values), np.array([total for total, _ in totals]))


def _losses(entries: Sequence[dict[str, Any]]) -> list[str]:
    """The loss and its terms: what is also logged for each quarter of the times."""
    names = dict.fromkeys(name for entry in entries for name in entry)
    quarters = {name[:-3] for name in names if name[-3:-1] == "_q" and name[-1] in "0123"}
    return [name for name in names if name in quarters or name == "loss"]


def _chosen(entries: Sequence[dict[str, Any]], names: Sequence[str] | None, where: Any) -> list:
    there = dict.fromkeys(n for entry in entries for n, value in entry.items() if _is_number(value))
    there = [name for name in there if name not in ("step", "time", "steps")]
    chosen = _losses(entries) if names is None else list(names)
    missing = [name for name in chosen if name not in there]
    if missing or not chosen:
        wanted = "no loss" if names is None else f"no {', '.join(missing) or 'name given'}"
        raise ValueError(
            f"plot_metrics: {wanted} in {where}; expected names=[…] out of "
            f"{', '.join(there) or 'what is logged, and nothing is yet'}."
        )
    return chosen


def plot_metrics(
    metrics_path: str | os.PathLike, path: str | os.PathLike, names: Sequence[str] | None = None
) -> None:
    """Draws metrics of a run against the step. Needs `pip install 'eqdiff[examples]'`.

    Those that are positive share a panel with a logarithmic scale, others have one with a linear
    scale. Windows with a mean that is not finite are left out, and counted in the title.

    **Arguments:**

    - `metrics_path`: the file of a [`eqdiff.train.MetricLog`][].
    - `path`: of the picture; its ending decides on the format: `loss.png`.
    - `names`: which metrics; by default `loss` and its terms.

    **Raises:** `ValueError` if there is nothing of these names, `FileNotFoundError` if there is no
    log, `ImportError` without matplotlib.

    **Example:**

    ```python
    with eqd.train.MetricLog("metrics.jsonl") as log:
        for n in (100, 200, 300):
            log.write(n, {"loss": 50 / n, "steps": 100})
    eqd.train.plot_metrics("metrics.jsonl", "loss.png")
    ```
    """
    figure_of = require("matplotlib.figure", "eqdiff.train.plot_metrics", extra="examples").Figure
    entries = read_metrics(metrics_path)
    curves = {name: _curve(entries, name) for name in _chosen(entries, names, metrics_path)}
    positive = {n: c for n, c in curves.items() if not np.any(c.values <= 0)}
    others = {n: c for n, c in curves.items() if n not in positive}
    panels = [(c, scale) for c, scale in ((positive, "log"), (others, "linear")) if c]
    figure = figure_of(figsize=(7, 1 + 3 * len(panels)), layout="constrained")
    every_axes = figure.subplots(len(panels), squeeze=False, sharex=True)[:, 0]
    for axes, (shown, scale) in zip(every_axes, panels, strict=True):
        _draw(axes, shown)
        axes.set(yscale=scale)
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    every_axes[-1].set(xlabel="step")
    spoilt = max(int(np.sum(~np.isfinite(curve.values))) for curve in curves.values())
    if spoilt:
        figure.suptitle(f"windows left out, as not finite: {spoilt}", fontsize="small")
    target = pathlib.Path(path)
    # Whole or not at all; the ending stays, as it decides on the format.
    temporary = target.with_name(f".{target.stem}.tmp{target.suffix}")
    try:
        figure.savefig(temporary, dpi=150)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _draw(axes: Any, curves: dict[str, _Curve]) -> None:
    for index, (name, curve) in enumerate(curves.items()):
        color, smooth = f"C{index}", _joined(curve, _POINTS)
        style = "-" if len(smooth.values) > 1 else "o"
        axes.plot(smooth.steps, smooth.values, style, color=color, label=name, linewidth=1.4)
        if len(smooth.values) < len(curve.values):
            axes.plot(curve.steps, curve.values, color=color, alpha=0.25, linewidth=0.7, zorder=1)
