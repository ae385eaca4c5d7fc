"""The variational bound: the official loop, closed forms, and what it costs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden
from toys import idiff_denoiser, quick_jit, without_rescaling

import eqdiff as eqd
from eqdiff._bound import terms
from eqdiff._bound.terms import prior_term


LOSSES = "public_idiff_losses"
SCHEDULES = {
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
    assert recorded == {f"{schedule}-{case}" for schedule in SCHEDULES for case in CASES}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [np.float32, float])
def test_golden_bpd_loop(name, case, dtype, getkey, monkeypatch):
    """`variational_bound` with the official loop's recorded noise put in place of its own."""
    g, schedule, base = load_golden(LOSSES), SCHEDULES[name], f"bpd/{name}-{case}"
    x0 = jnp.asarray(g[f"{base}/x0"], dtype)
    # The j-th draw is used at t = T − 1 − j, and the columns are in that order too.
    noises = jnp.asarray(g[f"{base}/noises"][::-1].copy(), dtype)
    mean_type, variance_type, clip = case.split("-")
    abcd = g["losses/base_cosine1000/toy_abcd"]
    denoiser = idiff_denoiser(schedule, abcd, mean_type, variance_type, dtype)
    denoiser = eqd.Clip(denoiser) if clip == "clip1" else denoiser
    key = getkey()

    def one(x0, noises):
        def recorded(denoiser, t, x0, args, *, key):
            return eqd.predict(denoiser, t, x0, args, noise=noises[t])

        monkeypatch.setattr(terms, "predict", recorded)
        # Chunks that do not divide either schedule.
        return eqd.variational_bound(denoiser, x0, key=key, chunk=7)

    bound = quick_jit(jax.vmap(one, in_axes=(0, 1)))(x0, noises)
    for key, actual in (
        ("vb", bound.terms[:, ::-1]),
        ("xstart_mse", bound.x0_error[:, ::-1]),
        ("mse", bound.noise_error[:, ::-1]),
        ("prior_bpd", bound.prior),
        ("total_bpd", bound.bits),
    ):
        assert_golden(np.asarray(actual, np.float32), LOSSES, f"{base}/{key}")


def test_golden_prior_term():
    name, schedule = "public_idiff_pieces", eqd.linear_schedule(1000)
    x0 = jnp.asarray(load_golden(name)["q/x0"], float)
    prior = jax.vmap(lambda x: prior_term(schedule, x, 999))(x0)
    assert_golden(np.asarray(prior, np.float32), name, "q/prior_bpd")


def on_grid(x, levels=65536):
    """Data on grey levels much finer than anything here depends on."""
    return jnp.clip(jnp.rint((x + 1) * (levels - 1) / 2) * 2 / (levels - 1) - 1, -1, 1)


def expected_terms(schedule, std):
    """L_t in bits/dim, t ≥ 1, for N(0, s²) data, the exact denoiser and Σ = β̃: only the means
    differ.

    E(x0 − x̂0)² = s²σ²/(α²s² + σ²), so KL = c₁² s²σ²/(α²s² + σ²)/(2β̃).
    """
    alpha_bar, before = schedule.alpha_bar, np.append(1.0, schedule.alpha_bar[:-1])
    sigma2 = 1 - alpha_bar
    error = std**2 * sigma2 / (alpha_bar * std**2 + sigma2)
    c1 = np.sqrt(before) * schedule.betas / sigma2
    with np.errstate(divide="ignore"):
        return c1**2 * error / (2 * schedule.posterior_variance) / np.log(2)


def test_closed_form_for_gaussian_data(getkey, x64):
    schedule, std, n, dim = eqd.cosine_schedule(30), 0.2, 500, 8
    denoiser = eqd.GaussianDenoiser(schedule, 0.0, std, variance=eqd.FixedSmall())

    @quick_jit
    @jax.vmap
    def run(key):
        data_key, key = jax.random.split(key)
        x0 = on_grid(std * jax.random.normal(data_key, (dim,)))
        return eqd.variational_bound(denoiser, x0, key=key, levels=65536, chunk=30)

    bound = run(jax.random.split(getkey(), n))
    terms = np.asarray(bound.terms)
    np.testing.assert_allclose(bound.bits, bound.prior + terms.sum(axis=1), rtol=1e-12)
    truth = expected_terms(schedule, std)
    error = terms.std(axis=0) / np.sqrt(n)
    assert np.all(np.abs(terms.mean(axis=0) - truth)[1:] < 4.5 * error[1:])
    assert np.all(error[1:-1] < 0.05 * truth[1:-1]), "the comparison has teeth"
    sigma2 = 1 - schedule.alpha_bar
    x0_truth = std**2 * sigma2 / (schedule.alpha_bar * std**2 + sigma2)
    x0_error = np.asarray(bound.x0_error)
    assert np.all(np.abs(x0_error.mean(0) - x0_truth) < 4.5 * x0_error.std(0) / np.sqrt(n))
    # ε̂ − ε = −(α/σ)(x̂0 − x0).
    np.testing.assert_allclose(
        bound.noise_error, x0_error * schedule.alpha_bar / sigma2, rtol=1e-6, atol=1e-12
    )
    # The prior term: KL(N(αx0, σ²) ‖ N(0, 1)) averaged over x0.
    a2, s2 = schedule.alpha_bar[-1], sigma2[-1]
    prior_truth = 0.5 * (a2 * std**2 + s2 - 1 - np.log(s2)) / np.log(2)
    prior = np.asarray(bound.prior)
    assert abs(prior.mean() - prior_truth) < 4.5 * prior.std() / np.sqrt(n) + 1e-12


class TableVariance(eqd.AbstractVariance):
    """A log-variance per step, of the user's own making."""

    log_variances: jax.Array
    learned = False

    def of_step(self, step, raw):
        return self.log_variances[step.timestep]


def optimal_log_variance(schedule, std):
    """β̃ + c₁² Var(x0|x_t) for N(0, s²) data: the reverse steps are then exact."""
    alpha_bar, sigma2 = schedule.alpha_bar, 1 - schedule.alpha_bar
    uncertainty = std**2 * sigma2 / (alpha_bar * std**2 + sigma2)
    c1 = np.sqrt(schedule.alpha_bar_previous) * schedule.betas / sigma2
    return np.log(schedule.posterior_variance + c1**2 * uncertainty)


def test_the_bound_is_a_bound_and_tight_for_a_gaussian(getkey, x64):
    """bpd ≥ entropy of the discretised data, whatever the variance; with exact reverse steps it is
    nearly the entropy.

    Data: N(0, s²) rounded to a grid much finer than s; their entropy per dimension is −Σ P log₂ P.
    What is left of the gap is that q starts from the middle of a bin and the model from anywhere in
    it: about 0.05 bits here.
    """
    levels, std = 65, 0.25
    grid = np.linspace(-1, 1, levels)
    log_p = np.asarray(
        eqd.discretised_gaussian_log_likelihood_exact(
            jnp.asarray(grid), jnp.zeros(levels), jnp.full(levels, np.log(std)), levels=levels
        )
    )
    entropy = -np.sum(np.exp(log_p) * log_p) / np.log(2)
    schedule = eqd.cosine_schedule(100)

    tables = jnp.asarray([optimal_log_variance(schedule, std), schedule.posterior_log_variance])

    def total(table, key):
        data_key, key = jax.random.split(key)
        drawn = jax.random.categorical(data_key, jnp.asarray(log_p), shape=(256,))
        denoiser = eqd.GaussianDenoiser(schedule, 0.0, std, variance=TableVariance(table))
        x0 = jnp.asarray(grid)[drawn]
        return eqd.variational_bound(denoiser, x0, key=key, levels=levels, chunk=100).bits

    over_keys = jax.vmap(total, in_axes=(None, 0))
    keys = jax.random.split(getkey(), 16)
    exact, small = np.asarray(quick_jit(jax.vmap(over_keys, in_axes=(0, None)))(tables, keys))
    error = exact.std() / 4
    assert entropy - 4 * error < exact.mean() < entropy + 0.1
    assert small.mean() > exact.mean() + 4 * error


def test_chunks_do_not_matter(getkey, x64):
    schedule, key, x0 = eqd.cosine_schedule(8), getkey(), jnp.linspace(-1, 1, 5)
    denoiser = eqd.GaussianDenoiser(schedule, 0.1, 0.5)
    # Chunks of one, that leave a remainder, and longer than the schedule.
    first, *others = (
        quick_jit(lambda k, c=c: eqd.variational_bound(denoiser, x0, key=k, levels=5, chunk=c))(key)
        for c in (1, 3, 64)
    )
    assert len(set(np.asarray(first.terms))) == 8
    for other in others:
        np.testing.assert_allclose(first.terms, other.terms, rtol=1e-9)


@pytest.mark.parametrize("chunk", [3, 4, 64])
def test_the_network_is_traced_once(chunk, getkey):
    """One compiled body, also where the chunk does not divide the schedule: a large network
    compiles for minutes.
    """
    calls = []

    def net(c_noise, x, args, *, key=None):
        calls.append(x.shape)
        return jnp.tanh(x)

    denoiser = eqd.Denoiser(net, eqd.cosine_schedule(10))

    def run(x0, key):
        return eqd.variational_bound(denoiser, x0, key=key, levels=5, chunk=chunk).bits

    keys = jax.random.split(getkey(), 2)
    jaxpr = jax.make_jaxpr(jax.vmap(run))(jnp.zeros((2, 3)), keys)
    assert calls == [(3,)]
    assert str(jaxpr).count(" = tanh ") == 1


def test_memory_is_bounded_by_the_chunk(getkey):
    """Under vmap over images, chunk × images examples are alive at once, not steps × images."""
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(64), 0.0, 0.5)
    images, dim = 3, 5000

    def memory(chunk):
        def run(x0, key):
            return eqd.variational_bound(denoiser, x0, key=key, levels=5, chunk=chunk).bits

        keys = jax.random.split(getkey(), images)
        compiled = quick_jit(jax.vmap(run)).lower(jnp.zeros((images, dim)), keys).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    example = dim * jnp.zeros(()).dtype.itemsize
    # A few arrays for every example in flight, and for every image, whose levels are checked;
    # nothing of the size of all 64 steps.
    for chunk in (1, 8):
        assert memory(chunk) < (6 * chunk + 2) * images * example


def test_a_respaced_schedule_sees_the_noise_of_the_whole_one(getkey, x64):
    """Noise belongs to a time of the original schedule: the errors at common times are equal."""
    schedule, kept = eqd.cosine_schedule(12), np.array([1, 4, 5, 9])
    key, x0 = getkey(), jnp.linspace(-1, 1, 5)
    whole, thin = (
        quick_jit(
            lambda k, c=c: eqd.variational_bound(eqd.GaussianDenoiser(c), x0, key=k, levels=5)
        )(key)
        for c in (schedule, eqd.respace(schedule, kept))
    )
    np.testing.assert_allclose(thin.x0_error, whole.x0_error[kept], rtol=1e-9)
    np.testing.assert_allclose(thin.noise_error, whole.noise_error[kept], rtol=1e-9)


def test_another_decoder(getkey, x64):
    """The exact likelihood enters the first term alone, and is within the official approximation's
    error of it.
    """
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(5), 0.0, 0.5)
    x0, key = jnp.linspace(-1, 1, 5), getkey()
    exact = eqd.discretised_gaussian_log_likelihood_exact

    @quick_jit
    def run(key):
        return (
            eqd.variational_bound(denoiser, x0, key=key, levels=5),
            eqd.variational_bound(denoiser, x0, key=key, levels=5, decoder=exact),
        )

    official, other = run(key)
    np.testing.assert_array_equal(official.terms[1:], other.terms[1:])
    assert 0 < abs(official.terms[0] - other.terms[0]) < 0.01


ON_VP = eqd.GaussianDenoiser(eqd.VPSDE())
ON_STEPS = eqd.GaussianDenoiser(eqd.cosine_schedule(10))


@pytest.mark.parametrize(
    ("denoiser", "options", "says"),
    [
        (ON_VP, {}, "discrete schedule, but the process is VPSDE"),
        (ON_VP, {"num_terms": 4}, "discrete schedule, but the process is VPSDE"),
        (ON_STEPS, {"chunk": 0}, r"chunk=0\): expected a positive whole number"),
        (ON_STEPS, {"levels": 1}, r"levels=1\): expected a whole number of at least 2"),
        (ON_STEPS, {"num_terms": 0}, "num_terms=0.*at least 2"),
        (ON_STEPS, {"num_terms": 1}, "num_terms=1.*at least 2"),
        (ON_STEPS, {"num_terms": 21}, r"num_terms=21\): expected 2 .* to 20"),
        (ON_STEPS, {"levels": 4}, r"variational_bound\(levels=4\) expects images on 4 equally"),
    ],
)
def test_what_is_refused(denoiser, options, says, getkey):
    options = {"levels": 3} | options
    with pytest.raises(ValueError, match=says):
        eqd.variational_bound(denoiser, jnp.zeros(3), key=getkey(), **options)


@pytest.mark.parametrize(
    ("value", "way"),
    [(np.nan, "not finite"), (255.0, "above 1"), (-1.2, "below -1"), (0.4, "none of the levels")],
)
def test_images_off_their_levels_are_errors_under_jit_too(value, way, getkey):
    """Once, before the network is called, also under vmap."""
    calls = []

    def net(c_noise, x, args, *, key=None):
        jax.debug.callback(lambda _: calls.append(1), x[0])
        return x

    denoiser = eqd.Denoiser(net, eqd.cosine_schedule(10))

    @eqx.filter_jit
    @jax.vmap
    def run(x0, key):
        return eqd.variational_bound(denoiser, x0, key=key, levels=3).bits

    images = jnp.zeros((2, 3)).at[1, 2].set(value)
    with pytest.raises(eqx.EquinoxRuntimeError, match=f"{way}.*variational_bound"):
        run(images, jax.random.split(getkey(), 2))
    assert calls == []
