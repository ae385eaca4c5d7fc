"""DiffPIR and DAPS: the published formulas, Gaussian data whose posterior is known, limits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


SDE = eqd.VPSDE(t0=0.01)
MEAN = np.array([0.5, -1.0, 0.3])
COVARIANCE = np.array([[0.9, 0.4, -0.2], [0.4, 0.6, 0.1], [-0.2, 0.1, 0.8]])
A = np.array([[1.0, 0.5, 0.0], [0.0, -1.0, 2.0]])
Y = np.array([0.2, 1.4])
X = np.array([0.7, -1.3, 0.4])
TIMES = np.array([0.9, 0.4, 0.1, 0.01])


def gaussian():
    return eqd.GaussianMixtureDenoiser(SDE, np.ones(1), MEAN[None], COVARIANCE[None])


def measured(noise: Any = 0.3, operator=None):
    operator = operator or (lambda x: jnp.asarray(A, x.dtype) @ x)
    return eqd.Measurement(jnp.asarray(Y, float), operator, noise)


def levels(t):
    return float(SDE.alpha(t)), float(SDE.sigma(t))


def test_diffpir_is_its_published_algorithm(x64):
    """Algorithm 1 in NumPy: ρ_t = λσ_y²/σ̄_t², an exact proximal step, and no fresh noise."""
    std, strength = 0.3, 7.0
    sampler = eqd.DiffPIR(measured(std), times=TIMES, strength=strength, share=0.0)
    path = quick_jit(lambda x: sampler.trajectory(gaussian(), x))(jnp.asarray(X))
    x = X
    for i, t in enumerate(TIMES):
        alpha, sigma = levels(t)
        total = alpha**2 * COVARIANCE + sigma**2 * np.eye(3)
        x0 = MEAN + alpha * COVARIANCE @ np.linalg.solve(total, x - alpha * MEAN)
        rho = strength * std**2 / (sigma / alpha) ** 2
        x0 = np.linalg.solve(A.T @ A + rho * np.eye(3), A.T @ Y + rho * x0)
        noise = (x - alpha * x0) / sigma
        alpha, sigma = levels(TIMES[i + 1]) if i < 3 else (1.0, 0.0)
        x = alpha * x0 + sigma * noise
        np.testing.assert_allclose(path.x0[i], x0, rtol=1e-8)
        np.testing.assert_allclose(path.x[i], x, rtol=1e-8)


def test_diffpir_without_a_measurements_pull_is_ddim(getkey):
    """And ζ = 1 leaves nothing of the old noise but in x̂0."""
    sampler = eqd.DiffPIR(measured(), 5, strength=1e12, share=0.0)
    fresh = eqd.DiffPIR(measured(), times=TIMES, strength=1e12, share=1.0)

    def run(x, key):
        path = fresh.trajectory(gaussian(), x, key=key)
        return sampler(gaussian(), x), eqd.DDIM(5)(gaussian(), x), path.x[0], path.x0[0]

    keys = jax.random.split(getkey(), 4000)
    ours, ddim, x, x0 = quick_jit(jax.vmap(run, (None, 0)))(jnp.asarray(X, float), keys)
    np.testing.assert_allclose(ours[0], ddim[0], atol=1e-5)
    alpha, sigma = levels(TIMES[1])
    z = np.asarray(x - alpha * x0) / sigma
    assert np.all(np.abs(z.mean(0)) < 4 / np.sqrt(4000))
    assert np.all(np.abs(np.cov(z.T) - np.eye(3)) < 4 * np.sqrt(2 / 4000))


def test_proximal_step_of_any_operator_is_a_minimum(x64):
    """Gauss–Newton: the objective's gradient vanishes; noise with correlations."""

    def operator(x):
        return jnp.stack([x[0] * x[1], jnp.tanh(x[2])])

    factor = np.array([[0.5, 0.0], [0.2, 0.4]])
    measurement = measured(eqd.CorrelatedNoise(factor), operator)
    sampler = eqd.DiffPIR(measurement, times=[0.2], strength=3.0, linearisations=12)
    x = jnp.asarray(X)
    found = quick_jit(lambda key: sampler(gaussian(), x, key=key))(jax.random.key(0))
    alpha, sigma = levels(0.2)
    guess = gaussian()(0.2, x).x0

    def objective(x):
        pull = 3.0 * alpha**2 / sigma**2 * jnp.sum((x - guess) ** 2)
        return 0.5 * pull - measurement.log_prob(x)

    slope, at_guess = (np.abs(jax.grad(objective)(at)).max() for at in (found, guess))
    # Where the operator curves, Gauss–Newton's minimum is the objective's up to its own steps.
    assert slope < 1e-3 * at_guess


@pytest.mark.parametrize("sampler", [eqd.DiffPIR, eqd.DAPS])
def test_without_noise_the_measurement_is_met(sampler, getkey, x64):
    draw = quick_jit(lambda key: sampler(measured(0.0), 3)(gaussian(), jnp.asarray(X), key=key))
    np.testing.assert_allclose(A @ draw(getkey()), Y, atol=1e-9)


def test_linearised_draw_is_exact_for_a_linear_operator(getkey):
    factor, std, num = np.array([[0.5, 0.0], [0.2, 0.4]]), 0.7, 20_000
    measurement = measured(eqd.CorrelatedNoise(factor))
    draw = quick_jit(
        jax.vmap(
            lambda key: eqd.LinearisedDraw()(
                measurement, jnp.asarray(X, float), jnp.asarray(std), key=key
            )
        )
    )
    x = np.asarray(draw(jax.random.split(getkey(), num)))
    total = std**2 * A @ A.T + factor @ factor.T
    gain = std**2 * A.T @ np.linalg.inv(total)
    mean, covariance = X + gain @ (Y - A @ X), std**2 * (np.eye(3) - gain @ A)
    assert np.all(np.abs(x.mean(0) - mean) < 4 * std / np.sqrt(num))
    assert np.all(np.abs(np.cov(x.T) - covariance) < 4 * std**2 * np.sqrt(2 / num))


def test_langevin_draw_of_any_operator(getkey):
    """Counts of exp(x): one number against quadrature; a linearised draw is far off."""
    counted = eqd.Measurement(np.array([6.0]), jnp.exp, eqd.PoissonNoise(1.0))
    mean, std, num = 0.2, 0.8, 5000
    grid = np.linspace(-4, 5, 3001)
    density = np.exp(6 * grid - np.exp(grid) - 0.5 * ((grid - mean) / std) ** 2)
    density /= density.sum()
    truth = density @ grid
    spread = np.sqrt(density @ (grid - truth) ** 2)

    def moments(draw):
        one = quick_jit(
            jax.vmap(lambda key: draw(counted, jnp.full(1, mean), jnp.asarray(std), key=key))
        )
        x = np.asarray(one(jax.random.split(getkey(), num)))
        return x.mean(), x.std()

    found = moments(eqd.LangevinDraw())
    assert abs(found[0] - truth) < 4 * spread / np.sqrt(num)
    assert abs(found[1] - spread) < 4 * spread / np.sqrt(2 * num)
    assert abs(moments(eqd.LinearisedDraw())[0] - truth) > 0.2


def test_daps_is_exact_for_independent_gaussian_data(getkey):
    """With one flow step x̂0 is the mean of p(x0|x_t), and equation (1) is p(x0|x_t, y)."""
    data, num = 0.6, 20_000
    denoiser = eqd.GaussianDenoiser(SDE, MEAN, data)
    sampler = eqd.DAPS(measured(0.4), times=TIMES, flow_steps=1, std=data)
    total = data**2 * A @ A.T + 0.4**2 * np.eye(2)
    gain = data**2 * A.T @ np.linalg.inv(total)
    mean, covariance = MEAN + gain @ (Y - A @ MEAN), data**2 * (np.eye(3) - gain @ A)
    alpha, sigma = levels(TIMES[0])
    start, along = getkey(), np.linalg.cholesky(alpha**2 * covariance + sigma**2 * np.eye(3))
    x1 = alpha * mean + np.asarray(jax.random.normal(start, (num, 3))) @ along.T
    draw = quick_jit(jax.vmap(lambda x, key: sampler(denoiser, x, key=key)))
    x = np.asarray(draw(jnp.asarray(x1, float), jax.random.split(getkey(), num)))
    assert np.all(np.abs(x.mean(0) - mean) < 4 * data / np.sqrt(num))
    assert np.all(np.abs(np.cov(x.T) - covariance) < 4 * data**2 * np.sqrt(2 / num))


def test_daps_centres_on_the_end_of_the_flow(x64):
    """Euler's error against an adaptive solve: halved by twice the steps."""
    means = np.array([[1.0, 0.5], [-0.8, 0.2]])
    denoiser = eqd.GaussianMixtureDenoiser(
        SDE, np.ones(2), means, np.array([0.3, 0.2])[:, None, None] ** 2 * np.eye(2)
    )
    nothing = eqd.Measurement(np.zeros(1), lambda x: x[:1], 1e6)
    x = jnp.array([0.3, -0.4])

    def end(steps):
        # Where the data have no spread, equation (1) is its centre.
        sampler = eqd.DAPS(nothing, times=[0.5], flow_steps=steps, std=1e-12)
        return sampler(denoiser, x, key=jax.random.key(0))

    exact = eqd.ProbabilityFlow(rtol=1e-9, atol=1e-9)
    shorter = eqd.on(denoiser, eqd.VPSDE(t0=0.01, t1=0.5))
    truth, *ends = quick_jit(lambda: (exact(shorter, x), end(40), end(80)))()
    first, second = (np.linalg.norm(e - truth) for e in ends)
    assert 1.7 < first / second < 2.3


def test_what_is_refused():
    key, x = jax.random.key(0), jnp.asarray(X, float)
    other = eqd.Measurement(np.zeros(3), lambda x: jnp.asarray(A, x.dtype) @ x, 0.1)
    end = eqd.GaussianDenoiser(eqd.RectifiedFlow(t1=1.0))
    for sampler in (eqd.DiffPIR, eqd.DAPS):
        with pytest.raises(ValueError, match=rf"{sampler.__name__}: .*shape"):
            sampler(other, 2)(gaussian(), x, key=key)
        with pytest.raises(ValueError, match=rf"{sampler.__name__}: .*no signal is left"):
            sampler(measured(), 2)(end, x, key=key)
        with pytest.raises(ValueError, match="needs a key"):
            sampler(measured(), 2)(gaussian(), x)
    with pytest.raises(ValueError, match="no density"):
        eqd.DAPS(measured(0.0), 2, draw=eqd.LangevinDraw())(gaussian(), x, key=key)
    with pytest.raises(ValueError, match=r"DiffPIR\(share=2.0\)"):
        eqd.DiffPIR(measured(), share=2.0)
    with pytest.raises(ValueError, match=r"DiffPIR\(strength=0.0\)"):
        eqd.DiffPIR(measured(), strength=0.0)
    with pytest.raises(ValueError, match=r"DAPS\(std=-1.0\)"):
        eqd.DAPS(measured(), std=-1.0)
