"""Bits per dimension and sample quality of a trained denoiser."""

import diffrax
import jax
import numpy as np

import eqdiff as eqd
from eqdiff.data import Dataset
from eqdiff.metrics import Mean, mean


def held_out(data: Dataset, num: int, conditional: bool):
    """The first images of a fixed shuffle of the test set, on the grid; and their labels.

    `None` for the labels if they do not condition the network.
    """
    order = np.random.RandomState(0).permutation(len(data.test))[:num]
    images, labels = data.test.take(order)
    return data.normalise(images), labels.astype(np.int32) if conditional else None


def bound_bits(denoiser, images, labels, *, terms: int, levels: int, key, batch_size: int) -> Mean:
    """The variational bound in bits/dim, from `terms` draws of its steps per image.

    x0 is clipped, as in the official evaluation.
    """
    clipped = eqd.Clip(denoiser)

    def one(image, label, key):
        return eqd.variational_bound(
            clipped,
            image,
            label,
            key=key,
            num_terms=terms,
            levels=levels,
            # One network call then has the shape of the flow's, and what a GPU's compiler finds out
            # about its convolutions serves both.
            chunk=1,
        ).bits

    print("Variational bound:")
    values = eqd.map_examples(one, images, labels, key=key, batch_size=batch_size, progress=True)
    return mean(values)


def flow_bits(
    denoiser, images, labels, *, dequantise, tolerance: float, key, batch_size: int
) -> Mean:
    """The probability flow's bits/dim, one dequantisation and one Hutchinson probe per image."""
    # Of low order: a trained network is not smooth in time. See docs/adaptive-solves.md.
    flow = eqd.ProbabilityFlow(diffrax.Bosh3(), rtol=tolerance, atol=tolerance)

    def one(image, label, key):
        return eqd.bits_per_dim(
            denoiser, image, label, dequantise=dequantise, flow=flow, key=key
        ).bits

    print("Probability flow:")
    values = eqd.map_examples(one, images, labels, key=key, batch_size=batch_size, progress=True)
    return mean(values)


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
    """The variational bound and the probability flow on at most `num` held-out images.

    **Returns:** both, and how many images there were.
    """
    images, labels = held_out(data, num, conditional)
    bound_key, flow_key = jax.random.split(key)
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
    """A class for each of `num` samples, all in turn; `None` if the network is unconditional."""
    return None if num_classes is None else np.arange(num, dtype=np.int32) % num_classes


def draw(denoiser, shape, num: int, *, steps: int, num_classes: int | None, key, progress=True):
    """Samples by ancestral sampling, x0 clipped; of every class in turn, if there are classes."""
    return eqd.generate(
        eqd.Ancestral(steps),
        eqd.Clip(denoiser),
        num,
        shape,
        key=key,
        args=in_turn(num, num_classes),
        batch_size=100,
        progress=progress,
    )


def quality(data: Dataset, samples: np.ndarray, labels: np.ndarray | None) -> dict:
    """Fréchet distance of samples to held-out images, and how many are taken for their class.

    Next to each is the same figure for real images: training images for the distance, held-out
    ones for the class.
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
