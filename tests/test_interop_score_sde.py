"""Files of score_sde as denoisers: PyTorch's and Flax's, against the official networks' numbers."""

import json
import pathlib
import shutil

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden, load_golden_config
from toys import quick_jit

import eqdiff as eqd
from eqdiff import interop
from eqdiff.interop._weights import skeleton
from eqdiff.interop.score_sde._network import average, network
from eqdiff.interop.score_sde._presets import SCORE_SDE_PRESETS
from eqdiff.nn._ends import unwrapped


FOLDER = pathlib.Path(__file__).parent / "interop"
VP, VE, SMLD = (
    "public_score_ncsnpp_ddpmpp",
    "public_score_ncsnpp_ve_cont",
    "public_score_ncsnpp_ddpmblock_skip",
)


def _state(name):
    golden = load_golden(name)
    state = {k[6:]: v for k, v in golden.items() if k.startswith("state/")}
    return {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in state.items()}


def _config(name, sde, **model):
    config = load_golden_config(name)
    training = {"sde": sde, "continuous": config["training"]["continuous"]}
    return {**config, "training": training, "model": {**config["model"], **model}}


def _dtype():
    return jnp.float64 if jax.config.jax_enable_x64 else jnp.float32


def _load(weights, config):
    denoiser = interop.load_score_sde(weights, config, compute_dtype=_dtype())
    return jax.tree.map(lambda a: a.astype(_dtype()) if eqx.is_inexact_array(a) else a, denoiser)


@quick_jit
def _noise(denoiser, t, x):
    return jax.vmap(lambda t, x: denoiser(t, x).noise)(t, x)


@pytest.mark.parametrize("sde", ["vpsde", "subvpsde"])
def test_vp_networks_predict_noise_at_their_time(sde):
    if sde == "subvpsde":
        # The same network with the same time input: only the process differs.
        assert interop.load_score_sde(_state(VP), _config(VP, sde)).process == eqd.SubVPSDE()
        return
    golden, denoiser = load_golden(VP), _load(_state(VP), _config(VP, sde))
    assert denoiser.process == eqd.VPSDE(0.1, 20.0)
    t = jnp.asarray(golden["io/labels"], _dtype()) / 999
    assert_golden(_noise(denoiser, t, jnp.asarray(golden["io/x"], _dtype())), VP, "io/out")


@pytest.mark.parametrize("name", [pytest.param(VE, marks=pytest.mark.slow), SMLD])
def test_ve_networks_are_scores_at_their_noise_level(name, x64):
    golden, denoiser = load_golden(name), _load(_state(name), _config(name, "vesde"))
    high = 30.0 if name == SMLD else 50.0
    ends = {"t0": 0.0} if name == SMLD else {}
    assert denoiser.process == eqd.VESDE(0.01, high, **ends)
    labels = golden["io/labels"]
    # The official time input is σ in continuous time, and in discrete time the number of a level,
    # counted from the largest down.
    if name == SMLD:
        t = 1 - labels / 199
    else:
        t = np.log(labels.astype(np.float64) / 0.01) / np.log(5000)
    noise = _noise(denoiser, jnp.asarray(t), jnp.asarray(golden["io/x"], _dtype()))
    sigma = 0.01 * (high / 0.01) ** t
    for i, level in enumerate(sigma):
        # score = −ε/σ, each example held to its own size.
        assert_golden(
            -np.asarray(noise[i], np.float32) / np.float32(level),
            name,
            "io/out",
            expected=golden["io/out"][i],
        )


def test_discrete_vp_is_a_schedule():
    config = _config(VP, "vpsde", num_scales=500)
    config["training"]["continuous"] = False
    schedule = interop.load_score_sde(_state(VP) | {"sigmas": np.ones(500)}, config).process
    np.testing.assert_allclose(schedule.betas, np.linspace(0.1 / 500, 20 / 500, 500), rtol=1e-15)
    np.testing.assert_array_equal(schedule.c_noises, np.arange(500))
    # At 1000 steps it is DDPM's.
    config["model"]["num_scales"] = 1000
    schedule = interop.load_score_sde(_state(VP), config).process
    np.testing.assert_allclose(schedule.betas, eqd.linear_schedule(1000).betas, rtol=1e-12)


FLAX = {
    "training": {"sde": "vesde", "continuous": True},
    "data": {"image_size": 8, "num_channels": 1, "centered": False},
    "model": SCORE_SDE_PRESETS["ve/cifar10_ncsnpp_continuous"]["model"]
    | dict(nf=4, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,)),
}


def test_a_checkpoint_of_flax():
    """Written by Flax; its output was computed by Flax."""
    denoiser = interop.load_score_sde(FOLDER / "flax_ncsnpp", FLAX)
    with np.load(FOLDER / "flax_ncsnpp.npz") as file:
        x, sigma, out = (file[key] for key in ("x", "told", "out"))
    net = quick_jit(jax.vmap(denoiser.net))
    ours = net(jnp.log(jnp.asarray(sigma)), jnp.asarray(x.transpose(0, 3, 1, 2)))
    for mine, theirs in zip(ours, out.transpose(0, 3, 1, 2), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=5e-6 * np.abs(theirs).max())


def _as_flax(state, names):
    """A golden state dict of PyTorch as the tree that Flax would have."""
    tree = {}
    for path, name in names.items():
        array = state[name]
        if path.endswith("kernel"):
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        *layers, last = path.split("/")
        at = tree
        for layer in layers:
            at = at.setdefault(layer, {})
        at[last] = array
    return tree


@pytest.mark.slow
def test_flax_names_with_the_official_weights():
    """Names by Flax, weights and outputs by the PyTorch code: both files of one network."""
    name = "public_score_ddpm"
    names = json.loads((FOLDER / "flax_ddpm.json").read_text())
    state = _state(name)
    assert sorted(names.values()) == sorted(k for k in state if k != "sigmas")
    golden, denoiser = load_golden(name), _load(_as_flax(state, names), _config(name, "vpsde"))
    t = jnp.asarray(golden["io/labels"], _dtype()) / 999
    assert_golden(_noise(denoiser, t, jnp.asarray(golden["io/x"], _dtype())), name, "io/out")


def test_flax_weights_that_do_not_fit_are_named():
    params = interop.read_flax(FOLDER / "flax_ncsnpp")["params_ema"]
    params["Extra_0"] = {"kernel": np.zeros(2)}
    del params["ResnetBlockBigGANpp_0"]["Conv_0"]["bias"]
    # As early versions of Flax had them.
    params["GroupNorm_0"] = {k: v[None, None, None] for k, v in params["GroupNorm_0"].items()}
    with pytest.raises(ValueError, match="2 problems") as error:
        interop.load_score_sde(params, FLAX)
    assert "missing ResnetBlockBigGANpp_0.Conv_0.bias (4,)" in str(error.value)
    assert "unexpected Extra_0.kernel (2,)" in str(error.value)
    with pytest.raises(ValueError, match="NCSNv2 in JAX normalises with another variance"):
        interop.load_score_sde(params, "ve/ncsnv2/cifar10")


def _made(config):
    make, arguments = network(config, None, jnp.float32)
    return skeleton(lambda key: make(**arguments, key=key))


@pytest.mark.parametrize("name", SCORE_SDE_PRESETS)
def test_every_published_configuration_makes_a_network(name):
    config = SCORE_SDE_PRESETS[name]
    net = _made(config)
    exploding = config["training"]["sde"] == "vesde"
    if isinstance(net, eqd.nn.NCSNv2):
        assert exploding and not net.centred
    else:
        inner = unwrapped(net)
        expected = eqd.nn.DividedBySigma(eqd.nn.Centred(inner)) if exploding else inner
        assert eqx.tree_equal(net, expected)


# The networks of `eqdiff.nn.presets`, which were written independently.
PUBLISHED = {
    "vp/ddpm/cifar10": eqd.nn.presets.ddpm_cifar10,
    "vp/cifar10_ddpmpp_continuous": eqd.nn.presets.ddpmpp_cifar10,
    "ve/cifar10_ncsnpp_continuous": eqd.nn.presets.ncsnpp_cifar10,
    "ve/celeba_ncsnpp": eqd.nn.presets.ncsnpp_celeba64,
    "ve/ffhq_256_ncsnpp_continuous": eqd.nn.presets.ncsnpp_256,
    "ve/ffhq_ncsnpp_continuous": eqd.nn.presets.ncsnpp_1024,
    "vp/ddpm/bedroom": eqd.nn.presets.ddpm_256,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_the_networks_of_nn(name):
    config = SCORE_SDE_PRESETS[name]
    ours = _made(config)
    theirs = skeleton(lambda key: PUBLISHED[name](key=key))
    assert eqx.tree_equal(ours, theirs)


def _message(function):
    with pytest.raises(ValueError) as error:
        function()
    return str(error.value)


def test_configurations_that_lack_something():
    state, config = _state(VP), _config(VP, "vpsde")

    def load(**parts):
        return lambda: interop.load_score_sde(state, {**config, **parts})

    model = {k: v for k, v in config["model"].items() if k != "beta_max"}
    scaled = config["model"] | {"scale_by_sigma": True}
    refused = {
        "'sde' is missing": load(training={"continuous": True}),
        "got 'ddpm'": load(training={"sde": "ddpm", "continuous": True}),
        "lacks beta_max": load(model=model),
        "scale_by_sigma=True, which only VE": load(model=scaled),
        "scale_by_sigma=False": load(training={"sde": "vesde", "continuous": False}),
        "'training' is missing": lambda: interop.load_score_sde(state, {"model": {}}),
        "called 'vp/cifar'": lambda: interop.load_score_sde(state, "vp/cifar"),
        "the state dict does not say how it was trained": lambda: interop.load_score_sde(state),
    }
    for message, function in refused.items():
        assert message in _message(function)


def test_the_average_is_what_is_read(tmp_path):
    file = interop.read_torch(FOLDER / "score_sde.pth")
    weights = average(file, "x")
    np.testing.assert_array_equal(weights["all_modules.1.weight"], np.arange(6.0).reshape(2, 3) + 1)
    np.testing.assert_array_equal(weights["all_modules.0.W"], [1, 2])
    # The folder is called like a configuration, and names the network that the file is not.
    folder = tmp_path / "vp" / "cifar10_ddpmpp_continuous"
    folder.mkdir(parents=True)
    shutil.copy(FOLDER / "score_sde.pth", folder / "checkpoint_26.pth")
    path = folder / "checkpoint_26.pth"
    assert "do not fit this UNet" in _message(lambda: interop.load_score_sde(path))
    path = FOLDER / "score_sde.pth"
    assert "not in a folder called like a" in _message(lambda: interop.load_score_sde(path))
    # In memory the same average is found: shapes that do not fit it are named.
    name = "vp/cifar10_ddpmpp_continuous"
    assert "do not fit this UNet" in _message(lambda: interop.load_score_sde(file, name))
    del file["ema"]["shadow_params"]
    assert "without 'shadow_params'" in _message(lambda: interop.load_score_sde(file, name))


def test_whole_checkpoints_in_memory():
    """The same denoisers as of the files: of Flax's state, and of PyTorch's list of averages."""
    in_memory = interop.load_score_sde(interop.read_flax(FOLDER / "flax_ncsnpp"), FLAX)
    assert eqx.tree_equal(in_memory, interop.load_score_sde(FOLDER / "flax_ncsnpp", FLAX))
    state, config = _state(VP), _config(VP, "vpsde")
    # The trained weights are others than their average, whose buffers are the model's.
    model = {f"module.{k}": v if k == "sigmas" else 0 * v for k, v in state.items()}
    ema = {"shadow_params": [v for k, v in state.items() if k != "sigmas"]}
    checkpoint = interop.load_score_sde({"model": model, "ema": ema, "step": 7}, config)
    assert eqx.tree_equal(checkpoint, interop.load_score_sde(state, config))


def test_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        interop.load_score_sde(tmp_path / "checkpoint_1", FLAX)
    path = tmp_path / "checkpoint_1"
    whole = (FOLDER / "flax_ncsnpp").read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        message = _message(lambda: interop.load_score_sde(path, FLAX))
        assert "checkpoint_1 is truncated or damaged" in message
    for damage in (
        b"\xc1",
        b"\xc7\x02\x01ab",
        b"\xd4\x05a",
        b"\xc7\x0f\x01\x93\x91\x01\xa6object\xc4\x01a",
    ):
        path.write_bytes(damage)
        assert "truncated or damaged" in _message(lambda: interop.read_flax(path))
    path.write_bytes(b"\x81\xa1a\x01")
    message = _message(lambda: interop.load_score_sde(path, FLAX))
    assert "holds ['a'], expected 'params_ema'" in message
    state = interop.read_flax(FOLDER / "flax_ncsnpp")
    assert state["lr"] == 2e-4 and state["step"] == 7 and state["rng"].dtype == np.uint32
