"""`nn.UNet` as NCSN++ and DDPM, and `nn.NCSNv2`: contract, invariances, what their errors say."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_network
from toys import quick_jit

import eqdiff as eqd
import eqdiff.nn as nn
from eqdiff.nn import _flags
from eqdiff.nn._check import check_variant
from eqdiff.nn._ends import unwrapped
from eqdiff.nn._ncsnv2 import enlarge, max_pool


_CHANNELS = dict(in_channels=2, out_channels=2)


def _ncsnpp(**kwargs):
    options = dict(
        channels=8, num_res_blocks=1, channel_mult=(1,), attention_downsamples=(), dropout=0.0
    )
    return random_network(lambda key: _flags.ncsnpp(**{**_CHANNELS, **options, **kwargs}, key=key))


def _ddpm(**kwargs):
    options = dict(
        channels=8, num_res_blocks=1, channel_mult=(1,), attention_downsamples=(), norm_groups=4
    )
    return random_network(lambda key: _flags.ddpm(**{**_CHANNELS, **options, **kwargs}, key=key))


def _ncsnv2(**kwargs):
    options = dict(channels=4, channel_mult=(1, 1), dilations=(1, 2))
    return random_network(lambda key: nn.NCSNv2(2, 2, **{**options, **kwargs}, key=key))


_VP = dict(embedding="positional", scale_by_sigma=False)

# Networks by their time input.
_BUILD = {
    "fourier": lambda: _ncsnpp(),
    "positional": lambda: _ncsnpp(**_VP),
    "levels": lambda: _ncsnpp(embedding="positional", sigma_levels=(0.01, 50.0, 100)),
    "ddpm": _ddpm,
    "ncsnv2": _ncsnv2,
}


def _call(net, c_noise, x, args=None, key=None):
    params, static = eqx.partition(net, eqx.is_inexact_array)

    @quick_jit
    def run(params, c_noise, x, args, key):
        return eqx.combine(params, static)(c_noise, x, args, key=key)

    return run(params, c_noise, x, args, key)


def _image(getkey, *shape, dtype=jnp.float32):
    return jax.random.normal(getkey(), shape or (2, 4, 4), dtype)


def _relative(actual, expected):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return np.max(np.abs(actual - expected)) / np.max(np.abs(expected))


@pytest.mark.parametrize("name", _BUILD)
def test_parameters_are_float32_and_nothing_else_is_an_array(name):
    # An array that is not a parameter would be trained, averaged and decayed.
    leaves = jax.tree_util.tree_leaves_with_path(_BUILD[name]())
    assert all(leaf.dtype == jnp.float32 for _, leaf in leaves)
    parts = {"alpha", "gamma", "beta"} if name == "ncsnv2" else set()
    assert {path[-1].name for path, _ in leaves} == {"weight", "bias"} | parts


def test_dtypes(getkey):
    net = _ncsnpp(compute_dtype=jnp.bfloat16)
    x = _image(getkey, dtype=jnp.bfloat16)
    half = _call(net, jnp.asarray(0.5, jnp.bfloat16), x)
    assert half.dtype == jnp.bfloat16
    full = _call(_ncsnpp(), jnp.asarray(0.5, jnp.float32), x.astype(jnp.float32))
    assert full.dtype == jnp.float32
    assert 1e-4 < _relative(half, full) < 0.1


@pytest.mark.slow
def test_what_the_time_input_means(getkey):
    # One function of x, divided by the σ of the time input; between levels the nearest is embedded.
    x = _image(getkey)
    net, sigmas = _BUILD["levels"](), 50.0 * (0.01 / 50) ** (np.arange(100) / 99)
    inner = _ncsnpp(**_VP)

    def plain(c_noise):
        return np.asarray(_call(inner, jnp.asarray(c_noise, jnp.float32), x))

    for i in (0, 41, 99):
        out = _call(net, jnp.asarray(np.log(sigmas[i]), jnp.float32), x)
        assert _relative(out, plain(i) / sigmas[i]) < 1e-5
    between = 0.3 * np.log(sigmas[41]) + 0.7 * np.log(sigmas[42])
    out = _call(net, jnp.asarray(between, jnp.float32), x)
    assert _relative(out, plain(42) / np.exp(between)) < 1e-5
    net = _BUILD["ncsnv2"]()
    one = _call(net, jnp.asarray(0.0, jnp.float32), x)
    other = _call(net, jnp.asarray(2.0, jnp.float32), x)
    assert _relative(np.asarray(other) * np.exp(2), one) < 1e-6


@pytest.mark.parametrize(
    ("name", "process", "parameterisation"),
    [
        ("fourier", eqd.VESDE(), eqd.PredictScore()),
        ("levels", eqd.VESDE(), eqd.PredictScore()),
        ("positional", eqd.VPSDE(), eqd.PredictNoise()),
        ("ddpm", eqd.cosine_schedule(1000), eqd.PredictNoise()),
    ],
)
def test_a_denoiser_needs_no_c_noise(getkey, name, process, parameterisation):
    # With a net that returns F, ε̂ is −F before the division by σ, or F itself.
    net, x = _BUILD[name](), _image(getkey)
    t = 700 if name == "ddpm" else 0.7
    c_noise = process.c_noise(t)
    if isinstance(parameterisation, eqd.PredictScore):
        assert abs(c_noise - jnp.log(process.sigma(t))) < 1e-5
    denoiser = eqd.Denoiser(net, process, parameterisation)
    noise = quick_jit(lambda x: denoiser(t, x).noise)(x)
    out = _call(net, c_noise, x)
    scale = -process.sigma(t) if isinstance(parameterisation, eqd.PredictScore) else 1.0
    assert _relative(noise, np.asarray(out) * float(scale)) < 1e-5


def test_centring(getkey):
    x = _image(getkey)
    for name, build in (("fourier", _ncsnpp), ("ncsnv2", _ncsnv2)):
        c_noise = jnp.asarray(0.3, jnp.float32)
        centred = _call(build(), c_noise, x)
        moved = _call(build(centred=False), c_noise, (x + 1) / 2)
        assert _relative(moved, centred) < 1e-4, name


def test_unconditional_networks_ignore_the_time_input(getkey):
    net, x = _ddpm(conditional=False), _image(getkey)
    assert net.time_embedding is None
    one, two = (_call(net, jnp.asarray(t, jnp.float32), x) for t in (1.0, 9.0))
    assert jnp.array_equal(one, two)
    assert _relative(_call(_ddpm(), 9.0, x), _call(_ddpm(), 1.0, x)) > 1e-3


def test_classes_and_dropout(getkey):
    x, key = _image(getkey), getkey()
    net = _ncsnpp(num_classes=3, dropout=0.5)
    c_noise = jnp.asarray(0.3, jnp.float32)
    params, static = eqx.partition(net, eqx.is_inexact_array)
    run = quick_jit(lambda c, key: eqx.combine(params, static)(c_noise, x, c, key=key))
    one, other = (run(jnp.asarray(c), None) for c in (0, 1))
    assert _relative(one, other) > 1e-3
    dropped = run(jnp.asarray(0), key)
    assert _relative(dropped, one) > 1e-3
    assert jnp.array_equal(dropped, run(jnp.asarray(0), key))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        dict(progressive="output_skip", progressive_input="input_skip", progressive_combine="cat"),
        dict(progressive="residual", block="ddpm", fir_kernel=None),
    ],
)
def test_sides_need_not_be_equal(getkey, options):
    # Height and width play the same role: transposed image and kernels give a transposed output.
    net = _ncsnpp(channel_mult=(1, 2), attention_downsamples=(2,), **options)
    x, c_noise = _image(getkey, 2, 4, 12), jnp.asarray(0.3, jnp.float32)
    if options["progressive"] == "residual":
        # Song's padding is not the same on both ends, but it is along both axes.
        assert unwrapped(net).body.encoder[0].resample.conv.padding == ((0, 1), (0, 1))
    swapped = jax.tree.map(lambda p: jnp.swapaxes(p, 1, 2) if p.ndim == 4 else p, net)
    out = _call(net, c_noise, x)
    assert out.shape == (2, 4, 12)
    again = jnp.swapaxes(_call(swapped, c_noise, jnp.swapaxes(x, 1, 2)), 1, 2)
    assert _relative(again, out) < 1e-5


@pytest.mark.slow
def test_batch_is_a_loop_and_remat_changes_nothing(getkey):
    options = dict(dropout=0.3)
    x, c_noises = _image(getkey, 2, 2, 4, 4), jnp.asarray([0.3, -1.0], jnp.float32)
    keys = jax.random.split(getkey(), 2)

    def gradient(net):
        params, static = eqx.partition(net, eqx.is_inexact_array)

        def loss(params):
            net = eqx.combine(params, static)
            out = jax.vmap(lambda t, x, k: net(t, x, key=k))(c_noises, x, keys)
            return jnp.sum(out**2), out

        return quick_jit(jax.grad(loss, has_aux=True))(params)

    net = _ncsnpp(**options)
    plain, out = gradient(net)
    remat, again = gradient(_ncsnpp(remat=True, **options))
    assert _relative(again, out) < 1e-6
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        assert _relative(b, a) < 1e-4
    assert _relative(_call(net, c_noises[1], x[1], None, keys[1]), out[1]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fourier", "ncsnv2"])
def test_gradients_are_finite_differences(getkey, x64, name):
    build, options = (
        (_ncsnv2, {})
        if name == "ncsnv2"
        else (_ncsnpp, dict(channel_mult=(1, 2), progressive="residual"))
    )
    net = build(compute_dtype=jnp.float64, **options)
    params, static = eqx.partition(net, eqx.is_inexact_array)
    params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
    rng = np.random.default_rng(1)
    tangent = jax.tree.map(lambda p: jnp.asarray(0.05 * rng.standard_normal(p.shape)), params)
    x, dx = _image(getkey, dtype=jnp.float64), _image(getkey, dtype=jnp.float64)

    def f(params, x):
        return jnp.sum(jnp.sin(eqx.combine(params, static)(0.3, x)))

    f_jit = quick_jit(f)

    def along(e):
        return f_jit(jax.tree.map(lambda p, dp: p + e * dp, params, tangent), x + e * dx)

    h = 1e-5
    difference = (along(h) - along(-h)) / (2 * h)
    _, forward = quick_jit(lambda p, x: jax.jvp(f, (p, x), (tangent, dx)))(params, x)
    np.testing.assert_allclose(forward, difference, rtol=1e-5)


def test_pieces_of_ncsnv2(getkey):
    x = np.asarray(_image(getkey, 5, 6, 2))
    pooled = max_pool(jnp.asarray(x))
    padded = np.pad(x, ((2, 2), (2, 2), (0, 0)), constant_values=-np.inf)
    expected = [[padded[i : i + 5, j : j + 5].max((0, 1)) for j in range(6)] for i in range(5)]
    np.testing.assert_array_equal(pooled, expected)
    # A bilinear function stays one, and corners stay where they are.
    row, column = np.mgrid[:3, :4].astype(np.float32)
    plane = jnp.asarray((1 + 2 * row) * (3 - column))[..., None]
    row, column = np.mgrid[:5, :7].astype(np.float32) / 2
    large = enlarge(plane, 5, 7)[..., 0]
    np.testing.assert_allclose(large, (1 + 2 * row) * (3 - column), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_initialisation_is_songs(getkey):
    shape = nn.UNetShape(2, 2, 32, 1, (1,), (1,))
    style = nn.styles.ncsnpp()
    net = nn.UNet(shape, style, nn.embeddings.score_sde(), key=getkey())
    block, attention = net.body.encoder[0].blocks[0], net.body.encoder[0].attentions[0]
    # U(−√(3/n), √(3/n)) with n the mean of both fans has the variance 1/n.
    weight = np.asarray(block.conv1.weight)
    assert np.max(np.abs(weight)) <= np.sqrt(3 / (32 * 9))
    assert abs(np.std(weight) * np.sqrt(32 * 9) - 1) < 0.02
    # q, k and v are three maps of scale 0.1 in the official code.
    assert abs(np.std(np.asarray(attention.qkv.weight)) * np.sqrt(32 / 0.1) - 1) < 0.05
    for small in (block.conv2, attention.out, net.body.out.conv):
        assert 0 < np.max(np.abs(small.weight)) < 1e-5 and not np.any(small.bias)


def _ones(*shape):
    return jnp.ones(shape, jnp.float32)


REFUSED = [
    (
        lambda: _ncsnpp(embedding="positional", sigma_levels=(1.0, 0.1, 3)),
        r"at least two, got \(1\.0, 0\.1, 3\)",
    ),
    (lambda: _ncsnpp(conditional=False, num_classes=2), "takes neither classes nor augmentations"),
    (lambda: _ncsnpp(frequencies=(1.0, 2.0, 3.0)), "3 frequencies"),
    (lambda: _ncsnv2(channel_mult=(1, 2), dilations=(1, 1)), "last two of equal width"),
    (
        lambda: check_variant("progressive_combine", "add", ("sum", "cat")),
        "is one of 'sum', 'cat'; got 'add'",
    ),
    (lambda: _ddpm(num_res_blocks=0), "num_res_blocks=0 and 1 levels"),
    (
        lambda: _ncsnpp(channel_mult=(1, 1, 1))(0.1, _ones(2, 8, 30)),
        "UNet takes images whose sides are multiples of 4, got width 30.* 28 and 32",
    ),
    (lambda: _ncsnv2()(0.1, _ones(2, 4, 4), jnp.asarray(1)), "has no classes"),
    (
        lambda: _ncsnv2(channel_mult=(1, 1, 1), dilations=(1, 1, 2))(0.1, _ones(2, 3, 4)),
        "multiples of 2, got height 3",
    ),
]


@pytest.mark.parametrize(("make", "match"), REFUSED)
def test_refuses(make, match):
    with pytest.raises(ValueError, match=match):
        make()
