"""The closed-form denoisers against SciPy, autodiff and quadrature: everything else is tested
against them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import eqdiff as eqd


WEIGHTS = np.array([0.2, 0.5, 0.3])
MEANS = np.array([[0.5, -1.0], [2.0, 0.3], [-1.0, 1.0]])
COVARIANCES = np.array(
    [[[0.5, 0.3], [0.3, 0.4]], [[0.1, 0.0], [0.0, 0.2]], [[1.0, -0.6], [-0.6, 0.8]]]
)
SCHEDULE = eqd.cosine_schedule(100)
CASES = {
    "vp": (eqd.VPSDE(), (1e-3, 0.2, 1.0)),
    "sub_vp": (eqd.SubVPSDE(), (0.02, 0.2, 1.0)),
    "ve": (eqd.VESDE(), (1e-3, 0.5, 1.0)),
    "schedule": (SCHEDULE, (0, 40, 99)),
    "between": (SCHEDULE, (0.0, 40.5, 98.0)),
}


def mixture(process) -> eqd.GaussianMixtureDenoiser:
    # Unnormalised on purpose.
    return eqd.GaussianMixtureDenoiser(process, 7 * WEIGHTS, MEANS, COVARIANCES)


def scipy_log_prob(alpha: float, sigma: float, x: np.ndarray) -> float:
    return np.log(
        sum(
            w * stats.multivariate_normal(alpha * m, alpha**2 * c + sigma**2 * np.eye(2)).pdf(x)
            for w, m, c in zip(WEIGHTS, MEANS, COVARIANCES, strict=True)
        )
    )


@pytest.mark.parametrize("name", CASES)
def test_mixture_log_prob_is_scipys(name, getkey, x64):
    process, times = CASES[name]
    denoiser = mixture(process)
    for t in times:
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        x = alpha * MEANS[1] + (alpha + sigma) * np.array([0.4, -0.7])
        expected = scipy_log_prob(alpha, sigma, x)
        np.testing.assert_allclose(denoiser.log_prob(t, jnp.asarray(x)), expected, rtol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_mixture_is_the_gradient_of_its_log_prob_and_adds_up(name, getkey, x64):
    process, times = CASES[name]
    denoiser = mixture(process)

    @jax.jit
    def evaluate(t, x):
        gradient = jax.grad(lambda y: denoiser.log_prob(t, y))(x)
        return denoiser(t, x), eqd.score(denoiser, t, x), gradient

    for t in times:
        alpha, sigma = process.alpha(t), process.sigma(t)
        x = alpha * jnp.asarray(MEANS[0]) + (alpha + sigma) * jax.random.normal(getkey(), (2,))
        estimate, score, gradient = evaluate(t, x)
        np.testing.assert_allclose(score, gradient, rtol=1e-8)
        np.testing.assert_allclose(alpha * estimate.x0 + sigma * estimate.noise, x, rtol=1e-11)


def test_mixture_posterior_mean_by_quadrature(x64):
    """x̂0 = E[x0|x] in one dimension, by summing over a fine grid of x0."""
    process, t, x = eqd.VPSDE(), 0.3, 0.4
    denoiser = eqd.GaussianMixtureDenoiser(
        process,
        np.array([0.3, 0.7]),
        np.array([[-1.0], [0.8]]),
        np.array([[[0.2]], [[0.05]]]),
    )
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    x0 = np.linspace(-6, 6, 20001)
    density = 0.3 * stats.norm(-1, 0.2**0.5).pdf(x0) + 0.7 * stats.norm(0.8, 0.05**0.5).pdf(x0)
    posterior = density * stats.norm(alpha * x0, sigma).pdf(x)
    expected = np.sum(posterior * x0) / np.sum(posterior)
    np.testing.assert_allclose(denoiser(t, jnp.array([x])).x0[0], expected, rtol=1e-10)


def test_mixture_of_points_is_a_weighted_mean(x64):
    """A finite data set: zero covariances, responsibilities by hand."""
    process, t = eqd.VESDE(), 0.4
    points = np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]])
    denoiser = eqd.GaussianMixtureDenoiser(process, WEIGHTS, points, np.zeros((3, 2, 2)))
    x, sigma = np.array([0.3, 0.9]), float(process.sigma(t))
    r = WEIGHTS * np.exp(-np.sum((x - points) ** 2, axis=1) / (2 * sigma**2))
    np.testing.assert_allclose(denoiser(t, jnp.asarray(x)).x0, r @ points / r.sum(), rtol=1e-10)


def test_data_log_prob_is_scipys(x64):
    x = np.array([0.2, 0.1])
    expected = scipy_log_prob(1.0, 0.0, x)
    np.testing.assert_allclose(
        mixture(eqd.VPSDE()).data_log_prob(jnp.asarray(x)), expected, rtol=1e-9
    )


def test_data_sample_moments():
    draw = jax.jit(jax.vmap(lambda k: mixture(eqd.VPSDE()).data_sample(key=k)))
    samples = np.asarray(draw(jax.random.split(jax.random.key(3), 8000)), np.float64)
    mean = WEIGHTS @ MEANS
    second = np.einsum("k,kij->ij", WEIGHTS, COVARIANCES + MEANS[:, :, None] * MEANS[:, None])
    covariance = second - np.outer(mean, mean)
    deviation = samples - mean
    stderr = np.sqrt(np.diag(covariance) / len(samples))
    assert np.all(np.abs(samples.mean(0) - mean) < 4 * stderr)
    products = deviation[:, :, None] * deviation[:, None]
    stderr = products.std(0) / np.sqrt(len(samples))
    assert np.all(np.abs(products.mean(0) - covariance) < 4 * stderr)


def test_singular_covariance_stays_on_its_line(getkey):
    direction = np.array([3.0, 1.0, -2.0])
    mean = np.array([[1.0, 2.0, 3.0]])
    denoiser = eqd.GaussianMixtureDenoiser(
        eqd.VPSDE(), np.ones(1), mean, np.outer(direction, direction)[None]
    )
    sample = np.asarray(denoiser.data_sample(key=getkey())) - mean[0]
    np.testing.assert_allclose(np.cross(sample, direction), 0, atol=2e-5)
    # Far from the line, the estimate still lies on it.
    x0 = np.asarray(denoiser(0.1, jnp.array([5.0, -5.0, 5.0])).x0) - mean[0]
    assert np.all(np.isfinite(x0))
    np.testing.assert_allclose(np.cross(x0, direction), 0, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_gaussian_is_a_mixture_of_one(name, getkey, x64):
    process, times = CASES[name]
    mean, std = np.array([0.5, -2.0, 0.1]), np.array([0.3, 1.5, 1.0])
    gaussian = eqd.GaussianDenoiser(process, mean, std)
    one = eqd.GaussianMixtureDenoiser(process, np.ones(1), mean[None], np.diag(std**2)[None])
    for t in times:
        x = 2 * jax.random.normal(getkey(), (3,))
        ours, theirs = gaussian(t, x), one(t, x)
        np.testing.assert_allclose(ours.x0, theirs.x0, rtol=1e-9)
        np.testing.assert_allclose(ours.noise, theirs.noise, rtol=1e-9)
        np.testing.assert_allclose(gaussian.log_prob(t, x), one.log_prob(t, x), rtol=1e-9)


def test_gaussian_takes_any_shape_and_one_number(getkey, x64):
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE(), 0.5, 0.25)
    x = jax.random.normal(getkey(), (3, 4, 4))
    gradient = jax.grad(lambda y: denoiser.log_prob(0.3, y))(x)
    assert denoiser(0.3, x).x0.shape == (3, 4, 4)
    np.testing.assert_allclose(eqd.score(denoiser, 0.3, x), gradient, rtol=1e-9)
    alpha, sigma = float(denoiser.process.alpha(0.3)), float(denoiser.process.sigma(0.3))
    expected = stats.norm(0.5 * alpha, np.hypot(0.25 * alpha, sigma)).logpdf(np.asarray(x)).sum()
    np.testing.assert_allclose(denoiser.log_prob(0.3, x), expected, rtol=1e-10)


@pytest.mark.parametrize(
    "denoiser", [mixture(eqd.VPSDE()), eqd.GaussianDenoiser(eqd.VPSDE(), MEANS[0], 0.5)]
)
def test_oracles_work_in_the_precision_of_x(denoiser):
    x = jnp.zeros(2, jnp.float32)
    estimate = denoiser(0.3, x)
    assert estimate.x0.dtype == estimate.noise.dtype == jnp.float32
    assert denoiser.log_prob(0.3, x).dtype == jnp.float32


def test_sub_vp_near_the_data_keeps_its_digits():
    """σ = 1e-6 at t = 1e-5: in float32 x̂0 of a broad Gaussian is still x/α."""
    process = eqd.SubVPSDE()
    denoiser = eqd.GaussianDenoiser(process, 0.0, 1.0)
    x = jnp.array([0.3, -0.7], jnp.float32)
    np.testing.assert_allclose(denoiser(1e-5, x).x0, x, rtol=2e-6)
    np.testing.assert_allclose(denoiser(1e-5, x).noise, process.sigma(1e-5) * x, rtol=2e-5)


def mixture_of(weights, means, covariances):
    return lambda: eqd.GaussianMixtureDenoiser(eqd.VPSDE(), weights, means, covariances)


REFUSED = [
    (mixture_of(np.ones(1), MEANS, COVARIANCES), r"do not fit; expected \(K,\), \(K, dim\)"),
    (mixture_of(WEIGHTS, MEANS, COVARIANCES[0]), "do not fit"),
    (mixture_of(WEIGHTS, MEANS, COVARIANCES - 0.5 * np.eye(2)), "positive semi-definite"),
    (mixture_of(np.array([0.5, 0.5, 0.0]), MEANS, COVARIANCES), "weights must be positive"),
]


@pytest.mark.parametrize(("make", "match"), REFUSED)
def test_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def _measured(x):
    return jnp.stack([x[0] - 2 * x[1]]) + 0.3


def test_evidence_and_posterior_by_quadrature(x64):
    """p(y) = ∫ p(y|x0)p(x0), and p(x0|y) = p(y|x0)p(x0)/p(y) at any x0."""
    prior = mixture(eqd.VPSDE())
    grid = np.linspace(-7, 7, 701)
    points = jnp.asarray(np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2))
    x0 = jnp.asarray([0.4, -0.6])
    for noise in (0.4, eqd.CorrelatedNoise(np.array([[0.3, 0.2]]))):
        measurement = eqd.Measurement(np.array([1.1]), _measured, noise)
        joint = jax.jit(
            jax.vmap(lambda x: measurement.log_prob(x) + prior.data_log_prob(x))  # noqa: B023
        )(points)
        evidence = prior.log_evidence(measurement)
        truth = np.log(np.sum(np.exp(joint))) + 2 * np.log(grid[1] - grid[0])
        np.testing.assert_allclose(evidence, truth, atol=1e-6)
        bayes = measurement.log_prob(x0) + prior.data_log_prob(x0) - evidence
        posterior = prior.posterior(measurement)
        np.testing.assert_allclose(posterior.data_log_prob(x0), bayes, atol=1e-8)


def test_a_posterior_without_noise_or_far_away(x64):
    """A line that is known exactly, and a measurement that all but one component rule out."""
    prior = mixture(eqd.VPSDE())
    exact = prior.posterior(eqd.Measurement(np.array([1.1]), _measured, 0.0))
    draws = jax.vmap(lambda key: exact.data_sample(key=key))(jax.random.split(jax.random.key(0), 9))
    np.testing.assert_allclose(draws[:, 0] - 2 * draws[:, 1] + 0.3, 1.1, atol=1e-6)
    far = prior.posterior(eqd.Measurement(np.array([80.0, 0.0]), lambda x: x, 0.01))
    assert np.all(np.isfinite(far(0.5, jnp.asarray([79.0, 0.0])).x0))


@pytest.mark.parametrize(
    ("operator", "noise", "match"),
    [
        (lambda x: x**2, 0.1, "not linear"),
        (lambda x: x, eqd.PoissonNoise(1.0), "no closed form"),
        (lambda x: jnp.stack([x[0], x[0]]), 0.0, "singular"),
        (lambda x: x[:1], 0.1, r"GaussianMixtureDenoiser: .* but y has \(2,\)"),
    ],
)
def test_measurements_without_a_closed_form(operator, noise, match):
    with pytest.raises(ValueError, match=match):
        mixture(eqd.VPSDE()).log_evidence(eqd.Measurement(np.zeros(2), operator, noise))
