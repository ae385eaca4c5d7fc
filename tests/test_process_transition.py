"""Transitions between two times, the official discretisations, and the end where no signal is
left.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, golden_tolerance, load_golden
from toys import quick_jit

import eqdiff as eqd


BASICS = "public_sde_basics"
VE, SUB_VP = eqd.VESDE(), eqd.SubVPSDE()
PROCESSES = {
    "vp": eqd.VPSDE(),
    "sub_vp": SUB_VP,
    "ve": VE,
    "edm": eqd.EDMSDE(),
    "cosine": eqd.CosineVPSDE(log_snr_shift=-2.0),
    "flow": eqd.RectifiedFlow(),
    "shifted": eqd.CosineVPSDE(log_snr_shift=-2.77, t0=1e-4),
    "kernel": eqd.KernelSDE(
        lambda t: jnp.exp(-0.5 * t * (0.1 + 9.95 * t)),
        lambda t: jnp.sqrt(-jnp.expm1(-t * (0.1 + 9.95 * t))),
        t0=1e-5,
        t1=1.0,
    ),
    "cosine schedule": eqd.cosine_schedule(1000),
    "linear schedule": eqd.linear_schedule(1000),
    "respaced": eqd.respace(eqd.linear_schedule(1000), eqd.section_timesteps(1000, (100, 50, 20))),
}
processes = pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)


def over(function, t):
    return np.asarray(quick_jit(jax.vmap(function))(t), np.float64)


@pytest.mark.parametrize("make", [eqd.RectifiedFlow, eqd.CosineVPSDE])
def test_where_no_signal_is_left_the_sde_refuses_and_the_flow_goes_on(make):
    sde, x = make(t1=1.0), jnp.ones(2)
    assert float(sde.alpha(1)) == 0 and float(sde.log_snr(1)) == -np.inf
    for value in (sde.sigma(1), sde.alpha_dot(1), sde.sigma_dot(1), sde.alpha(0.999)):
        assert np.isfinite(value)
    for call in (sde.diffusion, lambda t: sde.drift(t, x)):
        assert np.all(np.isfinite(eqx.filter_jit(call)(jnp.asarray(0.9))))
        with pytest.raises(Exception, match="no signal is left"):
            jax.block_until_ready(eqx.filter_jit(call)(jnp.asarray(1.0)))


def test_a_rectified_flow_starts_at_pure_noise():
    """t1 = 1: data N(m, s²) come out of N(0, 1) scaled and shifted, exactly."""
    sde = eqd.RectifiedFlow(t0=1e-4, t1=1.0)
    oracle = eqd.GaussianDenoiser(sde, 0.3, 0.5)

    def net(c_noise, x, args, *, key):
        estimate = oracle(c_noise / 1000, x)
        return estimate.noise - estimate.x0

    sampler = eqd.ProbabilityFlow(rtol=1e-6, atol=1e-6)
    sample = sampler(eqd.Denoiser(net, sde, eqd.PredictFlow()), jnp.asarray([-1.0, 0.5, 2.0]))
    np.testing.assert_allclose(sample, 0.3 + 0.5 * np.array([-1.0, 0.5, 2.0]), atol=2e-5)


def within(process):
    """Pairs s < t, close and far."""
    s = process.t0 + (process.t1 - process.t0) * jnp.asarray([0.0, 0.2, 0.5, 0.0])
    return s, process.t0 + (process.t1 - process.t0) * jnp.asarray([0.1, 0.21, 0.9, 1.0])


@processes
def test_transitions_compose_to_the_marginals(sde, x64):
    """Noising from 0 to s and on to t is noising to t: for each mean and variance."""
    s, t = within(sde)
    check_composition(sde, s, t)
    if isinstance(sde, eqd.Schedule):
        check_composition(sde, jnp.asarray([0, 3, 10, 0]), jnp.asarray([1, 4, 29, 169]))


def check_composition(sde, s, t):
    a, b = quick_jit(jax.vmap(sde.transition))(s, t)
    alpha_s, sigma_s, alpha_t, sigma_t = (
        over(f, u) for u in (s, t) for f in (sde.alpha, sde.sigma)
    )
    np.testing.assert_allclose(a * alpha_s, alpha_t, rtol=1e-12)
    np.testing.assert_allclose(a**2 * sigma_s**2 + b**2, sigma_t**2, rtol=1e-9)
    assert np.all(np.asarray(jax.vmap(sde.transition)(t, t)[1]) == 0)


def test_between_and_at_whole_times_a_step_is_the_same(x64):
    for schedule in (PROCESSES["cosine schedule"], PROCESSES["linear schedule"]):
        t = jnp.arange(1, schedule.num_steps)
        whole = quick_jit(jax.vmap(schedule.transition))(t - 1, t)
        between = quick_jit(jax.vmap(schedule.transition))(*(u.astype(float) for u in (t - 1, t)))
        for one, other in zip(whole, between, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-9)
        np.testing.assert_allclose(whole[0], np.sqrt(1 - schedule.betas[1:]), rtol=1e-12)
        np.testing.assert_allclose(whole[1], np.sqrt(schedule.betas[1:]), rtol=1e-10)


# The official float32 code's own error of VE's step noise, relative to the largest.
OFFICIAL = (golden_tolerance(BASICS, "VESDE/forward/G") - 1e-6) / 5


@processes
def test_a_fine_step_keeps_its_digits_in_float32(sde):
    """On a grid of 1000 steps, compiled. A difference of two rounded λ would be off by 1.6e-5."""
    times = np.linspace(float(sde.t0), float(sde.t1), 1001).astype(np.float32)
    pairs = [(times[:-1], times[1:])]
    if isinstance(sde, eqd.Schedule):
        t = np.arange(1, sde.num_steps, dtype=np.int32)
        pairs.append((t - 1, t))
    for s, t in pairs:
        with jax.enable_x64(False):
            a, b = jax.jit(jax.vmap(sde.transition))(jnp.asarray(s), jnp.asarray(t))
        assert a.dtype == b.dtype == jnp.float32
        with jax.enable_x64(True):
            # The same times: what is measured is the arithmetic.
            high = [jnp.asarray(u, float if u.dtype == np.float32 else u.dtype) for u in (s, t)]
            true_a, true_b = jax.jit(jax.vmap(sde.transition))(*high)
        for one, truth in ((a, true_a), (b, true_b)):
            np.testing.assert_allclose(one, truth, rtol=OFFICIAL)


@processes
def test_the_fall_of_the_log_snr_in_float32(sde):
    """Positive, 0 for no step, and to 1e-5 of itself however short the step."""
    span = float(sde.t1) - float(sde.t0)
    t = np.float32(float(sde.t0) + 0.4 * span)
    s = np.array([np.nextafter(t, np.float32(0)), *(t - span * np.geomspace(1e-5, 0.3, 9))])
    s = s.astype(np.float32)

    def falls(dtype):
        return jax.jit(jax.vmap(lambda s: sde.log_snr_fall(s, jnp.asarray(t, dtype))))(
            jnp.asarray(s, dtype)
        )

    low = np.asarray(falls(jnp.float32))
    with jax.enable_x64(True):
        np.testing.assert_allclose(low, falls(jnp.float64), rtol=1e-5)
    assert np.all(low > 0) and float(sde.log_snr_fall(jnp.asarray(t), jnp.asarray(t))) == 0


def test_golden_discretisation_in_float32_under_jit():
    """As users run it: VE's step noise, from float32 times and compiled."""
    g = load_golden(BASICS)
    idx = g["VESDE/forward/idx"]
    with jax.enable_x64(False):
        times = [jnp.asarray(np.maximum(i, 0) / 999, jnp.float32) for i in (idx - 1, idx)]
        _, later = jax.jit(jax.vmap(VE.transition))(*times)
        first = jax.jit(jax.vmap(VE.sigma))(times[1])
        assert_golden(jnp.where(idx == 0, first, later), BASICS, "VESDE/forward/G")
        schedule = eqd.linear_schedule(1000)
        steps = [jnp.asarray(np.maximum(i, 0), jnp.int32) for i in (idx - 1, idx)]
        a, b = jax.jit(jax.vmap(schedule.transition))(*steps)
        alpha, sigma = (jax.jit(jax.vmap(f))(steps[1]) for f in (schedule.alpha, schedule.sigma))
        assert_golden(jnp.where(idx == 0, sigma, b), BASICS, "VPSDE/forward/G")
        # a − 1 cancels; its square does not: a² − 1 = −β.
        less = jnp.where(idx == 0, -(sigma**2), -(b**2)) / (1 + jnp.where(idx == 0, alpha, a))
        drift = less[:, None, None, None] * jnp.asarray(g["in/x"])
        assert_golden(drift, BASICS, "VPSDE/forward/f")


def test_golden_discretisation(x64):
    """The official `discretize`: a step of SMLD's and DDPM's, and Euler–Maruyama for sub-VP."""
    g, n = load_golden(BASICS), 1000
    x, t, idx = jnp.asarray(g["in/x"]), jnp.asarray(g["in/t"]), g["VESDE/forward/idx"]
    schedule = eqd.linear_schedule(n)
    assert_golden(schedule.betas.astype(np.float32), BASICS, "VPSDE/tables/discrete_betas")
    assert_golden(schedule.alpha_bar.astype(np.float32), BASICS, "VPSDE/tables/alphas_cumprod")
    for name, table in (
        ("sqrt_alphas_cumprod", schedule.alpha),
        ("sqrt_1m_alphas_cumprod", schedule.sigma),
    ):
        levels = over(table, jnp.arange(n)).astype(np.float32)
        assert_golden(levels, BASICS, f"VPSDE/tables/{name}")
    sigmas = over(VE.sigma, jnp.arange(n) / (n - 1)).astype(np.float32)
    assert_golden(sigmas, BASICS, "VESDE/tables/discrete_sigmas")
    for name, process, index in (
        ("VESDE", VE, jnp.asarray(idx) / (n - 1)),
        ("VPSDE", schedule, jnp.asarray(idx, jnp.int32)),
    ):
        # The first step starts at the data, where α = 1 and σ = 0.
        step = 1 / (n - 1) if process is VE else 1
        first = jax.vmap(process.alpha)(index), jax.vmap(process.sigma)(index)
        later = jax.vmap(process.transition)(jnp.maximum(index - step, 0), index)
        a, b = (np.where(idx == 0, one, other) for one, other in zip(first, later, strict=True))
        assert_golden(b.astype(np.float32), BASICS, f"{name}/forward/G")
        drift = (a - 1)[:, None, None, None] * np.asarray(x, np.float64)
        assert_golden(drift.astype(np.float32), BASICS, f"{name}/forward/f")
    assert_golden(jax.vmap(SUB_VP.drift)(t, x) / n, BASICS, "subVPSDE/forward/f")
    assert_golden(jax.vmap(SUB_VP.diffusion)(t) / n**0.5, BASICS, "subVPSDE/forward/G")
