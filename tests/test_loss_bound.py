"""The continuous bound as a loss: closed forms, invariance to the schedule, its least variance."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
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


def averaged(process, x0=X0):
    """Prior and diffusion of (2), over all times and noises, with the Gaussian's own denoiser."""
    denoiser = eqd.GaussianDenoiser(process, 0.0, STD)
    # Gauss–Legendre in the logarithm of t, or in t.
    low, high = process.t0, process.t1
    if low > 0:
        low, high = np.log(low), np.log(high)
    u = 0.5 * (low + high) + 0.5 * (high - low) * jnp.asarray(NODES)
    times = jnp.exp(u) if process.t0 > 0 else u
    weights = jnp.asarray(0.5 * WEIGHTS * (high - low)) * (times if process.t0 > 0 else 1)

    def terms(t, noise):
        return eqd.continuous_terms(eqd.predict(denoiser, t, x0, noise=noise), levels=5)

    each = jax.vmap(jax.vmap(terms, (None, 0)), (0, None))(times, jnp.asarray(NOISE))
    diffusion = jnp.sum(weights * jnp.mean(each.diffusion, 1)) / (process.t1 - process.t0)
    return each.prior[0, 0] + diffusion


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
    value = eqx.filter_jit(eqx.filter_value_and_grad(averaged))

    def at(high, low, units):
        return value(eqd.LearnedVPSDE(jnp.asarray(high), jnp.asarray(low), units=units))

    bent, gradient = at(9.0, -4.0, jnp.asarray(UNITS))
    straight, _ = at(9.0, -4.0, 16)
    np.testing.assert_allclose(bent, straight, rtol=1e-7)
    np.testing.assert_allclose(bent, sum(closed_form(9.0, -4.0)), rtol=1e-7)
    np.testing.assert_allclose(gradient.units, 0, atol=1e-6)
    h = 1e-4
    for i, name in enumerate(["log_snr_max", "log_snr_min"]):
        ends = [np.array([9.0, -4.0]) + s * h * np.eye(2)[i] for s in (1, -1)]
        finite = (sum(closed_form(*ends[0])) - sum(closed_form(*ends[1]))) / (2 * h)
        np.testing.assert_allclose(getattr(gradient, name), finite, rtol=1e-4)


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


def loss_fn(denoiser, t, x0, args, *, key):
    terms = eqd.continuous_terms(eqd.predict(denoiser, t, x0, args, key=key), levels=3)
    return terms.bits, {"prior": terms.prior, "diffusion": terms.diffusion}


def model(units=UNITS, ends=(6.0, -3.0)):
    net = eqd.nn.MLP(2, 2, width=8, depth=1, key=jax.random.key(0))
    process = eqd.LearnedVPSDE(*map(jnp.asarray, ends), units=jnp.asarray(units))
    return eqd.Denoiser(net, process)


def test_the_shape_follows_the_square_and_nothing_else_changes(getkey, x64):
    """For a weighted mean over examples, against 2L∇L written out."""
    n, denoiser = 5, model()
    t, weights = jnp.linspace(0.1, 0.9, n), jnp.linspace(0.5, 2.0, n)
    x0, keys = jnp.sign(jax.random.normal(getkey(), (n, 2))), jax.random.split(getkey(), n)

    def mean(denoiser, loss_fn, power=1):
        def one(t, x0, key):
            return loss_fn(denoiser, t, x0, None, key=key)[0]

        return jnp.mean(weights * jax.vmap(one)(t, x0, keys) ** power)

    gradient = eqx.filter_jit(eqx.filter_value_and_grad(mean))
    value, actual = gradient(denoiser, eqd.variance_minimising(loss_fn))
    plain_value, plain = gradient(denoiser, loss_fn)
    _, square = gradient(denoiser, loss_fn, 2)
    assert value == plain_value
    np.testing.assert_allclose(actual.process.units, square.process.units, rtol=1e-10)
    assert not np.allclose(actual.process.units, plain.process.units, rtol=0.1)
    both = [eqx.tree_at(lambda d: d.process.units, g, None) for g in (actual, plain)]
    assert eqx.tree_equal(*both, rtol=1e-12)


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
    with pytest.raises(ValueError, match="MLP holds no eqdiff.LearnedVPSDE"):
        eqd.variance_minimising(loss_fn)(model().net, 0.5, X0, None, key=getkey())
