"""Every metric of samples against the formulas of the published implementations, and closed forms.

The formulas are written out anew, plainly and without blocks.
"""

import dataclasses

import jaxtyping
import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance

import eqdiff as eqd


metrics = eqd.metrics


@pytest.fixture
def small_blocks(monkeypatch):
    """So that a few images fill several blocks, the last of them in part."""
    monkeypatch.setattr(metrics._neighbours, "_ROWS", 17)
    monkeypatch.setattr(metrics._neighbours, "_COLUMNS", 23)
    monkeypatch.setattr(metrics._kernel, "_BLOCK", 19)


def sets(n=70, m=90, d=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(0.4, 1.3, (m, d))


def published_frechet(mu1, sigma1, mu2, sigma2):
    """TTUR, as clean-fid, pytorch-fid and guided-diffusion have it too."""
    root = np.asarray(scipy.linalg.sqrtm(sigma1.dot(sigma2)))
    assert np.isfinite(root).all()
    return np.sum((mu1 - mu2) ** 2) + np.trace(sigma1 + sigma2 - 2 * np.real(root))


def test_frechet_distance_is_that_of_published_code():
    """With correlated features of very different sizes, from features and from moments alike."""
    rng = np.random.default_rng(0)
    scales = np.logspace(-1.5, 1, 40)
    a = rng.normal(size=(500, 40)) @ (rng.normal(size=(40, 40)) * scales)
    b = 0.1 + rng.normal(size=(400, 40)) @ (rng.normal(size=(40, 40)) * scales)
    pairs = [(f.mean(0), np.cov(f, rowvar=False)) for f in (a, b)]
    truth = published_frechet(*pairs[0], *pairs[1])
    moments = metrics.Moments.of(b)
    for one, other in [(a, b), (a, pairs[1]), (moments, a), (pairs[0], moments)]:
        np.testing.assert_allclose(metrics.frechet_distance(one, other), truth, rtol=1e-8)


@pytest.mark.parametrize("num", [5, 20])
def test_frechet_distance_of_fewer_images_than_features(num):
    """Features in a subspace have the distance of their coordinates there, where nothing is rank
    deficient; what published code adds to the diagonal is not needed."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(60, 4)))
    a, b = rng.normal(size=(num, 4)), rng.normal(1, 2, (30, 4))
    truth = published_frechet(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))
    with pytest.warns(UserWarning, match="images are too few .* of 60 features") as warned:
        found = metrics.frechet_distance(a @ basis.T, b @ basis.T)
    assert [str(w.message).split()[1] for w in warned] == [str(num), "30"]
    np.testing.assert_allclose(found, truth, rtol=1e-6)


def test_remarks_on_a_frechet_distance():
    a, b = (metrics.Moments.of(x, features="a", size=(8, 8)) for x in sets())
    assert metrics.frechet_distance(a, b) > 0  # Nothing to say, and warnings are errors here.
    replaced = dataclasses.replace
    with pytest.warns(UserWarning, match=r"different sizes, \(8, 8\) and \(16, 16\)"):
        metrics.frechet_distance(a, replaced(b, size=(16, 16)))
    with pytest.raises(ValueError, match="different feature networks, a and b"):
        metrics.frechet_distance(a, replaced(b, features="b"))
    with pytest.raises(ValueError, match="at least 2 images in each set, got 1"):
        metrics.frechet_distance(a, metrics.Moments.of(np.zeros((1, 6))))
    # Unknown is no contradiction.
    metrics.frechet_distance(a, replaced(b, features=None, size=None))


def published_kernel(x, y):
    """clean-fid's `kernel_distance` for one subset, of as many images each."""
    m, d = x.shape
    a = (x @ x.T / d + 1) ** 3 + (y @ y.T / d + 1) ** 3
    b = (x @ y.T / d + 1) ** 3
    return ((a.sum() - np.diag(a).sum()) / (m - 1) - b.sum() * 2 / m) / m


def test_kernel_distance_is_that_of_published_code(small_blocks):
    x, y = sets(90, 90)
    truth = published_kernel(x, y)
    for size in (None, 90, 1000):
        np.testing.assert_allclose(
            metrics.kernel_distance(x, y, subset_size=size).value, truth, rtol=1e-10
        )
    # Of subsets, in the order in which they are drawn.
    rng = np.random.default_rng(3)
    drawn = [
        published_kernel(x[rng.choice(90, 20, False)], y[rng.choice(90, 20, False)])
        for _ in range(40)
    ]
    found = metrics.kernel_distance(x, y, num_subsets=40, subset_size=20, seed=3)
    np.testing.assert_allclose(found.value, np.mean(drawn), rtol=1e-10)
    np.testing.assert_allclose(found.stderr * np.sqrt(40), np.std(drawn, ddof=1), rtol=1e-10)


def test_kernel_distance_of_gaussians():
    """One feature of N(a, s²): k = (xy + 1)³, so MMD² = Σ C(3, p) (E xᵖ − E yᵖ)²."""
    a, s, b, r = 0.3, 1.0, 0.6, 1.2
    moments = [(m, m**2 + v**2, m**3 + 3 * m * v**2) for m, v in ((a, s), (b, r))]
    truth = sum(c * (p - q) ** 2 for c, p, q in zip((3, 3, 1), *moments, strict=True))
    rng = np.random.default_rng(0)
    found = [
        metrics.kernel_distance(
            rng.normal(a, s, (60, 1)), rng.normal(b, r, (50, 1)), subset_size=None
        )
        for _ in range(600)
    ]
    values, errors = np.array([f.value for f in found]), np.array([f.stderr for f in found])
    average = metrics.mean(values)
    assert abs(average.value - truth) < 4 * average.stderr
    # The quoted standard error is that of the draws.
    assert 0.9 < np.sqrt(np.mean(errors**2)) / values.std(ddof=1) < 1.25


def test_inception_score_is_that_of_published_code():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(7, 0.3), 103)
    scores = []
    for i in range(10):
        part = p[i * 103 // 10 : (i + 1) * 103 // 10]
        kl = part * (np.log(part) - np.log(np.expand_dims(np.mean(part, 0), 0)))
        scores.append(np.exp(np.mean(np.sum(kl, 1))))
    found = metrics.inception_score(p)
    np.testing.assert_allclose(found.value, np.mean(scores), rtol=1e-12)
    np.testing.assert_allclose(found.stderr * 3, np.std(scores), rtol=1e-10)


def test_inception_score_at_its_limits(monkeypatch):
    """As many as there are classes if sharp and varied, 1 if always the same."""
    certain = np.tile(np.eye(4), (30, 1))
    np.testing.assert_allclose(metrics.inception_score(certain, splits=3).value, 4)
    same = np.tile([0.1, 0.9, 0.0], (20, 1))
    np.testing.assert_allclose(metrics.inception_score(same).value, 1)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="at least 10 samples"):
        metrics.inception_score(same[:9])
    with pytest.raises(ValueError, match="softmax first"):
        metrics.inception_score(np.log(certain[:, :2] + 2))


def published_balls(x, k):
    distances = scipy.spatial.distance.cdist(x, x)
    return np.sort(distances, axis=1)[:, k]


@pytest.mark.parametrize("k", [1, 3, 5])
def test_neighbours_are_those_of_published_code(small_blocks, k):
    """Kynkäänniemi et al.'s precision and recall; Naeem et al.'s density and coverage."""
    real, fake = sets(70, 90, 3)
    between = scipy.spatial.distance.cdist(real, fake)
    real_radii, fake_radii = published_balls(real, k), published_balls(fake, k)
    found = metrics.precision_recall(real, fake, k=k)
    precision = (between <= real_radii[:, None]).any(axis=0).mean()
    recall = (between <= fake_radii[None, :]).any(axis=1).mean()
    assert found == (precision, recall) and 0.3 < found.precision < 1
    found = metrics.density_coverage(real, fake, k=k)
    density = (between < real_radii[:, None]).sum(axis=0).mean() / k
    np.testing.assert_allclose(found.density, density, rtol=1e-14)
    assert found.coverage == (between.min(axis=1) < real_radii).mean()
    indices, distances = metrics.nearest_neighbours(real, fake, k)
    np.testing.assert_array_equal(indices, np.argsort(between, axis=1)[:, :k])
    np.testing.assert_allclose(distances, np.sort(between, axis=1)[:, :k], rtol=1e-9)


def test_density_and_coverage_of_one_distribution():
    """Expected to be 1 and 1 − 2⁻ᵏ (Naeem et al. 2020, lemma 2), exactly so for equally many."""
    rng = np.random.default_rng(0)
    n, k = 200, 3
    found = np.array(
        [metrics.density_coverage(*rng.normal(size=(2, n, 3)), k=k) for _ in range(40)]
    )
    # P(no sample among the first k of 2n − 1 neighbours).
    coverage = 1 - np.prod([(n - 1 - i) / (2 * n - 1 - i) for i in range(k)])
    for values, truth in zip(found.T, (1, coverage), strict=True):
        average = metrics.mean(values)
        assert abs(average.value - truth) < 4 * average.stderr, (average, truth)


def test_samples_learned_by_heart_and_samples_of_one_mode():
    real = np.random.default_rng(0).normal(size=(100, 4))
    assert metrics.precision_recall(real, real) == (1, 1)
    one_mode = real[0] + 1e-3 * np.random.default_rng(1).normal(size=(100, 4))
    found = metrics.precision_recall(real, one_mode)
    assert found.precision == 1 and found.recall <= 0.01
    assert metrics.density_coverage(real, one_mode).coverage < 0.2
    indices, distances = metrics.nearest_neighbours(real, real)
    np.testing.assert_array_equal(indices[:, 0], np.arange(100))
    assert distances.max() < 1e-6


@pytest.mark.parametrize(
    "metric",
    ["kernel_distance", "precision_recall", "density_coverage", "nearest_neighbours"],
)
def test_features_that_do_not_go_together(metric, monkeypatch):
    metric = getattr(metrics, metric)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    x = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(ValueError, match=r"of equal width, got \(20, 3\) and \(20, 2\)"):
        metric(x, x[:, :2])
    with pytest.raises(ValueError, match="images, got 0 and 20"):
        metric(x[:0], x)
    with pytest.raises(ValueError, match="not all finite"):
        metric(x, np.full((20, 3), np.inf))
