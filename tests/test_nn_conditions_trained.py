"""Networks with conditions learn the conditional density, and the marginal by their learned null.

Each is trained on a joint Gaussian, whose exact posterior mean of $x_0$ given $x_t$ and the
condition is known, for every condition and for none.
"""

import jax
import numpy as np
import optax
import pytest

import eqdiff as eqd
import eqdiff.nn as nn


pytestmark = pytest.mark.slow
PROCESS = eqd.VPSDE(t0=1e-3)
TIMES = (0.1, 0.3, 0.6)


def trained(net, draw, steps, batch=128, rate=3e-3):
    """A denoiser, trained on the batches `(x0, args)` that `draw(rng, number)` makes."""

    def loss_fn(net, t, x0, args, *, key):
        return eqd.l_simple(eqd.predict(eqd.Denoiser(net, PROCESS), t, x0, args, key=key)), {}

    rng = np.random.default_rng(0)
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(rate, steps))
    )
    options = dict(timesteps=eqd.LowDiscrepancy(PROCESS), ema=(0.995,), key=jax.random.key(1))
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        state = eqd.train.init(net, optimiser, **options)
        step = eqd.train.make_step(loss_fn, optimiser)
        for _ in range(steps):
            state, _ = step(state, draw(rng, batch))
        return eqd.Denoiser(state.ema_net(), PROCESS)


def gaussian(t, x, mean, covariance):
    """E[x0 | x_t] of N(mean, covariance), in float64."""
    a, s = (np.asarray(f(t), np.float64) for f in (PROCESS.alpha, PROCESS.sigma))
    gain = a * covariance @ np.linalg.inv(a**2 * covariance + s**2 * np.eye(len(mean)))
    return mean + gain @ (x - a * mean)


def error(denoiser, x0, args, oracle):
    """The mean square distance of the network's estimates from the oracle's, as a part of the
    data's variance; the largest over times."""
    rng, worst = np.random.default_rng(7), 0.0
    run = jax.jit(jax.vmap(lambda t, x, args: denoiser(t, x, args).x0, in_axes=(None, 0, 0)))
    for t in TIMES:
        t = np.float32(t)
        alpha, sigma = float(PROCESS.alpha(t)), float(PROCESS.sigma(t))
        x = (alpha * x0 + sigma * rng.standard_normal(x0.shape)).astype(np.float32)
        with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
            found = np.asarray(run(t, x, args))
        expected = np.stack([oracle(t, x[i], i) for i in range(len(x))])
        worst = max(worst, float(np.mean((found - expected) ** 2) / np.var(x0)))
    return worst


def test_a_vector_its_density_and_the_marginal():
    """x = A y + n: the conditional Gaussian, its log-density, and N(0, AAᵀ + Σ) for the null."""
    a = np.array([[1.0, -0.5, 0.3], [0.2, 0.8, -0.6]])
    noise = np.array([[0.25, 0.1], [0.1, 0.16]])
    mean, std = np.array([5.0, 0.0, -2.0]), np.array([10.0, 1.0, 0.1])
    root = np.linalg.cholesky(noise)

    def draw(rng, number):
        z = rng.standard_normal((number, 3))
        x = z @ a.T + rng.standard_normal((number, 2)) @ root.T
        return x.astype(np.float32), (mean + std * z).astype(np.float32)

    condition = nn.VectorCondition(3, mean=mean, std=std, dropout=0.15)
    net = nn.MLP(2, 2, 64, 2, conditions=condition, key=jax.random.key(0))
    denoiser = trained(net, draw, 3000)
    x0, y = draw(np.random.default_rng(5), 200)
    means = ((y - mean) / std) @ a.T
    given = error(denoiser, x0, y, lambda t, x, i: gaussian(t, x, means[i], noise))
    total = a @ a.T + noise
    none = error(denoiser, x0, None, lambda t, x, i: gaussian(t, x, np.zeros(2), total))
    assert given < 0.01 and none < 0.01, (given, none)

    def log_prob(x, y, key):
        return eqd.log_likelihood(
            denoiser, x, y, flow=eqd.ProbabilityFlow(num_steps=40), trace=eqd.ExactTrace()
        ).log_prob

    def exact(x, mean, covariance):
        z = np.linalg.solve(np.linalg.cholesky(covariance), (x - mean).T)
        half = 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
        return -0.5 * np.sum(z**2, axis=0) - half

    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        found = eqd.map_examples(log_prob, x0[:50], y[:50], key=jax.random.key(3))
    gap = exact(x0[:50], means[:50], noise) - np.asarray(found)
    assert abs(np.mean(gap)) < 0.05 and np.std(gap) < 0.3, (np.mean(gap), np.std(gap))


def posterior(observed, mask, variance):
    """Of θ ~ N(0, I) given θ + n for every true entry of a mask."""
    number = np.sum(mask)
    return observed[mask].sum(0) / (number + variance), variance / (number + variance)


def test_a_set_of_observations():
    """θ given zero to six noisy observations of it: the mean and the variance both depend on how
    many there are, and the empty set is the null."""
    variance = 0.5

    def draw(rng, number):
        theta = rng.standard_normal((number, 2))
        tokens = theta[:, None] + np.sqrt(variance) * rng.standard_normal((number, 6, 2))
        mask = np.arange(6) < rng.integers(0, 7, (number, 1))
        return theta.astype(np.float32), (tokens.astype(np.float32), mask)

    condition = nn.TokenCondition(2, null=True)
    net = nn.MLP(2, 2, 64, 2, conditions=condition, key=jax.random.key(0))
    denoiser = trained(net, draw, 4000)
    theta, (tokens, mask) = draw(np.random.default_rng(5), 300)
    of = [posterior(tokens[i], mask[i], variance) for i in range(300)]
    found = error(
        denoiser,
        theta,
        (tokens, mask),
        lambda t, x, i: gaussian(t, x, of[i][0], of[i][1] * np.eye(2)),
    )
    none = error(denoiser, theta, None, lambda t, x, i: gaussian(t, x, np.zeros(2), np.eye(2)))
    assert found < 0.01 and none < 0.01, (found, none)


LENGTH, WIDTH = 16, 0.1


def wave(amplitude, frequency):
    return amplitude[:, None] * np.sin(2 * np.pi * frequency[:, None] * np.arange(LENGTH) / LENGTH)


def unet(conditions):
    shape = nn.UNetShape(1, 1, 16, 1, channel_mult=(1, 2), attention_downsamples=(2,), dims=1)
    style = nn.styles.iddpm(norm_groups=4, heads=nn.styles.Heads(2))
    return nn.UNet(
        shape, style, nn.embeddings.iddpm(), conditions=conditions, key=jax.random.key(0)
    )


def test_signals_of_a_given_amplitude_and_frequency():
    """A one-dimensional U-Net; given both, a signal is its mean and white noise of variance 0.1."""

    def draw(rng, number):
        y = np.stack([rng.uniform(0.5, 2, number), rng.uniform(1, 3, number)], 1)
        x = wave(*y.T) + np.sqrt(WIDTH) * rng.standard_normal((number, LENGTH))
        return x[:, None].astype(np.float32), y.astype(np.float32)

    condition = nn.VectorCondition(2, mean=(1.25, 2.0), std=(0.43, 0.58))
    denoiser = trained(unet(condition), draw, 1200, batch=64)
    x0, y = draw(np.random.default_rng(5), 100)
    means = wave(*y.astype(np.float64).T)
    found = error(
        denoiser,
        x0,
        y,
        lambda t, x, i: gaussian(t, x[0], means[i], WIDTH * np.eye(LENGTH))[None],
    )
    assert found < 0.05, found


def test_signals_of_several_waves_told_by_tokens():
    """The same with a sum of up to three waves, each a token of its amplitude and frequency."""

    def draw(rng, number):
        tokens = np.stack([rng.uniform(-1, 1, (number, 3)), rng.integers(1, 5, (number, 3))], 2)
        mask = np.arange(3) < rng.integers(0, 4, (number, 1))
        x = sum(mask[:, [k]] * wave(*tokens[:, k].T) for k in range(3))
        x = x + np.sqrt(WIDTH) * rng.standard_normal((number, LENGTH))
        return x[:, None].astype(np.float32), (tokens.astype(np.float32), mask)

    condition = nn.TokenCondition(2, mean=(0.0, 2.5), std=(0.58, 1.12), null=True)
    denoiser = trained(unet(condition), draw, 2000, batch=64)
    x0, (tokens, mask) = draw(np.random.default_rng(5), 100)
    wide = tokens.astype(np.float64)
    means = sum(mask[:, [k]] * wave(*wide[:, k].T) for k in range(3))
    found = error(
        denoiser,
        x0,
        (tokens, mask),
        lambda t, x, i: gaussian(t, x[0], means[i], WIDTH * np.eye(LENGTH))[None],
    )
    assert found < 0.1, found
