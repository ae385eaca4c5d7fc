"""Checkpoints of two real processes: one folder, which both have written or none."""

import jax
import numpy as np
import optax
import pytest
from processes import outputs

import eqdiff as eqd
from eqdiff import train


# Enough numbers that a vector ends in zeros, which no file has.
SIZE = 300

STATE = f"""
import jax.numpy as jnp, optax, equinox as eqx, eqdiff as eqd
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
net = eqd.nn.MLP(2, {SIZE}, key=jax.random.key(0))
def make():
    return train.init(
        net, optax.adam(1e-3), timesteps=eqd.Uniform(eqd.VPSDE()), key=jax.random.key(1))
mesh = Mesh(np.asarray(jax.devices()), ("data",))
slots = make().packing.slots
sizes = dict()
for slot in slots:
    sizes[slot.vector] = sizes.get(slot.vector, 0) + slot.size
sizes = dict((make().params[name].size, size) for name, size in sizes.items())
def is_number(x):
    return eqx.is_array(x) and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
def placed(x, seed):
    # Every number tells where it belongs; long vectors are spread over all devices.
    if not is_number(x):
        return x
    full = np.arange(x.size) % 1000 + seed
    full[sizes.get(x.size, x.size):] = 0
    full = full.reshape(x.shape).astype(x.dtype)
    sharding = NamedSharding(mesh, P("data") if x.ndim == 1 and x.size % mesh.size == 0 else P())
    return jax.make_array_from_callback(x.shape, sharding, lambda part: full[part])
def spread(seed):
    return jax.tree.map(lambda x: placed(x, seed), make())
def same(one, two):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return all(np.array_equal(x.data, y.data) for a, b in pairs if is_number(a)
        for x, y in zip(a.addressable_shards, b.addressable_shards, strict=True))
"""


def expected(seed):
    net = eqd.nn.MLP(2, SIZE, key=jax.random.key(0))
    with jax.enable_x64(False):
        state = train.init(
            net, optax.adam(1e-3), timesteps=eqd.Uniform(eqd.VPSDE()), key=jax.random.key(1)
        )
    arrays = state.params | {f"ema {k}": x for k, x in state.ema[0].items()}
    return state, {
        k: (np.arange(x.size) % 1000 + seed).astype(np.float32) for k, x in arrays.items()
    }


@pytest.mark.slow
def test_each_process_writes_its_shards_while_they_train(tmp_path):
    """Restored by the two, by two of other shards, and by one process alone."""
    body = f"""
    folder = {str(tmp_path)!r}
    state = spread(0)
    assert not state.params["matrices"].is_fully_addressable
    # A sum over all devices: nothing of saving may wait in between.
    def add(x):
        return x + jnp.asarray(1, x.dtype) + (0 * x.sum()).astype(x.dtype)
    step = jax.jit(lambda tree: jax.tree.map(add, tree), donate_argnums=0)
    arrays, rest = eqx.partition(state, is_number)
    checkpointer = train.Checkpointer(folder, keep=2)
    for n in range(1, 31):
        arrays = step(arrays)
        if n % 5 == 0:
            checkpointer.save_in_background(n, eqx.combine(arrays, rest), n, score=-n)
    checkpointer.wait()
    restored, extra, at = train.Checkpointer(folder).restore(spread(7))
    assert (extra, at) == (30, 30) and same(restored, spread(30))
    here, _, _ = train.Checkpointer(folder).restore(make(), step=25)
    assert here.params["matrices"].is_fully_addressable
    out([checkpointer.steps(), checkpointer.best_step(), float(here.params["matrices"][999])])
    """
    found = outputs(STATE + "\n" + _dedent(body), count=2, devices=2)
    assert found == 2 * [[[25, 30], 30, 999 + 25]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000025", "step_00000030"]
    state, numbers = expected(30)
    net = train.Checkpointer(tmp_path).restore_net(state.net, average=0)
    with jax.enable_x64(False):
        restored, _, _ = train.Checkpointer(tmp_path).restore(state)
        wanted = train.Checkpointer(tmp_path).restore(state)[0].ema_net()
    for name in state.params:
        size = sum(slot.size for slot in state.packing.slots if slot.vector == name)
        padded = np.where(np.arange(numbers[name].size) < size, numbers[name], 0)
        np.testing.assert_array_equal(restored.params[name], padded)
        np.testing.assert_array_equal(restored.ema[0][name], padded)
    assert any(
        x.size > sum(s.size for s in state.packing.slots if s.vector == k)
        for k, x in state.params.items()
    )
    for a, b in zip(jax.tree.leaves(net), jax.tree.leaves(wanted), strict=True):
        if isinstance(a, jax.Array):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_what_fails_in_one_process_fails_in_both(tmp_path):
    """Neither waits for the other, none reports what is not there, and nothing is left of it."""
    body = f"""
    import resource
    folder = {str(tmp_path)!r}
    checkpointer = train.Checkpointer(folder)
    checkpointer.save(1, spread(1))
    texts = []
    for failing, step in [(0, 2), (1, 3)]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if index == failing:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        checkpointer.save_in_background(step, spread(step))
        try:
            checkpointer.wait()
        except train.CheckpointError as error:
            texts.append(str(error))
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    checkpointer.save(4, spread(4))
    # A checkpoint that is damaged is so for all.
    if index == 0:
        (checkpointer.path(4) / "manifest" / "metadata").write_text("")
    import warnings
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        restored, _, step = checkpointer.restore(spread(0))
    out([texts, step, same(restored, spread(1)), [str(each.message) for each in caught]])
    """
    for index, (texts, step, good, caught) in enumerate(outputs(STATE + "\n" + _dedent(body))):
        own, other = texts[index], texts[1 - index]
        assert f"(in process {1 - index}: File too large)" in other and "(File too" in own
        assert all("That of step 1 is still good." in text for text in texts)
        assert step == 1 and good and "step_00000004 is damaged" in caught[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000004"]


def _dedent(text):
    return "\n".join(line[4:] for line in text.splitlines())
