"""The bound from a few terms: unbiased, with the right standard error, at the promised cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import load_golden
from toys import idiff_denoiser, quick_jit

import eqdiff as eqd
from eqdiff._bound.bound import strata


SCHEDULE = eqd.cosine_schedule(24)
N = 4000


def toy():
    abcd = load_golden("public_idiff_losses")["losses/base_cosine1000/toy_abcd"]
    return idiff_denoiser(SCHEDULE, abcd, "START_X", "LEARNED_RANGE", float)


DENOISERS = {
    "oracle": eqd.GaussianDenoiser(SCHEDULE, 0.1, 0.5, variance=eqd.FixedSmall()),
    "golden toy": toy(),
}
X0 = jnp.linspace(-1, 1, 6).reshape(3, 2)


@pytest.fixture(scope="module")
def full_bound():
    """The bound of X0 to four digits: the mean over many keys, and its standard error."""

    def mean(denoiser):
        def total(key):
            return eqd.variational_bound(denoiser, X0, key=key, levels=6, chunk=24).bits

        totals = np.asarray(quick_jit(jax.vmap(total))(jax.random.split(jax.random.key(7), N)))
        return totals.mean(), totals.std() / np.sqrt(N)

    return {name: mean(denoiser) for name, denoiser in DENOISERS.items()}


# An odd number, few strata, and two draws of every step.
@pytest.mark.parametrize("num_terms", [5, 12, 48])
@pytest.mark.parametrize("name", DENOISERS)
def test_unbiased_with_the_right_standard_error(name, num_terms, full_bound, getkey):
    denoiser = DENOISERS[name]

    @quick_jit
    @jax.vmap
    def run(key):
        return eqd.variational_bound(denoiser, X0, key=key, levels=6, num_terms=num_terms)

    estimate = run(jax.random.split(getkey(), N))
    value, variance = np.asarray(estimate.bits, float), np.asarray(estimate.stderr, float) ** 2
    truth, truth_error = full_bound[name]
    error = np.hypot(value.std() / np.sqrt(N), truth_error)
    assert abs(value.mean() - truth) < 4 * error
    assert error < 0.03 * truth, "the comparison has teeth"
    # Two unbiased estimates of one variance: stderr² of each estimate, and the spread of the
    # estimates.
    spread = (value - value.mean()) ** 2 * N / (N - 1)
    difference = variance - spread
    assert abs(difference.mean()) < 4.5 * difference.std() / np.sqrt(N)
    assert difference.std() / np.sqrt(N) < 0.08 * spread.mean(), "the comparison has teeth"
    # A mean over 25 images has a standard error of enough draws for an interval: two of them hold
    # 95 of 100.
    means, errors = value.reshape(-1, 25).mean(1), np.sqrt(variance.reshape(-1, 25).sum(1)) / 25
    assert 0.88 < np.mean(np.abs(means - truth) < 2 * errors) < 0.995


def test_the_prior_is_a_part(getkey):
    denoiser, key = DENOISERS["oracle"], getkey()
    estimate = quick_jit(
        lambda k: eqd.variational_bound(denoiser, X0, key=k, levels=6, num_terms=6)
    )(key)
    full = quick_jit(lambda k: eqd.variational_bound(denoiser, X0, key=k, levels=6))(key)
    np.testing.assert_allclose(estimate.prior, full.prior, rtol=1e-6)
    # A term evaluated once has no spread.
    assert np.isnan(full.stderr) and np.isfinite(estimate.stderr)
    np.testing.assert_array_equal(full.t, np.arange(24))


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_cost_is_num_terms_network_calls(chunk, getkey):
    calls = []

    def net(c_noise, x, args, *, key=None):
        jax.debug.callback(lambda _: calls.append(None), x.ravel()[0])
        return jnp.tanh(x)

    denoiser, key = eqd.Denoiser(net, SCHEDULE), getkey()
    run = quick_jit(
        lambda k: eqd.variational_bound(denoiser, X0, key=k, levels=6, num_terms=10, chunk=chunk)
    )
    estimate = jax.block_until_ready(run(key))
    jax.effects_barrier()
    assert len(calls) == 10
    assert np.isfinite(estimate.bits) and estimate.stderr > 0


def test_chunks_do_not_matter_to_an_estimate(getkey, x64):
    key = getkey()
    small, large = (
        quick_jit(
            lambda k, c=c: eqd.variational_bound(
                DENOISERS["golden toy"], X0, key=k, levels=6, num_terms=9, chunk=c
            )
        )(key)
        for c in (2, 9)
    )
    np.testing.assert_allclose(small.bits, large.bits, rtol=1e-9)
    np.testing.assert_allclose(small.stderr, large.stderr, rtol=1e-9)


def test_the_value_has_a_gradient(getkey):
    """Also where two draws of a stratum agree, and the standard error has none."""
    schedule = eqd.cosine_schedule(2)

    def value(scale, key):
        # A network that ignores the noise: both draws of a stratum give nearly one number.
        denoiser = eqd.Denoiser(
            lambda c_noise, x, args, *, key=None: scale + 0 * x, schedule, eqd.PredictData()
        )
        return eqd.variational_bound(denoiser, X0, key=key, levels=6, num_terms=4).bits

    gradient = quick_jit(jax.grad(value))(jnp.asarray(0.3), getkey())
    assert np.isfinite(gradient)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 97, 1000, 4000])
def test_strata_cover_every_step_once(num_steps):
    counts = {1, 2, 3, 5, 8, 16, 64, 333, 999, num_steps // 2, num_steps - 1, num_steps}
    for n in sorted(c for c in counts if 1 <= c <= num_steps):
        edges = strata(num_steps, n)
        widths = np.diff(edges)
        assert edges[0] == 0 and edges[-1] == num_steps and len(widths) == n
        # Never empty, never narrower than the one before: the first steps, which matter most, come
        # singly.
        assert np.all(widths >= 1) and np.all(np.diff(widths) >= 0)
        if n == num_steps:
            np.testing.assert_array_equal(widths, 1)


def test_strata_widen_gradually():
    """No stratum of a realistic split holds more than its geometric share."""
    widths = np.diff(strata(4000, 64))
    assert widths[0] == widths[1] == 1
    assert widths[-1] < 0.2 * 4000
    grown = widths[1:-1] / widths[:-2]
    assert np.all(grown <= 2)
