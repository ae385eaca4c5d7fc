"""Bits per dimension and sample quality of a trained denoiser."""

import diffrax
import equinox as eqx
import jax
import numpy as np
from _run import continuous
from tqdm import tqdm

import eqdiff as eqd
from eqdiff.data import Dataset
from eqdiff.metrics import Mean, mean


def held_out(data: Dataset, num: int, conditional: bool):
    """The first images of a fixed shuffle of the test set, on the grid, and their labels if they condition the network."""
    order = np.random.RandomState(0).permutation(len(data.test))[:num]
    images, labels = data.test.take(order)
    return data.normalise(images), labels.astype(np.int32) if conditional else None


def _each(name: str, function, images, labels, key, batch_size: int) -> np.ndarray:
    """`function(image, label, key)` for every image, in compiled batches under a progress bar."""
    batched = eqx.filter_jit(jax.vmap(function))
    keys = jax.random.split(key, len(images))
    values = []
    with tqdm(total=len(images), desc=name, unit="image") as bar:
        for start in range(0, len(images), batch_size):
            # The last batch is filled up with images from the front, so that one program serves all.
            index = np.arange(start, start + batch_size) % len(images)
            batch = (images[index], None if labels is None else labels[index], keys[index])
            num = min(batch_size, len(images) - start)
            values.append(np.asarray(batched(*batch))[:num])
            bar.update(num)
    return np.concatenate(values)


def bound_bits(denoiser, images, labels, *, terms: int, levels: int, key, batch_size: int) -> Mean:
    """The variational bound in bits/dim, from `terms` draws of its steps per image; x0 is clipped, as in the official evaluation."""
    denoiser = eqd.Clip(denoiser)

    def one(image, label, key):
        return eqd.variational_bound(
            denoiser, image, label, key=key, num_terms=terms, levels=levels
        ).value

    return mean(_each("variational bound", one, images, labels, key, batch_size))


def flow_bits(
    denoiser, images, labels, *, dequantise, tolerance: float, key, batch_size: int
) -> Mean:
    """The probability flow's bits/dim, one dequantisation and one Hutchinson probe per image."""
    flow = continuous(denoiser)

    def one(image, label, key):
        return eqd.bits_per_dim(
            flow,
            image,
            label,
            dequantise=dequantise,
            # Of low order: a trained network is not smooth in time. See docs/adaptive-solves.md.
            solver=diffrax.Bosh3(),
            rtol=tolerance,
            atol=tolerance,
            key=key,
        ).value

    return mean(_each("probability flow", one, images, labels, key, batch_size))


def both_bits(
    denoiser,
    data: Dataset,
    num: int,
    *,
    conditional: bool,
    terms: int,
    dequantise,
    tolerance: float,
    key,
    batch_size: int = 50,
) -> tuple[Mean, Mean, int]:
    """The variational bound and the probability flow on `num` held-out images, and how many there were."""
    images, labels = held_out(data, num, conditional)
    bound_key, flow_key = jax.random.split(key)
    batch_size = min(batch_size, len(images))
    bound = bound_bits(
        denoiser,
        images,
        labels,
        terms=terms,
        levels=data.levels,
        key=bound_key,
        batch_size=batch_size,
    )
    flow = flow_bits(
        denoiser,
        images,
        labels,
        dequantise=dequantise,
        tolerance=tolerance,
        key=flow_key,
        batch_size=batch_size,
    )
    return bound, flow, len(images)


def in_turn(num: int, num_classes: int | None) -> np.ndarray | None:
    """A class for each of `num` samples, all in turn; `None` if the network is not conditional."""
    return None if num_classes is None else np.arange(num, dtype=np.int32) % num_classes


def draw(denoiser, shape, num: int, *, steps: int, num_classes: int | None, key, progress=True):
    """Samples by ancestral sampling, x0 clipped; of every class in turn if the network is conditional."""
    args = in_turn(num, num_classes)
    sampler = eqd.Ancestral(steps)
    return eqd.generate(
        sampler,
        eqd.Clip(denoiser),
        num,
        shape,
        key=key,
        args=args,
        batch_size=100,
        progress=progress,
    )


def quality(data: Dataset, samples: np.ndarray, labels: np.ndarray | None) -> dict:
    """Fréchet distance of samples to held-out images, and how many are taken for the class asked for.

    Beside each, the same figure for real images: training images for the distance, held-out ones for the class.
    """
    (train, train_labels), (test, test_labels) = (
        s.take(np.arange(len(s))) for s in (data.train, data.test)
    )
    train, test = data.normalise(train), data.normalise(test)
    features = eqd.metrics.ClassifierFeatures(train, train_labels)
    # Samples are judged as they are shown: on the grey levels of the data.
    shown = on_grid(samples, data.levels)
    # The distance is biased by the number of images, so that is made the same for all.
    num = min(len(samples), len(test))
    reference = features(test[:num])
    order = np.random.RandomState(0).permutation(len(train))[:num]
    distance = eqd.metrics.frechet_distance
    return {
        "num": num,
        "frechet": {
            "real": distance(reference, features(train[order])),
            "samples": distance(reference, features(shown[:num])),
        },
        "accuracy": {
            "real": features.accuracy(test, test_labels),
            "samples": None if labels is None else features.accuracy(shown, labels),
        },
    }


def on_grid(images: np.ndarray, levels: int) -> np.ndarray:
    """Images rounded to the nearest grey level, still on [-1, 1]."""
    half = (levels - 1) / 2
    return np.rint((np.clip(images, -1, 1) + 1) * half) / half - 1
