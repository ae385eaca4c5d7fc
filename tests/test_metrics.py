"""Scores of samples against closed forms, and against what must spoil them."""

import jaxtyping
import numpy as np
import pytest

import eqdiff as eqd


@pytest.fixture(scope="module")
def digits():
    data = eqd.data.digits()
    images, labels = data.train.take(np.arange(len(data.train)))
    held_out, held_labels = data.test.take(np.arange(len(data.test)))
    return data.normalise(images), labels, data.normalise(held_out), held_labels


def _gaussian(rng, n, mean, root):
    """Features whose sample mean and covariance are exactly those asked for."""
    z = rng.standard_normal((n, len(mean)))
    z -= z.mean(axis=0)
    z = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z, rowvar=False))).T
    return z @ root + mean


def test_frechet_distance_of_commuting_gaussians():
    """With a common eigenbasis d² = ‖Δμ‖² + Σ(√λ₁ − √λ₂)²."""
    rng = np.random.RandomState(0)
    basis, _ = np.linalg.qr(rng.standard_normal((5, 5)))
    std1, std2 = rng.uniform(0.2, 2, (2, 5))
    mean1, mean2 = rng.standard_normal((2, 5))
    f1, f2 = (
        _gaussian(rng, 40, m, (basis * s) @ basis.T) for m, s in ((mean1, std1), (mean2, std2))
    )
    truth = np.sum((mean1 - mean2) ** 2) + np.sum((std1 - std2) ** 2)
    np.testing.assert_allclose(eqd.metrics.frechet_distance(f1, f2), truth, rtol=1e-10)
    assert eqd.metrics.frechet_distance(f1, f1) < 1e-10


def test_frechet_distance_of_two_gaussians_in_the_plane():
    """In two dimensions tr √M = √(tr M + 2√det M), with M = C₁C₂; also symmetric, and blind to rotations."""
    rng = np.random.RandomState(1)
    roots = rng.standard_normal((2, 2, 2))
    f1, f2 = (_gaussian(rng, 30, np.zeros(2), r) for r in roots)
    c1, c2 = (np.cov(f, rowvar=False) for f in (f1, f2))
    root_trace = np.sqrt(np.trace(c1 @ c2) + 2 * np.sqrt(np.linalg.det(c1 @ c2)))
    truth = np.trace(c1) + np.trace(c2) - 2 * root_trace
    distance = eqd.metrics.frechet_distance
    np.testing.assert_allclose(distance(f1, f2), truth, rtol=1e-9)
    rotation, _ = np.linalg.qr(rng.standard_normal((2, 2)))
    np.testing.assert_allclose(distance(f2 @ rotation, f1 @ rotation), truth, rtol=1e-9)


def test_frechet_distance_of_one_feature_and_of_few_images():
    f1, f2 = np.array([[0.0], [2.0]]), np.array([[1.0], [5.0]])
    # Means 1 and 3; standard deviations √2 and √8.
    np.testing.assert_allclose(eqd.metrics.frechet_distance(f1, f2), 4 + 2, rtol=1e-12)
    few = np.random.RandomState(0).standard_normal((3, 10))
    assert eqd.metrics.frechet_distance(few, few) < 1e-10


@pytest.mark.parametrize(
    "shapes", [((4, 3), (4, 2)), ((1, 3), (4, 3)), ((4,), (4,))], ids=["width", "one image", "flat"]
)
def test_features_that_have_no_distance(shapes, monkeypatch):
    # Users run without the type checker that would speak first here.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"equal width and at least 2 images"):
        eqd.metrics.frechet_distance(*(np.zeros(s) for s in shapes))
    with pytest.raises(ValueError, match="not all finite"):
        eqd.metrics.frechet_distance(np.full((4, 3), np.nan), np.zeros((4, 3)))


@pytest.mark.slow
def test_noise_and_missing_classes_are_far_from_digits(digits):
    images, labels, held_out, held_labels = digits
    features = eqd.metrics.ClassifierFeatures(images, labels)
    assert features.accuracy(held_out, held_labels) > 0.93
    real = features(held_out)
    assert real.shape == (300, 32)

    def distance(other):
        return eqd.metrics.frechet_distance(real, features(other))

    rng = np.random.RandomState(0)
    same = distance(images[rng.permutation(len(images))[:300]])
    noisy = distance(np.clip(held_out + 0.3 * rng.standard_normal(held_out.shape), -1, 1))
    noisier = distance(np.clip(held_out + 0.6 * rng.standard_normal(held_out.shape), -1, 1))
    halved = distance(held_out[held_labels < 5])
    assert same < 0.5 * noisy < 0.5 * noisier and same < 0.25 * halved
    again = eqd.metrics.ClassifierFeatures(images, labels)
    np.testing.assert_array_equal(again(held_out), real)


def test_one_class_is_no_classifier():
    with pytest.raises(ValueError, match="at least two classes, got one"):
        eqd.metrics.ClassifierFeatures(np.zeros((4, 1, 2, 2)), np.zeros(4, int))
