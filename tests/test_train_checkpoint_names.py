"""What checkpoints call their arrays: as the network does, however a state packs them."""

import json
import pathlib
import shutil
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqdiff as eqd
from eqdiff import train
from eqdiff.train import _checkpoint


CHECKPOINTS = pathlib.Path(__file__).parent / "checkpoints"
LAYOUTS = {
    "flat": train.Flat(),
    "one vector": train.Flat(lambda name, leaf: "all"),
    "leaves": train.Leaves(),
}
MASK = {
    "flat": {"matrices": True, "vectors": False},
    "one vector": True,
    "leaves": lambda params: {name: x.ndim > 1 for name, x in params.items()},
}
PARAMETERS = ("linear.weight", "linear.bias", "scale", "empty")


class Net(eqx.Module):
    linear: eqx.nn.Linear
    scale: jax.Array
    counter: jax.Array
    empty: jax.Array
    activation: Callable = jax.nn.tanh

    def __call__(self, x):
        return self.activation(self.linear(x)) * self.scale


def make_optimiser(mask=None):
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-2, weight_decay=0.1, mask=mask)
    )


def make_state(layout="flat", mask=None):
    linear = eqx.nn.Linear(3, 3, dtype=jnp.float32, key=jax.random.key(0))
    scale = jnp.asarray([1.0, 2.0, 3.0], jnp.float32)
    net = Net(linear, scale, jnp.asarray(7, jnp.int32), jnp.zeros((0, 3), jnp.float32))
    return train.init(
        net,
        make_optimiser(mask),
        timesteps=eqd.SmoothedSecondMoment(eqd.cosine_schedule(8)),
        ema=(0.9, train.EMA(0.5)),
        layout=LAYOUTS[layout],
        key=jax.random.key(1),
    )


def loss_fn(net, t, x0, args, *, key):
    return jnp.mean((net(x0) - x0) ** 2), {}


def trained(state, batches, mask=None):
    step = train.make_step(loss_fn, make_optimiser(mask))
    metrics = []
    for x0 in batches:
        state, each = step(state, (x0, None))
        metrics.append(each)
    return state, metrics


def batches():
    return np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)


def manifest(checkpointer, step):
    text = (checkpointer.path(step) / "manifest" / "metadata").read_text()
    return json.loads(text)["body"]


def by_name(net):
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(net, eqx.is_inexact_array))
    return {jax.tree_util.keystr(k, simple=True, separator="."): np.asarray(x) for k, x in leaves}


def numbers(state):
    leaves = jax.tree.leaves(eqx.tree_at(lambda s: s.key, state, jax.random.key_data(state.key)))
    return [np.asarray(x) for x in leaves]


def assert_same_run(one, two):
    for a, b in [(one.net, two.net), *((one.ema_net(i), two.ema_net(i)) for i in (0, 1))]:
        a, b = by_name(a), by_name(b)
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_are_those_of_the_network(layout, tmp_path):
    checkpointer = train.Checkpointer(tmp_path)
    state = make_state(layout)
    checkpointer.save(0, state)
    prefixes = ("net", "ema.0", "ema.1", "opt_state.1.0.mu", "opt_state.1.0.nu")
    parameters = {f"{prefix}.{name}" for prefix in prefixes for name in PARAMETERS}
    others = {"net.counter", "opt_state.1.0.count", "key", "step"}
    others |= {f"timestep_state.{name}" for name in ("squares", "counts")}
    leaves = manifest(checkpointer, 0)["leaves"]
    assert set(leaves) == parameters | others
    assert leaves["opt_state.1.0.mu.linear.weight"]["shape"] == [3, 3]


@pytest.mark.parametrize("version", ["format1", "format2"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_old_formats_restore_and_continue(version, layout, tmp_path):
    """The numbers are those of the version that wrote it."""
    shutil.copytree(CHECKPOINTS / version, tmp_path / "copy")
    with jax.enable_x64(False):
        state, extra, step = train.Checkpointer(tmp_path / "copy").restore(make_state(layout))
        assert step == 3 and int(state.step) == 3 and int(state.net.counter) == 7
        state, metrics = trained(state, batches()[3:])
    np.testing.assert_allclose([m.loss for m in metrics], extra["losses"], rtol=2e-6)
    np.testing.assert_allclose([m.grad_norm for m in metrics], extra["grad_norms"], rtol=5e-6)
    nets = [state.net, state.ema_net(0), state.ema_net(1)]
    for net, expected in zip(nets, [extra["net"], *extra["averages"]], strict=True):
        for name, value in by_name(net).items():
            stored = np.reshape(expected[name], value.shape)
            np.testing.assert_allclose(value, stored, rtol=1e-5, atol=1e-6, err_msg=name)


def test_formats_1_and_2_are_what_they_say():
    for version in (1, 2):
        body = manifest(train.Checkpointer(CHECKPOINTS / f"format{version}"), 3)
        assert body["format"] == version and "arrays" not in body
        assert {f"net.{name}" for name in PARAMETERS} <= set(body["leaves"])


@pytest.mark.parametrize("saved, restored", [("flat", "leaves"), ("leaves", "one vector")])
def test_another_layout_restores(saved, restored, tmp_path):
    state, _ = trained(make_state(saved), batches()[:3])
    checkpointer = train.Checkpointer(tmp_path)
    checkpointer.save(3, state)
    other, _, _ = checkpointer.restore(make_state(restored))
    assert_same_run(state, other)
    state, _ = trained(state, batches()[3:])
    other, _ = trained(other, batches()[3:])
    assert_same_run(state, other)


@pytest.mark.parametrize("layout", ["flat", "leaves"])
def test_masked_optimisers_restore(layout, tmp_path):
    mask = MASK[layout]
    state, _ = trained(make_state(layout, mask), batches()[:3], mask)
    checkpointer = train.Checkpointer(tmp_path)
    checkpointer.save(3, {"nested": [state]})
    like = eqx.filter_eval_shape(lambda: {"nested": [make_state(layout, mask)]})
    other = checkpointer.restore(like)[0]["nested"][0]
    names = [f"{part}.{name}" for part in ("mu", "nu") for name in PARAMETERS]
    assert {f"nested.0.opt_state.1.0.{name}" for name in names} <= set(
        manifest(checkpointer, 3)["leaves"]
    )
    for a, b in zip(numbers(state), numbers(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_factored_optimiser_restores(tmp_path):
    optimiser = optax.adafactor(1e-2, min_dim_size_to_factor=2)
    net = eqx.nn.MLP(3, 3, 8, 1, dtype=jnp.float32, key=jax.random.key(0))
    timesteps, key = eqd.Uniform(eqd.cosine_schedule(8)), jax.random.key(0)

    def make():
        return train.init(net, optimiser, timesteps=timesteps, layout=train.Leaves(), key=key)

    state, _ = train.make_step(loss_fn, optimiser)(make(), (batches()[0], None))
    checkpointer = train.Checkpointer(tmp_path)
    checkpointer.save(1, state)
    other, _, _ = checkpointer.restore(make())
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for a, b in zip(numbers(state), numbers(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_format_of_the_future_is_refused(tmp_path, monkeypatch):
    checkpointer = train.Checkpointer(tmp_path)
    monkeypatch.setattr(_checkpoint, "FORMAT", 99)
    checkpointer.save(0, {"x": jnp.ones(1)})
    with pytest.raises(train.CheckpointError, match="format 99.*install a newer one"):
        checkpointer.restore({"x": jnp.ones(1)})
