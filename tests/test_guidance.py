"""Guidance against exact conditional denoisers, NumPy, and the invariant that wrappers keep."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd
from eqdiff._sampler.base import steps_along


WEIGHTS = np.array([0.2, 0.5, 0.3])
MEANS = np.array([[0.5, -1.0], [2.0, 0.3], [-1.0, 1.0]])
COVARIANCES = np.array(
    [[[0.5, 0.3], [0.3, 0.4]], [[0.1, 0.0], [0.0, 0.2]], [[1.0, -0.6], [-0.6, 0.8]]]
)
SCHEDULE = eqd.cosine_schedule(100)
CASES = {
    "vp": (eqd.VPSDE(), 0.3),
    "sub_vp": (eqd.SubVPSDE(), 0.4),
    "ve": (eqd.VESDE(), 0.5),
    "flow": (eqd.RectifiedFlow(t1=0.99), 0.6),
    "schedule": (SCHEDULE, 40),
    "between": (SCHEDULE, 40.5),
}
X = np.array([0.7, -1.3])


def mixture(process):
    return eqd.GaussianMixtureDenoiser(process, WEIGHTS, MEANS, COVARIANCES)


class Labelled(eqd.AbstractDenoiser):
    """Exact for data whose class is their component `args`; `None` is the unconditional one."""

    full: eqd.GaussianMixtureDenoiser
    process: eqd.AbstractProcess
    parameterisation: eqd.AbstractParameterisation = eqd.PredictNoise()
    variance: eqd.AbstractVariance = eqd.FixedSmall()

    def given(self, y):
        log_weights = jnp.where(jnp.arange(3) == y, 0.0, -jnp.inf)
        return eqx.tree_at(lambda d: d.log_weights, self.full, log_weights)

    def __call__(self, t, x, args=None, *, key=None):
        return self.full(t, x) if args is None else self.given(args)(t, x)

    def classify(self, t, x, y):
        """log p(y|x_t), exactly, by Bayes' rule."""
        log_prior = jnp.log(WEIGHTS).astype(x.dtype)[y]
        return log_prior + self.given(y).log_prob(t, x) - self.full.log_prob(t, x)


def labelled(process) -> Labelled:
    return Labelled(mixture(process), process)


@ft.cache
def estimates(name):
    """Everything that is compared, of one process, compiled together."""
    process, t = CASES[name]
    denoiser, x, y = labelled(process), jnp.asarray(X, float), jnp.asarray(2)
    classify = denoiser.classify

    @quick_jit
    def run(x, scale):
        guided = eqd.ClassifierGuidance(mixture(process), classify, scale)
        free = eqd.ClassifierFree(denoiser, scale)
        score = jax.grad(lambda x: mixture(process).log_prob(t, x) + scale * classify(t, x, y))(x)
        by_class = jax.vmap(
            lambda y: (
                eqd.ClassifierGuidance(mixture(process), classify)(t, x, y),
                denoiser(t, x, y),
            )
        )(jnp.arange(3))
        return {
            "by_class": by_class,
            "score": (eqd.score(guided, t, x, y), eqd.score(free, t, x, y), score),
            "one": (eqd.ClassifierFree(denoiser, 1.0)(t, x, y), denoiser(t, x, y)),
            "zero": (eqd.ClassifierFree(denoiser, 0.0)(t, x, y), denoiser(t, x)),
            "null": (
                eqd.ClassifierFree(denoiser, 0.0, null=jnp.asarray(1))(t, x, y),
                denoiser(t, x, jnp.asarray(1)),
            ),
            "free": free(t, x, y),
        }

    return run(x, jnp.asarray(2.5))


def assert_estimates(actual, expected, rtol=1e-9):
    for a, b in ((actual.x0, expected.x0), (actual.noise, expected.noise)):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


@pytest.mark.parametrize("name", CASES)
def test_exact_classifier_guidance_is_the_conditional_score(name, x64):
    assert_estimates(*estimates(name)["by_class"])


@pytest.mark.parametrize("name", CASES)
def test_scaled_guidance_is_linear_in_the_score(name, x64):
    """p(x) p(y|x)^s: the score is that of x plus s times the classifier's gradient."""
    by_classifier, classifier_free, expected = estimates(name)["score"]
    np.testing.assert_allclose(by_classifier, expected, rtol=1e-8)
    np.testing.assert_allclose(classifier_free, expected, rtol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_classifier_free_between_its_ends(name, x64):
    """Scale 1 is the conditional estimate, 0 the null one, whatever stands for null."""
    found = estimates(name)
    assert_estimates(*found["one"], rtol=1e-13)
    assert_estimates(*found["zero"])
    assert_estimates(*found["null"])
    # Ho & Salimans: (1 + w) ε_y − w ε_∅ with w = s − 1.
    given, null = found["one"][1], found["zero"][1]
    expected = (1 + 1.5) * given.noise - 1.5 * null.noise
    np.testing.assert_allclose(found["free"].noise, expected, rtol=1e-9)


def test_guided_samples_are_the_conditional_ones(x64):
    denoiser, x1, y = labelled(SCHEDULE), jnp.asarray(X), jnp.asarray(1)
    sampler = eqd.DDIM(10)

    @quick_jit
    def run(x1):
        by_classifier = eqd.ClassifierGuidance(eqd.FixedArgs(denoiser), denoiser.classify)
        free = eqd.ClassifierFree(denoiser, 1.0)
        return (
            sampler(eqd.FixedArgs(denoiser, y), x1),
            sampler(by_classifier, x1, y),
            sampler(free, x1, y),
            # What was fixed wins over what is given.
            sampler(eqd.FixedArgs(denoiser, y), x1, jnp.asarray(0)),
        )

    expected, *samples = run(x1)
    for sample in samples:
        np.testing.assert_allclose(sample, expected, rtol=1e-7)


@pytest.mark.parametrize(("num_steps", "i"), [(None, 39), (10, 4)])
def test_mean_shift_is_by_the_variance(num_steps, i, x64):
    """With Σ = β it is β g, and √(1−β) times that of the score's guidance; respaced as well."""
    denoiser, x, y, key = labelled(SCHEDULE), jnp.asarray(X), jnp.asarray(2), jax.random.key(0)
    plain = eqx.tree_at(lambda d: d.variance, denoiser, eqd.FixedLarge())
    scored = eqd.ClassifierGuidance(eqd.FixedArgs(plain), denoiser.classify, 1.5)
    guidance = eqd.MeanShift(denoiser.classify, 1.5)

    @quick_jit
    def run(x):
        def step(sampler, denoiser, args):
            each = steps_along(SCHEDULE, sampler.grid.times(SCHEDULE), like=x)
            at = jax.tree.map(lambda leaf: leaf[i], each)
            return sampler.step(denoiser, at, x, args, key=key)

        # The network is unconditional in each, the guidance is not.
        guided = eqd.Ancestral(num_steps, guidance=guidance)
        t = guided.grid.times(SCHEDULE)[i]
        return (
            step(eqd.Ancestral(num_steps), eqd.FixedArgs(plain), y),
            step(eqd.Ancestral(num_steps), scored, y),
            step(guided, eqd.FixedArgs(plain), y),
            jax.grad(denoiser.classify, argnums=1)(t, x, y),
        )

    (unguided, x0), (by_score, _), (by_mean, same_x0), g = run(x)
    visited = np.asarray(eqd.uniform_times(SCHEDULE, num_steps or 100))[::-1]
    beta = eqd.respace(SCHEDULE, visited).betas[::-1][i]
    shift = by_mean - unguided
    np.testing.assert_allclose(shift, 1.5 * beta * g, rtol=1e-8)
    np.testing.assert_allclose(shift, np.sqrt(1 - beta) * (by_score - unguided), rtol=1e-8)
    # What the step was made from is not moved.
    np.testing.assert_array_equal(same_x0, x0)


def numpy_threshold(x0, p, low, high):
    middle, half = (low + high) / 2, (high - low) / 2
    u = (x0 - middle) / half
    s = max(1.0, np.quantile(np.abs(u), p))
    return middle + half * np.clip(u, -s, s) / s


def constant(x0, process=SCHEDULE):
    """A network that predicts the same data whatever it sees."""
    return eqd.Denoiser(
        lambda c_noise, x, args, key: jnp.asarray(x0, x.dtype), process, eqd.PredictData()
    )


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (-3.0, -0.5)])
@pytest.mark.parametrize("p", [0.9, 0.995, 1.0])
@pytest.mark.parametrize("spread", [0.4, 1.5, 6.0])
def test_dynamic_threshold_is_numpys(spread, p, low, high):
    rng = np.random.default_rng(0)
    x0 = (low + high) / 2 + spread * (high - low) / 2 * rng.uniform(-1, 1, (2, 5, 7))
    x = jnp.asarray(rng.standard_normal(x0.shape), float)
    estimate = quick_jit(eqd.DynamicThreshold(constant(x0), p, low, high))(40, x)
    expected = numpy_threshold(x0, p, low, high)
    np.testing.assert_allclose(estimate.x0, expected, rtol=1e-5, atol=1e-6)
    assert np.all((estimate.x0 >= low - 1e-6) & (estimate.x0 <= high + 1e-6))
    np.testing.assert_allclose(
        SCHEDULE.alpha(40) * estimate.x0 + SCHEDULE.sigma(40) * estimate.noise, x, atol=1e-5
    )


def test_dynamic_threshold_by_hand():
    """Half of the elements at 4, half at 1: the quantile is 4, and they become 1 and ¼."""
    x0 = np.repeat([4.0, -1.0], 50)
    estimate = eqd.DynamicThreshold(constant(x0))(40, jnp.zeros(100))
    np.testing.assert_allclose(estimate.x0, np.repeat([1.0, -0.25], 50), rtol=1e-6)


def test_dynamic_threshold_leaves_an_estimate_in_range_alone():
    x0 = np.linspace(-0.99, 1.0, 17).astype(np.float32)
    x = jnp.linspace(-2, 2, 17).astype(jnp.float32)
    plain = constant(x0)
    estimate = eqd.DynamicThreshold(plain)(40, x)
    np.testing.assert_array_equal(estimate.x0, plain(40, x).x0)
    np.testing.assert_array_equal(estimate.noise, plain(40, x).noise)
    # A few elements beyond the range and p below them: clipping alone.
    x0 = np.append(x0, np.full(1, 3.0, np.float32))
    estimate = eqd.DynamicThreshold(constant(x0), 0.5)(40, jnp.zeros(18, jnp.float32))
    np.testing.assert_array_equal(estimate.x0, np.clip(x0, -1, 1))


def test_dynamic_threshold_is_per_example():
    x0 = jnp.stack([jnp.full(4, 5.0), jnp.full(4, 0.5)])
    denoiser = eqd.Denoiser(
        lambda c_noise, x, args, key: args.astype(x.dtype), SCHEDULE, eqd.PredictData()
    )
    batch = jax.vmap(lambda a: eqd.DynamicThreshold(denoiser)(40, jnp.zeros(4), a).x0)(x0)
    np.testing.assert_allclose(batch, [[1.0] * 4, [0.5] * 4], rtol=1e-6)


def wrappers(process):
    denoiser = labelled(process)
    free = eqd.ClassifierFree(denoiser, 3.0)
    return {
        "plain": denoiser,
        "clip": eqd.Clip(denoiser, -0.2, 0.4),
        "dynamic": eqd.DynamicThreshold(denoiser, 0.5, -0.2, 0.3),
        "classifier": eqd.ClassifierGuidance(denoiser, denoiser.classify, 3.0),
        "free": free,
        "interval": eqd.GuidanceInterval(free, denoiser, 0.1, 10.0),
        "fixed": eqd.FixedArgs(denoiser, jnp.asarray(2)),
    }


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", CASES)
def test_every_wrapper_keeps_the_invariant(name, dtype):
    """x = α x̂0 + σ ε̂, in the precision of x."""
    if dtype == jnp.float64 and not jax.config.jax_enable_x64:
        pytest.skip("needs float64 (EQDIFF_TEST_X64=0)")
    process, t = CASES[name]
    x, y = jnp.asarray(X, dtype), jnp.asarray(0)
    everything = quick_jit(lambda x: {k: w(t, x, y) for k, w in wrappers(process).items()})(x)
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-12
    plain = everything.pop("plain")
    for wrapper, estimate in everything.items():
        assert estimate.x0.dtype == estimate.noise.dtype == dtype, wrapper
        # Every wrapper does something here.
        assert not np.allclose(estimate.x0, plain.x0), wrapper
        scale = np.abs(alpha * estimate.x0).max() + np.abs(sigma * estimate.noise).max()
        total = alpha * estimate.x0 + sigma * estimate.noise
        np.testing.assert_allclose(total, x, atol=tolerance * scale, err_msg=wrapper)


def test_wrappers_pass_on_what_the_denoiser_is():
    denoiser = eqd.Denoiser(
        lambda c_noise, x, args, key: jnp.concatenate([x, 2 * x + (0 if args is None else 1)]),
        SCHEDULE,
        eqd.PredictVelocity(),
        variance=eqd.LearnedRange(),
    )
    x = jnp.asarray(X, float)
    guided = eqd.ClassifierFree(denoiser, 2.0)
    for wrapper in (
        eqd.Clip(denoiser),
        eqd.DynamicThreshold(denoiser),
        eqd.ClassifierGuidance(denoiser, lambda t, x, y: jnp.sum(x)),
        guided,
        eqd.GuidanceInterval(guided, denoiser),
        eqd.FixedArgs(denoiser, 1),
    ):
        assert isinstance(wrapper, eqd.AbstractWrapper)
        assert wrapper.process is SCHEDULE
        assert isinstance(wrapper.parameterisation, eqd.PredictVelocity)
        assert isinstance(wrapper.variance, eqd.LearnedRange)
        # The raw variance is the conditional call's.
        np.testing.assert_allclose(wrapper(40, x, 1).raw_variance, 2 * x + 1, rtol=1e-6)


def test_interval_is_in_noise_levels():
    """Under VE with σ from 0.01 to 100, log₁₀ σ = 4t − 2: between 0.1 and 10 is ¼ < t ≤ ¾."""
    process = eqd.VESDE(0.01, 100.0)
    one, other = constant(jnp.ones(2), process), constant(-jnp.ones(2), process)
    x = jnp.zeros(2)

    def inside(low, high, t):
        denoiser = eqd.GuidanceInterval(one, other, low, high)
        return quick_jit(jax.vmap(lambda t: denoiser(t, x).x0[0]))(t)

    times = jnp.asarray([0.01, 0.2499, 0.2501, 0.5, 0.7499, 0.7501, 1.0])
    np.testing.assert_array_equal(inside(0.1, 10.0, times), [-1, -1, 1, 1, 1, -1, -1])
    np.testing.assert_array_equal(inside(0.1, np.inf, times), [-1, -1, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(inside(0.0, 10.0, times), [1, 1, 1, 1, 1, -1, -1])
    # On a schedule σ/α = e^{−λ/2}, at every step.
    level = np.exp(-0.5 * np.array([float(SCHEDULE.log_snr(t)) for t in (20, 40)]))
    both = constant(jnp.ones(2)), constant(-jnp.ones(2))
    interval = eqd.GuidanceInterval(*both, *(1.0001 * level))
    steps = quick_jit(jax.vmap(lambda t: interval(t, x).x0[0]))(jnp.asarray([20, 21, 40, 41]))
    np.testing.assert_array_equal(steps, [-1, 1, 1, -1])


def test_interval_calls_one_denoiser_only():
    """Batching over examples leaves the branch a branch; a sampler's time is not batched."""
    denoiser = labelled(eqd.VPSDE())
    guided = eqd.GuidanceInterval(eqd.ClassifierFree(denoiser, 2.0), denoiser, 0.3, 5.0)
    batch = jax.vmap(lambda x: guided(jnp.asarray(0.5), x, jnp.asarray(1)).x0)
    assert "branches" in str(jax.make_jaxpr(batch)(jnp.ones((3, 2))))


def test_a_scale_may_be_traced():
    calls = []

    @quick_jit
    def run(scale):
        calls.append(None)
        return eqd.ClassifierFree(labelled(SCHEDULE), scale)(40, jnp.asarray(X), jnp.asarray(1)).x0

    a, b = run(jnp.asarray(1.0)), run(jnp.asarray(2.0))
    assert len(calls) == 1 and not np.allclose(a, b)


ORACLE, AT = labelled(SCHEDULE), jnp.asarray(X, float)
ENDLESS = mixture(eqd.RectifiedFlow(t1=1.0))
REFUSED = [
    *(
        (lambda make=make, scale=scale: make(scale), "expected a finite number")
        for make in (
            lambda s: eqd.ClassifierFree(ORACLE, s),
            lambda s: eqd.ClassifierGuidance(ORACLE, ORACLE.classify, s),
            lambda s: eqd.MeanShift(ORACLE.classify, s),
        )
        for scale in (float("nan"), float("inf"))
    ),
    (lambda: eqd.ClassifierFree(ORACLE, 2.0)(40, AT), "guides towards args, but was given none"),
    (
        lambda: eqd.ClassifierGuidance(ORACLE, lambda t, x, y: x)(40, AT),
        r"returned shape \(2,\), expected one number",
    ),
    (
        lambda: eqd.ClassifierGuidance(ENDLESS, ORACLE.classify),
        r"Write RectifiedFlow\(t1=0\.999\)",
    ),
    (lambda: eqd.DynamicThreshold(ORACLE, low=1.0, high=1.0), "low < high"),
    *((lambda p=p: eqd.DynamicThreshold(ORACLE, p), r"such as 0\.995") for p in (0.0, 99.5)),
    (lambda: eqd.Clip(ORACLE, 1.0, -1.0), "low < high"),
    *(
        (lambda ends=ends: eqd.GuidanceInterval(ORACLE, ORACLE, *ends), "0 <= low < high")
        for ends in ((2.0, 1.0), (-1.0, 1.0), (1.0, float("nan")))
    ),
    (lambda: eqd.GuidanceInterval(ORACLE, labelled(eqd.VPSDE())), "the same process"),
    (
        lambda: eqd.GuidanceInterval(ORACLE, labelled(eqd.linear_schedule(100))),
        "the same process.*Schedule of 100 steps",
    ),
]


@pytest.mark.parametrize(("call", "match"), REFUSED)
def test_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
