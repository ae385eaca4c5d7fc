"""The best steps and the best fixed variances: against brute force, closed forms, and every other
choice.
"""

import itertools as it

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_bound import on_grid
from toys import quick_jit

import eqdiff as eqd


def random_terms(seed: int, size: int = 7) -> eqd.PairwiseTerms:
    """Costs without any order, so that a wrong recursion has nowhere to hide."""
    rng = np.random.default_rng(seed)
    later = np.arange(size)[:, None] > np.arange(size)

    def draw(*shape):
        return rng.exponential(size=shape)

    return eqd.PairwiseTerms(
        np.cumsum(rng.integers(1, 9, size)),
        jnp.asarray(np.where(later, draw(size, size), np.inf), float),
        jnp.asarray(np.where(later, np.inf, draw(size, size)), float),
        jnp.asarray(draw(size), float),
    )


@pytest.mark.parametrize("seed", range(4))
def test_against_brute_force(seed):
    terms = random_terms(seed)
    for num_steps in range(1, terms.grid.size + 1):
        path = eqd.optimal_timesteps(terms, num_steps)
        assert path.shape == (num_steps,)
        paths = [np.array(p) for p in it.combinations(terms.grid, num_steps)]
        bounds = [float(terms.bound(p)) for p in paths]
        np.testing.assert_array_equal(path, paths[int(np.argmin(bounds))])


STD = 0.3
MIXTURE = (
    np.array([0.5, 0.3, 0.2]),
    np.array([[-0.6, -0.4], [0.5, 0.5], [0.3, -0.7]]),
    0.01 * np.eye(2)[None],
)


def mixture(schedule, variance):
    weights, means, covariance = MIXTURE
    return eqd.GaussianMixtureDenoiser(
        schedule, weights, means, np.repeat(covariance, 3, axis=0), variance=variance
    )


@quick_jit
def mixture_images(keys):
    """Draws of the mixture, rounded to 256 grey levels."""
    oracle = mixture(eqd.linear_schedule(100), eqd.FixedSmall())
    points = jax.vmap(lambda k: oracle.data_sample(key=k))(keys)
    return jnp.clip(jnp.rint((points + 1) * 127.5) / 127.5 - 1, -1, 1)


SCHEDULE = eqd.linear_schedule(100)


@pytest.fixture(scope="module")
def mixture_terms():
    """Real costs: of the exact denoiser of a mixture, on all pairs of 100 times."""
    data_key, key = jax.random.split(jax.random.key(3))
    data = mixture_images(jax.random.split(data_key, 100))
    denoiser = mixture(SCHEDULE, eqd.FixedLarge())
    return eqd.pairwise_terms(denoiser, data, np.arange(100), key=key, chunk=50)


@pytest.mark.slow
def test_more_steps_are_better_and_none_is_worse_than_even(mixture_terms):
    best = {}
    for num_steps in (1, 2, 4, 5, 10, 20, 25, 50, 100):
        path = eqd.optimal_timesteps(mixture_terms, num_steps)
        best[num_steps] = float(mixture_terms.bound(path))
        assert np.all(np.diff(path) > 0) and 0 <= path[0] and path[-1] < 100
        even = float(mixture_terms.bound(eqd.section_timesteps(100, (num_steps,))))
        assert best[num_steps] <= even + 1e-5
        if num_steps > 1:
            ddim = float(mixture_terms.bound(eqd.ddim_timesteps(100, num_steps)))
            assert best[num_steps] <= ddim + 1e-5
        if num_steps == 10:
            # A whole bit of the nearly eight of even spacing, not a rounding of it.
            assert best[10] < even - 0.8
    # All hundred are not the best: whoever must visit the first times has to tell grey levels apart
    # that the exact denoiser of continuous data does not know of.
    assert np.all(np.diff([best[k] for k in best if k <= 50]) < 0)
    np.testing.assert_array_equal(eqd.optimal_timesteps(mixture_terms, 100), np.arange(100))


def test_the_steps_are_used_as_they_are(mixture_terms, getkey):
    path = eqd.optimal_timesteps(mixture_terms, 5)
    schedule = eqd.respace(SCHEDULE, path)
    np.testing.assert_array_equal(schedule.timesteps, path)
    denoiser = eqd.GaussianDenoiser(SCHEDULE, 0.0, STD)
    sampler = eqd.Ancestral(times=path[::-1])
    sample = quick_jit(lambda x, k: sampler(denoiser, x, key=k))(jnp.ones(4), getkey())
    assert sample.shape == (4,) and np.all(np.isfinite(sample))


def test_wrong_requests(mixture_terms):
    for num_steps in (0, 101):
        with pytest.raises(
            ValueError, match=rf"num_steps={num_steps}\): expected (1 to 100|a pos)"
        ):
            eqd.optimal_timesteps(mixture_terms, num_steps)
    broken = eqx.tree_at(lambda t: t.prior, mixture_terms, mixture_terms.prior.at[3].set(np.nan))
    with pytest.raises(ValueError, match="hold NaN"):
        eqd.optimal_timesteps(broken, 3)


def exact_noise_error(schedule, std):
    """1 − Γ for N(0, s²) data: E ε̂² = σ²/(α²s² + σ²)."""
    return schedule.alpha_bar * std**2 / (schedule.alpha_bar * std**2 + 1 - schedule.alpha_bar)


@pytest.mark.parametrize("estimate", [eqd.analytic_variance, eqd.optimal_variance])
def test_gaussian_data(estimate, getkey):
    schedule, n, dim = eqd.cosine_schedule(20), 500, 16
    data = STD * jax.random.normal(getkey(), (n, dim))
    denoiser = eqd.GaussianDenoiser(schedule, 0.0, STD)
    error = estimate(denoiser, data, key=getkey(), chunk=7).noise_error
    truth = exact_noise_error(schedule, STD)
    # Each is a mean of n·dim squares of Gaussians: of ε̂, of variance 1 − e, or of ε − ε̂, of
    # variance e.
    scale = 1 - truth if estimate is eqd.analytic_variance else truth
    assert np.all(np.abs(error - truth) < 4.5 * np.sqrt(2 / (n * dim)) * scale + 1e-6)


@pytest.mark.slow
def test_bounds_of_gamma(getkey):
    """At the noisiest steps Γ says nothing (1 − Γ is rounding), and the data's own variance holds
    it.
    """
    schedule = eqd.cosine_schedule(50)
    data = STD * jax.random.normal(getkey(), (20, 2))
    error = eqd.analytic_variance(
        eqd.GaussianDenoiser(schedule, 0.0, STD), data, key=getkey()
    ).noise_error
    most = np.var(data, axis=0, ddof=1).mean() * schedule.alpha_bar / (1 - schedule.alpha_bar)
    assert np.all(error >= 0) and np.all(error <= np.minimum(1, most) * (1 + 1e-5))

    # A network whose noise is twice too large, and one that returns nothing: both beyond the
    # bounds.
    for factor, at_the_data in ((2.0, 0.0), (0.0, 1.0)):

        def net(c_noise, x, args, *, key=None, c=factor):
            return c * x

        error = eqd.analytic_variance(
            eqd.Denoiser(net, schedule), data * 9, key=getkey()
        ).noise_error
        assert error[0] == at_the_data and np.all(error <= 1) and np.all(error >= 0)


def test_a_respaced_schedule_is_interpolated(getkey):
    schedule = eqd.respace(eqd.cosine_schedule(100), np.arange(9, 100, 10))
    data = STD * jax.random.normal(getkey(), (300, 8))
    variance = eqd.optimal_variance(eqd.GaussianDenoiser(schedule, 0.0, STD), data, key=getkey())
    assert variance.noise_error.shape == (100,)
    middle = 0.5 * (variance.noise_error[19] + variance.noise_error[29])
    np.testing.assert_allclose(variance.noise_error[24], middle, rtol=1e-6)
    truth = exact_noise_error(eqd.cosine_schedule(100), STD)
    scale = 4.5 * np.sqrt(2 / (300 * 8))
    np.testing.assert_allclose(variance.noise_error[9::10], truth[9::10], rtol=scale)


@pytest.mark.slow
def test_no_fixed_variance_is_better_on_a_mixture(getkey):
    """The bound of ten steps, at the same noise on fresh data; the variance was found on other
    data.
    """
    whole = eqd.linear_schedule(200)
    schedule = eqd.respace(whole, eqd.section_timesteps(200, (10,)))
    train, test = (mixture_images(jax.random.split(getkey(), 1000)) for _ in range(2))
    sparse = mixture(eqd.respace(whole, eqd.section_timesteps(200, (40,))), eqd.FixedSmall())
    analytic = eqd.analytic_variance(sparse, train, key=getkey(), chunk=40)
    keys = jax.random.split(getkey(), len(test))

    @quick_jit
    def totals(keys):
        def total(variance):
            denoiser = mixture(schedule, variance)
            return jax.vmap(lambda x, k: eqd.variational_bound(denoiser, x, key=k).bits)(test, keys)

        return [total(v) for v in (analytic, eqd.FixedSmall(), eqd.FixedLarge())]

    best, *others = (np.asarray(t, float) for t in totals(keys))
    for other in others:
        gap = other - best
        assert gap.mean() > 4 * gap.std() / np.sqrt(gap.size)
        assert gap.mean() > 0.1


@pytest.mark.slow
def test_optimal_for_a_denoiser_that_is_wrong(getkey, x64):
    """On the data and noise it was found with, every step's KL grows if its variance moves either
    way.
    """
    schedule = eqd.cosine_schedule(12)
    data = on_grid(STD * jax.random.normal(getkey(), (40, 4)))
    key = getkey()

    # The data's spread is 0.3: this denoiser believes in 0.5, and in another mean.
    def wrong(variance):
        return eqd.GaussianDenoiser(schedule, 0.2, 0.5, variance=variance)

    found = eqd.optimal_variance(wrong(eqd.FixedSmall()), data, key=key).noise_error

    @quick_jit
    def terms(keys):
        def mean(variance):
            def run(x, k):
                return eqd.variational_bound(wrong(variance), x, key=k, levels=65536).terms

            return jnp.mean(jax.vmap(run)(data, keys), axis=0)

        return [mean(eqd.AnalyticVariance(f * found)) for f in (1, 0.99, 1.01)]

    best, below, above = (np.asarray(t)[1:] for t in terms(jax.random.split(key, len(data))))
    assert np.all(best < below) and np.all(best < above)


def test_variance_errors(getkey):
    data, key = jnp.zeros((3, 2)), getkey()
    schedule = eqd.cosine_schedule(5)
    for estimate, least in ((eqd.analytic_variance, 2), (eqd.optimal_variance, 1)):
        with pytest.raises(ValueError, match="discrete schedule, but the process is VPSDE"):
            estimate(eqd.GaussianDenoiser(eqd.VPSDE()), data, key=key)
        with pytest.raises(ValueError, match=f"a batch of at least {least} examples"):
            estimate(eqd.GaussianDenoiser(schedule), data[: least - 1], key=key)
        with pytest.raises(ValueError, match="not finite"):
            estimate(eqd.GaussianDenoiser(schedule), data.at[0].set(jnp.inf), key=key)
        broken = eqd.Denoiser(lambda c_noise, x, args, *, key=None: jnp.nan * x, schedule)
        with pytest.raises(ValueError, match=r"noise_error\[0\] = nan"):
            estimate(broken, data, key=key)
