"""OpenAI's files: the official networks' numbers, and flags against weights."""

import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden, load_golden_config, random_network
from toys import quick_jit

import eqdiff as eqd
from eqdiff import interop
from eqdiff.interop._weights import official_shapes, skeleton
from eqdiff.interop.files import given_state_dict, name_of
from eqdiff.interop.openai._entries import entries
from eqdiff.interop.openai._flags import (
    CLASSIFIER,
    CLASSIFIER_PRESETS,
    GUIDED,
    GUIDED_PRESETS,
    IMPROVED,
    IMPROVED_PRESETS,
    read_flags,
)
from eqdiff.interop.openai._load import _config, _contradictions
from eqdiff.interop.openai._structure import unet_structure


FOLDER = pathlib.Path(__file__).parent / "interop"
UNET, SR, ADM = "public_idiff_unet_c", "public_idiff_sr", "public_guided_unet_neworder"
# The flags of the golden networks; the weights say the rest.
FLAGS = {
    UNET: dict(num_heads=4, num_heads_upsample=2, rescale_timesteps=False, noise_schedule="cosine"),
    SR: dict(num_heads=2, rescale_timesteps="False", small_size=8),
    ADM: dict(num_head_channels=16, use_new_attention_order=True, resblock_updown=True),
}


def _state(name):
    golden = load_golden(name)
    return {k[6:]: v.astype(np.float32) for k, v in golden.items() if k.startswith("state/")}


@quick_jit
def _estimates(denoiser, t, x, args):
    return jax.vmap(denoiser)(t, x, args)


def _estimate(denoiser, name, args):
    golden = load_golden(name)
    return _estimates(
        denoiser, jnp.asarray(golden["io/t"], jnp.int32), jnp.asarray(golden["io/x"]), args
    )


@pytest.mark.parametrize(
    "name",
    [UNET, pytest.param(ADM, marks=pytest.mark.slow), pytest.param(SR, marks=pytest.mark.slow)],
)
def test_denoisers_have_the_official_outputs(name):
    load = interop.load_guided_diffusion if name == ADM else interop.load_improved_diffusion
    denoiser = load(_state(name), FLAGS[name])
    assert isinstance(denoiser.variance, eqd.LearnedRange)
    golden = load_golden(name)
    y = jnp.asarray(golden["io/y"], jnp.int32) if "io/y" in golden else None
    estimate = _estimate(denoiser, name, jnp.asarray(golden["io/low_res"]) if name == SR else y)
    assert_golden(estimate.noise, name, "io/out", expected=golden["io/out"][:, :3])
    assert_golden(estimate.raw_variance, name, "io/out", expected=golden["io/out"][:, 3:])
    schedule = denoiser.process
    np.testing.assert_array_equal(schedule.c_noises, np.arange(1000))
    kind = eqd.cosine_schedule if name == UNET else eqd.linear_schedule
    np.testing.assert_array_equal(schedule.betas, kind(1000).betas)


def test_upsamplers_are_those_with_two_sizes():
    state = _state(SR)
    with pytest.raises(
        ValueError,
        match=r"large_size=256 \(that is \(1, 1, 2, 2, 4, 4\)\), but the weights have \(1, 1\)",
    ):
        interop.load_improved_diffusion(state, FLAGS[SR] | {"large_size": 256})
    # Without the flag it is a network of six channels.
    net = interop.load_improved_diffusion(state, {"num_heads": 2}).net
    assert isinstance(net, eqd.nn.UNet) and net.shape.in_channels == net.shape.out_channels == 6
    fewer = {k: v[:5] if k.startswith("out.2.") else v for k, v in state.items()}
    with pytest.raises(ValueError, match=r"takes 6 channels and returns 5.*small_size"):
        interop.load_improved_diffusion(fewer, {"num_heads": 2})


@pytest.mark.parametrize(
    "name",
    ["public_idiff_unet_a", "public_idiff_unet_b", UNET, SR, "public_guided_unet_legacy", ADM],
)
def test_the_structure_is_read_off_the_weights(name):
    kwargs = load_golden_config(name)["kwargs"]
    found = unet_structure(_state(name), "x")
    assert found.in_channels == kwargs["in_channels"] * (2 if name == SR else 1)
    for ours, theirs, default in (
        ("out_channels", "out_channels", None),
        ("model_channels", "model_channels", None),
        ("channel_mult", "channel_mult", None),
        ("num_res_blocks", "num_res_blocks", None),
        ("attention_factors", "attention_resolutions", None),
        ("num_classes", "num_classes", None),
        ("use_scale_shift_norm", "use_scale_shift_norm", False),
        ("resblock_updown", "resblock_updown", False),
        ("conv_resample", "conv_resample", True),
    ):
        expected = kwargs.get(theirs, default)
        expected = tuple(expected) if isinstance(expected, list) else expected
        assert getattr(found, ours) == expected, ours


def _official_shapes(build):
    """The official names and shapes of one of our published networks, without its numbers."""
    net = skeleton(lambda key: build(key=key))
    unet = getattr(net, "net", net)
    shapes = official_shapes(unet, entries(unet))
    return {k: np.broadcast_to(np.float32(0), shape) for k, shape in shapes.items()}, unet


def _preset(function, *sizes, **options):
    return lambda *, key: function(*sizes, **options, key=key)


PUBLISHED = {
    "imagenet64_uncond_100M_1500K": _preset(eqd.nn.presets.iddpm_imagenet64),
    "cifar10_uncond_50M_500K": _preset(eqd.nn.presets.iddpm_cifar10),
    "lsun_uncond_100M_1200K_bs128": _preset(eqd.nn.presets.iddpm_lsun256),
    "upsample_cond_500K": _preset(eqd.nn.presets.iddpm_upsampler256),
    "64x64_diffusion": _preset(eqd.nn.presets.adm_imagenet, 64),
    "128x128_diffusion": _preset(eqd.nn.presets.adm_imagenet, 128),
    "256x256_diffusion": _preset(eqd.nn.presets.adm_imagenet, 256),
    "256x256_diffusion_uncond": _preset(eqd.nn.presets.adm_imagenet, 256, num_classes=None),
    "512x512_diffusion": _preset(eqd.nn.presets.adm_imagenet, 512),
    "lsun_bedroom": _preset(eqd.nn.presets.adm_lsun),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_flags_fit_the_published_networks(name):
    """`eqdiff.nn.presets` and the flags here were written independently from the READMEs."""
    names, unet = _official_shapes(PUBLISHED[name])
    presets, defaults = (
        (IMPROVED_PRESETS, IMPROVED) if name in IMPROVED_PRESETS else (GUIDED_PRESETS, GUIDED)
    )
    flags, given = read_flags(None, None, defaults, presets, f"/models/{name}.pt")
    found, upsampler = unet_structure(names, name), "large_size" in given
    assert _contradictions(flags, given, found) == []
    config = _config(flags, found, upsampler)
    read = {
        "dropout": "dropout",
        "num_classes": "num_classes",
        "channel_mult": "channel_mult",
    }
    for theirs, ours in read.items():
        found = getattr(unet.style if theirs == "dropout" else unet.shape, ours)
        assert config.get(theirs) == found, theirs
    heads = unet.style.heads
    if isinstance(heads, eqd.nn.styles.HeadsOf):
        assert config["num_head_channels"] == heads.channels
    else:
        assert (config.get("num_head_channels", -1), config["num_heads"]) == (-1, heads.heads)


def test_flags_of_another_file_are_all_named():
    wrong = dict(num_channels=128, num_res_blocks=3, learn_sigma=False, use_scale_shift_norm=False)
    wrong |= dict(class_cond=False, image_size=64)
    with pytest.raises(ValueError, match="the flags are not those of these weights") as error:
        interop.load_improved_diffusion(_state(UNET), wrong)
    for problem in (
        "num_channels=128, but the weights have 32",
        "num_res_blocks=3, but the weights have 1",
        "learn_sigma=False, but the weights have True",
        "use_scale_shift_norm=False, but the weights have True",
        "class_cond=False, but the weights have True",
        "image_size=64 (that is (1, 2, 3, 4)), but the weights have (1, 1)",
    ):
        assert problem in str(error.value)


REFUSED = [
    (dict(flags={"width": 3, "num_head_channels": 64}), "flags ['num_head_channels', 'width']"),
    (dict(flags={"num_heads": "many"}), "num_heads='many': expected an int."),
    (dict(flags={"class_cond": "perhaps"}), "class_cond='perhaps': expected True or False."),
    (
        dict(flags={"num_heads": 4, "noise_schedule": "sqrt"}),
        "noise_schedule='sqrt': expected 'linear' or 'cosine'",
    ),
    (dict(), "weights alone do not say how they were trained"),
    (dict(preset="cifar"), "no published file is called 'cifar'"),
    (
        dict(weights={"fc.weight": np.zeros(3)}, flags={}),
        "does not hold the weights of a UNetModel",
    ),
    (dict(weights=FOLDER / "zip.pt", flags={}), "zip.pt holds a dictionary with the keys"),
    (dict(weights=FOLDER / "zip.pt"), "none of the published files"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_no_denoiser_can_be_made_of(options, message):
    with pytest.raises(ValueError) as error:
        interop.load_improved_diffusion(**{"weights": _state(UNET), **options})
    assert message in str(error.value)


def test_weights_are_a_path_or_a_state_dict():
    assert name_of(FOLDER / "zip.pt").endswith("zip.pt")
    assert name_of(_state(UNET)) == "the state dict"
    with pytest.raises(TypeError, match=r"got a list\. Of a PyTorch module, give module\.state_di"):
        name_of([1])
    with pytest.raises(ValueError, match=r"has names as keys, got \[0\]"):
        given_state_dict({0: np.zeros(3)}, ["x"])


def test_weights_that_do_not_fit_are_named():
    state = _state(UNET)
    del state["middle_block.1.norm.bias"]
    state["extra"] = np.zeros(2, np.float32)
    state["out.0.weight"] = np.zeros(7, np.float32)
    with pytest.raises(ValueError, match="3 problems") as error:
        interop.load_improved_diffusion(state, FLAGS[UNET])
    for problem in (
        "missing middle_block.1.norm.bias (32,)",
        "unexpected extra (2,)",
        "out.0.weight has shape (7,), expected (32,)",
    ):
        assert problem in str(error.value)


def _tiny(**flags):
    """A denoiser of the smallest network, whose numbers do not matter."""
    state = _state(UNET)
    if not flags.pop("learned", True):
        state |= {k: state[k][:3] for k in ("out.2.weight", "out.2.bias")}
    return interop.load_improved_diffusion(state, {"num_heads": 4, **flags})


def test_flags_of_the_diffusion():
    # The scripts' default rescales: 1000 t / T.
    np.testing.assert_array_equal(_tiny(diffusion_steps=4000).process.c_noises, np.arange(4000) / 4)
    spaced = _tiny(diffusion_steps=4000, timestep_respacing="25", noise_schedule="cosine").process
    expected = eqd.respace(eqd.cosine_schedule(4000), eqd.section_timesteps(4000, (25,)))
    np.testing.assert_array_equal(spaced.betas, expected.betas)
    np.testing.assert_array_equal(spaced.c_noises, expected.c_noises)
    ddim = _tiny(timestep_respacing="ddim50", rescale_timesteps=False).process
    np.testing.assert_array_equal(ddim.c_noises, eqd.ddim_timesteps(1000, 50))
    sections = _tiny(timestep_respacing=[10, 15, 20], diffusion_steps=300).process
    np.testing.assert_array_equal(sections.timesteps, eqd.section_timesteps(300, (10, 15, 20)))
    assert isinstance(_tiny(predict_xstart="true").parameterisation, eqd.PredictData)
    assert isinstance(_tiny(learned=False).variance, eqd.FixedLarge)
    assert isinstance(_tiny(learned=False, sigma_small=True).variance, eqd.FixedSmall)
    # What the losses alone look at is accepted.
    _tiny(use_kl=True, rescale_learned_sigmas=False, use_checkpoint=True)


def test_files(tmp_path):
    torch_free = tmp_path / "cifar10_uncond_50M_500K.pt"
    torch_free.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        interop.load_improved_diffusion(torch_free)
    with pytest.raises(FileNotFoundError):
        interop.load_guided_diffusion(tmp_path / "64x64_diffusion.pt")


def test_classifiers():
    """A narrow one with the levels of 64×64: the loader makes of names and flags what was there."""
    net = random_network(
        lambda key: eqd.nn.UNetClassifier(
            eqd.nn.UNetShape(3, 5, 32, 1, (1, 2, 3, 4), (8,)),
            eqd.nn.styles.adm(),
            eqd.nn.embeddings.iddpm(),
            eqd.nn.AttentionPool(64, 64),
            key=key,
        )
    )
    state = interop.openai_state_dict(net)
    flags = dict(image_size=64, classifier_width=32, classifier_depth=1, noise_schedule="cosine")
    flags |= dict(classifier_attention_resolutions="8")
    classifier = interop.load_guided_diffusion_classifier(state, flags)
    assert eqx.tree_equal(classifier.net, net)
    # The time input is not rescaled, as the denoisers' is not.
    np.testing.assert_array_equal(classifier.process.c_noises, np.arange(1000))
    np.testing.assert_array_equal(classifier.process.betas, eqd.cosine_schedule(1000).betas)
    adaptive = flags | {"classifier_pool": "adaptive"}
    for options, message in (
        (dict(flags={"image_size": 16}), "image_size=16: the classifiers' scripts know 64, 128"),
        (
            dict(flags=flags | {"classifier_pool": "mean"}),
            "classifier_pool='mean': expected one of",
        ),
        (dict(flags=adaptive), r"classifier_pool='adaptive': out\.3\.weight is missing"),
        (dict(preset="64x64_classifier"), "do not fit this UNetClassifier"),
    ):
        with pytest.raises(ValueError, match=message):
            interop.load_guided_diffusion_classifier(state, **options)


def test_published_classifiers_are_the_networks_of_nn():
    for side in (64, 128, 256, 512):
        net = skeleton(lambda key, side=side: eqd.nn.presets.adm_classifier(side, key=key))
        name = f"{side}x{side}_classifier"
        flags, _ = read_flags(None, name, CLASSIFIER, CLASSIFIER_PRESETS, "x")
        assert net.shape.channels == flags["classifier_width"]
        assert net.shape.num_res_blocks == flags["classifier_depth"]
        sides = flags["classifier_attention_resolutions"].split(",")
        assert net.shape.attention_downsamples == tuple(side // int(a) for a in sides)
        assert (flags["noise_schedule"] == "cosine") == (side == 64)
