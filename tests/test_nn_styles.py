"""Shapes, styles and embeddings: the families, what is compared by value, and what is refused."""

import dataclasses
import functools as ft

import equinox as eqx
import jax
import pytest

from eqdiff import nn
from eqdiff.nn import _flags, embeddings, styles


SIZES = dict(channels=16, num_res_blocks=1, channel_mult=(1, 2), attention_downsamples=(2,))
SHAPE = nn.UNetShape(num_classes=3, **SIZES)
SONG = dataclasses.replace(SHAPE, stem_mult=1)
FIR = (1, 3, 3, 1)
PYRAMID = styles.ResidualPyramid(styles.Filtered(FIR))


def build(make):
    return eqx.filter_eval_shape(lambda key: make(key=key), jax.random.key(0))


# What is made by objects, and by the flags of the official codes.
FAMILIES = [
    (
        (SHAPE, styles.iddpm(heads=styles.Heads(2), norm_groups=8), embeddings.iddpm()),
        ft.partial(_flags.openai_unet, num_heads=2, norm_groups=8),
    ),
    (
        (SHAPE, styles.adm(heads=styles.HeadsOf(8), norm_groups=8), embeddings.iddpm()),
        ft.partial(_flags.openai_unet, channels_per_head=8, norm_groups=8, resblock_updown=True),
    ),
    (
        (SONG, styles.ddpm(norm_groups=8), embeddings.score_sde()),
        ft.partial(_flags.ddpm, norm_groups=8),
    ),
    (
        (SONG, styles.ddpmpp(), embeddings.score_sde()),
        ft.partial(
            _flags.ncsnpp,
            fir_kernel=None,
            progressive_input="none",
            embedding="positional",
            scale_by_sigma=False,
        ),
    ),
    (
        (SONG, styles.ncsnpp(), embeddings.score_sde(embeddings.Fourier())),
        ft.partial(_flags.ncsnpp, scale_by_sigma=False),
    ),
    (
        (SONG, styles.edm(kernel=FIR, input_pyramid=PYRAMID), embeddings.edm(embeddings.Fourier())),
        ft.partial(
            _flags.edm_song, embedding="fourier", encoder="residual", kernel=FIR, noise_mult=2
        ),
    ),
    (
        (SHAPE, styles.edm_adm(heads=styles.HeadsOfAtLeast(8)), embeddings.edm_adm()),
        ft.partial(_flags.edm_dhariwal, channels_per_head=8),
    ),
]


@pytest.mark.parametrize(("objects", "flags"), FAMILIES)
def test_families(objects, flags):
    ours = build(ft.partial(nn.UNet, *objects))
    assert eqx.tree_equal(ours, build(ft.partial(flags, num_classes=3, **SIZES)))
    # Static fields are hashed by jit.
    assert hash(jax.tree.structure(ours)) == hash(jax.tree.structure(ours))


def test_shapes():
    shape = nn.UNetShape(channels=8, channel_mult=(0.5, 1, 2), attention_downsamples=(4,))
    assert (shape.widths, shape.stem, shape.num_levels) == ((4, 8, 16), 4, 3)
    assert shape.attention == (False, False, True)
    assert dataclasses.replace(shape, stem_mult=1).stem == 8


STYLE = styles.iddpm(norm_groups=8, resampling=styles.Filtered())
REFUSED = [
    (lambda: nn.UNetShape(num_res_blocks=0), "num_res_blocks=0 and 4 levels"),
    (lambda: nn.UNetShape(channel_mult=()), "and 0 levels"),
    (lambda: nn.UNetShape(channels=2, channel_mult=(0.1,)), "at least one channel"),
    (
        lambda: build(ft.partial(nn.UNet, nn.UNetShape(dims=1), STYLE, embeddings.iddpm())),
        "for images, got dims=1",
    ),
    (
        lambda: build(
            ft.partial(nn.UNet, nn.UNetShape(augment_size=9), styles.iddpm(), embeddings.iddpm())
        ),
        "no place for augmentations",
    ),
    (lambda: build(ft.partial(nn.UNet, SHAPE, styles.iddpm(), None)), "without an embedding"),
    (
        lambda: build(ft.partial(nn.UNetClassifier, SHAPE, styles.iddpm(), embeddings.iddpm())),
        "neither classes nor",
    ),
    (lambda: embeddings.NoiseLevels(1.0, 0.1, 3), "at least two, got"),
]


@pytest.mark.parametrize(("make", "match"), REFUSED)
def test_refuses(make, match):
    with pytest.raises(ValueError, match=match):
        make()
