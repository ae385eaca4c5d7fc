"""`nn.UNet` against improved-diffusion's `UNetModel`: outputs and gradients of the official code.

Float64 tells whether the mathematics is the same (the tolerance is then the official float32
error); float32 is what users run.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden, load_golden_config

import eqdiff.interop as interop


NAMES = ["public_idiff_unet_a", "public_idiff_unet_b", "public_idiff_unet_c"]


def _state(name):
    golden = load_golden(name)
    return {
        key.removeprefix("state/"): value.astype(np.float32)
        for key, value in golden.items()
        if key.startswith("state/")
    }


def _load(name, dtype):
    config = load_golden_config(name)["kwargs"]
    net = interop.openai_unet(_state(name), config, compute_dtype=dtype)
    return jax.tree.map(lambda p: p.astype(dtype) if eqx.is_inexact_array(p) else p, net)


def _inputs(name, dtype):
    golden = load_golden(name)
    x, w = jnp.asarray(golden["io/x"], dtype), jnp.asarray(golden["io/w"], dtype)
    t = jnp.asarray(golden["io/t"], dtype)
    y = jnp.asarray(golden["io/y"], jnp.int32) if "io/y" in golden else None
    return t, x, y, w


# The smallest in float32 stands for the others where the slow ones are left out.
CASES = [
    pytest.param(name, dtype, marks=() if i == 2 and dtype == jnp.float32 else pytest.mark.slow)
    for i, name in enumerate(NAMES)
    for dtype in (jnp.float32, jnp.float64)
]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_outputs_and_gradients(name, dtype):
    if dtype == jnp.float64 and not jax.config.jax_enable_x64:
        pytest.skip("needs float64 (EQDIFF_TEST_X64=0)")
    net = _load(name, dtype)
    t, x, y, w = _inputs(name, dtype)

    @eqx.filter_jit
    def run(net, x):
        def loss(net_and_x):
            net, x = net_and_x
            out = jax.vmap(net, in_axes=(0, 0, None if y is None else 0))(t, x, y)
            return jnp.sum(out * w), out

        return eqx.filter_value_and_grad(loss, has_aux=True)((net, x))

    (_, out), (grad_net, grad_x) = run(net, x)
    assert out.dtype == dtype
    assert_golden(out, name, "io/out")
    assert_golden(grad_x, name, "io/grad_x")
    gradients = interop.openai_state_dict(grad_net)
    keys = [key for key in load_golden(name) if key.startswith("grad/")]
    assert len(keys) >= 7
    for key in keys:
        assert_golden(gradients[key.removeprefix("grad/")], name, key)


def test_state_dict_round_trip():
    for name in NAMES:
        state = _state(name)
        again = interop.openai_state_dict(_load(name, jnp.float32))
        assert list(again) == list(state)
        for key, value in state.items():
            np.testing.assert_array_equal(again[key], value)


def test_wrong_weights_are_all_named():
    name = NAMES[2]
    config = load_golden_config(name)["kwargs"]
    state = _state(name)
    del state["out.2.bias"]
    state["out.3.bias"] = np.zeros(4, np.float32)
    state["middle_block.1.qkv.weight"] = np.zeros((96, 32), np.float32)
    with pytest.raises(ValueError) as error:
        interop.openai_unet(state, config)
    message = str(error.value)
    assert "3 problems" in message
    assert "missing out.2.bias (6,)" in message
    assert "unexpected out.3.bias (4,)" in message
    assert "middle_block.1.qkv.weight has shape (96, 32), expected (96, 32, 1)" in message


def test_wrong_config():
    name = NAMES[2]
    config = load_golden_config(name)["kwargs"]
    with pytest.raises(ValueError, match="num_channels"):
        interop.openai_unet(_state(name), {**config, "num_channels": 32})
    config = {key: value for key, value in config.items() if key != "model_channels"}
    with pytest.raises(ValueError, match=r"missing: \['model_channels'\]"):
        interop.openai_unet(_state(name), config)
