"""The bound in continuous time: closed forms, one value for all processes, the limit of chains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


X0 = jnp.asarray([[-1.0, -0.6], [0.2, 1.0], [0.6, -0.2]])
STD = 0.5
PROCESSES = {
    "vp": eqd.VPSDE(),
    "sub-vp": eqd.SubVPSDE(t0=1e-3),
    "ve": eqd.VESDE(0.01, 50.0),
    "edm": eqd.EDMSDE(),
    "cosine": eqd.CosineVPSDE(),
    "flow": eqd.RectifiedFlow(),
    "schedule": eqd.linear_schedule(1000),
}


def denoiser_of(process):
    return eqd.GaussianDenoiser(process, 0.0, STD)


def integral(process, x0):
    """½∫E‖ε − ε̂‖²dλ/D of a Gaussian's own denoiser at one x0, by quadrature in float64.

    With r = e^λ s²: ε − ε̂ = (r ε − √r (x0/s)) / (1 + r).
    """
    high, low = float(process.log_snr(process.t0)), float(process.log_snr(process.t1))
    log_snr = np.linspace(low, high, 200_001)
    r = np.exp(log_snr) * STD**2
    square = np.mean(np.asarray(x0, np.float64) ** 2) / STD**2
    return 0.5 * np.trapezoid((r**2 + r * square) / (1 + r) ** 2, log_snr)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_integral_and_its_standard_error(name, getkey):
    process, n = PROCESSES[name], 1000

    @quick_jit
    @jax.vmap
    def run(key):
        denoiser = denoiser_of(process)
        return eqd.continuous_bound(denoiser, X0, key=key, levels=6, num_terms=32, chunk=34)

    bound = run(jax.random.split(getkey(), n))
    truth = integral(process, X0) / np.log(2)
    diffusion = np.asarray(bound.diffusion, float)
    error = diffusion.std() / np.sqrt(n)
    assert abs(diffusion.mean() - truth) < 4 * error + 1e-3 * truth
    assert error < 0.01 * truth, "the comparison has teeth"
    bits = np.asarray(bound.bits, float)
    np.testing.assert_allclose(
        bits, bound.prior + bound.reconstruction + bound.diffusion, rtol=1e-5
    )
    variance = np.asarray(bound.stderr, float) ** 2
    assert np.isclose(variance.mean(), bits.var(ddof=1), rtol=0.25)
    assert np.all((bound.t >= process.t0) & (bound.t <= process.t1))


def test_processes_with_the_same_ends_have_the_same_bound(getkey):
    """Equation (1) knows a process only by the ends of its log-SNR: all else cancels."""
    # VE and EDM with the same levels; the VP process of the same log-SNR as EDM at both ends.
    processes = [eqd.VESDE(0.002, 80.0, t0=1e-7), eqd.EDMSDE()]
    keys = jax.random.split(getkey(), 500)

    @quick_jit
    def means(process):
        def run(key):
            return eqd.continuous_bound(denoiser_of(process), X0, key=key, levels=6)

        bound = jax.vmap(run)(keys)
        return jnp.mean(bound.bits), jnp.std(bound.bits) / jnp.sqrt(500.0)

    (a, da), (b, db) = (means(process) for process in processes)
    assert abs(a - b) < 4 * np.hypot(da, db)
    assert np.hypot(da, db) < 0.01 * a


@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve", "edm", "cosine"])
def test_it_is_scoreflows_bound(name, getkey):
    r"""Of the density at t₀, in Song et al. (2021b), theorem 3's first form, no ε in it:
    −E log π(x_t₁) + ½∫E[g²‖s‖² + 2 div(g² s − f)]dt, here of a wrong linear score s = −κ(t) x.

    The bound on pixels has the decoder in place of the entropy of q(x_t₀|x₀).
    """
    process, size = PROCESSES[name], X0.size
    low, high = float(process.t0), float(process.t1)
    nodes, weights = np.polynomial.legendre.leggauss(400)
    # Evenly in log-SNR: the integrand has all its shape there.
    ends = [float(process.log_snr(t)) for t in (low, high)]
    log_snr = jnp.asarray(ends[0] + (ends[1] - ends[0]) * (nodes + 1) / 2)
    t = jax.vmap(process.time)(log_snr)
    alpha, sigma, g = (jax.vmap(f)(t) for f in (process.alpha, process.sigma, process.diffusion))
    f = jax.vmap(process.alpha_dot)(t) / alpha
    slope = 2 * f - 2 * jax.vmap(process.sigma_dot)(t) / sigma
    kappa = 1 / (alpha**2 * 0.8**2 + sigma**2)
    square = alpha**2 * np.sum(np.square(X0)) + sigma**2 * size
    integrand = g**2 * kappa**2 * square - 2 * size * (g**2 * kappa + f)
    total = 0.5 * np.sum(weights * np.asarray(integrand / slope)) * (ends[1] - ends[0]) / 2
    scale = float(process.prior_scale())
    a, s = float(process.alpha(high)), float(process.sigma(high))
    total += size * np.log(scale * np.sqrt(2 * np.pi))
    total += 0.5 * (a**2 * float(np.sum(np.square(X0))) + s**2 * size) / scale**2
    total -= 0.5 * size * np.log(2 * np.pi * np.e * float(process.sigma(low)) ** 2)
    denoiser = eqd.GaussianDenoiser(process, 0.0, 0.8)

    @quick_jit
    @jax.vmap
    def run(key):
        bound = eqd.continuous_bound(denoiser, X0, key=key, levels=6, num_terms=64, chunk=66)
        return bound.prior + bound.diffusion

    ours = np.asarray(run(jax.random.split(getkey(), 1000)), float)
    error = ours.std() / np.sqrt(len(ours))
    truth = total / size / np.log(2)
    assert abs(ours.mean() - truth) < 4 * error + 1e-4 * abs(truth)
    assert error < 0.01 * abs(truth), "the comparison has teeth"


def test_chains_approach_it(getkey):
    """Of T steps evenly spaced in λ between the same ends, the bound exceeds it by O(1/T)."""
    process = eqd.VPSDE(t0=1e-3)
    high, low = float(process.log_snr(process.t0)), float(process.log_snr(process.t1))
    keys = jax.random.split(getkey(), 2000)

    def excess(num_steps):
        alpha_bar = 1 / (1 + np.exp(-np.linspace(high, low, num_steps)))
        schedule = eqd.Schedule(1 - alpha_bar / np.append(1.0, alpha_bar[:-1]))
        denoiser = eqd.GaussianDenoiser(schedule, 0.0, STD, variance=eqd.FixedSmall())

        def total(key):
            bound = eqd.variational_bound(denoiser, X0, key=key, levels=6, chunk=num_steps)
            # The first step is the decoder.
            return jnp.sum(bound.terms[1:])

        totals = np.asarray(quick_jit(jax.vmap(total))(keys), float)
        truth = integral(process, X0) / np.log(2)
        return totals.mean() - truth, totals.std() / np.sqrt(len(keys))

    (coarse, _), (fine, noise) = excess(33), excess(129)
    assert noise < 0.1 * fine, "the comparison has teeth"
    assert 3 < coarse / fine < 5.5


def test_bad_numbers(getkey):
    denoiser = denoiser_of(eqd.VPSDE())
    with pytest.raises(ValueError, match="even number"):
        eqd.continuous_bound(denoiser, X0, key=getkey(), levels=6, num_terms=3)
    with pytest.raises(ValueError, match="levels"):
        eqd.continuous_bound(denoiser, X0, key=getkey(), levels=1)
    with pytest.raises(Exception, match="levels"):
        eqd.continuous_bound(denoiser, X0 + 0.01, key=getkey(), levels=6)
