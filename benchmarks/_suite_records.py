"""What the suite writes down: lines of JSON as they come, and a report of them at the end."""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple


Record = dict[str, Any]


class Recorder:
    """Appends records to a file, each at once, so that whatever happens later they are there."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, part: str, **values: Any) -> None:
        line = json.dumps({"part": part, "time": round(time.time(), 1), **values})
        with self.path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


def read_records(path: Path) -> list[Record]:
    """The records of a file; a last line that was cut off is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


class Part(NamedTuple):
    """A part of the suite: not begun with less than `least` seconds left, ended after `most`."""

    name: str
    least: float
    most: float


class Budget:
    """The seconds that all parts have together."""

    def __init__(self, total: float, clock: Callable[[], float] = time.monotonic):
        self.clock, self.end = clock, clock() + total

    @property
    def left(self) -> float:
        return max(0.0, self.end - self.clock())

    def allowed(self, part: Part) -> float | None:
        """How long a part may take, or `None` where it no longer fits."""
        return None if self.left < part.least else min(part.most, self.left)


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def median_rate(runs: list[Record]) -> tuple[float, float, float]:
    """Images per second of the median, the worst and the best of some runs."""
    rates = sorted(run["images"] / run["seconds"] for run in runs)
    return rates[len(rates) // 2], rates[0], rates[-1]


def _speeds(records: list[Record]) -> list[str]:
    runs: dict[tuple, list[Record]] = {}
    for record in records:
        if record.get("kind") == "run":
            runs.setdefault((record["batch"], record["function"], record["library"]), []).append(
                record
            )
    if not runs:
        return []
    flop = next((r["flop_per_image"] for r in records if r.get("kind") == "device"), {})
    peak = next((r["flop_per_second"] for r in records if r.get("kind") == "product"), None)
    lines = [
        "## Images per second, in turns",
        "",
        "| batch | | library | median | range | of peak | Python, ms a call |",
        "|---:|---|---|---:|---:|---:|---:|",
    ]
    for (batch, function, library), found in sorted(runs.items()):
        middle, low, high = median_rate(found)
        known = peak and flop.get(function)
        share = f"{100 * middle * flop[function] / peak:.0f} %" if known else ""
        python = min(1e3 * r["thread_seconds"] / r["calls"] for r in found)
        lines.append(
            f"| {batch} | {function} | {library} | {middle:,.0f} | {low:,.0f}–{high:,.0f} "
            f"| {share} | {python:.1f} |"
        )
    return lines


def _facts(records: list[Record], kind: str, title: str) -> list[str]:
    """A list of everything known of one kind."""
    found = [r for r in records if r.get("kind") == kind]
    lines = [f"## {title}", ""] if found else []
    for record in found:
        values = {
            k: v for k, v in record.items() if k not in ("part", "time", "kind", "flop_per_image")
        }
        lines.append(
            "- "
            + ", ".join(
                f"{k.replace('_', ' ')} {_shown(v)}" for k, v in values.items() if v is not None
            )
        )
    return lines


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


_SECTIONS = (
    ("device", "Machine"),
    ("product", "Largest product"),
    ("copy", "Copy"),
    ("build", "Time to the first call"),
    ("memory", "Memory"),
    ("trace", "Where the time goes (`kernels.md`)"),
    ("several", "Several steps in one call"),
    ("launches", "Launches: a step under XLA's command buffers"),
    ("sampling", "Sampling"),
    ("likelihood", "Likelihood"),
    ("training", "A training run"),
    ("quality", "What it learned (`samples.png`)"),
    ("skipped", "Left out"),
    ("failed", "Failed (`log.txt`)"),
)


def report(records: list[Record]) -> str:
    """The records as Markdown."""
    lines = ["# What the chip tells", ""]
    for kind, title in _SECTIONS:
        if kind == "build":
            lines += [*_speeds(records), ""]
        section = _facts(records, kind, title)
        lines += [*section, ""] if section else []
    return "\n".join(lines).rstrip() + "\n"
