"""Reproduces the claims of Improved DDPM: `python examples/reproduce_iddpm.py`.

`--help` lists the flags.
"""

import dataclasses
import json
from pathlib import Path
from typing import Literal

import _claims
import _claims_report
import jax
import tyro
from _config import Config, Data, Diffusion, Evaluation, Model, Output, resolve, Training
from _job import find_data, make_loss, make_timesteps
from _run import compilation_cache, EXPECTED, fail, Run, write_text
from train_cifar import train

import eqdiff as eqd
from eqdiff.data import Dataset


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """Trains five models that differ in schedule, objective and times alone, and measures five
    claims of Improved DDPM.

    With no arguments: 8x8 digits and schedules of 1000 steps, about 45 minutes on two CPU cores.
    Everything is kept: Ctrl-C saves, the same command again goes on. Writes report.md with its
    pictures.
    """

    dataset: Literal["digits", "cifar10", "folder"] = "digits"
    """What to train on; cifar10 is for a GPU."""
    data_dir: Path | None = None
    """Where CIFAR-10's binary files are, or the tree of images of --dataset folder."""
    num_timesteps: int = 1000
    """Steps of every schedule (the paper's models have 4000)."""
    steps: int = 3000
    """Optimiser steps of every model."""
    batch_size: int | None = None
    """Images per step (default: that of train_cifar.py)."""
    channels: int | None = None
    """Width of the network (default: that of train_cifar.py)."""
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


# Name -> how each model differs from the others.
MODELS = {
    "linear L_simple": Diffusion(schedule="linear", loss="simple", timesteps="uniform"),
    "cosine L_simple": Diffusion(loss="simple", timesteps="uniform"),
    "cosine L_hybrid": Diffusion(loss="hybrid", timesteps="uniform"),
    "cosine L_vlb": Diffusion(loss="vlb", timesteps="uniform"),
    "cosine L_vlb, importance": Diffusion(loss="vlb", timesteps="second-moment"),
}


# Gradients are compared early in training too, where their mean is not yet lost in noise.
EARLY = "cosine L_hybrid, early"


def config_of(options: Reproduction, name: str, accelerator: bool) -> Config:
    """The main job's configuration of one of the models."""
    folder = name.replace(",", "").replace(" ", "_")
    early = name == EARLY
    config = Config(
        data=Data(dataset=options.dataset, data_dir=options.data_dir),
        model=Model(channels=options.channels, class_conditional=False),
        diffusion=dataclasses.replace(
            MODELS["cosine L_hybrid" if early else name], num_timesteps=options.num_timesteps
        ),
        training=Training(
            steps=max(1, options.steps // 10) if early else options.steps,
            batch_size=options.batch_size,
            seed=options.seed,
        ),
        output=Output(run_dir=options.run_dir / "models" / folder),
        # The main job's own report is not made here; only its limits must fit the schedule.
        evaluation=Evaluation(
            bound_terms=min(64, options.num_timesteps),
            eval_sample_steps=min(100, options.num_timesteps),
        ),
    )
    return resolve(config, options.dataset, accelerator)


def train_all(options: Reproduction, data: Dataset, accelerator: bool):
    """The configuration and final state of every model; `None` if the run was stopped."""
    trained = {}
    for name in (*MODELS, EARLY):
        print(f"\n== {name}")
        config = config_of(options, name, accelerator)
        run = Run(config)
        state, _ = train(config, data, run, run.open(config, data))
        if state is None:
            return None
        trained[name] = (config, state, eqd.load_model(run.model))
    return trained


def measure(options: Reproduction, data: Dataset, trained: dict) -> dict:
    """All claims, each cached in results.json as soon as it is measured."""
    path = options.run_dir / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    bench = _claims.Bench(
        data,
        images=options.images,
        samples=options.samples,
        terms=options.bound_terms,
        steps=options.sample_steps,
        seed=options.seed,
    )
    denoisers = {name: trained[name][2] for name in MODELS}
    simple = {name: denoisers[name] for name in ("linear L_simple", "cosine L_simple")}
    claims = {
        "first_steps": lambda: _claims.first_steps(bench, simple),
        "skipped_prefix": lambda: _claims.skipped_prefix(bench, simple),
        "gradient_noise": lambda: gradient_noise(options, bench, trained),
        "objectives": lambda: _claims.objectives(bench, denoisers),
        "fewer_steps": lambda: _claims.fewer_steps(
            bench,
            denoisers["cosine L_hybrid"],
            denoisers["cosine L_simple"],
            jax.random.key(options.seed + 60),
        ),
        "real": lambda: bench.distance(_claims.held_out_images(data, options.samples)),
    }
    for name, claim in claims.items():
        if name not in results:
            print(f"\n== {name.replace('_', ' ')}")
            results[name] = claim()
            write_text(path, json.dumps(results, indent=1) + "\n")
    return results


def gradient_noise(options: Reproduction, bench: _claims.Bench, trained: dict) -> dict:
    """Claim 3 at the weights of three of the models, all objectives at each."""
    hybrid, uniform, importance = (
        trained[name][0] for name in ("cosine L_hybrid", "cosine L_vlb", "cosine L_vlb, importance")
    )
    levels, result = bench.data.levels, {}
    for at in (EARLY, "cosine L_hybrid", "cosine L_vlb, importance"):
        net = trained[at][1].ema_net()
        timesteps = make_timesteps(importance)
        # Every step seen ten times, and the steps that matter more often.
        state = _claims.warmed_up(bench, net, importance, timesteps, options.num_timesteps // 5)
        losses = {
            "L_hybrid": (make_loss(hybrid, levels), make_timesteps(hybrid), None),
            "L_vlb": (make_loss(uniform, levels), make_timesteps(uniform), None),
            "L_vlb, importance": (make_loss(importance, levels), timesteps, state),
        }
        result[at] = _claims.gradient_noise(bench, net, losses)
    return result


def main(options: Reproduction) -> None:
    compilation_cache()
    accelerator = jax.default_backend() != "cpu"
    _, data = find_data(config_of(options, "cosine L_hybrid", accelerator), accelerator)
    trained = train_all(options, data, accelerator)
    if trained is None:
        return
    results = measure(options, data, trained)
    curves = {name: Run(trained[name][0]).metrics for name in MODELS}
    report = _claims_report.write(options.run_dir, dataclasses.asdict(options), results, curves)
    print(f"\nReport and pictures: {report}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Reproduction))
    except EXPECTED as error:
        fail(error)
