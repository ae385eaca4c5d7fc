"""What is measured at the end of the main job, and written as its report."""

# A resolved Config has no None left (`_config.resolve`), which its types cannot say.
# pyright: reportArgumentType=false, reportOptionalOperand=false, reportOperatorIssue=false

import time

import _report
import _score
import equinox as eqx
import jax
from _config import Config
from _job import make_denoiser, make_schedule
from _run import Run

import eqdiff as eqd
from eqdiff.data import Dataset


# Relative and absolute, of the probability flow's solver, whose error is far below the standard
# errors quoted.
_TOLERANCE = 1e-3


def count_parameters(net: eqd.nn.UNet) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(net, eqx.is_inexact_array)))


def evaluate(
    config: Config,
    data: Dataset,
    run: Run,
    state: eqd.train.TrainState,
    seconds: dict,
    start: float,
) -> None:
    """Samples, bits/dim and the report of a finished run.

    `seconds` is what training took, `start` when this command began.
    """
    began = time.monotonic()
    denoiser = make_denoiser(state.ema_net(), make_schedule(config), config)
    sample_key, bits_key = jax.random.split(jax.random.key(config.training.seed + 2))
    samples, shown = _samples(config, data, denoiser, run, sample_key)
    bits = _bits(config, data, denoiser, bits_key)
    _report.loss_curve(run.metrics, run.folder / "loss.png")
    now = time.monotonic()
    report = {
        "data": {"name": data.name, "shape": data.shape, "levels": data.levels},
        "model": {"parameters": count_parameters(state.net)},
        "step": int(state.step),
        "batch_size": config.training.batch_size,
        "samples": {
            "num": len(samples),
            "shown": shown,
            "steps": config.evaluation.eval_sample_steps,
            "conditional": bool(config.model.class_conditional),
        },
        "bits": bits,
        "time": {
            "total": now - start,
            "training": seconds["training"] + seconds["compilation"],
            "compilation": seconds["compilation"],
            "evaluation": now - began,
            "images_per_second": seconds["images"] / max(seconds["training"], 1e-9),
        },
        "command": _report.command(),
        "versions": _report.versions(),
    }
    if config.data.dataset == "digits":
        num_classes = data.num_classes if config.model.class_conditional else None
        labels = _score.in_turn(len(samples), num_classes)
        report["quality"] = _score.quality(data, samples, labels)
    _report.write(run.folder, report)
    print(f"Variational bound {bits['bound']}, probability flow {bits['flow']} bits/dim.")
    print(f"Report and pictures: {run.folder / 'report.md'}")


def _samples(config: Config, data: Dataset, denoiser: eqd.Denoiser, run: Run, key):
    """Draws the report's samples and their picture; how many of them it shows."""
    evaluation = config.evaluation
    num_classes = data.num_classes if config.model.class_conditional else None
    samples = _score.draw(
        denoiser,
        data.shape,
        evaluation.eval_samples,
        steps=evaluation.eval_sample_steps,
        num_classes=num_classes,
        key=key,
    )
    shown = min(100, len(samples))
    columns = num_classes if num_classes is not None and num_classes <= 20 else None
    picture = run.folder / "samples.png"
    eqd.data.write_grid(picture, samples[:shown], levels=data.levels, columns=columns)
    return samples, shown


def _bits(config: Config, data: Dataset, denoiser: eqd.Denoiser, key) -> dict:
    """Both bits/dim of held-out images."""
    evaluation = config.evaluation
    # The network saw grid values: uniform noise would fall between the spikes of its density.
    bound, flow, num = _score.both_bits(
        denoiser,
        data,
        evaluation.eval_images,
        conditional=bool(config.model.class_conditional),
        terms=evaluation.bound_terms,
        dequantise=eqd.GaussianDequantisation(data.levels),
        tolerance=_TOLERANCE,
        key=key,
    )
    return {
        "num_images": num,
        "bound": str(bound),
        "bound_value": bound.value,
        "bound_stderr": bound.stderr,
        "flow": str(flow),
        "flow_value": flow.value,
        "flow_stderr": flow.stderr,
        "dequantisation": "Gaussian",
        "tolerance": _TOLERANCE,
        "terms": evaluation.bound_terms,
        "schedule": config.diffusion.num_timesteps,
    }
