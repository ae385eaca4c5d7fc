"""Draws the documentation's figures from the numbers beside them: `python benchmarks/figures.py`.

Nothing is measured here: every figure is drawn from the JSON in its folder under `docs/assets`,
which the script named in it has written. A panel is a file, so that panels stand beside each other
on a screen and below each other on a phone.
"""

import argparse
import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import matplotlib


matplotlib.use("Agg")  # No screen is needed.

import matplotlib.pyplot as plt
import numpy as np
from _figure import AMBER, BLUE, FAINT, GREEN, label, LIGHT, PINK, RED, save_twins, SKY, STYLE
from matplotlib.axes import Axes
from PIL import Image


ASSETS = pathlib.Path(__file__).parent.parent / "docs" / "assets"


@contextlib.contextmanager
def panel(
    stem: pathlib.Path, size: tuple[float, float] = (4.6, 3.6), bbox: str = "standard"
) -> Iterator[Axes]:
    """Axes to draw in, which are then written as `STEM-light.svg` and `STEM-dark.svg`."""
    style: dict[Any, Any] = STYLE | {"savefig.bbox": bbox, "lines.markersize": 4}
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=size)
        yield axes
        save_twins(figure, stem, ".svg")
        plt.close(figure)


def _read(path: pathlib.Path) -> Any:
    return json.loads(path.read_text())


def _calls(axes: Axes, ticks: tuple[float, ...], name: str = "network calls") -> None:
    """A logarithmic axis with plain numbers at round places."""
    axes.set(xscale="log", yscale="log", xlabel=name)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(color=FAINT, lw=0.5)
    axes.set_axisbelow(True)


# A curve: the sampler, its colour, its label, where that stands, and what it points at.
DETERMINISTIC = (
    ("DDIM", BLUE, "DDIM", (330, 0.0125), None),
    ("StochasticHeun, no churn", AMBER, "StochasticHeun", (13.5, 0.9), None),
    ("DPMSolverPP", GREEN, "DPM-\nSolverPP", (4.6, 0.0225), (17.1, 0.0225)),
    ("UniPC", PINK, "UniPC", (4.6, 0.045), (10.6, 0.045)),
    ("ProbabilityFlow, Tsit5, adaptive", LIGHT, "ProbabilityFlow", (45, 0.25), None),
)
STOCHASTIC = (
    ("Ancestral", BLUE, "Ancestral,\nDDIM(eta=1)", (4.6, 0.045), (18, 0.075)),
    ("EulerMaruyama", SKY, "Euler–Maruyama", (220, 0.0056), None),
    ("StochasticHeun, churn 40", AMBER, "StochasticHeun, churn", (21.5, 0.3), None),
    ("SDEDPMSolverPP", GREEN, "SDEDPM-\nSolverPP", (4.6, 0.021), (26, 0.021)),
    ("ReverseSDE, ShARK, adaptive", LIGHT, "ReverseSDE", (44, 0.14), None),
    ("PredictorCorrector", RED, "PredictorCorrector", (150, 0.088), None),
)
PATH = (
    ("DDIM", BLUE, "DDIM", (330, 0.018), None),
    ("StochasticHeun, no churn", AMBER, "Stochastic-\nHeun", (17, 0.4), None),
    ("DPMSolverPP", GREEN, "DPMSolverPP", (225, 0.0038), None),
    ("UniPC", PINK, "UniPC", (225, 0.0018), None),
    ("DPMSolverPP, order 3", SKY, "DPMSolverPP,\norder 3", (225, 0.0007), None),
    ("UniPC, order 3", RED, "UniPC, order 3", (185, 0.0001), None),
    ("ProbabilityFlow, Tsit5, adaptive", LIGHT, "Probability-\nFlow", (18, 0.0003), None),
)


def samplers(folder: pathlib.Path) -> None:
    """Error against calls; written by `samplers.py`."""
    facts = _read(folder / "samplers.json")
    for name, curves, kind in (
        ("deterministic", DETERMINISTIC, "distribution"),
        ("stochastic", STOCHASTIC, "distribution"),
        ("path", PATH, "path"),
    ):
        with panel(folder / name, (4.8, 4.2)) as axes:
            for sampler, colour, text, place, target in curves:
                mine = [row for row in facts["rows"] if row["sampler"] == sampler]
                axes.plot(
                    [row["calls"] for row in mine], [row[kind] for row in mine], "o-", color=colour
                )
                if target is not None:
                    width = 10 ** (0.03 + 0.052 * max(map(len, text.split("\n"))))
                    start = (place[0] * width, place[1])
                    axes.plot(*zip(start, target, strict=True), color=colour, lw=0.7)
                label(axes, text, place, colour)
            _calls(axes, (5, 10, 20, 50, 100, 200, 500, 1000), "network calls per sample")
            axes.set(xlim=(4.2, 1500), ylim=(1e-5 if kind == "path" else 0.0045, 1.2))
            if kind == "path":
                axes.set_title("Error of the path", loc="left")
            else:
                axes.set_title(f"Error of the distribution, {name} samplers", loc="left")
                axes.axhspan(*facts["floor"], color=FAINT, lw=0, zorder=0)
                label(axes, "exact draws", (4.6, 1.12 * facts["floor"][0]), LIGHT)


# The families of posterior samplers, and how far their labels are moved, in points, in 2, 8 and 64
# dimensions.
FAMILIES = {
    "DPS": (RED, (-10, -1, 2)),
    "ΠGDM": (PINK, (3, 3, -9)),
    "MMPS": (BLUE, (-9, -3, -9)),
    "DiffPIR": (AMBER, (13, 5, 9)),
    "DAPS": (SKY, (2, -5, -2)),
    "TwistedSMC": (GREEN, (0, 10, 8)),
}


def posterior(folder: pathlib.Path) -> None:
    """Energy distance against calls; written by `posterior.py`."""
    rows = _read(folder / "posterior.json")
    for index, dim in enumerate((2, 8, 64)):
        here = [row for row in rows if row["dim"] == dim]
        with panel(folder / f"dim{dim}", (4.6, 3.9)) as axes:
            axes.axhline(here[0]["distance"], color=LIGHT, ls=":", lw=1)
            label(axes, "exact draws", (20, here[0]["distance"] * 0.8), LIGHT)
            for family, (colour, moves) in FAMILIES.items():
                line = [row for row in here if row["name"].startswith(family)]
                if family == "DAPS":
                    line = [row for row in line if "flow_steps=1" in row["name"]]
                calls, far = ([row[key] for row in line] for key in ("calls", "distance"))
                axes.plot(calls, far, "o-", color=colour)
                place = {"textcoords": "offset points", "xytext": (7, moves[index])}
                label(axes, family, (calls[-1], far[-1]), colour, **place)
            _calls(axes, (20, 100, 400, 1600, 6400))
            axes.set(xlim=(15, 30000), ylim=(5e-4, 0.2))
            axes.set_title(f"Energy distance, {dim} dimensions", loc="left")


def couplings(folder: pathlib.Path) -> None:
    """Paths of two flows; written by `couplings.py`."""
    for (name, found), stem in zip(
        _read(folder / "paths.json").items(), ("independent", "optimal"), strict=True
    ):
        ways = np.asarray(found["paths"])
        with panel(folder / stem, (4.2, 4.3)) as axes:
            axes.plot(*np.moveaxis(ways, 0, -1).transpose(1, 0, 2), color=FAINT, lw=0.8, zorder=1)
            axes.scatter(*ways[:, 0].T, s=7, color=RED, zorder=2)
            axes.scatter(*ways[:, -1].T, s=7, color=BLUE, zorder=3)
            axes.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.set_title(name.capitalize(), loc="left")
            label(axes, "noise", (-2.9, 2.7), RED)
            label(axes, "samples", (-2.9, 2.35), BLUE)


METHODS = {
    "scipy on the host": LIGHT,
    "each its own steps, Tsit5": BLUE,
    "shared steps, Tsit5": SKY,
    "shared steps, Dopri5": AMBER,
    "shared steps, Bosh3": GREEN,
}
# Where the labels stand: of calls, then of milliseconds.
LIKELIHOOD = {
    "mlp": {
        "scipy on the host": ("scipy", (150, 0.0155), (6.8, 0.019)),
        "each its own steps, Tsit5": ("Tsit5, each its\nown steps", (62, 0.17), (0.72, 0.17)),
        "shared steps, Tsit5": ("Tsit5, shared", (570, 0.0046), (4.7, 0.0048)),
        "shared steps, Dopri5": ("Dopri5", (138, 0.0074), (1.1, 0.0074)),
        "shared steps, Bosh3": ("Bosh3, shared", (70, 0.0032), (0.55, 0.0032)),
    },
    "digits": {
        "scipy on the host": ("scipy", (203, 0.0029), (187, 0.0029)),
        "each its own steps, Tsit5": ("Tsit5, each its\nown steps", (105, 0.017), (85, 0.017)),
        "shared steps, Tsit5": ("Tsit5, shared", (47, 0.045), (41, 0.045)),
        "shared steps, Dopri5": ("Dopri5", (182, 0.00205), (168, 0.00205)),
        "shared steps, Bosh3": ("Bosh3, shared", (58, 0.0013), (50, 0.0013)),
    },
}


def likelihood(folder: pathlib.Path, names: tuple[str, ...] = ("mlp", "digits")) -> None:
    """Error of a likelihood against calls and time; written by `likelihood.py`."""
    for name in names:
        rows = _read(folder / f"{name}.json")
        ticks = {"calls": (20, 50, 100, 200, 500), "ms": (0.2, 0.5, 1, 2, 5, 20, 50, 100, 200)}
        for index, (key, text) in enumerate((("calls", "network calls"), ("ms", "ms per image"))):
            with panel(folder / f"{name}-{key}") as axes:
                for method, colour in METHODS.items():
                    mine = [row for row in rows if row["method"] == method]
                    curve = ([row[key] for row in mine], [row["rms"] for row in mine])
                    axes.plot(*curve, "s--" if colour == LIGHT else "o-", color=colour)
                    short, *places = LIKELIHOOD[name][method]
                    label(axes, short, places[index], colour)
                low, high = 0.85 * min(row[key] for row in rows), 2 * max(row[key] for row in rows)
                _calls(axes, tuple(t for t in ticks[key] if low < t < high), text)
                axes.set(xlim=(low, high), ylim=(None, 0.3 if name == "mlp" else 0.08))
                axes.set_title("Error, bits/dim", loc="left")


def simulator(folder: pathlib.Path) -> None:
    """Samples of a posterior and its calibration; written by `examples/simulator.py`."""
    found = _read(folder / "simulator.json")
    with panel(folder / "samples", (4.2, 4.2)) as axes:
        axes.scatter(*np.asarray(found["samples"]).T, s=4, color=BLUE)
        axes.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xlabel="θ₁", ylabel="θ₂")
        axes.set_title("Samples of p(θ | x = (1, ½))", loc="left")
    levels, band = np.asarray(found["levels"]), np.asarray(found["band"])
    with panel(folder / "coverage", (4.2, 4.2)) as axes:
        # What lies outside is what matters, so curves are drawn less the diagonal.
        axes.fill_between(levels, -band, band, color=FAINT, lw=0)
        axes.axhline(0, color=LIGHT, lw=0.8)
        curves = np.asarray(found["coverage"]).T - levels
        for text, colour, curve in zip(
            ("θ₁", "θ₂", "density"), (BLUE, RED, GREEN), curves, strict=True
        ):
            axes.plot(levels, curve, color=colour)
            far = int(np.argmax(np.abs(curve)))
            move = {"textcoords": "offset points", "xytext": (0, 10 if curve[far] > 0 else -10)}
            label(axes, text, (levels[far], curve[far]), colour, ha="center", **move)
        axes.set(xlim=(0, 1), ylim=(-0.1, 0.1), xlabel="level", yticks=[-0.1, -0.05, 0, 0.05, 0.1])
        axes.set_title("Coverage less the level", loc="left")


def first_steps(folder: pathlib.Path) -> None:
    """Where the two variances differ, and where the bound is paid."""
    with panel(folder / "variances") as axes:
        for length, colour, move, align in (
            (100, BLUE, (-4, 4), "right"),
            (1000, RED, (0, -10), "center"),
            (4000, GREEN, (-4, 4), "right"),
        ):
            # The cosine schedule, equation 17 of Improved DDPM.
            t = np.arange(length + 1) / length
            f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
            beta = np.minimum(1 - f[1:] / f[:-1], 0.999)
            kept = np.cumprod(1 - beta)
            # The first ratio is 0: x0 is known given x0.
            ratio = np.concatenate([[0], (1 - kept[:-1]) / (1 - kept[1:])])
            axes.plot(t[2:], ratio[1:], color=colour)
            place = {"textcoords": "offset points", "xytext": move, "ha": align}
            label(axes, f"T = {length}", (t[2], ratio[1]), colour, **place)
        axes.set(xscale="log", xlabel="t / T", xlim=(6e-5, 1.5), ylim=(0.3, 1.02))
        axes.minorticks_off()
        axes.set_title("β̃ / β, cosine schedule", loc="left")
    shares = _read(folder / "reproduction.json")["shares"]
    with panel(folder / "shares") as axes:
        percent = 100 * np.array([*shares["fractions"], 1.0])
        for name, colour, place in (
            ("linear L_simple", BLUE, (3.6, 83)),
            ("cosine L_simple", RED, (5.6, 62)),
        ):
            axes.plot(percent, [*shares[name], 100], "o-", color=colour)
            text = name.replace("L_simple", "schedule")
            label(axes, text, place, colour, ha="right" if colour == BLUE else "left")
        axes.set(xscale="log", xlabel="the first steps, %", ylim=(0, 105))
        axes.set_xticks([1, 5, 10, 50, 100], ["1", "5", "10", "50", "100"])
        axes.minorticks_off()
        axes.set_title("Share of the bound, %", loc="left")


def skipped_prefix(folder: pathlib.Path) -> None:
    """The numbers of the page's table, written by `examples/reproduce_iddpm`."""
    found = _read(folder / "reproduction.json")
    with panel(folder / "skipped_prefix", (4.6, 3.6)) as axes:
        for name, colour, place in (
            ("linear L_simple", BLUE, (40, 1.0)),
            ("cosine L_simple", RED, (29, 3.5)),
        ):
            distances = found["skipped"][name]
            axes.plot(found["skipped"]["fractions"], distances, "o-", color=colour)
            label(axes, name.replace("L_simple", "schedule"), place, colour, ha="right")
        axes.axhline(found["real"], color=LIGHT, ls=":", lw=1)
        label(axes, "held-out images", (40, 0.4), LIGHT, ha="right")
        axes.set(xlabel="reverse process skipped, %", ylim=(0, 4))
        axes.set_title("Fréchet distance", loc="left")


def training(folder: pathlib.Path) -> None:
    """The bound along training: numbers read off the picture of that run, to about 5 %."""
    found = _read(folder / "reproduction.json")["training"]
    with panel(folder / "training", (4.6, 3.6)) as axes:
        for name, text, colour, place in (
            ("cosine L_hybrid", r"$L_\mathrm{hybrid}$", SKY, (2560, 7.8)),
            ("cosine L_vlb", r"$L_\mathrm{vlb}$", RED, (900, 24)),
            ("cosine L_vlb, importance", r"$L_\mathrm{vlb}$, importance", BLUE, (560, 2.7)),
        ):
            axes.plot(found["step"], found[name], color=colour, lw=1.4)
            label(axes, text, place, colour)
        axes.set(yscale="log", xlabel="step", ylim=(2, 40))
        axes.set_yticks([2, 3, 5, 10, 20, 40], ["2", "3", "5", "10", "20", "40"])
        axes.minorticks_off()
        axes.set_title(r"$L_\mathrm{vlb}$ of the batches, bits/dim", loc="left")


def fewer_steps(folder: pathlib.Path) -> None:
    """The numbers of the page's two tables, written by `examples/reproduce_iddpm`."""
    found = _read(folder / "reproduction.json")
    claim, real = found["fewer_steps"], found["real"]
    # The name, and how far its label is moved, in points, from the right end of the bits and from
    # the left end of the distances.
    curves = (
        ("learned", BLUE, -16, -3),
        ("β", AMBER, 4, 0),
        ("β̃", GREEN, 6, -6),
        ("analytic", SKY, -6, 6),
        ("learned, best steps", PINK, None, None),
    )
    for key, stem in (("bits", "fewer_steps_bits"), ("frechet", "fewer_steps_frechet")):
        bits = key == "bits"
        with panel(folder / stem) as axes:
            for name, colour, *moves in curves:
                known = [
                    (n, value[0] if bits else value)
                    for n, value in zip(claim["steps"], claim[name][key], strict=True)
                    if value is not None
                ]
                axes.plot(*zip(*known, strict=True), "o-", color=colour)
                if (move := moves[0 if bits else 1]) is None:
                    label(axes, "learned, chosen steps", (10, 1.65) if bits else (36, 2.4), colour)
                    continue
                place = {"textcoords": "offset points", "xytext": (7 if bits else -7, move)}
                end = known[-1 if bits else 0]
                label(axes, name, end, colour, ha="left" if bits else "right", **place)
            _calls(axes, (10, 25, 50, 100, 200), "sampling steps")
            axes.set_title("Bits/dim" if bits else "Fréchet distance", loc="left")
            if not bits:
                axes.set(xlim=(4.5, 230))
                axes.axhline(real, color=LIGHT, ls=":", lw=1)
                label(axes, "held-out images", (200, 0.9 * real), LIGHT, ha="right")
                axes.set_yticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
            else:
                axes.set(xlim=(9, 500), ylim=(1.3, 300))
                axes.set_yticks([2, 5, 10, 50, 200], ["2", "5", "10", "50", "200"])
            axes.minorticks_off()


ROWS = ("image", "left half", "inpainted", "4×4", "enlarged", "noisy", "denoised")


def controllable(folder: pathlib.Path) -> None:
    """The grid that `examples/controllable.py` writes, with the names of its rows."""
    image = np.asarray(Image.open(folder / "controllable.png"))
    with panel(folder / "controllable", (6.4, 4.2), "tight") as axes:
        axes.imshow(image, cmap="gray", interpolation="none")
        height = image.shape[0] / len(ROWS)
        axes.set_yticks(height * (np.arange(len(ROWS)) + 0.5), ROWS)
        axes.tick_params(length=0)
        axes.set_xticks([])
        axes.spines[:].set_visible(False)


FIGURES = {
    "samplers": (samplers, "samplers"),
    "posterior": (posterior, "posterior"),
    "couplings": (couplings, "flow_matching"),
    "likelihood": (likelihood, "likelihood"),
    "simulator": (simulator, "simulator"),
    "first_steps": (first_steps, "reproduction"),
    "skipped_prefix": (skipped_prefix, "reproduction"),
    "training": (training, "reproduction"),
    "fewer_steps": (fewer_steps, "reproduction"),
    "controllable": (controllable, "controllable"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(FIGURES)}; default all")
    names = parser.parse_args().names
    if unknown := set(names) - set(FIGURES):
        parser.error(f"no such figures: {sorted(unknown)}; there are {sorted(FIGURES)}")
    for name in names or FIGURES:
        draw, folder = FIGURES[name]
        draw(ASSETS / folder)


if __name__ == "__main__":
    main()
