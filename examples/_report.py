"""report.md, report.json and the loss curve of a finished run."""

import json
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import jax
import matplotlib
import numpy as np
from _run import write_text

import eqdiff as eqd


matplotlib.use("Agg")  # No screen is needed.

import matplotlib.pyplot as plt


def loss_curve(metrics: Path, path: Path) -> None:
    """Loss and its terms against the step."""
    lines = [m for m in eqd.train.read_metrics(metrics) if m.get("loss") is not None]
    figure, axes = plt.subplots(figsize=(7, 4), constrained_layout=True)
    steps = [m["step"] for m in lines]
    for name in ("loss", "simple", "vlb"):
        axes.plot(steps, [m[name] for m in lines], label=name, linewidth=1.2)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def versions() -> dict[str, str]:
    """Of everything that may change a number."""
    names = ("eqdiff", "jax", "equinox", "diffrax", "optax", "numpy")
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "device": f"{jax.device_count()} x {device.device_kind}",
    }


def command() -> str:
    """What was typed."""
    return shlex.join(["python", *sys.argv])


def write(folder: Path, report: dict) -> None:
    """Writes report.json and report.md."""
    write_text(folder / "report.json", json.dumps(report, indent=2, default=_plain) + "\n")
    write_text(folder / "report.md", _markdown(report))


def _plain(value):
    return value.tolist() if isinstance(value, np.ndarray) else str(value)


def _markdown(r: dict) -> str:
    data, model, time = r["data"], r["model"], r["time"]
    lines = [
        f"# A diffusion model of {data['name']}",
        "",
        "![samples](samples.png)",
        "",
        f"{r['samples']['num']} samples were drawn by ancestral sampling in "
        f"{r['samples']['steps']} steps (the picture shows the first {r['samples']['shown']}"
        + (", one class per column" if r["samples"]["conditional"] else "")
        + f"), from the average of the weights, at step {r['step']}.",
        "",
        "## Bits per dimension",
        "",
        f"On {r['bits']['num_images']} held-out images, {data['levels']} grey levels"
        + (", conditional on the class" if r["samples"]["conditional"] else "")
        + ". ± is one standard error over images, and so covers the times, noise, dequantisation "
        "and probe drawn anew for each image.",
        "",
        "| how | bits/dim | what it is |",
        "|---|---|---|",
        f"| variational bound | {r['bits']['bound']} | upper bound on the discrete likelihood of "
        f"{r['bits']['schedule']} steps, {r['bits']['terms']} terms an image; x0 clipped; no "
        "dequantisation |",
        f"| probability flow | {r['bits']['flow']} | likelihood of the schedule's flow, Gaussian "
        "dequantisation at t0, one Rademacher probe, tolerance "
        f"{r['bits']['tolerance']:g} |",
    ]
    if "quality" in r:
        lines += _quality_lines(r["quality"])
    lines += [
        "",
        "## Training",
        "",
        "![loss](loss.png)",
        "",
        f"{model['parameters'] / 1e6:.2f} M parameters, {r['step']} steps of {r['batch_size']} "
        f"images, {time['images_per_second']:.0f} images/s while training.",
        "",
        f"Wall time: {time['total']:.0f} s in all, of which {time['training']:.0f} s training "
        f"({time['compilation']:.0f} s until its first step ended) and "
        f"{time['evaluation']:.0f} s evaluation.",
        "",
        "```",
        r["command"],
        "```",
        "",
        ", ".join(f"{name} {v}" for name, v in r["versions"].items()),
        "",
    ]
    return "\n".join(lines)


def _quality_lines(quality: dict) -> list[str]:
    frechet, accuracy = quality["frechet"], quality["accuracy"]
    drawn = "" if accuracy["samples"] is None else f"{100 * accuracy['samples']:.1f} %"
    return [
        "",
        "## Sample quality",
        "",
        "Features and classes by a perceptron trained on the training images. The Fréchet distance "
        f"is to {quality['num']} held-out images, from as many samples or training images: it is "
        "biased by their number.",
        "",
        "| images | Fréchet distance | taken for the class asked for |",
        "|---|---|---|",
        f"| real | {frechet['real']:.2f} | {100 * accuracy['real']:.1f} % |",
        f"| samples | {frechet['samples']:.2f} | {drawn} |",
    ]
