"""Formats 1 and 2 in the names of format 3, whose networks `old_networks.py` reads."""

from pathlib import Path
from typing import Any

import numpy as np

from .._process import Schedule
from .._process.schedule import MAX_BETA


# What classes and their arguments were called in formats 1 and 2, and which arguments are gone.
_OLD_CLASSES = {
    "eqdiff.Noise": "eqdiff.PredictNoise",
    "eqdiff.Data": "eqdiff.PredictData",
    "eqdiff.Velocity": "eqdiff.PredictVelocity",
    "eqdiff.Score": "eqdiff.PredictScore",
    "eqdiff.Flow": "eqdiff.PredictFlow",
    "eqdiff.EDM": "eqdiff.EDMPreconditioning",
    "eqdiff.LogNoiseLevel": "eqdiff.LogNoise",
}
_OLD_ARGUMENTS = {
    "eqdiff.Schedule": {"labels": "c_noise"},
    **{
        f"eqdiff.nn.{name}": {"label_dropout": "class_dropout"}
        for name in ("DiT", "SongUNet", "DhariwalUNet")
    },
}
_GONE = {"eqdiff.LogNoise": ("process",)}


def of_today(model: dict[str, Any], path: Path) -> dict[str, Any]:
    """A description of format 1 or 2 in the names of format 3."""
    if _foreign_noise_level(model.get("label"), model.get("process")):
        raise ValueError(
            f"{path}: the network's time input is the noise level of another process than the "
            "denoiser's, which this version of eqdiff cannot say. Build the denoiser with "
            "c_noise=... of your own, and save it with that class in classes=."
        )

    def translate(value: Any) -> Any:
        if isinstance(value, list):
            return [translate(v) for v in value]
        if not isinstance(value, dict):
            return value
        value = {k: translate(v) for k, v in value.items()}
        said, arguments = value.get("class"), value.get("arguments")
        if not isinstance(said, str) or not isinstance(arguments, dict):
            return value
        name = _OLD_CLASSES.get(said, said)
        new = _OLD_ARGUMENTS.get(name, {})
        kept = {k: v for k, v in arguments.items() if k not in _GONE.get(name, ())}
        arguments = {new.get(k, k): v for k, v in kept.items()}
        return {"class": name, "arguments": arguments}

    model = {part: translate(value) for part, value in model.items()}
    return model | {"c_noise": model.pop("label", None)}


def _foreign_noise_level(label: Any, process: Any) -> bool:
    """Whether a LogNoiseLevel's process has other levels than the denoiser's, wherever it ends."""

    def levels(described: Any) -> Any:
        if not isinstance(described, dict) or not isinstance(described.get("arguments"), dict):
            return None
        # Arrays stand under two names, one for each place, and are not compared.
        numbers = {k: v for k, v in described["arguments"].items() if isinstance(v, (int, float))}
        return described.get("class"), {k: v for k, v in numbers.items() if k not in ("t0", "t1")}

    if not isinstance(label, dict) or label.get("class") != "eqdiff.LogNoiseLevel":
        return False
    arguments = label.get("arguments")
    return isinstance(arguments, dict) and levels(arguments.get("process")) != levels(process)


def from_continuous_schedule(log_snrs: Any, labels: Any, t1: float) -> Schedule:
    """What formats 1 and 2 called a ContinuousSchedule: its schedule."""
    alpha_bar = 1 / (1 + np.exp(-np.asarray(log_snrs, np.float64)))
    betas = 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])
    if t1 < betas.size - 1:
        # Clipped, which rounding must not hide.
        betas[-1] = max(betas[-1], MAX_BETA)
    return Schedule(betas, c_noise=labels)
