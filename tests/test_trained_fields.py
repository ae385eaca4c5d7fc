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

    net = eqx.filter_jit(build)(jax.random.key(0))
    params, static = eqx.partition(net, eqx.is_inexact_array)
    optimiser = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

    def denoiser(params):
        return eqd.Denoiser(eqx.combine(params, static), process, eqd.PredictVelocity())

    def loss(params, key):
        keys = jax.random.split(key, 3)
        x0 = _fields(shape, keys[0], batch)
        t = jax.random.uniform(keys[1], (batch,), jnp.float32, process.t0, process.t1)

        def one(t, x0, key):
            return eqd.l_simple(eqd.predict(denoiser(params), t, x0, key=key))

        return jnp.mean(jax.vmap(one)(t, x0, jax.random.split(keys[2], batch)))

    @jax.jit
    def run(params, keys):
        def step(carry, key):
            params, state = carry
            gradient = jax.grad(loss)(params, key)
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimiser.update(gradient, state, params)
                return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimiser.init(params)), keys)[0][0]

    return denoiser(run(params, jax.random.split(jax.random.key(1), steps)))


@pytest.mark.slow
def test_a_small_network_learns_a_field():
    """Samples have the covariance of a stationary Gaussian field."""
    shape = (16,)
    denoiser = _trained(shape, steps=1200, batch=64)

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
