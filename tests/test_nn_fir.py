"""Filters and small layers against score_sde's recorded ones, and against their definitions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden
from toys import quick_jit

from eqdiff.nn._c_noise import level_number
from eqdiff.nn._embed import fourier_embedding, fourier_frequencies, sinusoidal_embedding
from eqdiff.nn._fir import downsample, DownsampleConv, filter_axis, upsample, UpsampleConv
from eqdiff.nn._norm import InstanceNormPlus
from eqdiff.nn._resample import average_pool, repeat_pixels


NAME = "public_score_layers"
KERNELS = {"1331": (1, 3, 3, 1), "11": (1, 1), "121": (1, 2, 1)}


def _double():
    return jnp.float64 if jax.config.jax_enable_x64 else jnp.float32


def _images(key):
    return jnp.asarray(load_golden(NAME)[key].transpose(0, 2, 3, 1), _double())


def _assert_images(y, key):
    assert_golden(np.asarray(y).transpose(0, 3, 1, 2), NAME, key)


@pytest.mark.parametrize("kernel", KERNELS)
def test_resampling_is_the_official_one(kernel):
    taps = KERNELS[kernel]
    x, x8 = _images("updown/in/x"), _images("updown/in/x8")
    up = quick_jit(jax.vmap(lambda x: upsample(x, taps)))(x)
    down = quick_jit(jax.vmap(lambda x: downsample(x, taps)))(x8)
    _assert_images(up, f"updown/upsample_2d/{kernel}/out")
    _assert_images(down, f"updown/downsample_2d/{kernel}/out")


@pytest.mark.parametrize("kernel", KERNELS)
def test_resampling_convolutions_are_the_official_ones(getkey, kernel):
    weight = jnp.asarray(load_golden(NAME)["updown/in/w"].transpose(0, 2, 3, 1), _double())
    for cls, key, name in (
        (DownsampleConv, "x8", "conv_downsample_2d"),
        (UpsampleConv, "x", "upsample_conv_2d"),
    ):
        layer = cls(3, 4, KERNELS[kernel], key=getkey())
        bias = jnp.zeros_like(layer.conv.bias)
        layer = eqx.tree_at(lambda l: (l.conv.weight, l.conv.bias), layer, (weight, bias))
        _assert_images(
            quick_jit(jax.vmap(layer))(_images(f"updown/in/{key}")), f"updown/{name}/{kernel}/out"
        )


def test_plain_resampling():
    x, x8 = _images("updown/in/x"), _images("updown/in/x8")
    _assert_images(jax.vmap(repeat_pixels)(x), "updown/naive_upsample_2d/out")
    _assert_images(jax.vmap(average_pool)(x8), "updown/naive_downsample_2d/out")
    np.testing.assert_allclose(
        jax.vmap(lambda x: upsample(x, (1, 1)))(x), jax.vmap(repeat_pixels)(x), rtol=1e-6
    )
    np.testing.assert_allclose(
        jax.vmap(lambda x: downsample(x, (5, 5)))(x8), jax.vmap(average_pool)(x8), atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "up", "down", "padding"),
    [
        ("up2_down1_pad1_2", 2, 1, (1, 2)),
        ("up1_down2_pad2_1", 1, 2, (2, 1)),
        ("up2_down3_pad-1_4", 2, 3, (-1, 4)),
    ],
)
def test_filter_is_the_official_one(name, up, down, padding):
    # The official kernel has two dimensions; a sum of products of one-dimensional ones is one.
    golden = load_golden(NAME)
    x = golden[f"upfirdn2d/{name}/x"].transpose(0, 2, 3, 1)
    u, s, v = np.linalg.svd(golden[f"upfirdn2d/{name}/kernel"].astype(np.float64))
    options = dict(up=up, down=down, padding=padding)
    total = 0
    for i, size in enumerate(s):
        y = filter_axis(jnp.asarray(x, _double()), tuple(size * u[:, i]), 1, **options)
        total = total + filter_axis(y, tuple(v[i]), 2, **options)
    _assert_images(total, f"upfirdn2d/{name}/out")


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_filter_is_its_equation(getkey, size, up, down):
    taps, (before, after) = (0.5, -1.0, 2.0, 0.25, 3.0), (3, 4)
    x = jax.random.normal(getkey(), (size,), _double())
    z = np.zeros(size * up + before + after)
    z[before : before + size * up : up] = x
    expected = [
        sum(tap * z[m + k] for k, tap in enumerate(reversed(taps)))
        for m in range(0, len(z) - len(taps) + 1, down)
    ]
    y = filter_axis(x, taps, 0, up=up, down=down, padding=(before, after))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_doubling_and_halving_keep_a_flat_image():
    # Away from the edge, where zeros come in.
    x = jnp.ones((8, 12, 1), jnp.float32)
    up, down = quick_jit(lambda x: (upsample(x, (1, 3, 3, 1)), downsample(x, (1, 3, 3, 1))))(x)
    np.testing.assert_allclose(up[2:-2, 2:-2], 1, rtol=1e-6)
    np.testing.assert_allclose(down[1:-1, 1:-1], 1, rtol=1e-6)


def test_halving_is_the_transpose_of_doubling(getkey):
    x = jax.random.normal(getkey(), (8, 6, 2), jnp.float32)
    y = jax.random.normal(getkey(), (4, 3, 2), jnp.float32)

    @quick_jit
    def products(x, y):
        down, up = downsample(x, (1, 3, 3, 1)), upsample(y, (1, 3, 3, 1))
        return jnp.vdot(down, y), jnp.vdot(x, up) / 4

    a, b = products(x, y)
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_filter_without_gain():
    with pytest.raises(ValueError, match="sum is not zero, got \\(1, -1\\)"):
        downsample(jnp.ones((4, 4, 1), jnp.float32), (1, -1))


def test_embeddings():
    golden = load_golden(NAME)
    t = jnp.asarray(golden["timestep_embedding/16/t"], _double())
    out = jax.vmap(lambda t: sinusoidal_embedding(t, 16, cosine_first=False, endpoint=True))(t)
    assert_golden(out, NAME, "timestep_embedding/16/out")
    frequencies = tuple(float(w) for w in golden["fourier/W"])
    c_noises = jnp.log(jnp.asarray(golden["fourier/sigma"], _double()))
    out = jax.vmap(lambda t: fourier_embedding(t, frequencies))(c_noises)
    assert_golden(out, NAME, "fourier/out")


def test_frequencies_are_normal_and_constant():
    w = np.asarray(fourier_frequencies(4096, 16.0))
    assert fourier_frequencies(4096, 16.0) == tuple(w)
    assert abs(np.mean(w)) < 1 and abs(np.std(w) / 16 - 1) < 0.05


def test_instance_norm_plus(getkey):
    golden = load_golden(NAME)
    norm = InstanceNormPlus(3, key=getkey())
    parts = [jnp.asarray(golden[f"instancenormplus/{p}"]) for p in ("alpha", "gamma", "beta")]
    norm = eqx.tree_at(lambda n: (n.alpha, n.gamma, n.beta), norm, parts)
    _assert_images(quick_jit(jax.vmap(norm))(_images("instancenormplus/x")), "instancenormplus/out")
    with pytest.raises(ValueError, match="at least 2, got 1"):
        InstanceNormPlus(1, key=getkey())


def test_level_numbers():
    sigmas = load_golden(NAME)["get_sigmas/sigmas"]
    c_noises = jnp.asarray(np.log(sigmas), jnp.float32)
    found = jax.vmap(lambda c: level_number(c, (0.01, 50.0, 1000)))(c_noises)
    np.testing.assert_array_equal(found, np.arange(1000))
    # Beyond the levels the nearest is the last.
    outside = [level_number(jnp.asarray(v, jnp.float32), (0.01, 50.0, 1000)) for v in (-9.0, 9.0)]
    assert outside == [999, 0]
