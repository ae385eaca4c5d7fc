"""What holds for every sampler: grids, paths, starts below the noisiest time, and refusals."""

import contextlib

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


MEAN, STD = np.array([0.5, -1.0]), np.array([0.3, 1.2])
X1 = np.array([0.7, -1.3])
SCHEDULE = eqd.linear_schedule(1000)
CHAINS = [eqd.Ancestral, eqd.DDIM, eqd.StochasticHeun, eqd.PredictorCorrector, eqd.DPMSolverPP]
CHAINS += [eqd.UniPC, eqd.SDEDPMSolverPP]
SOLVES = [eqd.ProbabilityFlow, eqd.ReverseSDE]
every = pytest.mark.parametrize("make", CHAINS + SOLVES)


def gaussian(process, mean=MEAN, std=STD):
    return eqd.GaussianDenoiser(process, mean, std)


def whole_log_snr_times(process, num_steps):
    """A spacing of one's own, for the chains that visit steps of a schedule."""
    return jnp.rint(eqd.log_snr_times(process, num_steps)).astype(jnp.int32)


def build(make, **kwargs):
    """With the solver that is quickest to compile."""
    return make(diffrax.Euler(), **kwargs) if make in SOLVES else make(**kwargs)


def draw(sampler, denoiser, x1):
    return quick_jit(lambda x: sampler(denoiser, x, key=jax.random.key(0)))(x1)


@pytest.mark.slow
@every
def test_spacing_and_times_are_the_same_to_every_sampler(make):
    """The grid that a spacing makes, and the same times given as they are."""
    denoiser, x1 = gaussian(SCHEDULE), jnp.asarray(X1, float)
    by_spacing = build(make, num_steps=5, spacing=whole_log_snr_times)
    # A solve's steps lie between times, one more of them.
    num_times = 6 if make in SOLVES else 5
    times = whole_log_snr_times(SCHEDULE, num_times)
    uniform = build(make, num_steps=5)
    by_times, one, other = build(make, times=times), by_spacing.num_calls, uniform.num_calls
    assert by_times.num_calls == one == other
    expected = draw(by_spacing, denoiser, x1)
    np.testing.assert_array_equal(draw(by_times, denoiser, x1), expected)
    assert not np.allclose(draw(uniform, denoiser, x1), expected)


@pytest.mark.parametrize(
    "spacing", [eqd.karras_times, eqd.log_snr_times, eqd.quadratic_times, eqd.schedule_times]
)
def test_ancestral_names_spacings_between_steps(spacing):
    with pytest.raises(ValueError, match=r"times are float.*DDIM\(eta=1\.0\)"):
        eqd.Ancestral(5, spacing=spacing)(gaussian(SCHEDULE), jnp.ones(2), key=jax.random.key(0))


TIMES = np.array([900, 300, 10])
REFUSED = [
    (dict(num_steps=3, times=TIMES), r"num_steps=3 were both given"),
    (dict(spacing=eqd.karras_times, times=TIMES), "a spacing were both given"),
    (dict(times=TIMES[::-1]), r"must decrease.*times\[::-1\]"),
    (dict(times=np.array([900, 300, 300])), "must decrease"),
    (dict(times=np.array([900, np.nan, 10])), "must decrease"),
    (dict(times=np.zeros((2, 2))), r"a vector of times, got shape \(2, 2\)"),
    (dict(times=np.zeros(0)), r"a vector of times, got shape \(0,\)"),
    (dict(num_steps=0), r"num_steps=0\): expected a positive whole number"),
    (dict(num_steps=-3), r"num_steps=-3\): expected a positive whole number"),
]


@every
@pytest.mark.parametrize(("kwargs", "match"), REFUSED)
def test_one_policy_of_times(make, kwargs, match):
    with pytest.raises(ValueError, match=rf"(?s){make.__name__}.*{match}"):
        make(**kwargs)


@every
@pytest.mark.parametrize(
    ("process", "times"),
    [(eqd.cosine_schedule(20), [20, 5]), (eqd.cosine_schedule(20), [19, -1])],
)
def test_times_outside_the_process_are_refused(make, process, times):
    sampler, denoiser = make(times=np.array(times)), gaussian(process)
    with pytest.raises(ValueError, match=r"is outside \["):
        jax.eval_shape(lambda x: sampler(denoiser, x, key=jax.random.key(0)), jnp.zeros(2))


def starting_at(make, start):
    """A sampler of many steps from a whole time down to 0."""
    whole = np.arange(start, -1, -4)
    if make is eqd.Ancestral:
        return make(times=np.arange(start, -1, -1))
    if make is eqd.PredictorCorrector:
        # A corrector's bias is not what is looked at here.
        return make(times=whole, corrector=None)
    if make is eqd.ReverseSDE:
        return make(diffrax.ShARK(), times=whole)
    return make(times=whole)


@pytest.mark.slow
@every
def test_a_noised_state_is_a_start(make):
    """SDEdit on an exact denoiser: data noised to a time in the middle become data again."""
    denoiser, start, n = gaussian(SCHEDULE), 400, 2000
    keys = jax.random.split(jax.random.key(0), 3)
    data, noise = (jax.random.normal(key, (n, 2)) for key in keys[:2])
    x = jax.vmap(lambda a, b: SCHEDULE.perturb(start, MEAN + STD * a, b))(data, noise)
    # Far from the prior, so that a sampler that takes it for prior noise is found out.
    assert abs(float(x.mean(0)[1])) > 0.3
    sampler = starting_at(make, start)
    run = quick_jit(jax.vmap(lambda x, key: sampler(denoiser, x, key=key)))
    found = np.asarray(run(x, jax.random.split(keys[2], n)))
    np.testing.assert_allclose(found.mean(0), MEAN, atol=float(4 * STD.max() / np.sqrt(n)))
    np.testing.assert_allclose(found.std(0), STD, rtol=4 / np.sqrt(2 * n) + 0.015)


def exact_flow(process, t, x):
    """The flow of Gaussian data from t1: x(t) = α m + √(C_t/C_1) (x − α₁ m), C = α² S + σ²."""

    def moments(t):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        return alpha * MEAN, np.sqrt(alpha**2 * STD**2 + sigma**2)

    (m_start, c_start), (m_end, c_end) = moments(process.t1), moments(t)
    return m_end + c_end / c_start * (x - m_start)


@pytest.mark.slow
@every
def test_a_path_ends_in_the_sample(make):
    process = eqd.cosine_schedule(50)
    denoiser, x1, key = gaussian(process), jnp.asarray(X1, float), jax.random.key(3)
    sampler = build(make, num_steps=6)
    path, sample = quick_jit(
        lambda x: (sampler.trajectory(denoiser, x, key=key), sampler(denoiser, x, key=key))
    )(x1)
    num_times = 7 if make in SOLVES else 6
    assert path.t.shape == (num_times,) and path.x.shape == path.x0.shape == (num_times, 2)
    assert np.all(np.diff(path.t) < 0)
    np.testing.assert_allclose(path.x[-1], sample, rtol=1e-5)
    np.testing.assert_allclose(path.x0[-1], sample, rtol=1e-5)
    # Each estimate is that of the state before it, which the state of the call before it is.
    if make is not eqd.PredictorCorrector:
        expected = jax.vmap(lambda t, x: denoiser(t, x).x0)(path.t[1:], path.x[:-1])
        np.testing.assert_allclose(path.x0[1:], expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("sampler", "rtol"),
    [
        (eqd.ProbabilityFlow(rtol=1e-8, atol=1e-8), 1e-6),
        (eqd.ProbabilityFlow(diffrax.Heun(), num_steps=400), 1e-4),
        (eqd.DPMSolverPP(200), 1e-3),
        (eqd.StochasticHeun(100), 1e-3),
    ],
    ids=["adaptive", "given", "dpm", "heun"],
)
def test_paths_lie_on_the_flow(sampler, rtol, x64):
    process = eqd.VPSDE(0.1, 5.0, t0=0.05)
    path = quick_jit(lambda x: sampler.trajectory(gaussian(process), x))(jnp.asarray(X1))
    exact = np.stack([exact_flow(process, t, X1) for t in path.t[1:]])
    np.testing.assert_allclose(path.x[:-1], exact, atol=rtol)


def test_a_solve_is_looked_at_where_one_asks(x64):
    """At times between its steps, which it does not change; 32 of them unless asked."""
    process, sampler = eqd.VPSDE(0.1, 5.0, t0=0.05), eqd.ProbabilityFlow(rtol=1e-8, atol=1e-8)
    denoiser, x1 = gaussian(process), jnp.asarray(X1)
    saveat = jnp.asarray([1.0, 0.71, 0.313, 0.05])
    run = quick_jit(
        lambda x: (sampler.trajectory(denoiser, x, saveat=saveat), sampler(denoiser, x))
    )
    path, sample = run(x1)
    np.testing.assert_array_equal(path.t, saveat)
    exact = np.stack([exact_flow(process, float(t), X1) for t in saveat[1:]])
    np.testing.assert_allclose(path.x[:-1], exact, atol=1e-5)
    np.testing.assert_allclose(path.x[-1], sample, rtol=1e-12)
    shapes = jax.eval_shape(lambda x: sampler.trajectory(denoiser, x), x1)
    assert shapes.t.shape == (32,) and shapes.x.shape == shapes.x0.shape == (32, 2)


@every
@pytest.mark.parametrize("process", [SCHEDULE, eqd.VPSDE()], ids=["schedule", "vp"])
def test_every_sampler_keeps_float32(make, process):
    if make is eqd.Ancestral and process is not SCHEDULE:
        pytest.skip("defined on schedules")
    x1 = jax.ShapeDtypeStruct((2,), jnp.float32)
    samplers = [make(num_steps=3)] + ([make()] if make in SOLVES else [])
    for sampler in samplers:
        out = eqx.filter_eval_shape(
            lambda x, key, s=sampler: s.trajectory(gaussian(process), x, key=key),
            x1,
            jax.random.key(0),
        )
        assert out.x.dtype == out.x0.dtype == jnp.float32


def net(c_noise, x, args, *, key=None):
    return x


@contextlib.contextmanager
def untyped():
    """As users run it: the suite's type checker would refuse these before the library does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


CALLS = [
    (net, jnp.float32, r"takes a denoiser, but was given a function.*Denoiser\(net, process\)"),
    (None, jnp.int32, r"works on floating-point data.*int32 of shape \(2,\).*x / 127\.5 - 1"),
    (None, jnp.bfloat16, r"bfloat16.*write x\.astype\(jnp\.float32\)"),
    (None, jnp.float16, r"float16.*write x\.astype\(jnp\.float32\)"),
]


@every
@pytest.mark.parametrize("method", ["__call__", "trajectory"])
@pytest.mark.parametrize(("denoiser", "dtype", "match"), CALLS)
def test_calls_that_are_refused(make, method, denoiser, dtype, match):
    denoiser = gaussian(SCHEDULE) if denoiser is None else denoiser
    run = getattr(make(num_steps=3), method)
    with untyped(), pytest.raises(ValueError, match=rf"(?i){make.__name__}.*{match}"):
        run(denoiser, jnp.zeros(2, dtype), key=jax.random.key(0))


@pytest.mark.parametrize(
    "sampler",
    [
        eqd.Ancestral(3),
        eqd.DDIM(3, eta=0.1),
        eqd.StochasticHeun(3, churn=1.0),
        eqd.PredictorCorrector(3),
        eqd.ReverseSDE(),
    ],
    ids=lambda s: type(s).__name__,
)
def test_noise_needs_a_key(sampler):
    says = rf"{type(sampler).__name__}.*needs a key: write key=jax\.random\.key\(0\)"
    with pytest.raises(ValueError, match=says):
        sampler(gaussian(SCHEDULE), jnp.ones(2))
