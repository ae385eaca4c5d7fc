"""Pictures and report.md."""

import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np

import eqdiff as eqd


matplotlib.use("Agg")  # No screen is needed.

import matplotlib.pyplot as plt


def write(folder: Path, options: dict, results: dict, curves: dict[str, Path]) -> Path:
    """Draws every claim and writes report.md next to the pictures."""
    _first_steps(folder / "first_steps.png", results["first_steps"])
    _skipped_prefix(folder / "skipped_prefix.png", results["skipped_prefix"], results["real"])
    _training(folder / "training.png", curves)
    _fewer_steps(folder / "fewer_steps.png", results["fewer_steps"], results["real"])
    path = folder / "report.md"
    path.write_text(_markdown(options, results), encoding="utf-8")
    return path


def _save(figure, path: Path) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panels(number: int):
    return plt.subplots(1, number, figsize=(4.5 * number, 3.6), layout="constrained", squeeze=False)


def _first_steps(path: Path, claim: dict) -> None:
    figure, ((left, right),) = _panels(2)
    for length, ratio in claim["ratios"].items():
        # The first is 0: x0 is known given x0.
        t = np.arange(1, len(ratio)) / len(ratio)
        left.plot(t, ratio[1:], label=f"T = {length}")
    left.set(
        xscale="log",
        xlabel="t / T",
        ylabel=r"$\tilde\beta_t/\beta_t$",
        title="two variances (cosine)",
    )
    for name, terms in claim["terms"].items():
        right.plot(np.arange(1, len(terms) + 1), terms, label=name)
    right.set(
        xscale="log", yscale="log", xlabel="t + 1", ylabel="bits/dim", title="terms of the bound"
    )
    _save(figure, path)


def _skipped_prefix(path: Path, claim: dict, real: float) -> None:
    figure, ((axes,),) = _panels(1)
    for name, distances in claim.items():
        if name != "fractions":
            axes.plot(100 * np.asarray(claim["fractions"]), distances, "o-", label=name)
    axes.axhline(real, color="grey", linestyle=":", label="real images")
    axes.set(xlabel="reverse process skipped, %", ylabel="Fréchet distance", yscale="log")
    _save(figure, path)


def _training(path: Path, curves: dict[str, Path]) -> None:
    figure, ((axes,),) = _panels(1)
    for name, metrics in curves.items():
        lines = [line for line in eqd.train.read_metrics(metrics) if "vlb" in line]
        if "L_simple" not in name and lines:
            steps, bound = ([line[key] for line in lines] for key in ("step", "vlb"))
            axes.plot(steps, bound, label=name, linewidth=1)
    axes.set(yscale="log", xlabel="step", ylabel="L_vlb of the batches, bits/dim")
    _save(figure, path)


def _fewer_steps(path: Path, claim: dict, real: float) -> None:
    figure, ((left, right),) = _panels(2)
    for name, curve in claim.items():
        if name == "steps":
            continue
        values = np.array([b["value"] for b in curve["bits"]])
        errors = [b["stderr"] for b in curve["bits"]]
        left.errorbar(curve["steps"], values, errors, marker="o", markersize=3, label=name)
        right.plot(curve["steps"], curve["frechet"], "o-", markersize=3, label=name)
    right.axhline(real, color="grey", linestyle=":", label="real images")
    left.set(xscale="log", yscale="log", xlabel="sampling steps", ylabel="bits/dim")
    right.set(xscale="log", yscale="log", xlabel="sampling steps", ylabel="Fréchet distance")
    _save(figure, path)


def _table(header: list[str], rows: list[list[Any]]) -> list[str]:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (header, *rows)]
    return [lines[0], "|" + "---|" * len(header), *lines[1:]]


def _bits(entry: dict) -> str:
    return f"{entry['value']:.3f} ± {entry['stderr']:.3f}"


def _share(terms: list[float], fraction: float) -> str:
    first = max(1, round(fraction * len(terms)))
    return f"{100 * sum(terms[:first]) / sum(terms):.0f} %"


def _markdown(options: dict, r: dict) -> str:
    lines = [
        "# The claims of Improved DDPM, measured",
        "",
        f"Five models of {options['dataset']}, alike but for schedule, objective and times: "
        f"{options['num_timesteps']} steps of noise, {options['steps']} of training. Bits/dim are "
        f"the variational bound on {options['images']} held-out images (x0 clipped; ± one standard "
        "error over images). Fréchet distances are between features of "
        f"{options['samples']} samples and of the training images; held-out real images are at "
        f"{r['real']:.2f}.",
        "",
        *_first_steps_lines(r["first_steps"]["terms"]),
        *_skipped_prefix_lines(r["skipped_prefix"]),
        *_gradient_noise_lines(r["gradient_noise"]),
        *_objectives_lines(r["objectives"], max(r["fewer_steps"]["steps"])),
        *_fewer_steps_lines(r["fewer_steps"]),
        "```",
        shlex.join(["python", *sys.argv]),
        "```",
        "",
        ", ".join(f"{name} {version(name)}" for name in ("eqdiff", "jax", "equinox", "optax"))
        + f", {jax.device_count()} x {jax.devices()[0].device_kind}",
        "",
    ]
    return "\n".join(lines)


def _first_steps_lines(terms: dict) -> list[str]:
    rows = [
        [f"the first {100 * f:g} % of steps", *(_share(v, f) for v in terms.values())]
        for f in (0.01, 0.05, 0.1, 0.5)
    ]
    return [
        "## 1. β̃ and β differ only at the first steps, and those dominate the bound",
        "",
        "![first steps](first_steps.png)",
        "",
        *_table(["share of the bound in", *terms], rows),
        "",
    ]


def _skipped_prefix_lines(claim: dict) -> list[str]:
    rows = [
        [name, *(f"{d:.2f}" for d in values)]
        for name, values in claim.items()
        if name != "fractions"
    ]
    return [
        "## 2. A prefix of the reverse process can be skipped",
        "",
        "![skipped prefix](skipped_prefix.png)",
        "",
        *_table(["skipped", *(f"{100 * f:g} %" for f in claim["fractions"])], rows),
        "",
    ]


def _gradient_noise_lines(claim: dict) -> list[str]:
    def cell(value: dict) -> str:
        return f"{'> ' if value['is_a_lower_bound'] else ''}{value['noise_scale']:,.0f}"

    rows = [
        [
            at,
            *(cell(value) for value in row.values()),
            f"{row['L_vlb']['variance'] / row['L_vlb, importance']['variance']:,.0f}",
        ]
        for at, row in claim.items()
    ]
    columns = [f"noise scale of {name}" for name in next(iter(claim.values()))]
    return [
        "## 3. L_vlb has noisy gradients, and importance sampling quietens them",
        "",
        "The noise scale tr Σ/|G|² of each objective at the same weights, in images, and how many "
        "times the variance of L_vlb's gradient under uniform times is that under "
        "importance-sampled ones, whose mean is the same.",
        "",
        *_table(["weights of", *columns, "tr Σ, uniform / importance"], rows),
        "",
        "![training](training.png)",
        "",
    ]


def _objectives_lines(claim: dict, steps: int) -> list[str]:
    rows = [[name, _bits(value), f"{value['frechet']:.2f}"] for name, value in claim.items()]
    return [
        "## 4. Objectives at equal steps",
        "",
        *_table(["model", "bits/dim", f"Fréchet distance, {steps} steps"], rows),
        "",
    ]


def _fewer_steps_lines(claim: dict) -> list[str]:
    variants = [name for name in claim if name != "steps"]

    def cell(name: str, kind: str, count: int) -> str:
        curve = claim[name]
        if count not in curve["steps"]:
            return ""
        value = curve[kind][curve["steps"].index(count)]
        return _bits(value) if kind == "bits" else f"{value:.2f}"

    lines = ["## 5. Fewer sampling steps", "", "![fewer steps](fewer_steps.png)", ""]
    for kind, title in (("bits", "bits/dim"), ("frechet", "Fréchet distance")):
        rows = [[count, *(cell(v, kind, count) for v in variants)] for count in claim["steps"]]
        lines += [*_table([f"steps: {title}", *variants], rows), ""]
    return lines
