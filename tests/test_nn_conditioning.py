"""The conditioning inputs of every network: the precision of its time input, and its classes.

What depends on neither is replaced by a trunk that adds the embedding's mean to the image, which
compiles at once.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_network
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import eqdiff.nn as nn
from eqdiff.nn import _flags
from eqdiff.nn._check import check_c_noise


class Trunk(eqx.Module):
    """Stands for a U-Net's body, or for a block of a DiT or an MLP."""

    def __call__(self, h, embedding, *key_and_context):
        channels = jnp.arange(h.shape[-1], dtype=h.dtype)
        return h + jnp.broadcast_to(jnp.mean(embedding).astype(h.dtype) * channels, h.shape)


class Head(eqx.Module):
    def __call__(self, image):
        return jnp.mean(image, axis=(0, 1))


class Listening(eqx.Module):
    """A trunk that keeps every embedding that it is given."""

    heard: list = eqx.field(static=True)

    def __call__(self, h, embedding, *key_and_context):
        self.heard.append(np.asarray(embedding))
        return h


_SMALL = dict(channels=16, num_res_blocks=1, channel_mult=(1,), attention_downsamples=())
_TWO = dict(in_channels=2, out_channels=2)
_OPENAI = dict(**_SMALL, norm_groups=4, num_heads=1)
_LEVELS = dict(embedding="positional", scale_by_sigma=False, sigma_levels=(0.01, 50.0, 1000))

# Every network with a time embedding, but for its number of classes; `SuperResolution` wraps one.
BUILD = {
    "UNet": lambda **o: _flags.openai_unet(**_TWO, **_OPENAI, **o),
    "DDPM": lambda **o: _flags.ddpm(**_TWO, **_SMALL, norm_groups=4, **o),
    "NCSNpp": lambda **o: _flags.ncsnpp(**_TWO, **_SMALL, scale_by_sigma=False, **o),
    "levels": lambda **o: _flags.ncsnpp(**_TWO, **_SMALL, **_LEVELS, **o),
    "SongUNet": lambda **o: _flags.edm_song(**_TWO, **_SMALL, **o),
    "DhariwalUNet": lambda **o: _flags.edm_dhariwal(**_TWO, **_SMALL, channels_per_head=4, **o),
    "DiT": lambda **o: nn.DiT(2, 2, 2, channels=16, depth=1, num_heads=2, **o),
    "MLP": lambda **o: nn.MLP(32, 32, 16, 1, **o),
    "SuperResolution": lambda **o: nn.SuperResolution(
        _flags.openai_unet(in_channels=4, out_channels=4, **_OPENAI, **o)
    ),
    "UNetClassifier": lambda **o: _flags.openai_classifier(
        **{"in_channels": 2, "num_classes": 2, **_OPENAI, "channels_per_head": 4, **o}
    ),
}
WITH_CLASSES = [name for name in BUILD if name not in ("levels", "UNetClassifier")]


def build(name, trunk=None, **options):
    """The network, with random weights and without its trunk."""
    net = random_network(lambda key: BUILD[name](**options, key=key))
    trunk = Trunk() if trunk is None else trunk
    if name in ("DiT", "MLP"):
        return eqx.tree_at(lambda net: net.blocks, net, (trunk,))
    if name == "SuperResolution":
        return eqx.tree_at(lambda net: net.net.body, net, trunk)
    if name == "UNetClassifier":
        return eqx.tree_at(lambda net: (net.body, net.head), net, (trunk, Head()))
    return eqx.tree_at(lambda net: net.body, net, trunk)


def example(name, dtype=jnp.float32):
    x = np.random.default_rng(0).standard_normal((2, 4, 4))
    return jnp.asarray(x.ravel() if name == "MLP" else x, dtype)


def call(net, name, class_label, c_noise=1.0, x=None):
    x = example(name) if x is None else x
    args = (
        (jnp.zeros((2, 2, 2), x.dtype), class_label) if name == "SuperResolution" else class_label
    )
    return net(c_noise, x, args)


@pytest.mark.parametrize("name", [name for name in BUILD if name != "SuperResolution"])
def test_the_time_input_keeps_its_precision(name):
    """In bfloat16 the steps 998 and 999 are one number, and so are neighbouring noise levels."""
    step = np.log(50.0 / 0.01) / 999
    times = [np.log(50) - 4 * step, np.log(50) - 5 * step] if name == "levels" else [998, 999]
    times = [jnp.asarray(time, jnp.float32) for time in times]
    assert len({float(time.astype(jnp.bfloat16)) for time in times}) == 1

    def embeddings(dtype, **options):
        heard = []
        net = build(name, Listening(heard), **options)
        for c_noise in times:
            net(c_noise, example(name, dtype))
        return heard

    expected = embeddings(jnp.float32)
    assert np.max(np.abs(expected[1] - expected[0])) > 1e-3
    half = {} if name == "MLP" else {"compute_dtype": jnp.bfloat16}
    for found in (embeddings(jnp.bfloat16, **half), embeddings(jnp.float16)):
        np.testing.assert_array_equal(found, expected)


def test_time_inputs_of_every_kind_are_the_same_number():
    net = build("UNet")
    expected = call(net, "UNet", None, jnp.asarray(998, jnp.float32))
    for c_noise in (998, 998.0, np.float64(998), *(jnp.asarray(998, d) for d in ("i2", "u4"))):
        np.testing.assert_allclose(call(net, "UNet", None, c_noise), expected, atol=1e-6)


def test_time_inputs_of_a_batch_are_refused():
    with pytest.raises(ValueError, match=r"MLP takes one c_noise per example, got shape \(7,\)"):
        check_c_noise(jnp.zeros(7), jnp.float32, "MLP")


# Class labels out of range, and those that are not one integer.
NOT_A_CLASS = [
    *((label, "class labels from 0 to 2.* got ") for label in (-1, 4, np.uint8(200), 2**32 + 1)),
    *((label, "write label - 1") for label in (np.int64(2**32 + 1), jnp.asarray(-1, jnp.int32))),
    *((label, "is one integer") for label in (1.0, np.float32(1), True, np.array([1]))),
]


@pytest.mark.parametrize("name", WITH_CLASSES)
def test_classes_that_do_not_exist_are_refused(name):
    net = build(name, num_classes=3)
    for class_label, match in NOT_A_CLASS:
        with pytest.raises(ValueError, match=match):
            call(net, name, class_label)
    # The label after the last is DiT's unconditional one, and nobody else's.
    if name == "DiT":
        assert jnp.all(jnp.isfinite(call(net, name, 3)))
    else:
        with pytest.raises(ValueError, match="3 and takes class labels from 0 to 2, got 3"):
            call(net, name, 3)


@pytest.mark.parametrize("name", WITH_CLASSES)
def test_traced_classes_that_do_not_exist_end_the_program(name):
    net = build(name, num_classes=3)

    @eqx.filter_jit
    @eqx.filter_grad
    def step(net, class_labels):
        return jnp.mean(jax.vmap(lambda label: call(net, name, label))(class_labels))

    for leaf in jax.tree.leaves(step(net, jnp.asarray([0, 2, 1]))):
        assert jnp.all(jnp.isfinite(leaf))
    for bad in (-1, 4):
        with pytest.raises(Exception, match="takes class labels from 0 to 2"):
            step(net, jnp.asarray([0, bad, 1]))


@pytest.mark.parametrize("name", WITH_CLASSES)
def test_whole_numbers_of_every_kind_are_the_same_class(name):
    net = build(name, num_classes=3)
    run = jax.jit(lambda label: call(net, name, label))
    expected = run(jnp.asarray(2, jnp.int32))
    assert jnp.max(jnp.abs(run(jnp.asarray(1, jnp.int32)) - expected)) > 1e-3
    for dtype in (np.uint8, np.int16, np.uint32, np.int64):
        np.testing.assert_allclose(run(dtype(2)), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(call(net, name, dtype(2)), expected, rtol=1e-5, atol=1e-6)


def test_a_byte_is_compared_with_more_classes_than_it_can_count():
    net = build("MLP", num_classes=1000)
    run = jax.jit(lambda label: call(net, "MLP", label))
    np.testing.assert_allclose(run(np.uint8(200)), call(net, "MLP", 200), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_transformations_of_a_network_with_classes():
    """The check has both derivatives, batches with and without jit, and runs on a mesh."""
    net, x = build("MLP", num_classes=3), example("MLP")
    labels, xs = jnp.asarray([0, 2, 1, 2]), jnp.stack([x, -x, 2 * x, x])

    def run(label, x):
        return net(1.0, x, label)

    expected = np.stack([run(int(label), x) for label, x in zip(labels, xs, strict=True)])
    mesh = Mesh(np.array(jax.devices()[:2]), ("batch",))
    spec = PartitionSpec("batch")
    sharded = jax.device_put((labels, xs), NamedSharding(mesh, spec))
    batch = jax.vmap(run)
    for found in (
        batch(labels, xs),
        jax.jit(batch)(labels, xs),
        jax.jit(batch)(*sharded),
        jax.jit(jax.shard_map(batch, mesh=mesh, in_specs=spec, out_specs=spec))(labels, xs),
        jax.lax.map(lambda a: run(*a), (labels, xs)),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert eqx.filter_eval_shape(batch, labels, xs).shape == expected.shape

    def of_traced(derivative):
        return jax.jit(lambda label: derivative(lambda x: run(label, x))(x))(labels[1])

    forward, reverse = of_traced(jax.jacfwd), of_traced(jax.jacrev)
    np.testing.assert_allclose(forward, reverse, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(forward, jax.jacrev(lambda x: run(2, x))(x), rtol=1e-4, atol=1e-5)
    assert np.max(np.abs(forward)) > 1e-2
    curvature = of_traced(lambda f: jax.hessian(lambda x: jnp.sum(f(x) ** 2)))
    assert np.all(np.isfinite(curvature))
    with pytest.raises(Exception, match="class labels from 0 to 2"):
        batch(labels + 1, xs)
