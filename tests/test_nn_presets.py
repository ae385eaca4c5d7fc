"""Published configurations: their numbers of parameters, without allocating any.

Every count is derived again here, layer by layer from the papers' descriptions. Where a paper states
one it is held to that too: 35.7 and 114 million for DDPM (Ho et al. 2020, which has attention after
every block of the way up), 296 million for ADM at 64×64 (Dhariwal & Nichol 2021).
"""

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
    channels, mult, blocks, attention, *, stem=None, biggan=True, adm=False, pyramid=None, image=3
):
    """A U-Net without its embeddings; `attention` are the numbers of the levels that have it."""
    e, twice = 4 * channels, 2 if adm else 1
    widths = [channels * m for m in mult]
    h = stem or channels
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
    for level, w in reversed(list(enumerate(widths))):
        for _ in range(blocks + 1):
            total += _block(h + skips.pop(), w, e, twice)
            h = w
        number = blocks + 1 if adm else 1
        total += number * _attention(w) if level in attention else 0
        if pyramid == "skip" or level == 0:
            total += 2 * h + _conv(h, image)
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
