"""The variational bound: the official loop, a closed form for Gaussian data, and that memory and compilation are bounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden
from toys import idiff_denoiser, quick_jit, without_rescaling

import eqdiff as eqd
from eqdiff._bound import term_by_term
from eqdiff._bound.term_by_term import prior_term


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


def test_every_golden_loop_is_tested():
    recorded = {key.split("/")[1] for key in load_golden(LOSSES) if key.startswith("bpd/")}
    assert recorded == {f"{chain}-{case}" for chain in CHAINS for case in CASES}


@pytest.mark.parametrize("chain_name", CHAINS)
@pytest.mark.parametrize("case", CASES)
def test_golden_bpd_loop(chain_name, case, getkey, monkeypatch):
    """`variational_bound` with the official loop's recorded noise put in place of its own."""
    g, chain, base = load_golden(LOSSES), CHAINS[chain_name], f"bpd/{chain_name}-{case}"
    x0 = jnp.asarray(g[f"{base}/x0"], float)
    # The j-th draw is used at t = T − 1 − j, and the columns are in that order too.
    noises = jnp.asarray(g[f"{base}/noises"][::-1].copy(), float)
    mean_type, variance_type, clip = case.split("-")
    abcd = g["losses/base_cosine1000/toy_abcd"]
    denoiser = idiff_denoiser(chain, abcd, mean_type, variance_type, float)
    denoiser = eqd.Clip(denoiser) if clip == "clip1" else denoiser
    key = getkey()

    def one(x0, noises):
        def recorded(denoiser, t, x0, args, *, key):
            return eqd.predict(denoiser, t, x0, noises[t], args)

        monkeypatch.setattr(term_by_term, "predict", recorded)
        # Chunks that do not divide either chain.
        return eqd.variational_bound(denoiser, x0, key=key, chunk=7)

    bound = quick_jit(jax.vmap(one, in_axes=(0, 1)))(x0, noises)
    for key, actual in (
        ("vb", bound.terms[:, ::-1]),
        ("xstart_mse", bound.x0_error[:, ::-1]),
        ("mse", bound.noise_error[:, ::-1]),
        ("prior_bpd", bound.prior),
        ("total_bpd", bound.total),
    ):
        assert_golden(np.asarray(actual, np.float32), LOSSES, f"{base}/{key}")


def test_golden_prior_term():
    name, chain = "public_idiff_pieces", eqd.linear_schedule(1000)
    x0 = jnp.asarray(load_golden(name)["q/x0"], float)
    prior = jax.vmap(lambda x: prior_term(chain, x, 999))(x0)
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

    def of_step(self, step, raw):
        return self.log_variances[step.timestep]


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
    # Chunks of one, that leave a remainder, and larger than the chain.
    first, *others = (
        quick_jit(lambda k, c=c: eqd.variational_bound(denoiser, x0, key=k, chunk=c))(key)
        for c in (1, 3, 64)
    )
    assert len(set(np.asarray(first.terms))) == 8
    for other in others:
        np.testing.assert_allclose(first.terms, other.terms, rtol=1e-9)


@pytest.mark.parametrize("chunk", [3, 4, 64])
def test_the_network_is_traced_once(chunk, getkey):
    """One compiled body, also where the chunk does not divide the chain: a large network compiles for minutes."""
    calls = []

    def net(c_noise, x, args, *, key=None):
        calls.append(x.shape)
        return jnp.tanh(x)

    denoiser = eqd.Denoiser(net, eqd.cosine_schedule(10))

    def run(x0, key):
        return eqd.variational_bound(denoiser, x0, key=key, chunk=chunk).total

    keys = jax.random.split(getkey(), 2)
    jaxpr = jax.make_jaxpr(jax.vmap(run))(jnp.zeros((2, 3)), keys)
    assert calls == [(3,)]
    assert str(jaxpr).count(" = tanh ") == 1


def test_memory_is_bounded_by_the_chunk(getkey):
    """Under vmap over images, chunk × images examples are alive at once, not chain × images."""
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(64), 0.0, 0.5)
    images, dim = 3, 5000

    def memory(chunk):
        def run(x0, key):
            return eqd.variational_bound(denoiser, x0, key=key, chunk=chunk).total

        keys = jax.random.split(getkey(), images)
        compiled = quick_jit(jax.vmap(run)).lower(jnp.zeros((images, dim)), keys).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    example = dim * jnp.zeros(()).dtype.itemsize
    # A few arrays for every example in flight, and nothing of the size of all 64 steps.
    for chunk in (1, 8):
        assert memory(chunk) < 6 * chunk * images * example


def test_a_respaced_chain_sees_the_noise_of_the_whole_one(getkey, x64):
    """Noise belongs to a time of the original chain: the errors at common times are equal."""
    chain, kept = eqd.cosine_schedule(12), np.array([1, 4, 5, 9])
    key, x0 = getkey(), jnp.linspace(-1, 1, 5)
    whole, thin = (
        quick_jit(lambda k, c=c: eqd.variational_bound(eqd.GaussianDenoiser(c), x0, key=k))(key)
        for c in (chain, eqd.respace(chain, kept))
    )
    np.testing.assert_allclose(thin.x0_error, whole.x0_error[kept], rtol=1e-9)
    np.testing.assert_allclose(thin.noise_error, whole.noise_error[kept], rtol=1e-9)


def test_another_decoder(getkey, x64):
    """The exact likelihood enters the first term alone, and is within the official approximation's error of it."""
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(5), 0.0, 0.5)
    x0, key = jnp.linspace(-1, 1, 5), getkey()
    exact = eqd.discretised_gaussian_log_likelihood_exact

    @quick_jit
    def run(key):
        return (
            eqd.variational_bound(denoiser, x0, key=key),
            eqd.variational_bound(denoiser, x0, key=key, decoder=exact),
        )

    official, other = run(key)
    np.testing.assert_array_equal(official.terms[1:], other.terms[1:])
    assert 0 < abs(official.terms[0] - other.terms[0]) < 0.01


def test_errors(getkey):
    x0, key = jnp.zeros(3), getkey()
    with pytest.raises(ValueError, match="discrete chain, but the process is VPSDE"):
        eqd.variational_bound(eqd.GaussianDenoiser(eqd.VPSDE()), x0, key=key)
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(10))
    with pytest.raises(ValueError, match="chunk=0: expected at least one"):
        eqd.variational_bound(denoiser, x0, key=key, chunk=0)
