"""`nn.UNetClassifier`: its heads against their definitions in NumPy, and its place in guidance."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_network
from toys import quick_jit

import eqdiff as eqd
import eqdiff.interop as interop
import eqdiff.nn as nn
from eqdiff.nn import _flags


POOLS = {
    "average": nn.AveragePool(),
    "attention": nn.AttentionPool(8, channels_per_head=4),
    "spatial": nn.SpatialPool(hidden_size=12),
    "spatial_v2": nn.SpatialPool(normalise=True, hidden_size=12),
}


def _dtype():
    return jnp.float64 if jax.config.jax_enable_x64 else jnp.float32


@ft.cache
def _net(pool, **options):
    sizes = dict(channels=8, num_res_blocks=1, channel_mult=(1, 2), attention_downsamples=(2,))
    sizes |= dict(channels_per_head=4, norm_groups=4, compute_dtype=_dtype()) | options
    sizes |= dict(in_channels=2, num_classes=5, pool=POOLS[pool])
    net = random_network(lambda key: _flags.openai_classifier(**sizes, key=key))
    return jax.tree.map(lambda p: jnp.asarray(np.asarray(p), _dtype()), net)


def _silu(a):
    return a / (1 + np.exp(-a))


def _group_norm(a, norm):
    # Channels last, of an image or a vector.
    grouped = np.reshape(a, (-1, norm.groups, a.shape[-1] // norm.groups))
    mean, variance = (f(grouped, axis=(0, 2), keepdims=True) for f in (np.mean, np.var))
    a = np.reshape((grouped - mean) / np.sqrt(variance + 1e-5), a.shape)
    return a * np.asarray(norm.weight) + np.asarray(norm.bias)


def _affine(a, linear):
    return a @ np.asarray(linear.weight) + np.asarray(linear.bias)


def _by_definition(pool, head, images):
    images = [np.asarray(image, np.float64) for image in images]
    if pool.startswith("spatial"):
        features = np.concatenate([image.mean((0, 1)) for image in images])
        h = _affine(features, head.linear1)
        h = np.maximum(h, 0) if pool == "spatial" else _silu(_group_norm(h, head.norm))
        return _affine(h, head.linear2)
    pixels = _silu(_group_norm(images[-1], head.norm)).reshape(-1, images[-1].shape[-1])
    if pool == "average":
        return _affine(pixels.mean(0), head.linear)
    # All tokens ask, as in the official code, and the first answer is kept.
    tokens = np.concatenate([pixels.mean(0)[None], pixels]) + np.asarray(head.positions)
    q, k, v = np.split(_affine(tokens, head.qkv), 3, axis=1)
    answers = []
    for part in np.split(np.arange(q.shape[1]), head.num_heads):
        logits = q[:, part] @ k[:, part].T / np.sqrt(len(part))
        weights = np.exp(logits - logits.max(1, keepdims=True))
        answers.append(weights / weights.sum(1, keepdims=True) @ v[:, part])
    return _affine(np.concatenate(answers, 1), head.out)[0]


@pytest.mark.parametrize("pool", POOLS)
def test_heads_are_their_definitions(getkey, pool):
    net = _net(pool)
    x = jax.random.normal(getkey(), (2, 8, 8), _dtype())

    @quick_jit
    def run(x):
        embedding = net.time_embedding(jnp.asarray(3.0, _dtype()), _dtype())
        return net(3, x), net.body(jnp.moveaxis(x, 0, -1), embedding)

    logits, images = run(x)
    assert logits.shape == (5,) and logits.dtype == x.dtype
    # First convolution, block, downsampling, block; and the middle.
    shapes = [(8, 8, 8), (8, 8, 8), (4, 4, 8), (4, 4, 16), (4, 4, 16)]
    assert [image.shape for image in images] == shapes
    expected = _by_definition(pool, net.head, images)
    tolerance = 1e-10 if jax.config.jax_enable_x64 else 1e-4
    np.testing.assert_allclose(logits, expected, rtol=tolerance, atol=tolerance)


def test_at_first_average_pooling_prefers_no_class(getkey):
    head = nn.AveragePool().build((4, 8), 2, 3, 4, getkey())
    images = [jax.random.normal(getkey(), (4, 4, 8), jnp.float32)]
    np.testing.assert_array_equal(head(images), np.zeros(3, np.float32))


# One level, without attention but in the middle: what does not depend on them compiles fast.
_ONE = dict(channel_mult=(1,), attention_downsamples=())


def test_guidance_and_loss_take_it(getkey):
    """The loss is the cross-entropy of its logits at x_t, and guidance moves the score by the
    gradient of log p."""
    net, schedule = _net("attention", **_ONE), eqd.cosine_schedule(20)
    classifier = eqd.Classifier(net, schedule)
    x0 = jax.random.normal(getkey(), (2, 8, 8), _dtype())
    x, y, t = jax.random.normal(getkey(), x0.shape, x0.dtype), jnp.asarray(3), 7
    key, scale = getkey(), 2.0
    denoiser = eqd.Denoiser(lambda c_noise, x, args, *, key=None: 0.5 * x, schedule)

    def log_prob(x):
        return jax.nn.log_softmax(net(schedule.c_noise(t).astype(x.dtype), x))[y]

    @quick_jit
    def run(x, y):
        guided = eqd.ClassifierGuidance(eqd.FixedArgs(denoiser), classifier, scale)
        noise = jax.random.normal(jax.random.split(key)[0], x0.shape, x0.dtype)
        noisy = schedule.perturb(t, x0, noise)
        loss = eqd.classifier_loss(classifier, t, x0, y, key=key)
        shift = scale * schedule.sigma(t).astype(x.dtype) * jax.grad(log_prob)(x)
        return loss, -log_prob(noisy), guided(t, x, y).noise, 0.5 * x - shift

    loss, expected, noise, shifted = run(x, y)
    tolerance = 1e-10 if jax.config.jax_enable_x64 else 1e-4
    np.testing.assert_allclose(loss, expected, rtol=tolerance)
    np.testing.assert_allclose(noise, shifted, rtol=tolerance, atol=tolerance)
    assert np.max(np.abs(noise - 0.5 * x)) > 1e-3


def test_dropout_batches_and_rematerialisation(getkey):
    net = _net("spatial", dropout=0.5, **_ONE)
    again = _net("spatial", dropout=0.5, remat=True, **_ONE)
    x = jax.random.normal(getkey(), (2, 2, 4, 4), _dtype())
    keys = jax.random.split(getkey(), 2)

    @quick_jit
    def run(x, keys):
        batch = jax.vmap(lambda x, key: net(1.0, x, key=key))(x, keys)
        return batch, again(1.0, x[1], key=keys[1]), net(1.0, x[1])

    batch, one, without = run(x, keys)
    np.testing.assert_allclose(batch[1], one, rtol=1e-4, atol=1e-5)
    assert not np.allclose(one, without, atol=1e-3)


def test_bfloat16_pools_in_float32(getkey):
    net, wide = _net("average", compute_dtype=jnp.bfloat16, **_ONE), _net("average", **_ONE)
    x = jax.random.normal(getkey(), (2, 4, 4), _dtype())
    rounded, exact = quick_jit(lambda x: (net(1.0, x), wide(1.0, x)))(x)
    error = np.max(np.abs(rounded - exact)) / np.max(np.abs(exact))
    # bfloat16 rounds to 2^-9 = 0.002, a dozen times in a row.
    assert 1e-5 < error < 0.03


@pytest.mark.parametrize("pool", POOLS)
def test_files_hold_it(tmp_path, pool):
    net = jax.tree.map(lambda p: p.astype(jnp.float32), _net(pool))
    eqd.save_model(tmp_path / "net", eqd.Denoiser(net, eqd.cosine_schedule(20)))
    again = eqd.load_model(tmp_path / "net").net
    assert eqx.tree_equal(again, net, typematch=True)


def _message(function):
    with pytest.raises(ValueError) as error:
        function()
    return str(error.value)


def test_errors(getkey):
    net, x = _net("attention"), jnp.zeros((2, 8, 8), _dtype())
    assert "eqdiff.Classifier(net, process)" in _message(lambda: net(1.0, x, jnp.asarray(1)))
    assert "(2, height, width), got (3, 8, 8)" in _message(
        lambda: net(1.0, jnp.zeros((3, 8, 8), _dtype()))
    )
    call = ft.partial(eqx.filter_eval_shape, net, 1.0)
    message = _message(lambda: call(jnp.zeros((2, 8, 12), _dtype())))
    assert "images of side 8, got 8×12" in message and "AveragePool()" in message

    def build(**options):
        sizes = dict(channels=8, num_res_blocks=1, channel_mult=(1, 2), norm_groups=4) | options
        sizes |= dict(in_channels=2, num_classes=5)
        eqx.filter_eval_shape(lambda key: _flags.openai_classifier(**sizes, key=key), getkey())

    assert "heads of 64" in _message(build)
    options = dict(channels_per_head=None, attention_downsamples=())
    message = _message(lambda: build(**options, pool=nn.AttentionPool(8, 5)))
    assert "AttentionPool: 16 channels cannot be split into heads of 5" in message
    message = _message(lambda: build(**options, pool=nn.AttentionPool(7, 4)))
    assert "side 7 cannot go down 2 levels" in message and "multiple of 2" in message


_CONFIG = dict(
    image_size=8,
    in_channels=2,
    model_channels=32,
    out_channels=5,
    num_res_blocks=1,
    attention_resolutions=(),
    channel_mult=(1,),
)


def test_errors_of_official_configs():
    load = ft.partial(interop.openai_classifier, {})
    message = _message(lambda: load({**_CONFIG, "num_classes": 3}))
    assert "EncoderUNetModel; unknown: ['num_classes'], missing: []" in message
    missing = {k: v for k, v in _CONFIG.items() if k not in ("image_size", "model_channels")}
    assert "missing: ['image_size', 'model_channels']" in _message(lambda: load(missing))
    assert "got 'max'" in _message(lambda: load({**_CONFIG, "pool": "max"}))
    assert "needs num_head_channels" in _message(lambda: load({**_CONFIG, "pool": "attention"}))
    assert "got dims=3" in _message(lambda: load({**_CONFIG, "dims": 3}))
    message = _message(lambda: load(_CONFIG))
    # Of 46 weights that are missing some are named.
    assert "fit this UNetClassifier (46 problems)" in message
    assert "missing input_blocks.1.0.in_layers.0.weight (32,)" in message
    message = _message(lambda: interop.openai_unet({}, {**_CONFIG, "pool": "adaptive"}))
    assert "OpenAI's UNetModel; unknown: ['pool'], missing: []" in message
