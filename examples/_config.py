"""The flags of the main job, and what they default to on each data set and device."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclasses.dataclass(frozen=True)
class Data:
    """What to train on."""

    dataset: Literal["auto", "cifar10", "digits", "folder"] = "auto"
    """auto: without an accelerator scikit-learn's 8x8 digits; with one CIFAR-10, downloaded if need
    be, or digits if it cannot be had. The others are never replaced by something else."""
    data_dir: Path | None = None
    """Where CIFAR-10's binary files are (default: a user cache), or the tree of images of --dataset
    folder."""
    image_size: int | None = None
    """Resize and crop a folder's images to this side; needed if their sizes differ."""
    horizontal_flip: bool = False
    """Mirror images at random."""


@dataclasses.dataclass(frozen=True)
class Model:
    """The U-Net of Improved DDPM. A default that is not given depends on data set and device, and
    is printed."""

    channels: int | None = None
    """Width of the first level (CIFAR-10 on a GPU: 128; on a CPU: 32)."""
    num_res_blocks: int | None = None
    """Residual blocks per level (on a GPU: 3; on a CPU: 1)."""
    dropout: float | None = None
    """Probability of dropout (CIFAR-10 on a GPU: 0.3; on a CPU: 0)."""
    class_conditional: bool | None = None
    """Condition the network on the class (digits: yes; CIFAR-10: no)."""
    compute_dtype: Literal["float32", "bfloat16"] | None = None
    """What convolutions compute in (bfloat16 on a GPU). Parameters stay float32."""


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """The schedule and the objective."""

    schedule: Literal["cosine", "linear"] = "cosine"
    """Schedule of the noise."""
    num_timesteps: int | None = None
    """Steps of the schedule (CIFAR-10 on a GPU: 4000; otherwise 1000)."""
    loss: Literal["hybrid", "simple", "vlb"] = "hybrid"
    """L_hybrid (learned variance), L_simple (fixed variance) or L_vlb (learned variance)."""
    timesteps: Literal["low-discrepancy", "uniform", "second-moment", "smoothed-second-moment"] = (
        "low-discrepancy"
    )
    """How a batch's times are drawn: spread evenly over the schedule, independently, or by
    importance, from the squares of the last ten losses at each step (Improved DDPM, for L_vlb) or
    from a smooth fit to them, which learns sooner."""


@dataclasses.dataclass(frozen=True)
class Training:
    """The optimiser's run."""

    steps: int | None = None
    """Optimiser steps (CIFAR-10 on a GPU: 100000; digits: 1500; other on a CPU: 1000). A finished
    run is continued if this is raised."""
    batch_size: int | None = None
    """Images per step (on a GPU: 128; on a CPU: 64)."""
    accumulate: int = 1
    """Microbatches per step, to save memory."""
    learning_rate: float | None = None
    """Adam's learning rate (CIFAR-10 on a GPU: 1e-4; on a CPU: 1e-3)."""
    warmup: int = 200
    """Steps of linear warm-up."""
    decay: Literal["none", "cosine"] | None = None
    """Learning rate decay over the run (on a GPU: none; on a CPU: cosine)."""
    grad_clip: float = 1.0
    """Largest gradient norm; larger ones are scaled down to it."""
    ema: float | None = None
    """Rate of the average of the weights that is sampled from, after a warm-up (on a GPU: 0.9999;
    on a CPU: 0.995)."""
    seed: int = 0
    """Decides initial weights, order of the data, times and noise."""


@dataclasses.dataclass(frozen=True)
class Output:
    """What is written, and when."""

    run_dir: Path | None = None
    """Folder of the run (default: runs/DATASET). The same command again resumes it."""
    overwrite: bool = False
    """Start anew over an existing run."""
    log_every: int | None = None
    """Steps between lines of metrics.jsonl (default: 1/100 of the run, at most 100)."""
    sample_every: int | None = None
    """Steps between sample grids (default: 1/4 of the run, at most 5000)."""
    checkpoint_every: int | None = None
    """Steps between checkpoints (default: 1/4 of the run, at most 5000)."""
    tensorboard: bool = False
    """Also write TensorBoard event files."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The report at the end."""

    eval_images: int | None = None
    """Held-out images scored in bits/dim (on a GPU: 512; digits: 200; other on a CPU: 32)."""
    bound_terms: int = 64
    """Terms of the variational bound per image, two from each stratum of the schedule."""
    eval_samples: int | None = None
    """Samples drawn for the report (on a GPU: 100; digits: 400; other on a CPU: 36)."""
    eval_sample_steps: int = 100
    """Steps of ancestral sampling per sample."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a diffusion model (Improved DDPM), samples from it and scores it in bits/dim.

    With no arguments: 8x8 handwritten digits on a CPU, in a few minutes; CIFAR-10 on a GPU. Ctrl-C
    saves and exits, and the same command again resumes. The run's folder holds metrics.jsonl,
    sample grids, checkpoints, model.safetensors (for sample.py and likelihood.py) and at the end
    report.md.
    """

    data: Data = dataclasses.field(default_factory=Data)
    model: Model = dataclasses.field(default_factory=Model)
    diffusion: Diffusion = dataclasses.field(default_factory=Diffusion)
    training: Training = dataclasses.field(default_factory=Training)
    output: Output = dataclasses.field(default_factory=Output)
    evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)


# What a flag left out means, on a GPU, for digits anywhere, and for anything else on a CPU.
_GPU = {
    "channels": 128,
    "num_res_blocks": 3,
    "dropout": 0.3,
    "class_conditional": False,
    "compute_dtype": "bfloat16",
    "num_timesteps": 4000,
    "steps": 100_000,
    "batch_size": 128,
    "learning_rate": 1e-4,
    "decay": "none",
    "ema": 0.9999,
    "eval_images": 512,
    "eval_samples": 100,
}
_CPU = _GPU | {
    "channels": 32,
    "num_res_blocks": 1,
    "dropout": 0.0,
    "compute_dtype": "float32",
    "num_timesteps": 1000,
    "steps": 1000,
    "batch_size": 64,
    "learning_rate": 1e-3,
    "decay": "cosine",
    "ema": 0.995,
    "eval_images": 32,
    "eval_samples": 36,
}
_DIGITS = _CPU | {
    "class_conditional": True,
    "steps": 1500,
    "eval_images": 200,
    "eval_samples": 400,
}

# A run may be continued with other values of these; all else decides what is being trained.
_FREE = {
    *("data_dir", "run_dir", "overwrite", "steps", "accumulate", "log_every", "sample_every"),
    *("checkpoint_every", "tensorboard", "eval_images", "bound_terms", "eval_samples"),
    "eval_sample_steps",
}


def parse() -> Config:
    """The command line."""
    return tyro.cli(Annotated[Config, tyro.conf.OmitArgPrefixes])


def resolve(config: Config, dataset: str, accelerator: bool) -> Config:
    """Fills in what was left to data set and device.

    **Raises:** `ValueError` for a value out of range.
    """
    preset = _DIGITS if dataset == "digits" else _GPU if accelerator else _CPU
    groups = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    for name, group in groups.items():
        left_out = {
            f.name: preset[f.name]
            for f in dataclasses.fields(group)
            if getattr(group, f.name) is None and f.name in preset
        }
        groups[name] = dataclasses.replace(group, **left_out)
    data_dir = groups["data"].data_dir
    groups["data"] = dataclasses.replace(
        groups["data"], dataset=dataset, data_dir=None if data_dir is None else data_dir.absolute()
    )
    steps = groups["training"].steps
    output = groups["output"]
    groups["output"] = dataclasses.replace(
        output,
        run_dir=output.run_dir or Path("runs") / dataset,
        log_every=output.log_every or max(1, min(100, steps // 100)),
        sample_every=output.sample_every or max(1, min(5000, steps // 4)),
        checkpoint_every=output.checkpoint_every or max(1, min(5000, steps // 4)),
    )
    config = Config(**groups)
    _check(flat(config))
    return config


def _check(values: dict) -> None:
    positive = (
        *("channels", "num_res_blocks", "num_timesteps", "steps", "batch_size", "accumulate"),
        *("learning_rate", "grad_clip", "log_every", "sample_every", "checkpoint_every"),
        *("eval_images", "bound_terms", "eval_samples", "eval_sample_steps"),
    )
    for name in positive:
        if not values[name] > 0:
            raise ValueError(f"{flag(name)} {values[name]}: expected a positive number.")
    for name in ("dropout", "ema"):
        if not 0 <= values[name] < 1:
            raise ValueError(f"{flag(name)} {values[name]}: expected a number in [0, 1).")
    if values["seed"] < 0 or values["warmup"] < 0:
        raise ValueError("--seed and --warmup: expected numbers that are not negative.")
    if values["bound_terms"] < 2:
        raise ValueError("--bound-terms 1: expected at least 2, for a standard error.")
    for name in ("bound_terms", "eval_sample_steps"):
        if values[name] > values["num_timesteps"]:
            raise ValueError(
                f"{flag(name)} {values[name]}: the schedule has only {values['num_timesteps']} "
                "steps (--num-timesteps)."
            )


def flag(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def flat(config: Config) -> dict:
    """All values by name, as JSON can hold them."""
    values = {}
    for group in dataclasses.fields(config):
        for name, value in dataclasses.asdict(getattr(config, group.name)).items():
            values[name] = str(value) if isinstance(value, Path) else value
    return values


def differences(saved: dict, config: Config) -> list[str]:
    """The flags in which a saved run differs, of those that decide what is trained."""
    return [
        f"{flag(name)} is {value}, the run was started with {saved.get(name)}"
        for name, value in flat(config).items()
        if name not in _FREE and saved.get(name) != value
    ]
