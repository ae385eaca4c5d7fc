"""EDM's stochastic sampler against NVlabs/edm with its recorded noise, and analytic flows."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden
from tape import in_precision, PRECISIONS, Tape
from toys import quick_jit

import eqdiff as eqd


FILE = "public_edm_samplers"
MEAN, STD = np.array([0.5, -1.0]), np.array([0.3, 1.2])
X1 = np.array([0.7, -1.3])


def golden(key):
    return jnp.asarray(load_golden(FILE)[key], float)


def toy(c_noise, x, args=None, *, key=None):
    """The golden file's toy network."""
    p = load_golden(FILE)["in/p"]
    channel = jnp.arange(3, dtype=x.dtype).reshape(3, 1, 1) - 1
    c = jnp.sign(c_noise) * jnp.log1p(jnp.abs(c_noise))
    return jnp.tanh(float(p[0]) * x + float(p[1]) * c + float(p[2]) * channel)


EDM = eqd.Denoiser(toy, eqd.EDMSDE(t0=1e-4, t1=200.0), eqd.EDMPreconditioning())


@pytest.fixture(params=PRECISIONS)
def precision(request):
    with in_precision(request.param):
        yield


class Recording(eqd.AbstractWrapper):
    """Notes the level σ/α of each call, in order."""

    denoiser: eqd.AbstractDenoiser
    levels: list = eqx.field(static=True)

    def __call__(self, t, x, args=None, *, key=None):
        level = self.process.sigma(t) / self.process.alpha(t)
        jax.debug.callback(self.levels.append, level, ordered=True)
        return self.denoiser(t, x, args, key=key)


def states(sampler, denoiser, x1, noise=None, tape=None):
    """Every state and estimate of both recorded examples."""

    def run(x, z):
        key = None if tape is None else tape.play(z)
        path = sampler.trajectory(denoiser, x, key=key)
        return path.x, path.x0

    noise = jnp.zeros((1, 2)) if noise is None else noise
    return quick_jit(jax.vmap(run, in_axes=(0, 1), out_axes=1))(x1, noise)


def check(case, x, x0):
    """The last state, and the estimates at each step's start: every second call."""
    # The official state is float64 but its network float32: the tolerance of float32 numbers.
    assert_golden(x[-1].astype(jnp.float32), FILE, f"{case}/out")
    expected = load_golden(FILE)[f"{case}/call_D"][::2]
    assert_golden(x0.astype(jnp.float32), FILE, f"{case}/call_D", expected=expected)


CASES = {
    "edm_sampler/default18": (dict(), dict(num_steps=18, sigma_min=0.002, sigma_max=80.0)),
    "edm_sampler/churn": (
        dict(churn=40.0, churn_min=0.05, churn_max=50.0, noise=1.003),
        dict(num_steps=10, sigma_min=0.002, sigma_max=80.0),
    ),
    "edm_sampler/rho3": (dict(), dict(num_steps=9, rho=3.0, sigma_min=0.01, sigma_max=20.0)),
    "ablation/edm_alpha": (dict(midpoint=0.7), dict(num_steps=9, sigma_min=0.002, sigma_max=80.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_edm_sampler(case, precision, monkeypatch):
    kwargs, grid = CASES[case]
    sampler = eqd.StochasticHeun(times=eqd.karras_times(EDM.process, **grid), **kwargs)
    x1 = golden("in/latents") * grid["sigma_max"]
    noise = golden("in/noise")[: grid["num_steps"]]
    x, x0 = states(sampler, EDM, x1, noise, Tape(monkeypatch))
    check(case, x, x0)


@pytest.mark.parametrize("case", CASES)
def test_levels_of_the_edm_sampler(case, precision):
    """The official levels, those risen to and those of the second slopes among them."""
    kwargs, grid = CASES[case]
    sampler = eqd.StochasticHeun(times=eqd.karras_times(EDM.process, **grid), **kwargs)
    x1, calls = golden("in/latents")[0], load_golden(FILE)[f"{case}/call_sigma"]
    assert sampler.num_calls == len(calls)
    recording = Recording(EDM, [])
    quick_jit(lambda x: sampler(recording, x, key=jax.random.key(0)))(x1)
    jax.effects_barrier()
    rtol = 1e-12 if x1.dtype == jnp.float64 else 1e-5
    np.testing.assert_allclose(recording.levels, calls, rtol=rtol)


SCHEDULE = eqd.cosine_schedule(1000)


@pytest.mark.parametrize("case", ["edm_sampler/iddpm_net", "ablation/iddpm_heun"])
def test_on_a_schedule(case, precision):
    """iDDPM's levels u_j are σ/α of the cosine schedule: EDM's sampler for it is ours there."""
    calls = load_golden(FILE)[f"{case}/call_sigma"][::2]
    low = float(calls[-1])
    if case.startswith("edm"):
        times = eqd.karras_times(SCHEDULE, 9, sigma_min=low, sigma_max=80.0)
    else:
        times = eqd.schedule_times(SCHEDULE, 9, sigma_min=low, sigma_max=81.0)
    # The official sampler rounds each level to one of the table's; ours goes between the steps.
    times = jnp.rint(times)
    level = jax.vmap(lambda t: SCHEDULE.sigma(t) / SCHEDULE.alpha(t))(times)
    # Their table is a float32 recursion.
    np.testing.assert_allclose(level, calls, rtol=6e-4)
    np.testing.assert_allclose(level[:-3], calls[:-3], rtol=2e-6)
    # iDDPMPrecond gives the network M − 1 − j for the level u_j: our step.
    denoiser = eqd.Denoiser(toy, SCHEDULE, c_noise=lambda process, t: jnp.rint(t))
    sampler = eqd.StochasticHeun(times=times)
    x1 = golden("in/latents") * float(calls[0]) * SCHEDULE.alpha(times[0])
    x, _ = states(sampler, denoiser, x1)
    expected = golden(f"{case}/out")
    np.testing.assert_allclose(x[-1], expected, atol=2e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("case", ["vp_euler", "ve_heun"])
def test_other_clocks_are_diffrax_solves(case, x64):
    """The ablation's samplers in natural time: Diffrax's Euler and Heun, up to the last call."""
    calls = load_golden(FILE)[f"ablation/{case}/call_sigma"]
    if case == "vp_euler":
        process, solver, each = eqd.VPSDE(0.1, 20.0, t0=1e-3), diffrax.Euler(), 1
        times, sign = jnp.linspace(1.0, 1e-3, 9), 1
    else:
        process = eqd.KernelSDE(
            jnp.ones_like, jnp.sqrt, t0=4e-4, t1=1e4, c_noise=lambda t: jnp.log(0.5 * jnp.sqrt(t))
        )
        solver, each = diffrax.Heun(), 2
        # VEPrecond's c_out has the other sign.
        times, sign = 1e4 * (4e-4 / 1e4) ** jnp.linspace(0, 1, 9), -1
    levels = jax.vmap(lambda t: process.sigma(t) / process.alpha(t))(times)
    np.testing.assert_allclose(levels, calls[::each], rtol=1e-9)
    flow = eqd.ProbabilityFlow(solver, times=times)
    denoiser = eqd.Denoiser(lambda c_noise, x, args, key: sign * toy(c_noise, x), process)
    scale = process.sigma(times[0])
    run = jax.vmap(lambda x: flow.solve(denoiser, x).ys[-1] / process.alpha(times[-1]))
    x = quick_jit(run)(golden("in/latents") * scale)
    expected = load_golden(FILE)[f"ablation/{case}/call_x"]
    assert_golden(x.astype(jnp.float32), FILE, f"ablation/{case}/call_x", expected=expected[-1])


def exact_flow(process, x):
    """The flow of Gaussian data, down to them: x0 = m + (std/√C)(x − α m), C = α² S + σ²."""
    alpha, sigma = float(process.alpha(process.t1)), float(process.sigma(process.t1))
    return MEAN + STD / np.sqrt(alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)


@pytest.mark.parametrize("midpoint", [1.0, 0.5])
def test_deterministic_order(midpoint, x64):
    """Second order. The last level is so low that the Euler step from there is exact."""
    process = eqd.EDMSDE(t0=1e-5, t1=3.0)
    denoiser, errors = eqd.GaussianDenoiser(process, MEAN, STD), []
    for n in (40, 160):
        sampler = eqd.StochasticHeun(n, midpoint=midpoint)
        x = quick_jit(lambda x, s=sampler: s(denoiser, x))(jnp.asarray(X1))
        errors.append(np.abs(x - exact_flow(process, X1)).max())
    # The midpoint method happens to do better on this linear problem.
    order = np.log(errors[0] / errors[1]) / np.log(4)
    assert order > 1.8 and (order < 2.2 or midpoint != 1.0)


def test_all_processes_are_one(x64):
    """The same levels σ/α on VP and on EDM's process give the same x/α, churn and all."""
    vp = eqd.VPSDE()
    times = eqd.karras_times(vp, 8, sigma_max=20.0)
    levels = jax.vmap(lambda t: vp.sigma(t) / vp.alpha(t))(times)
    key, x1 = jax.random.key(0), jnp.asarray(X1) * levels[0]
    kwargs = dict(churn=2.0, churn_max=10.0)
    edm = eqd.GaussianDenoiser(eqd.EDMSDE(t0=1e-6, t1=30.0), MEAN, STD)
    one = eqd.StochasticHeun(times=levels, **kwargs)(edm, x1, key=key)
    other = eqd.StochasticHeun(times=times, **kwargs)(
        eqd.GaussianDenoiser(vp, MEAN, STD), x1 * vp.alpha(times[0]), key=key
    )
    np.testing.assert_allclose(one, other, rtol=1e-7)


def test_churn_keeps_the_distribution(x64):
    """With much churn and many steps the samples still have the data's mean and variance."""
    denoiser = eqd.GaussianDenoiser(eqd.EDMSDE(t1=20.0), MEAN, STD)
    sampler, n = eqd.StochasticHeun(40, churn=8.0), 4000
    prior, path = jax.random.split(jax.random.key(0))
    x1 = 20 * jax.random.normal(prior, (n, 2))
    draw = quick_jit(jax.vmap(lambda x, k: sampler(denoiser, x, key=k)))
    x = np.asarray(draw(x1, jax.random.split(path, n)))
    assert np.all(np.abs(x.mean(0) - MEAN) < 4 * STD / np.sqrt(n) + 0.01)
    np.testing.assert_allclose(x.std(0), STD, rtol=4 / np.sqrt(2 * n) + 0.01)


@pytest.mark.parametrize("process", [eqd.VPSDE(), SCHEDULE], ids=["vp", "schedule"])
def test_churn_never_leaves_the_process(process):
    """From the first time noise would lead beyond t1: it is added up to the level there."""
    recording = Recording(eqd.GaussianDenoiser(process, MEAN, STD), [])
    sampler = eqd.StochasticHeun(5, churn=2.0)
    quick_jit(lambda x: sampler(recording, x, key=jax.random.key(0)))(jnp.asarray(X1, float))
    jax.effects_barrier()
    grid = eqd.karras_times(process, 5)
    levels = [float(process.sigma(t) / process.alpha(t)) for t in grid]
    np.testing.assert_allclose(recording.levels[0], levels[0], rtol=1e-5)
    # √2 − 1 at most, and here 2/5.
    risen = np.minimum(1.4 * np.array(levels[1:]), levels[0])
    np.testing.assert_allclose(recording.levels[2::2], risen, rtol=1e-4)


@pytest.mark.parametrize("process", [eqd.VPSDE(), eqd.EDMSDE(), SCHEDULE])
def test_no_noise_where_there_is_no_churn(process):
    """In float32 under jit: exactly none, so that samples are the deterministic sampler's own."""
    with in_precision("float32"):
        denoiser, x1 = eqd.GaussianDenoiser(process, MEAN, STD), jnp.asarray(X1, jnp.float32)

        def draw(key, **kwargs):
            sampler = eqd.StochasticHeun(9, **kwargs)
            return jax.jit(lambda x, k: sampler.trajectory(denoiser, x, key=k).x)(x1, key)

        keys = jax.random.split(jax.random.key(0))
        # No level lies in the range that is churned.
        a, b = (draw(key, churn=2.0, churn_min=1e6, churn_max=2e6) for key in keys)
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, draw(keys[0]), rtol=2e-5, atol=1e-6)
        # And at the first time, from where no process goes on.
        start = process.sigma(process.t1) / process.alpha(process.t1)
        a, b = (draw(key, churn=2.0, churn_min=0.99 * float(start)) for key in keys)
        np.testing.assert_array_equal(a, b)


REFUSED = [
    (lambda: eqd.StochasticHeun(churn=-1.0), "expected churn >= 0"),
    (lambda: eqd.StochasticHeun(churn_min=2.0, churn_max=1.0), "0 <= churn_min <= churn_max"),
    (lambda: eqd.StochasticHeun(noise=0.0), "expected a positive finite number"),
    (lambda: eqd.StochasticHeun(midpoint=0.0), "expected a positive finite number"),
    (lambda: eqd.StochasticHeun(midpoint=1.5), "1 is Heun's method"),
]


@pytest.mark.parametrize(("make", "match"), REFUSED)
def test_refusals(make, match):
    with pytest.raises(ValueError, match=match):
        make()
