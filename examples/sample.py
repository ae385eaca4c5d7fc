"""Draws samples from a trained model: `python examples/sample.py RUN_OR_FILE`.

`--help` lists the flags.
"""

from pathlib import Path
from typing import Any, Literal

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
    image_size: int | None = None,
    levels: int | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Draws samples from a trained model.

    Writes a picture (PNG) and the images (npz, `arr_0` of uint8 N x H x W x C, and `arr_1` with the
    classes, as improved-diffusion and guided-diffusion write them).

    Args:
        run: folder that train_cifar.py wrote, or a model file (.safetensors) of eqdiff.save_model.
        num: how many samples.
        sampler: that of the run's recipe (of a file: of the recipes for its process); ancestral
            sampling (of the chains cosine and linear); DDIM; predictor-corrector with Langevin
            steps; EDM's Heun; the probability-flow ODE (adaptive Tsit5); the reverse SDE (adaptive
            ShARK).
        num_steps: steps of all but ode and sde. Default: that of the recipe, and 100 of any other
            sampler.
        eta: noise of DDIM: 0 is deterministic, 1 that of ancestral sampling.
        tolerance: relative and absolute, of ode and sde.
        label: draw this class only (class-conditional models; by default all in turn).
        seed: sample i depends on the seed and on i alone.
        batch_size: how many are drawn at once.
        image_size: of a model file, which does not say it: the side of its images.
        levels: of a model file: the grey levels of its images, by default 256.
        out: name of the files without their ending (default: RUN/samples_SAMPLER, or
            MODEL_samples_SAMPLER beside a file).
        overwrite: replace files that are there.
    """
    denoiser, settings = load_any(run, image_size, levels)
    if num < 1 or batch_size < 1:
        raise ValueError(f"--num {num} --batch-size {batch_size}: expected at least 1.")
    beside = run / "samples" if run.is_dir() else run.with_name(f"{run.stem}_samples")
    stem = out or beside.with_name(f"{beside.name}_{sampler}")
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
    shades, grid = settings["levels"], samples[:100]
    eqd.data.write_grid(picture, grid, levels=shades, columns=10 if len(grid) % 10 == 0 else None)
    eqd.data.write_npz(arrays, samples, labels, levels=shades)
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


def load_any(
    path: Path, image_size: int | None = None, levels: int | None = None
) -> tuple[eqd.Denoiser, dict]:
    """The model of a run or of a file, and what is known of it."""
    if path.suffix != ".safetensors":
        if image_size or levels:
            raise ValueError("--image-size and --levels are for model files: a run says its own.")
        return load(path)
    denoiser, told = load_file(path)
    if image_size is None or image_size < 1:
        raise ValueError(
            f"{path} does not say how large its images are: write --image-size 32, for instance, "
            "or give the folder of its run."
        )
    shape = [told["channels"], image_size, image_size]
    return denoiser, told | {"shape": shape, "levels": 256 if levels is None else levels}


def load_file(path: Path) -> tuple[eqd.Denoiser, dict]:
    """The model of a file, and what the file says of its images: their channels and classes."""
    denoiser = eqd.load_model(path)
    net: Any = denoiser.net
    while isinstance(net, eqd.nn.DividedBySigma):
        net = net.net
    shape = getattr(net, "shape", net)
    # Not those that also take a small image, nor those of data in [0, 1].
    if not hasattr(shape, "in_channels") or getattr(shape, "dims", 2) != 2:
        raise ValueError(
            f"{path} holds a {type(net).__name__}, expected a network of images in [-1, 1]; "
            "eqdiff.generate samples from any."
        )
    known = {"process": None, "channels": shape.in_channels}
    return denoiser, known | {"num_classes": getattr(shape, "num_classes", None)}


def make_sampler(name, settings, process, num_steps, eta, tolerance) -> eqd.AbstractSampler:
    """The sampler of a name, for the process of a run."""
    if name == "ancestral" and not isinstance(process, eqd.Schedule):
        raise ValueError(
            f"--sampler ancestral: it takes the steps of a chain, but this model's process is "
            f"{settings['process'] or type(process).__name__}, in continuous time; "
            "--sampler ddim --eta 1 is its like."
        )
    if num_steps is not None and num_steps < 1:
        raise ValueError(f"--num-steps {num_steps}: expected at least 1.")
    recipe: Any = recipe_of(settings, process) if name == "recipe" else None
    if num_steps is None:
        num_steps = settings.get("sample_steps", recipe.sample_steps) if recipe else 100
    if isinstance(process, eqd.Schedule) and name in ("recipe", "ancestral"):
        num_steps = min(num_steps, process.num_steps)
    make = {
        "recipe": lambda: recipe.sampler(num_steps),
        "ancestral": lambda: eqd.Ancestral(num_steps),
        "ddim": lambda: eqd.DDIM(num_steps, eta=eta),
        "pc": lambda: eqd.PredictorCorrector(num_steps, corrector=eqd.Langevin(snr=0.16)),
        "heun": lambda: eqd.StochasticHeun(num_steps),
        "ode": lambda: eqd.ProbabilityFlow(diffrax.Tsit5(), rtol=tolerance, atol=tolerance),
        "sde": lambda: eqd.ReverseSDE(diffrax.ShARK(), rtol=tolerance, atol=tolerance),
    }
    return make[name]()


def recipe_of(settings: dict, process: eqd.AbstractProcess) -> eqd.train.recipes.Recipe:
    """That of a run; of a file any, as samplers follow the process and not the network."""
    if settings["process"] is None:
        return eqd.train.recipes.iddpm(process)
    options = {name: settings[name] for name in ("small", "num_timesteps")}
    options["example"] = tuple(settings["shape"])
    return eqd.train.recipes.named(settings["process"], settings["preset"], **options)


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
