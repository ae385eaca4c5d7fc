"""Every metric at once, of features whose figures are known in closed form."""

import json

import numpy as np
import pytest

import eqdiff as eqd


def features(n=400, d=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def test_a_set_compared_with_itself_and_with_one_far_away():
    x = features()
    same, away = eqd.metrics.compare(x, x), eqd.metrics.compare(x, x + 100.0)
    assert same.num == 400 and same.inception_score is None
    np.testing.assert_allclose(same.frechet, 0, atol=1e-9)
    assert same.precision == same.recall == same.coverage == 1
    # Moved, but of the same covariance: the square of the way.
    np.testing.assert_allclose(away.frechet, 6 * 100.0**2, rtol=1e-9)
    assert away.precision == away.recall == away.density == away.coverage == 0
    assert away.kernel.value > same.kernel.value


def test_statistics_have_the_frechet_distance_and_the_inception_score_alone():
    x, p = features(), np.eye(5)[np.arange(400) % 5]
    found = eqd.metrics.compare(eqd.metrics.Moments.of(x), x + 1.0, probabilities=p)
    np.testing.assert_allclose(found.frechet, 6, rtol=1e-9)
    # Certain of each, and all classes alike: as many as there are.
    np.testing.assert_allclose(found.inception_score.value, 5, rtol=1e-12)
    others = (found.kernel, found.precision, found.recall, found.density, found.coverage)
    assert others == (None,) * 5
    assert found.shown() == {"Fréchet distance": "6.000", "inception score": "5 ± 0"}


def test_it_is_plain_and_can_be_shown():
    found = eqd.metrics.compare(features(), features(seed=1))
    assert json.loads(json.dumps(found.plain())) == found.plain()
    assert found.plain()["kernel"]["value"] == found.kernel.value
    assert found.plain()["precision"] == found.precision
    assert list(found.shown())[2:] == ["precision", "recall", "density", "coverage"]


@pytest.mark.parametrize("num_classes", [2, 4])
def test_probabilities_of_a_classifier_are_scikit_learns(num_classes):
    pytest.importorskip("sklearn")
    x = features(300, 8).astype(np.float32)
    y = np.argsort(np.argsort(x[:, 0])) * num_classes // 300
    network = eqd.metrics.ClassifierFeatures(x, y, hidden=(6, 5), max_epochs=5)
    found = network.probabilities(network(x))
    np.testing.assert_allclose(found, network._classifier.predict_proba(x), rtol=1e-5, atol=1e-8)
