"""SDE-DPM-Solver++(2M): the published step in NumPy, its limits, and its weak order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_solver import mixture, SMOOTH, X1
from toys import quick_jit

import eqdiff as eqd


def published(denoiser, times, x, noises):
    """The official code's multistep update of the SDE, "midpoint", in its own letters."""
    process = denoiser.process
    alpha, sigma = (np.array([float(f(t)) for t in times]) for f in (process.alpha, process.sigma))
    clock, m = np.log(alpha / sigma), []
    estimate = quick_jit(lambda t, x: denoiser(t, x).x0)
    for i in range(1, len(times)):
        m.append(np.asarray(estimate(times[i - 1], jnp.asarray(x))))
        h = clock[i] - clock[i - 1]
        one = 1 - np.exp(-2 * h)
        new = sigma[i] / sigma[i - 1] * np.exp(-h) * x + alpha[i] * one * m[-1]
        if i > 1:
            r0 = (clock[i - 1] - clock[i - 2]) / h
            new = new + 0.5 * alpha[i] * one / r0 * (m[-1] - m[-2])
        x = new + sigma[i] * np.sqrt(one) * noises[i - 1]
    return estimate(times[-1], jnp.asarray(x))


@pytest.mark.parametrize("process", [SMOOTH, eqd.linear_schedule(50)], ids=["vp", "schedule"])
def test_is_the_published_algorithm(process, x64, getkey):
    denoiser, times, key = mixture(process), eqd.quadratic_times(process, 6), getkey()
    noises = [jax.random.normal(k, (2,), float) for k in jax.random.split(key, len(times))]
    expected = published(denoiser, times, X1, np.asarray(noises))
    sampler = eqd.SDEDPMSolverPP(times=times)
    trajectory = quick_jit(lambda x: sampler.trajectory(denoiser, x, key=key))(jnp.asarray(X1))
    np.testing.assert_allclose(trajectory.x[-1], expected, rtol=1e-9)
    sample = quick_jit(lambda x: sampler(denoiser, x, key=key))(jnp.asarray(X1))
    np.testing.assert_allclose(sample, expected, rtol=1e-9)


def test_two_steps_are_ddims_with_noise(x64, getkey):
    """Nothing is before the first step, and the last is to the estimate."""
    denoiser, key, times = mixture(SMOOTH), getkey(), eqd.log_snr_times(SMOOTH, 2)
    ours = eqd.SDEDPMSolverPP(times=times)(denoiser, jnp.asarray(X1), key=key)
    ddim = eqd.DDIM(times=times, eta=1.0)(denoiser, jnp.asarray(X1), key=key)
    np.testing.assert_allclose(ours, ddim, rtol=1e-9)


def variance(num_steps, std=0.5):
    """Of samples of Gaussian data, exactly: its steps are linear in x and the estimate before."""
    times = eqd.log_snr_times(SMOOTH, num_steps)
    sigma, alpha = (np.array([float(f(t)) for t in times]) for f in (SMOOTH.sigma, SMOOTH.alpha))
    clock = np.log(alpha / sigma)
    # x̂0 = k x, and the second moments of (x, x̂0 before).
    k = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
    moments = np.diag([alpha[0] ** 2 * std**2 + sigma[0] ** 2, 0.0])
    for i in range(1, num_steps):
        h = clock[i] - clock[i - 1]
        one = -np.expm1(-2 * h)
        ahead = 0.0 if i == 1 else h / (2 * (clock[i - 1] - clock[i - 2]))
        a = sigma[i] / sigma[i - 1] * np.exp(-h) + alpha[i] * one * (1 + ahead) * k[i - 1]
        step = np.array([[a, -alpha[i] * one * ahead], [k[i - 1], 0.0]])
        moments = step @ moments @ step.T
        moments[0, 0] += sigma[i] ** 2 * one
    return k[-1] ** 2 * moments[0, 0]


def test_samples_have_the_variance_that_its_steps_give(getkey):
    denoiser, n = eqd.GaussianDenoiser(SMOOTH, 0.0, 0.5), 40_000
    keys, x1_key = jax.random.split(getkey()), getkey()
    scale = float(jnp.hypot(SMOOTH.alpha(SMOOTH.t1) * 0.5, SMOOTH.sigma(SMOOTH.t1)))
    x1 = scale * jax.random.normal(x1_key, (n,))

    @quick_jit
    def run(x1, key):
        draw = lambda x, k: eqd.SDEDPMSolverPP(5)(denoiser, x, key=k)  # noqa: E731
        return jax.vmap(draw)(x1, jax.random.split(key, n))

    samples = np.asarray(run(x1, keys[0]), float)
    assert abs(samples.var() / variance(5) - 1) < 4 * np.sqrt(2 / n)
    assert abs(samples.mean()) < 4 * 0.5 / np.sqrt(n)


def test_weak_order():
    """Of the variance, by its closed form: second order, but for the one step that starts."""
    exact = variance(100_000)
    errors = [abs(variance(n) / exact - 1) for n in (40, 80, 160)]
    assert 1.7 < np.log2(errors[0] / errors[1]) and 1.7 < np.log2(errors[1] / errors[2])


def test_needs_a_key():
    with pytest.raises(ValueError, match="needs a key"):
        eqd.SDEDPMSolverPP(3)(mixture(SMOOTH), jnp.asarray(X1))
