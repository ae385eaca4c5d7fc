"""The pieces of probability: against quadrature, SciPy in float64 and the official numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from helpers import assert_golden, load_golden
from toys import quick_jit

import eqdiff as eqd
from eqdiff._gaussian import gaussian_kl, log1mexp, nats_to_bits, standard_normal_log_prob


PIECES = "public_idiff_pieces"
approximate = quick_jit(eqd.discretised_gaussian_log_likelihood, static_argnames="levels")
exact = quick_jit(eqd.discretised_gaussian_log_likelihood_exact, static_argnames="levels")
decoders = pytest.mark.parametrize("decoder", [approximate, exact], ids=["approximate", "exact"])


def grid(levels):
    return np.linspace(-1, 1, levels)


def test_nats_to_bits():
    np.testing.assert_allclose(nats_to_bits(jnp.log(jnp.array([2.0, 8.0]))), [1, 3], rtol=1e-6)


def test_log1mexp_against_its_series_and_its_limit(x64):
    x = np.array([1e-300, 1e-12, 1e-3, 0.1, np.log(2), 1.0, 12.0, 30.0])
    # log x − x/2 + x²/24 − … near 0, −e^{−x} − e^{−2x}/2 − … far away.
    near = np.log(x) - x / 2 + x**2 / 24 - x**4 / 2880 + x**6 / 181440
    far = -np.exp(-x) - np.exp(-2 * x) / 2 - np.exp(-3 * x) / 3
    actual = np.asarray(log1mexp(jnp.asarray(x)))
    np.testing.assert_allclose(actual[:4], near[:4], rtol=1e-12)
    np.testing.assert_allclose(actual[6:], far[6:], rtol=1e-12)
    np.testing.assert_allclose(actual[4], -np.log(2), rtol=1e-14)
    np.testing.assert_allclose(actual[5], np.log(1 - np.exp(-1)), rtol=1e-14)


def test_log1mexp_gradient_is_finite_at_both_ends():
    x = jnp.array([1e-30, 1e-3, 0.5, 5.0, 80.0])
    gradient = quick_jit(jax.vmap(jax.grad(log1mexp)))(x)
    np.testing.assert_allclose(gradient, 1 / np.expm1(np.asarray(x, np.float64)), rtol=1e-5)


@pytest.mark.parametrize(
    "m1,s1,m2,s2", [(0.3, 1.0, -0.4, 1.5), (0.0, 0.2, 0.1, 0.05), (1, 2, 1, 2)]
)
def test_gaussian_kl_is_the_integral(m1, s1, m2, s2, x64):
    p, q = scipy.stats.norm(m1, s1), scipy.stats.norm(m2, s2)
    truth, _ = scipy.integrate.quad(
        lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), m1 - 12 * s1, m1 + 12 * s1, epsabs=1e-12
    )
    actual = gaussian_kl(
        jnp.asarray(m1 - m2, float), 2 * jnp.log(jnp.asarray(s1)), 2 * jnp.log(jnp.asarray(s2))
    )
    np.testing.assert_allclose(actual, truth, rtol=1e-9, atol=1e-10)


def test_gaussian_kl_golden():
    g = {k: jnp.asarray(v) for k, v in load_golden(PIECES).items() if k.startswith("normal_kl")}
    m1, lv1, m2, lv2 = (g[f"normal_kl/{k}"] for k in ("m1", "lv1", "m2", "lv2"))
    assert_golden(gaussian_kl(m1 - m2, lv1, lv2), PIECES, "normal_kl/out")
    zero = jnp.zeros_like(m1)
    assert_golden(gaussian_kl(m1, lv1, zero), PIECES, "normal_kl/out0")


def test_gaussian_kl_is_never_negative_and_zero_for_equals_in_float32():
    ratios = jnp.asarray(np.linspace(-1e-3, 1e-3, 201), jnp.float32)
    kl = gaussian_kl(jnp.zeros_like(ratios), ratios, jnp.zeros_like(ratios))
    assert kl.dtype == jnp.float32
    assert np.all(np.asarray(kl) >= -1e-10)
    assert float(gaussian_kl(jnp.zeros(()), jnp.ones(()), jnp.ones(()))) == 0


def test_standard_normal_log_prob():
    z = np.random.default_rng(0).normal(size=(2, 3, 4))
    truth = scipy.stats.norm.logpdf(z).sum()
    np.testing.assert_allclose(standard_normal_log_prob(jnp.asarray(z)), truth, rtol=1e-6)


def test_approximate_decoder_golden(x64):
    g = load_golden(PIECES)
    x, mean, log_std = np.meshgrid(
        *(g[f"disc_ll/{k}"].astype(np.float64) for k in ("levels", "means", "logs")), indexing="ij"
    )
    actual = approximate(jnp.asarray(x), jnp.asarray(mean), jnp.asarray(log_std))
    truth = g["disc_ll/out64"]
    # Where the probability is a difference of two numbers near one, the official float64 itself has
    # few digits.
    np.testing.assert_allclose(np.exp(actual), np.exp(truth), rtol=0, atol=1e-15)
    likely = truth > -10
    np.testing.assert_allclose(np.asarray(actual)[likely], truth[likely], rtol=1e-10, atol=1e-11)


def test_approximate_decoder_float32_keeps_the_tails():
    """The official float32 is off by up to 10 nats there; ours holds the float64 numbers."""
    g = load_golden(PIECES)
    x, mean, log_std = np.meshgrid(
        *(g[f"disc_ll/{k}"] for k in ("levels", "means", "logs")), indexing="ij"
    )
    actual = approximate(jnp.asarray(x), jnp.asarray(mean), jnp.asarray(log_std))
    assert actual.dtype == jnp.float32
    actual, truth = np.asarray(actual, np.float64), g["disc_ll/out64"]
    # The inputs' own rounding moves z, and the cubic in the exponent multiplies it; float64 cancels
    # below e^−20.
    likely = truth > -20
    np.testing.assert_allclose(actual[likely], truth[likely], rtol=2e-5, atol=2e-5)
    assert np.max(actual[~likely]) < -19.9
    assert np.all(actual >= np.log(1e-12) * (1 + 1e-6))


@decoders
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_bins_sum_to_one(decoder, levels, x64):
    mean, log_std = np.array([[0.0, -1.0], [0.77, -4.0], [-1.2, 0.5], [0.1, 3.0]]).T[..., None]
    x, mean, log_std = map(jnp.asarray, np.broadcast_arrays(grid(levels), mean, log_std))
    log_p = decoder(x, mean, log_std, levels=levels)
    # The official clamp gives every impossible bin 1e-12.
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1, atol=1e-12 * (1 + levels))


def scipy_decoder(x, mean, log_std, levels):
    """log P of each bin with every digit: the difference of two survival functions in log-space."""
    std, half = np.exp(log_std), 1 / (levels - 1)
    lower = np.where(np.isclose(x, -1), -np.inf, (x - mean - half) / std)
    upper = np.where(np.isclose(x, 1), np.inf, (x - mean + half) / std)
    flip = lower + upper > 0
    lower, upper = np.where(flip, -upper, lower), np.where(flip, -lower, upper)
    a, b = scipy.stats.norm.logcdf(upper), scipy.stats.norm.logcdf(lower)
    with np.errstate(divide="ignore"):
        return a + np.log(-np.expm1(b - a))


@pytest.mark.parametrize("levels", [17, 256])
def test_exact_decoder_against_scipy(levels, x64):
    x, mean, log_std = np.meshgrid(
        grid(levels), [-1.5, -1.0, -0.3, 0.0, 0.5, 1.0], [-7.0, -4.0, -1.5, 0.0, 1.0], indexing="ij"
    )
    actual = exact(jnp.asarray(x), jnp.asarray(mean), jnp.asarray(log_std), levels=levels)
    truth = scipy_decoder(x, mean, log_std, levels)
    assert np.all(np.isfinite(actual))
    np.testing.assert_allclose(actual, truth, rtol=1e-9, atol=1e-11)
    # Far tails keep their digits: nothing is clamped.
    assert np.min(truth) < -1e5


def test_exact_decoder_float32():
    x, mean, log_std = np.meshgrid(grid(256), [-1.0, 0.2, 1.0], [-6.0, -3.0, 0.0], indexing="ij")
    truth = scipy_decoder(x, mean, log_std, 256)
    actual = exact(*(jnp.asarray(a, jnp.float32) for a in (x, mean, log_std)))
    assert actual.dtype == jnp.float32
    # The inputs themselves are rounded: z moves by eps·|z|/std, and the tail multiplies it.
    slack = 1e-4 + 1e-6 * (np.abs(x - mean) / np.exp(log_std)) ** 2 / np.exp(log_std)
    assert np.all(np.abs(np.asarray(actual) - truth) <= slack)


@decoders
def test_decoder_gradients_against_finite_differences(decoder, x64):
    x = jnp.asarray(grid(17))
    # Wide enough that no bin's probability is a small difference, which finite differences cannot
    # see.
    parameters = jnp.asarray([0.13, -0.5])
    decoder = getattr(eqd, decoder.__name__)

    def total(p):
        return jnp.sum(decoder(x, jnp.full_like(x, p[0]), jnp.full_like(x, p[1]), levels=17))

    steps = 1e-6 * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
    ahead_x, behind_x, ahead_y, behind_y = quick_jit(jax.vmap(total))(
        jnp.asarray(np.asarray(parameters) + steps)
    )
    difference = [(ahead_x - behind_x) / 2e-6, (ahead_y - behind_y) / 2e-6]
    np.testing.assert_allclose(quick_jit(jax.grad(total))(parameters), difference, rtol=1e-6)


def test_hopeless_decoders_have_finite_gradients():
    """A step other than the first evaluates the decoder too, and discards it: a NaN would survive
    that.
    """
    log_std = jnp.asarray([-20.0, -8.0, 0.0, 30.0, 100.0], jnp.float32)

    def one(mean, log_std):
        return eqd.discretised_gaussian_log_likelihood(jnp.zeros_like(mean), mean, log_std)

    for mean in (0.0, 0.5, 30.0):
        gradient = quick_jit(jax.vmap(jax.grad(one, argnums=(0, 1))))(
            jnp.full_like(log_std, mean), log_std
        )
        assert np.all(np.isfinite(gradient))


def official_formula(x, mean, log_std):
    """The decoder of improved-diffusion's `losses.py`, whose float32 gradient is the yardstick."""

    def cdf(z):
        return 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    inverse, centred = jnp.exp(-log_std), x - mean
    upper, lower = cdf(inverse * (centred + 1 / 255)), cdf(inverse * (centred - 1 / 255))
    clamped = [jnp.log(jnp.maximum(p, 1e-12)) for p in (upper, 1 - lower, upper - lower)]
    return jnp.where(x < -0.999, clamped[0], jnp.where(x > 0.999, clamped[1], clamped[2]))


@pytest.mark.parametrize("std", [1 / 255, 1 / 127.5, 0.02, 0.05, 0.1, 0.3])
def test_the_float32_gradient_is_no_noisier_than_the_official_formulas(std, x64):
    """Images on the 256-level grid, means off by one standard deviation; the truth is float64."""
    rng, n = np.random.default_rng(0), 50_000
    x = rng.integers(0, 256, n) / 127.5 - 1
    inputs = [x, x + std * rng.standard_normal(n), np.log(std) + 0.1 * rng.standard_normal(n)]
    single = [jnp.asarray(a, jnp.float32) for a in inputs]

    def gradients(decoder, inputs):
        run = jax.jit(jax.vmap(jax.grad(lambda *a: decoder(*a), argnums=(1, 2))))
        return [np.asarray(g, np.float64) for g in run(*inputs)]

    # The same float32 inputs in both precisions: what is measured is the arithmetic.
    ours = eqd.discretised_gaussian_log_likelihood
    truth = gradients(ours, [a.astype(jnp.float64) for a in single])
    ours, official = gradients(ours, single), gradients(official_formula, single)
    for one, other, exact in zip(ours, official, truth, strict=True):
        noise, allowed = np.abs(one - exact), np.abs(other - exact)
        assert np.sqrt(np.mean(noise**2)) < 1.25 * np.sqrt(np.mean(allowed**2))
        # With jax.nn.log_sigmoid this one was 3.
        assert noise.max() < 1.6 * allowed.max()


def test_tanh_approximation_differs_from_the_normal_by_at_most_2e4(x64):
    g = load_golden(PIECES)
    z = g["approx_cdf/z"].astype(np.float64)
    # The outermost bin is a bare Φ: P(x = −1) = Φ((−1 + h − μ)/ς), here with ς = 1 and μ = h − 1 −
    # z.
    half = 1 / 255
    log_p = approximate(jnp.full(z.shape, -1.0), jnp.asarray(half - 1 - z), jnp.zeros(z.shape))
    assert_golden(np.exp(log_p).astype(np.float32), PIECES, "approx_cdf/out")
    log_p = exact(jnp.full(z.shape, -1.0), jnp.asarray(half - 1 - z), jnp.zeros(z.shape))
    np.testing.assert_allclose(np.exp(log_p), scipy.stats.norm.cdf(z), rtol=1e-10, atol=1e-15)


def test_the_posterior_of_the_grid_is_a_softmax(x64):
    """Equation (3) by SciPy, which keeps float32's digits at a noise of 1e-3."""
    mean, std = np.array([-0.93, 0.31, 1.4])[:, None], np.array([0.002, 0.1, 3.0])[:, None]
    levels = grid(5)
    truth = scipy.special.log_softmax(-((levels - mean) ** 2) / (2 * std**2), axis=1)
    x, mean, log_std = (np.broadcast_to(a, truth.shape) for a in (levels, mean, np.log(std)))
    for dtype, rtol in ((jnp.float64, 1e-12), (jnp.float32, 2e-6)):
        given = (jnp.asarray(a, dtype) for a in (x, mean, log_std))
        actual = eqd.grid_gaussian_log_likelihood(*given, levels=5)
        assert actual.dtype == dtype
        np.testing.assert_allclose(actual, truth, rtol=rtol, atol=rtol)
