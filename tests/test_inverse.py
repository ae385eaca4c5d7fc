"""Inverse problems against exact posteriors."""

import diffrax
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


MEAN = np.array([0.5, -1.0, 0.3])
COVARIANCE = np.array([[0.9, 0.4, -0.2], [0.4, 0.6, 0.1], [-0.2, 0.1, 0.8]])
A = np.array([[1.0, 0.5, 0.0], [0.0, -1.0, 2.0]])
Y = np.array([0.2, 1.4])
STD = np.array([0.3, 0.1])
X = np.array([0.7, -1.3, 0.4])
CASES = {
    "vp": (eqd.VPSDE(), (0.01, 0.3, 0.9)),
    "sub_vp": (eqd.SubVPSDE(), (0.1, 0.4, 0.9)),
    "ve": (eqd.VESDE(), (0.1, 0.5, 0.9)),
    "schedule": (eqd.cosine_schedule(100), (0, 40, 95)),
    "between": (eqd.cosine_schedule(100), (0.5, 40.5, 95.5)),
}


def measure(x):
    return jnp.asarray(A, x.dtype) @ x


def prior(process):
    return eqd.GaussianMixtureDenoiser(process, np.ones(1), MEAN[None], COVARIANCE[None])


def posterior_moments(mean, covariance, y=Y, std=STD):
    """Of x given Ax + std n = y: the textbook's Kalman update."""
    gain = covariance @ A.T @ np.linalg.inv(A @ covariance @ A.T + np.diag(std**2))
    return mean + gain @ (y - A @ mean), covariance - gain @ A @ covariance


def posterior(process):
    """The exact denoiser of the data given the measurement."""
    mean, covariance = posterior_moments(MEAN, COVARIANCE)
    return eqd.GaussianMixtureDenoiser(process, np.ones(1), mean[None], covariance[None])


def guided(process, **kwargs):
    return eqd.PosteriorGuidance(prior(process), eqd.Measurement(Y, measure, STD), **kwargs)


@pytest.mark.parametrize("case", CASES)
def test_tweedies_covariance_is_exact_for_gaussian_data(case):
    """At every noise level the posterior mean in closed form, and x = αx̂0 + σε̂."""
    process, times = CASES[case]
    x = jnp.asarray(X, float)
    double = x.dtype == jnp.float64
    ours = quick_jit(lambda t: guided(process)(t, x))
    for t in times:
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        # p(x0|x_t) of Gaussian data, and then the measurement.
        precision = np.linalg.inv(COVARIANCE) + alpha**2 / sigma**2 * np.eye(3)
        spread = np.linalg.inv(precision)
        mean = spread @ (np.linalg.solve(COVARIANCE, MEAN) + alpha / sigma**2 * X)
        expected, _ = posterior_moments(mean, spread)
        estimate = ours(jnp.asarray(t))
        np.testing.assert_allclose(estimate.x0, expected, rtol=0, atol=1e-8 if double else 2e-3)
        tolerance = 1e-12 if double else 2e-5
        back = alpha * estimate.x0 + sigma * estimate.noise
        np.testing.assert_allclose(back, X, rtol=0, atol=tolerance * max(sigma, 1))


@pytest.mark.parametrize("std", [0.3, 0.0])
def test_isotropic_covariance_is_exact_for_isotropic_data(std, x64):
    """ΠGDM, with and without measurement noise: rows of A of different lengths, not orthogonal."""
    process, data = eqd.VPSDE(), 0.7
    denoiser = eqd.GaussianDenoiser(process, MEAN, data)
    covariance = eqd.IsotropicCovariance(data)
    measurement = eqd.Measurement(Y, measure, std)
    ours = eqd.PosteriorGuidance(denoiser, measurement, covariance=covariance)
    run = quick_jit(lambda t: ours(t, jnp.asarray(X)).x0)
    for t in (0.2, 0.8):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        spread = data**2 * sigma**2 / (alpha**2 * data**2 + sigma**2)
        mean = MEAN + alpha * data**2 / (alpha**2 * data**2 + sigma**2) * (X - alpha * MEAN)
        expected, _ = posterior_moments(mean, spread * np.eye(3), std=np.full(2, std))
        np.testing.assert_allclose(run(t), expected, rtol=1e-9)


def test_zero_covariance_is_classifier_guidance_by_the_estimate(x64):
    """DPS: the gradient of log N(y; A x̂0(x), σ_y²), by autodiff of the whole expression."""
    process = eqd.VPSDE()
    denoiser = eqd.GaussianMixtureDenoiser(
        process,
        np.array([0.4, 0.6]),
        np.stack([MEAN, -MEAN]),
        np.stack([COVARIANCE, 0.5 * np.eye(3)]),
    )

    def log_prob(t, x, args):
        return -0.5 * jnp.sum(((Y - measure(denoiser(t, x).x0)) / STD) ** 2)

    measurement = eqd.Measurement(Y, measure, STD)
    ours = eqd.PosteriorGuidance(denoiser, measurement, covariance=eqd.ZeroCovariance())
    expected = eqd.ClassifierGuidance(denoiser, log_prob)
    run = quick_jit(lambda t: (ours(t, jnp.asarray(X)), expected(t, jnp.asarray(X))))
    for t in (0.1, 0.7):
        a, b = run(t)
        np.testing.assert_allclose(a.x0, b.x0, rtol=1e-9)
        np.testing.assert_allclose(a.noise, b.noise, rtol=1e-9)


@pytest.mark.slow
def test_probability_flow_has_the_posteriors_moments(x64):
    """The flow of Gaussian data is affine in the prior noise, so its moments need no samples."""
    sampler = eqd.ProbabilityFlow(diffrax.Heun(), num_steps=60)
    draw = quick_jit(jax.vmap(lambda x1: sampler(guided(eqd.VPSDE(t0=1e-3)), x1)))
    offset, *columns = draw(jnp.concatenate([jnp.zeros((1, 3)), jnp.eye(3)]))
    slope = np.stack(columns, axis=1) - offset[:, None]
    mean, covariance = posterior_moments(MEAN, COVARIANCE)
    # What is left is the prior's mismatch at t1 and the solver's steps.
    np.testing.assert_allclose(offset, mean, atol=0.01)
    np.testing.assert_allclose(slope @ slope.T, covariance, atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler",
    [eqd.DDIM(6, eta=1.0), eqd.ReverseSDE(diffrax.Euler(), num_steps=6)],
    ids=["ddim", "reverse_sde"],
)
def test_samplers_draw_what_they_draw_from_the_exact_posterior(sampler, getkey, x64):
    process, key = eqd.VPSDE(t0=0.01), getkey()
    both = (guided(process), posterior(process))
    ours, exact = quick_jit(lambda x: [sampler(d, x, key=key) for d in both])(jnp.asarray(X))
    np.testing.assert_allclose(ours, exact, rtol=1e-7)


def test_its_derivatives_are_those_of_the_posterior(x64):
    """For likelihoods: conjugate gradients are differentiated, forward and back, not cut off."""
    process, x = eqd.VPSDE(), jnp.asarray(X)

    @quick_jit
    def jacobians(x):
        ours, exact = (
            lambda x, d=d: d(0.4, x).noise for d in (guided(process), posterior(process))
        )
        return jax.jacfwd(ours)(x), jax.jacrev(ours)(x), jax.jacfwd(exact)(x)

    forward, back, exact = jacobians(x)
    np.testing.assert_allclose(forward, exact, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(back, exact, rtol=1e-7, atol=1e-9)


def test_singular_and_indefinite_systems_stay_finite():
    """A mask without noise, nothing to do, and a network whose V is negative."""
    process, x = eqd.VPSDE(), jnp.asarray(X, float)
    mask = jnp.asarray([1.0, 0.0, 1.0], x.dtype)
    y = mask * jnp.asarray([0.2, 9.0, -0.4], x.dtype)
    contrary = eqd.Denoiser(lambda c_noise, x, args, key: -x, process, eqd.PredictData())

    @quick_jit
    def run(x):
        masked = eqd.Measurement(y, lambda x: mask * x, 0.0)
        idle = eqd.Measurement(0 * y, lambda x: 0 * x, 0.0)
        return (
            eqd.PosteriorGuidance(prior(process), masked)(0.5, x),
            eqd.PosteriorGuidance(prior(process), idle)(0.5, x),
            eqd.PosteriorGuidance(contrary, eqd.Measurement(Y, measure, 0.01))(0.5, x),
        )

    masked, idle, indefinite = run(x)
    np.testing.assert_allclose(mask * masked.x0, y, atol=1e-5)
    np.testing.assert_allclose(idle.x0, prior(process)(0.5, x).x0, rtol=1e-6)
    # A move, but none beyond the measurement.
    before, after = (np.linalg.norm(Y - measure(x0)) for x0 in (-x, indefinite.x0))
    assert after < before


def test_a_batch_of_measurements():
    ys = jnp.stack([jnp.asarray(Y, float), -jnp.asarray(Y, float)])
    x = jnp.asarray(X, float)

    def one(y):
        measurement = eqd.Measurement(y, measure, 0.1)
        return eqd.PosteriorGuidance(prior(eqd.VPSDE()), measurement)(0.4, x).x0

    np.testing.assert_allclose(quick_jit(jax.vmap(one))(ys)[1], quick_jit(one)(ys[1]), rtol=1e-3)


def test_correlated_noise_is_exact_for_gaussian_data(x64):
    process, x, t = eqd.VPSDE(), jnp.asarray(X), 0.3
    factor = np.array([[0.3, 0.0], [-0.4, 0.2]])
    measurement = eqd.Measurement(Y, measure, eqd.CorrelatedNoise(factor))
    exact_prior = prior(process)
    mean = exact_prior(t, x).x0
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    spread = np.linalg.inv(np.linalg.inv(COVARIANCE) + alpha**2 / sigma**2 * np.eye(3))
    total = A @ spread @ A.T + factor @ factor.T
    expected = mean + spread @ A.T @ np.linalg.solve(total, Y - A @ mean)
    ours = quick_jit(lambda x: eqd.PosteriorGuidance(exact_prior, measurement)(t, x).x0)(x)
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


@pytest.mark.parametrize(
    "covariance", [eqd.JacobianCovariance(), eqd.IsotropicCovariance(0.7), eqd.ZeroCovariance()]
)
def test_nonlinear_operators_and_poisson_noise_in_closed_form(covariance, x64):
    """One unknown: H = A', and every factor of equation (2) is a number."""
    process, rate, y, x = eqd.VPSDE(), 40.0, 1.6, 0.9
    measurement = eqd.Measurement(np.array([y]), jnp.exp, eqd.PoissonNoise(rate))
    denoiser = eqd.GaussianDenoiser(process, 0.2, 0.7)
    guided = eqd.PosteriorGuidance(denoiser, measurement, covariance=covariance)
    run = quick_jit(lambda t: guided(t, jnp.asarray([x])).x0)
    for t in (0.1, 0.6):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        total = alpha**2 * 0.49 + sigma**2
        spread, x0 = 0.49 * sigma**2 / total, 0.2 + alpha * 0.49 / total * (x - alpha * 0.2)
        mean = slope = np.exp(x0)
        own = 0 if isinstance(covariance, eqd.ZeroCovariance) else spread
        delta = spread * slope / (mean / rate + slope**2 * own) * (y - mean)
        np.testing.assert_allclose(run(t), [x0 + delta], rtol=1e-9)


NONLINEAR = {
    "cubic": (lambda x: x + 0.2 * x**3, 0.05, np.array([1.1])),
    "poisson": (jnp.exp, eqd.PoissonNoise(1000.0), np.array([1.6])),
}


@pytest.mark.parametrize("case", NONLINEAR)
def test_posteriors_of_nonlinear_measurements_by_quadrature(case, x64):
    """With one unknown the posterior is an integral, and the flow maps quantiles to quantiles."""
    operator, noise, y = NONLINEAR[case]
    process, measurement = eqd.VPSDE(t0=1e-3), eqd.Measurement(y, operator, noise)
    denoiser = eqd.PosteriorGuidance(eqd.GaussianDenoiser(process, 0.2, 0.7), measurement)
    grid = jnp.linspace(-1, 2, 6001)
    log_density = jax.vmap(measurement.log_prob)(grid[:, None]) - 0.5 * ((grid - 0.2) / 0.7) ** 2
    mass = np.cumsum(np.exp(log_density - log_density.max()))
    levels = np.array([0.05, 0.5, 0.95])
    low, median, high = np.interp(levels, mass / mass[-1], grid)
    sampler = eqd.DDIM(200, spacing=eqd.log_snr_times)
    starts = jax.scipy.special.ndtri(levels)[:, None]
    ours = np.asarray(quick_jit(jax.vmap(lambda x1: sampler(denoiser, x1)))(starts)[:, 0])
    # The prior is twenty times as wide. What is left is the linearisation.
    assert abs(ours[1] - median) < 0.1 * (high - low)
    np.testing.assert_allclose(ours[2] - ours[0], high - low, rtol=0.2)


MEASUREMENT = eqd.Measurement(Y, measure, STD)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"measurement": eqd.Measurement(np.zeros(3), measure, 0.1)}, r"but y has \(3,\)"),
        (
            {
                "measurement": eqd.Measurement(Y, measure, 0.0),
                "covariance": eqd.ZeroCovariance(),
            },
            r"ZeroCovariance\(\): a measurement without noise",
        ),
        ({"denoiser": prior(eqd.RectifiedFlow(t1=1.0))}, "no signal"),
    ],
)
def test_bad_arguments(kwargs, match):
    arguments = {"denoiser": prior(eqd.VPSDE()), "measurement": MEASUREMENT} | kwargs
    with pytest.raises(ValueError, match=match):
        # As samplers call it: every check is made while the program is traced.
        jax.jit(lambda x: eqd.PosteriorGuidance(**arguments)(0.5, x))(jnp.asarray(X, float))


def test_anything_but_a_measurement_is_told_what_to_write(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    denoiser = prior(eqd.VPSDE())
    for call in (
        lambda: eqd.PosteriorGuidance(denoiser, Y),
        lambda: eqd.DiffPIR(50),
        lambda: eqd.DAPS(Y),
        lambda: eqd.TwistedSMC(2, 2)(denoiser, Y, np.shape(X), key=jax.random.key(0)),
    ):
        with pytest.raises(ValueError, match=r"expected a Measurement, .*Measurement\(y, operator"):
            call()


def test_bad_covariances():
    with pytest.raises(ValueError, match="iterations=0"):
        eqd.JacobianCovariance(0)
    with pytest.raises(ValueError, match="std=-1"):
        eqd.IsotropicCovariance(-1.0)
