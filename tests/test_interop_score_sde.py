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
from eqdiff.interop._score_sde import build_score_network
from eqdiff.interop._score_sde_presets import SCORE_SDE_PRESETS
from eqdiff.interop._weights import skeleton


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
    denoiser = interop.score_sde_denoiser(weights, config, compute_dtype=_dtype())
    return jax.tree.map(lambda a: a.astype(_dtype()) if eqx.is_inexact_array(a) else a, denoiser)


@quick_jit
def _noise(denoiser, t, x):
    return jax.vmap(lambda t, x: denoiser(t, x).noise)(t, x)


@pytest.mark.parametrize("sde", ["vpsde", "subvpsde"])
def test_vp_networks_predict_noise_at_their_time(sde):
    if sde == "subvpsde":
        # The same network, told the same: only the process differs.
        assert interop.score_sde_denoiser(_state(VP), _config(VP, sde)).process == eqd.SubVPSDE()
        return
    golden, denoiser = load_golden(VP), _load(_state(VP), _config(VP, sde))
    assert denoiser.process == eqd.VPSDE(0.1, 20.0)
    t = jnp.asarray(golden["io/labels"], _dtype()) / 999
    assert_golden(_noise(denoiser, t, jnp.asarray(golden["io/x"], _dtype())), VP, "io/out")


@pytest.mark.parametrize("name", [pytest.param(VE, marks=pytest.mark.slow), SMLD])
def test_ve_networks_are_scores_at_their_noise_level(name, x64):
    golden, denoiser = load_golden(name), _load(_state(name), _config(name, "vesde"))
    high = 30.0 if name == SMLD else 50.0
    assert denoiser.process == eqd.VESDE(0.01, high)
    labels = golden["io/labels"]
    # The official label is σ in continuous time, the number of a level from the largest down in discrete time.
    t = (
        1 - labels / 199
        if name == SMLD
        else np.log(labels.astype(np.float64) / 0.01) / np.log(5000)
    )
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


def test_discrete_vp_is_a_chain():
    config = _config(VP, "vpsde", num_scales=500)
    config["training"]["continuous"] = False
    schedule = interop.score_sde_denoiser(_state(VP) | {"sigmas": np.ones(500)}, config).process
    np.testing.assert_allclose(schedule.betas, np.linspace(0.1 / 500, 20 / 500, 500), rtol=1e-15)
    np.testing.assert_array_equal(schedule.labels, np.arange(500))
    # At 1000 steps it is DDPM's.
    config["model"]["num_scales"] = 1000
    schedule = interop.score_sde_denoiser(_state(VP), config).process
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
        x, told, out = (file[key] for key in ("x", "told", "out"))
    net = quick_jit(jax.vmap(denoiser.net))
    ours = net(jnp.log(jnp.asarray(told)), jnp.asarray(x.transpose(0, 3, 1, 2)))
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
        interop.score_sde_denoiser(params, FLAX)
    assert "missing ResnetBlockBigGANpp_0.Conv_0.bias (4,)" in str(error.value)
    assert "unexpected Extra_0.kernel (2,)" in str(error.value)
    with pytest.raises(ValueError, match="NCSNv2 in JAX normalises with another variance"):
        interop.score_sde_denoiser(params, "ve/ncsnv2/cifar10")


@pytest.mark.parametrize("name", SCORE_SDE_PRESETS)
def test_every_published_configuration_makes_a_network(name):
    config = SCORE_SDE_PRESETS[name]
    net = skeleton(lambda key: build_score_network(config, None, jnp.float32, key))
    scale = getattr(net, "scale_by_sigma", True)
    assert (config["training"]["sde"] == "vesde") == scale
    assert net.centred == (config["training"]["sde"] != "vesde")


# The numbers of parameters in the docstrings of `eqdiff.nn`'s networks of the same name, counted there.
COUNTS = {
    "vp/ddpm/cifar10": eqd.nn.ddpm_cifar10,
    "vp/cifar10_ddpmpp_continuous": eqd.nn.ddpmpp_cifar10,
    "ve/cifar10_ncsnpp_continuous": eqd.nn.ncsnpp_cifar10,
    "ve/celeba_ncsnpp": eqd.nn.ncsnpp_celeba64,
    "ve/ffhq_256_ncsnpp_continuous": eqd.nn.ncsnpp_256,
    "ve/ffhq_ncsnpp_continuous": eqd.nn.ncsnpp_1024,
    "vp/ddpm/bedroom": eqd.nn.ddpm_256,
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_configurations_are_the_networks_of_nn(name):
    config = SCORE_SDE_PRESETS[name]
    ours = skeleton(lambda key: build_score_network(config, None, jnp.float32, key))
    theirs = skeleton(lambda key: COUNTS[name](key=key))
    assert eqx.tree_equal(ours, theirs)


def _message(function):
    with pytest.raises(ValueError) as error:
        function()
    return str(error.value)


def test_configurations_that_lack_something():
    state, config = _state(VP), _config(VP, "vpsde")

    def load(**parts):
        return lambda: interop.score_sde_denoiser(state, {**config, **parts})

    assert "'training' is missing" in _message(
        lambda: interop.score_sde_denoiser(state, {"model": {}})
    )
    assert "'sde' is missing" in _message(load(training={"continuous": True}))
    assert "got 'ddpm'" in _message(load(training={"sde": "ddpm", "continuous": True}))
    model = {k: v for k, v in config["model"].items() if k != "beta_max"}
    assert "lacks beta_max" in _message(load(model=model))
    assert "scale_by_sigma=True, which only VE" in _message(
        load(model=config["model"] | {"scale_by_sigma": True})
    )
    assert "scale_by_sigma=False" in _message(load(training={"sde": "vesde", "continuous": False}))
    assert "called 'vp/cifar'" in _message(lambda: interop.score_sde_denoiser(state, "vp/cifar"))


def test_the_average_is_what_is_read(tmp_path):
    file = interop.read_torch(FOLDER / "score_sde.pth")
    weights = interop.score_sde_ema(file["model"], file["ema"]["shadow_params"])
    np.testing.assert_array_equal(weights["all_modules.1.weight"], np.arange(6.0).reshape(2, 3) + 1)
    np.testing.assert_array_equal(weights["all_modules.0.W"], [1, 2])
    # The folder is called like a configuration, and names the network that the file is not.
    folder = tmp_path / "vp" / "cifar10_ddpmpp_continuous"
    folder.mkdir(parents=True)
    shutil.copy(FOLDER / "score_sde.pth", folder / "checkpoint_26.pth")
    assert "do not fit this NCSNpp" in _message(
        lambda: interop.load_score_sde(folder / "checkpoint_26.pth")
    )
    assert "its folder is not called like" in _message(
        lambda: interop.load_score_sde(FOLDER / "score_sde.pth")
    )


def test_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        interop.load_score_sde(tmp_path / "checkpoint_1", FLAX)
    path = tmp_path / "checkpoint_1"
    whole = (FOLDER / "flax_ncsnpp").read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "checkpoint_1 is truncated or damaged" in _message(
            lambda: interop.load_score_sde(path, FLAX)
        )
    for damage in (
        b"\xc1",
        b"\xc7\x02\x01ab",
        b"\xd4\x05a",
        b"\xc7\x0f\x01\x93\x91\x01\xa6object\xc4\x01a",
    ):
        path.write_bytes(damage)
        assert "truncated or damaged" in _message(lambda: interop.read_flax(path))
    path.write_bytes(b"\x81\xa1a\x01")
    assert "holds ['a'], expected 'params_ema'" in _message(
        lambda: interop.load_score_sde(path, FLAX)
    )
    state = interop.read_flax(FOLDER / "flax_ncsnpp")
    assert state["lr"] == 2e-4 and state["step"] == 7 and state["rng"].dtype == np.uint32
