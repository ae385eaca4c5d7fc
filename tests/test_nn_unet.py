"""`nn.UNet` and its presets: contract, invariances, and what its errors say."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import load_golden, load_golden_config, random_network, randomise

import eqdiff.nn as nn
from eqdiff.nn import _flags


def _unet(key, **kwargs):
    # One level compiles in half the time of two; tests that resample ask for two.
    options = dict(channels=8, num_res_blocks=1, channel_mult=(1,), attention_downsamples=())
    options |= dict(in_channels=2, out_channels=4, num_heads=2, norm_groups=4)
    return _flags.openai_unet(**{**options, **kwargs}, key=key)


def _random_unet(**kwargs):
    return random_network(lambda key: _unet(key, **kwargs))


# Two levels, of which the lower has attention.
_TWO = {"channel_mult": (1, 2), "attention_downsamples": (2,)}
_THREE = {"channel_mult": (1, 1, 1)}


# Compiled, because a network runs slowly operation by operation.
@eqx.filter_jit
def _call(net, c_noise, x, args=None, key=None):
    return net(c_noise, x, args, key=key)


def _relative(actual, expected):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return np.max(np.abs(actual - expected)) / np.max(np.abs(expected))


@pytest.mark.parametrize("learned_variance", [True, False])
def test_digits(getkey, learned_variance):
    options = dict(learned_variance=learned_variance, num_classes=10)
    net = random_network(lambda key: nn.presets.iddpm_digits(**options, key=key))
    x = jax.random.normal(getkey(), (1, 8, 8), jnp.float32)
    out = _call(net, 3, x, jnp.asarray(4))
    assert out.shape == (2 if learned_variance else 1, 8, 8)
    assert 0.5e6 < sum(leaf.size for leaf in jax.tree.leaves(net)) < 1.5e6


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_zero_at_first_in_the_dtype_of_x(getkey, dtype):
    if dtype == jnp.float64 and not jax.config.jax_enable_x64:
        pytest.skip("needs float64 (EQDIFF_TEST_X64=0)")
    net = _unet(getkey())
    out = _call(net, 500.0, jax.random.normal(getkey(), (2, 4, 4), dtype))
    assert out.shape == (4, 4, 4)
    assert out.dtype == dtype
    assert jnp.all(out == 0)


def test_parameters_are_float32_and_nothing_else_is_an_array(getkey):
    # An array that is not a parameter would be trained, averaged and decayed.
    net = _random_unet(num_classes=3)
    leaves = jax.tree_util.tree_leaves_with_path(net)
    assert all(leaf.dtype == jnp.float32 for _, leaf in leaves)
    assert {path[-1].name for path, _ in leaves} == {"weight", "bias"}


def test_initialisation_is_pytorchs(getkey):
    net = _unet(getkey(), channels=32, num_classes=100)
    conv = net.body.encoder[0].blocks[0].conv1
    fan_in = 32 * 9
    for array in (np.asarray(conv.weight), np.asarray(conv.bias)):
        # U(−1/√n, 1/√n) has the variance 1/(3n).
        assert np.max(np.abs(array)) <= 1 / np.sqrt(fan_in)
    assert abs(np.std(np.asarray(conv.weight)) * np.sqrt(3 * fan_in) - 1) < 0.02
    assert abs(np.std(np.asarray(net.class_embedding.weight)) - 1) < 0.02
    for zero in (
        net.body.out.conv,
        net.body.middle.blocks[0].conv2,
        net.body.middle.attentions[0].out,
    ):
        assert not np.any(zero.weight) and not np.any(zero.bias)


@pytest.mark.slow
def test_dropout_happens_where_there_is_a_key(getkey):
    net = _random_unet(dropout=0.5)
    x = jax.random.normal(getkey(), (2, 8, 8), jnp.float32)
    key1, key2 = getkey(), getkey()
    none, one, two = (_call(net, 1.0, x, key=key) for key in (None, key1, key2))
    assert jnp.array_equal(none, _call(net, 1.0, x))
    assert jnp.array_equal(one, _call(net, 1.0, x, key=key1))
    assert not jnp.allclose(one, two)
    assert not jnp.allclose(one, none)
    # A rate of zero draws nothing.
    net = _random_unet(dropout=0.0)
    assert jnp.array_equal(_call(net, 1.0, x, key=key1), _call(net, 1.0, x))


def test_time_and_class_reach_the_output(getkey):
    net = _random_unet(num_classes=3)
    x = jax.random.normal(getkey(), (2, 8, 8), jnp.float32)
    outs = [
        _call(net, jnp.asarray(t), x, jnp.asarray(c)) for t, c in [(1.0, 0), (2.0, 0), (1.0, 1)]
    ]
    assert _relative(outs[1], outs[0]) > 1e-3
    assert _relative(outs[2], outs[0]) > 1e-3
    # Python numbers and integers are time inputs and classes too.
    assert _relative(_call(net, 1, x, 0), outs[0]) < 1e-5
    assert _relative(_call(net, jnp.asarray(1), x, np.int64(0)), outs[0]) < 1e-5


@pytest.mark.slow
def test_sides_need_not_be_equal(getkey):
    # Height and width play the same role: transposed image and kernels give a transposed output.
    net = _random_unet(**_TWO)
    x = jax.random.normal(getkey(), (2, 4, 12), jnp.float32)
    swapped = jax.tree.map(lambda p: jnp.swapaxes(p, 1, 2) if p.ndim == 4 else p, net)
    out = _call(net, 7.0, x)
    assert out.shape == (4, 4, 12)
    again = jnp.swapaxes(_call(swapped, 7.0, jnp.swapaxes(x, 1, 2)), 1, 2)
    assert _relative(again, out) < 1e-5


@pytest.mark.slow
def test_batch_is_a_loop(getkey):
    net = _random_unet(dropout=0.3, num_classes=3, **_TWO)
    x = jax.random.normal(getkey(), (3, 2, 8, 8), jnp.float32)
    t, y, keys = jnp.arange(3.0), jnp.arange(3), jax.random.split(getkey(), 3)
    loop = jnp.stack([_call(net, t[i], x[i], y[i], keys[i]) for i in range(3)])
    batch = eqx.filter_vmap(_call, in_axes=(None, 0, 0, 0, 0))(net, t, x, y, keys)
    assert _relative(batch, loop) < 1e-5


def test_batch_is_one_convolution_per_layer(getkey):
    # Channels last, with the batch where the convolution has its own batch axis: no grouped
    # convolutions and no transpose but the two at the ends.
    net = _random_unet(**_TWO)
    x = jnp.ones((5, 2, 8, 8), jnp.float32)
    jaxpr = jax.make_jaxpr(jax.vmap(net, in_axes=(None, 0)))(1.0, x)
    found = []

    def visit(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "conv_general_dilated":
                found.append(eqn)
            for value in eqn.params.values():
                if hasattr(value, "jaxpr"):
                    visit(value.jaxpr)

    visit(jaxpr.jaxpr)
    # First and last, two per residual block (2 down, 2 in the middle, 4 up), two that resample.
    assert len(found) == 2 + 2 * 8 + 2
    for eqn in found:
        numbers = eqn.params["dimension_numbers"]
        assert numbers.lhs_spec == numbers.out_spec == (0, 3, 1, 2)
        assert numbers.rhs_spec == (3, 2, 0, 1)
        assert eqn.params["feature_group_count"] == eqn.params["batch_group_count"] == 1
        assert eqn.invars[0].aval.shape[0] == 5


@pytest.mark.slow
@pytest.mark.parametrize(("conv_resample", "scale_shift_norm"), [(True, True), (False, False)])
def test_gradients_are_finite_differences(getkey, x64, conv_resample, scale_shift_norm):
    options = dict(conv_resample=conv_resample, scale_shift_norm=scale_shift_norm)
    net = _random_unet(compute_dtype=jnp.float64, **options, **_TWO)
    params, static = eqx.partition(net, eqx.is_inexact_array)
    params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
    tangent = randomise(jax.tree.map(jnp.zeros_like, params), seed=1)
    x = jax.random.normal(getkey(), (2, 4, 8), jnp.float64)
    dx = jax.random.normal(getkey(), x.shape, x.dtype)

    @jax.jit
    def f(params, x):
        return jnp.sum(jnp.sin(eqx.combine(params, static)(11.0, x)))

    def along(e):
        return f(jax.tree.map(lambda p, dp: p + e * dp, params, tangent), x + e * dx)

    h = 1e-5
    difference = (along(h) - along(-h)) / (2 * h)
    _, forward = jax.jvp(f, (params, x), (tangent, dx))
    grad_params, grad_x = jax.grad(f, argnums=(0, 1))(params, x)
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), grad_params, tangent)
    reverse = sum(jax.tree.leaves(products)) + jnp.sum(grad_x * dx)
    np.testing.assert_allclose(forward, difference, rtol=1e-6)
    np.testing.assert_allclose(reverse, forward, rtol=1e-10)


@pytest.mark.slow
def test_second_derivatives(getkey, x64):
    # Forward over reverse (guidance through a network, exact traces) against finite differences.
    net = _random_unet(compute_dtype=jnp.float64)
    x = jax.random.normal(getkey(), (2, 4, 4), jnp.float64)
    v = jax.random.normal(getkey(), x.shape, x.dtype)
    grad = jax.jit(jax.grad(lambda x: jnp.sum(net(3.0, x) ** 2)))
    _, product = jax.jvp(grad, (x,), (v,))
    h = 1e-5
    difference = (grad(x + h * v) - grad(x - h * v)) / (2 * h)
    assert _relative(product, difference) < 1e-6


@pytest.mark.slow
def test_remat_gives_the_same_gradients(getkey):
    x = jax.random.normal(getkey(), (2, 8, 8), jnp.float32)

    @eqx.filter_jit
    @eqx.filter_grad
    def grad(net):
        return jnp.sum(net(5.0, x, key=jax.random.key(1)) ** 2)

    plain = grad(_random_unet(dropout=0.2))
    remat = grad(_random_unet(dropout=0.2, remat=True))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        assert _relative(b, a) < 1e-4
    jaxpr = str(jax.make_jaxpr(_random_unet(remat=True))(1.0, x))
    assert "checkpoint" in jaxpr or "remat" in jaxpr


def test_bfloat16_is_close_and_keeps_float32_where_it_matters(getkey):
    import eqdiff.interop as interop

    name = "public_idiff_unet_c"
    golden, config = load_golden(name), load_golden_config(name)["kwargs"]
    state = {k[6:]: v.astype(np.float32) for k, v in golden.items() if k.startswith("state/")}
    net = interop.openai_unet(state, config, compute_dtype=jnp.bfloat16)
    t, x, y = (jnp.asarray(golden[f"io/{k}"]) for k in "txy")
    out = eqx.filter_jit(eqx.filter_vmap(net))(t.astype(jnp.float32), x, y)
    assert out.dtype == jnp.float32
    error = _relative(out, golden["io/out"])
    # bfloat16 rounds to 2^-9 = 0.002; with norms and softmax in bfloat16 it would be ten times
    # that.
    assert 1e-4 < error < 0.03
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(net))


def _ones(*shape):
    return jnp.ones(shape, jnp.float32)


REFUSED = [
    ({}, (_ones(2, 8, 30),), "multiples of 4, got width 30; the nearest are 28 and 32"),
    ({}, (_ones(2, 3, 8),), r"nearest are 4\."),
    ({}, (_ones(3, 8, 8),), r"\(2, height, width\), got \(3, 8, 8\)"),
    ({}, (_ones(5, 2, 8, 8),), r"jax\.vmap\(net\)"),
    ({}, (_ones(2, 8, 8), jnp.asarray(1)), "num_classes="),
    ({"num_classes": 3}, (_ones(2, 8, 8),), "needs a class"),
    ({"num_classes": 3}, (_ones(2, 8, 8), jnp.zeros(3, jnp.int32)), r"jnp\.argmax"),
]


@pytest.mark.parametrize(("options", "arguments", "match"), REFUSED)
def test_calls_are_refused(options, arguments, match):
    net = eqx.filter_eval_shape(lambda key: _unet(key, **_THREE, **options), jax.random.key(0))
    with pytest.raises(ValueError, match=match):
        net(1.0, *arguments)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"channels": 12, "norm_groups": 32}, "norm_groups=12"),
        ({"num_heads": 3}, "8 channels cannot be split into 3 heads"),
    ],
)
def test_constructions_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        eqx.filter_eval_shape(lambda key: _unet(key, **options), jax.random.key(0))
