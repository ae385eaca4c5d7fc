"""guided-diffusion's networks: outputs and gradients of the official code, from its weights.

Float64 tells whether the mathematics is the same (the tolerance is then the official float32
error); float32 is what users run, and what the suite's float32 leg compares.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden, load_golden_config, random_network
from toys import quick_jit

import eqdiff.interop as interop
import eqdiff.nn as nn


LEGACY, NEW = "public_guided_unet_legacy", "public_guided_unet_neworder"
ADAPTIVE, ATTENTION = "public_guided_encoder_adaptive", "public_guided_encoder_attention"
# The number of parameters that the official script counted.
PARAMETERS = {LEGACY: 367_686, NEW: 829_254, ADAPTIVE: 301_833, ATTENTION: 381_899}


def _state(name):
    golden = load_golden(name)
    return {k[6:]: v.astype(np.float32) for k, v in golden.items() if k.startswith("state/")}


def _config(name):
    return load_golden_config(name)["kwargs"]


def _load(name, dtype=jnp.float32):
    load = interop.openai_unet if name in (LEGACY, NEW) else interop.openai_classifier
    net = load(_state(name), _config(name), compute_dtype=dtype)
    return jax.tree.map(lambda p: jnp.asarray(np.asarray(p), dtype), net)


@pytest.mark.parametrize(
    "name", [pytest.param(LEGACY, marks=pytest.mark.slow), NEW, ADAPTIVE, ATTENTION]
)
def test_outputs_and_gradients(name):
    golden = load_golden(name)
    dtype = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
    net = _load(name, dtype)
    assert sum(p.size for p in jax.tree.leaves(net)) == PARAMETERS[name]
    t, x, w = (jnp.asarray(golden[f"io/{k}"], dtype) for k in "txw")
    y = jnp.asarray(golden["io/y"], jnp.int32) if "io/y" in golden else None

    @quick_jit
    def run(net, x):
        def loss(net, x):
            out = jax.vmap(net)(t, x, y)
            return jnp.sum(out * w), out

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(net, x)

    (grad_net, grad_x), out = run(net, x)
    assert out.dtype == dtype
    assert_golden(out, name, "io/out")
    assert_golden(grad_x, name, "io/grad_x")
    gradients = interop.openai_state_dict(
        grad_net, use_new_attention_order=_config(name).get("use_new_attention_order", False)
    )
    keys = [key for key in golden if key.startswith("grad/")]
    assert len(keys) >= 6
    for key in keys:
        assert_golden(gradients[key.removeprefix("grad/")], name, key)


@pytest.mark.parametrize("name", PARAMETERS)
def test_state_dict_round_trip(name):
    state, new_order = _state(name), _config(name).get("use_new_attention_order", False)
    again = interop.openai_state_dict(_load(name), use_new_attention_order=new_order)
    assert list(again) == list(state)
    for key, value in state.items():
        np.testing.assert_array_equal(again[key], value)


def test_a_wrong_order_is_another_permutation():
    # The orders differ where there are two heads, and each undoes itself alone.
    net = _load(LEGACY)
    legacy, new = (
        interop.openai_state_dict(net, use_new_attention_order=order) for order in (False, True)
    )
    differ = {k for k in legacy if not np.array_equal(legacy[k], new[k])}
    assert differ and all(".qkv." in k for k in differ)
    # 32 channels are two heads of 16: (head, {q, k, v}, 16) and ({q, k, v}, head, 16).
    key = "middle_block.1.qkv.bias"
    blocks = legacy[key].reshape(2, 3, 16)
    np.testing.assert_array_equal(new[key], blocks.swapaxes(0, 1).reshape(-1))


# By our pooling: the official one, and the weights that the official class has in `out`.
_HEADS = [
    (nn.AveragePool(), "adaptive", {"out.0": (8,), "out.3": (5, 8, 1, 1)}),
    (nn.SpatialPool(), "spatial", {"out.0": (2048, 24), "out.2": (5, 2048)}),
    (
        nn.SpatialPool(normalise=True),
        "spatial_v2",
        {"out.0": (2048, 24), "out.1": (2048,), "out.3": (5, 2048)},
    ),
]


@pytest.mark.parametrize(("pool", "name", "weights"), _HEADS, ids=[h[1] for h in _HEADS])
def test_heads_have_official_names(pool, name, weights):
    config = dict(
        image_size=8,
        in_channels=2,
        model_channels=32,
        out_channels=5,
        num_res_blocks=1,
        attention_resolutions=(),
        channel_mult=(1,),
        pool=name,
    )
    weights = {
        k: tuple(32 if n == 8 else 96 if n == 24 else n for n in s) for k, s in weights.items()
    }
    net = random_network(
        lambda key: nn.UNetClassifier(
            nn.UNetShape(2, 5, 32, 1, (1,), ()),
            nn.styles.iddpm(heads=nn.styles.Heads(1), modulation=nn.styles.Added()),
            nn.embeddings.iddpm(),
            pool,
            key=key,
        )
    )
    state = interop.openai_state_dict(net)
    found = {k: v.shape for k, v in state.items() if k.startswith("out.")}
    expected = {f"{k}.weight": shape for k, shape in weights.items()}
    expected |= {f"{k}.bias": shape[:1] for k, shape in weights.items()}
    assert found == expected
    again = interop.openai_classifier(state, config)
    assert jax.tree.structure(again) == jax.tree.structure(net)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(net), strict=True):
        np.testing.assert_array_equal(a, b)
