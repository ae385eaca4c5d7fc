"""score_sde's networks: outputs and gradients of the official code, from its weights.

In float64 (unless EQDIFF_TEST_X64=0) the tolerance is the official float32 error, so that it tells
whether the mathematics is the same. The three that compile fastest run always, the others are
marked slow.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden, load_golden_config
from toys import quick_jit

import eqdiff.interop as interop
from eqdiff.nn._ends import unwrapped


slow = pytest.mark.slow
NAMES = [
    "public_score_ncsnpp_ddpmpp",
    "public_score_ncsnpp_ddpmblock_skip",
    pytest.param("public_score_ncsnv2", marks=slow),
    pytest.param("public_score_ddpm", marks=slow),
    pytest.param("public_score_ncsnpp_ffhq_cat", marks=slow),
    pytest.param("public_score_ncsnpp_residual_fir", marks=slow),
    pytest.param("public_score_ncsnpp_residual_nofir", marks=slow),
    pytest.param("public_score_ncsnpp_ve_cont", marks=slow),
]
SMALL = "public_score_ncsnpp_ddpmpp"


def _state(name):
    # Parameters are stored in float16, buffers in their own dtype.
    golden = load_golden(name)
    state = {k[6:]: v for k, v in golden.items() if k.startswith("state/")}
    return {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in state.items()}


def _dtype():
    return jnp.float64 if jax.config.jax_enable_x64 else jnp.float32


def _load(name, dtype):
    net = interop.score_sde_network(_state(name), load_golden_config(name), compute_dtype=dtype)
    return jax.tree.map(lambda p: p.astype(dtype), net)


def _c_noises(name, dtype):
    # The official label is σ, the number of a noise level, or 999 t.
    labels, model = load_golden(name)["io/labels"], load_golden_config(name)["model"]
    if np.issubdtype(labels.dtype, np.integer):
        return jnp.asarray(np.log(load_golden(name)["state/sigmas"][labels]), dtype)
    if model["name"] == "ncsnpp" and model["embedding_type"] == "fourier":
        return jnp.asarray(np.log(labels.astype(np.float64)), dtype)
    return jnp.asarray(labels, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients(name):
    golden, dtype = load_golden(name), _dtype()
    net = _load(name, dtype)
    x, w = jnp.asarray(golden["io/x"], dtype), jnp.asarray(golden["io/w"], dtype)
    c_noises = _c_noises(name, dtype)

    @quick_jit
    def run(net, x):
        def loss(net, x):
            out = jax.vmap(net)(c_noises, x)
            return jnp.sum(out * w), out

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(net, x)

    (_, out), (grad_net, grad_x) = run(net, x)
    assert out.dtype == dtype
    # One σ's output may be thousands of times another's: each is held to its own size.
    # Where that is stored in float64, it is a float32 network over a float64 σ.
    for i, example in enumerate(np.asarray(out, np.float32)):
        assert_golden(example, name, "io/out", expected=golden["io/out"][i])
    assert_golden(grad_x, name, "io/grad_x")
    gradients = interop.score_sde_state_dict(grad_net)
    keys = [key for key in golden if key.startswith("grad/")]
    assert len(keys) >= 5 or "ncsnv2" in name
    for key in keys:
        assert_golden(gradients[key.removeprefix("grad/")], name, key)


@pytest.mark.parametrize("name", [n if isinstance(n, str) else n.values[0] for n in NAMES])
def test_state_dict_round_trip(name):
    state = _state(name)
    config = load_golden_config(name)
    again = interop.score_sde_state_dict(interop.score_sde_network(state, config))
    buffers = set(state) - set(again)
    assert buffers <= {"sigmas", "all_modules.0.W"}
    assert set(again) <= set(state)
    for key, value in again.items():
        np.testing.assert_array_equal(value, state[key])


def test_prefix_and_average():
    state, config = _state(SMALL), load_golden_config(SMALL)
    wrapped = {f"module.{k}": v for k, v in state.items()}
    shadow = [v + 1 for k, v in state.items() if k != "sigmas"]

    def load(shadow):
        checkpoint = {"model": wrapped, "ema": {"shadow_params": shadow}}
        return interop.score_sde_network(checkpoint, config)

    net = load(shadow)
    for key, value in interop.score_sde_state_dict(net).items():
        np.testing.assert_array_equal(value, state[key] + 1)
    with pytest.raises(ValueError, match="154 trained parameters, the average 153"):
        load(shadow[:-1])
    with pytest.raises(ValueError, match="all_modules.0.weight has shape"):
        load(shadow[::-1])


def test_fourier_frequencies_are_read_and_no_parameters():
    name = "public_score_ncsnpp_ve_cont"
    net = interop.score_sde_network(_state(name), load_golden_config(name))
    frequencies = unwrapped(net).embed.time.frequencies
    np.testing.assert_array_equal(frequencies, _state(name)["all_modules.0.W"])
    count = sum(p.size for p in jax.tree.leaves(eqx.filter(net, eqx.is_array)))
    # The official script counts 190835, with its sixteen frequencies, which it does not train.
    assert count == 190_835 - 16


def _message(function):
    with pytest.raises(ValueError) as error:
        function()
    return str(error.value)


def test_wrong_weights_are_all_named():
    state, config = _state(SMALL), load_golden_config(SMALL)
    del state["all_modules.2.bias"]
    state["all_modules.99.bias"] = np.zeros(4, np.float32)
    state["all_modules.6.NIN_1.W"] = np.zeros((32, 31), np.float32)
    message = _message(lambda: interop.score_sde_network(state, config))
    assert "do not fit this UNet (3 problems)" in message
    assert "missing all_modules.2.bias (16,)" in message
    assert "unexpected all_modules.99.bias (4,)" in message
    assert "all_modules.6.NIN_1.W has shape (32, 31), expected (32, 32)" in message


def test_wrong_config():
    state, config = _state(SMALL), load_golden_config(SMALL)

    def load(**parts):
        return lambda: interop.score_sde_network(state, {**config, **parts})

    model = config["model"]
    assert "got 'ncsn'" in _message(load(model={**model, "name": "ncsn"}))
    without = {k: v for k, v in model.items() if k not in ("nf", "fir")}
    assert "lacks model.nf, model.fir" in _message(load(model=without))
    assert "'data' is missing" in _message(
        lambda: interop.score_sde_network(state, {"model": model})
    )
    name = "public_score_ncsnpp_ddpmblock_skip"
    config = load_golden_config(name)
    config = {**config, "model": {**config["model"], "sigma_max": 50}}
    message = _message(lambda: interop.score_sde_network(_state(name), config))
    assert "200 noise levels from 0.01 to 30, config says 200 from 0.01 to 50" in message
