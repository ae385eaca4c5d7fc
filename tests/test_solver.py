"""DPM-Solver++(2M) as a Diffrax solver and as a sampler."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd
from eqdiff._term import data_prediction, DPMSolverPP


X1 = np.array([0.7, -1.3])
SMOOTH = eqd.VPSDE(0.1, 5.0, t0=0.02)


def mixture(process):
    means, covariances = np.array([[1.0, 0.5], [-0.8, -0.3]]), np.stack([0.2 * np.eye(2)] * 2)
    return eqd.GaussianMixtureDenoiser(process, np.array([0.4, 0.6]), means, covariances)


def textbook(denoiser, times, x):
    """Lu et al. 2022b, algorithm 2, as printed: on x, with ratios r and the exponentials of −h."""
    process = denoiser.process
    alpha, sigma = ([float(f(t)) for t in times] for f in (process.alpha, process.sigma))
    clock = np.log(np.array(alpha) / np.array(sigma))
    estimates, estimate = [], quick_jit(lambda t, x: denoiser(t, x).x0)
    for i in range(1, len(times)):
        estimates.append(np.asarray(estimate(times[i - 1], jnp.asarray(x))))
        h = clock[i] - clock[i - 1]
        d = estimates[-1]
        if i > 1:
            r = (clock[i - 1] - clock[i - 2]) / h
            d = (1 + 1 / (2 * r)) * estimates[-1] - 1 / (2 * r) * estimates[-2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * (np.exp(-h) - 1) * d
    return estimate(times[-1], jnp.asarray(x))


@pytest.mark.parametrize("process", [SMOOTH, eqd.linear_schedule(50)], ids=["vp", "schedule"])
def test_is_the_published_algorithm(process, x64):
    denoiser = mixture(process)
    times = eqd.uniform_times(process, 6)
    expected = textbook(denoiser, times, X1)
    sample = quick_jit(lambda x: eqd.DPMSolverPP(times=times)(denoiser, x))(jnp.asarray(X1))
    np.testing.assert_allclose(sample, expected, rtol=1e-9)


def solve(denoiser, times, x, solver):
    """The probability flow by its data-prediction term, from the first time to the last."""
    process = denoiser.process
    clock = 0.5 * jax.vmap(process.log_snr)(times)
    solution = diffrax.diffeqsolve(
        data_prediction(denoiser),
        solver,
        t0=clock[0],
        t1=clock[-1],
        dt0=None,
        y0=x / process.sigma(times[0]),
        stepsize_controller=diffrax.StepTo(clock),
    )
    return process.sigma(times[-1]) * solution.ys[-1]


def test_euler_on_its_term_is_ddim(x64):
    """The first step of 2M, repeated: order 1. DDIM goes on from the last time to the data."""
    denoiser, times, x1 = mixture(SMOOTH), eqd.log_snr_times(SMOOTH, 7), jnp.asarray(X1)
    x = quick_jit(lambda: solve(denoiser, times, x1, diffrax.Euler()))()
    ddim = quick_jit(lambda: eqd.DDIM(times=times).trajectory(denoiser, x1).x)()
    np.testing.assert_allclose(x, ddim[-2], rtol=1e-10)


def slope(errors):
    steps = np.array(list(errors))
    return -np.polyfit(np.log(steps), np.log(list(errors.values())), 1)[0]


@pytest.mark.slow
def test_is_of_second_order_in_both_directions(x64):
    """Against 400 steps of fifth order in natural time; and from data back to noise."""
    denoiser, x1 = mixture(SMOOTH), jnp.asarray(X1)
    flow = eqd.ProbabilityFlow(diffrax.Tsit5(), num_steps=400)
    exact = np.asarray(quick_jit(lambda: flow.solve(denoiser, x1).ys[-1])())
    run = quick_jit(lambda times, x: solve(denoiser, times, x, DPMSolverPP()))
    down, up = {}, {}
    for n in (40, 160):
        times = eqd.log_snr_times(SMOOTH, n + 1)
        down[n] = np.abs(run(times, x1) - exact).max()
        up[n] = np.abs(run(times[::-1], jnp.asarray(exact)) - X1).max()
    assert abs(slope(down) - 2) < 0.2 and abs(slope(up) - 2) < 0.2
    assert down[160] < 1e-4


def test_is_adams_bashforth_on_an_ordinary_term(x64):
    """Its extrapolation knows no diffusion: dy/dt = cos t · y on an uneven grid, second order."""

    def run(grid):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: {"y": jnp.cos(t) * y["y"]}),
            DPMSolverPP(),
            t0=0.0,
            t1=2.0,
            dt0=None,
            y0={"y": jnp.ones(2)},
            stepsize_controller=diffrax.StepTo(grid),
        ).ys["y"][-1]

    errors = {}
    for n in (50, 200):
        y = quick_jit(run)(2 * jnp.linspace(0.0, 1.0, n + 1) ** 1.5)
        errors[n] = float(jnp.abs(y - jnp.exp(jnp.sin(2.0))).max())
    assert abs(slope(errors) - 2) < 0.1


@pytest.mark.slow
def test_sampler_is_differentiable_and_keeps_float32():
    denoiser = eqd.GaussianDenoiser(SMOOTH, 0.5, 0.3)
    x = jnp.asarray(X1, jnp.float32)
    run = jax.vmap(jax.value_and_grad(lambda x: eqd.DPMSolverPP(6)(denoiser, x).sum()))
    (here, there), (gradient, same) = quick_jit(run)(jnp.stack([x, x + 1.0]))
    assert gradient.dtype == jnp.float32
    # Gaussian data: the sample is an affine function of x1.
    np.testing.assert_allclose(gradient, same, rtol=1e-4)
    np.testing.assert_allclose(gradient.sum(), there - here, rtol=1e-3)
    assert eqx.filter_eval_shape(eqd.DPMSolverPP(1), denoiser, x).dtype == jnp.float32


@pytest.mark.slow
def test_reverse_sde_on_a_grid(x64):
    """Karras's times for Euler–Maruyama on EDM's process: the variance of Gaussian data."""
    process = eqd.EDMSDE(t0=0.01, t1=10.0)
    denoiser = eqd.GaussianDenoiser(process, 0.0, 0.5)
    sampler = eqd.ReverseSDE(diffrax.Euler(), times=eqd.karras_times(process, 100))
    n = 1000
    x1 = 10 * jax.random.normal(jax.random.key(1), (n, 1))
    draw = quick_jit(jax.vmap(lambda x, k: sampler(denoiser, x, key=k)))
    x = draw(x1, jax.random.split(jax.random.key(0), n))
    assert abs(float(x.std()) - 0.5) < 4 * 0.5 / np.sqrt(2 * n) + 0.01
