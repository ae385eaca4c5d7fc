"""Folders that diffusers 0.42 wrote, as denoisers, and the outputs that it computed."""

import dataclasses
import json
import pathlib
import shutil

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd
from eqdiff import interop
from eqdiff._serialise import read_safetensors
from eqdiff.interop._weights import skeleton
from eqdiff.interop.diffusers._folder import weights as weights_in
from eqdiff.interop.diffusers._network import arguments, read, unet


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
    options = arguments(read(config), jnp.float32)
    net = skeleton(lambda key: unet(**options, key=key))
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
        "time_embedding_dim=7, expected a multiple of the first width, 4",
        "mid_block_type=None, expected 'UNetMidBlock2D'",
        "up_block_types=['UpBlock2D', 'UpBlock2D'], expected ['AttnUpBlock2D', 'UpBlock2D']",
    ):
        assert problem in problems
    for problem, options in {
        "expected DownBlock2D or AttnDownBlock2D": dict(down_block_types=["SkipDownBlock2D"] * 2),
        "freq_shift=(False, 0), expected (True, 0) or (False, 1)": dict(freq_shift=0),
        "downsample_padding=2, expected 0 or 1": dict(downsample_padding=2),
        "attn_norm_num_groups=None": dict(resnet_time_scale_shift="scale_shift"),
        "unknown options ['cross_attention_dim']": dict(cross_attention_dim=8),
        "unknown options ['bias']": dict(bias=False),
        "attention_legacy_order=True, expected False": dict(attention_legacy_order=True),
        "got a UNet2DConditionModel": dict(_class_name="UNet2DConditionModel"),
    }.items():
        assert problem in message(**options)
    del weights["conv_in.bias"]
    assert "missing conv_in.bias (4,)" in message()


def test_what_says_nothing_of_the_network_is_not_read():
    weights, (config, scheduler) = _weights(), _config("diffusers_ddpm")
    plain = interop.load_diffusers(weights, config, scheduler)
    more = dict(decay=0.9999, power=0.75, use_ema_warmup=True, sample_size=None, force_upcast=True)
    more |= dict(_name_or_path="a/folder", attention_legacy_order=False)
    solver = {"solver_order": 3, "variance_type": None, "flow_shift": 1.0, "use_flow_sigmas": False}
    euler = scheduler | {"_class_name": "EulerDiscreteScheduler"} | solver
    other = interop.load_diffusers(weights, config | more, euler)
    assert eqx.tree_equal(plain.net, other.net) and other.process == plain.process
    # What is null, but not known, with a word.
    with pytest.warns(UserWarning, match=r"UNet2DModel that are not known here.*'new'"):
        interop.diffusers_network(weights, config | {"new": None})
    with pytest.warns(UserWarning, match=r"DDPMScheduler that are not known here.*'new'"):
        interop.load_diffusers(weights, config, scheduler | {"new": None})


def test_defaults_of_schedulers():
    """Those that `diffusers.schedulers` have where a configuration lacks them."""
    weights, (config, _) = _weights(), _config("diffusers_ddpm")
    for name, (low, high, root) in {
        "DDPMScheduler": (1e-4, 0.02, False),
        "PNDMScheduler": (1e-4, 0.02, False),
        "HeunDiscreteScheduler": (0.00085, 0.012, False),
        "LCMScheduler": (0.00085, 0.012, True),
    }.items():
        betas = interop.load_diffusers(weights, config, {"_class_name": name}).process.betas
        middle = ((low**0.5 + high**0.5) / 2) ** 2 if root else (low + high) / 2
        np.testing.assert_allclose(betas[[0, -1]], [low, high], rtol=1e-12)
        np.testing.assert_allclose((betas[499] + betas[500]) / 2, middle, rtol=1e-5)
    older = {"predict_epsilon": False}
    assert interop.load_diffusers(weights, config, older).parameterisation == eqd.PredictData()


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
        "timestep_type='continuous', expected 'discrete'": dict(timestep_type="continuous"),
        "use_flow_sigmas=True, expected False": dict(use_flow_sigmas=True),
        "the unknown options ['new_rates']": dict(new_rates=2),
        "and prediction_type='epsilon'": dict(predict_epsilon=False),
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


def _trained(style, embed, out_channels, attention_downsamples=(2,), num_classes=None):
    shape = eqd.nn.UNetShape(
        in_channels=2,
        out_channels=out_channels,
        channels=8,
        num_res_blocks=1,
        channel_mult=(1, 2),
        attention_downsamples=attention_downsamples,
        num_classes=num_classes,
    )
    leaves, structure = jax.tree.flatten(eqd.nn.UNet(shape, style, embed, key=jax.random.key(0)))
    rng = np.random.default_rng(0)
    moved = [a + jnp.asarray(0.1 * rng.standard_normal(a.shape), a.dtype) for a in leaves]
    return jax.tree.unflatten(structure, moved)


def test_writing_back(tmp_path):
    """Folders of diffusers, and networks of eqdiff's in both families' form."""
    denoisers = {name: interop.load_diffusers(FOLDER / name) for name in NAMES}
    every = eqd.nn.styles.EveryBlock()
    ddpm = eqd.nn.styles.ddpm(attention_up=every, norm_groups=4)
    iddpm = eqd.nn.styles.iddpm(norm_groups=4, heads=eqd.nn.styles.Heads(2))
    denoisers["ddpm"] = eqd.Denoiser(
        eqd.nn.Centred(_trained(ddpm, eqd.nn.embeddings.score_sde(), 2)),
        eqd.Schedule(np.linspace(0.01, 0.3, 25) ** 1.5, c_noise=np.arange(25)),
        eqd.PredictData(),
    )
    denoisers["iddpm"] = eqd.Denoiser(
        _trained(iddpm, eqd.nn.embeddings.iddpm(), 4, num_classes=3),
        eqd.linear_schedule(1000),
        variance=eqd.LearnedRange(),
    )
    x, t = jax.random.normal(jax.random.key(2), (2, 8, 8), jnp.float32), jnp.asarray(7)
    for name, denoiser in denoisers.items():
        folder = tmp_path / name
        interop.save_diffusers(folder, eqd.ClipDataAlone(denoiser, -2.0, 2.0), sample_size=8)
        again = interop.load_diffusers(folder)
        assert again.process == denoiser.process
        y = jnp.asarray(1) if name in ("iddpm", "diffusers_default") else None
        for a, b in zip(*(jax.tree.leaves(d(t, x, y)) for d in (denoiser, again)), strict=True):
            np.testing.assert_array_equal(a, b)
        sampler, clipped = interop.load_diffusers_pipeline(folder, 5)
        assert isinstance(sampler, eqd.Ancestral) and (clipped.low, clipped.high) == (-2, 2)
    for name in NAMES:
        assert eqx.tree_equal(interop.load_diffusers(tmp_path / name), denoisers[name])
        theirs, ours = (weights_in(folder / name, None) for folder in (FOLDER, tmp_path))
        assert {k: np.shape(a) for k, a in theirs.items()} == {k: a.shape for k, a in ours.items()}
        config, written = (
            _config(name)[0],
            json.loads((tmp_path / name / "config.json").read_text()),
        )
        assert {k: config[k] for k in written} == written


def test_what_diffusers_cannot_express_is_named(tmp_path):
    denoiser = interop.load_diffusers(FOLDER / "diffusers_ddpm")
    shape = eqd.nn.UNetShape(channels=32, channel_mult=(2, 4), attention_downsamples=(1, 2))
    style = eqd.nn.styles.ncsnpp()
    net = eqd.nn.UNet(shape, style, eqd.nn.embeddings.edm(), key=jax.random.key(0))
    odd = eqd.Denoiser(net, eqd.VPSDE(), variance=eqd.AnalyticVariance(np.array([0.5])))
    problems = _message(lambda: interop.save_diffusers(tmp_path / "a", odd))
    for problem in (
        "32 channels, 64 after the first convolution",
        "expected Strided()",
        "min_channels=4",
        "input_pyramid=ResidualPyramid",
        "scale=0.707107, expected 1",
        "conditions=OneHotBefore",
        "variance=AnalyticVariance",
        "process is a VPSDE, expected a Schedule",
    ):
        assert problem in problems
    heads = _trained(
        eqd.nn.styles.iddpm(norm_groups=4, heads=eqd.nn.styles.Heads(2)),
        eqd.nn.embeddings.iddpm(),
        2,
        attention_downsamples=(1, 2),
    )
    periodic = dataclasses.replace(heads.style, padding=eqd.PeriodicPadding())
    for message, other in {
        "heads of 4 and 8 channels": eqd.Denoiser(heads, denoiser.process),
        "expected ZeroPadding()": eqd.Denoiser(
            eqd.nn.UNet(heads.shape, periodic, heads.embed, key=jax.random.key(0)),
            denoiser.process,
        ),
        "conditions, expected None": eqd.Denoiser(
            eqd.nn.UNet(
                heads.shape,
                heads.style,
                heads.embed,
                conditions=eqd.nn.FieldCondition(1),
                key=jax.random.key(0),
            ),
            denoiser.process,
        ),
        "time input of its network is not the number": eqd.Denoiser(
            denoiser.net, eqd.linear_schedule(50)
        ),
        ", and a UNet2DModel is a UNet": eqd.Denoiser(jnp.tanh, denoiser.process),
        "ClipDataAlone(low=0.0, high=1.0), expected low": eqd.ClipDataAlone(denoiser, 0.0, 1.0),
        "got a Clip. Save the denoiser": eqd.Clip(denoiser),
    }.items():
        assert message in _message(lambda d=other: interop.save_diffusers(tmp_path / "a", d))
    assert not (tmp_path / "a").exists()


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    denoiser = interop.load_diffusers(FOLDER / "diffusers_ddpm")
    folder = tmp_path / "new" / "mine"
    interop.save_diffusers(folder, denoiser)
    with pytest.raises(FileExistsError, match="write overwrite=True to replace it"):
        interop.save_diffusers(folder, denoiser)
    data = eqx.tree_at(lambda d: d.parameterisation, denoiser, eqd.PredictData())
    interop.save_diffusers(folder, data, overwrite=True)
    assert interop.load_diffusers(folder).parameterisation == eqd.PredictData()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("eqdiff.interop.diffusers._save.write_safetensors", full)
    with pytest.raises(OSError, match="No space left"):
        interop.save_diffusers(folder, denoiser, overwrite=True)
    monkeypatch.undo()
    assert interop.load_diffusers(folder).parameterisation == eqd.PredictData()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds \['notes\.txt'\], which save_diffusers did"):
        interop.save_diffusers(folder, denoiser, overwrite=True)
    with pytest.raises(FileExistsError, match="is not a folder"):
        interop.save_diffusers(folder / "notes.txt", denoiser, overwrite=True)
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]
