"""How training times are drawn: their law, their range, their weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
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
    "process", [eqd.VPSDE(t0=0.1, t1=0.7), eqd.cosine_schedule(60).continuous()]
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
