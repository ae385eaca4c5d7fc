"""DPM-Solver++(3M) and UniPC against the published algorithms in NumPy, and their orders."""

import math

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_solver import mixture, slope, SMOOTH, solve, X1
from toys import quick_jit

import eqdiff as eqd
from eqdiff._term import DPMSolverPP, UniPC
from eqdiff._term.multistep import moments


def levels(process, times):
    alpha, sigma = ([float(f(t)) for t in times] for f in (process.alpha, process.sigma))
    return np.array(alpha), np.array(sigma), np.log(np.array(alpha) / np.array(sigma))


def third_order(denoiser, times, x):
    """Lu et al. 2022b, multistep with three estimates, as the official code prints it but for a
    factor of two in the last term, without which it is of second order.
    """
    alpha, sigma, clock = levels(denoiser.process, times)
    m, estimate = [], quick_jit(lambda t, x: denoiser(t, x).x0)
    for i in range(1, len(times)):
        m.append(np.asarray(estimate(times[i - 1], jnp.asarray(x))))
        h = clock[i] - clock[i - 1]
        phi1 = np.expm1(-h)
        new = sigma[i] / sigma[i - 1] * x - alpha[i] * phi1 * m[-1]
        if i == 2:
            r0 = (clock[1] - clock[0]) / h
            new = new - 0.5 * alpha[i] * phi1 / r0 * (m[-1] - m[-2])
        if i > 2:
            r0 = (clock[i - 1] - clock[i - 2]) / h
            r1 = (clock[i - 2] - clock[i - 3]) / h
            d10, d11 = (m[-1] - m[-2]) / r0, (m[-2] - m[-3]) / r1
            d1 = d10 + r0 / (r0 + r1) * (d10 - d11)
            d2 = (d10 - d11) / (r0 + r1)
            phi2, phi3 = phi1 / h + 1, (phi1 / h + 1) / h - 0.5
            new = new + alpha[i] * phi2 * d1 - 2 * alpha[i] * phi3 * d2
        x = new
    return estimate(times[-1], jnp.asarray(x))


def bh2(denoiser, times, x, order):
    """Zhao et al. 2023, algorithms 5 to 8 in data prediction with B₂, as the official code has it:
    the predictor, then at the new estimate the corrector.
    """
    alpha, sigma, clock = levels(denoiser.process, times)
    estimate = quick_jit(lambda t, x: denoiser(t, x).x0)
    m = [np.asarray(estimate(times[0], jnp.asarray(x)))]
    for i in range(1, len(times)):
        now = min(order, i)
        h = clock[i] - clock[i - 1]
        rk = [(clock[i - 1 - k] - clock[i - 1]) / h for k in range(1, now)]
        d = [(m[-1 - k] - m[-1]) / r for k, r in enumerate(rk, 1)]
        rk, b, base = np.array([*rk, 1.0]), [], np.expm1(-h)
        phi = base / -h - 1
        for k in range(1, now + 1):
            b.append(phi * math.factorial(k) / base)
            phi = phi / -h - 1 / math.factorial(k + 1)
        rows, b = np.stack([rk**k for k in range(now)]), np.array(b)
        start = sigma[i] / sigma[i - 1] * x - alpha[i] * base * m[-1]
        half = np.array([0.5])
        p = half if now == 2 else np.linalg.solve(rows[:-1, :-1], b[:-1])
        x = start - alpha[i] * base * sum((w * e for w, e in zip(p, d, strict=now > 1)), 0.0)
        new = np.asarray(estimate(times[i], jnp.asarray(x)))
        if i < len(times) - 1:
            c = half if now == 1 else np.linalg.solve(rows, b)
            x = start - alpha[i] * base * sum(
                w * e for w, e in zip(c, [*d, new - m[-1]], strict=True)
            )
        m.append(new)
    return m[-1]


@pytest.mark.parametrize("process", [SMOOTH, eqd.linear_schedule(50)], ids=["vp", "schedule"])
def test_they_are_the_published_algorithms(process, x64):
    denoiser = mixture(process)
    times = eqd.quadratic_times(process, 7)

    @quick_jit
    def run(x):
        third = eqd.DPMSolverPP(times=times, order=3)(denoiser, x)
        return third, [eqd.UniPC(times=times, order=p)(denoiser, x) for p in (1, 2, 3)]

    third, unipc = run(jnp.asarray(X1))
    np.testing.assert_allclose(third, third_order(denoiser, times, X1), rtol=1e-9)
    for order, sample in enumerate(unipc, 1):
        np.testing.assert_allclose(sample, bh2(denoiser, times, X1, order), rtol=1e-9)


def test_moments_are_those_of_the_exponential(x64):
    """By quadrature, for steps of all sizes in both directions."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    r = (nodes + 1) / 2
    for h in (-3.0, -0.7, -1e-9, 1e-6, 0.3, 0.999, 1.001, 8.0):
        exponential = weights * np.exp(h * r)
        truth = [np.sum(exponential * r**k) / np.sum(exponential) for k in range(4)]
        np.testing.assert_allclose(moments(jnp.asarray(h), 4), truth, rtol=1e-9)
    single = moments(jnp.float32(0.01), 4)
    np.testing.assert_allclose(single, moments(jnp.asarray(0.01), 4), rtol=1e-6)


@pytest.mark.slow
def test_orders_in_both_directions(x64):
    """On a grid that begins with short steps, since the first ones are of lower order."""
    denoiser, x1 = mixture(SMOOTH), jnp.asarray(X1)
    flow = eqd.ProbabilityFlow(diffrax.Tsit5(), num_steps=400)
    exact = np.asarray(quick_jit(lambda: flow.solve(denoiser, x1).ys)())[-1]
    ends = [float(SMOOTH.log_snr(t)) for t in (SMOOTH.t1, SMOOTH.t0)]
    for solver, order in ((DPMSolverPP(3), 3), (UniPC(1), 2), (UniPC(2), 3), (UniPC(3), 4)):
        run = quick_jit(lambda times, x, s=solver: solve(denoiser, times, x, s))
        down, up = {}, {}
        for n in (40, 120):
            graded = (np.arange(n + 1) / n) ** 2
            forth, back = (jnp.asarray(a + (b - a) * graded) for a, b in (ends, ends[::-1]))
            down[n] = np.abs(run(jax.vmap(SMOOTH.time)(forth), x1) - exact).max()
            up[n] = np.abs(run(jax.vmap(SMOOTH.time)(back), jnp.asarray(exact)) - X1).max()
        assert slope(down) > order - 0.3 and slope(up) > order - 0.3, (solver, down, up)
        assert down[120] < 1e-3


def test_float32_gradients_and_bad_orders():
    denoiser = eqd.GaussianDenoiser(SMOOTH, 0.5, 0.3)
    x = jnp.asarray([X1, -X1], jnp.float32)
    for sampler in (eqd.UniPC(6, order=3), eqd.DPMSolverPP(6, order=3)):
        run = jax.vmap(jax.value_and_grad(lambda x, s=sampler: s(denoiser, x).sum()))
        value, gradient = quick_jit(run)(x)
        assert value.dtype == gradient.dtype == jnp.float32
        assert np.all(np.isfinite(value)) and np.all(np.isfinite(gradient))
        trajectory = quick_jit(lambda x, s=sampler: s.trajectory(denoiser, x))(x[0])
        np.testing.assert_allclose(trajectory.x[-1], sampler(denoiser, x[0]), rtol=1e-5)
    with pytest.raises(ValueError, match="expected 2 or 3"):
        eqd.DPMSolverPP(order=1)
    with pytest.raises(ValueError, match="expected 1, 2 or 3"):
        eqd.UniPC(order=4)
