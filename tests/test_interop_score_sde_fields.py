"""Every field of score_sde's configurations: read, against the reference networks, or refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden, load_golden_config, random_network
from song_reference import Song
from toys import quick_jit

import eqdiff as eqd
from eqdiff import interop
from eqdiff.interop._weights import official
from eqdiff.interop.score_sde._entries_flax import flax_entries
from eqdiff.interop.score_sde._network import network
from eqdiff.interop.score_sde._presets import SCORE_SDE_PRESETS
from eqdiff.nn._ends import unwrapped


def _dtype():
    return jnp.float64 if jax.config.jax_enable_x64 else jnp.float32


def _as(dtype, tree):
    return jax.tree.map(lambda a: jnp.asarray(a, dtype) if np.ndim(a) else a, tree)


def _state(name):
    golden = load_golden(name)
    state = {k[6:]: np.asarray(v) for k, v in golden.items() if k.startswith("state/")}
    return _as(_dtype(), {k: v for k, v in state.items() if k != "sigmas"})


def _reference(state, config):
    run = quick_jit(lambda state, x, told: Song(state, config)(x, told))
    return lambda x, told: run(state, x, told)


NOFIR = ["ddpm", "ncsnpp_ddpmpp", "ncsnpp_residual_nofir"]


@pytest.mark.parametrize("name", [f"public_score_{name}" for name in NOFIR])
def test_the_reference_has_the_official_outputs(name):
    golden, config = load_golden(name), load_golden_config(name)
    reference, dtype = _reference(_state(name), config), _dtype()
    out = reference(
        jnp.asarray(golden["io/x"][0], dtype), jnp.asarray(golden["io/labels"][0], dtype)
    )
    assert_golden(np.asarray(out, np.float32), name, "io/out", expected=golden["io/out"][0])


BASE = SCORE_SDE_PRESETS["vp/cifar10_ddpmpp_continuous"]["model"] | dict(
    nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), dropout=0.1
)
DDPM = SCORE_SDE_PRESETS["vp/ddpm/cifar10_continuous"]["model"] | dict(
    nf=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(4,)
)
VE = dict(embedding_type="fourier", scale_by_sigma=True)
# Several fields at once, each of which another case has otherwise.
CASES = {
    "skips": BASE
    | dict(nonlinearity="elu", skip_rescale=False, progressive="output_skip")
    | dict(progressive_input="input_skip", progressive_combine="cat"),
    "ddpm-blocks": BASE
    | dict(nonlinearity="relu", resblock_type="ddpm", resamp_with_conv=False)
    | dict(progressive="residual", progressive_input="input_skip"),
    "ve": BASE | VE | dict(nonlinearity="lrelu", progressive_input="residual"),
    "unconditional": BASE
    | VE
    | dict(conditional=False, resblock_type="ddpm", attn_resolutions=(8, 4)),
    "ddpm": DDPM | dict(nonlinearity="elu", conditional=False),
    "ddpm-pool": DDPM | dict(nonlinearity="lrelu", resamp_with_conv=False, attn_resolutions=()),
}


def _config(model):
    exploding = model["scale_by_sigma"]
    return {
        "training": {"sde": "vesde" if exploding else "vpsde", "continuous": True},
        "data": {"image_size": 8, "num_channels": 2, "centered": not exploding},
        "model": model,
    }


def _random(config):
    """A random network, and its weights as the PyTorch code has them: with those it never uses."""
    frequencies = None
    if config["model"].get("embedding_type") == "fourier" and config["model"]["name"] == "ncsnpp":
        frequencies = tuple(np.linspace(-1, 1, config["model"]["nf"]).tolist())
    make, arguments = network(config, frequencies, _dtype())
    net = random_network(lambda key: make(**arguments, key=key))
    state = interop.score_sde_state_dict(net)
    if frequencies is not None and not config["model"]["conditional"]:
        state = {_later(name): array for name, array in state.items()}
        for name in [n for n in state if n.endswith(".Conv_1.bias")]:
            width, name = len(state[name]), name.replace("Conv_1", "Dense_0")
            weight = name.replace("bias", "weight")
            state |= {name: np.ones(width), weight: np.ones((width, 4 * config["model"]["nf"]))}
    return net, state | ({} if frequencies is None else {"all_modules.0.W": np.array(frequencies)})


def _later(name):
    # Fourier features are counted, in a network without an embedding too.
    start, number, rest = name.split(".", 2)
    return f"{start}.{int(number) + 1}.{rest}"


@pytest.mark.parametrize("case", CASES)
def test_fields_that_change_the_network(case):
    config, dtype = _config(CASES[case]), _dtype()
    _, state = _random(config)
    denoiser = interop.load_score_sde(state, config, compute_dtype=dtype)
    net = _as(dtype, denoiser.net)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 8, 8)), dtype)
    t = jnp.asarray(0.4, dtype)
    c_noise = denoiser.process.c_noise(t)
    told = c_noise if config["data"]["centered"] else jnp.exp(c_noise)
    expected = _reference(_as(dtype, state), config)(x, told)
    expected = expected / told if config["model"]["scale_by_sigma"] else expected
    rtol = 1e-10 if dtype == jnp.float64 else 2e-5
    ours = quick_jit(lambda net, c_noise, x: net(c_noise, x))(net, c_noise, x)
    np.testing.assert_allclose(ours, expected, atol=rtol * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("case", CASES)
def test_flax_reads_the_same_fields(case):
    """The same weights under Flax's names are the same network."""
    config = _config(CASES[case])
    net, state = _random(config)
    inner, tree = unwrapped(net), {}
    suffix = "pp" if config["model"]["name"] == "ncsnpp" else ""
    named = official(inner, flax_entries(inner, suffix))
    if "all_modules.0.W" in state:
        named["GaussianFourierProjection_0.W"] = state["all_modules.0.W"]
    for name, array in named.items():
        *layers, last = name.split(".")
        at = tree
        for layer in layers:
            at = at.setdefault(layer, {})
        at[last] = array
    read = interop.score_sde_network(tree, config, compute_dtype=_dtype())
    assert eqx.tree_equal(read, net)
    assert eqx.tree_equal(read, interop.score_sde_network(state, config, compute_dtype=_dtype()))
    if "GaussianFourierProjection_0.W" in named:
        del tree["GaussianFourierProjection_0"]
        with pytest.raises(ValueError, match=r"no frequencies GaussianFourierProjection_0\.W"):
            interop.score_sde_network(tree, config)


def test_conditional_means_nothing_to_a_ddpm():
    """Both official codes tell every block the time, whatever the field says."""
    state, config = _state("public_score_ddpm"), load_golden_config("public_score_ddpm")
    blind = {**config, "model": {**config["model"], "conditional": False}}
    read = [interop.score_sde_network(state, c) for c in (config, blind)]
    assert eqx.tree_equal(*read)


NCSNV2 = SCORE_SDE_PRESETS["ve/ncsnv2/cifar10"]
REFUSED = [
    (BASE, dict(nonlinearity="gelu"), "nonlinearity='gelu', expected 'swish', 'elu', 'relu' or"),
    (BASE, dict(normalization="InstanceNorm++"), "normalization='InstanceNorm++', expected 'Grou"),
    (DDPM, dict(normalization="VarianceNorm"), "normalization='VarianceNorm', expected 'GroupN"),
    (BASE, dict(conditional="False"), "conditional='False', expected True or False"),
    (BASE, dict(fir="no"), "fir='no', expected True or False"),
    (BASE, dict(fir=True, fir_kernel="1331"), "fir_kernel='1331', expected numbers"),
    (BASE, dict(skip_rescale=1), "skip_rescale=1, expected True or False"),
    (BASE, dict(resamp_with_conv=None), "resamp_with_conv=None, expected True or False"),
    (BASE, dict(resblock_type="resnet"), "resblock_type='resnet', expected 'biggan' or 'ddpm'"),
    (BASE, dict(progressive="input_skip"), "progressive='input_skip', expected 'none', 'output_"),
    (BASE, dict(progressive_input="skip"), "progressive_input='skip', expected 'none', 'input_s"),
    (BASE, dict(progressive_combine="mean"), "progressive_combine='mean', expected 'sum' or"),
    (BASE, dict(attention_type="ddpm++"), "attention_type='ddpm++', expected 'ddpm'"),
    (BASE, dict(conv_size=5), "conv_size=5, expected 3"),
    (BASE, dict(embedding_type="sinusoidal"), "embedding_type='sinusoidal', expected 'fourier'"),
    (BASE, dict(init_scale="zero"), "init_scale='zero', expected a number"),
    (BASE, dict(nf=8.0), "nf=8.0, expected a positive whole number"),
    (BASE, dict(ch_mult=2), "ch_mult=2, expected positive whole numbers"),
    (BASE, dict(dropout="0.1"), "dropout='0.1', expected a number"),
    (BASE, dict(scale_by_sigma="yes"), "scale_by_sigma='yes', expected True or False"),
    (BASE, dict(spectral_norm=True), "config has model.spectral_norm=True, which no network"),
    (BASE, dict(name="ncsn"), "model.name is one of ['ddpm', 'ncsnpp', 'ncsnv2_128'"),
    (BASE, VE | dict(scale_by_sigma=False), "sde='vpsde' and a network that takes Fourier feat"),
    (DDPM, dict(scale_by_sigma=True, sde="vpsde"), "scale_by_sigma=True, which only VE networks"),
    (DDPM, dict(scale_by_sigma=True), "continuous=True and a network that takes the number of"),
    (BASE, VE | dict(continuous=False), "continuous=False and a network that takes Fourier"),
    (NCSNV2["model"], dict(nonlinearity="relu", continuous=False), "nonlinearity='relu', expect"),
    (NCSNV2["model"], dict(interpolation="nearest_neighbor", continuous=False), "interpolation="),
    (
        NCSNV2["model"] | dict(beta_min=0.1, beta_max=20),
        dict(sde="vpsde"),
        "sde='vpsde' and a network that takes the number of",
    ),
]


@pytest.mark.parametrize(("base", "change", "message"), REFUSED, ids=[m for *_, m in REFUSED])
def test_fields_that_no_network_has(base, change, message):
    config = _config({**base, **change})
    for name in ("sde", "continuous"):
        if name in change:
            config["training"][name] = config["model"].pop(name)
    with pytest.raises(ValueError) as error:
        interop.load_score_sde({"all_modules.0.W": np.zeros(8)}, config)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["nonlinearity", "scale_by_sigma", "centered"])
def test_fields_that_are_missing(name):
    config = _config(BASE)
    part = "data" if name == "centered" else "model"
    config[part] = {k: v for k, v in config[part].items() if k != name}
    with pytest.raises(ValueError, match=rf"config of a ncsnpp lacks {part}\.{name}"):
        interop.score_sde_network({"all_modules.0.weight": np.zeros(8)}, config)


def test_fields_of_training_and_of_other_classes_change_nothing():
    _, state = _random(_config(BASE))
    config = _config(BASE | dict(ema_rate=0.9999, num_classes=10, interpolation="bilinear"))
    config["training"] |= dict(reduce_mean=True, likelihood_weighting=True, n_iters=3)
    config |= {"optim": {"lr": 1e-3}, "seed": 42}
    read = [interop.load_score_sde(state, c) for c in (config, _config(BASE))]
    assert eqx.tree_equal(*read)
    # Words are the official ones in any case of letters.
    loud = _config(BASE | dict(nonlinearity="Swish", resblock_type="BigGAN", progressive="None"))
    assert eqx.tree_equal(interop.load_score_sde(state, loud), read[0])


def test_a_side_that_no_level_has_is_no_attention():
    """A side of 10 at 14, 7: the official code compares sides, and no level has one of 10."""
    model = BASE | dict(ch_mult=(1, 2), attn_resolutions=(10, 7))
    data = {"image_size": 14, "num_channels": 2, "centered": True}
    _, arguments = network({"model": model, "data": data}, None, jnp.float32)
    assert arguments["attention_downsamples"] == (2,)


def test_activations_are_objects():
    styles = eqd.nn.styles
    assert styles.LeakyReLU(0.2) == styles.LeakyReLU() != styles.ReLU()
    with pytest.raises(ValueError, match=r"LeakyReLU\(slope=1.5\)"):
        styles.LeakyReLU(1.5)
