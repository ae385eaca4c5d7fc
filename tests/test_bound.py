"""The variational bound: the official loop, a closed form for Gaussian data, and the estimate from strata."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden
from toys import idiff_denoiser, quick_jit, without_rescaling

import eqdiff as eqd
from eqdiff._bound import _prior_term, strata


LOSSES = "public_idiff_losses"
CHAINS = {
    "0": eqd.respace(eqd.linear_schedule(1000), eqd.section_timesteps(1000, (20,))),
    "1": without_rescaling(eqd.cosine_schedule(40)),
}
CASES = [
    "EPSILON-LEARNED_RANGE-clip1",
    "EPSILON-FIXED_LARGE-clip1",
    "START_X-FIXED_SMALL-clip0",
    "EPSILON-LEARNED_RANGE-clip0",
]


@pytest.mark.parametrize("chain_name", CHAINS)
@pytest.mark.parametrize("case", CASES)
def test_golden_bpd_loop(chain_name, case):
    """The official loop's own noise, through the function that computes one term of `variational_bound`."""
    g, chain, base = load_golden(LOSSES), CHAINS[chain_name], f"bpd/{chain_name}-{case}"
    x0 = jnp.asarray(g[f"{base}/x0"], float)
    # The j-th draw is used at t = T − 1 − j, and the columns are in that order too.
    noises = jnp.asarray(g[f"{base}/noises"][::-1].copy(), float)
    mean_type, variance_type, clip = case.split("-")
    abcd = g["losses/base_cosine1000/toy_abcd"]
    denoiser = idiff_denoiser(chain, abcd, mean_type, variance_type, float)
    denoiser = eqd.Clip(denoiser) if clip == "clip1" else denoiser

    def term(t, x0, noise):
        p = eqd.predict_from_noise(denoiser, t, x0, noise)
        return (
            eqd.bound_term(p),
            jnp.mean((p.estimate.x0 - x0) ** 2),
            jnp.mean((p.estimate.noise - noise) ** 2),
        )

    times = jnp.arange(chain.num_steps)
    all_terms = jax.vmap(jax.vmap(term, in_axes=(0, None, 0)), in_axes=(None, 0, 1))
    vb, x0_error, noise_error = quick_jit(all_terms)(times, x0, noises)
    prior = jax.vmap(lambda x: _prior_term(chain, x))(x0)
    for key, actual in (
        ("vb", vb[:, ::-1]),
        ("xstart_mse", x0_error[:, ::-1]),
        ("mse", noise_error[:, ::-1]),
        ("prior_bpd", prior),
        ("total_bpd", jnp.sum(vb, axis=1) + prior),
    ):
        assert_golden(np.asarray(actual, np.float32), LOSSES, f"{base}/{key}")


def test_golden_prior_term():
    name, chain = "public_idiff_pieces", eqd.linear_schedule(1000)
    x0 = jnp.asarray(load_golden(name)["q/x0"], float)
    prior = jax.vmap(lambda x: _prior_term(chain, x))(x0)
    assert_golden(np.asarray(prior, np.float32), name, "q/prior_bpd")


def expected_terms(chain, std):
    """L_t in bits/dim, t ≥ 1, for N(0, s²) data, the exact denoiser and Σ = β̃: only the means differ.

    E(x0 − x̂0)² = s²σ²/(α²s² + σ²), so KL = c₁² s²σ²/(α²s² + σ²)/(2β̃).
    """
    alpha_bar, before = chain.alpha_bar, np.append(1.0, chain.alpha_bar[:-1])
    sigma2 = 1 - alpha_bar
    error = std**2 * sigma2 / (alpha_bar * std**2 + sigma2)
    c1 = np.sqrt(before) * chain.betas / sigma2
    with np.errstate(divide="ignore"):
        return c1**2 * error / (2 * chain.posterior_variance) / np.log(2)


def test_closed_form_for_gaussian_data(getkey, x64):
    chain, std, n, dim = eqd.cosine_schedule(30), 0.4, 500, 8
    denoiser = eqd.GaussianDenoiser(chain, 0.0, std, variance=eqd.FixedSmall())

    @quick_jit
    @jax.vmap
    def run(key):
        data_key, key = jax.random.split(key)
        x0 = std * jax.random.normal(data_key, (dim,))
        return eqd.variational_bound(denoiser, x0, key=key, chunk=30)

    bound = run(jax.random.split(getkey(), n))
    terms = np.asarray(bound.terms)
    np.testing.assert_allclose(bound.total, bound.prior + terms.sum(axis=1), rtol=1e-12)
    truth = expected_terms(chain, std)
    error = terms.std(axis=0) / np.sqrt(n)
    assert np.all(np.abs(terms.mean(axis=0) - truth)[1:] < 4.5 * error[1:])
    assert np.all(error[1:-1] < 0.05 * truth[1:-1]), "the comparison has teeth"
    sigma2 = 1 - chain.alpha_bar
    x0_truth = std**2 * sigma2 / (chain.alpha_bar * std**2 + sigma2)
    x0_error = np.asarray(bound.x0_error)
    assert np.all(np.abs(x0_error.mean(0) - x0_truth) < 4.5 * x0_error.std(0) / np.sqrt(n))
    # ε̂ − ε = −(α/σ)(x̂0 − x0).
    np.testing.assert_allclose(
        bound.noise_error, x0_error * chain.alpha_bar / sigma2, rtol=1e-6, atol=1e-12
    )
    # The prior term: KL(N(αx0, σ²) ‖ N(0, 1)) averaged over x0.
    a2, s2 = chain.alpha_bar[-1], sigma2[-1]
    prior_truth = 0.5 * (a2 * std**2 + s2 - 1 - np.log(s2)) / np.log(2)
    prior = np.asarray(bound.prior)
    assert abs(prior.mean() - prior_truth) < 4.5 * prior.std() / np.sqrt(n) + 1e-12


class TableVariance(eqd.AbstractVariance):
    """A log-variance per step, of the user's own making."""

    log_variances: jax.Array
    learned = False

    def log_variance(self, schedule, t, raw):
        return self.log_variances[t]


def optimal_log_variance(chain, std):
    """β̃ + c₁² Var(x0|x_t) for N(0, s²) data: the reverse steps are then exact."""
    alpha_bar, sigma2 = chain.alpha_bar, 1 - chain.alpha_bar
    uncertainty = std**2 * sigma2 / (alpha_bar * std**2 + sigma2)
    c1 = np.sqrt(chain.alpha_bar_previous) * chain.betas / sigma2
    return np.log(chain.posterior_variance + c1**2 * uncertainty)


def test_the_bound_is_a_bound_and_tight_for_a_gaussian(getkey, x64):
    """bpd ≥ entropy of the discretised data, whatever the variance; with exact reverse steps it is nearly the entropy.

    Data: N(0, s²) rounded to a grid much finer than s; their entropy per dimension is −Σ P log₂ P. What is left of the
    gap is that q starts from the middle of a bin and the model from anywhere in it: about 0.05 bits here.
    """
    levels, std = 65, 0.25
    grid = np.linspace(-1, 1, levels)
    log_p = np.asarray(
        eqd.discretised_gaussian_log_likelihood_exact(
            jnp.asarray(grid), jnp.zeros(levels), jnp.full(levels, np.log(std)), levels=levels
        )
    )
    entropy = -np.sum(np.exp(log_p) * log_p) / np.log(2)
    chain = eqd.cosine_schedule(100)

    tables = jnp.asarray([optimal_log_variance(chain, std), chain.posterior_log_variance])

    def total(table, key):
        data_key, key = jax.random.split(key)
        drawn = jax.random.categorical(data_key, jnp.asarray(log_p), shape=(256,))
        denoiser = eqd.GaussianDenoiser(chain, 0.0, std, variance=TableVariance(table))
        x0 = jnp.asarray(grid)[drawn]
        return eqd.variational_bound(denoiser, x0, key=key, levels=levels, chunk=100).total

    over_keys = jax.vmap(total, in_axes=(None, 0))
    keys = jax.random.split(getkey(), 16)
    exact, small = np.asarray(quick_jit(jax.vmap(over_keys, in_axes=(0, None)))(tables, keys))
    error = exact.std() / 4
    assert entropy - 4 * error < exact.mean() < entropy + 0.1
    assert small.mean() > exact.mean() + 4 * error


def test_chunks_do_not_matter(getkey, x64):
    chain, key, x0 = eqd.cosine_schedule(8), getkey(), jnp.linspace(-1, 1, 5)
    denoiser = eqd.GaussianDenoiser(chain, 0.1, 0.5)
    # A chunk that leaves a remainder, and one larger than the chain.
    small, large = (
        quick_jit(lambda k, c=c: eqd.variational_bound(denoiser, x0, key=k, chunk=c))(key)
        for c in (3, 64)
    )
    assert len(set(np.asarray(small.terms))) == 8
    np.testing.assert_allclose(small.terms, large.terms, rtol=1e-9)


def test_the_estimate_is_unbiased(getkey, x64):
    chain = eqd.cosine_schedule(24)
    denoiser = eqd.GaussianDenoiser(chain, 0.1, 0.5, variance=eqd.FixedSmall())
    x0 = jnp.linspace(-1, 1, 5)
    n = 1000
    keys = jax.random.split(getkey(), n)
    full = quick_jit(jax.vmap(lambda k: eqd.variational_bound(denoiser, x0, key=k, chunk=24)))(keys)
    full = np.asarray(full.total)
    keys = jax.random.split(getkey(), n)

    @quick_jit
    @jax.vmap
    def estimate(key):
        return eqd.estimate_variational_bound(denoiser, x0, key=key, num_terms=6)

    estimates = np.asarray(estimate(keys))
    error = np.hypot(estimates.std(), full.std()) / np.sqrt(n)
    assert abs(estimates.mean() - full.mean()) < 4 * error
    assert error < 0.03 * full.mean(), "the comparison has teeth"


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 97, 1000, 4000])
def test_strata_cover_every_step_once(num_steps):
    counts = {1, 2, 3, 5, 8, 16, 64, 333, 999, num_steps // 2, num_steps - 1, num_steps}
    for n in sorted(c for c in counts if 1 <= c <= num_steps):
        edges = strata(num_steps, n)
        widths = np.diff(edges)
        assert edges[0] == 0 and edges[-1] == num_steps and len(widths) == n
        # Never empty, never narrower than the one before: the first steps, which matter most, come singly.
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


def test_errors(getkey):
    x0, key = jnp.zeros(3), getkey()
    continuous = eqd.GaussianDenoiser(eqd.VPSDE())
    for function in (eqd.variational_bound, eqd.estimate_variational_bound):
        with pytest.raises(ValueError, match="discrete chain, but the process is VPSDE"):
            function(continuous, x0, key=key)
    chain = eqd.GaussianDenoiser(eqd.cosine_schedule(10))
    for num_terms in (0, 11):
        with pytest.raises(ValueError, match=rf"num_terms={num_terms}\): expected 1 to 10"):
            eqd.estimate_variational_bound(chain, x0, key=key, num_terms=num_terms)
