"""Dequantisations against distributions of pixels that are known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from scipy import stats
from toys import quick_jit

import eqdiff as eqd


def gaussian(process) -> eqd.GaussianDenoiser:
    return eqd.GaussianDenoiser(process, np.array([0.5, -1.0]), np.array([0.3, 1.2]))


VP = eqd.VPSDE()

# A distribution on a 3 × 3 grid with known probabilities, and its exact denoiser.

LEVELS = np.array([-1.0, 0.0, 1.0])
TABLE = np.array([[0.05, 0.2, 0.1], [0.25, 0.05, 0.05], [0.1, 0.15, 0.05]])
GRID = np.stack(np.meshgrid(LEVELS, LEVELS, indexing="ij"), axis=-1).reshape(9, 2)


def on_grid(t0: float) -> eqd.GaussianMixtureDenoiser:
    return eqd.GaussianMixtureDenoiser(
        eqd.VPSDE(t0=t0), TABLE.reshape(9), GRID, np.zeros((9, 2, 2))
    )


@pytest.mark.parametrize(("t0", "gap"), [(2e-3, 1e-3), (0.06, 0.5)])
def test_gaussian_dequantisation_bounds_the_truth(t0, gap, x64):
    """Tight where the spikes are apart (σ = 0.015), a bound where they overlap (σ = 0.2)."""
    denoiser, dequantise = on_grid(t0), eqd.GaussianDequantisation(levels=3)

    @quick_jit
    @jax.vmap
    def bound(image, key):
        y, offset = dequantise(denoiser, image, key=key)
        return denoiser.log_prob(denoiser.process.t0, y) + offset

    n = 4000
    images = jnp.repeat(jnp.asarray(GRID), n, axis=0)
    bounds = np.asarray(bound(images, jax.random.split(jax.random.key(0), 9 * n))).reshape(9, n)
    stderr = bounds.std(1) / n**0.5
    truth = np.log(TABLE.reshape(9))
    assert np.all(bounds.mean(1) < truth + 4 * stderr)
    assert np.all(bounds.mean(1) > truth - gap - 4 * stderr)
    if gap > 0.1:
        # At this noise the bound is really loose: a decoder that saw the image would not be.
        assert TABLE.reshape(9) @ (truth - bounds.mean(1)) > 0.01


@pytest.mark.parametrize("t0", [2e-3, 0.06, 0.9])
def test_truncated_normal_dequantisation_averages_to_the_bin(t0, x64):
    """E exp(log p + c) is the integral of p over the image's cell, whatever the noise; log p + c is
    hardly spread where the spikes are apart, where Gaussian and uniform noise are.
    """
    denoiser = on_grid(t0)
    process = denoiser.process
    alpha, sigma = float(process.alpha(t0)), float(process.sigma(t0))
    # Of the mixture on the grid, by its distribution function on cells of width 1.
    edges = np.array([-1.5, -0.5, 0.5, 1.5])
    cdf = stats.norm.cdf(alpha * (edges[:, None] - LEVELS) / sigma)
    inside = np.diff(cdf, axis=0)
    truth = inside @ TABLE @ inside.T
    n = 4000
    images = jnp.repeat(jnp.asarray(GRID), n, axis=0)

    def bounds(dequantise):
        def one(image, key):
            y, offset = dequantise(denoiser, image, key=key)
            return denoiser.log_prob(t0, y) + offset, y

        keys = jax.random.split(jax.random.key(0), 9 * n)
        values, y = quick_jit(jax.vmap(one))(images, keys)
        return np.asarray(values).reshape(9, n), y

    values, y = bounds(eqd.TruncatedNormalDequantisation(levels=3))
    assert np.all(np.abs(y / alpha - images) < 0.5 + 1e-9)
    mean, stderr = np.exp(values).mean(1), np.exp(values).std(1) / n**0.5
    assert np.all(np.abs(mean - truth.reshape(9)) < 4 * stderr + 1e-9)
    assert np.all(stderr < 0.05 * truth.reshape(9)), "the comparison has teeth"
    gaussian, _ = bounds(eqd.GaussianDequantisation(levels=3))
    if t0 < 0.01:
        assert values.std(1).max() < 1e-6 < 0.5 < gaussian.std(1).min()
        np.testing.assert_allclose(truth, TABLE, rtol=1e-9)
    if t0 > 0.5:
        # So much wider than a level that z is uniform: the offset is log α for each element.
        _, offset = eqd.TruncatedNormalDequantisation(levels=3)(
            denoiser, jnp.zeros(2), key=jax.random.key(0)
        )
        np.testing.assert_allclose(offset, 2 * np.log(alpha), atol=1e-4)


@pytest.mark.slow
def test_gaussian_dequantisation_through_the_flow(x64):
    """Bits/dim of images of one kind, by the solver, against −log₂ P / D."""
    denoiser = on_grid(2e-3)

    def prior(y):
        return denoiser.log_prob(denoiser.process.t1, y)

    @quick_jit
    @jax.vmap
    def bits(key):
        return eqd.bits_per_dim(
            denoiser,
            jnp.array([0.0, -1.0]),
            dequantise=eqd.GaussianDequantisation(levels=3),
            key=key,
            prior=prior,
            trace=eqd.ExactTrace(),
        ).bits

    n = 400
    values = np.asarray(bits(jax.random.split(jax.random.key(0), n)))
    truth = -np.log2(TABLE[1, 0]) / 2
    assert abs(values.mean() - truth) < 4 * values.std() / n**0.5 + 1e-3


def test_uniform_offset_is_seven_bits_for_eight_bit_images(getkey):
    image = 2 * jax.random.randint(getkey(), (3, 4, 4), 0, 256).astype(float) / 255 - 1
    y, offset = eqd.UniformDequantisation()(gaussian(VP), image, key=getkey())
    np.testing.assert_allclose(-offset / (image.size * np.log(2)), 7.0, rtol=1e-6)
    # Level k owns the bin [−1 + k w, −1 + (k + 1) w).
    level = np.rint((np.asarray(image) + 1) * 127.5)
    within = (np.asarray(y) + 1) * 128 - level
    assert np.all((within > -1e-4) & (within < 1 + 1e-4)) and within.std() > 0.2
    pixels = eqd.UniformDequantisation(levels=256, low=0.0, high=255.0)
    _, offset = pixels(gaussian(VP), jnp.zeros((3, 2)), key=getkey())
    np.testing.assert_allclose(offset, 6 * np.log(255 / 256), rtol=1e-5)


class _Bins(eqd.AbstractDenoiser):
    """The exact denoiser of uniformly dequantised levels: a density constant on each bin."""

    process: eqd.AbstractProcess
    parameterisation = eqd.PredictNoise()
    variance = eqd.FixedSmall()

    def log_prob(self, t, x):
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        edges = alpha * (-1 + 2 / 3 * np.arange(4))
        cdf = jax.scipy.special.ndtr((x - edges) / sigma)
        return jnp.log(jnp.asarray(P1) @ (cdf[:-1] - cdf[1:]) / (2 / 3) / alpha)

    def __call__(self, t, x, args=None, *, key=None):
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        noise = -sigma * jax.grad(lambda y: self.log_prob(t, y[0]))(x)
        return eqd.Estimate((x - sigma * noise) / alpha, noise)


P1 = np.array([0.5, 0.2, 0.3])


@pytest.mark.slow
def test_uniform_dequantisation_through_the_flow(x64):
    """On a density dequantised uniformly, the bound is the truth up to σ at t0 (0.01 of a bin of
    0.67).
    """
    denoiser = _Bins(eqd.VPSDE(t0=1e-3))

    def prior(y):
        return denoiser.log_prob(1.0, y[0])

    flow = eqd.ProbabilityFlow(rtol=1e-4, atol=1e-4)
    options = dict(flow=flow, prior=prior, trace=eqd.ExactTrace())
    dequantise = eqd.UniformDequantisation(levels=3)

    @quick_jit
    @jax.vmap
    def bits(image, key):
        return eqd.bits_per_dim(denoiser, image, dequantise=dequantise, key=key, **options).bits

    n = 200
    images = jnp.repeat(jnp.asarray(LEVELS)[:, None], n, axis=0)
    values = np.asarray(bits(images, jax.random.split(jax.random.key(0), 3 * n))).reshape(3, n)
    stderr = values.std(1) / n**0.5
    np.testing.assert_allclose(values.mean(1), -np.log2(P1), atol=0.03 + 4 * stderr.max())


@pytest.mark.slow
def test_bits_per_dim_is_made_of_its_parts(getkey, x64):
    denoiser, image = gaussian(VP), jnp.array([1.0, -1.0])
    found = eqd.bits_per_dim(
        denoiser,
        image,
        dequantise=eqd.UniformDequantisation(levels=3),
        key=getkey(),
        trace=eqd.Hutchinson(2),
    )
    offset = 2 * np.log(2 / 3)
    expected = -(found.likelihood.log_prob + offset) / (2 * np.log(2))
    np.testing.assert_allclose(found.bits, expected, rtol=1e-12)
    np.testing.assert_allclose(found.stderr, found.likelihood.stderr / (2 * np.log(2)), rtol=1e-12)


ON_GRIDS = [
    eqd.UniformDequantisation,
    eqd.GaussianDequantisation,
    eqd.TruncatedNormalDequantisation,
]


@pytest.mark.parametrize("cls", ON_GRIDS)
def test_dequantisations_refuse_nonsense(cls, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for levels in (1, 0, 256.0, True):
        with pytest.raises(ValueError, match="expected a whole number of at least 2.*have 256"):
            cls(levels=levels)
    for low, high in [(1.0, -1.0), (0.0, 0.0), (0.0, np.inf), (np.nan, 1.0)]:
        with pytest.raises(ValueError, match="expected finite low < high"):
            cls(low=low, high=high)
    assert cls(levels=np.int64(16)).levels == 16


@pytest.mark.parametrize("high", [1.0, 2.0])
def test_gaussian_offset_is_entropy_and_decoder(high, getkey, x64):
    """Data at 0 make the decoder's mean 0, so that each of three pixels has a bin by hand."""
    process = eqd.VPSDE(t0=0.01)
    dequantise = eqd.GaussianDequantisation(levels=3, low=-high, high=high)
    image = high * jnp.array([-1.0, 0.0, 1.0])
    y, offset = dequantise(eqd.GaussianDenoiser(process, 0.0, 1e-6), image, key=getkey())
    sigma, alpha = float(process.sigma(0.01)), float(process.alpha(0.01))
    # The bins end half way between levels; the outermost reach to infinity.
    decoder = stats.norm(0.0, sigma / alpha)
    inner, outer = np.log(1 - 2 * decoder.sf(high / 2)), decoder.logsf(high / 2)
    entropy = 1.5 * np.log(2 * np.pi * np.e * sigma**2)
    np.testing.assert_allclose(offset, entropy + inner + 2 * outer, rtol=1e-6)
    assert y.shape == (3,)


def test_variational_dequantisation_with_uniform_noise_is_uniform(getkey):
    """A logistic model whose network returns zeros is exactly uniform: log q = 0, and the same
    bound.
    """
    image, denoiser = jnp.array([-1.0, 0.0, 1.0]), gaussian(VP)
    noise = eqd.LogisticNoise(lambda image: jnp.zeros(2 * image.size, image.dtype))
    dequantise = eqd.VariationalDequantisation(noise, levels=3)
    y, offset = dequantise(denoiser, image, key=getkey())
    _, expected = eqd.UniformDequantisation(levels=3)(denoiser, image, key=getkey())
    np.testing.assert_allclose(offset, expected, rtol=1e-6)
    u, log_q = jax.vmap(lambda key: noise(image, None, key=key))(jax.random.split(getkey(), 4000))
    np.testing.assert_allclose(log_q, 0.0, atol=1e-5)
    assert stats.kstest(np.ravel(u), "uniform").pvalue > 1e-3


def test_log_density_of_the_logistic_noise(getkey, x64):
    """By the change of variables: u's distribution function is that of z, and log q its
    derivative's logarithm.
    """
    shift, log_scale = 0.7, -0.4
    noise = eqd.LogisticNoise(
        lambda image: jnp.concatenate(
            [jnp.full_like(image, shift), jnp.full_like(image, log_scale)]
        )
    )

    def cdf(u):
        z = (jnp.log(u) - jnp.log1p(-u) - shift) / jnp.exp(log_scale)
        return jax.nn.sigmoid(z)

    u, log_q = noise(jnp.zeros(5), None, key=getkey())
    np.testing.assert_allclose(log_q, jnp.sum(jnp.log(jax.vmap(jax.grad(cdf))(u))), rtol=1e-9)
    many, _ = noise(jnp.zeros(4000), None, key=getkey())
    assert stats.kstest(np.asarray(cdf(many)), "uniform").pvalue > 1e-3


def test_training_the_noise_tightens_the_bound(x64):
    """On N(0.2, 0.4²) and three levels, whose bins the density fills unevenly: the truth is log ∫ p
    over the bin.
    """
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE(t0=1e-4), 0.2, 0.4)
    edges = np.array([-1.0, -1 / 3, 1 / 3, 1.0])
    truth = np.log(np.diff(stats.norm(0.2, 0.4).cdf(edges)))
    levels = jnp.asarray(LEVELS)

    def bound(table, key):
        """Mean over levels; one row (shift, log-scale) for each."""
        noise = eqd.LogisticNoise(lambda image: table[jnp.rint(image[0] + 1).astype(int)])
        dequantise = eqd.VariationalDequantisation(noise, levels=3)

        def one(level, key):
            y, offset = dequantise(denoiser, level[None], key=key)
            return denoiser.log_prob(1e-4, y) + offset

        keys = jax.random.split(key, (3, 64))
        return jnp.mean(jax.vmap(jax.vmap(one, (None, 0)))(levels, keys))

    optimiser = optax.adam(0.05)

    @quick_jit
    def train(table, key):
        def step(carry, key):
            table, state = carry
            gradient = jax.grad(lambda t: -bound(t, key))(table)
            updates, state = optimiser.update(gradient, state)
            return (optax.apply_updates(table, updates), state), None

        carry = (table, optimiser.init(table))
        return jax.lax.scan(step, carry, jax.random.split(key, 300))[0][0]

    def evaluate(table):
        values = quick_jit(jax.vmap(lambda key: bound(table, key)))(
            jax.random.split(jax.random.key(9), 200)
        )
        return float(values.mean()), float(values.std() / 200**0.5)

    start = jnp.zeros((3, 2))
    before, _ = evaluate(start)
    with jax.numpy_dtype_promotion("standard"):
        trained = train(start, jax.random.key(1))
    after, stderr = evaluate(trained)
    assert truth.mean() - before > 0.2
    assert truth.mean() - after < 0.1 * (truth.mean() - before)
    assert after < truth.mean() + 4 * stderr


def test_noise_models_that_do_not_fit_are_refused(getkey):
    image, denoiser = jnp.zeros(2), gaussian(VP)

    def draw(noise):
        return eqd.VariationalDequantisation(noise, levels=3)(denoiser, image, key=getkey())

    with pytest.raises(ValueError, match=r"u of shape \(1,\) and log q of shape \(\)"):
        draw(lambda image, args, *, key: (jnp.zeros(1), jnp.zeros(())))
    with pytest.raises(ValueError, match=r"log q of shape \(2,\).*sum the log-density"):
        draw(lambda image, args, *, key: (jnp.zeros(2), jnp.zeros(2)))
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"u outside \[0, 1\]"):
        draw(lambda image, args, *, key: (jnp.array([0.5, 1.5]), jnp.zeros(())))
    with pytest.raises(ValueError, match=r"net returned shape \(2,\).*expected \(4,\)"):
        eqd.LogisticNoise(lambda image: image)(image, None, key=getkey())


DEQUANTISATIONS = [
    *ON_GRIDS,
    lambda **grid: eqd.VariationalDequantisation(
        eqd.LogisticNoise(lambda image: jnp.zeros(2 * image.size)), **grid
    ),
]


@pytest.mark.parametrize("make", DEQUANTISATIONS)
def test_images_off_the_levels_are_errors(make, getkey, monkeypatch):
    dequantise, denoiser, key = make(levels=3), gaussian(VP), getkey()
    draw = eqx.filter_jit(lambda image: dequantise(denoiser, image, key=key)[0])
    assert draw(jnp.array([0.0, 1.0])).shape == (2,)
    declared = r"levels=3, low=-1, high=1\) expects images on 3 equally spaced levels"
    for image, eager, jitted in [
        ([0.0, 255.0], "values from 0 to 255, 1 of 2 on none.*such as 255", "above 1"),
        ([-2.0, 0.0], "values from -2 to 0, 1 of 2 on none.*such as -2", "below -1"),
        ([0.0, 0.4], "such as 0.4", "on none of the levels"),
        ([0.0, np.nan], "such as nan", "not finite"),
    ]:
        with pytest.raises(ValueError, match=f"{eager}.*{declared}"):
            dequantise(denoiser, jnp.asarray(image), key=key)
        with pytest.raises(eqx.EquinoxRuntimeError, match=f"{jitted}.*{declared}"):
            draw(jnp.asarray(image))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="works on floating-point data.*8-bit pixels"):
        dequantise(denoiser, jnp.zeros(2, int), key=key)


@pytest.mark.parametrize(
    ("levels", "low", "high"), [(256, -1.0, 1.0), (65536, 0.0, 1.0), (17, 0.0, 16.0)]
)
def test_every_level_is_on_the_levels_in_float32(levels, low, high, getkey):
    pixels = np.arange(levels, dtype=np.float32)
    image = (low + (high - low) * pixels / (levels - 1)).astype(np.float32)
    dequantise = eqd.UniformDequantisation(levels, low, high)
    y, _ = dequantise(gaussian(VP), jnp.asarray(image), key=getkey())
    np.testing.assert_allclose(
        np.floor((np.asarray(y, np.float64) - low) * levels / (high - low) + 1e-3), pixels, atol=1.0
    )
