"""Group normalisation in closed form, against the plain formula and automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from eqdiff.nn import _normalise
from eqdiff.nn._norm import GroupNorm
from eqdiff.nn._normalise import normalise, Settings


needs_x64 = pytest.mark.skipif(
    not jax.config.jax_enable_x64, reason="finite differences need float64"
)
GAIN = 1.7


def _plain(x, b, a, c, keep, activation=jax.nn.silu, groups=3, eps=1e-5):
    def over(v):
        return jnp.broadcast_to(v, x.shape)

    u = x + over(b)
    cut = u.reshape(-1, groups, x.shape[-1] // groups)
    mean = jnp.mean(cut, (0, 2), keepdims=True)
    centred = cut - jnp.broadcast_to(mean, cut.shape)
    variance = jnp.mean(centred**2, (0, 2), keepdims=True)
    standard = centred / jnp.broadcast_to(jnp.sqrt(variance + eps), cut.shape)
    y = activation(over(a) * standard.reshape(x.shape) + over(c))
    return jnp.where(keep, GAIN * y, 0)


def _closed(x, b, a, c, keep, activation=jax.nn.silu, groups=3, eps=1e-5):
    return normalise(x, b, a, c, Settings(groups, eps, activation, GAIN), keep)


def _arguments(getkey, dtype, shape=(5, 4, 12)):
    x = 3 * jax.random.normal(getkey(), shape, dtype) + 7
    b, a, c = (jax.random.normal(getkey(), shape[-1:], dtype) for _ in range(3))
    return (x, b, a, c), jax.random.bernoulli(getkey(), 0.6, shape)


@pytest.mark.parametrize("activation", [jax.nn.silu, lambda y: y])
def test_value_tangent_and_cotangent(getkey, activation):
    dtype = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
    tolerance = 1e-13 if dtype == jnp.float64 else 2e-5
    primals, keep = _arguments(getkey, dtype)
    tangents, _ = _arguments(getkey, dtype)
    closed, plain = (lambda *z, f=f: f(*z, keep, activation) for f in (_closed, _plain))
    actual, expected = (jax.jvp(f, primals, tangents) for f in (closed, plain))
    for got, want in zip(actual, expected, strict=True):
        assert jnp.max(jnp.abs(got - want)) < tolerance * jnp.max(jnp.abs(want))
    cotangent = jax.random.normal(getkey(), primals[0].shape, dtype)
    actual, expected = (jax.vjp(f, *primals)[1](cotangent) for f in (closed, plain))
    for got, want in zip(actual, expected, strict=True):
        assert jnp.max(jnp.abs(got - want)) < tolerance * jnp.max(jnp.abs(want))


def test_what_runs_on_nvidia_is_the_same(getkey):
    (x, b, a, c), keep = _arguments(getkey, jnp.float32, (20, 12))
    settings = Settings(3, 1e-5, jax.nn.silu, GAIN)
    statistics = _normalise._statistics(x, b, settings)
    arguments = (settings, x, x[::-1], b, *statistics, a, c, keep)
    fused = _normalise._fused_cotangent(*arguments)
    for got, want in zip(fused, _normalise._plain_cotangent(*arguments), strict=True):
        assert jnp.max(jnp.abs(got - want)) <= 1e-6 * jnp.max(jnp.abs(want))


@pytest.mark.slow
@needs_x64
@pytest.mark.parametrize("in_axes", [None, (0, None, 0, None), (None, None, 0, 0)])
def test_derivatives_of_both_orders_in_both_modes(getkey, in_axes):
    (x, b, a, c), keep = _arguments(getkey, jnp.float64, (3, 6))

    def f(*arguments):
        return _closed(*map(jnp.asarray, arguments), keep)

    primals = (x, b, a, c)
    if in_axes is not None:
        f = jax.jit(jax.vmap(f, in_axes))
        primals = tuple(
            z if axis is None else jnp.stack([z, 2 * z])
            for z, axis in zip(primals, in_axes, strict=True)
        )
    check_grads(f, primals, order=2, modes=("fwd", "rev"))


@needs_x64
def test_forward_over_reverse_and_reverse_over_forward(getkey):
    (x, b, a, c), keep = _arguments(getkey, jnp.float64)
    v = jax.random.normal(getkey(), x.shape, jnp.float64)

    def products(f):
        def energy(x):
            return jnp.sum(jnp.sin(f(x, b, a, c, keep)))

        forward = jax.jvp(jax.grad(energy), (x,), (v,))[1]
        reverse = jax.grad(lambda x: jax.jvp(energy, (x,), (v,))[1])(x)
        return forward, reverse

    (one, two), (want, _) = products(_closed), products(_plain)
    scale = jnp.max(jnp.abs(want))
    assert jnp.max(jnp.abs(one - want)) < 1e-12 * scale
    assert jnp.max(jnp.abs(two - want)) < 1e-12 * scale


@pytest.mark.parametrize("mean", [0.0, 1e2, 1e3])
def test_a_large_mean_costs_no_digits(getkey, mean):
    # A naive E[x²] − E[x]² in float32 would be wrong by mean² × 6e-8: 6 % for a mean of 1000.
    # What is left is the rounding of the input itself, mean × 6e-8.
    x = jax.random.normal(getkey(), (16, 16, 8), jnp.float32) + mean
    y = GroupNorm(8, 2, eps=0.0)(x)
    wide = np.asarray(x, np.float64).reshape(-1, 2, 4)
    want = (wide - wide.mean((0, 2), keepdims=True)) / wide.std((0, 2), keepdims=True)
    assert np.max(np.abs(np.asarray(y).reshape(wide.shape) - want)) < 2e-6 + 2e-7 * mean


def test_half_precision_images_have_float32_statistics(getkey):
    x = jax.random.normal(getkey(), (16, 16, 8), jnp.bfloat16) + jnp.asarray(3, jnp.bfloat16)
    norm = GroupNorm(8, 2)
    y, want = norm(x), norm(x.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16
    # Nothing but the result itself is rounded.
    assert jnp.array_equal(y, want.astype(jnp.bfloat16))


def test_a_constant_image_is_the_shift(getkey):
    norm = GroupNorm(8, 2)
    y = norm(jnp.full((4, 4, 8), 1e4, jnp.float32), shift=jnp.arange(8, dtype=jnp.float32))
    assert jnp.array_equal(y[0, 0], jnp.arange(8, dtype=jnp.float32))
    gradient = jax.grad(lambda x: jnp.sum(norm(x) ** 2))(jnp.full((4, 4, 8), 1e4, jnp.float32))
    assert jnp.all(jnp.isfinite(gradient))
