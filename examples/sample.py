"""Draws samples from a run of train_cifar.py: `python examples/sample.py RUN`.

`--help` lists the flags.
"""

from pathlib import Path
from typing import Literal

import diffrax
import jax
import numpy as np
from tyro.conf import Positional

import eqdiff as eqd


def main(
    run: Positional[Path],
    num: int = 64,
    sampler: Literal["recipe", "ancestral", "ddim", "pc", "heun", "ode", "sde"] = "recipe",
    num_steps: int | None = None,
    eta: float = 0.0,
    tolerance: float = 1e-2,
    label: int | None = None,
    seed: int = 0,
    batch_size: int = 128,
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Draws samples from a trained model.

    Writes a picture (PNG) and the images (npz, `arr_0` of uint8 N x H x W x C, and `arr_1` with the
    classes, as improved-diffusion and guided-diffusion write them).

    Args:
        run: folder that train_cifar.py wrote.
        num: how many samples.
        sampler: that of the run's recipe; ancestral sampling (of the chains cosine and linear);
            DDIM; predictor-corrector with Langevin steps; EDM's Heun; the probability-flow ODE
            (adaptive Tsit5); the reverse SDE (adaptive ShARK).
        num_steps: steps of all but ode and sde. Default: that of the run's recipe, and 100 of any
            other sampler.
        eta: noise of DDIM: 0 is deterministic, 1 that of ancestral sampling.
        tolerance: relative and absolute, of ode and sde.
        label: draw this class only (class-conditional models; by default all in turn).
        seed: sample i depends on the seed and on i alone.
        batch_size: how many are drawn at once.
        out: name of the files without their ending (default: RUN/samples_SAMPLER).
        overwrite: replace files that are there.
    """
    denoiser, settings = load(run)
    if num < 1:
        raise ValueError(f"--num {num}: expected at least 1.")
    stem = out or run / f"samples_{sampler}"
    picture, arrays = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".npz")
    for path in (picture, arrays):
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists: choose another name with --out, or --overwrite.")
    labels = classes(num, label, settings["num_classes"])
    samples = eqd.generate(
        make_sampler(sampler, settings, denoiser.process, num_steps, eta, tolerance),
        eqd.Clip(denoiser),
        num,
        tuple(settings["shape"]),
        key=jax.random.key(seed),
        args=labels,
        batch_size=batch_size,
        progress=True,
    )
    levels, grid = settings["levels"], samples[:100]
    eqd.data.write_grid(picture, grid, levels=levels, columns=10 if len(grid) % 10 == 0 else None)
    eqd.data.write_npz(arrays, samples, labels, levels=levels)
    print(f"{picture}\n{arrays}: {num} images of {'x'.join(map(str, settings['shape']))}")


def load(run: Path) -> tuple[eqd.Denoiser, dict]:
    """The model of a run of train_cifar.py, and the settings that it was trained with."""
    settings = eqd.train.read_settings(run)
    needed = {"process", "dataset", "shape", "levels", "num_classes"}
    if lacking := sorted(needed - settings.keys()):
        raise ValueError(
            f"{run / 'config.json'} does not say {', '.join(lacking)}: give a folder that this "
            "version of train_cifar.py wrote."
        )
    model = run / "model.safetensors"
    if not model.is_file():
        raise FileNotFoundError(
            f"{model} is not there yet: the run writes it with its first checkpoint."
        )
    return eqd.load_model(model), settings


def make_sampler(name, settings, process, num_steps, eta, tolerance) -> eqd.AbstractSampler:
    """The sampler of a name, for the process of a run."""
    if name == "ancestral" and not isinstance(process, eqd.Schedule):
        raise ValueError(
            f"--sampler ancestral: it takes the steps of a chain, but this run's process is "
            f"{settings['process']}, in continuous time; --sampler ddim --eta 1 is its like."
        )
    if num_steps is None:
        num_steps = settings["sample_steps"] if name == "recipe" else 100
    if isinstance(process, eqd.Schedule) and name in ("recipe", "ancestral"):
        num_steps = min(num_steps, process.num_steps)
    options = {name: settings[name] for name in ("small", "num_timesteps")}
    options["example"] = tuple(settings["shape"])
    # Evenly spaced times leave hardly any to EDM's low noise levels.
    spacing = eqd.karras_times if isinstance(process, eqd.EDMSDE) else None
    make = {
        "recipe": lambda: eqd.train.recipes.named(
            settings["process"], settings["preset"], **options
        ).sampler(num_steps),
        "ancestral": lambda: eqd.Ancestral(num_steps),
        "ddim": lambda: eqd.DDIM(num_steps, eta=eta, spacing=spacing),
        "pc": lambda: eqd.PredictorCorrector(
            num_steps, corrector=eqd.Langevin(snr=0.16), spacing=spacing
        ),
        "heun": lambda: eqd.StochasticHeun(num_steps),
        "ode": lambda: eqd.ProbabilityFlow(diffrax.Tsit5(), rtol=tolerance, atol=tolerance),
        "sde": lambda: eqd.ReverseSDE(diffrax.ShARK(), rtol=tolerance, atol=tolerance),
    }
    return make[name]()


def classes(num: int, label: int | None, num_classes: int | None) -> np.ndarray | None:
    """The class of each sample, `None` for a model without classes."""
    if num_classes is None:
        if label is not None:
            raise ValueError(f"--label {label}: this model is not class-conditional.")
        return None
    if label is None:
        return np.arange(num, dtype=np.int32) % num_classes
    if not 0 <= label < num_classes:
        raise ValueError(f"--label {label}: expected a class from 0 to {num_classes - 1}.")
    return np.full(num, label, np.int32)


if __name__ == "__main__":
    eqd.train.command(main)
