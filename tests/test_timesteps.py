"""How training times are drawn: their law, their range, their weights."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.stats
from conftest import X64
from toys import quick_jit, short_schedule

import eqdiff as eqd
from eqdiff._check import drawn_from
from eqdiff._process import time_at


STRATEGIES = [eqd.Uniform, eqd.LowDiscrepancy]
strategies = pytest.mark.parametrize("make", STRATEGIES)


def traced_draw(strategy, n, key):
    return strategy.sample(strategy.init(), n, key=key)


def draw(strategy, n, key):
    return quick_jit(lambda key: traced_draw(strategy, n, key))(key)


@strategies
@pytest.mark.parametrize("num_steps", [1, 7, 1000])
def test_steps_of_a_schedule(make, num_steps, getkey):
    t, weights = draw(make(short_schedule(num_steps)), 513, getkey())
    assert t.dtype == jnp.int32 and t.shape == weights.shape == (513,)
    assert jnp.issubdtype(weights.dtype, jnp.floating)
    assert int(t.min()) >= 0 and int(t.max()) <= num_steps - 1
    np.testing.assert_array_equal(weights, 1)


@strategies
def test_times_in_continuous_time(make, getkey):
    process = eqd.VPSDE(t0=0.1, t1=0.7)
    t, weights = draw(make(process), 4000, getkey())
    assert jnp.issubdtype(t.dtype, jnp.floating)
    assert float(t.min()) >= process.t0 and float(t.max()) <= process.t1
    unit = (np.asarray(t, np.float64) - process.t0) / (process.t1 - process.t0)
    assert scipy.stats.kstest(unit, "uniform").pvalue > 1e-3
    np.testing.assert_array_equal(weights, 1)


@strategies
def test_every_place_in_the_batch_is_uniform(make, getkey):
    """Chi-square over many batches, for the first place alone: each time is uniform by itself."""
    strategy = make(short_schedule(10))
    keys = jax.random.split(getkey(), 4000)
    first = np.asarray(quick_jit(jax.vmap(lambda k: traced_draw(strategy, 8, k)[0]))(keys))
    for place in (0, 7):
        counts = np.bincount(first[:, place], minlength=10)
        assert counts.size == 10
        assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_uniform_times_are_independent(getkey):
    strategy = eqd.Uniform(short_schedule(4))
    keys = jax.random.split(getkey(), 4000)
    t = np.asarray(quick_jit(jax.vmap(lambda k: traced_draw(strategy, 2, k)[0]))(keys))
    pairs = np.bincount(4 * t[:, 0] + t[:, 1], minlength=16)
    assert scipy.stats.chisquare(pairs).pvalue > 1e-3


@pytest.mark.parametrize("n", [1, 5, 64, 200])
def test_low_discrepancy_covers(n, getkey):
    """One time in each n-th of the range; on a schedule, every step as often as n/T allows."""
    sde = eqd.VPSDE()
    t, _ = draw(eqd.LowDiscrepancy(sde), n, getkey())
    unit = (np.sort(np.asarray(t, np.float64)) - sde.t0) / (sde.t1 - sde.t0)
    assert np.all(np.abs(unit - (np.arange(n) + 0.5) / n) <= 0.5 / n + 1e-6)
    gaps = np.diff(unit)
    np.testing.assert_allclose(gaps, 1 / n, atol=1e-6)
    steps, _ = draw(eqd.LowDiscrepancy(short_schedule(50)), n, getkey())
    counts = np.bincount(np.asarray(steps), minlength=50)
    assert counts.min() >= np.floor(n / 50) and counts.max() <= np.ceil(n / 50)


def test_low_discrepancy_is_shuffled(getkey):
    t, _ = draw(eqd.LowDiscrepancy(eqd.VPSDE()), 64, getkey())
    # Sorted times would correlate perfectly with their place.
    assert abs(np.corrcoef(np.arange(64), np.asarray(t))[0, 1]) < 0.5


@strategies
def test_weighted_mean_is_unbiased_and_low_discrepancy_is_steadier(make, getkey):
    strategy = make(short_schedule(100))
    losses = jnp.asarray(np.linspace(-1, 2, 100) ** 2)

    def estimate(key):
        t, weights = traced_draw(strategy, 16, key)
        return jnp.mean(weights.astype(losses.dtype) * losses[t])

    estimates = np.asarray(quick_jit(jax.vmap(estimate))(jax.random.split(getkey(), 2000)))
    error = abs(estimates.mean() - np.asarray(losses).mean())
    assert error < 4 * estimates.std() / np.sqrt(2000)
    independent = np.asarray(losses).std() / 4
    if make is eqd.LowDiscrepancy:
        assert estimates.std() < 0.3 * independent
    else:
        np.testing.assert_allclose(estimates.std(), independent, rtol=0.1)


@strategies
def test_there_is_no_state(make, getkey):
    strategy = make(short_schedule(10))
    state = strategy.init()
    t, _ = draw(strategy, 4, getkey())
    assert jax.tree.leaves(state) == []
    assert strategy.update(state, t, jnp.ones(4)) is state
    assert jax.tree.leaves(make(short_schedule(10))) == []


@strategies
def test_sampling_is_a_function_of_the_key_alone(make, getkey):
    key = getkey()
    strategy = make(short_schedule(1000))
    eager, _ = strategy.sample(None, 16, key=key)
    jitted, _ = draw(strategy, 16, key)
    np.testing.assert_array_equal(eager, jitted)
    other, _ = draw(strategy, 16, getkey())
    assert not np.array_equal(eager, other)


# Times that are not uniform

VP, SUB_VP, VE = eqd.VPSDE(), eqd.SubVPSDE(t0=1e-3), eqd.VESDE()
SDES = {"vp": VP, "sub_vp": SUB_VP, "ve": VE, "schedule": eqd.cosine_schedule(60)}
sdes = pytest.mark.parametrize("name", SDES)


def log_snrs(process, t):
    return np.asarray(quick_jit(jax.vmap(process.log_snr))(t), np.float64)


@sdes
def test_likelihood_importance_has_uniform_log_snr(name, getkey):
    """And the weight is p_uniform/p, with the density from λ's derivative by autodiff."""
    process = SDES[name]
    t, weights = draw(eqd.LikelihoodImportance(process), 4000, getkey())
    assert float(t.min()) >= process.t0 and float(t.max()) <= process.t1
    start, end = float(process.log_snr(process.t0)), float(process.log_snr(process.t1))
    unit = (start - log_snrs(process, t)) / (start - end)
    assert np.max(np.abs(np.sort(unit) - (np.arange(4000) + 0.5) / 4000)) < 4e-4
    assert scipy.stats.kstest(unit, "uniform").pvalue > 1e-3
    slope = np.asarray(quick_jit(jax.vmap(jax.grad(process.log_snr)))(t), np.float64)
    density = -slope / (start - end)
    expected = 1 / ((process.t1 - process.t0) * density)
    np.testing.assert_allclose(weights, expected, rtol=1e-9 if X64 else 5e-4)


@sdes
def test_likelihood_importance_is_unbiased(name, getkey):
    """The weighted mean of any function of t is its mean over uniform t; here a moment with a known
    value.
    """
    process = SDES[name]
    strategy = eqd.LikelihoodImportance(process)

    def estimate(key):
        t, weights = traced_draw(strategy, 64, key)
        unit = (t - process.t0) / (process.t1 - process.t0)
        return jnp.mean(weights * unit**2), jnp.mean(weights)

    moments, ones = quick_jit(jax.vmap(estimate))(jax.random.split(getkey(), 2000))
    for found, expected in ((moments, 1 / 3), (ones, 1)):
        found = np.asarray(found, np.float64)
        assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(2000) + 1e-4


def test_likelihood_importance_steadies_the_likelihood_weighted_loss(getkey):
    """On a mixture with its exact denoiser, and at the same mean."""
    denoiser = eqd.GaussianMixtureDenoiser(
        VP,
        np.array([0.3, 0.7]),
        np.array([[1.0, -1.0], [-0.5, 0.5]]),
        0.01 * np.stack([np.eye(2)] * 2),
    )

    @quick_jit
    def losses(t, weights, key):
        def one(t, weight, key):
            data_key, key = jax.random.split(key)
            p = eqd.predict(denoiser, t, denoiser.data_sample(key=data_key), key=key)
            return weight * eqd.score_matching(p, eqd.LikelihoodWeighting())

        return jax.vmap(one)(t, weights, jax.random.split(key, t.size))

    n, found = 20_000, {}
    for make in (eqd.Uniform, eqd.LikelihoodImportance):
        found[make] = np.asarray(losses(*draw(make(VP), n, getkey()), getkey()), np.float64)
    uniform, important = found.values()
    error = np.hypot(uniform.std(), important.std()) / np.sqrt(n)
    assert abs(uniform.mean() - important.mean()) < 4 * error
    # Only t0 keeps the variance under uniform times finite: g²/σ² goes like 1/t.
    assert important.var() < 0.02 * uniform.var()


@pytest.mark.parametrize(
    "name, mean, std",
    [("vp", -1.2, 1.2), ("sub_vp", 1.0, 0.5), ("ve", -1.2, 1.2), ("schedule", 1.0, 0.5)],
)
def test_log_normal_noise(name, mean, std, getkey):
    """log(σ/α) is a normal cut to the process's interval; SciPy's is the truth."""
    process = SDES[name]
    t, weights = draw(eqd.LogNormal(process, mean=mean, std=std), 4000, getkey())
    assert float(t.min()) >= process.t0 and float(t.max()) <= process.t1
    np.testing.assert_array_equal(weights, 1)
    low, high = (-0.5 * float(process.log_snr(end)) for end in (process.t0, process.t1))
    truth = scipy.stats.truncnorm((low - mean) / std, (high - mean) / std, mean, std)
    unit = truth.cdf(-0.5 * log_snrs(process, t))
    assert np.max(np.abs(np.sort(unit) - (np.arange(4000) + 0.5) / 4000)) < 1e-3


@pytest.mark.parametrize("make", [eqd.LikelihoodImportance, eqd.LogNormal, eqd.LogitNormal])
def test_every_place_in_the_batch_has_the_same_law(make, getkey):
    """The quantiles of a batch are spread evenly, but a place in it says nothing about its time."""
    strategy = make(VP)
    keys = jax.random.split(getkey(), 4000)
    t = np.asarray(quick_jit(jax.vmap(lambda k: traced_draw(strategy, 4, k)[0]))(keys), np.float64)
    assert scipy.stats.kstest(t[:, 0], t[:, 3]).pvalue > 1e-3
    pooled, _ = draw(strategy, 4000, getkey())
    assert scipy.stats.kstest(t[:, 1], np.asarray(pooled, np.float64)).pvalue > 1e-3


@pytest.mark.parametrize("mean", [-9.0, 9.0])
def test_log_normal_in_its_tails(mean, getkey):
    """The interval holds a thousandth of the distribution, on either side of it."""
    process = eqd.VESDE(sigma_min=float(np.exp(-5)), sigma_max=float(np.exp(5)), t0=1e-6)
    std = 4 / 3.1
    t, _ = draw(eqd.LogNormal(process, mean=mean, std=std), 2000, getkey())
    low, high = (-0.5 * float(process.log_snr(end)) for end in (process.t0, process.t1))
    truth = scipy.stats.truncnorm((low - mean) / std, (high - mean) / std, mean, std)
    unit = np.sort(truth.cdf(-0.5 * log_snrs(process, t)))
    assert np.max(np.abs(unit - (np.arange(2000) + 0.5) / 2000)) < 2e-3


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (0.5, 0.6)])
def test_logit_normal_times(mean, std, getkey):
    process = eqd.VPSDE(t0=0.1, t1=0.7)
    t, weights = draw(eqd.LogitNormal(process, mean=mean, std=std), 4000, getkey())
    np.testing.assert_array_equal(weights, 1)
    unit = (np.asarray(t, np.float64) - process.t0) / (process.t1 - process.t0)
    logit = np.sort(np.log(unit) - np.log1p(-unit))
    cdf = scipy.stats.norm(mean, std).cdf(logit)
    assert np.max(np.abs(cdf - (np.arange(4000) + 0.5) / 4000)) < 4e-4
    steps, _ = draw(eqd.LogitNormal(short_schedule(50), mean=mean, std=std), 4000, getkey())
    assert steps.dtype == jnp.int32 and int(steps.min()) >= 0 and int(steps.max()) <= 49
    edges = np.arange(1, 50) / 50
    parts = np.diff(
        scipy.stats.norm(mean, std).cdf(np.log(edges / (1 - edges))), prepend=0, append=1
    )
    assert np.max(np.abs(np.bincount(steps, minlength=50) - 4000 * parts)) < 2


@pytest.mark.parametrize("make", [eqd.LikelihoodImportance, eqd.LogNormal, eqd.LogitNormal])
def test_drawn_without_state_and_under_vmap(make, getkey):
    strategy = make(VP)
    assert strategy.init() is None and strategy.process is VP
    assert strategy.update(None, jnp.ones(4), jnp.ones(4)) is None
    keys = jax.random.split(getkey(), 3)
    together = quick_jit(jax.vmap(lambda k: traced_draw(strategy, 5, k)))(keys)
    for i, key in enumerate(keys):
        for a, b in zip(together, draw(strategy, 5, key), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-6)


@pytest.mark.parametrize("make", [eqd.LikelihoodImportance, eqd.LogNormal])
def test_a_traced_process(make, getkey):
    """Hyper-parameters given as arrays may be traced, and give the same times."""
    key = getkey()

    @quick_jit
    def traced(beta_max):
        return traced_draw(make(eqd.VPSDE(beta_max=beta_max)), 6, key)

    for a, b in zip(traced(jnp.asarray(20.0)), draw(make(VP), 6, key), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


REFUSED = [
    *(
        (lambda make=make, wrong=wrong: make(wrong), rf"expected a process.*{make.__name__}\(")
        for make in (*STRATEGIES, eqd.LikelihoodImportance, eqd.LogNormal, eqd.LogitNormal)
        for wrong in (1000, np.int32(1000), jnp.asarray(1000), 0.5, (0.0, 1.0), None, "cosine")
    ),
    *(
        (lambda make=make, std=std: make(VP, std=std), "expected a positive finite number")
        for make in (eqd.LogNormal, eqd.LogitNormal)
        for std in (0.0, -1.0, float("nan"), float("inf"))
    ),
    (lambda: eqd.LogNormal(VP, mean=30.0), "hardly any of it"),
    (lambda: eqd.LogNormal(VP, mean=float("nan")), "hardly any of it"),
    # Without signal at one end, or with no interval, there is no such distribution.
    (lambda: eqd.LikelihoodImportance(eqd.RectifiedFlow(t1=1.0)), "fall from one finite value"),
]


@pytest.mark.parametrize(("make", "match"), REFUSED)
def test_refused(make, match, monkeypatch):
    # Users run without the type checker that would speak first here.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises((TypeError, ValueError), match=match):
        make()


def test_the_refusal_of_a_number_says_what_to_write(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match=r"write Uniform\(eqdiff\.cosine_schedule\(4000\)\)"):
        eqd.Uniform(4000)


def test_a_flat_process_that_is_traced_is_refused_at_run_time():
    def traced(level, key):
        process = eqd.VESDE(sigma_min=level, sigma_max=level)
        return traced_draw(eqd.LikelihoodImportance(process), 3, key)

    with pytest.raises(Exception, match="must fall from one finite value"):
        jax.block_until_ready(eqx.filter_jit(traced)(jnp.asarray(1.0), jax.random.key(0)))


# A loss on another process than the times were drawn from


def zeros(c_noise, x, args=None, *, key=None):
    return jnp.zeros_like(x)


def losses_on(process):
    """Every public call of a loss that takes a time and a process."""
    denoiser, classifier = eqd.Denoiser(zeros, process), eqd.Classifier(zeros, process)
    x, key = jnp.zeros(3), jax.random.key(0)
    return {
        "predict": lambda t: eqd.predict(denoiser, t, x, key=key).x,
        "denoiser": lambda t: denoiser(t, x).x0,
        "classifier": lambda t: eqd.classifier_loss(classifier, t, x, 0, key=key),
        "implicit": lambda t: eqd.implicit_score_matching(denoiser, t, x),
    }


SAME = [
    (eqd.cosine_schedule(1000), eqd.cosine_schedule(1000)),
    (VP, eqd.VPSDE()),
    # A field as an array, and the same number in a Python float.
    (eqd.VPSDE(beta_max=jnp.asarray(20.0, jnp.float32)), VP),
]
DIFFERENT = [
    (eqd.cosine_schedule(4000), eqd.cosine_schedule(1000)),
    (eqd.cosine_schedule(250), eqd.cosine_schedule(1000)),
    (eqd.linear_schedule(1000), eqd.cosine_schedule(1000)),
    (VP, eqd.cosine_schedule(1000)),
    (VP, SUB_VP),
    (VP, eqd.VPSDE(beta_max=10.0)),
]


@pytest.mark.parametrize("call", losses_on(VP))
@pytest.mark.parametrize(("strategy", "loss"), DIFFERENT)
def test_a_loss_on_another_process_is_refused(strategy, loss, call):
    """Before this, Uniform(4000) with a schedule of 1000 steps trained without a word."""

    def run(t):
        with drawn_from(t, strategy):
            return losses_on(loss)[call](t)

    t = time_at(strategy, jnp.asarray(0.01))
    with pytest.raises(ValueError, match="drawn from .*, but the loss uses them on"):
        jax.jit(run)(t)


@pytest.mark.parametrize("call", losses_on(VP))
@pytest.mark.parametrize(("strategy", "loss"), SAME)
def test_a_loss_on_the_same_process_passes(strategy, loss, call):
    def run(t):
        with drawn_from(t, strategy):
            return losses_on(loss)[call](t)

    jax.eval_shape(run, time_at(strategy, jnp.asarray(0.01)))


def test_another_time_than_the_one_drawn_passes():
    """A loss may look at times of its own, on any process; and afterwards nothing is remembered."""
    one, other = eqd.cosine_schedule(4000), eqd.cosine_schedule(1000)

    def run(t):
        with drawn_from(t, one):
            inside = losses_on(other)["predict"](t // 4)
        return inside, losses_on(other)["predict"](t)

    jax.eval_shape(run, jnp.asarray(3))
