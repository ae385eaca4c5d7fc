"""Costs of all edges of a schedule: paths add up to the bound of the respaced one."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import load_golden
from test_bound import on_grid
from toys import IdiffToy, quick_jit, VARIANCES

import eqdiff as eqd


SCHEDULE = eqd.cosine_schedule(50)
GRID = np.array([0, 2, 3, 9, 20, 35, 49])
PATHS = [(0, 3, 20, 49), (9, 35), (20,)]
ALL_VARIANCES = VARIANCES | {
    "ANALYTIC": eqd.AnalyticVariance(SCHEDULE.alpha_bar / (SCHEDULE.alpha_bar + 3))
}


def images(n=3, shape=(3, 2, 2), levels=17):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, levels, (n, *shape)) * (2 / (levels - 1)) - 1, float)


def denoiser_on(schedule, variance_type, parameterisation=eqd.PredictData(), clip=False):
    """The golden toy, whose output for x̂0 is near x, with its variance outputs where they are
    learned.
    """
    abcd = load_golden("public_idiff_losses")["losses/base_cosine1000/toy_abcd"]
    mean_type = "START_X" if isinstance(parameterisation, eqd.PredictData) else "EPSILON"
    net = IdiffToy(abcd, mean_type, variance_type, float)
    denoiser = eqd.Denoiser(net, schedule, parameterisation, variance=ALL_VARIANCES[variance_type])
    return eqd.Clip(denoiser) if clip else denoiser


CASES = {
    "small": ft.partial(denoiser_on, variance_type="FIXED_SMALL"),
    "large, noise, clipped": ft.partial(
        denoiser_on, variance_type="FIXED_LARGE", parameterisation=eqd.PredictNoise(), clip=True
    ),
    "learned": ft.partial(denoiser_on, variance_type="LEARNED"),
    "learned range": ft.partial(denoiser_on, variance_type="LEARNED_RANGE"),
    "analytic": ft.partial(denoiser_on, variance_type="ANALYTIC"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_paths_are_the_bounds_of_respaced_schedules(case, getkey):
    """With one key the noise is the same, so the sums are equal to rounding, not only in
    expectation.
    """
    build, data, key = CASES[case], images(), getkey()
    args = jnp.asarray([0.0, 1.0, 2.0])
    terms = eqd.pairwise_terms(build(SCHEDULE), data, GRID, args, key=key, levels=17, chunk=3)

    @quick_jit
    def bounds(key):
        def total(path):
            denoiser = build(eqd.respace(SCHEDULE, path))
            each = jax.vmap(
                lambda x0, a, k: eqd.variational_bound(denoiser, x0, a, key=k, levels=17)
            )(data, args, jax.random.split(key, len(data)))
            return jnp.mean(each.bits), jnp.mean(each.terms[:, 0])

        return [total(path) for path in PATHS]

    tolerance = 1e-9 if data.dtype == jnp.float64 else 2e-4
    for path, (total, first) in zip(PATHS, bounds(key), strict=True):
        np.testing.assert_allclose(terms.bound(path), total, rtol=tolerance)
        start, second = (np.searchsorted(GRID, t) for t in (path[0], path[min(1, len(path) - 1)]))
        np.testing.assert_allclose(terms.decoder[start, second], first, rtol=tolerance)


def test_edges_for_gaussian_data(getkey, x64):
    """The KL of every edge in closed form: for N(0, s²) data and Σ = β̃ only the means differ."""
    std, n, dim = 0.2, 1000, 8
    data = on_grid(std * jax.random.normal(getkey(), (n, dim)))
    denoiser = eqd.GaussianDenoiser(SCHEDULE, 0.0, std, variance=eqd.FixedSmall())
    terms = eqd.pairwise_terms(denoiser, data, GRID, key=getkey(), levels=65536, chunk=8)
    for j, t in enumerate(GRID):
        alpha_bar = SCHEDULE.alpha_bar[t]
        x0_error = std**2 * (1 - alpha_bar) / (alpha_bar * std**2 + 1 - alpha_bar)
        for k, s in enumerate(GRID[:j]):
            end = SCHEDULE.alpha_bar[s]
            beta = 1 - alpha_bar / end
            on_x0, posterior = (
                np.sqrt(end) * beta / (1 - alpha_bar),
                beta * (1 - end) / (1 - alpha_bar),
            )
            truth = on_x0**2 * x0_error / (2 * posterior) / np.log(2)
            # A mean of n·dim squares of Gaussians.
            np.testing.assert_allclose(terms.steps[j, k], truth, rtol=4.5 * np.sqrt(2 / (n * dim)))
        prior = 0.5 * (alpha_bar * std**2 - alpha_bar - np.log1p(-alpha_bar)) / np.log(2)
        spread = 4.5 * alpha_bar * std**2 / np.sqrt(2 * n * dim) / np.log(2)
        np.testing.assert_allclose(terms.prior[j], prior, atol=spread)


def test_what_is_no_edge_is_infinite(getkey):
    terms = eqd.pairwise_terms(CASES["small"](SCHEDULE), images(), GRID, key=getkey(), levels=17)
    later = np.arange(len(GRID))[:, None] > np.arange(len(GRID))
    np.testing.assert_array_equal(np.isfinite(terms.steps), later)
    np.testing.assert_array_equal(np.isfinite(terms.decoder), ~later)
    assert np.all(np.isfinite(terms.prior))


@pytest.mark.slow
def test_the_decoder_depends_on_the_step_before_it(getkey):
    """Why the decoder has a table over pairs: under the official clip, one cost per time would be
    wrong by this much.
    """
    key, data = getkey(), images()
    small, learned, analytic = (
        np.asarray(
            eqd.pairwise_terms(CASES[c](SCHEDULE), data, GRID, key=key, levels=17).decoder, float
        )
        for c in ("small", "learned", "analytic")
    )
    # From the grid's third time: the clipped variance is β̃(t_k → t_2), from about half of σ² to
    # all of it.
    start = SCHEDULE.alpha_bar[GRID[2]]
    later = SCHEDULE.alpha_bar[GRID[3:]]
    clipped = (1 - later / start) * (1 - start) / (1 - later)
    assert clipped[0] < 0.9 * clipped[-1]
    assert np.ptp(small[2, 3:]) > 0.01
    # Variances that depend on the time alone have one cost, for one step too.
    for table in (learned, analytic):
        np.testing.assert_allclose(table[2, 2:], table[2, 2], rtol=1e-6)


def test_one_network_call_per_image_and_time(getkey):
    calls = []

    def net(c_noise, x, args, *, key=None):
        jax.debug.callback(lambda _: calls.append(None), x[0])
        return jnp.tanh(x)

    denoiser = eqd.Denoiser(net, SCHEDULE)
    terms = eqd.pairwise_terms(
        denoiser, images(4, (5,)), GRID[:6], key=getkey(), levels=17, chunk=3
    )
    jax.block_until_ready(terms.steps)
    jax.effects_barrier()
    assert len(calls) == 4 * 6


SMALL, VP = CASES["small"](SCHEDULE), eqd.GaussianDenoiser(eqd.VPSDE())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"denoiser": VP}, "discrete schedule, but the process is VPSDE"),
        *(({"grid": g}, "increasing whole numbers from 0 to 49, got") for g in ([0, 0], [3, 1])),
        *(({"grid": g}, "increasing whole numbers from 0 to 49") for g in ([-1, 2], [0, 50], [])),
        ({"data": jnp.zeros((0, 3))}, r"at least 1 examples .* \(0, 3\).*write x0\[None\]"),
        ({"args": jnp.zeros(2)}, r"args has a leaf of shape \(2,\)"),
        ({"levels": 1}, "levels=1"),
        ({"chunk": 0}, "chunk=0"),
        ({"denoiser": eqd.Denoiser(SMALL.net, SCHEDULE, eqd.PreviousMean())}, "PreviousMean"),
        ({"data": 127.5 * (images() + 1)}, "values from 0 to 255.*pairwise_terms.levels=17"),
        ({"levels": 256}, r"none of the levels.*pairwise_terms\(levels=256\)"),
        ({"data": images().at[0, 0].set(jnp.nan)}, "not finite"),
    ],
)
def test_what_is_refused(change, says, getkey):
    given = dict(denoiser=SMALL, data=images(), grid=GRID, key=getkey(), levels=17) | change
    with pytest.raises(ValueError, match=says):
        eqd.pairwise_terms(**given)


def test_paths_off_the_grid_are_refused(getkey):
    terms = eqd.pairwise_terms(SMALL, images(), GRID, key=getkey(), levels=17)
    for path in ([0, 1], [3, 0], [], [0, 100]):
        with pytest.raises(ValueError, match=r"increasing times of the grid, \[ ?0, "):
            terms.bound(path)
