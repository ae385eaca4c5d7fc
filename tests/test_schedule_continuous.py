"""A schedule between its steps: what the type of a time decides, the curve through them, and
discretisation.
"""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.interpolate
from toys import quick_jit

import eqdiff as eqd
from eqdiff._process import _interpolant
from eqdiff._process._interpolant import cubics


SCHEDULES = {
    "cosine": eqd.cosine_schedule(60),
    "linear": eqd.linear_schedule(60),
    "respaced": eqd.respace(eqd.cosine_schedule(400), eqd.section_timesteps(400, (25,))),
    # Respaced in sections of unlike density: kinks that a smooth curve would overshoot.
    "kinks": eqd.respace(eqd.linear_schedule(1000), eqd.section_timesteps(1000, (100, 5, 50))),
    "three": eqd.Schedule(np.array([0.1, 0.5, 0.2])),
    "two": eqd.Schedule(np.array([0.1, 0.5])),
}
schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
METHODS = ("alpha", "sigma", "log_snr", "c_noise")


def over(function, t):
    return np.asarray(quick_jit(jax.vmap(function))(jnp.asarray(t)), np.float64)


# What the type of a time decides


@schedules
def test_both_answers_agree_at_whole_times(schedule):
    t = np.arange(schedule.num_steps)
    for name in METHODS:
        whole, between = (over(getattr(schedule, name), u) for u in (t, t.astype(float)))
        np.testing.assert_allclose(between, whole, rtol=1e-6, atol=1e-6, err_msg=name)
    tables = (np.sqrt(schedule.alpha_bar), np.sqrt(1 - schedule.alpha_bar))
    for name, table in zip(METHODS, tables, strict=False):
        np.testing.assert_allclose(over(getattr(schedule, name), t), table, rtol=1e-7)


@schedules
def test_both_answers_agree_to_rounding_in_float64(schedule, x64):
    t = np.arange(schedule.num_steps)
    for name in METHODS:
        whole, between = (over(getattr(schedule, name), u) for u in (t, t.astype(float)))
        np.testing.assert_allclose(between, whole, rtol=1e-11, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", [*METHODS, "alpha_dot", "sigma_dot", "diffusion"])
def test_outside_a_schedule_a_traced_time_is_nan(name):
    """Not the nearest entry of a table: that is how Uniform(4000) trained on 1000 steps in
    silence.
    """
    schedule = SCHEDULES["cosine"]
    function = getattr(schedule, name)
    if name in METHODS:
        whole = over(function, np.array([-1000, -60, -1, 0, 59, 60, 1000]))
        np.testing.assert_array_equal(np.isnan(whole), [True, True, True, False, False, True, True])
    # By rounding a time may leave the interval.
    real = over(function, np.array([-1e3, -0.1, -1e-6, 1e-3, 58.9, 59 + 1e-6, 59.1, 1e4, np.nan]))
    np.testing.assert_array_equal(np.isnan(real), [True] * 2 + [False] * 4 + [True] * 3)


def test_outside_a_schedule_a_traced_loss_is_nan(getkey):
    denoiser, key = eqd.GaussianDenoiser(SCHEDULES["cosine"]), getkey()

    @quick_jit
    @jax.vmap
    def loss(t):
        return eqd.l_simple(eqd.predict(denoiser, t, jnp.zeros(3), key=key))

    values = loss(jnp.asarray([0, 59, 60, 4000, -1]))
    np.testing.assert_array_equal(np.isnan(values), [False, False, True, True, True])


REFUSED = [
    *((t, "outside .*times of a schedule are 0 to T - 1; T = 60") for t in (60, -1, 60.0, -0.5)),
    (np.int32(4000), "outside"),
    (jnp.asarray(60), "outside"),
    (float("nan"), "outside"),
]


@pytest.mark.parametrize(("t", "match"), REFUSED)
def test_outside_a_schedule_a_known_time_is_refused(t, match, getkey):
    denoiser, x = eqd.GaussianDenoiser(SCHEDULES["cosine"]), jnp.zeros(3)
    network = eqd.Denoiser(lambda c_noise, x, args, *, key: x, SCHEDULES["cosine"])
    for call in (
        lambda: network(t, x),
        lambda: eqd.predict(denoiser, t, x, key=getkey()),
        lambda: eqd.implicit_score_matching(denoiser, t, x),
    ):
        with pytest.raises(ValueError, match=match):
            call()


STEPS_ONLY = {
    "lookup": lambda s, t: s.lookup(s.betas, t),
    "posterior_mean": lambda s, t: s.posterior_mean(t, jnp.zeros(2), jnp.zeros(2)),
    "variance": lambda s, t: eqd.FixedSmall().log_variance(s, t, None),
}


@pytest.mark.parametrize("call", STEPS_ONLY.values(), ids=STEPS_ONLY)
def test_what_only_steps_have_is_refused_between_them(call):
    schedule = SCHEDULES["cosine"]
    assert np.all(np.isfinite(np.asarray(call(schedule, 3))))
    for t in (3.0, jnp.asarray(3.5)):
        with pytest.raises(ValueError, match=r"whole times of a schedule.*jnp\.rint\(t\)"):
            call(schedule, t)


def test_a_clipped_last_step_is_left_out_of_solves():
    assert SCHEDULES["cosine"].t1 == 58
    assert SCHEDULES["linear"].t1 == 59
    assert SCHEDULES["three"].t1 == 2 and SCHEDULES["two"].t1 == 1
    # The respaced schedule's last rate exceeds the clip, since it spans the clipped step.
    assert SCHEDULES["respaced"].betas[-1] >= 0.999 and SCHEDULES["respaced"].t1 == 23
    schedule = eqd.cosine_schedule(1000)
    assert float(schedule.alpha(schedule.t1)) > 1e-3
    # The step itself is there all the same, whole and as a real number.
    for t in (999, 999.0):
        assert 0 < float(schedule.alpha(t)) < 1e-4
        estimate = eqd.GaussianDenoiser(schedule)(t, jnp.ones(2))
        assert np.all(np.isfinite(estimate.noise))


# The curve


@schedules
def test_is_variance_preserving_and_strictly_noisier_between(schedule, x64):
    end = schedule.num_steps - 1
    t = np.linspace(0, end, 50 * schedule.num_steps + 1)
    assert np.all(np.diff(over(schedule.log_snr, t)) < 0)
    assert np.all(np.diff(over(schedule.c_noise, t)) > 0)
    alpha, sigma = over(schedule.alpha, t), over(schedule.sigma, t)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-12)
    inside = t[1:-1]
    assert np.all(over(schedule.diffusion, inside) > 0)
    # No overshoot: between two steps the log-SNR stays between theirs.
    i = np.minimum(inside.astype(int), end - 1)
    value = over(schedule.log_snr, inside)
    knots = schedule.log_snrs
    assert np.all((value <= knots[i] + 1e-12) & (value >= knots[i + 1] - 1e-12))


@pytest.mark.parametrize("name", ["linear", "cosine", "respaced"])
def test_the_curve_is_scipys_spline_where_that_is_monotone(name, x64):
    """Not-a-knot, through all steps but a clipped last one."""
    schedule = SCHEDULES[name]
    knots = np.arange(schedule.t1 + 1)
    spline = scipy.interpolate.CubicSpline(knots, schedule.log_snrs[: knots.size])
    t = np.linspace(0, schedule.t1, 700)
    np.testing.assert_allclose(over(schedule.log_snr, t), spline(t), rtol=1e-10, atol=1e-11)
    # So value, slope and second derivative are continuous at every step.
    slope = jax.grad(lambda t: 2 * jnp.log(schedule.alpha(t) / schedule.sigma(t)))
    inner = np.arange(1.0, schedule.t1)
    for derivative in (schedule.log_snr, slope, jax.grad(slope)):
        below, above = over(derivative, inner - 1e-9), over(derivative, inner + 1e-9)
        np.testing.assert_allclose(above, below, rtol=1e-6, atol=1e-6)


def test_where_a_spline_overshoots_the_curve_is_steffens(x64):
    """At kinks: slopes that are continuous and limited, second derivatives that jump."""
    schedule = SCHEDULES["kinks"]
    knots = np.arange(schedule.num_steps)
    spline = scipy.interpolate.CubicSpline(knots, schedule.log_snrs)
    t = np.linspace(0, schedule.t1, 20_000)
    assert np.any(spline(t, 1) > 0), "a spline would rise somewhere"
    rough = np.array([9.0, 8.9, 4.0, 3.9, 3.8, -1.0, -9.0, -9.1])
    for values in (schedule.log_snrs, rough):
        c = cubics(values)
        ends = c[:, 1], c[:, 1] + 2 * c[:, 2] + 3 * c[:, 3]
        np.testing.assert_allclose(ends[1][:-1], ends[0][1:], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(c.sum(1), values[1:], rtol=1e-12)
        # Steffen's limit: at most twice the smaller of the two neighbouring steps.
        step = np.abs(np.diff(values))
        limit = 2 * np.minimum(step[:-1], step[1:])
        assert np.all(np.abs(ends[0][1:]) <= limit * (1 + 1e-12))
        jump = (2 * c[:-1, 2] + 6 * c[:-1, 3]) - 2 * c[1:, 2]
        assert np.max(np.abs(jump)) > 1e-3


@pytest.mark.slow
def test_the_smooth_curve_saves_steps(x64, monkeypatch):
    """What a continuous second derivative is for: at 1e-8 Steffen's curve costs four times as
    many.
    """

    def steps(schedule):
        flow = eqd.terms.probability_flow(eqd.GaussianDenoiser(schedule, 0.3, 0.5))
        controller = diffrax.PIDController(rtol=1e-8, atol=1e-8)

        @quick_jit
        def solve(x):
            return diffrax.diffeqsolve(
                flow, diffrax.Tsit5(), schedule.t1, schedule.t0, None, x,
                stepsize_controller=controller, max_steps=10_000,
            ).stats["num_accepted_steps"]  # fmt: skip

        return int(solve(jnp.asarray([1.0, -0.4])))

    smooth = steps(eqd.linear_schedule(1000))
    monkeypatch.setattr(_interpolant, "_is_monotone", lambda c: False)
    # Tables are cached by content in each schedule: this one is new.
    assert 2 * smooth < steps(eqd.linear_schedule(1000))


def test_a_parabola_is_reproduced(x64):
    t = np.arange(12.0)
    c = cubics(5 - 0.9 * t - 0.05 * t**2)
    np.testing.assert_allclose(c[:, 2], -0.05, rtol=1e-10)
    np.testing.assert_allclose(c[:, 3], 0, atol=1e-12)
    np.testing.assert_allclose(c[:, 1], -0.9 - 0.1 * t[:-1], rtol=1e-10)


@schedules
def test_time_inverts_log_snr_in_both_precisions(schedule, x64):
    t = np.linspace(0, schedule.t1, 97)
    back = over(lambda t: schedule.time(schedule.log_snr(t)), t)
    np.testing.assert_allclose(back, t, atol=1e-9)
    there_and_back = quick_jit(jax.vmap(lambda value: schedule.log_snr(schedule.time(value))))
    low = there_and_back(jnp.asarray(over(schedule.log_snr, t), jnp.float32))
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, over(schedule.log_snr, t), atol=2e-4, rtol=1e-6)
    # Outside the schedule's range it saturates instead of diverging.
    ends = over(schedule.time, [1e3, -1e3])
    np.testing.assert_allclose(ends, [0, schedule.num_steps - 1], atol=1e-9)


def test_second_derivative_of_time(x64):
    schedule = SCHEDULES["cosine"]
    at = schedule.log_snr(20.4)
    ahead, behind = over(jax.grad(schedule.time), at + np.array([1e-4, -1e-4]))
    second = over(jax.grad(jax.grad(schedule.time)), at[None])[0]
    np.testing.assert_allclose(second, (ahead - behind) / 2e-4, rtol=1e-5)


# Discretisation


def _ddpm_error(num_steps):
    schedule = eqd.discretise(eqd.VPSDE(), num_steps)
    ddpm = eqd.linear_schedule(num_steps)
    return schedule, ddpm, float(np.max(np.abs(schedule.alpha_bar - ddpm.alpha_bar)))


def test_discretised_vp_is_ddpm_up_to_one_over_n():
    """Equal rates in the limit (Song et al. 2021, appendix B); both differ by O(1/T)."""
    schedule, ddpm, coarse = _ddpm_error(1000)
    assert coarse < 5e-3
    np.testing.assert_allclose(schedule.betas[100:], ddpm.betas[100:], rtol=0.02)
    errors = [_ddpm_error(n)[2] for n in (500, 1000, 2000, 4000)]
    ratios = np.divide(errors[:-1], errors[1:])
    np.testing.assert_allclose(ratios, 2, rtol=0.1)


@pytest.mark.parametrize(
    "process",
    [eqd.VPSDE(), eqd.VPSDE(t1=0.8), eqd.cosine_schedule(60)],
    ids=["vp", "short", "schedule"],
)
def test_discretised_levels_and_time_inputs_are_the_process_own(process, x64):
    num_steps = 40
    schedule = eqd.discretise(process, num_steps)
    times = process.t1 * np.arange(1, num_steps + 1) / num_steps
    t = np.arange(num_steps)
    np.testing.assert_allclose(over(schedule.alpha, t), over(process.alpha, times), rtol=1e-10)
    np.testing.assert_allclose(over(schedule.sigma, t), over(process.sigma, times), rtol=1e-10)
    np.testing.assert_allclose(schedule.c_noises, over(process.c_noise, times), rtol=1e-12)
    # And back: between its steps the schedule is the process again, its time being the index.
    between = np.arange(1, num_steps - 2) + 0.5
    inside = process.t1 * (between + 1) / num_steps
    np.testing.assert_allclose(
        over(schedule.alpha, between), over(process.alpha, inside), atol=3e-3
    )


def test_discretise_does_not_depend_on_the_callers_precision():
    with jax.enable_x64(False):
        low = eqd.discretise(eqd.VPSDE(), 50)
    with jax.enable_x64(True):
        high = eqd.discretise(eqd.VPSDE(), 50)
    assert low == high and low.betas.dtype == np.float64


@pytest.mark.parametrize("process", [eqd.VESDE(), eqd.SubVPSDE()])
def test_only_variance_preserving_processes_are_discretised(process):
    with pytest.raises(ValueError, match="not variance-preserving") as error:
        eqd.discretise(process, 50)
    shown = float(str(error.value).split("is ")[2].split(" ")[0])
    assert abs(shown - 1) > 0.1, "the message shows where it fails"
