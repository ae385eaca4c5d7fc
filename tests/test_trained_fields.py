"""A small periodic network trained on a stationary Gaussian field, whose spectrum is known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqdiff as eqd


def _spectrum(shape):
    """The variances of the Fourier modes of a stationary Gaussian field of variance 1."""
    frequencies = np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in shape), indexing="ij")
    power = (1 + sum(f**2 for f in frequencies)) ** -1.0
    return power * power.size / power.sum()


def _fields(shape, key, number):
    axes = tuple(range(1, 1 + len(shape)))
    white = jnp.fft.fftn(jax.random.normal(key, (number, *shape), jnp.float32), axes=axes)
    scale = jnp.asarray(np.sqrt(_spectrum(shape))[None], white.dtype)
    return jnp.real(jnp.fft.ifftn(white * scale, axes=axes))[:, None]


def _trained(shape, steps, batch):
    """A small periodic network, trained on these fields, as a denoiser."""
    sizes = eqd.nn.UNetShape(1, 1, 8, 1, (1, 2), (), dims=len(shape))
    style = eqd.nn.Style(
        eqd.nn.styles.Strided(), eqd.nn.styles.Norm(groups=4), padding=eqd.PeriodicPadding()
    )
    process = eqd.VPSDE()

    def build(key):
        return eqd.nn.UNet(sizes, style, eqd.nn.embeddings.iddpm(), key=key)

    def loss(net, t, x0, args, *, key):
        denoiser = eqd.Denoiser(net, process, eqd.PredictVelocity())
        return eqd.l_simple(eqd.predict(denoiser, t, x0, args, key=key)), {}

    net = eqx.filter_jit(build)(jax.random.key(0))
    optimiser = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    timesteps, key = eqd.Uniform(process), jax.random.key(1)
    fields = jax.jit(lambda key: _fields(shape, key, batch))
    with jax.numpy_dtype_promotion("standard"):
        state = eqd.train.init(net, optimiser, timesteps=timesteps, ema=(), key=key)
        # One step at a time: XLA's gradients of convolutions are slow in a loop on a CPU.
        step = eqd.train.make_step(loss, optimiser)
        for key in jax.random.split(jax.random.key(2), steps):
            state, _ = step(state, (fields(key), None))
    return eqd.Denoiser(state.net, process, eqd.PredictVelocity())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "steps", "batch"), [((16,), 1200, 64), ((4, 4, 4), 250, 32)], ids=["1-D", "3-D"]
)
def test_a_small_network_learns_a_field(shape, steps, batch):
    """Samples have the covariance of a stationary Gaussian field."""
    denoiser = _trained(shape, steps, batch)

    def draw(key):
        x1 = denoiser.process.prior_sample((1, *shape), key=key).astype(jnp.float32)
        return eqd.DDIM(30)(denoiser, x1)

    draws = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(2), 512))
    axes = tuple(range(1, 1 + len(shape)))
    power = np.mean(np.abs(np.fft.fftn(np.asarray(draws)[:, 0], axes=axes)) ** 2, 0)
    # Of two cells as far apart as each index says, averaged over where they are.
    covariance = np.fft.ifftn(power).real / np.prod(shape)
    truth = np.fft.ifftn(_spectrum(shape)).real
    np.testing.assert_allclose(truth.flat[0], 1)
    assert np.min(truth) < 0.1
    np.testing.assert_allclose(covariance, truth, atol=0.2)
