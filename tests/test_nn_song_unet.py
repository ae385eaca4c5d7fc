"""`nn.UNet` as EDM's networks: contract, invariances, and what their errors say."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_network
from toys import quick_jit

import eqdiff as eqd
import eqdiff.nn as nn
from eqdiff.nn import _flags, Conditions


_CHANNELS = dict(in_channels=2, out_channels=2)
_SMALL = dict(channels=8, num_res_blocks=1, channel_mult=(1,), attention_downsamples=())


def _song(**kwargs):
    options = {**_SMALL, "dropout": 0.0, **kwargs}
    return random_network(lambda key: _flags.edm_song(**_CHANNELS, **options, key=key))


def _dhariwal(**kwargs):
    options = {**_SMALL, "channels_per_head": 4, "dropout": 0.0, **kwargs}
    return random_network(lambda key: _flags.edm_dhariwal(**_CHANNELS, **options, key=key))


_BOTH = pytest.mark.parametrize("build", [_song, _dhariwal])


def _runner(net, c_noise=0.3):
    params, static = eqx.partition(net, eqx.is_inexact_array)
    run = quick_jit(lambda p, x, args, key: eqx.combine(p, static)(c_noise, x, args, key=key))
    return lambda x, args=None, key=None: run(params, x, args, key)


def _image(getkey, *shape):
    return jax.random.normal(getkey(), shape or (2, 4, 4), jnp.float32)


def _relative(actual, expected):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return np.max(np.abs(actual - expected)) / np.max(np.abs(expected))


@_BOTH
def test_conditions(getkey, build):
    run, x = _runner(build(num_classes=3, augment_size=2)), _image(getkey)
    one = run(x, jnp.asarray(1))
    assert jnp.array_equal(one, run(x, Conditions(jnp.asarray(1))))
    # Zeros stand for an example that was not augmented.
    zeros = run(x, Conditions(jnp.asarray(1), jnp.zeros(2, jnp.float32)))
    assert _relative(zeros, one) < 1e-6
    augmented = run(x, Conditions(jnp.asarray(1), jnp.ones(2, jnp.float32)))
    for other in (augmented, run(x, jnp.asarray(2)), run(x)):
        assert _relative(other, one) > 1e-3


@_BOTH
def test_dropped_classes_are_no_classes(getkey, build):
    run, x = _runner(build(num_classes=3, class_dropout=0.5)), _image(getkey)
    given, without = run(x, jnp.asarray(1)), run(x)
    outs = [run(x, jnp.asarray(1), key) for key in jax.random.split(getkey(), 8)]
    dropped = [bool(_relative(out, without) < 1e-6) for out in outs]
    kept = [bool(_relative(out, given) < 1e-6) for out in outs]
    assert any(dropped) and any(kept)
    assert all(a != b for a, b in zip(dropped, kept, strict=True))


@_BOTH
def test_dropout_happens_where_there_is_a_key(getkey, build):
    run, x, key = _runner(build(dropout=0.5)), _image(getkey), getkey()
    none, one = run(x), run(x, None, key)
    assert _relative(one, none) > 1e-3
    assert jnp.array_equal(one, run(x, None, key))


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        lambda **kwargs: _song(encoder="skip", decoder="skip", kernel=(1, 3, 3, 1), **kwargs),
        _dhariwal,
    ],
)
def test_sides_need_not_be_equal(getkey, build):
    net = build(channel_mult=(1, 2), attention_downsamples=(2,))
    x = _image(getkey, 2, 4, 12)
    swapped = jax.tree.map(lambda p: jnp.swapaxes(p, 1, 2) if p.ndim == 4 else p, net)
    out = _runner(net)(x)
    assert out.shape == (2, 4, 12)
    again = jnp.swapaxes(_runner(swapped)(jnp.swapaxes(x, 1, 2)), 1, 2)
    assert _relative(again, out) < 1e-5


@pytest.mark.slow
def test_precision_and_remat(getkey):
    x = _image(getkey)
    full = _runner(_dhariwal())(x)
    half = _runner(_dhariwal(compute_dtype=jnp.bfloat16))(x)
    assert half.dtype == jnp.float32 and 1e-4 < _relative(half, full) < 0.1
    assert _relative(_runner(_dhariwal(remat=True))(x), full) < 1e-6
    assert "remat" in str(jax.make_jaxpr(_dhariwal(remat=True))(0.1, x))


def test_a_denoiser_gives_a_quarter_of_the_logarithm(getkey):
    net, process, x = _song(), eqd.EDMSDE(), _image(getkey)
    sigma = 3.0
    estimate = quick_jit(
        lambda x: eqd.Denoiser(net, process, eqd.EDMPreconditioning())(sigma, x).x0
    )(x)
    # Karras et al. 2022, table 1, for data of deviation a half.
    variance = sigma**2 + 0.25
    inner = _runner(net, math.log(sigma) / 4)(x / math.sqrt(variance))
    expected = 0.25 / variance * x + sigma / 2 / math.sqrt(variance) * inner
    assert _relative(estimate, expected) < 1e-4


@pytest.mark.slow
def test_initialisation_is_edms(getkey):
    net = nn.UNet(
        nn.UNetShape(2, 2, 32, 1, (1,), (1,), num_classes=4),
        nn.styles.edm(),
        nn.embeddings.edm(),
        key=getkey(),
    )
    assert abs(np.std(np.asarray(net.body.encoder[0].blocks[0].conv1.weight)) * 17 - 1) < 0.05
    assert np.max(np.abs(net.body.out.conv.weight)) < 1e-5
    style = nn.styles.edm_adm(heads=nn.styles.HeadsOfAtLeast(4))
    embed = nn.embeddings.edm_adm()
    net = nn.UNet(nn.UNetShape(2, 2, **_SMALL), style, embed, key=getkey())
    assert not np.any(_runner(net)(_image(getkey)))
    # Every block is the identity, and a skip that resamples has no weights.
    shape = nn.UNetShape(2, 2, **{**_SMALL, "channel_mult": (1, 1)})
    net = nn.UNet(shape, style, embed, key=getkey())
    assert net.body.encoder[0].resample.skip is None
    assert net.augment_embedding is None


def _ones(*shape):
    return jnp.ones(shape, jnp.float32)


REFUSED = [
    (
        lambda: _song(augment_size=2)(0.1, _ones(2, 4, 4), Conditions(None, jnp.zeros(3))),
        r"augment_size=2 and takes an augmentation of shape \(2,\)",
    ),
    (lambda: _song()(0.1, _ones(2, 4, 4), jnp.asarray(1)), "num_classes="),
    (lambda: _song()(0.1, _ones(3, 4, 4)), r"\(2, height, width\), got \(3, 4, 4\)"),
    (lambda: _dhariwal(channels_per_head=64), "64 channels per head"),
    (
        lambda: _dhariwal(channel_mult=(1, 1))(0.1, _ones(2, 3, 4)),
        "multiples of 2, got height 3; the nearest are 2 and 4",
    ),
]


@pytest.mark.parametrize(("make", "match"), REFUSED)
def test_refuses(make, match):
    with pytest.raises(ValueError, match=match):
        make()
