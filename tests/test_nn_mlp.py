"""`nn.MLP`: contract, and that it resolves time inputs of every scale."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import randomise

import eqdiff.nn as nn
from eqdiff.nn._embed import sinusoidal_embedding
from eqdiff.nn._mlp import _embed_c_noise


def _fit(net, c_noises, x, y, steps=200):
    """Least squares over whole batches; returns the final root mean square error."""
    optimiser = optax.adam(3e-3)
    with jax.numpy_dtype_promotion("standard"):
        state = optimiser.init(eqx.filter(net, eqx.is_inexact_array))

        @eqx.filter_jit
        def fit(net, state):
            params, static = eqx.partition(net, eqx.is_inexact_array)

            def step(carry, _):
                params, state = carry

                def loss(params):
                    out = jax.vmap(eqx.combine(params, static))(c_noises, x)
                    return jnp.mean((out - y) ** 2)

                value, grads = jax.value_and_grad(loss)(params)
                updates, state = optimiser.update(grads, state)
                return (optax.apply_updates(params, updates), state), value

            return jax.lax.scan(step, (params, state), length=steps)[1]

        return float(jnp.sqrt(fit(net, state)[-1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "c_noises",
    [
        # Times of a schedule, times of a process in [0, 1], log σ, and ¼ log σ as in EDM.
        np.linspace(0, 999, 64),
        np.geomspace(1e-3, 1, 64),
        np.linspace(-5, 4, 64),
        np.linspace(-1.5, 1.1, 64),
    ],
)
def test_time_inputs_of_every_scale_are_resolved(getkey, c_noises):
    # The target oscillates three times over the range of the time input: a straight line through it
    # has the error 0.7, and so has a network that cannot resolve the time input.
    target = np.sin(np.linspace(0, 6 * np.pi, 64))[:, None]
    c_noises, y = jnp.asarray(c_noises, jnp.float32), jnp.asarray(target, jnp.float32)
    x = jnp.zeros((64, 2), jnp.float32)
    assert _fit(nn.MLP(2, 1, 64, 2, key=getkey()), c_noises, x, y) < 0.3


@pytest.mark.slow
def test_learns_a_sharp_function(getkey):
    # A checkerboard of four by four squares, which jumps; its sign at the centres of squares.
    x = jax.random.uniform(getkey(), (1024, 2), jnp.float32, -2, 2)
    cells = jnp.floor(x).astype(jnp.int32)
    y = jnp.where(jnp.sum(cells, axis=1, keepdims=True) % 2 == 0, 1.0, -1.0).astype(jnp.float32)
    c_noises = jnp.zeros(1024, jnp.float32)
    assert _fit(nn.MLP(2, 1, 128, 3, key=getkey()), c_noises, x, y, steps=300) < 0.5


def test_contract(getkey):
    net = nn.MLP(3, 5, 16, 2, num_classes=4, key=getkey())
    x = jax.random.normal(getkey(), (3,), jnp.float32)
    out = net(0.5, x, jnp.asarray(1), key=getkey())
    assert out.shape == (5,)
    assert out.dtype == jnp.float32
    assert jnp.all(out == 0)
    leaves = jax.tree_util.tree_leaves_with_path(net)
    assert all(leaf.dtype == jnp.float32 for _, leaf in leaves)
    assert {path[-1].name for path, _ in leaves} == {"weight", "bias"}


def test_class_and_time_reach_the_output(getkey):
    net = nn.MLP(3, 5, 16, 2, num_classes=4, key=getkey())
    net = randomise(net, scale=0.3)
    x = jax.random.normal(getkey(), (3,), jnp.float32)
    base = net(0.5, x, 1)
    for other in (net(0.6, x, 1), net(0.5, x, 2), net(0.5, -x, 1)):
        assert jnp.max(jnp.abs(other - base)) > 1e-3


def test_batch_is_a_loop(getkey):
    net = randomise(nn.MLP(2, 2, 16, 2, key=getkey()))
    t, x = jnp.arange(4.0), jax.random.normal(getkey(), (4, 2), jnp.float32)
    loop = jnp.stack([net(t[i], x[i]) for i in range(4)])
    np.testing.assert_allclose(jax.vmap(net)(t, x), loop, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_derivatives(getkey, x64):
    # Forward and reverse mode agree, in float64, with each other and with finite differences.
    net = randomise(nn.MLP(2, 2, 16, 2, key=getkey()))
    net = jax.tree.map(lambda p: p.astype(jnp.float64), net)
    x = jax.random.normal(getkey(), (2,), jnp.float64)

    def f(x):
        return net(0.3, x)

    forward, reverse, h = jax.jacfwd(f)(x), jax.jacrev(f)(x), 1e-6
    basis = jnp.eye(2)
    columns = [(f(x + h * e) - f(x - h * e)) / (2 * h) for e in basis]
    np.testing.assert_allclose(forward, reverse, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(forward, jnp.stack(columns, axis=1), rtol=1e-5, atol=1e-8)


_X = np.ones(2, np.float32)
REFUSED = [
    ({}, (0.0, np.ones(3, np.float32)), r"shape \(2,\), got \(3,\)"),
    ({}, (0.0, np.ones((7, 2), np.float32)), r"jax\.vmap\(net\)"),
    ({}, (0.0, _X, np.asarray(1)), "without classes"),
    ({"num_classes": 2}, (0.0, _X), "needs a class"),
]


@pytest.mark.parametrize(("options", "arguments", "match"), REFUSED)
def test_refuses(getkey, options, arguments, match):
    net = nn.MLP(2, 2, 8, 1, **options, key=getkey())
    with pytest.raises(ValueError, match=match):
        net(*jax.tree.map(jnp.asarray, arguments))


def test_sinusoids():
    # The definitions of OpenAI and Song, written out.
    c_noise, half = 37.5, 4
    openai = [10_000 ** (-i / half) for i in range(half)]
    song = [10_000 ** (-i / (half - 1)) for i in range(half)]
    at = jnp.asarray(c_noise, jnp.float32)
    np.testing.assert_allclose(
        sinusoidal_embedding(at, 8),
        [np.cos(c_noise * w) for w in openai] + [np.sin(c_noise * w) for w in openai],
        atol=1e-5,
    )
    np.testing.assert_allclose(
        sinusoidal_embedding(at, 8, cosine_first=False, endpoint=True),
        [np.sin(c_noise * w) for w in song] + [np.cos(c_noise * w) for w in song],
        atol=1e-5,
    )


def test_embedding_of_the_time_input_is_as_documented():
    # Highest frequencies: 1 on the c_noise and 2 on arsinh(100 c_noise).
    c_noise = 0.37
    e = np.asarray(_embed_c_noise(jnp.asarray(c_noise, jnp.float32)))
    u = np.arcsinh(100 * c_noise)
    np.testing.assert_allclose([e[0], e[32]], [np.cos(c_noise), np.sin(c_noise)], atol=1e-5)
    np.testing.assert_allclose([e[64], e[72]], [np.cos(2 * u), np.sin(2 * u)], atol=1e-5)
    np.testing.assert_allclose([e[71], e[79]], [np.cos(u / 4), np.sin(u / 4)], atol=1e-5)
