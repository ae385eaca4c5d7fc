"""EDM's preconditioning and the velocity of a flow: definitions, both ends in float32, and the
official numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden
from toys import quick_jit

import eqdiff as eqd
from eqdiff._denoiser import time_input


PRECOND = "public_edm_precond"
PROCESSES = {
    "vp": eqd.VPSDE(),
    "sub_vp": eqd.SubVPSDE(),
    "ve": eqd.VESDE(),
    "cosine": eqd.CosineVPSDE(),
    "edm": eqd.EDMSDE(),
    "flow": eqd.RectifiedFlow(),
    "schedule": eqd.cosine_schedule(60),
}
processes = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


def edm_toy(p):
    """The toy network of the EDM golden files; `args` is the class, one-hot."""

    def net(c, x, args=None, *, key=None):
        k = jnp.arange(x.shape[0], dtype=x.dtype).reshape(-1, 1, 1) - 0.5 * (x.shape[0] - 1)
        p0, p1, p2, p3 = jnp.asarray(p, x.dtype)
        place = 0 if args is None else jnp.sum(jnp.arange(args.size, dtype=args.dtype) * args)
        time = p1 * jnp.sign(c) * jnp.log1p(jnp.abs(c))
        return jnp.tanh(p0 * x + time + p2 * k + p3 * jnp.asarray(place, x.dtype))

    return net


def denoise(denoiser, labels):
    """D(x; σ) of the golden inputs by a denoiser on any process, where x/α has noise σ/α = σ; and
    c_noise.
    """
    g, process = load_golden(PRECOND), denoiser.process
    x, sigma, one_hot = (jnp.asarray(g[f"in/{key}"], float) for key in ("x", "sigma", "labels"))

    @quick_jit
    @jax.vmap
    def run(x, sigma, one_hot):
        t = process.time(-2 * jnp.log(sigma))
        estimate = denoiser(t, process.alpha(t) * x, one_hot if labels else None)
        return estimate.x0, time_input(process, denoiser.c_noise, t, like=x)

    return (np.asarray(a, np.float32) for a in run(x, sigma, one_hot))


def official(name):
    """The eqdiff objects that an official preconditioner is."""
    net = edm_toy(load_golden(PRECOND)["in/p"])
    if name == "EDMPrecond":
        return eqd.Denoiser(net, eqd.EDMSDE(), eqd.EDMPreconditioning(0.5))
    if name == "sigma_data":
        return eqd.Denoiser(net, eqd.EDMSDE(), eqd.EDMPreconditioning(0.7))
    if name == "VPPrecond":
        return eqd.Denoiser(net, eqd.VPSDE(0.1, 20.0))
    if name == "custom":
        # Its network knows the times of a schedule of 500 steps.
        process = eqd.VPSDE(0.2, 15.2)
        return eqd.Denoiser(net, process, c_noise=eqd.ScaledTime(499.0))
    # VEPrecond adds σF to x: F is the score times σ, what the score-SDE code calls scale_by_sigma.
    process = eqd.EDMSDE()
    scaled = lambda c, x, args, *, key: net(c, x, args) / (2 * jnp.exp(c))  # noqa: E731
    return eqd.Denoiser(scaled, process, eqd.PredictScore(), c_noise=eqd.LogNoise(0.5))


@pytest.mark.parametrize("labels", [0, 4])
@pytest.mark.parametrize("name", ["EDMPrecond", "VPPrecond", "VEPrecond"])
def test_golden_preconditioners(name, labels, x64):
    x0, c_noise = denoise(official(name), labels)
    assert_golden(x0, PRECOND, f"{name}/label{labels}/D")
    assert_golden(c_noise, PRECOND, f"{name}/label{labels}/c_noise")


@pytest.mark.parametrize("case", ["EDMPrecond/sigma_data", "VPPrecond/custom"])
def test_golden_preconditioners_with_arguments(case, x64):
    # Without class labels, as for label_dim=0.
    x0, c_noise = denoise(official(case.split("/")[1]), 0)
    assert_golden(x0, PRECOND, f"{case}/D")
    assert_golden(c_noise, PRECOND, f"{case}/c_noise")


def test_golden_vp_times(x64):
    g, process = load_golden(PRECOND), eqd.VPSDE(0.2, 15.2, t0=1e-4)

    def level(t):
        return jnp.exp(-0.5 * process.log_snr(t))

    t = jnp.asarray(g["VPPrecond/custom/t"])
    assert_golden(jax.vmap(level)(t), PRECOND, "VPPrecond/custom/sigma_of_t")
    inverse = jax.vmap(lambda s: process.time(-2 * jnp.log(s)))(jnp.asarray(g["in/sigma"], float))
    assert_golden(inverse, PRECOND, "VPPrecond/custom/t_of_sigma")
    for which, p in (("custom", process), ("range", eqd.VPSDE())):
        ends = (("sigma_min", p.t0), ("sigma_max", p.t1))
        for key, t in ends:
            level_there = np.exp(-0.5 * np.asarray(p.log_snr(t), np.float64))
            assert_golden(level_there.astype(np.float32), PRECOND, f"VPPrecond/{which}/{key}")


@pytest.mark.parametrize("labels", [0, 4])
def test_golden_iddpm_preconditioner(labels, x64):
    """iDDPM's cosine schedule, where σ may lie between two levels; c_noise is the nearest step.

    Below the schedule's first level there is no step: the official code gives its network −1 there,
    which it never saw in training. That one is not followed.
    """
    schedule = eqd.cosine_schedule(1000)
    net = edm_toy(load_golden(PRECOND)["in/p"])
    nearest = lambda process, t: jnp.rint(t)  # noqa: E731
    x0, c_noise = denoise(eqd.Denoiser(net, schedule, c_noise=nearest), labels)
    for key, actual in (("D", x0), ("c_noise", c_noise)):
        name = f"iDDPMPrecond/label{labels}/{key}"
        assert_golden(actual[1:], PRECOND, name, expected=load_golden(PRECOND)[name][1:])


@pytest.mark.parametrize("steps", [1000, 200])
def test_golden_iddpm_levels_are_the_cosine_schedules(steps, x64):
    """`u`, from the noisiest (j = 0) to none, is σ/α of the schedule at t = M − 1 − j."""
    g, schedule = load_golden(PRECOND), eqd.cosine_schedule(steps)
    case = f"iDDPMPrecond/table_M{steps}"
    levels = np.sqrt(1 / schedule.alpha_bar - 1)[::-1]
    u = g[f"{case}/u"]
    assert u[-1] == 0
    assert_golden(np.append(levels, 0).astype(np.float32), PRECOND, f"{case}/u")
    # Entry by entry it is a float32 recursion, off by up to 5e-4 at its tail.
    np.testing.assert_allclose(u[:-1], levels, rtol=1e-3)
    assert_golden(levels[0].astype(np.float32), PRECOND, f"{case}/sigma_max")
    assert_golden(levels[-1].astype(np.float32), PRECOND, f"{case}/sigma_min")
    # The nearest level is the nearest step, or its neighbour where σ lies almost half way.
    probe, index = g[f"{case}/probe"], g[f"{case}/index"]
    inside = (probe > levels[-1]) & (probe < levels[1])
    t = jax.vmap(schedule.time)(-2 * jnp.log(jnp.asarray(probe[inside])))
    assert inside.sum() > 30 and np.max(np.abs(np.rint(t) - (steps - 1 - index[inside]))) <= 1


@processes
def test_edm_has_unit_variances_everywhere(process, x64):
    """The two requirements that define it, for data of variance σ_d² and any process."""
    data = 0.7
    t = jnp.linspace(process.t0, process.t1, 9)
    edm = eqd.EDMPreconditioning(data)

    @quick_jit
    @jax.vmap
    def run(t):
        unit, zero = jnp.ones(()), jnp.zeros(())
        # Maps linear in independent (x0, ε): the variance is the sum of the squares of their two
        # coefficients.
        inputs = edm.c_in(process, t) * jnp.stack(
            [process.perturb(t, data * unit, zero), process.perturb(t, zero, unit)]
        )
        targets = jnp.stack(
            [edm.target(process, t, data * unit, zero), edm.target(process, t, zero, unit)]
        )
        # A network that outputs 0 gives the best linear estimate of x0.
        skip, _ = edm.estimate(process, t, unit, zero)
        alpha, sigma = process.alpha(t), process.sigma(t)
        wiener = alpha * data**2 / (alpha**2 * data**2 + sigma**2)
        return jnp.sum(inputs**2), jnp.sum(targets**2), skip - wiener

    variance_in, variance_target, difference = run(t)
    np.testing.assert_allclose(variance_in, 1, rtol=1e-12)
    np.testing.assert_allclose(variance_target, 1, rtol=1e-12)
    np.testing.assert_allclose(difference, 0, atol=1e-12)


def test_edm_is_table_1_on_its_own_process(getkey, x64):
    x, f = jax.random.normal(getkey(), (2, 5))
    data, seen, vp = 0.5, [], eqd.VPSDE()

    def net(c_noise, x, args, *, key):
        seen.append((c_noise, x))
        return f

    for s in (0.002, 0.3, 80.0):
        estimate = eqd.Denoiser(net, eqd.EDMSDE(), eqd.EDMPreconditioning(data))(s, x)
        c_noise, given = seen.pop()
        np.testing.assert_allclose(c_noise, np.log(s) / 4, rtol=1e-12)
        np.testing.assert_allclose(given, x / np.sqrt(s**2 + data**2), rtol=1e-12)
        skip, out = data**2 / (s**2 + data**2), s * data / np.sqrt(s**2 + data**2)
        np.testing.assert_allclose(estimate.x0, skip * x + out * f, rtol=1e-12)
        np.testing.assert_allclose(estimate.noise, (x - estimate.x0) / s, rtol=1e-9, atol=1e-12 / s)
        # On a VP process, x/α is what EDM's process would have: the same answer.
        t = vp.time(-2 * jnp.log(s))
        denoiser = eqd.Denoiser(
            net,
            vp,
            eqd.EDMPreconditioning(data),
            c_noise=lambda process, t: -process.log_snr(t) / 8,
        )
        other = denoiser(t, vp.alpha(t) * x)
        c_noise, given = seen.pop()
        np.testing.assert_allclose(c_noise, np.log(s) / 4, rtol=1e-9)
        np.testing.assert_allclose(given, x / np.sqrt(s**2 + data**2), rtol=1e-10)
        np.testing.assert_allclose(other.x0, estimate.x0, rtol=1e-9, atol=1e-12)


def test_edm_of_unit_data_is_minus_the_velocity(getkey, x64):
    x, output = jax.random.normal(getkey(), (2, 5))
    for process in (eqd.VPSDE(), eqd.CosineVPSDE(log_snr_shift=-2.0)):
        for t in (process.t0, 0.5, process.t1):
            one = eqd.EDMPreconditioning(1.0).estimate(process, jnp.asarray(t), x, -output)
            two = eqd.PredictVelocity().estimate(process, jnp.asarray(t), x, output)
            np.testing.assert_allclose(one, two, rtol=1e-10, atol=1e-12)


@processes
def test_flow_is_the_time_derivative_of_the_path(process, getkey, x64):
    """The target is ẋ_t by automatic differentiation; the estimate gives it back as the flow's
    velocity.
    """
    x0, noise = jax.random.normal(getkey(), (2, 5))

    @quick_jit
    @jax.vmap
    def run(t):
        path = lambda t: process.perturb(t, x0, noise)  # noqa: E731
        x, x_dot = jax.jvp(path, (t,), (jnp.ones_like(t),))
        target = eqd.PredictFlow().target(process, t, x0, noise)
        denoiser = eqd.Denoiser(lambda *_, key: target, process, eqd.PredictFlow())
        velocity = eqd.terms.probability_flow(denoiser).vf(t, x, None)
        return x_dot, target, velocity

    inside = process.t0 + (process.t1 - process.t0) * jnp.asarray([1e-3, 0.3, 0.999])
    x_dot, target, velocity = run(inside)
    np.testing.assert_allclose(target, x_dot, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(velocity, target, rtol=1e-8, atol=1e-10)


def test_a_rectified_flows_network_is_noise_minus_data(getkey):
    x0, noise = jax.random.normal(getkey(), (2, 5))
    process = eqd.RectifiedFlow(t1=1.0)
    for t in (0.001, 0.4, 1.0):
        np.testing.assert_allclose(
            eqd.PredictFlow().target(process, t, x0, noise), noise - x0, rtol=1e-6
        )
        x = process.perturb(t, x0, noise)
        estimate = eqd.Denoiser(lambda *_, key: noise - x0, process, eqd.PredictFlow())(t, x)
        np.testing.assert_allclose(estimate.x0, x0, atol=1e-6)
        np.testing.assert_allclose(estimate.noise, noise, atol=1e-6)


@processes
@pytest.mark.parametrize(
    "parameterisation", [eqd.EDMPreconditioning(), eqd.PredictFlow()], ids=["edm", "flow"]
)
def test_float32_is_accurate_at_both_ends(process, parameterisation, getkey, x64):
    """Either estimate is as good as its inputs: each has its own closed form."""
    x0, noise = jax.random.normal(getkey(), (2, 64))
    t = jnp.asarray([process.t0, process.t1], jnp.float32).astype(float)

    @quick_jit
    @jax.vmap
    def run(t):
        x = process.perturb(t, x0, noise)
        output = parameterisation.target(process, t, x0, noise)
        # The same float32 inputs in both precisions: what is measured is the arithmetic.
        inputs = [a.astype(jnp.float32) for a in (x, output)]
        low = parameterisation.estimate(process, t.astype(jnp.float32), *inputs)
        high = parameterisation.estimate(process, t, *(a.astype(float) for a in inputs))
        scale = jnp.max(jnp.abs(jnp.stack(inputs)), axis=1), process.alpha(t), process.sigma(t)
        return low, high, scale

    low, high, (_, alpha, sigma) = run(t)
    assert low[0].dtype == low[1].dtype == jnp.float32
    # What rounding x to float32 does to anyone: an error of x is one of x0 over α, of ε over σ.
    spread = np.maximum(np.asarray(alpha), np.asarray(sigma))[:, None]
    for name, one, other, level in (("x0", low[0], high[0], alpha), ("ε", low[1], high[1], sigma)):
        allowed = 4e-6 * np.maximum(
            1, spread / np.maximum(np.asarray(level)[:, None], spread / 100)
        )
        assert np.all(np.abs(np.asarray(one, float) - other) <= allowed * 4), name


def test_sigma_data_may_be_an_array_of_any_precision(x64):
    x = jnp.ones(3, jnp.float32)
    for data in (0.5, jnp.asarray(0.5), jnp.asarray(0.5, jnp.float32)):
        estimate = eqd.Denoiser(lambda *_, key: x, eqd.EDMSDE(), eqd.EDMPreconditioning(data))(
            0.3, x
        )
        assert estimate.x0.dtype == jnp.float32
        np.testing.assert_allclose(estimate.x0, 0.25 / 0.34 + 0.15 / np.sqrt(0.34), rtol=1e-6)
