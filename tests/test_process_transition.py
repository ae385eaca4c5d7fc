"""Transitions between two times, the official discretisations, and the end where no signal is left."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden
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
    "bridge": eqd.cosine_schedule(50),
    "chain": eqd.linear_schedule(30),
}


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
        estimate = oracle(label / 1000, x)
        return estimate.noise - estimate.x0

    sampler = eqd.ProbabilityFlow(rtol=1e-6, atol=1e-6)
    sample = sampler(eqd.Denoiser(net, sde, eqd.PredictFlow()), jnp.asarray([-1.0, 0.5, 2.0]))
    np.testing.assert_allclose(sample, 0.3 + 0.5 * np.array([-1.0, 0.5, 2.0]), atol=2e-5)


def within(process):
    """Pairs s < t, close and far."""
    if isinstance(process, eqd.Schedule):
        return jnp.asarray([0, 3, 10, 0]), jnp.asarray([1, 4, 29, 29])
    s = process.t0 + (process.t1 - process.t0) * jnp.asarray([0.0, 0.2, 0.5, 0.0])
    return s, process.t0 + (process.t1 - process.t0) * jnp.asarray([0.1, 0.21, 0.9, 1.0])


@pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
def test_transitions_compose_to_the_marginals(sde, x64):
    """Noising from 0 to s and on to t is noising to t: for each mean and variance."""
    s, t = within(sde)
    a, b = quick_jit(jax.vmap(sde.transition))(s, t)
    alpha_s, sigma_s, alpha_t, sigma_t = (
        over(f, u) for u in (s, t) for f in (sde.alpha, sde.sigma)
    )
    np.testing.assert_allclose(a * alpha_s, alpha_t, rtol=1e-12)
    np.testing.assert_allclose(a**2 * sigma_s**2 + b**2, sigma_t**2, rtol=1e-9)
    assert np.all(np.asarray(jax.vmap(sde.transition)(t, t)[1]) == 0)


def test_golden_discretisation(x64):
    """The official `discretize`: one step of SMLD's and DDPM's chains, and Euler–Maruyama for sub-VP."""
    g, n = load_golden(BASICS), 1000
    x, t, idx = jnp.asarray(g["in/x"]), jnp.asarray(g["in/t"]), g["VESDE/forward/idx"]
    chain = eqd.linear_schedule(n)
    assert_golden(chain.betas.astype(np.float32), BASICS, "VPSDE/tables/discrete_betas")
    assert_golden(chain.alpha_bar.astype(np.float32), BASICS, "VPSDE/tables/alphas_cumprod")
    for name, table in (
        ("sqrt_alphas_cumprod", chain.alpha),
        ("sqrt_1m_alphas_cumprod", chain.sigma),
    ):
        levels = over(table, jnp.arange(n)).astype(np.float32)
        assert_golden(levels, BASICS, f"VPSDE/tables/{name}")
    sigmas = over(VE.sigma, jnp.arange(n) / (n - 1)).astype(np.float32)
    assert_golden(sigmas, BASICS, "VESDE/tables/discrete_sigmas")
    for name, process, index in (
        ("VESDE", VE, jnp.asarray(idx) / (n - 1)),
        ("VPSDE", chain, jnp.asarray(idx, jnp.int32)),
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
