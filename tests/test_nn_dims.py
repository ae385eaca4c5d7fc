"""`nn.UNet` in one and three dimensions is that in two, where the data and the kernels say so.

On an image that is constant along one axis, with kernels that look only along the other, the
network is the one-dimensional one; on a volume, with kernels that look at one slice only, it is the
two-dimensional one for every slice. (Where it has attention, all slices must be equal: attention
sees the whole volume, and repeating every key changes no softmax.) Layers are held to their
definitions elsewhere.
"""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_network
from toys import quick_jit

import eqdiff.interop as interop
import eqdiff.nn as nn
from eqdiff.nn import _flags
from eqdiff.nn._conv import Conv
from eqdiff.nn._fir import downsample, upsample
from eqdiff.nn._resample import average_pool, Downsample, repeat_pixels, Upsample


def _dtype():
    return jnp.float64 if jax.config.jax_enable_x64 else jnp.float32


@ft.cache
def _unet(dims, updown, conv_resample):
    return jax.tree.map(
        lambda p: jnp.asarray(np.asarray(p), _dtype()),
        random_network(
            lambda key: _flags.openai_unet(
                in_channels=2,
                out_channels=3,
                channels=8,
                num_res_blocks=1,
                channel_mult=(1, 2),
                channels_per_head=4,
                resblock_updown=updown,
                conv_resample=conv_resample,
                norm_groups=4,
                dims=dims,
                compute_dtype=_dtype(),
                key=key,
            )
        ),
    )


def _thicken(small, large, axis):
    """The weights of `small` in `large`, whose kernels have one axis more, at the middle of that
    spatial axis."""

    def put(a, b):
        if a.shape == b.shape:
            return a
        middle = [slice(None)] * b.ndim
        middle[1 + axis] = b.shape[1 + axis] // 2
        return jnp.zeros_like(b).at[tuple(middle)].set(a)

    leaves = map(put, jax.tree.leaves(small), jax.tree.leaves(large))
    return jax.tree.unflatten(jax.tree.structure(large), leaves)


@pytest.mark.parametrize(
    ("dims", "updown", "conv_resample"),
    [
        pytest.param(1, True, True, marks=pytest.mark.slow),
        (1, False, False),
        pytest.param(2, True, True, marks=pytest.mark.slow),
        (2, False, True),
    ],
)
def test_one_dimension_more(getkey, dims, updown, conv_resample):
    small, large = (_unet(d, updown, conv_resample) for d in (dims, dims + 1))
    large = _thicken(small, large, 0)
    x = jax.random.normal(getkey(), (2, 8, 4)[: dims + 1], _dtype())
    # An image is four rows of a signal; a volume has three slices, a depth that no level halves.
    repeats = 4 if dims == 1 else 3
    thick = jnp.repeat(x[:, None], repeats, axis=1)
    expected, y = quick_jit(lambda x, thick: (small(7.0, x), large(7.0, thick)))(x, thick)
    assert expected.shape == (3, *x.shape[1:]) and y.shape == (3, *thick.shape[1:])
    tolerance = 1e-10 if jax.config.jax_enable_x64 else 2e-4
    for i in range(repeats):
        np.testing.assert_allclose(y[:, i], expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("strided", [False, True])
def test_convolution_is_its_definition(getkey, dims, strided):
    stride = ((1, 2, 2) if dims == 3 else (2,)) if strided else dims * (1,)
    layer = (
        Downsample(2, 3, dims=dims, key=getkey())
        if strided
        else Conv(2, 3, dims=dims, key=getkey())
    )
    conv = layer.conv if isinstance(layer, Downsample) else layer
    x = np.asarray(jax.random.normal(getkey(), (*(4, 6, 8)[-dims:], 2), jnp.float32))
    padded = np.pad(x, [(1, 1)] * dims + [(0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, dims * (3,), axis=tuple(range(dims)))
    windows = windows[tuple(slice(None, None, s) for s in stride)]
    taps = "abc"[:dims]
    expected = np.einsum(f"...i{taps},o{taps}i->...o", windows, np.asarray(conv.weight))
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected + np.asarray(conv.bias), atol=1e-5)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_sides_change_and_depth_does_not(getkey, dims):
    x = jax.random.normal(getkey(), (*(3, 4, 6)[-dims:], 2), jnp.float32)
    axes = {1: (0,), 2: (0, 1), 3: (1, 2)}[dims]
    means, repeated = np.asarray(x), np.asarray(x)
    for axis in axes:
        even, odd = (means.take(np.arange(k, means.shape[axis], 2), axis) for k in (0, 1))
        means, repeated = (even + odd) / 2, np.repeat(repeated, 2, axis)
    layer = Upsample(2, 3, dims=dims, key=getkey())

    @quick_jit
    def run(x, repeated):
        halves = average_pool(x), downsample(x, (1, 1))
        return halves, (repeat_pixels(x), upsample(x, (1, 1))), (layer(x), layer.conv(repeated))

    halves, doubles, convolved = run(x, jnp.asarray(repeated))
    for half, double in zip(halves, doubles, strict=True):
        np.testing.assert_allclose(half, means, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(double, repeated)
    np.testing.assert_allclose(*convolved, atol=1e-5)


@pytest.mark.parametrize("dims", [1, 3])
def test_official_names_come_back(dims):
    config = dict(
        image_size=8,
        in_channels=2,
        model_channels=32,
        out_channels=3,
        num_res_blocks=1,
        attention_resolutions=(2,),
        channel_mult=(1, 2),
        num_head_channels=16,
        dims=dims,
    )
    shape = nn.UNetShape(2, 3, 32, 1, (1, 2), dims=dims)
    style = nn.styles.iddpm(heads=nn.styles.HeadsOf(16), modulation=nn.styles.Added())
    net = random_network(lambda key: nn.UNet(shape, style, nn.embeddings.iddpm(), key=key))
    state = interop.openai_state_dict(net)
    assert state["input_blocks.0.0.weight"].shape == (32, 2, *dims * (3,))
    assert state["input_blocks.3.0.skip_connection.weight"].shape == (64, 32, *dims * (1,))
    again = interop.openai_unet(state, config)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(net), strict=True):
        np.testing.assert_array_equal(a, b)


def _message(function):
    with pytest.raises(ValueError) as error:
        function()
    return str(error.value)


def test_errors(getkey):
    net = _unet(3, True, True)
    call = ft.partial(eqx.filter_eval_shape, net, 1.0)
    assert "(2, depth, height, width), got (2, 4, 4)" in _message(
        lambda: call(jnp.zeros((2, 4, 4), _dtype()))
    )
    assert "multiples of 2, got width 5" in _message(
        lambda: call(jnp.zeros((2, 3, 4, 5), _dtype()))
    )
    assert "jax.vmap(net)" in _message(lambda: call(jnp.zeros((7, 2, 3, 4, 4), _dtype())))
    net = _unet(1, True, True)
    assert "(2, length), got (2, 4, 4)" in _message(
        lambda: net(1.0, jnp.zeros((2, 4, 4), _dtype()))
    )
    assert "is 1, 2 or 3; got 4" in _message(lambda: nn.UNetShape(dims=4))
    style = nn.styles.iddpm(heads=nn.styles.HeadsOf(12), norm_groups=4)
    shape, embed = nn.UNetShape(channels=8, channel_mult=(1, 2)), nn.embeddings.iddpm()
    message = _message(lambda: nn.UNet(shape, style, embed, key=getkey()))
    assert "16 channels cannot be split into heads of 12" in message
