"""Draws samples from a run of train_cifar.py: `python examples/sample.py RUN`.

`--help` lists the flags.
"""

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Literal

import diffrax
import jax
import numpy as np
import tyro
from _run import compilation_cache, EXPECTED, fail, load, num_classes_of

import eqdiff as eqd


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draws samples from a trained model.

    Writes a picture (PNG) and the images (npz, `arr_0` of uint8 N x H x W x C, and `arr_1` with the
    classes, as improved-diffusion and guided-diffusion write them).
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Folder that train_cifar.py wrote."""
    num: int = 64
    """How many samples."""
    sampler: Literal["ancestral", "ddim", "ode", "sde"] = "ancestral"
    """Ancestral sampling; DDIM; the probability-flow ODE (adaptive Tsit5); the reverse SDE
    (adaptive ShARK)."""
    num_steps: int = 100
    """Steps of ancestral and ddim."""
    eta: float = 0.0
    """Noise of DDIM: 0 is deterministic, 1 that of ancestral sampling."""
    tolerance: float = 1e-2
    """Relative and absolute tolerance of the adaptive samplers, ode and sde."""
    label: int | None = None
    """Draw this class only (class-conditional models; by default all in turn)."""
    seed: int = 0
    """Sample i depends on the seed and on i alone."""
    batch_size: int = 128
    """How many are drawn at once."""
    out: Path | None = None
    """Name of the files without their ending (default: RUN/samples_SAMPLER)."""
    overwrite: bool = False
    """Replace files that are there."""


def make_sampler(options: Sample) -> eqd.AbstractSampler:
    if options.sampler == "ancestral":
        return eqd.Ancestral(options.num_steps)
    if options.sampler == "ddim":
        return eqd.DDIM(options.num_steps, eta=options.eta)
    if options.sampler == "ode":
        return eqd.ProbabilityFlow(diffrax.Tsit5(), rtol=options.tolerance, atol=options.tolerance)
    return eqd.ReverseSDE(diffrax.ShARK(), rtol=options.tolerance, atol=options.tolerance)


def classes(options: Sample, num_classes: int | None) -> np.ndarray | None:
    """The class of each sample, `None` for a model without classes."""
    if options.label is not None and num_classes is None:
        raise ValueError(f"--label {options.label}: this model is not class-conditional.")
    if num_classes is None:
        return None
    if options.label is None:
        return np.arange(options.num, dtype=np.int32) % num_classes
    if not 0 <= options.label < num_classes:
        raise ValueError(f"--label {options.label}: expected a class from 0 to {num_classes - 1}.")
    return np.full(options.num, options.label, np.int32)


def main(options: Sample) -> None:
    compilation_cache()
    denoiser, settings = load(options.run)
    if options.num < 1:
        raise ValueError(f"--num {options.num}: expected at least 1.")
    stem = options.out or options.run / f"samples_{options.sampler}"
    picture, arrays = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".npz")
    for path in (picture, arrays):
        if path.exists() and not options.overwrite:
            raise FileExistsError(f"{path} exists: choose another name with --out, or --overwrite.")
    labels = classes(options, num_classes_of(denoiser))
    samples = eqd.generate(
        make_sampler(options),
        eqd.Clip(denoiser),
        options.num,
        tuple(settings["shape"]),
        key=jax.random.key(options.seed),
        args=labels,
        batch_size=options.batch_size,
        progress=True,
    )
    levels = settings["levels"]
    grid = samples[:100]
    eqd.data.write_grid(picture, grid, levels=levels, columns=10 if len(grid) % 10 == 0 else None)
    images = eqd.data.to_uint8(samples, levels=levels).transpose(0, 2, 3, 1)
    temporary = arrays.with_name(f".{arrays.name}.tmp.npz")
    np.savez(temporary, *([images] if labels is None else [images, labels]))
    os.replace(temporary, arrays)
    print(
        f"{picture}\n{arrays}: {images.shape[0]} images of {'x'.join(map(str, images.shape[1:]))}"
    )


if __name__ == "__main__":
    try:
        main(tyro.cli(Sample))
    except EXPECTED as error:
        fail(error)
