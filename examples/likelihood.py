"""Scores a model in bits/dim, both ways: `python examples/likelihood.py RUN_OR_FILE`.

`--help` lists the flags.
"""

import json
from pathlib import Path
from typing import Literal

import diffrax
import jax
from sample import load, load_file
from train_cifar import load_data
from tyro.conf import Positional

import eqdiff as eqd


def main(
    run: Positional[Path],
    num: int = 200,
    parts: int = 20,
    bound_terms: int = 64,
    dequantise: Literal["gaussian", "truncated", "uniform"] = "gaussian",
    tolerance: float = 1e-3,
    batch_size: int = 50,
    seed: int = 0,
    dataset: Literal["cifar10", "digits", "folder"] | None = None,
    data_dir: Path | None = None,
    image_size: int | None = None,
) -> None:
    """Bits per dimension of held-out images, by the variational bound and the probability flow.

    Args:
        run: folder that train_cifar.py wrote, or a model file (.safetensors) of eqdiff.save_model.
        num: how many held-out images.
        parts: of how many, four or more, the uncertainty is taken apart, into images,
            dequantisation, probes and the solver; 0 for none.
        bound_terms: terms of the variational bound per image, at least 2, an even number.
        dequantise: for the probability flow: gaussian or truncated (normal) for networks trained on
            the grid of pixel values (what train_cifar.py trains), uniform for ones trained on
            dequantised data.
        tolerance: relative and absolute, of the flow's solver.
        batch_size: images at once.
        seed: of times, noise and probes.
        dataset: of a model file, which does not say it: what held-out images to score.
        data_dir: where the data are, if not where training found them.
        image_size: of a model file and --dataset folder: the side that images are resized to.
    """
    if parts and not 4 <= parts:
        raise ValueError(f"--parts {parts}: expected 0, or at least 4 images.")
    if num < 2:
        raise ValueError(f"--num {num}: expected at least 2, for a standard error.")
    denoiser, settings = load_for_data(run, dataset, image_size)
    data, images, labels = held_out(settings, num, data_dir)
    make = {
        "gaussian": eqd.GaussianDequantisation,
        "truncated": eqd.TruncatedNormalDequantisation,
        "uniform": eqd.UniformDequantisation,
    }
    found = score(
        denoiser,
        data,
        images,
        labels,
        key=jax.random.key(seed),
        num_terms=bound_terms,
        dequantise=make[dequantise](data.levels),
        tolerance=tolerance,
        batch_size=batch_size,
        progress=True,
    )
    bound, flow = found.values()
    print(f"{len(images)} held-out images of {data.name}, {data.levels} grey levels")
    print(f"variational bound  {bound} bits/dim ({bound_terms} terms an image; ± standard error)")
    print(f"probability flow   {flow} bits/dim ({dequantise} dequantisation)")
    if parts and len(images) >= 4:
        parts = min(parts, len(images))
        print(f"Which part of the uncertainty of the flow is what, from {parts} images:")
        some = images[:parts], None if labels is None else labels[:parts]
        flow_of = eqd.ProbabilityFlow(diffrax.Bosh3(), rtol=tolerance, atol=tolerance)
        options = {"levels": data.levels, "batch_size": batch_size, "progress": True}
        options |= {"dequantise": make[dequantise](data.levels), "flow": flow_of}
        print(eqd.metrics.flow_errors(denoiser, *some, key=jax.random.key(seed + 1), **options))
    print(json.dumps({"bound": bound.value, "flow": flow.value}))


def load_for_data(path: Path, dataset: str | None, image_size: int | None):
    """The model of a run or of a file, and what is known of it and of its data."""
    if path.suffix != ".safetensors":
        if dataset or image_size:
            raise ValueError("--dataset and --image-size are for model files: a run says its own.")
        return load(path)
    denoiser, told = load_file(path)
    if dataset is None:
        raise ValueError(
            f"{path} does not say what it was trained on: write --dataset digits, cifar10, or "
            "folder and --data-dir; or give the folder of its run."
        )
    channels = told["channels"] if dataset == "folder" else None
    source = {"dataset": dataset, "data_dir": None, "image_channels": channels}
    return denoiser, told | source | {"image_size": image_size}


def score(
    denoiser, data, images, labels, *, key, num_terms=64, dequantise=None, tolerance=1e-3, **options
) -> dict[str, eqd.metrics.Mean]:
    """Bits per dimension of images, both ways."""
    bound_key, flow_key = jax.random.split(key)
    given, options = (denoiser, images, labels), {"levels": data.levels} | options
    print("Variational bound:")
    bound = eqd.metrics.bound_bits(*given, num_terms=num_terms, key=bound_key, **options)
    print("Probability flow:")
    # Of low order: a trained network is not smooth in time. See docs/adaptive-solves.md.
    flow = eqd.ProbabilityFlow(diffrax.Bosh3(), rtol=tolerance, atol=tolerance)
    options |= {"dequantise": dequantise, "flow": flow}
    exact = eqd.metrics.flow_bits(*given, key=flow_key, **options)
    return {"variational bound": bound, "probability flow": exact}


def held_out(settings: dict, num: int, data_dir: Path | None = None):
    """The data of a run; held-out images; their labels, `None` if they do not condition it."""
    data = load_data(
        settings["dataset"],
        data_dir or settings["data_dir"],
        settings["image_size"],
        settings["image_channels"],
    )
    expected = settings.get("shape") or [settings["channels"], *data.shape[1:]]
    if [*data.shape] != expected:
        raise ValueError(
            f"The model was trained on images of {expected}, but these are of {[*data.shape]}: "
            "say with --data-dir where its data are."
        )
    classes = settings["num_classes"]
    if classes is not None and classes != data.num_classes:
        raise ValueError(f"The model knows {classes} classes, but the data {data.num_classes}.")
    images, labels = data.held_out(num)
    return data, images, None if classes is None else labels


if __name__ == "__main__":
    eqd.train.command(main)
