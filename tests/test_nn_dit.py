"""`nn.DiT`: sizes of the paper, invariances, and what its errors say. There are no recorded
outputs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_network
from toys import quick_jit

import eqdiff.nn as nn
from eqdiff.nn._dit import modulated_norm, positions


_SMALL = dict(in_channels=2, out_channels=3, patch_size=2, channels=8, depth=2, num_heads=2)


def _dit(**kwargs):
    return random_network(lambda key: nn.DiT(**{**_SMALL, **kwargs}, key=key))


def _runner(net, c_noise=300.0):
    params, static = eqx.partition(net, eqx.is_inexact_array)
    run = quick_jit(lambda p, x, args, key: eqx.combine(p, static)(c_noise, x, args, key=key))
    return lambda x, args=None, key=None: run(params, x, args, key)


def _relative(actual, expected):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return np.max(np.abs(actual - expected)) / np.max(np.abs(expected))


# The paper's table 1, in millions, for latents of 4×32×32 and 1000 classes. The official script
# prints 675,129,632 for the last, with its constant embedding of 256 places.
@pytest.mark.parametrize(
    ("size", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675_129_632 / 1e6)]
)
def test_parameters(size, millions):
    def build(key):
        return nn.presets.dit(size, num_classes=1000, key=key)

    net = eqx.filter_eval_shape(build, jax.random.key(0))
    count = sum(p.size for p in jax.tree.leaves(net) if hasattr(p, "size"))
    count += 256 * net.channels
    assert abs(count / 1e6 - millions) < (0.6 if size != "XL" else 1e-9)


@pytest.mark.slow
def test_zero_at_first(getkey):
    net = nn.DiT(**_SMALL, key=getkey())
    x = jax.random.normal(getkey(), (2, 4, 6), jnp.float32)
    out = _runner(net)(x)
    assert out.shape == (3, 4, 6) and not jnp.any(out)
    # Every block is the identity, whatever the embedding.
    h, e = jax.random.normal(getkey(), (6, 8)), jax.random.normal(getkey(), (8,))
    h, e = h.astype(jnp.float32), e.astype(jnp.float32)
    np.testing.assert_array_equal(quick_jit(lambda h, e: net.blocks[0](h, e))(h, e), h)


def test_blocks_know_no_order(getkey):
    block = _dit().blocks[0]
    h = jax.random.normal(getkey(), (6, 8), jnp.float32)
    e = jax.random.normal(getkey(), (8,), jnp.float32)
    order = jnp.asarray([3, 0, 5, 1, 4, 2])
    run = quick_jit(lambda h, e: block(h, e))
    assert _relative(run(h[order], e), run(h, e)[order]) < 1e-5


def test_patches_stay_in_place(getkey):
    # With patches of one pixel, no positions can tell an image from its transpose but by the
    # halves.
    net = _dit(patch_size=1)
    x = jax.random.normal(getkey(), (2, 3, 5), jnp.float32)
    half = 4

    def swap(net):
        # Exchange what the network makes of columns and rows: all maps of the first tokens.
        order = jnp.asarray([*range(half, 2 * half), *range(half)])

        def inputs(linear):
            return eqx.tree_at(lambda l: l.weight, linear, linear.weight[order])

        def outputs(linear):
            new = (linear.weight[:, order], linear.bias[order])
            return eqx.tree_at(lambda l: (l.weight, l.bias), linear, new)

        def chunks(linear, number):
            weight = jnp.reshape(linear.weight, (-1, number, 8))[:, :, order]
            bias = jnp.reshape(linear.bias, (number, 8))[:, order]
            new = (jnp.reshape(weight, linear.weight.shape), jnp.reshape(bias, linear.bias.shape))
            return eqx.tree_at(lambda l: (l.weight, l.bias), linear, new)

        def block(b):
            new = (
                chunks(b.modulation, 6),
                inputs(b.qkv),
                outputs(b.out),
                inputs(b.mlp1),
                outputs(b.mlp2),
            )
            parts = lambda b: (b.modulation, b.qkv, b.out, b.mlp1, b.mlp2)  # noqa: E731
            return eqx.tree_at(parts, b, new)

        new = (
            outputs(net.patch_in),
            tuple(block(b) for b in net.blocks),
            chunks(net.modulation_out, 2),
            inputs(net.patch_out),
        )
        parts = lambda n: (n.patch_in, n.blocks, n.modulation_out, n.patch_out)  # noqa: E731
        return eqx.tree_at(parts, net, new)

    out = _runner(net)(x)
    again = jnp.swapaxes(_runner(swap(net))(jnp.swapaxes(x, 1, 2)), 1, 2)
    assert _relative(again, out) < 1e-5
    # And they do matter.
    flipped = _runner(net)(x[:, :, ::-1])[:, :, ::-1]
    assert _relative(flipped, out) > 1e-3


def test_positions():
    table = positions(3, 5, 8)
    assert table.shape == (15, 8)
    # Place (row 2, column 3): sines then cosines of the column, then of the row.
    expected = [np.sin(3), np.sin(0.03), np.cos(3), np.cos(0.03)]
    expected += [np.sin(2), np.sin(0.02), np.cos(2), np.cos(0.02)]
    np.testing.assert_allclose(table[2 * 5 + 3], expected, rtol=1e-12)


def test_patches_are_cut_and_put_back(getkey):
    # A network whose tokens pass straight through returns the image: the cut is a bijection.
    net = nn.DiT(1, 1, 2, channels=4, depth=0, num_heads=1, key=getkey())
    x = jax.random.normal(getkey(), (1, 4, 6), jnp.float32)

    def normalised(image):
        tokens = np.asarray(image).reshape(2, 2, 3, 2).transpose(0, 2, 1, 3).reshape(6, 4)
        tokens = tokens + positions(2, 3, 4)
        tokens = tokens - tokens.mean(1, keepdims=True)
        tokens = tokens / np.sqrt((tokens**2).mean(1, keepdims=True) + 1e-6)
        return tokens.reshape(2, 3, 2, 2).transpose(0, 2, 1, 3).reshape(1, 4, 6)

    eye = jnp.eye(4, dtype=jnp.float32)
    net = eqx.tree_at(lambda n: (n.patch_in.weight, n.patch_out.weight), net, (eye, eye))
    np.testing.assert_allclose(_runner(net)(x), normalised(x), atol=1e-5)


def test_modulated_norm(getkey):
    h = 5 + 3 * jax.random.normal(getkey(), (4, 512), jnp.float32)
    one, zero = jnp.ones(512, jnp.float32), jnp.zeros(512, jnp.float32)
    y = np.asarray(modulated_norm(h, zero, zero))
    np.testing.assert_allclose(y.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(1), 1, rtol=1e-5)
    np.testing.assert_allclose(modulated_norm(h, one, 3 * one), 2 * y + 3, rtol=1e-4, atol=1e-5)
    assert modulated_norm(h.astype(jnp.bfloat16), one, zero).dtype == jnp.bfloat16


def test_classes(getkey):
    net = _dit(num_classes=3, class_dropout=0.5)
    run, x = _runner(net), jax.random.normal(getkey(), (2, 4, 4), jnp.float32)
    given, without = run(x, jnp.asarray(1)), run(x, jnp.asarray(3))
    assert _relative(given, without) > 1e-3
    outs = [run(x, jnp.asarray(1), key) for key in jax.random.split(getkey(), 8)]
    assert {bool(_relative(out, without) < 1e-6) for out in outs} == {True, False}
    assert all(min(_relative(o, given), _relative(o, without)) < 1e-6 for o in outs)


@pytest.mark.slow
def test_precision_remat_and_batches(getkey):
    x = jax.random.normal(getkey(), (3, 2, 4, 4), jnp.float32)
    c_noises = jnp.asarray([1.0, 300.0, 900.0])
    net = _dit()
    batch = quick_jit(jax.vmap(net))(c_noises, x)
    assert _relative(batch[1], _runner(net)(x[1])) < 1e-5
    remat = quick_jit(jax.vmap(_dit(remat=True)))(c_noises, x)
    assert _relative(remat, batch) < 1e-6
    half = quick_jit(jax.vmap(_dit(compute_dtype=jnp.bfloat16)))(c_noises, x)
    assert half.dtype == jnp.float32 and 1e-4 < _relative(half, batch) < 0.1
    assert _relative(batch[0], _runner(net)(x[0])) > 1e-3


@pytest.mark.slow
def test_gradients_are_finite_differences(getkey, x64):
    net = _dit(compute_dtype=jnp.float64, depth=1)
    params, static = eqx.partition(net, eqx.is_inexact_array)
    params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
    rng = np.random.default_rng(1)
    tangent = jax.tree.map(lambda p: jnp.asarray(0.05 * rng.standard_normal(p.shape)), params)
    x = jax.random.normal(getkey(), (2, 4, 4), jnp.float64)

    def f(params):
        return jnp.sum(jnp.sin(eqx.combine(params, static)(3.0, x)))

    f_jit = quick_jit(f)

    def along(e):
        return f_jit(jax.tree.map(lambda p, dp: p + e * dp, params, tangent))

    difference = (along(1e-5) - along(-1e-5)) / 2e-5
    _, forward = quick_jit(lambda p: jax.jvp(f, (p,), (tangent,)))(params)
    np.testing.assert_allclose(forward, difference, rtol=1e-6)


_X = np.ones((2, 4, 4), np.float32)
REFUSED = [
    (lambda: _dit(num_heads=3), "num_heads=3, got 8"),
    (lambda: _dit()(1.0, jnp.ones((2, 4, 5), jnp.float32)), "got width 5; the nearest are 4 and 6"),
    (lambda: _dit()(1.0, jnp.ones((2, 4, 5), jnp.float32)), "smaller patch_size"),
    (lambda: _dit()(1.0, jnp.asarray(_X), jnp.asarray(0)), "num_classes="),
    (lambda: _dit(num_classes=3, class_dropout=0.0)(1.0, jnp.asarray(_X)), "needs a class"),
]


@pytest.mark.parametrize(("make", "match"), REFUSED)
def test_refuses(make, match):
    with pytest.raises(ValueError, match=match):
        make()
