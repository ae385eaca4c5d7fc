"""Likelihoods against closed forms: the flow of Gaussian data is linear, with a known Jacobian."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import eqdiff as eqd


MEAN, STD = np.array([0.5, -1.0]), np.array([0.3, 1.2])
COVARIANCE = np.array([[0.5, 0.45], [0.45, 0.8]])
PROCESSES = {
    "vp": eqd.VPSDE(),
    "sub_vp": eqd.SubVPSDE(),
    "ve": eqd.VESDE(),
    "cosine": eqd.cosine_schedule(1000).continuous(),
}
POINTS = np.array([[0.4, -1.5], [1.0, 1.0]])
TIGHT = dict(trace=eqd.ExactTrace(), rtol=1e-7, atol=1e-7)


def gaussian(process, mean=MEAN) -> eqd.GaussianDenoiser:
    return eqd.GaussianDenoiser(process, mean, STD)


def mixture(process) -> eqd.GaussianMixtureDenoiser:
    return eqd.GaussianMixtureDenoiser(
        process,
        np.array([0.4, 0.6]),
        np.array([[-1.0, 0.3], [0.8, -0.6]]),
        np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.5]]]),
    )


def correlated(process) -> eqd.GaussianMixtureDenoiser:
    """Its flow's Jacobian is full, so that Hutchinson's estimate has a variance."""
    return eqd.GaussianMixtureDenoiser(process, np.ones(1), MEAN[None], COVARIANCE[None])


def closed_form(process, x, mean=MEAN):
    """x(t1) of the linear flow, and log N(x(t1); 0, s²I) + log |∂x(t1)/∂x|."""

    def moments(t):
        alpha, sigma = process.alpha(t), process.sigma(t)
        return alpha * mean, jnp.sqrt(alpha**2 * STD**2 + sigma**2)

    (m0, c0), (m1, c1) = moments(process.t0), moments(process.t1)
    latent = m1 + c1 / c0 * (x - m0)
    scale = process.prior_scale()
    log_prior = jnp.sum(jax.scipy.stats.norm.logpdf(latent / scale) - jnp.log(scale))
    return latent, log_prior + jnp.sum(jnp.log(c1 / c0))


@pytest.mark.parametrize("name", PROCESSES)
def test_the_models_density_is_its_prior_through_the_flow(name, x64):
    process = PROCESSES[name]
    denoiser = gaussian(process)
    result = jax.vmap(lambda x: eqd.log_likelihood(denoiser, x, **TIGHT))(jnp.asarray(POINTS))
    for i, x in enumerate(POINTS):
        latent, log_prob = closed_form(process, x)
        np.testing.assert_allclose(result.log_prob[i], log_prob, atol=2e-5)
        np.testing.assert_allclose(result.latent[i], latent, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(result.stderr, 0.0)
    assert np.all(result.stats["num_accepted_steps"] > 0)


@pytest.mark.parametrize("name", ["sub_vp", "cosine"])
def test_with_the_exact_prior_it_is_the_datas_density(name, x64):
    """Within 1e-5 nats/dim of log p_t0, on a mixture, whose flow is not linear."""
    process = PROCESSES[name]
    denoiser = mixture(process)

    def prior(y):
        return denoiser.log_prob(process.t1, y)

    def log_prob(x):
        return eqd.log_likelihood(denoiser, x, prior=prior, **TIGHT).log_prob

    found = jax.vmap(log_prob)(jnp.asarray(POINTS))
    exact = [denoiser.log_prob(process.t0, jnp.asarray(x)) for x in POINTS]
    np.testing.assert_allclose(found, exact, atol=2 * 1e-5)


def test_error_falls_with_the_tolerance(x64):
    process, x = PROCESSES["vp"], jnp.asarray(POINTS[0])
    _, exact = closed_form(process, x)
    errors = [
        abs(
            eqd.log_likelihood(
                gaussian(process), x, trace=eqd.ExactTrace(), rtol=tol, atol=tol
            ).log_prob
            - exact
        )
        for tol in (1e-3, 1e-6)
    ]
    assert errors[1] < 0.01 * errors[0]
    assert errors[1] < 1e-5


def test_hutchinson_is_unbiased_and_its_stderr_honest(x64):
    denoiser, x = correlated(PROCESSES["vp"]), jnp.asarray(POINTS[0])
    options = dict(rtol=1e-5, atol=1e-5)

    def estimate(key):
        result = eqd.log_likelihood(denoiser, x, trace=eqd.Hutchinson(8), key=key, **options)
        return result.log_prob, result.stderr

    found, stderr = jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(0), 200))
    exact = eqd.log_likelihood(denoiser, x, trace=eqd.ExactTrace(), **options).log_prob
    spread = found.std(ddof=1)
    assert spread > 0.01
    assert abs(found.mean() - exact) < 4 * spread / 200**0.5
    # 200 repetitions know the spread to 5 %.
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(stderr**2)), spread, rtol=0.15)


def test_one_probe_has_no_stderr(getkey):
    x = jnp.asarray(POINTS[0], jnp.float32)
    denoiser = gaussian(PROCESSES["vp"])
    result = eqd.log_likelihood(denoiser, x, key=getkey(), rtol=1e-3, atol=1e-3)
    assert np.isnan(result.stderr) and np.isfinite(result.log_prob)
    # float32 in, float32 out, whatever the default precision is.
    assert result.log_prob.dtype == result.latent.dtype == jnp.float32
    with pytest.raises(ValueError, match=r"needs a key"):
        eqd.log_likelihood(denoiser, x)
    chain = gaussian(eqd.cosine_schedule(50))
    for function in (eqd.log_likelihood, eqd.encode, eqd.decode):
        with pytest.raises(ValueError, match=r"(?s)Build it on schedule\.continuous\(\)"):
            function(chain, x, **({"key": getkey()} if function is eqd.log_likelihood else {}))


@pytest.mark.parametrize("name", ["vp"])
def test_encoding_is_the_flow_and_decoding_its_inverse(name, x64):
    process, x = PROCESSES[name], jnp.asarray(POINTS[1])
    denoiser, options = gaussian(process), dict(rtol=1e-9, atol=1e-9)
    latent = eqd.encode(denoiser, x, **options)
    np.testing.assert_allclose(latent, closed_form(process, x)[0], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(eqd.decode(denoiser, latent, **options), x, atol=1e-6)


def test_gradient_is_the_closed_forms(x64):
    """∂ log p/∂(mean) through the solve, against that of the closed form."""
    process, x = PROCESSES["vp"], jnp.asarray(POINTS[0])

    def log_prob(mean):
        denoiser = eqx.tree_at(lambda d: d.mean, gaussian(process), mean)
        return eqd.log_likelihood(denoiser, x, **TIGHT).log_prob

    mean = jnp.asarray(MEAN)
    expected = jax.grad(lambda m: closed_form(process, x, m)[1])(mean)
    np.testing.assert_allclose(jax.jit(jax.grad(log_prob))(mean), expected, rtol=1e-4)


# Dequantisation. A distribution on a 3 × 3 grid with known probabilities, and its exact denoiser.

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

    @jax.jit
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


def test_gaussian_dequantisation_through_the_flow(x64):
    """Bits/dim of images of one kind, by the solver, against −log₂ P / D."""
    denoiser = on_grid(2e-3)

    def prior(y):
        return denoiser.log_prob(denoiser.process.t1, y)

    @jax.jit
    @jax.vmap
    def bits(key):
        return eqd.bits_per_dim(
            denoiser,
            jnp.array([0.0, -1.0]),
            dequantise=eqd.GaussianDequantisation(levels=3),
            key=key,
            prior=prior,
            trace=eqd.ExactTrace(),
        ).value

    n = 400
    values = np.asarray(bits(jax.random.split(jax.random.key(0), n)))
    truth = -np.log2(TABLE[1, 0]) / 2
    assert abs(values.mean() - truth) < 4 * values.std() / n**0.5 + 1e-3


def test_uniform_offset_is_seven_bits_for_eight_bit_images(getkey):
    image = 2 * jax.random.randint(getkey(), (3, 4, 4), 0, 256).astype(float) / 255 - 1
    y, offset = eqd.UniformDequantisation()(gaussian(PROCESSES["vp"]), image, key=getkey())
    np.testing.assert_allclose(-offset / (image.size * np.log(2)), 7.0, rtol=1e-6)
    # Level k owns the bin [−1 + k w, −1 + (k + 1) w).
    level = np.rint((np.asarray(image) + 1) * 127.5)
    within = (np.asarray(y) + 1) * 128 - level
    assert np.all((within > -1e-4) & (within < 1 + 1e-4)) and within.std() > 0.2
    pixels = eqd.UniformDequantisation(levels=256, low=0.0, high=255.0)
    _, offset = pixels(gaussian(PROCESSES["vp"]), jnp.zeros((3, 2)), key=getkey())
    np.testing.assert_allclose(offset, 6 * np.log(255 / 256), rtol=1e-5)


class _Bins(eqd.AbstractDenoiser):
    """The exact denoiser of uniformly dequantised levels: a density constant on each bin."""

    process: eqd.AbstractSDE
    parameterisation = eqd.Noise()
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


def test_uniform_dequantisation_through_the_flow(x64):
    """On a density dequantised uniformly, the bound is the truth up to σ at t0 (0.01 of a bin of 0.67)."""
    denoiser = _Bins(eqd.VPSDE(t0=1e-3))

    def prior(y):
        return denoiser.log_prob(1.0, y[0])

    options = dict(prior=prior, trace=eqd.ExactTrace(), rtol=1e-4, atol=1e-4)
    dequantise = eqd.UniformDequantisation(levels=3)

    @jax.jit
    @jax.vmap
    def bits(image, key):
        return eqd.bits_per_dim(denoiser, image, dequantise=dequantise, key=key, **options).value

    n = 200
    images = jnp.repeat(jnp.asarray(LEVELS)[:, None], n, axis=0)
    values = np.asarray(bits(images, jax.random.split(jax.random.key(0), 3 * n))).reshape(3, n)
    stderr = values.std(1) / n**0.5
    np.testing.assert_allclose(values.mean(1), -np.log2(P1), atol=0.03 + 4 * stderr.max())


def test_bits_per_dim_is_made_of_its_parts(getkey, x64):
    denoiser, image = correlated(PROCESSES["vp"]), jnp.array([1.0, -1.0])
    found = eqd.bits_per_dim(
        denoiser,
        image,
        dequantise=eqd.UniformDequantisation(levels=3),
        key=getkey(),
        trace=eqd.Hutchinson(2),
    )
    offset = 2 * np.log(2 / 3)
    expected = -(found.likelihood.log_prob + offset) / (2 * np.log(2))
    np.testing.assert_allclose(found.value, expected, rtol=1e-12)
    np.testing.assert_allclose(found.stderr, found.likelihood.stderr / (2 * np.log(2)), rtol=1e-12)


@pytest.mark.parametrize("cls", [eqd.UniformDequantisation, eqd.GaussianDequantisation])
def test_dequantisations_refuse_nonsense(cls):
    with pytest.raises(ValueError, match="at least 2 levels and low < high"):
        cls(levels=1)
    with pytest.raises(ValueError, match="at least 2 levels and low < high"):
        cls(low=1.0, high=-1.0)


def test_gaussian_dequantisation_needs_continuous_time(getkey):
    with pytest.raises(ValueError, match=r"schedule\.continuous\(\)"):
        eqd.GaussianDequantisation()(gaussian(eqd.cosine_schedule(50)), jnp.zeros(2), key=getkey())


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
