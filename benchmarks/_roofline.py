r"""How long a list of kernels takes at least on a chip, and tables of what is in it.

A kernel waits for its bytes or for its arithmetic, and no kernel is shorter than its launch $l$:

$$t = \sum_k \max\left(\frac{b_k}{B}, \frac{f_k}{F}, l\right). \tag{1}$$

The floor is (1) with the launches apart: $\max(\sum_k \max(b_k / B, f_k / F),\; n\,l)$, where the
chip never waits for a launch that could have been made earlier.
"""

import collections
import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from _hlo import Kernel


class Chip(NamedTuple):
    """What was measured on a chip, in bytes, operations and seconds."""

    name: str
    bandwidth: float
    peak: Mapping[str, float]
    launch: float


# A device-to-device copy, and a product of 8192³ in bf16, on an H100 80GB HBM3. XLA multiplies
# float32 in TF32 unless told otherwise, at half the rate.
H100 = Chip("H100", 3.0e12, {"bf16": 798e12, "f16": 798e12, "f32": 399e12, "f64": 60e12}, 4e-6)


class Totals(NamedTuple):
    """Of a list of kernels: their number, bytes, operations, and milliseconds."""

    kernels: int
    gigabytes: float
    outside: float
    gigaflop: float
    bytes_ms: float
    flop_ms: float
    launch_ms: float
    floor_ms: float
    estimate_ms: float


def totals(kernels: Iterable[Kernel], chip: Chip = H100) -> Totals:
    """Sums over kernels. `outside` are the gigabytes of all but convolutions."""
    kernels = list(kernels)
    total: dict[str, float] = collections.defaultdict(float)
    for kernel in kernels:
        seconds = kernel.bytes / chip.bandwidth, kernel.flop / chip.peak.get(kernel.dtype, math.inf)
        total["kernels"] += kernel.times
        total["bytes"] += kernel.times * kernel.bytes
        total["outside"] += kernel.times * kernel.bytes * (kernel.group != "convolution")
        total["flop"] += kernel.times * kernel.flop
        total["by bytes"] += kernel.times * seconds[0]
        total["by flop"] += kernel.times * seconds[1]
        total["longer"] += kernel.times * max(seconds)
        total["estimate"] += kernel.times * max(*seconds, chip.launch)
    launches = total["kernels"] * chip.launch
    return Totals(
        kernels=int(total["kernels"]),
        gigabytes=total["bytes"] / 1e9,
        outside=total["outside"] / 1e9,
        gigaflop=total["flop"] / 1e9,
        bytes_ms=1e3 * total["by bytes"],
        flop_ms=1e3 * total["by flop"],
        launch_ms=1e3 * launches,
        floor_ms=1e3 * max(total["longer"], launches),
        estimate_ms=1e3 * total["estimate"],
    )


def grouped(
    kernels: Iterable[Kernel], key: Callable[[Kernel], str], chip: Chip = H100
) -> list[tuple[str, Totals]]:
    """Totals by a key, the longest first."""
    groups: dict[str, list[Kernel]] = collections.defaultdict(list)
    for kernel in kernels:
        groups[key(kernel)].append(kernel)
    found = [(name, totals(group, chip)) for name, group in groups.items()]
    return sorted(found, key=lambda item: -item[1].estimate_ms)


def source_of(kernel: Kernel, package: str = "eqdiff/") -> str:
    """The innermost place in our own package that a kernel comes from, shortened."""
    for place in kernel.places:
        if f"/{package}" in place:
            file, function = place.split(" ", 1)
            return f"{file.rsplit(package, 1)[1]} {function.split('.<locals>')[0]}"
    return ""


def table(rows: Iterable[tuple[str, Totals]], top: int | None = None) -> str:
    """A Markdown table of totals, and their sum in the last row but for what was left out."""
    lines = [
        "| | kernels | GB | GFLOP | bytes, ms | FLOP, ms | launches, ms | estimate, ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    rows = list(rows)
    shown = rows if top is None else rows[:top]
    for name, t in shown:
        lines.append(
            f"| {name} | {t.kernels:,} | {t.gigabytes:.2f} | {t.gigaflop:,.0f} | {t.bytes_ms:.2f} "
            f"| {t.flop_ms:.2f} | {t.launch_ms:.2f} | {t.estimate_ms:.2f} |"
        )
    if len(shown) < len(rows):
        left = [t for _, t in rows[len(shown) :]]
        lines.append(
            f"| {len(left)} more | {sum(t.kernels for t in left):,} "
            f"| {sum(t.gigabytes for t in left):.2f} | {sum(t.gigaflop for t in left):,.0f} "
            f"| {sum(t.bytes_ms for t in left):.2f} | {sum(t.flop_ms for t in left):.2f} "
            f"| {sum(t.launch_ms for t in left):.2f} | {sum(t.estimate_ms for t in left):.2f} |"
        )
    return "\n".join(lines)
