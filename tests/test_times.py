"""Grids of times: what they space evenly, their ends, and samplers on them."""

import diffrax
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
    "clipped": eqd.cosine_schedule(100),
    "schedule": eqd.linear_schedule(200),
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


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("name", PROCESSES)
def test_ends_and_spacing(name, kind):
    process, make = PROCESSES[name], GRIDS[kind]
    times = quick_jit(lambda: make(process, N))()
    assert times.shape == (N,) and np.all(np.diff(times) < 0)
    whole = isinstance(process, eqd.Schedule) and kind == "uniform"
    # Uniform times of a schedule are its steps, a clipped last one included; the others are real.
    assert jnp.issubdtype(times.dtype, jnp.integer) == whole
    t0, t1 = (0, process.num_steps - 1) if whole else (process.t0, process.t1)
    assert times[0] == jnp.asarray(t1, times.dtype)
    assert times[-1] == jnp.asarray(t0, times.dtype)
    s = level(process, times)
    even = {
        "uniform": np.asarray(times, np.float64),
        "quadratic": np.sqrt(np.asarray(times, np.float64)),
        "log_snr": np.log(s),
        "karras": s ** (1 / 7),
    }[kind]
    steps = np.diff(even)
    if whole:
        assert np.max(np.abs(steps - steps.mean())) <= 1
    else:
        loose = 1e-5 if jnp.result_type(float) == jnp.float64 else 2e-3
        np.testing.assert_allclose(steps, steps.mean(), rtol=loose)


def test_uniform_times_of_a_schedule_are_the_official_ones():
    for num_steps, count in ((1000, 50), (4000, 100), (100, 100), (30, 7)):
        schedule = eqd.linear_schedule(num_steps)
        expected = eqd.section_timesteps(num_steps, (count,))[::-1]
        np.testing.assert_array_equal(eqd.uniform_times(schedule, count), expected)
    assert list(eqd.uniform_times(eqd.linear_schedule(30), 4)) == [29, 19, 10, 0]


def test_there_may_be_more_real_times_than_steps():
    """Between its steps a schedule is a process like any other."""
    schedule = eqd.linear_schedule(30)
    for make in (eqd.quadratic_times, eqd.log_snr_times, eqd.karras_times):
        times = make(schedule, 100)
        assert times.shape == (100,) and np.all(np.diff(times) < 0)


def test_karras_between():
    """ρ = 1 is uniform in σ/α, ρ → ∞ uniform in the log-SNR, and given levels are met on every
    process.
    """
    edm = eqd.EDMSDE(t0=0.01, t1=10.0)
    np.testing.assert_allclose(eqd.karras_times(edm, 5, 1.0), np.linspace(10, 0.01, 5), rtol=1e-6)
    np.testing.assert_allclose(eqd.karras_times(edm, 5, 1e4), eqd.log_snr_times(edm, 5), rtol=2e-3)
    for process in (eqd.VPSDE(), eqd.SubVPSDE(), eqd.cosine_schedule(4000)):
        times = eqd.karras_times(process, 5, sigma_min=0.05, sigma_max=5.0)
        expected = eqd.karras_times(edm, 5, sigma_min=0.05, sigma_max=5.0)
        np.testing.assert_allclose(level(process, times), expected, rtol=1e-5)


def test_schedule_times_visit_a_schedules_levels():
    """On the schedule itself they are evenly spaced indices; elsewhere the same levels."""
    schedule = eqd.linear_schedule(100)
    own = eqd.schedule_times(schedule, 12, schedule)
    np.testing.assert_allclose(own, eqd.uniform_times(schedule, 12), atol=2e-3)
    vp, limits = eqd.VPSDE(), dict(sigma_min=0.05, sigma_max=50.0)
    there, here = (level(p, eqd.schedule_times(p, 12, schedule, **limits)) for p in (vp, schedule))
    np.testing.assert_allclose(there, here, rtol=1e-4)
    assert 0.05 <= here[-1] < here[0] <= 50


def test_samplers_take_them(x64):
    """On Gaussian data every deterministic sampler finds the end of the exact flow, on a given
    grid.
    """
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


VP, SCHEDULE = eqd.VPSDE(), eqd.linear_schedule(50)
REFUSED = [
    (lambda: eqd.karras_times(VP, 0), "positive whole number"),
    (lambda: eqd.log_snr_times(VP, True), "positive whole number"),
    (lambda: eqd.uniform_times(SCHEDULE, 51), "only 50 steps"),
    (lambda: eqd.karras_times(VP, 5, 0.0), "rho=0.0.*positive finite"),
    (lambda: eqd.karras_times(VP, 5, sigma_min=2.0, sigma_max=1.0), "0 < sigma_min < sigma_max"),
    (
        lambda: eqd.schedule_times(VP, 40, SCHEDULE, sigma_min=0.5, sigma_max=0.6),
        "give a finer schedule",
    ),
    *(
        (lambda make=make, options=options: make(**options), match)
        for make in (eqd.DDIM, eqd.ProbabilityFlow, eqd.ReverseSDE)
        for options, match in (
            ({"num_steps": 3, "times": jnp.array([1.0, 0.5])}, "both given"),
            ({"times": jnp.array([0.5, 1.0])}, "must decrease"),
        )
    ),
]


@pytest.mark.parametrize(("call", "match"), REFUSED)
def test_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize(
    "sampler",
    [eqd.DDIM(50), eqd.ProbabilityFlow(diffrax.Heun(), num_steps=25), eqd.DPMSolverPP(25)],
    ids=lambda s: type(s).__name__,
)
def test_samplers_space_the_times_of_edm_as_its_paper_does(sampler):
    """Of evenly spaced noise levels up to 80 hardly one is of the size of the data."""
    process, std = eqd.EDMSDE(), 0.5
    x1 = jnp.asarray([80.0, -40.0])
    x0 = sampler(eqd.GaussianDenoiser(process, 0.0, std), x1)
    np.testing.assert_allclose(x0, x1 * std / np.hypot(80.0, std), rtol=0.1)
