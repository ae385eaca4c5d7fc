"""Flags of OpenAI's scripts: the steps they keep, small networks, and those of another purpose."""

import equinox as eqx
import numpy as np
import pytest
from helpers import load_golden, random_network

import eqdiff as eqd
from eqdiff import interop
from eqdiff.interop.openai._spacing import kept_steps


UNET = "public_idiff_unet_c"


def _state(name):
    golden = load_golden(name)
    return {k[6:]: v.astype(np.float32) for k, v in golden.items() if k.startswith("state/")}


# Official steps of `space_timesteps`, by hand: of a section with a count of one the first.
SPACINGS = {
    (1000, "10,1"): [0, 55, 111, 166, 222, 277, 333, 388, 444, 499, 500],
    (10, "1,2"): [0, 5, 9],
    (10, "2,0"): [0, 4],
    (7, " 3"): [0, 3, 6],
    (10, "ddim5"): [0, 2, 4, 6, 8],
}


@pytest.mark.parametrize(("num_steps", "spacing"), SPACINGS)
def test_official_steps(num_steps, spacing):
    expected = SPACINGS[num_steps, spacing]
    np.testing.assert_array_equal(kept_steps(num_steps, spacing), expected)


def test_official_steps_of_the_official_code():
    golden = load_golden("public_idiff_schedules")
    keys = [key.split("/")[1] for key in golden if key.startswith("space_timesteps/")]
    assert len(keys) > 5
    for key in keys:
        num_steps, _, spacing = key.partition("_")
        steps = kept_steps(int(num_steps), spacing.strip("[]"))
        np.testing.assert_array_equal(steps, golden[f"space_timesteps/{key}/steps"])


@pytest.mark.parametrize(
    ("spacing", "message"),
    [
        ("10.5", "expected 'ddimN', or whole numbers"),
        ("ddim", "expected a number after ddim"),
        ("fast27", "expected 'ddimN', or whole numbers"),
        ("6,3", "section 0 has 5 steps"),
        ("0,0", "expected a step to keep"),
        ("10,", "expected 'ddimN', or whole numbers"),
    ],
)
def test_refused_spacings(spacing, message):
    with pytest.raises(ValueError, match=f"flag timestep_respacing='{spacing}': {message}"):
        kept_steps(10, spacing)


def test_respacing_is_the_flag_of_a_loader():
    flags = dict(timestep_respacing="10,1", rescale_timesteps=False)
    denoiser = interop.load_improved_diffusion(_state(UNET), {"num_heads": 4, **flags})
    np.testing.assert_array_equal(denoiser.process.c_noises, SPACINGS[1000, "10,1"])


def _small(sizes, style):
    return random_network(
        lambda key: eqd.nn.UNet(
            eqd.nn.UNetShape(**sizes), style, eqd.nn.embeddings.iddpm(), key=key
        )
    )


HEADS = eqd.nn.styles.Heads
SMALL = [
    # The sides that the scripts do not know, and widths that they would not choose.
    (
        dict(channels=32, num_res_blocks=1, channel_mult=(1, 2), attention_downsamples=(2,)),
        eqd.nn.styles.iddpm(heads=HEADS(4)),
        dict(image_size=8, attention_resolutions="4", channel_mult="1,2"),
    ),
    (
        dict(channels=32, num_res_blocks=2, channel_mult=(2,), attention_downsamples=(1,)),
        eqd.nn.styles.iddpm(heads=HEADS(2, 1)),
        dict(image_size=16, attention_resolutions="16,8", num_heads=2, num_heads_upsample=1),
    ),
    (
        dict(channels=64, num_res_blocks=1, channel_mult=(0.5, 1), attention_downsamples=()),
        eqd.nn.styles.iddpm(heads=HEADS(3)),
        dict(image_size=32, attention_resolutions="4", channel_mult="0.5,1", num_heads=1),
    ),
]


@pytest.mark.parametrize(("sizes", "style", "flags"), SMALL, ids=["8", "16", "32"])
def test_small_networks_load_by_their_flags(sizes, style, flags):
    if flags.get("num_heads") == 1:
        style = eqd.nn.styles.iddpm(heads=HEADS(1))
    net = _small(dict(in_channels=3, out_channels=6, **sizes), style)
    flags = {"num_channels": sizes["channels"], "num_res_blocks": sizes["num_res_blocks"], **flags}
    state = interop.openai_state_dict(net)
    for load in (interop.load_improved_diffusion, interop.load_guided_diffusion):
        assert eqx.tree_equal(load(state, flags).net, net)
    del flags["image_size"]
    assert eqx.tree_equal(interop.load_improved_diffusion(state, flags).net, net)


def test_heads_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match=r"32 channels.*3"):
        interop.load_improved_diffusion(_state(UNET), {"num_heads": 3})


def test_a_small_classifier():
    net = random_network(
        lambda key: eqd.nn.UNetClassifier(
            eqd.nn.UNetShape(3, 5, 32, 1, (1, 2), (2,)),
            eqd.nn.styles.adm(heads=eqd.nn.styles.HeadsOf(64)),
            eqd.nn.embeddings.iddpm(),
            eqd.nn.AveragePool(),
            key=key,
        )
    )
    flags = dict(image_size=16, channel_mult="1,2", classifier_width=32, classifier_depth=1)
    flags |= dict(classifier_attention_resolutions="8", classifier_pool="adaptive")
    # With the flags of the model that it guides, as one command line has them.
    flags |= dict(num_channels=192, class_cond=True, use_fp16=True, classifier_scale=1.0)
    state = interop.openai_state_dict(net)
    assert eqx.tree_equal(interop.load_guided_diffusion_classifier(state, flags).net, net)
    with pytest.raises(ValueError, match="trained on images without noise"):
        interop.load_guided_diffusion_classifier(state, flags | {"noised": "False"})


def test_flags_of_training_and_sampling_change_nothing():
    flags = {"num_heads": 4, "num_heads_upsample": 2}
    more = dict(lr=1e-4, batch_size=128, schedule_sampler="loss-second-moment", use_ddim=True)
    more |= dict(ema_rate="0.9999", clip_denoised=True, classifier_depth=4, data_dir="x")
    read = [interop.load_improved_diffusion(_state(UNET), f) for f in (flags, flags | more)]
    assert eqx.tree_equal(*read)
