"""Scores against closed forms, and against what must spoil them."""

import jax.numpy as jnp
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
    """In two dimensions tr √M = √(tr M + 2√det M) with M = C₁C₂; symmetric, blind to rotations."""
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
    with pytest.warns(UserWarning, match="3 images are too few for a covariance of full rank"):
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


def test_ctrl_c_while_it_is_trained_is_not_swallowed(monkeypatch):
    """scikit-learn catches it, warns, and goes on with what it has."""
    from sklearn.neural_network import _multilayer_perceptron as module

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "gen_batches", stop)
    with pytest.raises(KeyboardInterrupt):
        eqd.metrics.ClassifierFeatures(np.eye(4), np.arange(4) % 2, max_epochs=2)


def test_one_class_is_no_classifier():
    with pytest.raises(ValueError, match="at least two classes, got one"):
        eqd.metrics.ClassifierFeatures(np.zeros((4, 1, 2, 2)), np.zeros(4, int))


def test_mean_and_standard_error():
    """Of 1, …, n: (n + 1)/2 ± √((n + 1)/12), since their variance is n(n + 1)/12."""
    n = 11
    values = np.random.RandomState(0).permutation(np.arange(1, n + 1))
    result = eqd.metrics.mean(values)
    assert (result.num, result.num_nonfinite, str(result)) == (n, 0, "6.000 ± 1.000")
    np.testing.assert_allclose(np.stack(result[:2]), [6, 1], rtol=1e-14)


def test_mean_of_arrays_of_any_type():
    """Along the leading axis only, in float64 whatever the values are; booleans are a share."""
    columns = np.stack([np.arange(1, 12), 3 * np.arange(1, 12) + 1e6], axis=1).astype(np.float32)
    for values in (columns, jnp.asarray(columns)):
        result = eqd.metrics.mean(values)
        np.testing.assert_allclose(result.value, [6, 18 + 1e6], rtol=1e-14)
        np.testing.assert_allclose(result.stderr, [1, 3], rtol=1e-9)
    # A share p of n has the standard error √(p(1 − p)/(n − 1)).
    share = eqd.metrics.mean(jnp.arange(17) < 4)
    p = 4 / 17
    np.testing.assert_allclose(np.stack(share[:2]), [p, np.sqrt(p * (1 - p) / 16)])


def test_standard_error_covers_the_truth():
    """Of 2,000 means of 50 normal draws, P(|t₄₉| < 2) = 94.9 % lie within two standard errors."""
    draws = np.random.RandomState(0).standard_normal((50, 2000)) + 3
    result = eqd.metrics.mean(draws)
    within = eqd.metrics.mean(np.abs(result.value - 3) < 2 * result.stderr)
    assert abs(within.value - 0.949) < 4 * within.stderr


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_mean_does_not_hide_what_is_not_finite(bad):
    values = np.ones((10, 2))
    values[3, 0] = values[3, 1] = values[7, 1] = bad
    result = eqd.metrics.mean(values[:, 1])
    assert (result.num, result.num_nonfinite) == (10, 2)
    np.testing.assert_array_equal(np.stack(result[:2]), [bad, np.nan])
    assert str(result) == f"{bad} ± nan (2 of 10 are not finite)"
    assert eqd.metrics.mean(values).num_nonfinite == 2


def test_mean_of_one_and_of_none(monkeypatch):
    assert np.isnan(eqd.metrics.mean(np.ones(1)).stderr)
    # As above.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for values in (np.zeros((0, 3)), np.asarray(1.0)):
        with pytest.raises(ValueError, match="at least one example"):
            eqd.metrics.mean(values)
