"""Folders that diffusers 0.42 wrote, as denoisers, and the outputs that it computed."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd
from eqdiff import interop
from eqdiff._serialise import read_safetensors
from eqdiff.interop._weights import skeleton
from eqdiff.interop.diffusers._network import _read, network


FOLDER = pathlib.Path(__file__).parent / "interop"
NAMES = ["diffusers_ddpm", "diffusers_default"]


def _config(name):
    read = lambda file: json.loads((FOLDER / name / file).read_text())  # noqa: E731
    return read("config.json"), read("scheduler_config.json")


def _weights():
    return read_safetensors(FOLDER / "diffusers_ddpm" / "diffusion_pytorch_model.safetensors")[0]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_schedules(name):
    """One like google/ddpm-cifar10-32, in safetensors; one with heads and classes, in PyTorch's."""
    denoiser = interop.load_diffusers(FOLDER / name)
    with np.load(FOLDER / name / "io.npz") as file:
        x, t, y, out, betas = (file[key] for key in ("x", "t", "y", "out", "betas"))
    song = name == "diffusers_ddpm"
    assert isinstance(denoiser.net.style.modulation, eqd.nn.styles.Added) or not song
    assert denoiser.parameterisation == (eqd.PredictNoise() if song else eqd.PredictVelocity())
    assert denoiser.variance == (eqd.FixedLarge() if song else eqd.FixedSmall())
    # Theirs are float32, and the cosine ones come of a ratio of numbers near one.
    np.testing.assert_allclose(denoiser.process.betas, betas, rtol=1e-5, atol=3e-8)
    np.testing.assert_array_equal(denoiser.process.c_noises, np.arange(betas.size))
    args = None if song else jnp.asarray(y, jnp.int32)
    net = quick_jit(jax.vmap(denoiser.net, in_axes=(0, 0, None if song else 0)))
    ours = net(jnp.asarray(t, jnp.float32), jnp.asarray(x), args)
    np.testing.assert_allclose(ours, out, atol=2e-6 * np.abs(out).max())


def test_names_of_attention_before_0_18():
    new, config = _weights(), _config("diffusers_ddpm")[0]
    old = {}
    for name, array in new.items():
        older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for after, before in older.items():
            name = name.replace(f".{after}.", f".{before}.")
        old[name] = array
    assert "mid_block.attentions.0.proj_attn.weight" in old
    one, other = (interop.diffusers_network(weights, config) for weights in (new, old))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one, other))


def test_google_ddpm_cifar10_32_is_the_network_of_ho_et_al():
    """The published configuration: 35.7 million parameters, as in the paper."""
    config = {
        "_class_name": "UNet2DModel",
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": [128, 256, 256, 256],
        "center_input_sample": False,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 32,
        "time_embedding_type": "positional",
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    }
    make, arguments = network(_read(config), jnp.float32)
    net = skeleton(lambda key: make(**arguments, key=key))
    assert net.embed.time == eqd.nn.embeddings.SongSinusoids()
    assert sum(leaf.size for leaf in jax.tree.leaves(net)) == 35_746_307


def _message(function):
    with pytest.raises(ValueError) as error:
        function()
    return str(error.value)


def test_options_that_no_network_has_are_named():
    weights, (config, _) = _weights(), _config("diffusers_ddpm")

    def message(**options):
        return _message(lambda: interop.diffusers_network(weights, config | options))

    problems = message(
        act_fn="mish",
        time_embedding_type="fourier",
        add_attention=False,
        downsample_type="resnet",
        class_embed_type="timestep",
        time_embedding_dim=7,
        mid_block_type=None,
        up_block_types=["UpBlock2D", "UpBlock2D"],
    )
    for problem in (
        "act_fn='mish', expected 'silu' or 'swish'",
        "time_embedding_type='fourier', expected 'positional'",
        "add_attention=False, expected True",
        "downsample_type='resnet', expected 'conv'",
        "class_embed_type='timestep', expected None",
        "time_embedding_dim=7, expected 16",
        "mid_block_type=None, expected 'UNetMidBlock2D'",
        "up_block_types=['UpBlock2D', 'UpBlock2D'], expected ['AttnUpBlock2D', 'UpBlock2D']",
    ):
        assert problem in problems
    openai = dict(flip_sin_to_cos=True, freq_shift=0, downsample_padding=1, norm_eps=1e-5)
    for problem, options in {
        "expected DownBlock2D or AttnDownBlock2D": dict(down_block_types=["SkipDownBlock2D"] * 2),
        "'freq_shift': 0": dict(freq_shift=0),
        "=2, expected null: styles.ddpm has one head": dict(attention_head_dim=2),
        "attn_norm_num_groups=None": dict(resnet_time_scale_shift="scale_shift"),
        "unknown options ['cross_attention_dim']": dict(cross_attention_dim=8),
        "got a UNet2DConditionModel": dict(_class_name="UNet2DConditionModel"),
        "multiples of the first": dict(block_out_channels=[4, 6]),
        "center_input_sample=True": openai | dict(center_input_sample=True),
    }.items():
        assert problem in message(**options)
    del weights["conv_in.bias"]
    assert "missing conv_in.bias (4,)" in message()


def test_schedulers():
    weights, (config, scheduler) = _weights(), _config("diffusers_ddpm")

    def load(**options):
        return interop.load_diffusers(weights, config, scheduler | options)

    scaled = load(beta_schedule="scaled_linear").process.betas
    np.testing.assert_allclose(np.sqrt(scaled), np.linspace(0.01, 0.02**0.5, 100), rtol=1e-12)
    sigmoid = load(beta_schedule="sigmoid").process.betas
    np.testing.assert_allclose(sigmoid[0], 1e-4 + 0.0199 / (1 + np.exp(6)), rtol=1e-12)
    np.testing.assert_allclose(sigmoid[0] + sigmoid[-1], 0.0201, rtol=1e-12)
    assert load(trained_betas=[0.1, 0.2]).process.num_steps == 2
    ending = load(rescale_betas_zero_snr=True, prediction_type="v_prediction").process
    assert ending == eqd.zero_terminal_snr(load().process)
    assert load(prediction_type="sample").parameterisation == eqd.PredictData()
    assert load(variance_type="fixed_small_log").variance == eqd.FixedSmall()
    for problem, options in {
        "variance_type='learned'": dict(variance_type="learned"),
        "prediction_type='flow'": dict(prediction_type="flow"),
        "beta_schedule='cos'": dict(beta_schedule="cos"),
        # Noise alone does not tell x0 at its end.
        "PredictNoise(): at t = 99 of Schedule no signal": dict(rescale_betas_zero_snr=True),
        "returns 2 channels for 2, expected 4": dict(variance_type="learned_range"),
    }.items():
        assert problem in _message(lambda options=options: load(**options))
    exploding = {"_class_name": "ScoreSdeVeScheduler", "sigma_max": 1348.0}
    for problem, scheduler in {
        "a ScoreSdeVeScheduler, which has no rates": exploding,
        "load_diffusers(weights, config, scheduler)": None,
    }.items():
        with pytest.raises(ValueError) as error:
            interop.load_diffusers(weights, config, scheduler)
        assert problem in str(error.value)


def test_folders(tmp_path):
    # A pipeline's: the network and the scheduler in a folder each.
    source = FOLDER / "diffusers_ddpm"
    (tmp_path / "unet").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no config\.json in"):
        interop.load_diffusers(tmp_path)
    shutil.copy(source / "config.json", tmp_path / "unet")
    with pytest.raises(FileNotFoundError, match=r"no scheduler_config\.json at"):
        interop.load_diffusers(tmp_path)
    (tmp_path / "scheduler").mkdir()
    shutil.copy(source / "scheduler_config.json", tmp_path / "scheduler")
    with pytest.raises(FileNotFoundError, match=r"no diffusion_pytorch_model\.safetensors or"):
        interop.load_diffusers(tmp_path)
    name = "diffusion_pytorch_model.safetensors"
    shutil.copy(source / name, tmp_path / "unet")
    assert interop.load_diffusers(tmp_path).process.num_steps == 100
    # What is given replaces what is in the folder.
    given = interop.load_diffusers(tmp_path, scheduler={"trained_betas": [0.1, 0.2]})
    assert given.process.num_steps == 2
    (tmp_path / "unet" / name).write_bytes((source / name).read_bytes()[:-1])
    with pytest.raises(ValueError, match="is truncated or not a safetensors file"):
        interop.load_diffusers(tmp_path)
    (tmp_path / "unet" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged: it is not JSON"):
        interop.load_diffusers(tmp_path)
