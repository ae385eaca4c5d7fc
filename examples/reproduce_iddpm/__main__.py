"""Reproduces the claims of Improved DDPM: `python examples/reproduce_iddpm`.

`--help` lists the flags.
"""

import dataclasses
import json
from pathlib import Path
from typing import Literal

import claims
import jax
import report
from models import EARLY, MODELS, recipe_of, train, Trained
from tyro.conf import OmitArgPrefixes

import eqdiff as eqd


@dataclasses.dataclass(frozen=True)
class Options:
    """What to train on and how much to measure."""

    dataset: Literal["digits", "cifar10", "folder"] = "digits"
    """What to train on; cifar10 is for a GPU."""
    data_dir: Path | None = None
    """Where CIFAR-10's binary files are, or the images of --dataset folder."""
    num_timesteps: int = 1000
    """Steps of every schedule (the paper's models have 4000)."""
    steps: int = 3000
    """Optimiser steps of every model."""
    batch_size: int | None = None
    """Images per step (default: 64; other data than digits on a GPU: 128)."""
    channels: int | None = None
    """Width of the network (default: 32; other data than digits on a GPU: 128)."""
    images: int = 100
    """Held-out images scored in bits/dim."""
    samples: int = 300
    """Samples per Fréchet distance."""
    bound_terms: int = 100
    """Terms of the bound per image."""
    sample_steps: tuple[int, ...] = (10, 25, 50, 100, 200)
    """Numbers of sampling steps that are compared."""
    seed: int = 0
    """Of everything random."""
    run_dir: Path = Path("runs/reproduce_iddpm")
    """Folder of models, measurements and report."""


def main(options: OmitArgPrefixes[Options]) -> None:
    """Trains five models that differ in schedule, objective and times alone, and measures five
    claims of Improved DDPM.

    With no arguments: 8x8 digits and schedules of 1000 steps, about 45 minutes on two CPU cores.
    Everything is kept: Ctrl-C saves, the same command again goes on. Writes report.md with its
    pictures.
    """
    data = load_data(options)
    trained = {name: train_one(options, name, data) for name in (*MODELS, EARLY)}
    results = measure(options, data, trained)
    curves = {name: trained[name].metrics for name in MODELS}
    path = report.write(options.run_dir, dataclasses.asdict(options), results, curves)
    print(f"\nReport and pictures: {path}")


def load_data(options: Options) -> eqd.data.Dataset:
    if options.dataset == "digits":
        return eqd.data.digits()
    if options.dataset == "cifar10":
        return eqd.data.cifar10(options.data_dir)
    if options.data_dir is None:
        raise ValueError("--dataset folder: say where the images are with --data-dir.")
    return eqd.data.image_folder(options.data_dir)


def train_one(options: Options, name: str, data: eqd.data.Dataset) -> Trained:
    """One of the models, from wherever it was."""
    steps = max(1, options.steps // 10) if name == EARLY else options.steps
    changes = eqd.train.Changes(
        steps=steps, batch_size=options.batch_size, channels=options.channels
    )
    small = options.dataset == "digits" or jax.default_backend() == "cpu"
    recipe = recipe_of(name, options.num_timesteps, changes, small=small)
    names = ("dataset", "data_dir", "num_timesteps", "seed")
    settings = {name: getattr(options, name) for name in names}
    return train(name, recipe, data, settings, options.run_dir / "models")


def measure(options: Options, data: eqd.data.Dataset, trained: dict[str, Trained]) -> dict:
    """All claims, each cached in results.json as soon as it is measured."""
    path = options.run_dir / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    bench = claims.Bench(
        data,
        images=options.images,
        samples=options.samples,
        terms=options.bound_terms,
        steps=options.sample_steps,
        seed=options.seed,
    )
    denoisers = {name: trained[name].denoiser for name in MODELS}
    simple = {name: denoisers[name] for name in ("linear L_simple", "cosine L_simple")}
    learned, fixed = denoisers["cosine L_hybrid"], denoisers["cosine L_simple"]
    key = jax.random.key(options.seed + 60)
    measurements = {
        "first_steps": lambda: claims.first_steps(bench, simple),
        "skipped_prefix": lambda: claims.skipped_prefix(bench, simple),
        "gradient_noise": lambda: gradient_noise(options, bench, trained),
        "objectives": lambda: claims.objectives(bench, denoisers),
        "fewer_steps": lambda: claims.fewer_steps(bench, learned, fixed, key),
        "real": lambda: bench.distance(data.held_out(options.samples)[0]),
    }
    for name, claim in measurements.items():
        if name not in results:
            print(f"\n== {name.replace('_', ' ')}")
            results[name] = claim()
            # Whole or not at all.
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(results, indent=1) + "\n")
            temporary.replace(path)
    return results


def gradient_noise(options: Options, bench: claims.Bench, trained: dict[str, Trained]) -> dict:
    """Claim 3 at the weights of three of the models, all objectives at each."""
    hybrid, uniform, importance = (
        trained[name] for name in ("cosine L_hybrid", "cosine L_vlb", "cosine L_vlb, importance")
    )
    timesteps = importance.recipe.timesteps
    # Every step seen ten times, and the steps that matter more often.
    passes = options.num_timesteps // 5
    result = {}
    for name in (EARLY, "cosine L_hybrid", "cosine L_vlb, importance"):
        net = trained[name].net
        state = claims.warmed_up(bench, net, importance.loss_fn, timesteps, passes)
        losses = {
            "L_hybrid": (hybrid.loss_fn, hybrid.recipe.timesteps, None),
            "L_vlb": (uniform.loss_fn, uniform.recipe.timesteps, None),
            "L_vlb, importance": (importance.loss_fn, timesteps, state),
        }
        result[name] = claims.gradient_noise(bench, net, losses)
    return result


if __name__ == "__main__":
    eqd.train.command(main)
