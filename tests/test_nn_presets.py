"""Published configurations: their numbers of parameters, without allocating any.

The counts were derived layer by layer from the papers' descriptions, independently of the code.
Where a paper or an official script states one it is held to that too: 35.7 and 114 million for DDPM
(Ho et al. 2020, which has attention after every block of the way up), 52,546,438 for Improved
DDPM's CIFAR-10 network (printed by its script), 270 and 280 million for its larger ones (README of
its code), 296, 422, 554 and 559 for ADM and 65, 43, 54 and 54 for its classifiers (Dhariwal &
Nichol 2021), 296 for EDM's ADM.
"""

import inspect

import equinox as eqx
import jax
import pytest

from eqdiff import nn
from eqdiff.nn import presets
from eqdiff.nn._ends import unwrapped


def _build(name, *args, **options):
    build = getattr(presets, name)
    return eqx.filter_eval_shape(lambda key: build(*args, key=key, **options), jax.random.key(0))


def _count(net):
    return sum(leaf.size for leaf in jax.tree.leaves(net) if hasattr(leaf, "size"))


# Preset, its arguments, parameters, and what is published: a number and its unit.
COUNTS = [
    ("ddpm_cifar10", (), {}, 35_218_947, None),
    ("ddpm_256", (), {}, 111_569_923, None),
    ("ddpmpp_cifar10", (), {}, 61_804_419, None),
    ("ddpmpp_cifar10", (), {"deep": True}, 106_632_579, None),
    ("ncsnpp_cifar10", (), {}, 62_758_787, None),
    ("ncsnpp_cifar10", (), {"deep": True}, 107_586_947, None),
    ("ncsnpp_celeba64", (), {}, 62_693_251, None),
    ("ncsnpp_256", (), {}, 65_574_421, None),
    ("ncsnpp_1024", (), {}, 105_785_880, None),
    ("ncsnv2_64", (), {}, 29_694_083, None),
    ("ncsnv2_128", (), {}, 83_445_379, None),
    ("edm_ddpmpp_cifar10", (), {}, 55_733_891, None),
    ("edm_ncsnpp_cifar10", (), {"num_classes": 10}, 56_400_643, None),
    ("edm_ddpmpp_64", (), {}, 61_805_571, None),
    ("edm_ncsnpp_64", (), {}, 62_761_091, None),
    ("edm_adm_imagenet64", (), {}, 295_899_267, (296, 1e6)),
    ("iddpm_cifar10", (), {}, 52_546_438, (52_546_438, 1)),
    # Three output channels fewer, of 128 · 9 weights and a bias each; ten classes of 512 numbers.
    ("iddpm_cifar10", (), {"learned_variance": False}, 52_546_438 - 3 * (128 * 9 + 1), None),
    ("iddpm_cifar10", (), {"num_classes": 10}, 52_546_438 + 10 * 512, None),
    ("iddpm_imagenet64", (), {}, 121_063_942, None),
    ("iddpm_imagenet64", (), {"channels": 192, "num_classes": 1000}, 273_049_350, (27, 1e7)),
    # Ho et al.'s network for the same images, with learned variances.
    ("iddpm_lsun256", (), {}, 113_676_678, (114, 1e6)),
    ("iddpm_upsampler256", (), {}, 279_792_390, (28, 1e7)),
    ("adm_imagenet", (64,), {}, 295_904_454, (2959, 1e5)),
    ("adm_imagenet", (128,), {}, 421_529_606, (422, 1e6)),
    ("adm_imagenet", (256,), {}, 553_838_086, (554, 1e6)),
    ("adm_imagenet", (256,), {"num_classes": None}, 552_814_086, None),
    ("adm_imagenet", (512,), {}, 558_997_638, (559, 1e6)),
    ("adm_lsun", (), {}, 552_814_086, None),
    ("adm_upsampler", (256,), {}, 311_795_910, None),
    ("adm_upsampler", (512,), {}, 308_835_270, None),
    ("adm_classifier", (64,), {}, 65_438_568, (65, 1e6)),
    ("adm_classifier", (128,), {}, 42_568_040, (43, 1e6)),
    ("adm_classifier", (256,), {}, 54_096_360, (54, 1e6)),
    ("adm_classifier", (512,), {}, 54_448_360, (54, 1e6)),
]


@pytest.mark.parametrize(("name", "args", "options", "expected", "published"), COUNTS)
def test_parameters(name, args, options, expected, published):
    found = _count(_build(name, *args, **options))
    assert found == expected
    if published is not None:
        number, unit = published
        assert round(found / unit) == number


@pytest.mark.parametrize(
    ("mult", "downs", "expected"),
    [
        ((1, 2, 2, 2), (2,), 35_746_307),
        ((1, 1, 2, 2, 4, 4), (16,), 113_673_219),
    ],
)
def test_parameters_of_ho_et_al(mult, downs, expected):
    """35.7 and 114 million: attention after every block of the way up."""
    shape = nn.UNetShape(channel_mult=mult, attention_downsamples=downs)
    style = nn.styles.ddpm(attention_up=nn.styles.EveryBlock())
    build = lambda key: nn.UNet(shape, style, nn.embeddings.score_sde(), key=key)  # noqa: E731
    assert _count(eqx.filter_eval_shape(build, jax.random.key(0))) == expected


def test_every_preset_is_counted():
    # `iddpm_digits` is not a published network, and `dit` is counted in its own file.
    public = {name for name, value in vars(presets).items() if inspect.isfunction(value)}
    assert public - {name for name, *_ in COUNTS} == {"iddpm_digits", "dit"}


def test_adm_flags():
    """What a count does not see: heads, dropout, and the dictionary of official arguments."""
    sizes = (64, 128, 256, 512)
    nets = [_build("adm_imagenet", size) for size in sizes]
    assert [net.style.dropout for net in nets] == [0.1, 0, 0, 0]
    assert [net.body.middle.attentions[0].num_heads for net in nets] == [12, 4, 16, 16]
    downs = [(2, 4, 8), (4, 8, 16), (8, 16, 32), (16, 32, 64)]
    assert [net.shape.attention_downsamples for net in nets] == downs
    lsun = _build("adm_lsun")
    assert lsun.style.dropout == 0.1 and lsun.shape.num_classes is None
    nets = [_build("adm_upsampler", size).net for size in (256, 512)]
    assert [net.body.middle.attentions[0].num_heads for net in nets] == [4, 12]
    nets = [_build("adm_classifier", size) for size in sizes]
    assert [net.head.num_heads for net in nets] == [8, 8, 8, 8]
    assert [net.pool.image_size for net in nets] == list(sizes)
    assert _build("iddpm_lsun256").style.heads == nn.styles.Heads(1)


def test_iddpm_cifar10_is_the_readme():
    net = _build("iddpm_cifar10")
    assert (net.shape.in_channels, net.shape.out_channels, net.style.dropout) == (3, 6, 0.3)
    # Attention at 16 and 8, and not at 32 or 4.
    has = [[a is not None for a in level.attentions] for level in net.body.encoder]
    assert has == [[False] * 3, [True] * 3, [True] * 3, [False] * 3]
    has = [[a is not None for a in level.attentions] for level in net.body.decoder]
    assert has == [[False] * 4, [True] * 4, [True] * 4, [False] * 4]


@pytest.mark.parametrize("name", ["adm_imagenet", "adm_upsampler", "adm_classifier"])
def test_refuses_other_sides(name):
    with pytest.raises(ValueError, match="image_size is one of .*; got 32"):
        _build(name, 32)


def test_options_are_passed_on():
    net = _build("ncsnpp_cifar10", dropout=0.0, centred=True, remat=True)
    assert isinstance(net, nn.DividedBySigma) and isinstance(net.net, nn.UNet)
    inner = net.net
    assert (inner.style.dropout, inner.remat, inner.shape.num_res_blocks) == (0.0, True, 4)
    net = _build("ncsnpp_cifar10")
    assert isinstance(net.net, nn.Centred) and isinstance(unwrapped(net), nn.UNet)
    assert isinstance(_build("ncsnpp_cifar10", time=nn.embeddings.SongSinusoids()), nn.UNet)
    net = _build("dit", "B", patch_size=4)
    assert (net.channels, net.depth, net.num_heads, net.patch_size) == (768, 12, 12, 4)
