"""Scores a run of train_cifar.py in bits/dim, both ways: `python examples/likelihood.py RUN`.

`--help` lists the flags.
"""

import json
from pathlib import Path
from typing import Literal

import diffrax
import jax
from sample import load
from train_cifar import load_data
from tyro.conf import Positional

import eqdiff as eqd


def main(
    run: Positional[Path],
    num: int = 200,
    bound_terms: int = 64,
    dequantise: Literal["gaussian", "uniform"] = "gaussian",
    tolerance: float = 1e-3,
    batch_size: int = 50,
    seed: int = 0,
    data_dir: Path | None = None,
) -> None:
    """Bits per dimension of held-out images, by the variational bound and the probability flow.

    Args:
        run: folder that train_cifar.py wrote.
        num: how many held-out images.
        bound_terms: terms of the variational bound per image, at least 2, an even number.
        dequantise: for the probability flow: gaussian for networks trained on the grid of pixel
            values (what train_cifar.py trains), uniform for ones trained on dequantised data.
        tolerance: relative and absolute, of the flow's solver.
        batch_size: images at once.
        seed: of times, noise and probes.
        data_dir: where the data are, if not where training found them.
    """
    denoiser, settings = load(run)
    data, images, labels = held_out(settings, num, data_dir)
    make = {"gaussian": eqd.GaussianDequantisation, "uniform": eqd.UniformDequantisation}
    bound_key, flow_key = jax.random.split(jax.random.key(seed))
    options = {"levels": data.levels, "batch_size": batch_size, "progress": True}
    print("Variational bound:")
    bound = eqd.metrics.bound_bits(
        denoiser, images, labels, num_terms=bound_terms, key=bound_key, **options
    )
    print("Probability flow:")
    flow = eqd.metrics.flow_bits(
        denoiser,
        images,
        labels,
        dequantise=make[dequantise](data.levels),
        # Of low order: a trained network is not smooth in time. See docs/adaptive-solves.md.
        flow=eqd.ProbabilityFlow(diffrax.Bosh3(), rtol=tolerance, atol=tolerance),
        key=flow_key,
        **options,
    )
    print(f"{len(images)} held-out images of {data.name}, {data.levels} grey levels")
    print(f"variational bound  {bound} bits/dim ({bound_terms} terms an image; ± standard error)")
    print(f"probability flow   {flow} bits/dim ({dequantise} dequantisation)")
    print(json.dumps({"bound": bound.value, "flow": flow.value}))


def held_out(settings: dict, num: int, data_dir: Path | None = None):
    """The data of a run; held-out images; their labels, `None` if they do not condition it."""
    data = load_data(
        settings["dataset"],
        data_dir or settings["data_dir"],
        settings["image_size"],
        settings["image_channels"],
    )
    if [*data.shape] != settings["shape"]:
        raise ValueError(
            f"The run was trained on images of {settings['shape']}, but these are of "
            f"{[*data.shape]}: say with --data-dir where its data are."
        )
    images, labels = data.held_out(num)
    return data, images, None if settings["num_classes"] is None else labels


if __name__ == "__main__":
    eqd.train.command(main)
