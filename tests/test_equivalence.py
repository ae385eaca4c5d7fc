"""One model, many views: schedules and SDEs of every scaling are one thing."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_network
from toys import quick_jit

import eqdiff as eqd


WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[1.0, -0.5], [-0.8, 0.6]])
COVARIANCES = np.array([[[0.09, 0.02], [0.02, 0.05]], [[0.04, 0.0], [0.0, 0.16]]])
VIEWS = {
    "vp": eqd.VPSDE(),
    "sub_vp": eqd.SubVPSDE(),
    "ve": eqd.VESDE(),
    "edm": eqd.EDMSDE(),
    "cosine": eqd.CosineVPSDE(),
    "flow": eqd.RectifiedFlow(),
    "schedule": eqd.cosine_schedule(1000),
    "kernel": eqd.KernelSDE(lambda t: jnp.exp(-t), lambda t: 0.5 * t**2, t0=1e-2, t1=6.0),
}
# log-SNRs that all of them reach, from noise to data.
LEVELS = np.array([-6.0, -3.0, -1.0, 0.0, 1.5, 4.0])
START = np.array([0.7, -1.1])


def mixture(process):
    return eqd.GaussianMixtureDenoiser(process, WEIGHTS, MEANS, COVARIANCES)


def trajectory(process):
    """x/α at LEVELS on the probability flow through one point, in the process's own time."""
    times = jax.vmap(process.time)(jnp.asarray(LEVELS))
    alphas = jax.vmap(process.alpha)(times)

    @quick_jit
    def solve():
        return diffrax.diffeqsolve(
            eqd.terms.probability_flow(mixture(process)),
            diffrax.Dopri8(),
            t0=times[0],
            t1=times[-1],
            dt0=None,
            # At λ = −6, x/α is e³ times a unit normal.
            y0=alphas[0] * np.exp(3.0) * jnp.asarray(START),
            saveat=diffrax.SaveAt(ts=times),
            stepsize_controller=diffrax.PIDController(rtol=1e-9, atol=1e-9),
            max_steps=100_000,
        ).ys

    return np.asarray(solve() / alphas[:, None])


@pytest.fixture(scope="module")
def reference():
    return trajectory(VIEWS["edm"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vp", "ve", "cosine", "flow", "schedule", "kernel"])
def test_every_scaling_has_the_same_flow(name, reference, x64):
    """In x/α against λ the probability flow knows nothing of α and σ themselves."""
    path = trajectory(VIEWS[name])
    # A schedule interpolates a table, by a curve that is smooth enough for a solver of order eight.
    np.testing.assert_allclose(path, reference, atol=2e-7, rtol=2e-7)
    assert np.max(np.abs(path[-1] - path[0])) > 1, "it goes somewhere"


@pytest.fixture(scope="module")
def network():
    """Any network, trained on a schedule of 1000 steps as far as it can tell."""
    net = random_network(lambda key: eqd.nn.MLP(2, 2, width=16, depth=2, key=key), seed=7)
    return jax.tree.map(lambda w: w.astype(float), net)


def test_one_network_is_the_same_model_in_every_view(network, x64):
    """x̂0 at whole and real times, on VP with another c_noise, and where x is scaled."""
    schedule = eqd.linear_schedule(1000)
    t = jnp.asarray([30, 400, 700])
    x = jnp.asarray([[0.3, -0.4], [1.2, 0.1], [-0.7, 0.9]])

    def c_noise_at(log_snr):
        return schedule.c_noise(schedule.time(log_snr))

    def rescaled(process):
        """The network wants VP's x: for another process it is x/√(α² + σ²)."""

        def net(s, x, args, *, key):
            scale = jax.lax.rsqrt(process.alpha(s) ** 2 + process.sigma(s) ** 2)
            return network(c_noise_at(process.log_snr(s)), scale.astype(x.dtype) * x)

        return eqd.Denoiser(net, process, c_noise=lambda process, s: s)

    @quick_jit
    @jax.vmap
    def run(t, x):
        one = eqd.Denoiser(network, schedule)(t, x)
        log_snr = schedule.log_snr(t)
        views = {"real": eqd.Denoiser(network, schedule)(t.astype(float), x)}
        vp = eqd.VPSDE()
        s = vp.time(log_snr)
        same = lambda process, s: c_noise_at(process.log_snr(s))  # noqa: E731
        views["vp"] = eqd.Denoiser(network, vp, c_noise=same)(s, x)
        for name in ("edm", "ve", "flow", "sub_vp"):
            process = VIEWS[name]
            s = process.time(log_snr)
            # The schedule's x, brought to the process's own scale.
            views[name] = rescaled(process)(s, process.alpha(s) / schedule.alpha(t) * x)
        return one, views

    one, views = run(t, x)
    assert np.max(np.abs(one.noise)) > 0.1, "it says something"
    for name, other in views.items():
        np.testing.assert_allclose(other.x0, one.x0, rtol=1e-8, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(other.noise, one.noise, rtol=1e-8, atol=1e-9, err_msg=name)


def test_parameterisations_are_views_of_one_model(network, x64):
    """A network that predicts ε, read as each other target, is the same denoiser."""
    x = jnp.asarray([0.4, -0.9])
    for name in ("sub_vp", "flow"):
        process = VIEWS[name]

        @quick_jit
        def run(process=process):
            t = process.time(jnp.asarray(0.5))
            estimates = [eqd.Denoiser(network, process)(t, x)]
            for other in (
                eqd.PredictData(),
                eqd.PredictVelocity(),
                eqd.PredictScore(),
                eqd.PredictFlow(),
                eqd.EDMPreconditioning(),
            ):
                output = other.target(process, t, estimates[0].x0, estimates[0].noise)
                net = lambda *_, key, f=output: f  # noqa: E731
                estimates.append(eqd.Denoiser(net, process, other)(t, x))
            return estimates

        one, *others = run()
        for two in others:
            np.testing.assert_allclose(two.x0, one.x0, rtol=1e-9)
            np.testing.assert_allclose(two.noise, one.noise, rtol=1e-9)


def test_song_discretisation_of_vp_is_ddpm(x64):
    """β_i = β(i/(N − 1))/N at N = 1000 (Song et al. 2021, appendix B): the linear schedule
    exactly.
    """
    process, n = eqd.VPSDE(), 1000
    # At t = 0 itself, where σ = 0, the diffusion is a limit.
    times = jnp.maximum(jnp.arange(n) / (n - 1), 1e-15)
    rates = jax.vmap(process.diffusion)(times) ** 2 / n
    np.testing.assert_allclose(rates, eqd.linear_schedule(n).betas, rtol=1e-12)
    # `discretise` keeps the process's levels instead: equal to first order.
    exact = eqd.discretise(process, n).betas
    np.testing.assert_allclose(exact[50:], eqd.linear_schedule(n).betas[50:], rtol=0.03)


def test_every_variance_preserving_process_is_a_schedule(x64):
    for process in (eqd.CosineVPSDE(), eqd.CosineVPSDE(log_snr_shift=-2.0, t1=0.9), VIEWS["vp"]):
        schedule = eqd.discretise(process, 20)
        times = process.t1 * (np.arange(20) + 1) / 20
        levels = jax.vmap(process.alpha)(jnp.asarray(times))
        np.testing.assert_allclose(np.sqrt(schedule.alpha_bar), levels, rtol=1e-9)
    for process in (eqd.EDMSDE(), eqd.RectifiedFlow()):
        with pytest.raises(
            ValueError, match=r"not variance-preserving.*process.transition\(s, t\)"
        ):
            eqd.discretise(process, 20)


def slope(steps, errors):
    return np.polyfit(np.log(steps), np.log(errors), 1)[0]


def test_one_ancestral_step_is_one_step_of_the_reverse_sde(x64):
    """Mean and noise of DDPM's step approach Euler–Maruyama's on the reverse SDE, as fast as one
    step can.
    """
    process, x, end = eqd.VPSDE(), jnp.asarray(START), 0.5
    brownian = diffrax.UnsafeBrownianPath(shape=(2,), key=jax.random.key(0))

    @quick_jit
    def run():
        drift = eqd.terms.reverse_sde(mixture(process), brownian).terms[0].vf(-end, x, None)
        return drift, mixture(process)(end, x).x0

    drift, x0 = run()
    steps, means, noises = np.array([200, 400, 800, 1600]), [], []
    for n in steps:
        schedule, index, h = eqd.discretise(process, int(n)), int(n) // 2 - 1, 1 / n
        # The schedule has the process's own levels there, so one estimate serves them all.
        mean = schedule.posterior_mean(index, x0, x)
        means.append(np.max(np.abs(mean - (x + h * drift))))
        noises.append(abs(np.sqrt(schedule.betas[index]) - process.diffusion(end) * np.sqrt(h)))
    assert abs(slope(steps, means) + 2) < 0.1
    assert abs(slope(steps, noises) + 1.5) < 0.1


def test_ancestral_sampling_tends_to_the_data(x64):
    """For Gaussian data: the moments of its samples, by recursion, at first order in 1/T."""
    mean, std, errors, steps = 0.4, 0.6, [], np.array([100, 200, 400, 800])
    for n in steps:
        schedule = eqd.discretise(eqd.VPSDE(), int(n))
        denoiser = eqd.GaussianDenoiser(schedule, mean, std)

        @quick_jit
        @jax.vmap
        def step(t, schedule=schedule, denoiser=denoiser):
            # A step is affine in x: its values at 0 and 1 are all there is to it.
            x = jnp.asarray([0.0, 1.0])
            return schedule.posterior_mean(t, denoiser(t, x).x0, x)

        values, variances = np.asarray(step(jnp.arange(n))), schedule.betas.copy()
        variances[0] = 0
        m, v = 0.0, 1.0
        for t in range(int(n) - 1, -1, -1):
            offset, slope_t = values[t, 0], values[t, 1] - values[t, 0]
            m, v = offset + slope_t * m, slope_t**2 * v + variances[t]
        errors.append([abs(m - mean), abs(v - std**2)])
    errors = np.asarray(errors)
    # The prior's own mismatch, e^{-B/2} of the mean, is all that is left of the first.
    assert errors[-1, 0] < 5e-3 and abs(slope(steps, errors[:, 1]) + 1) < 0.15
