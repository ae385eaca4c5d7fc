"""How training times are drawn: their law, their range, their weights."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import X64
from toys import quick_jit

import eqdiff as eqd


STRATEGIES = [eqd.Uniform, eqd.LowDiscrepancy]
strategies = pytest.mark.parametrize("make", STRATEGIES)


def traced_draw(strategy, n, key):
    return strategy.sample(strategy.init(), n, key=key)


def draw(strategy, n, key):
    return quick_jit(lambda key: traced_draw(strategy, n, key))(key)


@strategies
@pytest.mark.parametrize("num_steps", [1, 7, 1000])
def test_steps_of_a_chain(make, num_steps, getkey):
    t, weights = draw(make(num_steps), 513, getkey())
    assert t.dtype == jnp.int32 and t.shape == weights.shape == (513,)
    assert jnp.issubdtype(weights.dtype, jnp.floating)
    assert int(t.min()) >= 0 and int(t.max()) <= num_steps - 1
    np.testing.assert_array_equal(weights, 1)


@strategies
def test_a_number_a_schedule_and_its_length_draw_alike(make, getkey):
    key = getkey()
    by_number, _ = draw(make(60), 100, key)
    by_schedule, _ = draw(make(eqd.cosine_schedule(60)), 100, key)
    np.testing.assert_array_equal(by_number, by_schedule)


@strategies
@pytest.mark.parametrize(
    "process", [eqd.VPSDE(t0=0.1, t1=0.7), eqd.cosine_schedule(60)]
)
def test_times_of_an_sde(make, process, getkey):
    t, weights = draw(make(process), 4000, getkey())
    assert jnp.issubdtype(t.dtype, jnp.floating)
    assert float(t.min()) >= process.t0 and float(t.max()) <= process.t1
    unit = (np.asarray(t, np.float64) - process.t0) / (process.t1 - process.t0)
    assert scipy.stats.kstest(unit, "uniform").pvalue > 1e-3
    np.testing.assert_array_equal(weights, 1)


@strategies
def test_every_place_in_the_batch_is_uniform(make, getkey):
    """Chi-square over many batches, for the first place alone: each time is uniform by itself."""
    strategy = make(10)
    keys = jax.random.split(getkey(), 4000)
    first = np.asarray(quick_jit(jax.vmap(lambda k: traced_draw(strategy, 8, k)[0]))(keys))
    for place in (0, 7):
        counts = np.bincount(first[:, place], minlength=10)
        assert counts.size == 10
        assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_uniform_times_are_independent(getkey):
    strategy = eqd.Uniform(4)
    keys = jax.random.split(getkey(), 4000)
    t = np.asarray(quick_jit(jax.vmap(lambda k: traced_draw(strategy, 2, k)[0]))(keys))
    pairs = np.bincount(4 * t[:, 0] + t[:, 1], minlength=16)
    assert scipy.stats.chisquare(pairs).pvalue > 1e-3


@pytest.mark.parametrize("n", [1, 5, 64, 200])
def test_low_discrepancy_covers(n, getkey):
    """One time in each n-th of the range; on a chain, every step as often as n/T allows."""
    sde = eqd.VPSDE()
    t, _ = draw(eqd.LowDiscrepancy(sde), n, getkey())
    unit = (np.sort(np.asarray(t, np.float64)) - sde.t0) / (sde.t1 - sde.t0)
    assert np.all(np.abs(unit - (np.arange(n) + 0.5) / n) <= 0.5 / n + 1e-6)
    gaps = np.diff(unit)
    np.testing.assert_allclose(gaps, 1 / n, atol=1e-6)
    steps, _ = draw(eqd.LowDiscrepancy(50), n, getkey())
    counts = np.bincount(np.asarray(steps), minlength=50)
    assert counts.min() >= np.floor(n / 50) and counts.max() <= np.ceil(n / 50)


def test_low_discrepancy_is_shuffled(getkey):
    t, _ = draw(eqd.LowDiscrepancy(eqd.VPSDE()), 64, getkey())
    # Sorted times would correlate perfectly with their place.
    assert abs(np.corrcoef(np.arange(64), np.asarray(t))[0, 1]) < 0.5


@strategies
def test_weighted_mean_is_unbiased_and_low_discrepancy_is_steadier(make, getkey):
    strategy = make(100)
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
    strategy = make(10)
    state = strategy.init()
    t, _ = draw(strategy, 4, getkey())
    assert jax.tree.leaves(state) == []
    assert strategy.update(state, t, jnp.ones(4)) is state
    assert jax.tree.leaves(make(10)) == []


@strategies
def test_sampling_is_a_function_of_the_key_alone(make, getkey):
    key = getkey()
    strategy = make(1000)
    eager, _ = strategy.sample(None, 16, key=key)
    jitted, _ = draw(strategy, 16, key)
    np.testing.assert_array_equal(eager, jitted)
    other, _ = draw(strategy, 16, getkey())
    assert not np.array_equal(eager, other)


@strategies
def test_no_steps_is_an_error(make):
    with pytest.raises(ValueError, match="at least one timestep, got 0"):
        make(0)


# Times that are not uniform

VP, SUB_VP, VE = eqd.VPSDE(), eqd.SubVPSDE(t0=1e-3), eqd.VESDE()
CONTINUOUS = eqd.cosine_schedule(60)
SDES = {"vp": VP, "sub_vp": SUB_VP, "ve": VE, "continuous": CONTINUOUS}
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
    """The weighted mean of any function of t is its mean over uniform t; here a moment with a known value."""
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
    [("vp", -1.2, 1.2), ("sub_vp", 1.0, 0.5), ("ve", -1.2, 1.2), ("continuous", 1.0, 0.5)],
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
    steps, _ = draw(eqd.LogitNormal(50, mean=mean, std=std), 4000, getkey())
    assert steps.dtype == jnp.int32 and int(steps.min()) >= 0 and int(steps.max()) <= 49
    edges = np.arange(1, 50) / 50
    parts = np.diff(
        scipy.stats.norm(mean, std).cdf(np.log(edges / (1 - edges))), prepend=0, append=1
    )
    assert np.max(np.abs(np.bincount(steps, minlength=50) - 4000 * parts)) < 2


@pytest.mark.parametrize("make", [eqd.LikelihoodImportance, eqd.LogNormal, eqd.LogitNormal])
def test_drawn_without_state_and_under_vmap(make, getkey):
    strategy = make(VP)
    assert strategy.init() is None and strategy.domain is VP
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


def test_errors_of_times_that_are_not_uniform():
    for make in (eqd.LikelihoodImportance, eqd.LogNormal):
        with pytest.raises(ValueError, match=r"discrete chain.*schedule.continuous\(\)"):
            make(eqd.cosine_schedule(60))
    for make in (eqd.LogNormal, eqd.LogitNormal):
        for std in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="expected a positive finite number"):
                make(VP, std=std)
    with pytest.raises(ValueError, match="hardly any of it"):
        eqd.LogNormal(VP, mean=30.0)
    with pytest.raises(ValueError, match="hardly any of it"):
        eqd.LogNormal(VP, mean=float("nan"))
    # A constant process has no log-SNR to spread over; one that is traced is refused at run time.
    flat = eqd.VESDE(sigma_min=jnp.asarray(1.0), sigma_max=jnp.asarray(1.0))
    with pytest.raises(ValueError, match="must fall from one finite value"):
        eqd.LikelihoodImportance(flat)

    def traced(level, key):
        process = eqd.VESDE(sigma_min=level, sigma_max=level)
        return traced_draw(eqd.LikelihoodImportance(process), 3, key)

    with pytest.raises(Exception, match="must fall from one finite value"):
        jax.block_until_ready(eqx.filter_jit(traced)(jnp.asarray(1.0), jax.random.key(0)))
