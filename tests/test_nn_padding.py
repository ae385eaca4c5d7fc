"""Networks that know their boundary have its symmetries, down to the middle of the U-Net."""

import dataclasses
import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_network
from toys import quick_jit

import eqdiff as eqd
from eqdiff.nn._conv import Conv


PERIODIC, REFLECTING, SPHERE = eqd.PeriodicPadding(), eqd.ReflectingPadding(), eqd.LatLonPadding()
STYLES = {
    "strided": eqd.nn.styles.Strided(),
    "pooling": eqd.nn.styles.Pooling(),
    "in_block": eqd.nn.styles.InBlock(),
}


@ft.cache
def network(padding, resampling="strided", dims=2, attention=(2,)):
    shape = eqd.nn.UNetShape(2, 3, 8, 1, (1, 2), attention, dims=dims)
    norm = eqd.nn.styles.Norm(groups=4)
    style = eqd.nn.Style(STYLES[resampling], norm, padding=padding)
    net = random_network(lambda key: eqd.nn.UNet(shape, style, eqd.nn.embeddings.iddpm(), key=key))
    return jax.tree.map(lambda p: jnp.asarray(p, _dtype()), net)


def _dtype():
    return jnp.float64 if jax.config.jax_enable_x64 else jnp.float32


def run(net, x):
    return quick_jit(lambda x: net(jnp.float32(3.0), x))(x)


def close(a, b):
    scale = np.max(np.abs(np.asarray(b)))
    np.testing.assert_allclose(a / scale, b / scale, atol=1e-4)


@pytest.mark.parametrize(
    ("resampling", "dims", "shape"),
    [
        ("strided", 2, (8, 6)),
        ("strided", 3, (3, 6, 8)),
        ("pooling", 1, (12,)),
        pytest.param("in_block", 2, (8, 6), marks=pytest.mark.slow),
    ],
)
def test_periodic_networks_commute_with_shifts(resampling, dims, shape, getkey):
    """By multiples of the downsampling; where the depth of a volume stays, by any step."""
    x = jax.random.normal(getkey(), (2, *shape), _dtype())
    shift, axes = (1, 4, -2)[-dims:] if dims == 3 else (4, -2)[-dims:], tuple(range(1, dims + 1))
    net = network(PERIODIC, resampling, dims)
    moved = run(net, jnp.roll(x, shift, axes))
    close(moved, jnp.roll(run(net, x), shift, axes))
    # With zeros beyond the edge it does not.
    zeros = network(eqd.ZeroPadding(), resampling, dims)
    difference = run(zeros, jnp.roll(x, shift, axes)) - jnp.roll(run(zeros, x), shift, axes)
    assert np.max(np.abs(difference)) > 1e-2 * np.max(np.abs(moved))


def test_reflecting_networks_are_periodic_ones_of_twice_the_size(getkey):
    """With kernels that are their own mirror images, whose every layer keeps the mirrored data
    mirrored."""

    def symmetric(net):
        def mirror(layer):
            if not isinstance(layer, Conv):
                return layer
            w = layer.weight
            return eqx.tree_at(lambda c: c.weight, layer, 0.5 * (w + jnp.flip(w, 1)))

        return jax.tree.map(mirror, net, is_leaf=lambda x: isinstance(x, Conv))

    walls = symmetric(network(REFLECTING, "pooling", 1))
    torus = symmetric(network(PERIODIC, "pooling", 1))
    x = jax.random.normal(getkey(), (2, 8), _dtype())
    twice = run(torus, jnp.concatenate([x, jnp.flip(x, 1)], 1))
    close(run(walls, x), twice[:, :8])


def test_networks_on_a_sphere_turn_with_it(getkey):
    """About its axis; beyond the poles it differs from a torus."""
    x = jax.random.normal(getkey(), (2, 4, 8), _dtype())
    net = network(SPHERE)
    out = run(net, x)
    close(run(net, jnp.roll(x, 2, 2)), jnp.roll(out, 2, 2))
    periodic = run(network(PERIODIC), x)
    assert np.max(np.abs(out - periodic)) > 1e-2 * np.max(np.abs(out))


def test_a_channel_has_walls_on_two_sides(getkey):
    padding = eqd.MixedPadding((REFLECTING, PERIODIC))
    x, net = jax.random.normal(getkey(), (2, 4, 8), _dtype()), network(padding)
    out = run(net, x)
    close(run(net, jnp.roll(x, 2, 2)), jnp.roll(out, 2, 2))
    difference = run(net, jnp.roll(x, 2, 1)) - jnp.roll(out, 2, 1)
    assert np.max(np.abs(difference)) > 1e-2 * np.max(np.abs(out))


def test_zeros_cost_nothing():
    """A network without a padding of its own is the same program, to the letter."""
    x = jnp.zeros((2, 8, 8), _dtype())

    def program(style):
        shape = eqd.nn.UNetShape(2, 3, 8, 1, (1, 2), ())

        def call(x, key):
            return eqd.nn.UNet(shape, style, eqd.nn.embeddings.iddpm(), key=key)(3.0, x)

        return str(jax.make_jaxpr(call)(x, jax.random.key(0)))

    style = eqd.nn.Style(STYLES["strided"], eqd.nn.styles.Norm(groups=4))
    # What pads elsewhere, the normalisations do.
    zeros = program(style)
    periodic = program(dataclasses.replace(style, padding=PERIODIC))
    assert "padding=((1, 1), (1, 1))" in zeros and "padding=((1, 1)" not in periodic
    assert len(zeros.splitlines()) < len(periodic.splitlines())


@pytest.mark.parametrize(
    "padding",
    [PERIODIC, eqd.LatLonPadding(REFLECTING), eqd.MixedPadding((eqd.ZeroPadding(), PERIODIC))],
    ids=repr,
)
def test_files_keep_the_padding(padding, tmp_path, getkey):
    net = network(padding)
    path = tmp_path / "model.safetensors"
    eqd.save_model(path, eqd.Denoiser(net, eqd.VPSDE()))
    loaded = eqd.load_model(path).net
    assert loaded.style == net.style
    x = jax.random.normal(getkey(), (2, 4, 8), _dtype())
    np.testing.assert_array_equal(run(loaded, x), run(net, x))


@pytest.mark.parametrize(
    ("padding", "dims", "x", "match"),
    [
        (SPHERE, 1, (2, 8), "PeriodicPadding"),
        (SPHERE, 2, (2, 4, 6), "fewer levels"),
        (eqd.MixedPadding((PERIODIC,)), 2, (2, 4, 4), "one for each"),
    ],
)
def test_paddings_that_do_not_fit(padding, dims, x, match):
    net = network(padding, dims=dims)
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(lambda x: net(3.0, x), jnp.zeros(x, _dtype()))


def test_filters_refuse_it():
    shape = eqd.nn.UNetShape(2, 3, 8, 1, (1, 2), ())
    style = dataclasses.replace(eqd.nn.styles.ncsnpp(), padding=PERIODIC)
    with pytest.raises(ValueError, match="4 taps"):
        eqd.nn.UNet(shape, style, eqd.nn.embeddings.iddpm(), key=jax.random.key(0))
