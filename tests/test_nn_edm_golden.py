"""EDM's networks: outputs and gradients of the official code, from its weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden, load_golden_config
from toys import quick_jit

import eqdiff as eqd
import eqdiff.interop as interop


NAMES = [
    "public_edm_ddpmpp",
    pytest.param("public_edm_ncsnpp", marks=pytest.mark.slow),
    pytest.param("public_edm_adm", marks=pytest.mark.slow),
]
# The number of parameters that the official script counted.
PARAMETERS = {"public_edm_ddpmpp": 189_491, "public_edm_ncsnpp": 191_011, "public_edm_adm": 828_003}


def _state(name):
    golden = load_golden(name)
    return {k[6:]: v.astype(np.float32) for k, v in golden.items() if k.startswith("state/")}


def _config(name):
    config = load_golden_config(name)
    return {"model_type": config["cls"], **config["kwargs"]}


def _load(name, dtype):
    net = interop.edm_network(_state(name), _config(name), compute_dtype=dtype)
    return jax.tree.map(lambda p: p.astype(dtype), net)


def _conditions(name, dtype):
    golden = load_golden(name)
    class_label = augment = None
    if "raw/class_labels" in golden:
        class_label = jnp.asarray(np.argmax(golden["raw/class_labels"], 1))
    if "raw/augment_labels" in golden:
        augment = jnp.asarray(golden["raw/augment_labels"], dtype)
    return eqd.nn.Conditions(class_label, augment)


# c_skip, c_in, c_out, c_noise of σ (Karras et al. 2022, table 1; the data's deviation is a half).
_PRECONDITIONING = {
    "public_edm_ncsnpp": lambda s: (1, 1, s, np.log(s / 2)),
    "public_edm_adm": lambda s: (
        0.25 / (s**2 + 0.25),
        1 / np.sqrt(s**2 + 0.25),
        s / 2 / np.sqrt(s**2 + 0.25),
        np.log(s) / 4,
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients(name):
    golden = load_golden(name)
    dtype = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
    net = _load(name, dtype)
    assert sum(p.size for p in jax.tree.leaves(net)) == PARAMETERS[name]
    x, w = jnp.asarray(golden["raw/xin"], dtype), jnp.asarray(golden["raw/w"], dtype)
    args = _conditions(name, dtype)

    @quick_jit
    def run(c_noises, x, args):
        def loss(x):
            out = jax.vmap(net)(c_noises, x, args)
            return jnp.sum(out * w), out

        return jax.value_and_grad(loss, has_aux=True)(x)

    (_, out), grad_x = run(jnp.asarray(golden["raw/noise_labels"], dtype), x, args)
    assert out.dtype == dtype
    assert_golden(out, name, "raw/out")
    assert_golden(grad_x, name, "raw/grad_x")
    if name not in _PRECONDITIONING:
        return
    # The network inside its preconditioning, with classes and, where they are zero vectors,
    # without.
    sigma = golden["precond/sigma"].astype(np.float64)
    skip, scale, gain, c_noises = (
        jnp.asarray(np.broadcast_to(c, sigma.shape), dtype) for c in _PRECONDITIONING[name](sigma)
    )
    y = jnp.asarray(golden["precond/x"], dtype)

    def column(c):
        return jnp.reshape(c, (-1, 1, 1, 1))

    (_, inner), _ = run(c_noises, column(scale) * y, args)
    assert_golden(column(skip) * y + column(gain) * inner, name, "precond/D")
    forward = quick_jit(jax.vmap(net))
    inner = forward(c_noises, column(scale) * y)
    assert_golden(column(skip) * y + column(gain) * inner, name, "precond/D0")


@pytest.mark.parametrize("name", PARAMETERS)
def test_state_dict_round_trip(name):
    state = {k.removeprefix("model."): v for k, v in _state(name).items()}
    again = interop.edm_state_dict(interop.edm_network(state, _config(name)), 16)
    assert all(k.endswith((".resample_filter", ".freqs")) for k in set(state) - set(again))
    for key, value in again.items():
        np.testing.assert_array_equal(value, state[key])


def test_heads_are_interleaved_per_channel():
    # Official qkv rows are (head, c, {q, k, v}); no golden network has two heads.
    from eqdiff.interop.edm._entries import _qkv

    weight, bias = _qkv(2)
    names = np.array([f"{p}{h}{c}" for h in "01" for c in "abc" for p in "qkv"])
    (again,) = bias.to_official(bias.to_ours(names))
    np.testing.assert_array_equal(again, names)
    expected = [f"{p}{h}{c}" for p in "qkv" for h in "01" for c in "abc"]
    assert list(bias.to_ours(names)) == expected
    array = np.arange(18 * 6).reshape(18, 6, 1, 1)
    np.testing.assert_array_equal(weight.to_official(weight.to_ours(array))[0], array)
    np.testing.assert_array_equal(weight.to_ours(array)[0], bias.to_ours(array[:, 0, 0, 0]))


def _message(function):
    with pytest.raises(ValueError) as error:
        function()
    return str(error.value)


def test_wrong_weights_and_configs():
    name = "public_edm_ncsnpp"
    state, config = _state(name), _config(name)
    del state["model.map_layer0.bias"]
    message = _message(lambda: interop.edm_network(state, config))
    assert "UNet (1 problems)" in message and "missing map_layer0.bias (64,)" in message
    message = _message(lambda: interop.edm_network(state, {**config, "resample_filter": [1, 1]}))
    assert "is not the filter (1, 1)" in message
    message = _message(lambda: interop.edm_network(state, {**config, "nf": 3}))
    assert "unknown: ['nf']" in message
    message = _message(lambda: interop.edm_network(state, {"in_channels": 3, "out_channels": 3}))
    assert "missing: ['img_resolution']" in message
    message = _message(lambda: interop.edm_network(state, {**config, "model_type": "UNet"}))
    assert "got 'UNet'" in message
