"""EDM's pickles: preconditioned networks against the official numbers, and what a pickle says."""

import json
import pathlib
import pickle
import sys
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden, load_golden_config, random_network
from toys import quick_jit

import eqdiff as eqd
from eqdiff import interop
from eqdiff.interop.edm._file import read_edm
from eqdiff.interop.edm._load import _negated


FOLDER = pathlib.Path(__file__).parent / "interop"
NAMES = [
    "public_edm_ncsnpp",
    pytest.param("public_edm_ddpmpp", marks=pytest.mark.slow),
    pytest.param("public_edm_adm", marks=pytest.mark.slow),
]


def _state(name):
    golden = load_golden(name)
    return {k[6:]: v.astype(np.float32) for k, v in golden.items() if k.startswith("state/")}


def _config(name):
    config = load_golden_config(name)
    kwargs = {k: v for k, v in config["kwargs"].items() if k not in ("in_channels", "out_channels")}
    return config["precond"], kwargs | dict(img_channels=3, model_type=config["cls"])


@pytest.mark.parametrize("name", NAMES)
def test_denoisers_are_the_official_preconditioned_networks(name, x64, tmp_path):
    """D(y; σ), whole: x0 of x = αy at the time of σ, after a round trip through a file of ours."""
    precond, config = _config(name)
    golden = load_golden(name)
    denoiser = interop.load_edm(_state(name), config, precond=precond, compute_dtype=jnp.float64)
    eqd.save_model(tmp_path / "model", denoiser)
    denoiser = eqd.load_model(tmp_path / "model")
    wide = lambda a: a.astype(float) if eqx.is_inexact_array(a) else a  # noqa: E731
    denoiser = jax.tree.map(wide, denoiser)

    @quick_jit
    def run(y, sigma, args):
        def one(y, sigma, args):
            t = denoiser.process.time(-2 * jnp.log(sigma))
            return denoiser(t, denoiser.process.alpha(t) * y, args).x0

        return jax.vmap(one)(y, sigma, args)

    class_label = augment = None
    if "raw/class_labels" in golden:
        class_label = jnp.asarray(np.argmax(golden["raw/class_labels"], 1))
    if "raw/augment_labels" in golden:
        augment = jnp.asarray(golden["raw/augment_labels"], float)
    y, sigma = jnp.asarray(golden["precond/x"], float), jnp.asarray(golden["precond/sigma"], float)
    found = run(y, sigma, eqd.nn.Conditions(class_label, augment))
    assert_golden(np.float32(found), name, "precond/D")


def _song(in_channels, out_channels, mult, style, key):
    shape = eqd.nn.UNetShape(in_channels, out_channels, 8, 1, mult, (), stem_mult=1)
    return eqd.nn.UNet(shape, style, eqd.nn.embeddings.edm(), key=key)


def _tiny():
    net = random_network(lambda key: _song(1, 2, (1,), eqd.nn.styles.edm(), key))
    config = dict(
        img_resolution=4, img_channels=1, model_type="SongUNet", model_channels=8, num_blocks=1
    )
    config |= dict(channel_mult=[1], attn_resolutions=[], dropout=0.13)
    return interop.edm_state_dict(net, 4), config


def test_iddpm_is_the_cosine_schedule():
    state, config = _tiny()
    # The table of levels is a buffer of the preconditioner, outside the network.
    state = {f"model.{k}": v for k, v in state.items()} | {"u": np.zeros(1001, np.float32)}
    denoiser = interop.load_edm(state, config, precond="iDDPMPrecond")
    # Its table of noise levels is the schedule's (test_precondition_edm); the clip is 1 − C_1.
    expected = eqd.cosine_schedule(1000)
    np.testing.assert_allclose(denoiser.process.betas, expected.betas, rtol=1e-11)
    np.testing.assert_array_equal(denoiser.process.c_noises, np.arange(1000))
    assert isinstance(denoiser.variance, eqd.LearnedRange)
    u = load_golden("public_edm_precond")["iDDPMPrecond/table_M1000/u"].astype(np.float64)[:1000]
    levels = np.sqrt(1 / denoiser.process.alpha_bar - 1)[::-1]
    np.testing.assert_allclose(u, levels, rtol=1e-3)


@pytest.mark.parametrize("steps", [1000, 500])
def test_vp_networks_know_the_steps_of_their_schedule(steps):
    state, config = _tiny()
    state = {k: v[:1] if k.startswith("dec.4x4_aux_conv") else v for k, v in state.items()}
    denoiser = interop.load_edm(
        state, config | dict(M=steps, beta_d=15.0, beta_min=0.2), precond="VPPrecond"
    )
    assert denoiser.process == eqd.VPSDE(0.2, 15.2)
    c_noise = denoiser.c_noise
    found = denoiser.process.c_noise(0.5) if c_noise is None else c_noise(denoiser.process, 0.5)
    np.testing.assert_allclose(found, 0.5 * (steps - 1))


def test_ve_networks_are_negated_in_every_head():
    state, config = _tiny()
    state = {k: v[:1] if k.startswith("dec.4x4_aux_conv") else v for k, v in state.items()}
    config |= dict(embedding_type="positional")
    plain = interop.load_edm(state, config, precond="EDMPrecond").net
    denoiser = interop.load_edm(state, config, precond="VEPrecond")
    x = jnp.linspace(-1, 1, 16, dtype=jnp.float32).reshape(1, 4, 4)
    # D = x + σ F(x; log(σ/2)).
    run = quick_jit(lambda t: (denoiser(t, x).x0, x + t * plain(jnp.log(t / 2), x)))
    ours, official = run(jnp.float32(0.7))
    np.testing.assert_allclose(ours, official, rtol=1e-5, atol=1e-5)
    assert denoiser.process == eqd.EDMSDE(t0=0.02, t1=100.0)


def test_skip_pyramids_are_negated_too():
    skip = eqd.nn.styles.OutputSkip()
    net = random_network(
        lambda key: _song(1, 1, (1, 1), eqd.nn.styles.edm(output_pyramid=skip), key)
    )
    x = jnp.linspace(-1, 1, 16, dtype=jnp.float32).reshape(1, 4, 4)
    one, other = quick_jit(lambda: (net(jnp.float32(0.3), x), _negated(net)(jnp.float32(0.3), x)))()
    assert net.body.out is None and float(jnp.abs(one).max()) > 0.1
    np.testing.assert_allclose(one, -other, rtol=1e-6)


def _expected():
    rng = np.random.default_rng(0)
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 64
    return {
        f"model.{name}": taps[None, None]
        if name.endswith("resample_filter")
        else rng.standard_normal(shape).astype(np.float32) * np.float32(0.3)
        for name, shape in json.loads((FOLDER / "edm_shapes.json").read_text()).items()
    }


def test_a_pickle_of_whole_objects():
    """Written by torch and pickle, whose source would raise if it were run."""
    assert b"the source in the file was run" in (FOLDER / "edm.pkl").read_bytes()
    module = read_edm(FOLDER / "edm.pkl")
    assert module.class_name == "EDMPrecond"
    assert (
        module.init_kwargs["channel_mult"] == [1, 1] and module.init_kwargs["sigma_max"] == np.inf
    )
    expected = _expected()
    assert sorted(module.state_dict) == sorted(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(module.state_dict[name], array)
    denoiser = interop.load_edm(FOLDER / "edm.pkl")
    assert isinstance(denoiser.net, eqd.nn.UNet) and denoiser.net.shape.num_classes == 3
    assert denoiser.process == eqd.EDMSDE() and denoiser.parameterisation == eqd.EDMPreconditioning(
        0.5
    )
    np.testing.assert_array_equal(
        denoiser.net.embed.time.frequencies, expected["model.map_noise.freqs"]
    )
    assert read_edm(FOLDER / "edm.pkl", "loss_fn").class_name == "EDMLoss"


class Persistent:
    def __init__(self, meta):
        self.meta = meta

    def __reduce__(self):
        return _reconstruct_persistent_obj, (self.meta,)


def _reconstruct_persistent_obj(meta):
    raise NotImplementedError


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Pickles a module of EDM, which pickle wants to find where its name says."""
    fake = types.ModuleType("torch_utils.persistence")
    fake._reconstruct_persistent_obj = _reconstruct_persistent_obj
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", fake)
    return lambda meta: (tmp_path / "net.pkl").write_bytes(pickle.dumps({"ema": Persistent(meta)}))


def _meta(**state):
    return dict(type="class", version=6, module_src="", class_name="EDMPrecond", state=state)


def test_pickles_that_are_none_of_edms(write, tmp_path):
    path = tmp_path / "net.pkl"

    def message(load=interop.load_edm):
        with pytest.raises(ValueError) as error:
            load(path)
        return str(error.value)

    write(_meta(_parameters={}, _modules={}))
    assert "does not record the arguments" in message()
    assert "do not fit this UNet" in message(lambda path: interop.load_edm(path, _tiny()[1]))
    write(_meta(_parameters={"a": 3}))
    assert "has a int as a, expected a tensor" in message()
    write(_meta(_modules={"a": [1]}))
    assert "has a list as the module a" in message()
    write(_meta(_parameters=[1]))
    assert "whose _parameters are not names and values" in message()
    write(dict(type="function"))
    assert "does not describe a class" in message()
    write(_meta() | dict(class_name="Generator"))
    assert "holds a Generator, expected one of EDM's preconditioners" in message()
    path.write_bytes(pickle.dumps({"G_ema": 1}))
    assert "holds the keys ['G_ema'], expected a module under 'ema'" in message()
    # A module within itself, which pickle would not write.
    name = "ctorch_utils.persistence\n_reconstruct_persistent_obj\n"
    meta = "}(Vtype\nVclass\nVclass_name\nVA\nVstate\n}q\x01u"
    path.write_bytes(f"{name}{meta}\x85Rq\x02h\x01V_modules\n}}Va\nh\x02ss0.".encode("latin1"))
    assert "nests modules without end" in message()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(precond="CTPrecond"), "precond is one of"),
        (dict(config={"img_resolution": 4}), "lacks img_channels"),
        (dict(config=_tiny()[1] | {"width": 3}), "unknown: ['width']"),
        (dict(config=None), "the state dict does not record the arguments of its network"),
        (
            dict(weights=FOLDER / "edm.pkl", precond="VPPrecond"),
            "edm.pkl holds a EDMPrecond, got precond='VPPrecond'",
        ),
    ],
)
def test_arguments_that_are_refused(options, message):
    state, config = _tiny()
    with pytest.raises(ValueError) as error:
        interop.load_edm(**{"weights": state, "config": config, **options})
    assert message in str(error.value)
