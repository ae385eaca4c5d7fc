"""Judges a model, or samples, by papers' metrics: `python examples/evaluate.py RUN_OR_FILE`.

`--help` lists the flags.
"""

import hashlib
import json
import shlex
import shutil
import sys
import warnings
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from likelihood import held_out, score
from sample import classes, load, load_file, make_sampler
from train_cifar import load_data
from tyro.conf import Positional

import eqdiff as eqd


def main(
    what: Positional[Path],
    reference: Path,
    features: Literal["inception", "inception-clean", "efficientnet", "classifier"] | None = None,
    weights: Path | None = None,
    num: int | None = None,
    sampler: Literal["recipe", "ancestral", "ddim", "pc", "heun", "ode", "sde"] = "recipe",
    num_steps: int | None = None,
    bits_images: int = 200,
    neighbours: int = 10,
    batch_size: int = 128,
    seed: int = 0,
    image_size: int | None = None,
    data_dir: Path | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Fréchet distance, KID, inception score, precision, recall, density, coverage and bits/dim.

    Prints a table and notes on it, and writes evaluation.json, the samples, and a picture of some
    beside their nearest reference images. Samples are drawn on all devices; interrupted or killed,
    the same command goes on with those that are missing.

    Args:
        what: folder of a run of train_cifar.py; a model file (.safetensors); or samples, an npz
            file with arr_0 or a folder or zip of images.
        reference: what is real: digits or cifar10 (their training images); an npz file of images
            (arr_0) or of statistics (mu and sigma, for the Fréchet distance alone); a folder or zip
            of images.
        features: the network that looks at images. inception makes the numbers of papers (with
            resizing as in the original FID, ADM and EDM), inception-clean those of clean-FID;
            efficientnet is not FID's network and compares models of one data set without any
            download; classifier is a perceptron trained on the reference's classes. Default:
            classifier for digits, otherwise inception.
        weights: the network's weight file. Default: Inception's is that in the cache, or is
            downloaded; EfficientNet's is that of its package.
        num: how many samples. Default: of a model as many as the reference has, at most 50,000 (the
            number in papers); otherwise all.
        sampler: as in sample.py.
        num_steps: as in sample.py.
        bits_images: held-out images of a model's data that are scored in bits/dim; 0 for none.
        neighbours: samples in the picture; 0 for no picture.
        batch_size: images at once, on all devices together.
        seed: of samples, times and noise.
        image_size: of a model file: the side of its images. Default: that of the reference.
        data_dir: where CIFAR-10 or the data of the run are, if not where training found them.
        out: folder of what is written (default: RUN/evaluation or FILE_evaluation).
        overwrite: replace samples that another model, or other flags, made.
    """
    least = {
        "num": (num, 10),
        "bits_images": (bits_images or None, 2),
        "batch_size": (batch_size, 1),
        "neighbours": (neighbours, 0),
    }
    for flag, (value, expected) in least.items():
        if value is not None and value < expected:
            raise ValueError(f"--{flag.replace('_', '-')} {value}: expected at least {expected}.")
    is_run = (what / "config.json").exists()
    folder = out or (what / "evaluation" if is_run else what.with_name(f"{what.stem}_evaluation"))
    mesh = eqd.train.data_mesh() if jax.device_count() > 1 else None
    options: dict[str, Any] = {"batch_size": batch_size, "mesh": mesh, "progress": True}
    real, bits, sampled, scored = load_reference(reference, data_dir), {}, None, None
    if is_run or what.suffix == ".safetensors":
        denoiser, settings = load(what) if is_run else load_for(real, what, image_size)
        drawn = make_sampler(sampler, settings, denoiser.process, num_steps, 0.0, 1e-2)
        network = make_features(features, weights, real, tuple(settings["shape"]))
        if bits_images and settings["dataset"]:
            scored = held_out(settings, bits_images, data_dir)
        sampled = {"sampler": sampler, "num_steps": num_steps, "seed": seed}
        key, bits_key = jax.random.split(jax.random.key(seed))
        num = num or min(50_000, real.num or 50_000)
        draw(folder / "samples.npz", drawn, denoiser, num, settings, overwrite, key, options)
        images, _ = eqd.metrics.read_samples(folder / "samples.npz")
        if scored:
            bits = score(denoiser, *scored, key=bits_key, **options)
    elif image_size or num_steps:
        raise ValueError("--image-size and --num-steps are for models, not for samples.")
    else:
        images = eqd.metrics.read_samples(what)[0][:num]
        if len(images) < (num or 10):
            raise ValueError(f"{what} holds {len(images)} images, expected {num or 'at least 10'}.")
        network = make_features(features, weights, real, images.shape[1:])
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        columns = measure(network, real, images, folder, neighbours, options)
    notes = [*dict.fromkeys(str(w.message) for w in caught)]
    if real.images is None:
        notes.append("statistics have the Fréchet distance alone: the others need images.")
    if features == "efficientnet":
        notes.append("no published number compares: this is not FID's network.")
    known = {"what": str(what), "num": len(images), "sampled": sampled}
    known["reference"] = {"name": real.name, "num": real.num, "digest": real.digest}
    known["features"] = getattr(network, "name", f"perceptron trained on {real.name}")
    report(folder / "evaluation.json", columns, bits, notes, known)


class Real(NamedTuple):
    """What is real: 8-bit images, or statistics of their features; images held out of them."""

    name: str
    images: np.ndarray | None = None
    labels: np.ndarray | None = None
    moments: eqd.metrics.Moments | None = None
    held_out: np.ndarray | None = None
    num: int | None = None
    digest: str = ""


def load_reference(path: Path, data_dir: Path | None) -> Real:
    moments, spare = None, None
    if str(path) in ("digits", "cifar10"):
        data = load_data(str(path), data_dir if str(path) == "cifar10" else None, None, None)
        levels, labels = data.train.take(np.arange(len(data.train)))
        images, spare = data.to_uint8(data.normalise(levels)), data.to_uint8(data.held_out()[0])
    else:
        stored = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
        if {"mu.npy", "pool_3.npy"} & {*stored}:
            moments = eqd.metrics.read_moments(path)
            if "arr_0.npy" not in stored:
                return Real(str(path), moments=moments, num=moments.num, digest=moments.digest)
        images, labels = eqd.metrics.read_samples(path)
    if len(images) < 10:
        raise ValueError(f"{path} holds {len(images)} images, expected at least 10.")
    digest = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()[:12]
    return Real(str(path), images, labels, moments, spare, len(images), digest)


def load_for(real: Real, path: Path, image_size: int | None):
    """The model of a file, and what a run on the reference's images would say of it."""
    known = real.name in ("digits", "cifar10")
    images = known or not real.name.endswith(".npz")
    dataset = real.name if known else "folder" if images else None
    denoiser, settings = load_file(path)
    size = real.moments and real.moments.size if real.images is None else real.images.shape[2:]
    if image_size:
        size = (image_size, image_size)
    if size is None:
        raise ValueError(
            f"neither {path} nor {real.name} says how large images are: write --image-size 32, or "
            "what it is."
        )
    settings |= {"dataset": dataset, "data_dir": None if known else real.name, "image_size": None}
    settings |= {"image_channels": None, "levels": 17 if real.name == "digits" else 256}
    return denoiser, settings | {"shape": [settings["channels"], *size]}


def make_features(name: str | None, weights: Path | None, real: Real, shape: tuple[int, ...]):
    """The network, for images of such a shape that are compared with these."""
    if real.images is not None and real.images.shape[1:] != shape:
        raise ValueError(
            f"the images to judge are {shape} and those of {real.name} {real.images.shape[1:]} "
            "(channels, height, width), expected the same: resize the reference's."
        )
    name = name or ("classifier" if real.name == "digits" else "inception")
    if name == "classifier":
        if real.images is None or real.labels is None:
            raise ValueError(f"--features classifier: {real.name} has no classes to learn.")
        return eqd.metrics.ClassifierFeatures(eqd.data.normalise(real.images), real.labels)
    metrics = eqd.metrics
    make = {
        "inception": lambda: metrics.inception_v3(weights),
        "inception-clean": lambda: metrics.inception_v3(weights, resize=metrics.PillowBicubic()),
        "efficientnet": lambda: metrics.efficientnet_lite0(weights),
    }
    network = make[name]()
    if (stored := real.moments) is not None:
        width = jax.eval_shape(network, jax.ShapeDtypeStruct(shape, np.uint8)).shape[0]
        here = (width, network.name, shape[1:])
        there = (stored.mean.size, stored.features or here[1], stored.size or here[2])
        if there != here and (real.images is None or there[0] == width):
            raise ValueError(
                f"the statistics of {real.name} are {there}, but these would be {here} (number of "
                "features, their network, size of the images): they do not compare."
            )
    return network


def draw(path, sampler, denoiser, num, settings, overwrite, key, options) -> None:
    """Samples and their classes in a file, those that it has already included."""
    labels = classes(num, None, settings["num_classes"])
    parts = path.with_name(path.name + ".parts")
    if overwrite:
        path.unlink(missing_ok=True)
        shutil.rmtree(parts, ignore_errors=True)
    begun = path.exists() or parts.exists()
    writer = eqd.data.NPZWriter(path, labels=labels, levels=settings["levels"])
    given = num, tuple(settings["shape"])
    options = {"key": key, "args": labels} | options
    try:
        eqd.generate_to(writer, sampler, eqd.Clip(denoiser), *given, **options)
    except ValueError as error:
        again = " Here: write --out for another folder, or --overwrite." if begun else ""
        raise ValueError(f"{error}{again}") from error


def measure(network, real: Real, images, folder, neighbours, options):
    """Metrics of the samples, and of as many held-out real images; the picture of neighbours."""

    def look(pixels):
        if isinstance(network, eqd.metrics.ClassifierFeatures):
            pixels = eqd.data.normalise(pixels)
        return eqd.metrics.extract(network, pixels, **options)

    known: Any = real.moments if real.images is None else look(real.images)
    judged = {"samples": images}
    if real.held_out is not None:
        judged["held-out images"] = real.held_out[: len(images)]
    columns, seen = {}, {name: look(pixels) for name, pixels in judged.items()}
    scores = hasattr(network, "probabilities")
    for name, values in seen.items():
        p = network.probabilities(jnp.asarray(values)) if scores else None
        columns[name] = eqd.metrics.compare(known, values, probabilities=p)
        if real.moments is not None and real.moments.mean.shape == values.shape[1:]:
            own = {"features": getattr(network, "name", None), "size": images.shape[2:]}
            moments = eqd.metrics.Moments.of(values, **own)
            distance = eqd.metrics.frechet_distance(real.moments, moments)
            columns[name] = columns[name]._replace(frechet=distance)
    if real.images is not None and neighbours:
        first = next(iter(seen.values()))[:neighbours]
        nearest, _ = eqd.metrics.nearest_neighbours(first, known, 5)
        rows = [np.concatenate([images[i : i + 1], real.images[n]]) for i, n in enumerate(nearest)]
        picture = folder / "neighbours.png"
        eqd.data.write_grid(picture, np.concatenate(rows), columns=6)
        print(f"{picture}: each row a sample and its nearest images of {real.name}")
    return columns


def report(path, columns, bits, notes, known) -> None:
    """Prints the table and its notes, and writes everything as JSON."""
    rows = [("", *(f"{column.num} {name}" for name, column in columns.items()))]
    for name in dict.fromkeys(n for column in columns.values() for n in column.shown()):
        rows.append((name, *(column.shown().get(name, "") for column in columns.values())))
    rows += [(f"{name}, bits/dim", str(mean)) for name, mean in bits.items()]
    lines = ["".join(f"{cell:28}" for cell in row).rstrip() for row in rows]
    print("\n".join(lines + [f"Note: {note}" for note in notes]))
    result = known | {
        "metrics": {name: column.plain() for name, column in columns.items()},
        "bits": {name: mean._asdict() for name, mean in bits.items()},
        "notes": notes,
        "command": shlex.join(["python", *sys.argv]),
        "versions": {n: version(n) for n in ("eqdiff", "jax", "equinox", "diffrax", "numpy")},
    }
    path.write_text(json.dumps(result, indent=2, default=float) + "\n")
    print(path)


if __name__ == "__main__":
    eqd.train.command(main)
