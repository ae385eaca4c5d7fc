"""Processes against their own SDE, the official code, and float64."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from helpers import assert_golden, load_golden
from toys import quick_jit, sde_denoiser

import eqdiff as eqd


BASICS = "public_sde_basics"
VP, SUB_VP, VE = eqd.VPSDE(), eqd.SubVPSDE(), eqd.VESDE()
SCHEDULE = eqd.cosine_schedule(50)
GOLDEN = {"VPSDE": VP, "subVPSDE": SUB_VP, "VESDE": VE}
COSINE, EDM, FLOW = eqd.CosineVPSDE(), eqd.EDMSDE(), eqd.RectifiedFlow()
SHIFTED = eqd.CosineVPSDE(log_snr_shift=2 * math.log(64 / 256))
# VP again, from its α and σ alone.
KERNEL = eqd.KernelSDE(
    lambda t: jnp.exp(-0.5 * t * (0.1 + 9.95 * t)),
    lambda t: jnp.sqrt(-jnp.expm1(-t * (0.1 + 9.95 * t))),
    t0=1e-5,
    t1=1.0,
    c_noise=lambda t: 999 * t,
)
LEARNED = eqd.LearnedVPSDE(units=12)
SDES = {
    **GOLDEN,
    "odd VPSDE": eqd.VPSDE(0.3, 7.0, t0=1e-4, t1=0.9),
    "cosine": COSINE,
    "shifted": SHIFTED,
    "EDMSDE": EDM,
    "flow": FLOW,
    "kernel": KERNEL,
    "learned": LEARNED,
    "schedule": SCHEDULE,
}
sdes = pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
golden_sdes = pytest.mark.parametrize("name", GOLDEN)


def times(sde, n=41, dtype=None):
    """Half of them evenly spaced, half crowding to t0, where precision is lost."""
    t0, t1 = max(float(sde.t0), 1e-3 * float(sde.t1) * (float(sde.t0) == 0)), float(sde.t1)
    return jnp.asarray(np.concatenate([np.geomspace(t0, t1, n), np.linspace(t0, t1, n)]), dtype)


def over(function, t):
    return np.asarray(quick_jit(jax.vmap(function))(t), np.float64)


@sdes
def test_coefficients_are_those_of_the_sde(sde, x64):
    t = times(sde)
    t = t[t < sde.t1]

    def all_of(t):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        alpha_dot, sigma_dot = jax.grad(sde.alpha)(t), jax.grad(sde.sigma)(t)
        f = alpha_dot / alpha
        g2 = 2 * sigma * sigma_dot - 2 * f * sigma**2
        x = jnp.array([1.5, -2.0])
        return {
            "alpha_dot": (sde.alpha_dot(t), alpha_dot),
            "sigma_dot": (sde.sigma_dot(t), sigma_dot),
            "drift": (sde.drift(t, x), f * x),
            "diffusion": (sde.diffusion(t) ** 2, g2),
            "log_snr": (sde.log_snr(t), 2 * jnp.log(alpha / sigma)),
        }

    for name, (actual, truth) in jax.jit(jax.vmap(all_of))(t).items():
        np.testing.assert_allclose(actual, truth, rtol=1e-7, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", ["VPSDE", "subVPSDE", "odd VPSDE", "shifted", "flow"])
def test_marginal_solves_the_moment_equations(name, x64):
    """The variance of a linear SDE obeys V' = 2fV + g², its mean m' = fm: integrated by SciPy."""
    sde = SDES[name]
    t0, t1 = 1e-3, min(float(sde.t1), 0.99)
    coefficients = jax.jit(lambda t: (sde.drift(t, jnp.ones(())), sde.diffusion(t)))

    def field(t, y):
        f, g = (float(c) for c in coefficients(t))
        return [f * y[0], 2 * f * y[1] + g**2]

    start = [float(sde.alpha(t0)), float(sde.sigma(t0)) ** 2]
    end = scipy.integrate.solve_ivp(field, (t0, t1), start, rtol=1e-9, atol=1e-12).y[:, -1]
    truth = [float(sde.alpha(t1)), float(sde.sigma(t1)) ** 2]
    np.testing.assert_allclose(end, truth, rtol=1e-6)


@sdes
def test_time_inverts_log_snr(sde, x64):
    t = times(sde)
    log_snr = over(sde.log_snr, t)
    np.testing.assert_allclose(over(sde.time, jnp.asarray(log_snr)), t, rtol=1e-9, atol=1e-13)
    order = np.argsort(np.asarray(t), kind="stable")
    assert np.all(np.diff(log_snr[order])[np.diff(np.asarray(t)[order]) > 0] < 0)


@sdes
def test_derivative_of_the_inverse(sde, x64):
    t = times(sde, 5)
    t = t[t < sde.t1]
    slope = over(jax.grad(sde.log_snr), t)
    inverse_slope = over(lambda t: jax.grad(sde.time)(sde.log_snr(t)), t)
    np.testing.assert_allclose(inverse_slope * slope, 1, rtol=1e-6)


@sdes
def test_float32_is_accurate_over_the_whole_interval(sde, x64):
    methods = ["alpha", "sigma", "diffusion", "alpha_dot", "sigma_dot", "c_noise", "log_snr"]
    slopes = ["alpha", "sigma", "diffusion", "log_snr"]

    @quick_jit
    @jax.vmap
    def all_of(t):
        gradients = {f"d{name}/dt": jax.grad(getattr(sde, name))(t) for name in slopes}
        drift = sde.drift(t, jnp.ones_like(t))
        return {name: getattr(sde, name)(t) for name in methods} | gradients | {"drift": drift}

    # The same float32 times in both precisions: what is measured is the arithmetic.
    t32 = times(sde, dtype=jnp.float32)
    low, high = all_of(t32), all_of(t32.astype(jnp.float64))
    for name in low:
        assert low[name].dtype == jnp.float32, "a float32 time gives a float32 answer"
        # λ (and VE's c_noise) is a logarithm: an absolute error of it is a relative error of α/σ.
        rtol, atol = 2e-6, 4e-6 if name in ("log_snr", "c_noise") else 1e-30
        if sde is SCHEDULE:
            # Within a step its cubic amplifies the rounding of a time that runs to T.
            rtol, atol = 1e-5, 2e-5
        if name.startswith("d") or (sde is KERNEL and name.endswith("_dot")):
            # Automatic differentiation of a difference near 1 cancels where the slope is small:
            # that is what the closed forms are for. The diffusion is derived from α̇ and σ̇, so
            # that its derivative is a second derivative of σ, singular at the data: nothing here
            # takes it.
            share = 1e-4 if name == "ddiffusion/dt" else 2e-6
            atol = share * float(jnp.max(jnp.abs(high[name])))
        actual = np.asarray(low[name], np.float64)
        np.testing.assert_allclose(actual, high[name], rtol=rtol, atol=atol, err_msg=name)


def test_sub_vp_standard_deviation_is_vp_variance(x64):
    t = times(SUB_VP)
    b = over(SUB_VP._integral, t)
    np.testing.assert_allclose(over(SUB_VP.sigma, t), -np.expm1(-b), rtol=1e-13)
    np.testing.assert_allclose(over(SUB_VP.sigma, t), over(VP.sigma, t) ** 2, rtol=1e-12)
    np.testing.assert_allclose(over(SUB_VP.alpha, t), over(VP.alpha, t), rtol=1e-13)
    # B(t) itself, by quadrature of β.
    for i in (3, 60, 81):
        truth, _ = scipy.integrate.quad(lambda s: 0.1 + s * 19.9, 0, float(t[i]))
        np.testing.assert_allclose(b[i], truth, rtol=1e-12)


def test_ve_is_geometric(x64):
    t = times(VE)
    truth = 0.01 * (50 / 0.01) ** np.asarray(t)
    np.testing.assert_allclose(over(VE.sigma, t), truth, rtol=1e-13)
    np.testing.assert_allclose(over(VE.c_noise, t), np.log(truth), rtol=1e-12, atol=1e-13)
    assert np.all(over(VE.alpha, t) == 1)


def test_cosine_is_the_angle_and_its_shift_adds_to_the_log_snr(x64):
    t = times(COSINE)
    angle = 0.5 * np.pi * np.asarray(t)
    np.testing.assert_allclose(over(COSINE.alpha, t), np.cos(angle), rtol=1e-12)
    np.testing.assert_allclose(over(COSINE.sigma, t), np.sin(angle), rtol=1e-13)
    np.testing.assert_allclose(over(COSINE.log_snr, t), -2 * np.log(np.tan(angle)), atol=1e-11)
    moved = over(SHIFTED.log_snr, t) - over(COSINE.log_snr, t)
    # Four times as many pixels a side: a block of 4 × 4 averages noise of variance 16 down to 1.
    np.testing.assert_allclose(moved, -np.log(16), rtol=1e-11)
    np.testing.assert_allclose(over(SHIFTED.alpha, t) ** 2 + over(SHIFTED.sigma, t) ** 2, 1)
    # The schedule with the paper's offset set to zero has the same levels.
    schedule = eqd.cosine_schedule(100, offset=0.0)
    levels = over(COSINE.alpha, (jnp.arange(99) + 1) / 100)
    np.testing.assert_allclose(schedule.alpha_bar[:-1], levels**2, rtol=1e-10)


def test_edm_and_rectified_flow_by_definition(x64):
    t = times(EDM)
    np.testing.assert_array_equal(over(EDM.sigma, t), t)
    assert np.all(over(EDM.alpha, t) == 1) and np.all(over(EDM.alpha_dot, t) == 0)
    np.testing.assert_allclose(over(EDM.c_noise, t), np.log(np.asarray(t)) / 4, rtol=1e-13)
    np.testing.assert_allclose(over(EDM.diffusion, t) ** 2, 2 * np.asarray(t), rtol=1e-13)
    t = times(FLOW)
    np.testing.assert_allclose(over(FLOW.alpha, t) + over(FLOW.sigma, t), 1, rtol=1e-15)
    np.testing.assert_allclose(over(FLOW.c_noise, t), 1000 * np.asarray(t), rtol=1e-13)
    # x_t = (1 − t) x0 + t ε has the SDE −x/(1 − t) dt + √(2t/(1 − t)) dw.
    u = np.asarray(t)
    np.testing.assert_allclose(over(FLOW.diffusion, t) ** 2, 2 * u / (1 - u), rtol=1e-12)
    drift = over(lambda t: FLOW.drift(t, jnp.ones(())), t)
    np.testing.assert_allclose(drift, -1 / (1 - u), rtol=1e-12)


@golden_sdes
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_golden_marginals(name, compiled):
    sde, g = GOLDEN[name], load_golden(BASICS)
    x, t = jnp.asarray(g["in/x"]), jnp.asarray(g["in/t"])
    assert x.dtype == t.dtype == jnp.float32
    batch = (lambda f: jax.jit(jax.vmap(f))) if compiled else jax.vmap
    assert_golden(batch(sde.drift)(t, x), BASICS, f"{name}/forward/drift")
    assert_golden(batch(sde.diffusion)(t), BASICS, f"{name}/forward/diffusion")
    assert_golden(batch(sde.sigma)(t), BASICS, f"{name}/forward/std")
    mean = batch(lambda t, x: sde.perturb(t, x, jnp.zeros_like(x)))(t, x)
    assert_golden(mean, BASICS, f"{name}/forward/mean")
    noisy = batch(lambda t, z: sde.perturb(t, jnp.zeros_like(z), z))(t, x)
    np.testing.assert_allclose(
        noisy, batch(sde.sigma)(t)[:, None, None, None] * x, rtol=1e-6, atol=1e-12
    )


@golden_sdes
def test_golden_prior(name):
    sde, g = GOLDEN[name], load_golden(BASICS)
    z = jnp.asarray(g["in/z"])
    scaled = 20 * z if name == "VESDE" else z
    for batch in (jax.vmap, lambda f: jax.jit(jax.vmap(f))):
        assert_golden(batch(sde.prior_log_prob)(scaled), BASICS, f"{name}/forward/prior_logp")
    scale = sde.prior_scale().astype(z.dtype)
    assert_golden(scale * z, BASICS, f"{name}/prior_sampling/out")


@golden_sdes
def test_golden_score_and_reverse_drift(name):
    sde, g = GOLDEN[name], load_golden(BASICS)
    x, t = jnp.asarray(g["in/x"]), jnp.asarray(g["in/t"])
    denoiser = sde_denoiser(sde, g["in/p"], jnp.float32)
    score = quick_jit(jax.vmap(lambda t, x: eqd.score(denoiser, t, x)))(t, x)
    assert_golden(score, BASICS, f"{name}/score_fn_cont1/score")
    c_noise = denoiser.c_noise or (lambda process, t: process.c_noise(t))
    assert_golden(jax.vmap(lambda t: c_noise(sde, t))(t), BASICS, f"{name}/score_fn_cont1/labels")

    def reverse(t, x, share):
        score = eqd.score(denoiser, t, x)
        return sde.drift(t, x) - share * sde.diffusion(t) ** 2 * score

    for batch in (jax.vmap, lambda f: jax.jit(jax.vmap(f))):
        for which, share in (("pf0", 1.0), ("pf1", 0.5)):
            drift = batch(lambda t, x, share=share: reverse(t, x, share))(t, x)
            assert_golden(drift, BASICS, f"{name}/reverse_cont1_{which}/drift")


@pytest.mark.parametrize("process", [*GOLDEN.values(), EDM, FLOW, KERNEL, SCHEDULE])
def test_prior_sample_has_the_priors_law(process, getkey):
    z = np.asarray(process.prior_sample((20000,), key=getkey()), np.float64)
    scale = float(process.prior_scale())
    assert scipy.stats.kstest(z / scale, "norm").pvalue > 1e-3
    truth = scipy.stats.norm(0, scale).logpdf(z[:50]).sum()
    np.testing.assert_allclose(process.prior_log_prob(jnp.asarray(z[:50])), truth, rtol=1e-5)


def test_prior_stands_for_the_last_marginal():
    schedules = (eqd.linear_schedule(), eqd.cosine_schedule())
    for process in (VP, SUB_VP, VE, COSINE, SHIFTED, EDM, KERNEL, *schedules):
        last = eqd.uniform_times(process, 2)[0]
        sigma, alpha = float(process.sigma(last)), float(process.alpha(last))
        np.testing.assert_allclose(sigma, process.prior_scale(), rtol=1e-4)
        # What is left of the data is small next to the noise.
        assert alpha / sigma < 0.025


@sdes
def test_times_may_be_numbers_of_any_kind(sde):
    value = 1 if sde is SCHEDULE or sde.t1 == 1.0 else 0.5
    truth = float(sde.sigma(float(value)))
    for t in (value, np.asarray(value), jnp.asarray(value), jnp.asarray(value, jnp.float32)):
        np.testing.assert_allclose(sde.sigma(t), truth, rtol=1e-6)


def test_array_hyper_parameters_do_not_recompile_and_agree():
    traces = []

    @eqx.filter_jit
    def sigma(sde, t):
        traces.append(None)
        return sde.sigma(t), sde.log_snr(t), sde.diffusion(t), sde.time(sde.log_snr(t))

    t = jnp.asarray(0.3)

    def cosine(low, high):
        return eqd.CosineVPSDE(log_snr_shift=low, t1=0.9 if isinstance(high, float) else high / 100)

    for make in (eqd.VPSDE, eqd.SubVPSDE, eqd.VESDE, cosine):
        traces.clear()
        for low, high in ((0.1, 20.0), (0.2, 10.0)):
            arrays = sigma(make(jnp.asarray(low), jnp.asarray(high)), t)
            np.testing.assert_allclose(arrays, sigma.__wrapped__(make(low, high), t), rtol=1e-5)
        assert len(traces) == 3, "one trace for both, and one plain call each"


def test_perturb_keeps_the_precision_of_the_data(x64):
    x = jnp.ones((2, 3), jnp.float32)
    for process in (VP, SCHEDULE):
        assert process.perturb(1, x, x).dtype == jnp.float32
        assert process.drift(0.5, x).dtype == jnp.float32


def test_rates_that_reach_two_levels(x64):
    """EDM's ablation on its VP schedule: the rates by its formula, the steps by its own calls."""
    low, high, t0 = 0.002, 80.0, 1e-3
    b0, b1 = math.log1p(low**2), math.log1p(high**2)
    slope = 2 * (b0 / t0 - b1) / (t0 - 1)
    process = eqd.VPSDE(b1 - slope / 2, b1 + slope / 2, t0=t0)
    assert process.beta_min < 0
    golden = load_golden("public_edm_samplers")
    levels, y, denoised = (
        np.asarray(golden[f"ablation/edm_vp_vp_churn/call_{name}"], float)
        for name in ("sigma", "x", "D")
    )

    def at(level):
        t = process.time(-2 * jnp.log(level))
        slopes = process.alpha_dot(t), process.sigma_dot(t)
        return t, process.alpha(t), process.sigma(t) / process.alpha(t), *slopes

    t, alpha, level, alpha_dot, sigma_dot = jax.vmap(at)(jnp.asarray(levels))
    np.testing.assert_allclose(level, levels, rtol=1e-11)
    assert float(t[0]) == pytest.approx(1) and at(low)[0] == pytest.approx(t0, rel=1e-10)
    # Their σ(t) is √(e^(β_d t²/2 + β_min t) − 1).
    written = jnp.sqrt(jnp.expm1(0.5 * slope * t**2 + float(process.beta_min) * t))
    np.testing.assert_allclose(level, written, rtol=1e-10)
    # Every second call is one Euler step of the scaled flow from the call before.
    start, end = slice(0, -1, 2), slice(1, None, 2)
    wide = lambda a, part: a[part].reshape(-1, 1, 1, 1, 1)  # noqa: E731
    x, noise = wide(alpha, start) * y[start], (y[start] - denoised[start]) / wide(levels, start)
    flow = wide(alpha_dot, start) * denoised[start] + wide(sigma_dot, start) * noise
    x = x + wide(t[end] - t[start], slice(None)) * flow
    np.testing.assert_allclose(x / wide(alpha, end), y[end], rtol=1e-9, atol=1e-9)


def test_the_official_table_of_noise_levels(x64):
    """All of it, the lowest among them: N evenly spaced times from 1 to 0."""
    process = eqd.VESDE(0.01, 50.0, t0=0.0)
    times = eqd.uniform_times(process, 1000)
    levels = np.asarray(jax.vmap(process.sigma)(times))
    np.testing.assert_allclose(levels, np.geomspace(50.0, 0.01, 1000), rtol=1e-12)
    assert levels[-1] == 0.01 and float(process.log_snr(0.0)) == pytest.approx(2 * math.log(100))
    sampler = eqd.PredictorCorrector(20)
    oracle = eqd.Denoiser(lambda c_noise, x, args, key: -x, process, eqd.PredictScore())
    x0 = sampler(oracle, jnp.ones(3), key=jax.random.key(0))
    assert bool(jnp.all(jnp.isfinite(x0)))


REFUSED = [
    (lambda: eqd.VPSDE(beta_min=-0.1), r"positive from t0 to t1.*β\(t0\) = -0.099799"),
    (lambda: eqd.VPSDE(beta_min=-0.1, t0=8e-3), r"its integral to t0, -0.000156"),
    (lambda: eqd.VPSDE(beta_max=-0.1), r"β\(t1\) = -0.1"),
    (lambda: eqd.VPSDE(beta_max=float("inf")), "beta_max=inf.*finite"),
    (lambda: eqd.SubVPSDE(beta_max=-1.0), "positive finite"),
    (lambda: eqd.VESDE(sigma_min=float("nan")), "positive finite"),
    (lambda: eqd.VESDE(sigma_min=2.0, sigma_max=1.0), "sigma_min < sigma_max"),
    (lambda: eqd.VPSDE(t0=0.0), "0 < t0 < t1"),
    (lambda: eqd.VESDE(t0=0.5, t1=0.1), "0 <= t0 < t1"),
    (lambda: eqd.VESDE(t0=-0.1), "0 <= t0 < t1"),
    (lambda: eqd.SubVPSDE(t1=1.5), "0 < t0 < t1"),
    (lambda: eqd.EDMSDE(t0=0.0), r"0 < t0 < t1, finite.*EDMSDE\(t0=1e-3\)"),
    (lambda: eqd.EDMSDE(t1=float("inf")), "0 < t0 < t1, finite"),
    (lambda: eqd.RectifiedFlow(t1=1.1), "0 < t0 < t1 <= 1"),
    (lambda: eqd.CosineVPSDE(t0=0.5, t1=0.5), "0 < t0 < t1 <= 1"),
    (lambda: eqd.CosineVPSDE(log_snr_shift=float("nan")), "expected a finite number"),
]


@pytest.mark.parametrize(("make", "match"), REFUSED)
def test_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
