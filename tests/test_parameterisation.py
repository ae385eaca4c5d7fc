"""What a network's output means: parameterisations, variances, the denoiser and clipping."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden
from toys import idiff_denoiser, PARAMETERISATIONS, quick_jit, VARIANCES

import eqdiff as eqd


SAMPLING = "public_idiff_sampling"
SCHEDULE = eqd.cosine_schedule(50)
PROCESSES = {
    "vp": eqd.VPSDE(),
    "sub_vp": eqd.SubVPSDE(),
    "ve": eqd.VESDE(),
    "cosine": eqd.CosineVPSDE(),
    "edm": eqd.EDMSDE(),
    "flow": eqd.RectifiedFlow(),
    "schedule": SCHEDULE,
}
ANYWHERE = {
    "noise": eqd.PredictNoise(),
    "data": eqd.PredictData(),
    "v": eqd.PredictVelocity(),
    "score": eqd.PredictScore(),
    "edm": eqd.EDMPreconditioning(0.7),
    "flow": eqd.PredictFlow(),
}
# At a schedule's steps, and between them.
CASES = {
    **{f"{p}-{q}": (PROCESSES[p], ANYWHERE[q], True) for p in PROCESSES for q in ANYWHERE},
    **{f"between-{q}": (SCHEDULE, ANYWHERE[q], False) for q in ANYWHERE},
    "schedule-previous": (SCHEDULE, eqd.PreviousMean(), True),
}
cases = pytest.mark.parametrize("process,parameterisation,whole", CASES.values(), ids=CASES)


def times(process, whole=True):
    if isinstance(process, eqd.Schedule) and whole:
        return jnp.asarray([0, 1, 10, 25, 48, 49], jnp.int32)
    span = process.t1 - process.t0
    return jnp.asarray([process.t0, process.t0 + 1e-3 * span, process.t0 + 0.5 * span, process.t1])


def levels(process, t):
    alpha, sigma = jax.vmap(process.alpha)(t), jax.vmap(process.sigma)(t)
    return np.asarray(alpha, np.float64)[:, None], np.asarray(sigma, np.float64)[:, None]


@cases
def test_estimates_add_up_and_invert_the_target(process, parameterisation, whole, getkey, x64):
    t = times(process, whole)
    x0, noise, output = jax.random.normal(getkey(), (3, t.size, 7))

    @quick_jit
    @jax.vmap
    def run(t, x0, noise, output):
        x = process.perturb(t, x0, noise)
        target = parameterisation.target(process, t, x0, noise)
        exact = parameterisation.estimate(process, t, x, target)
        any_estimate = parameterisation.estimate(process, t, x, output)
        again = parameterisation.target(process, t, *any_estimate)
        return x, exact, any_estimate, again

    x, exact, (some_x0, some_noise), again = run(t, x0, noise, output)
    alpha, sigma = levels(process, t)
    # Through a division by α or σ the rounding of x is amplified: that much is anyone's error.
    slack = 1e-12 * (np.abs(x) + 1)
    assert np.all(np.abs(exact[0] - x0) <= slack / np.minimum(alpha, 1))
    assert np.all(np.abs(exact[1] - noise) <= slack / np.minimum(sigma, 1) * 10)
    # x = αx̂0 + σε̂, for any output and not only for a perfect one.
    scale = alpha * np.abs(some_x0) + sigma * np.abs(some_noise) + 1
    assert np.all(np.abs(alpha * some_x0 + sigma * some_noise - x) <= 1e-12 * scale)
    # estimate∘target is the identity on outputs as well: l_simple relies on it.
    np.testing.assert_allclose(again, output, rtol=1e-7, atol=1e-7)


def test_the_definitions(getkey, x64):
    """Against the equations of the papers, written out by hand at one time."""
    x, f = jax.random.normal(getkey(), (2, 5))
    t = 0.4
    for process in (PROCESSES["vp"], PROCESSES["sub_vp"], PROCESSES["ve"]):
        a, s = float(process.alpha(t)), float(process.sigma(t))
        for parameterisation, x0 in (
            (eqd.PredictNoise(), (x - s * f) / a),
            (eqd.PredictData(), f),
            (eqd.PredictVelocity(), (a * x - s * f) / (a * a + s * s)),
            (eqd.PredictScore(), (x + s * s * f) / a),
        ):
            estimate = eqd.Denoiser(lambda *_, key: f, process, parameterisation)(t, x)
            np.testing.assert_allclose(estimate.x0, x0, rtol=1e-12)
            np.testing.assert_allclose(estimate.noise, (x - a * x0) / s, rtol=1e-10)
    np.testing.assert_allclose(
        eqd.score(eqd.Denoiser(lambda *_, key: f, PROCESSES["ve"], eqd.PredictScore()), t, x),
        f,
        rtol=1e-12,
    )


@pytest.mark.parametrize("name", ["vp", "sub_vp", "ve"])
@pytest.mark.parametrize("which", [name for name in ANYWHERE if name != "data"])
def test_float32_keeps_the_noise_estimate_at_small_sigma(name, which, getkey, x64):
    """Recomputing ε̂ as (x − αx̂0)/σ would lose it: σ is 1e-6 for sub-VP at t0."""
    process, parameterisation = PROCESSES[name], ANYWHERE[which]
    t = jnp.asarray(1e-5)
    x0, noise = jax.random.normal(getkey(), (2, 64))

    @quick_jit
    def run(x0, noise):
        high = parameterisation.target(process, t, x0, noise)
        x = process.perturb(t, x0, noise)
        inputs = (a.astype(jnp.float32) for a in (t, x, high))
        return x, parameterisation.estimate(process, *inputs)

    x, low = run(x0, noise)
    assert low[0].dtype == low[1].dtype == jnp.float32
    np.testing.assert_allclose(low[0], x0, atol=2e-6)
    np.testing.assert_allclose(low[1], noise, atol=2e-6)
    if name == "sub_vp":
        lost = (x.astype(jnp.float32) - low[0]) / process.sigma(t).astype(jnp.float32)
        assert np.max(np.abs(lost - noise.astype(jnp.float32))) > 1e-2


def test_previous_mean_is_the_posteriors(getkey, x64):
    x, output = jax.random.normal(getkey(), (2, 5))
    denoiser = eqd.Denoiser(lambda *_, key: output, SCHEDULE, eqd.PreviousMean())
    for t in (0, 1, 30, 49):
        estimate = denoiser(t, x)
        np.testing.assert_allclose(SCHEDULE.posterior_mean(t, estimate.x0, x), output, rtol=1e-9)
    np.testing.assert_allclose(denoiser(0, x).x0, output, rtol=1e-9)


def step_inputs(dtype):
    g = load_golden(SAMPLING)
    schedule = eqd.respace(eqd.cosine_schedule(4000), eqd.section_timesteps(4000, (100,)))
    return schedule, jnp.asarray(g["step/x"], dtype), jnp.asarray(g["step/t"], jnp.int32)


def mean_and_variance(denoiser, t, x):
    schedule = denoiser.process

    @jax.jit
    @jax.vmap
    def run(t, x):
        estimate = denoiser(t, x)
        log_variance = denoiser.variance.log_variance(schedule, t, estimate.raw_variance)
        mean = schedule.posterior_mean(t, estimate.x0, x)
        return mean, estimate.x0, jnp.broadcast_to(log_variance.astype(x.dtype), x.shape)

    return run(t, x)


@pytest.mark.parametrize("clip", [0, 1])
@pytest.mark.parametrize("mean_type", ["EPSILON", "START_X", "PREVIOUS_X"])
@pytest.mark.parametrize("variance_type", VARIANCES)
def test_golden_p_mean_variance(mean_type, variance_type, clip):
    g = load_golden(SAMPLING)
    schedule, x, t = step_inputs(float)
    denoiser = idiff_denoiser(schedule, g["step/toy_abcd"], mean_type, variance_type, float)
    # The official clip leaves a predicted mean as it is and changes only the x̂0 that is reported;
    # ours would move both.
    mean_is_predicted = mean_type == "PREVIOUS_X"
    if clip and not mean_is_predicted:
        denoiser = eqd.Clip(denoiser)
    mean, x0, log_variance = mean_and_variance(denoiser, t, x)
    if clip and mean_is_predicted:
        x0 = jnp.clip(x0, -1, 1)
    case = f"p_mean_variance/{mean_type}-{variance_type}-clip{clip}"
    for key, actual in (("mean", mean), ("pred_xstart", x0)):
        np.testing.assert_array_equal(np.isfinite(actual), True)
        assert_golden(actual, SAMPLING, f"{case}/{key}")
    # Clipping does not change the variance: the official numbers are stored with clipping alone.
    case = f"p_mean_variance/{mean_type}-{variance_type}-clip1"
    assert_golden(log_variance, SAMPLING, f"{case}/log_variance")
    variance = np.exp(log_variance)
    if variance_type == "FIXED_SMALL":
        # The official variance, unlike its own log-variance, is 0 at t = 0. No noise is added
        # there.
        variance = np.where(np.asarray(t)[:, None, None, None] == 0, 0, variance)
    assert_golden(variance, SAMPLING, f"{case}/variance")


@pytest.mark.parametrize("name", VARIANCES)
def test_variances_by_definition_on_a_respaced_schedule(name, x64):
    schedule = eqd.respace(eqd.cosine_schedule(200), eqd.section_timesteps(200, (20,)))
    before = np.append(1.0, schedule.alpha_bar[:-1])
    small = (1 - before) / (1 - schedule.alpha_bar) * schedule.betas
    small[0] = small[1]
    large = schedule.betas.copy()
    raw = np.linspace(-1.5, 1.5, 7)
    w = 0.5 * (raw + 1)
    for t in range(20):
        truth = {
            "FIXED_SMALL": np.log(small[t]),
            "FIXED_LARGE": np.log(large[t] if t else small[1]),
            "LEARNED": raw,
            "LEARNED_RANGE": w * np.log(large[t]) + (1 - w) * np.log(small[t]),
        }[name]
        actual = VARIANCES[name].log_variance(schedule, t, jnp.asarray(raw))
        np.testing.assert_allclose(actual, truth, rtol=1e-9)


def test_learned_range_spans_the_fixed_variances(x64):
    for t in (1, 20, 49):
        for raw, fixed in ((-1.0, eqd.FixedSmall()), (1.0, eqd.FixedLarge())):
            ranged = eqd.LearnedRange().log_variance(SCHEDULE, t, jnp.asarray([raw]))
            np.testing.assert_allclose(ranged, [fixed.log_variance(SCHEDULE, t, None)], rtol=1e-12)


def test_what_the_network_is_called_with(getkey):
    calls = []

    def net(c_noise, x, args, *, key):
        calls.append((c_noise, x, args, key))
        return x.astype(jnp.float16)

    x, key = jnp.ones((2, 3), jnp.float32), getkey()
    for process, t, expected in (
        (eqd.VPSDE(), 0.25, 999 * 0.25),
        (eqd.SubVPSDE(), 1, 999.0),
        (eqd.VESDE(0.01, 50.0), 1.0, np.log(50)),
        (eqd.cosine_schedule(4000), 8, 2.0),
        (SCHEDULE, 3.5, 3.5 * 20),
    ):
        estimate = eqd.Denoiser(net, process)(t, x, "args", key=key)
        seen, given, args, passed = calls.pop()
        assert not calls, "one call"
        np.testing.assert_allclose(seen, expected, rtol=1e-6)
        assert seen.dtype == given.dtype == jnp.float32 and args == "args" and passed is key
        # Whatever the network computes in, the estimate is in the precision of x.
        assert estimate.x0.dtype == estimate.noise.dtype == jnp.float32
        assert estimate.raw_variance is None
    eqd.Denoiser(net, eqd.VPSDE(), c_noise=lambda process, t: 7 * t)(0.5, x)
    np.testing.assert_allclose(calls.pop()[0], 3.5)


def test_learned_variances_are_the_second_half_of_the_channels():
    x = jnp.ones((2, 3))
    denoiser = eqd.Denoiser(
        lambda *a, key: jnp.arange(12.0).reshape(4, 3), SCHEDULE, variance=eqd.LearnedRange()
    )
    estimate = denoiser(3, x)
    np.testing.assert_array_equal(estimate.noise, np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(estimate.raw_variance, np.arange(6, 12).reshape(2, 3))
    assert eqd.Denoiser(lambda *a, key: jnp.zeros(()), SCHEDULE)(0, jnp.ones(())).x0.shape == ()


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_clip_moves_both_estimates(process, getkey, x64):
    t = times(process)
    x = 3 * jax.random.normal(getkey(), (t.size, 40))
    inner = eqd.GaussianDenoiser(process, 0.2, 2.0, variance=eqd.FixedSmall())
    clip = eqd.Clip(inner, -0.5, 0.9)
    plain, clipped = quick_jit(lambda t, x: (jax.vmap(inner)(t, x), jax.vmap(clip)(t, x)))(t, x)
    np.testing.assert_allclose(clipped.x0, np.clip(plain.x0, -0.5, 0.9), rtol=1e-12, atol=1e-15)
    alpha, sigma = levels(process, t)
    rest = alpha * clipped.x0 + sigma * clipped.noise
    np.testing.assert_allclose(rest, x, rtol=1e-9, atol=1e-9 * float(alpha.max()))
    # Where nothing is clipped nothing changes, to the last bit.
    inside = (np.asarray(plain.x0) > -0.5) & (np.asarray(plain.x0) < 0.9)
    assert 0 < inside.sum() < inside.size
    np.testing.assert_array_equal(
        np.asarray(clipped.noise)[inside], np.asarray(plain.noise)[inside]
    )


def test_clip_passes_everything_else_on():
    inner = eqd.Denoiser(
        lambda *a, key: jnp.full((4, 3), 5.0),
        SCHEDULE,
        eqd.PredictData(),
        variance=eqd.LearnedRange(),
    )
    clip = eqd.Clip(inner)
    estimate = clip(3, jnp.ones((2, 3)))
    np.testing.assert_array_equal(estimate.x0, 1)
    np.testing.assert_array_equal(estimate.raw_variance, 5)
    for name in ("process", "parameterisation", "variance"):
        assert getattr(clip, name) is getattr(inner, name)


@pytest.mark.parametrize("name", PARAMETERISATIONS)
def test_only_the_network_has_leaves(name):
    """A trained denoiser's gradient is its network's: no coefficient is an array."""
    denoiser = idiff_denoiser(SCHEDULE, np.ones(4), name, "LEARNED_RANGE")
    arrays = jax.tree.leaves(eqx.filter(denoiser, eqx.is_array))
    assert [a.shape for a in arrays] == [(6,)]


def returns(shape, process=SCHEDULE, **kwargs):
    """A denoiser whose network returns zeros of this shape, called at step 0 of a (2, 3) input."""
    denoiser = eqd.Denoiser(lambda *a, key: jnp.zeros(shape), process, **kwargs)
    return lambda: denoiser(0 if process is SCHEDULE else 0.5, jnp.ones(shape and (2, 3)))


LEARNED = {"variance": eqd.LearnedRange()}
REFUSED = [
    (returns((8, 3), **LEARNED), r"returned shape \(8, 3\).*expected \(4, 3\).*twice"),
    (returns((4, 3)), r"expected \(2, 3\).*FixedLarge.*LearnedRange\(\)"),
    (returns((3,)), r"expected \(2, 3\)"),
    (returns((), **LEARNED), r"write x\[None\]"),
    (
        returns((2, 3), eqd.VPSDE(), parameterisation=eqd.PreviousMean()),
        "PreviousMean.*VPSDE.*cosine_schedule",
    ),
    (lambda: eqd.Clip(eqd.GaussianDenoiser(SCHEDULE), 1.0, -1.0), r"Clip\(low=1.0, high=-1.0\)"),
    *(
        (lambda bad=bad: eqd.EDMPreconditioning(bad), r"EDMPreconditioning\(sigma_data=.*positive")
        for bad in (0.0, -1.0, float("nan"))
    ),
]


@pytest.mark.parametrize(("call", "match"), REFUSED)
def test_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
