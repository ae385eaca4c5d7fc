"""Attention's kernels, linear maps with a transpose of their own, and dropout's generator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from jax.test_util import check_grads

import eqdiff.nn as nn
from eqdiff._linear_map import linear_map
from eqdiff._platform import on_nvidia
from eqdiff.nn import _attend
from eqdiff.nn._dropout import draw_dropout, threefry


needs_x64 = pytest.mark.skipif(
    not jax.config.jax_enable_x64, reason="finite differences need float64"
)


def _softmax_attention(q, k, v):
    # One loop turn per head, in NumPy and float64.
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    out = np.empty_like(q)
    for head in range(q.shape[1]):
        logits = q[:, head] @ k[:, head].T / np.sqrt(q.shape[-1])
        weights = np.exp(logits - logits.max(1, keepdims=True))
        out[:, head] = weights / weights.sum(1, keepdims=True) @ v[:, head]
    return out


def _qkv(getkey, dtype=jnp.float32, tokens=40):
    return tuple(jax.random.normal(getkey(), (tokens, 2, 8), dtype) for _ in range(3))


@pytest.mark.parametrize("attention", [nn.PlainAttention(), nn.FusedAttention()])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2), (jnp.float64, 1e-14)]
)
def test_both_kernels_are_softmax_attention(getkey, attention, dtype, tolerance):
    if dtype == jnp.float64 and not jax.config.jax_enable_x64:
        pytest.skip("needs float64 (EQDIFF_TEST_X64=0)")
    qkv = _qkv(getkey, dtype)
    out = attention(*qkv)
    assert out.dtype == dtype
    want = _softmax_attention(*qkv)
    assert np.max(np.abs(np.asarray(out, np.float64) - want)) < tolerance * np.max(np.abs(want))


def _without_cudnn(q, k, v):
    # In place of `_attend._cudnn`, where there is no GPU.
    return jax.vjp(_attend._plain, q[None], k[None], v[None])


@pytest.mark.slow
@needs_x64
def test_derivatives_of_the_fused_kernel_in_both_modes(getkey, monkeypatch):
    # Without a fused kernel: what is tested are the rules that connect the three maps.
    monkeypatch.setattr(_attend, "_cudnn", _without_cudnn)

    qkv = tuple(jax.random.normal(getkey(), (5, 3, 4), jnp.float64) for _ in range(3))

    def attend(q, k, v):
        return _attend._fused(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v))

    check_grads(attend, qkv, order=2, modes=("fwd", "rev"))
    batch = tuple(jnp.stack([a, 2 * a], axis) for a, axis in zip(qkv, (0, 1, 0), strict=True))
    f = jax.jit(jax.vmap(attend, (0, 1, None)))
    check_grads(f, (*batch[:2], qkv[2]), order=2, modes=("fwd", "rev"))


@pytest.mark.slow
def test_a_network_in_half_precision_has_all_derivatives(getkey, monkeypatch):
    monkeypatch.setattr(_attend, "_cudnn", _without_cudnn)

    def build(key):
        options = dict(channels=16, depth=1, num_heads=2, compute_dtype=jnp.bfloat16)
        return nn.DiT(1, 1, 2, **options, key=key)

    net, x = build(getkey()), jax.random.normal(getkey(), (1, 16, 16), jnp.float32)

    def energy(x):
        return jnp.sum(net(3.0, x) ** 2)

    jax.jit(lambda x: jax.jvp(jax.grad(energy), (x,), (x,)))(x)
    jax.jit(jax.grad(lambda x: jax.jvp(energy, (x,), (x,))[1]))(x)


def test_what_needs_devices_is_in_sight_of_jax(getkey, monkeypatch):
    # JAX compiles with the devices in hand if it sees a kernel that asks for them in a program. A
    # kernel out of sight, in a rule of ours, would fail on a GPU alone.
    from jax.experimental.custom_partitioning import custom_partitioning

    marked = custom_partitioning(lambda q: 2 * q)
    marked.def_partition(
        infer_sharding_from_operands=lambda mesh, args, result: args[0].sharding,
        partition=lambda mesh, args, result: (
            mesh,
            lambda q: 2 * q,
            args[0].sharding,
            (args[0].sharding,),
        ),
        sharding_rule="... -> ...",
    )

    def seen(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "custom_partitioning":
                return True
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns") and seen(inner):
                    return True
        return False

    def cudnn(q, k, v):
        out, vjp = _without_cudnn(q, k, v)
        return out, lambda d_out: vjp(marked(d_out))

    monkeypatch.setattr(_attend, "_cudnn", cudnn)
    qkv = _qkv(getkey, jnp.bfloat16)

    def gradient(q, k, v):
        return jax.grad(lambda q: jnp.sum(nn.FusedAttention()(q, k, v)))(q)

    assert seen(jax.make_jaxpr(jax.jit(gradient))(*qkv).jaxpr)


def test_the_other_implementation_is_for_nvidia_alone():
    def f(x):
        return on_nvidia(lambda x: [jnp.cos(x)], lambda x: [jnp.sin(x)], x, outputs_like=(0,))[0]

    x = jnp.asarray([0.5, 1.0], jnp.float32)
    assert jnp.allclose(jax.vmap(f)(x), jnp.sin(x))
    assert jnp.allclose(jax.vmap(jax.grad(f))(x), jnp.cos(x))
    traced = jax.jit(jax.vmap(f)).trace(x)
    assert "cosine" in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "cosine" not in traced.lower(lowering_platforms=("cpu",)).as_text()


def test_a_linear_map_uses_its_own_transpose():
    # A transpose that is wrong on purpose shows where it is used, and where the map is.
    def f(x):
        double = lambda r, v: [2 * v[0]]  # noqa: E731
        triple = lambda r, v: [3 * v[0]]  # noqa: E731
        return linear_map(double, triple, [like], [x], inputs_like=(0,), outputs_like=(0,))[0]

    like = jnp.zeros((2,), jnp.float32)
    x = jnp.ones((2,), jnp.float32)
    pairs = jnp.ones((3, 2), jnp.float32)
    assert jnp.array_equal(f(x), 2 * x)
    assert jnp.array_equal(jax.jvp(f, (x,), (x,))[1], 2 * x)
    assert jnp.array_equal(jax.grad(lambda x: jnp.sum(f(x)))(x), 3 * x)
    assert jnp.array_equal(jax.grad(lambda x: jnp.sum(jax.vmap(f)(x)))(pairs), 3 * pairs)
    transposed = jax.linear_transpose(f, x)
    assert jnp.array_equal(transposed(x)[0], 3 * x)
    assert jnp.array_equal(jax.linear_transpose(lambda y: transposed(y)[0], x)(x)[0], 2 * x)


def test_dropout_draws_from_jaxs_own_threefry(getkey):
    key, counter = jax.random.key_data(getkey()), jnp.arange(10, dtype=jnp.uint32)
    words = threefry((key[0], key[1]), (counter[:5], counter[5:]))
    assert jnp.array_equal(jnp.concatenate(words), threefry_2x32(key, counter))


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_dropout_keeps_the_mean(getkey, rate):
    keep, gain = draw_dropout(rate, (200, 1000), getkey())
    assert abs(jnp.mean(keep) - (1 - rate)) < 0.005
    assert abs(gain * jnp.mean(keep) - 1) < 0.01
    assert abs(gain * (1 - rate) - 1) < 2**-15


@pytest.mark.parametrize("channels", [1, 3, 4, 10])
def test_dropout_of_neighbours_is_independent(getkey, channels):
    keep = np.asarray(draw_dropout(0.5, (128, 128, channels), getkey()).keep, np.float64) - 0.5
    assert keep.shape == (128, 128, channels)
    flat = keep.ravel()
    # Correlations at a distance of pixels, rows and channels: 4σ of an independent draw.
    for lag in (1, 2, 3, channels, 128 * channels, 5 * channels + 1):
        correlation = np.mean(flat[lag:] * flat[:-lag]) * 4
        assert abs(correlation) < 4 / np.sqrt(flat.size - lag)


def test_dropout_of_an_example_depends_on_its_key_alone(getkey):
    def draw(key):
        return draw_dropout(0.3, (8, 8, 6), key).keep

    keys = jax.random.split(getkey(), 4)
    batch = jax.vmap(draw)(keys)
    assert jnp.array_equal(batch[2], draw(keys[2]))
    assert jnp.array_equal(batch, jax.jit(jax.vmap(draw))(keys))
    agreement = jnp.mean(batch[0] == batch[1])
    assert abs(agreement - (0.7**2 + 0.3**2)) < 0.12


def test_no_dropout_without_a_key_or_a_rate(getkey):
    assert draw_dropout(0.3, (4, 4), None) is None
    assert draw_dropout(0.0, (4, 4), getkey()) is None


def test_dropout_takes_keys_of_every_generator():
    masks = [
        draw_dropout(0.5, (8, 8), jax.random.key(seed, impl=impl)).keep
        for impl in ("threefry2x32", "rbg")
        for seed in (0, 1)
    ]
    assert not jnp.array_equal(masks[0], masks[1])
    assert not jnp.array_equal(masks[2], masks[3])
