"""Published configurations: their numbers of parameters, without allocating any.

Every count is derived again here, layer by layer from the papers' descriptions. Where a paper states
one it is held to that too: 35.7 and 114 million for DDPM (Ho et al. 2020, which has attention after
every block of the way up), 270 and 280 for Improved DDPM's larger networks (README of its code), 296, 422, 554
and 559 for ADM and 65, 43, 54 and 54 for its classifiers (Dhariwal & Nichol 2021).
"""

import functools as ft

import equinox as eqx
import jax
import pytest

import eqdiff.nn as nn


def _count(build, **options):
    net = eqx.filter_eval_shape(lambda key: build(key=key, **options), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(net) if hasattr(leaf, "size"))


def _linear(i, o):
    return i * o + o


def _conv(i, o):
    return 9 * i * o + o


def _attention(c):
    return 2 * c + 4 * _linear(c, c)


def _block(i, o, e, twice=1, projected=False):
    skip = _linear(i, o) if i != o or projected else 0
    return 2 * i + _conv(i, o) + _linear(e, twice * o) + 2 * o + _conv(o, o) + skip


def _unet(
    channels,
    mult,
    blocks,
    attention,
    *,
    stem=None,
    biggan=True,
    adm=False,
    pyramid=None,
    image=3,
    out=None,
    twice=None,
    pooled=None,
):
    """A U-Net without its embeddings; `attention` are the numbers of the levels that have it.

    With `pooled`, the parameters of a classifier's head, the way down and the middle alone.
    """
    e, twice = 4 * channels, twice or (2 if adm else 1)
    widths = [int(channels * m) for m in mult]
    h = stem or (widths[0] if adm else channels)
    skips, total, last = [h], _conv(image, h), image

    def resample(c):
        return _block(c, c, e, twice, projected=not adm) if biggan else _conv(c, c)

    for level, w in enumerate(widths):
        for _ in range(blocks):
            total += _block(h, w, e, twice) + (_attention(w) if level in attention else 0)
            h = w
            skips.append(h)
        if level < len(widths) - 1:
            total += resample(h)
            if pyramid == "residual":
                total, last = total + _conv(last, h), h
            elif pyramid == "skip":
                total += _linear(image, h)
            skips.append(h)
    total += 2 * _block(h, h, e, twice) + _attention(h)
    if pooled is not None:
        return total + pooled
    for level, w in reversed(list(enumerate(widths))):
        for _ in range(blocks + 1):
            total += _block(h + skips.pop(), w, e, twice)
            h = w
        number = blocks + 1 if adm else 1
        total += number * _attention(w) if level in attention else 0
        if pyramid == "skip" or level == 0:
            total += 2 * h + _conv(h, out or image)
        total += resample(h) if level > 0 else 0
    assert not skips
    return total


def _time(size, e):
    return _linear(size, e) + _linear(e, e)


_CIFAR = (1, 2, 2, 2)
_EDM = 3 * 128 * 3  # The map of an augmentation, 9 × 128.


@pytest.mark.parametrize(
    ("build", "options", "expected"),
    [
        (nn.ddpm_cifar10, {}, _time(128, 512) + _unet(128, _CIFAR, 2, {1}, biggan=False)),
        (
            nn.ddpm_256,
            {},
            _time(128, 512) + _unet(128, (1, 1, 2, 2, 4, 4), 2, {4}, biggan=False),
        ),
        (nn.ddpmpp_cifar10, {}, _time(128, 512) + _unet(128, _CIFAR, 4, {1})),
        (nn.ddpmpp_cifar10, {"deep": True}, _time(128, 512) + _unet(128, _CIFAR, 8, {1})),
        (
            nn.ncsnpp_cifar10,
            {},
            _time(256, 512) + _unet(128, _CIFAR, 4, {1}, pyramid="residual"),
        ),
        (
            nn.ncsnpp_cifar10,
            {"deep": True},
            _time(256, 512) + _unet(128, _CIFAR, 8, {1}, pyramid="residual"),
        ),
        (
            nn.ncsnpp_celeba64,
            {},
            _time(128, 512) + _unet(128, _CIFAR, 4, {2}, pyramid="residual"),
        ),
        (
            nn.ncsnpp_256,
            {},
            _time(256, 512) + _unet(128, (1, 1, 2, 2, 2, 2, 2), 2, {4}, pyramid="skip"),
        ),
        (
            nn.ncsnpp_1024,
            {},
            _time(32, 64) + _unet(16, (1, 2, 4, 8, 16, 32, 32, 32), 1, {6}, pyramid="skip"),
        ),
        (nn.edm_ddpmpp_cifar10, {}, _EDM + _time(128, 512) + _unet(128, (2, 2, 2), 4, {1})),
        (
            nn.edm_ncsnpp_cifar10,
            {"num_classes": 10},
            2 * _EDM
            + _linear(10, 256)
            + _time(256, 512)
            + _unet(128, (2, 2, 2), 4, {1}, pyramid="residual"),
        ),
        (nn.edm_ddpmpp_64, {}, _EDM + _time(128, 512) + _unet(128, _CIFAR, 4, {2})),
        (
            nn.edm_ncsnpp_64,
            {},
            2 * _EDM + _time(256, 512) + _unet(128, _CIFAR, 4, {2}, pyramid="residual"),
        ),
        (
            nn.edm_adm_imagenet64,
            {},
            1000 * 768 + _time(192, 768) + _unet(192, (1, 2, 3, 4), 3, {1, 2, 3}, adm=True),
        ),
    ],
)
def test_parameters(build, options, expected):
    assert _count(build, **options) == expected


_256 = (1, 1, 2, 2, 4, 4)


def _openai(channels, mult, blocks, attention, *, classes=0, **options):
    """Improved DDPM's (`biggan=False`) and ADM's networks with their embeddings; the variance is learned."""
    e = 4 * channels
    body = _unet(channels, mult, blocks, attention, adm=True, out=6, **options)
    return classes * e + _time(channels, e) + body


def _pool(c, side):
    # A normalisation, a position for every pixel and the mean, queries, keys and values, 1000 logits.
    return 2 * c + (side**2 + 1) * c + _linear(c, 3 * c) + _linear(c, 1000)


_OPENAI = [
    (nn.unet_imagenet64, (), {}, _openai(128, (1, 2, 3, 4), 3, {2, 3}, biggan=False), None),
    (
        nn.unet_imagenet64,
        (),
        {"channels": 192, "num_classes": 1000},
        _openai(192, (1, 2, 3, 4), 3, {2, 3}, biggan=False, classes=1000),
        # "270M parameters".
        (27, 1e7),
    ),
    # Ho et al.'s network for the same images, with learned variances.
    (nn.unet_lsun256, (), {}, _openai(128, _256, 2, {4}, biggan=False, twice=1), (114, 1e6)),
    (
        nn.unet_upsampler256,
        (),
        {},
        _openai(192, _256, 2, {4, 5}, biggan=False, classes=1000, image=6),
        (28, 1e7),
    ),
    (
        nn.adm_imagenet,
        (64,),
        {},
        _openai(192, (1, 2, 3, 4), 3, {1, 2, 3}, classes=1000),
        (2959, 1e5),
    ),
    (
        nn.adm_imagenet,
        (128,),
        {},
        _openai(256, (1, 1, 2, 3, 4), 2, {2, 3, 4}, classes=1000),
        (422, 1e6),
    ),
    (nn.adm_imagenet, (256,), {}, _openai(256, _256, 2, {3, 4, 5}, classes=1000), (554, 1e6)),
    (nn.adm_imagenet, (256,), {"num_classes": None}, _openai(256, _256, 2, {3, 4, 5}), None),
    (
        nn.adm_imagenet,
        (512,),
        {},
        _openai(256, (0.5, 1, 1, 2, 2, 4, 4), 2, {4, 5, 6}, classes=1000),
        (559, 1e6),
    ),
    (nn.adm_lsun, (), {}, _openai(256, _256, 2, {3, 4, 5}), None),
    (
        nn.adm_upsampler,
        (256,),
        {},
        _openai(192, _256, 2, {3, 4, 5}, classes=1000, image=6),
        None,
    ),
    (nn.adm_upsampler, (512,), {}, _openai(192, _256, 2, {4, 5}, classes=1000, image=6), None),
    (
        nn.adm_classifier,
        (64,),
        {},
        _openai(128, (1, 2, 3, 4), 4, {1, 2, 3}, pooled=_pool(512, 8)),
        (65, 1e6),
    ),
    (
        nn.adm_classifier,
        (128,),
        {},
        _openai(128, (1, 1, 2, 3, 4), 2, {2, 3, 4}, pooled=_pool(512, 8)),
        (43, 1e6),
    ),
    (
        nn.adm_classifier,
        (256,),
        {},
        _openai(128, _256, 2, {3, 4, 5}, pooled=_pool(512, 8)),
        (54, 1e6),
    ),
    (
        nn.adm_classifier,
        (512,),
        {},
        _openai(128, (0.5, 1, 1, 2, 2, 4, 4), 2, {4, 5, 6}, pooled=_pool(512, 8)),
        (54, 1e6),
    ),
]


@pytest.mark.parametrize(("build", "args", "options", "expected", "published"), _OPENAI)
def test_parameters_of_openai_networks(build, args, options, expected, published):
    found = _count(ft.partial(build, *args), **options)
    assert found == expected
    if published is not None:
        number, unit = published
        assert round(found / unit) == number


def test_adm_flags():
    """What a count does not see: heads, dropout, and the dictionary of official keyword arguments."""
    build = lambda f, *a, **o: eqx.filter_eval_shape(  # noqa: E731
        lambda key: f(*a, key=key, **o), jax.random.key(0)
    )
    sizes = (64, 128, 256, 512)
    nets = [build(nn.adm_imagenet, size) for size in sizes]
    assert [net.dropout for net in nets] == [0.1, 0, 0, 0]
    assert [net.body.middle.attentions[0].num_heads for net in nets] == [12, 4, 16, 16]
    assert [net.attention_downsamples for net in nets] == [
        (2, 4, 8),
        (4, 8, 16),
        (8, 16, 32),
        (16, 32, 64),
    ]
    assert build(nn.adm_lsun).dropout == 0.1 and build(nn.adm_lsun).num_classes is None
    nets = [build(nn.adm_upsampler, size).net for size in (256, 512)]
    assert [net.body.middle.attentions[0].num_heads for net in nets] == [4, 12]
    nets = [build(nn.adm_classifier, size) for size in sizes]
    assert [net.head.num_heads for net in nets] == [8, 8, 8, 8]
    assert [net.pool.image_size for net in nets] == list(sizes)
    assert build(nn.unet_lsun256).num_heads == 1
    for bad in (nn.adm_imagenet, nn.adm_upsampler, nn.adm_classifier):
        with pytest.raises(ValueError, match="image_size is one of .*; got 32"):
            bad(32, key=jax.random.key(0))


def test_published_parameters():
    # DDPM as published has two blocks of attention more, at 16×16 on the way up.
    assert round((_count(nn.ddpm_cifar10) + 2 * _attention(256)) / 1e6, 1) == 35.7
    assert round((_count(nn.ddpm_256) + 2 * _attention(512)) / 1e6) == 114
    assert round(_count(nn.edm_adm_imagenet64) / 1e6) == 296


@pytest.mark.parametrize(
    ("build", "mult", "dilations"),
    [
        (nn.ncsnv2_64, (1, 2, 2, 2), (1, 1, 2, 4)),
        (nn.ncsnv2_128, (1, 2, 2, 4, 4), (1, 1, 1, 2, 4)),
    ],
)
def test_parameters_of_ncsnv2(build, mult, dilations):
    widths = [128 * m for m in mult]
    total = _conv(3, 128) + 3 * 128 + _conv(128, 3)
    h = 128
    for i, (w, d) in enumerate(zip(widths, dilations, strict=True)):
        total += 6 * h + _conv(h, h) + _conv(h, w)
        if i > 0:
            total += _linear(h, w) if d == 1 else _conv(h, w)
        total += 6 * w + 2 * _conv(w, w)
        h = w
    # Residual units have no biases: 9 w² per convolution, two convolutions each.
    below = None
    for i in reversed(range(len(widths))):
        out = widths[max(i - 1, 0)]
        ins = [widths[i]] if below is None else [widths[i], below]
        total += sum(2 * 2 * 9 * w * w for w in ins)
        total += 0 if below is None else sum(_conv(w, out) for w in ins)
        total += 2 * 9 * out * out + (3 if i == 0 else 1) * 2 * 9 * out * out
        below = out
    assert _count(build) == total


def test_options_are_passed_on():
    net = eqx.filter_eval_shape(
        lambda key: nn.ncsnpp_cifar10(dropout=0.0, centred=True, key=key), jax.random.key(0)
    )
    assert (net.dropout, net.centred, net.num_res_blocks) == (0.0, True, 4)
    net = eqx.filter_eval_shape(lambda key: nn.dit("B", patch_size=4, key=key), jax.random.key(0))
    assert (net.channels, net.depth, net.num_heads, net.patch_size) == (768, 12, 12, 4)
