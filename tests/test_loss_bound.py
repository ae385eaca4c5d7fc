"""The continuous bound as a loss: closed forms, invariance to the schedule, its least variance."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats
from toys import quick_jit

import eqdiff as eqd
from eqdiff import train


X0 = jnp.asarray([-1.0, 0.5])
STD = 0.5
PROCESSES = {
    "vp": eqd.VPSDE(),
    "sub-vp": eqd.SubVPSDE(t0=1e-3),
    "ve": eqd.VESDE(0.01, 50.0),
    "edm": eqd.EDMSDE(t0=0.02, t1=20.0),
    "flow": eqd.RectifiedFlow(),
    "learned": eqd.LearnedVPSDE(),
}
# Noise whose mean is 0 and whose covariance is I: a mean over it is exact for quadratic errors.
NOISE = np.sqrt(2) * np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
NODES, WEIGHTS = np.polynomial.legendre.leggauss(400)
UNITS = np.random.default_rng(1).normal([[-1.0], [2.0], [0.5]], [[1.0], [0.5], [0.3]], (3, 6))


def averaged(process, x0=X0, levels=5):
    """Prior and diffusion of (2), and the reconstruction where it is exact, over all times and
    noises, with the Gaussian's own denoiser.
    """
    denoiser = eqd.GaussianDenoiser(process, 0.0, STD)
    # Gauss–Legendre in the logarithm of t, or in t.
    low, high = process.t0, process.t1
    if low > 0:
        low, high = np.log(low), np.log(high)
    u = 0.5 * (low + high) + 0.5 * (high - low) * jnp.asarray(NODES)
    times = jnp.exp(u) if process.t0 > 0 else u
    weights = jnp.asarray(0.5 * WEIGHTS * (high - low)) * (times if process.t0 > 0 else 1)

    def terms(t, noise):
        return eqd.continuous_terms(eqd.predict(denoiser, t, x0, noise=noise), levels=levels)

    each = jax.vmap(jax.vmap(terms, (None, 0)), (0, None))(times, jnp.asarray(NOISE))
    diffusion = jnp.sum(weights * jnp.mean(each.diffusion, 1)) / (process.t1 - process.t0)
    known = 0 if levels else each.reconstruction[0, 0]
    return each.prior[0, 0] + known + diffusion


def gradient(function, model):
    """Value and gradient in the arrays of a model."""
    arrays, rest = eqx.partition(model, eqx.is_array)
    return quick_jit(jax.value_and_grad(lambda a: function(eqx.combine(a, rest))))(arrays)


def closed_form(high, low, x0=X0):
    """The same by the error of a Gaussian's denoiser as a function of λ, in NumPy (`r = e^λ s²`)
    and for α² + σ² = 1.
    """
    log_snr = np.linspace(low, high, 400_001)
    r = np.exp(log_snr) * STD**2
    square = np.mean(np.asarray(x0) ** 2)
    diffusion = 0.5 * np.trapezoid((r**2 + r * square / STD**2) / (1 + r) ** 2, log_snr)
    alpha2 = scipy.special.expit(low)
    prior = 0.5 * (alpha2 * square + (1 - alpha2) - 1 - np.log(1 - alpha2))
    return diffusion / np.log(2), prior / np.log(2)


@pytest.mark.parametrize("name", PROCESSES)
def test_its_mean_is_the_bound(name, x64):
    process = PROCESSES[name]
    high, low = (float(process.log_snr(t)) for t in (process.t0, process.t1))
    prior = 0.5 * np.mean(
        (float(process.alpha(process.t1)) ** 2 * X0**2 + float(process.sigma(process.t1)) ** 2)
        / float(process.prior_scale()) ** 2
        - 1
        - 2 * np.log(float(process.sigma(process.t1)) / float(process.prior_scale()))
    )
    diffusion, _ = closed_form(high, low)
    actual = quick_jit(lambda: averaged(process))()
    np.testing.assert_allclose(actual, diffusion + prior / np.log(2), rtol=1e-6)


def test_the_schedule_between_its_ends_does_not_matter_and_the_ends_do(x64):
    """Value and gradient: zero in the units, that of the closed form in λ₀ and λ₁."""

    def at(high, low, units):
        return gradient(
            averaged, eqd.LearnedVPSDE(jnp.asarray(high), jnp.asarray(low), units=units)
        )

    bent, found = at(9.0, -4.0, jnp.asarray(UNITS))
    straight, _ = at(9.0, -4.0, 16)
    np.testing.assert_allclose(bent, straight, rtol=1e-7)
    np.testing.assert_allclose(bent, sum(closed_form(9.0, -4.0)), rtol=1e-7)
    np.testing.assert_allclose(found.units, 0, atol=1e-6)
    h = 1e-4
    for i, name in enumerate(["log_snr_max", "log_snr_min"]):
        ends = [np.array([9.0, -4.0]) + s * h * np.eye(2)[i] for s in (1, -1)]
        finite = (sum(closed_form(*ends[0])) - sum(closed_form(*ends[1]))) / (2 * h)
        np.testing.assert_allclose(getattr(found, name), finite, rtol=1e-4)


def test_the_reconstruction_and_its_gradient(getkey, x64):
    """−log P(x₀|x_{t₀}) by SciPy, at noise wide enough that it is not zero."""
    x0 = jnp.asarray([-1.0, -0.5, 0.0, 0.5, 1.0])
    noise = jax.random.normal(getkey(), x0.shape)

    def actual(end):
        denoiser = eqd.GaussianDenoiser(eqd.LearnedVPSDE(end), 0.0, STD)
        p = eqd.predict(denoiser, 0.4, x0, noise=noise)
        return eqd.continuous_terms(p, levels=5).reconstruction

    def truth(end):
        std = np.exp(-0.5 * end)
        noisy, grid = np.asarray(x0 + std * noise), np.linspace(-1, 1, 5)
        logits = -((grid - noisy[:, None]) ** 2) / (2 * std**2)
        return -np.mean(np.diag(scipy.special.log_softmax(logits, axis=1))) / np.log(2)

    end, h = 2.0, 1e-5
    value, slope = jax.value_and_grad(actual)(jnp.asarray(end))
    np.testing.assert_allclose(value, truth(end), rtol=1e-9)
    np.testing.assert_allclose(slope, (truth(end + h) - truth(end - h)) / (2 * h), rtol=1e-6)
    assert value > 0.1


def test_of_continuous_data_it_bounds_the_density(x64):
    """Of the exact denoiser it is −log p(x) itself, at every x, where the ends are far apart."""

    def gap(high, low, x0):
        process = eqd.LearnedVPSDE(high, low)
        log_prob = np.mean(scipy.stats.norm(0.0, STD).logpdf(x0)) / np.log(2)
        terms = quick_jit(lambda: averaged(process, x0, levels=None))()
        return float(terms + log_prob)

    for x0 in (X0, jnp.asarray([0.3, 2.1])):
        assert abs(gap(18.0, -16.0, x0)) < 1e-5
    # The square of these is that of the data on average, and so is the bound.
    assert gap(4.0, -1.0, jnp.asarray([STD, -STD])) > 1e-3


def loss_fn(denoiser, t, x0, args, *, key):
    terms = eqd.continuous_terms(eqd.predict(denoiser, t, x0, args, key=key), levels=3)
    return terms.bits, {"prior": terms.prior, "diffusion": terms.diffusion}


class Scaled(eqx.Module):
    weights: jax.Array

    def __call__(self, c_noise, x, args, *, key):
        return jnp.tanh(self.weights.astype(x.dtype) * x + c_noise / 1000)


def model(units=UNITS, ends=(6.0, -3.0)):
    process = eqd.LearnedVPSDE(*map(jnp.asarray, ends), units=jnp.asarray(units))
    return eqd.Denoiser(Scaled(jnp.asarray([0.3, -0.2])), process)


def test_the_shape_follows_the_square_and_nothing_else_changes(getkey, x64):
    """For a weighted mean over examples, against 2L∇L written out."""
    n, denoiser = 5, model()
    t, weights = jnp.linspace(0.1, 0.9, n), jnp.linspace(0.5, 2.0, n)
    x0, keys = jnp.sign(jax.random.normal(getkey(), (n, 2))), jax.random.split(getkey(), n)

    def mean(denoiser):
        def one(t, x0, key):
            return eqd.variance_minimising(loss_fn)(denoiser, t, x0, None, key=key)[0]

        return jnp.mean(weights * jax.vmap(one)(t, x0, keys))

    value, actual = gradient(mean, denoiser)
    arrays, rest = eqx.partition(denoiser, eqx.is_array)

    def plain(arrays, t, x0, key):
        return loss_fn(eqx.combine(arrays, rest), t, x0, None, key=key)[0]

    each = quick_jit(jax.vmap(jax.value_and_grad(plain), (None, 0, 0, 0)))
    losses, slopes = each(arrays, t, x0, keys)
    np.testing.assert_allclose(value, np.mean(weights * losses), rtol=1e-12)

    def total(factors, slopes):
        return np.tensordot(factors, slopes, 1) / n

    units = total(weights * 2 * losses, slopes.process.units)
    np.testing.assert_allclose(actual.process.units, units, rtol=1e-10)
    assert not np.allclose(units, total(weights, slopes.process.units), rtol=0.1)
    others = [eqx.tree_at(lambda d: d.process.units, g, None) for g in (actual, slopes)]
    for a, s in zip(*map(jax.tree.leaves, others), strict=True):
        np.testing.assert_allclose(a, total(weights, s), rtol=1e-10)


def test_network_and_process_train_together_and_the_variance_falls():
    """From a schedule that wastes its times, at a fixed net: the loss keeps its mean, and its
    spread falls; both are what `train` gives for a denoiser in the network's place.
    """
    process = eqd.LearnedVPSDE(8.0, -6.0)
    denoiser = eqd.GaussianDenoiser(process, 0.0, STD)
    optimiser = optax.adam(0.03)
    state = train.init(
        denoiser,
        optimiser,
        timesteps=eqd.LowDiscrepancy(process),
        ema=(),
        key=jax.random.key(0),
    )
    step = train.make_step(eqd.variance_minimising(loss_fn), optimiser)
    x0 = np.tile(np.asarray([[-1.0, 0.0], [1.0, 1.0]], np.float32), (64, 1))

    @eqx.filter_jit
    def spread(process):
        def one(t, x0, key):
            return loss_fn(eqd.GaussianDenoiser(process, 0.0, STD), t, x0, None, key=key)[0]

        keys = jax.random.split(jax.random.key(1), 20_000)
        t = jax.random.uniform(keys[0], (20_000,))
        losses = jax.vmap(one)(t, jnp.tile(x0[:2], (10_000, 1)), keys)
        return jnp.mean(losses), jnp.std(losses)

    before = spread(state.net.process)
    for _ in range(150):
        state, metrics = step(state, (x0, None))
    after = spread(state.net.process)
    assert not metrics.nonfinite
    assert state.net.process.log_snr_max == 8.0, "a number is a constant"
    np.testing.assert_allclose(after[0], before[0], rtol=0.02)
    assert after[1] < 0.8 * before[1]


@pytest.mark.parametrize(
    "other", [eqd.VPSDE(), eqd.LearnedVPSDE(7.0)], ids=["another kind", "another end"]
)
def test_times_of_another_process_are_noticed(other):
    optimiser = optax.sgd(0.1)
    denoiser = eqd.Denoiser(model().net, eqd.LearnedVPSDE())
    state = train.init(
        denoiser, optimiser, timesteps=eqd.Uniform(other), ema=(), key=jax.random.key(0)
    )
    step = train.make_step(eqd.variance_minimising(loss_fn), optimiser)
    with pytest.raises(ValueError, match="drawn from a"):
        step(state, (np.ones((4, 2), np.float32), None))


def test_refused(getkey):
    def terms(process, x0=X0, **options):
        p = eqd.predict(eqd.GaussianDenoiser(process, 0.0, STD), 0.5, x0, key=getkey())
        return eqd.l_continuous(p, **options)

    with pytest.raises(ValueError, match="Write eqdiff.l_vlb"):
        terms(eqd.cosine_schedule(10), levels=5)
    with pytest.raises(ValueError, match="none of the levels"):
        terms(eqd.VPSDE(), levels=4)
    with pytest.raises(ValueError, match="levels=1"):
        terms(eqd.VPSDE(), levels=1)
    with pytest.raises(ValueError, match="Scaled holds no eqdiff.LearnedVPSDE"):
        eqd.variance_minimising(loss_fn)(model().net, 0.5, X0, None, key=getkey())


class Table(eqx.Module):
    """Shift and log-scale of the noise of each of three levels."""

    rows: jax.Array

    def __call__(self, image):
        return self.rows[jnp.rint(image[0] + 1).astype(int)]


class Both(eqx.Module):
    denoiser: eqd.GaussianDenoiser
    dequantise: eqd.VariationalDequantisation


def dequantised(model, t, image, args, *, key):
    noise_key, key = jax.random.split(key)
    y, offset = model.dequantise(model.denoiser, image, args, key=noise_key)
    terms = eqd.continuous_terms(eqd.predict(model.denoiser, t, y, args, key=key), levels=None)
    return terms.bits - offset / (image.size * math.log(2)), {}


@pytest.mark.slow
def test_noise_and_model_are_trained_together():
    """Pixels of three levels, as N(0.3, 0.35²) falls into them: the bound falls below what the
    best Gaussian of uniform noise reaches, to the entropy of the levels.
    """
    process = eqd.LearnedVPSDE(9.0, -8.0)
    chances = np.diff(scipy.stats.norm(0.3, 0.35).cdf([-np.inf, -1 / 3, 1 / 3, np.inf]))
    levels = np.array([-1.0, 0.0, 1.0], np.float32)
    entropy = -np.sum(chances * np.log2(chances))
    # Of uniform noise, whose best Gaussian has its moments.
    mean = np.sum(chances * levels * 2 / 3)
    std = np.sqrt(np.sum(chances * (levels * 2 / 3) ** 2) + (2 / 3) ** 2 / 12 - mean**2)
    uniform = (0.5 * np.log(2 * np.pi * np.e * std**2) - np.log(2 / 3)) / np.log(2)
    noise = eqd.LogisticNoise(Table(jnp.zeros((3, 2))))
    dequantise = eqd.VariationalDequantisation(noise, levels=3)
    model = Both(eqd.GaussianDenoiser(process, mean, std), dequantise)
    optimiser = optax.adam(optax.cosine_decay_schedule(0.05, 250))
    timesteps, key = eqd.LowDiscrepancy(process), jax.random.key(0)
    state = train.init(model, optimiser, timesteps=timesteps, ema=(), key=key)
    step = train.make_steps(eqd.variance_minimising(dequantised), optimiser)
    rng = np.random.default_rng(0)
    images = rng.choice(levels, size=(250, 128, 1), p=chances)

    @eqx.filter_jit
    def exact_bound(model, key):
        def one(level, key):
            y, offset = model.dequantise(model.denoiser, level[None], key=key)
            return -(model.denoiser.log_prob(process.t0, y) + offset) / jnp.log(2.0)

        keys = jax.random.split(key, (3, 2000))
        bits = jax.vmap(jax.vmap(one, (None, 0)))(jnp.asarray(levels), keys)
        return jnp.sum(jnp.asarray(chances, bits.dtype) * jnp.mean(bits, axis=1))

    before = float(exact_bound(model, jax.random.key(1)))
    state, metrics = step(state, (images, None))
    after = float(exact_bound(state.net, jax.random.key(1)))
    assert abs(before - uniform) < 0.02
    assert entropy - 0.01 < after < entropy + 0.3 * (uniform - entropy)
    # The loss is that bound.
    loss = np.mean(np.asarray(metrics.loss)[-50:])
    assert abs(loss - after) < 0.05
