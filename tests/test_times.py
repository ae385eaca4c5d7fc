"""Grids of times: what they space evenly, their ends, and samplers on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


PROCESSES = {
    "vp": eqd.VPSDE(),
    "ve": eqd.VESDE(),
    "subvp": eqd.SubVPSDE(),
    "edm": eqd.EDMSDE(),
    "bridge": eqd.cosine_schedule(100),
    "chain": eqd.linear_schedule(200),
}
GRIDS = {
    "uniform": eqd.uniform_times,
    "quadratic": eqd.quadratic_times,
    "log_snr": eqd.log_snr_times,
    "karras": eqd.karras_times,
}
N = 9


def level(process, times):
    return np.asarray(jax.vmap(lambda t: process.sigma(t) / process.alpha(t))(times))


@pytest.mark.parametrize("name", PROCESSES)
def test_ends_and_spacing(name):
    process = PROCESSES[name]
    chain = isinstance(process, eqd.Schedule)
    t0, t1 = (0, process.num_steps - 1) if chain else (process.t0, process.t1)
    loose = 1e-5 if jnp.result_type(float) == jnp.float64 else 2e-3
    for kind, make in GRIDS.items():
        times = quick_jit(lambda m=make: m(process, N))()
        assert times.shape == (N,) and np.all(np.diff(times) < 0)
        assert times[0] == jnp.asarray(t1, times.dtype) and times[-1] == jnp.asarray(
            t0, times.dtype
        )
        s = level(process, times)
        even = {
            "uniform": np.asarray(times, np.float64),
            "quadratic": np.sqrt(np.asarray(times, np.float64)),
            "log_snr": np.log(s),
            "karras": s ** (1 / 7),
        }[kind]
        if not chain:
            steps = np.diff(even)
            np.testing.assert_allclose(steps, steps.mean(), rtol=loose)


def test_chains_get_distinct_indices():
    """More times than distinct levels: neighbours move apart, by no more than is needed, and stay in the chain."""
    chain = eqd.linear_schedule(30)
    for make in GRIDS.values():
        every, most = quick_jit(lambda m=make: (m(chain, 30), m(chain, 25)))()
        np.testing.assert_array_equal(every, np.arange(30)[::-1])
        assert np.all(np.diff(most) < 0)
    np.testing.assert_array_equal(
        eqd.quadratic_times(eqd.cosine_schedule(101), 6), [100, 64, 36, 16, 4, 0]
    )
    # Nearest indices 4, 1, 0.44 → 0, 0.1 → 0: the last two would coincide.
    np.testing.assert_array_equal(
        eqd.quadratic_times(eqd.linear_schedule(26), 8), [25, 18, 13, 8, 5, 2, 1, 0]
    )


def test_karras_between():
    """ρ = 1 is uniform in σ/α, ρ → ∞ uniform in the log-SNR, and given levels are met on every process."""
    edm = eqd.EDMSDE(t0=0.01, t1=10.0)
    np.testing.assert_allclose(eqd.karras_times(edm, 5, 1.0), np.linspace(10, 0.01, 5), rtol=1e-6)
    np.testing.assert_allclose(eqd.karras_times(edm, 5, 1e4), eqd.log_snr_times(edm, 5), rtol=2e-3)
    for process in (eqd.VPSDE(), eqd.SubVPSDE(), eqd.cosine_schedule(4000)):
        times = eqd.karras_times(process, 5, sigma_min=0.05, sigma_max=5.0)
        expected = eqd.karras_times(edm, 5, sigma_min=0.05, sigma_max=5.0)
        rtol = 5e-3 if isinstance(process, eqd.Schedule) else 1e-5
        np.testing.assert_allclose(level(process, times), expected, rtol=rtol)


def test_chain_times_visit_the_chain():
    """On the chain itself they are evenly spaced indices; elsewhere the same levels."""
    chain = eqd.linear_schedule(100)
    own = eqd.schedule_times(chain, 12, chain)
    np.testing.assert_array_equal(own, chain.grid(12))
    vp, limits = eqd.VPSDE(), dict(sigma_min=0.05, sigma_max=50.0)
    there, here = (level(p, eqd.schedule_times(p, 12, chain, **limits)) for p in (vp, chain))
    np.testing.assert_allclose(there, here, rtol=1e-4)
    assert 0.05 <= here[-1] < here[0] <= 50


def test_samplers_take_them(x64):
    """On Gaussian data every deterministic sampler finds the end of the exact flow, on whatever grid it is given."""
    process = eqd.VPSDE(t0=1e-4)
    denoiser = eqd.GaussianDenoiser(process, 0.5, 0.3)
    x1 = jnp.array([0.7, -1.2])
    alpha, sigma = float(process.alpha(1.0)), float(process.sigma(1.0))
    exact = 0.5 + 0.3 / np.sqrt(alpha**2 * 0.09 + sigma**2) * (np.array(x1) - alpha * 0.5)
    times = eqd.karras_times(process, 60)
    for sampler, atol in (
        (eqd.DDIM(times=times), 0.03),
        (eqd.StochasticHeun(times=times), 5e-3),
        (eqd.DPMSolverPP(times=times), 6e-3),
        (eqd.ProbabilityFlow(times=times), 1e-3),
    ):
        x = quick_jit(lambda x, s=sampler: s(denoiser, x))(x1)
        np.testing.assert_allclose(x, exact, atol=atol)


def test_refusals():
    vp, chain = eqd.VPSDE(), eqd.linear_schedule(50)
    with pytest.raises(ValueError, match="positive whole number"):
        eqd.karras_times(vp, 0)
    with pytest.raises(ValueError, match="only 50 steps"):
        eqd.log_snr_times(chain, 51)
    with pytest.raises(ValueError, match="the paper's is 7"):
        eqd.karras_times(vp, 5, 0.0)
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        eqd.karras_times(vp, 5, sigma_min=2.0, sigma_max=1.0)
    with pytest.raises(ValueError, match=r"give a finer chain"):
        eqd.schedule_times(vp, 40, chain, sigma_min=0.5, sigma_max=0.6)
    for make in (eqd.ProbabilityFlow, eqd.ReverseSDE):
        with pytest.raises(ValueError, match="both given"):
            make(num_steps=3, times=jnp.array([1.0, 0.5]))
        with pytest.raises(ValueError, match="a step needs two"):
            make(times=jnp.array([1.0]))
        with pytest.raises(ValueError, match="must decrease"):
            make(times=jnp.array([0.5, 1.0]))
