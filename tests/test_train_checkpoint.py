"""Checkpoints: exact resume, refusal of what does not fit, and damage that is noticed."""

import json
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from checkpoint_toys import (
    assert_identical,
    BATCHES,
    Counting,
    damage,
    files,
    loss_fn,
    make_state,
    OPTIMISER,
)

from eqdiff import train


@pytest.mark.slow
@pytest.mark.parametrize("mesh, like", [(None, "shapes"), ("two devices", "state")])
def test_exact_resume(mesh, like, tmp_path):
    mesh = None if mesh is None else train.data_mesh()
    step = train.make_step(loss_fn, OPTIMISER, mesh=mesh)
    state = make_state()
    for n, x0 in enumerate(BATCHES):
        if n == 2:
            train.Checkpointer(tmp_path).save(2, state, {"position": [1, 2], "note": "é"})
        state, _ = step(state, (x0, None))

    like = make_state(seed=1) if like == "state" else eqx.filter_eval_shape(make_state)
    resumed, extra, at = train.Checkpointer(tmp_path).restore(like)
    assert at == 2 and int(resumed.step) == 2 and extra == {"position": [1, 2], "note": "é"}
    for x0 in BATCHES[2:]:
        resumed, _ = train.make_step(loss_fn, OPTIMISER, mesh=mesh)(resumed, (x0, None))
    assert_identical(state, resumed)
    assert jax.tree.structure(state) == jax.tree.structure(resumed)


def test_any_pytree(tmp_path):
    tree = {
        "a.b": [jnp.ones((2, 0)), jnp.asarray(True), jnp.asarray([1, 2], jnp.bfloat16)],
        "key": jax.random.split(jax.random.key(3, impl="rbg"), 2),
        "static": "kept from like",
        "numpy": np.arange(3, dtype=np.int16),
    }
    train.Checkpointer(tmp_path).save(0, tree)
    like = jax.tree.map(lambda x: jnp.zeros_like(x) if eqx.is_array(x) else "like", tree)
    like["key"] = jax.random.split(jax.random.key(0, impl="rbg"), 2)
    restored, extra, step = train.Checkpointer(tmp_path).restore(like)
    assert_identical(tree, restored)
    assert restored["static"] == "like" and extra is None and step == 0


def test_restored_to_its_devices(tmp_path):
    mesh = train.data_mesh()
    step = train.make_step(loss_fn, OPTIMISER, mesh=mesh)
    state, _ = step(make_state(), (BATCHES[0], None))
    checkpointer = train.Checkpointer(tmp_path)
    checkpointer.save(1, state)
    spread, _, _ = checkpointer.restore(state)
    single, _, _ = checkpointer.restore(make_state())
    assert all(len(x.devices()) == 2 for x in spread.params.values())
    assert all(len(x.devices()) == 1 for x in single.params.values())
    assert_identical(spread, single)


def test_the_network_alone(tmp_path):
    """For another optimiser: parameters and averages, from shapes, with what is not trained."""
    state, _ = train.make_step(loss_fn, OPTIMISER)(make_state(), (BATCHES[0], None))
    checkpointer = train.Checkpointer(tmp_path)
    checkpointer.save(1, state)
    like = eqx.filter_eval_shape(lambda: make_state(seed=3).net)
    assert_identical(checkpointer.restore_net(like), state.net)
    for average in (0, 1, -1):
        assert_identical(checkpointer.restore_net(like, average=average), state.ema_net(average))
    with pytest.raises(ValueError, match="average=2.*has 2 averages"):
        checkpointer.restore_net(like, average=2)
    with pytest.raises(ValueError, match=r"of another network:(.|\n)*linear.weight is float32\(3"):
        checkpointer.restore_net(make_state(width=4).net)
    other = train.init(
        state.net, optax.sgd(1e-3), timesteps=Counting(), key=jax.random.key(0), ema=()
    )
    with pytest.raises(ValueError, match=r"ema.1.(.|\n)*network is the same: restore_net"):
        checkpointer.restore(other)


def test_another_architecture(tmp_path):
    checkpointer = train.Checkpointer(tmp_path)
    checkpointer.save(3, make_state())
    before = files(tmp_path)
    with pytest.raises(ValueError, match="another architecture") as error:
        checkpointer.restore(make_state(width=4))
    assert "net.linear.weight is float32(3, 3), expected float32(4, 4)" in str(error.value)
    with pytest.raises(ValueError, match="not expected") as error:
        checkpointer.restore(make_state(ema=(0.9,)))
    assert "ema.1.linear.weight float32(3, 3)" in str(error.value)
    with pytest.raises(ValueError, match="missing from the checkpoint") as error:
        checkpointer.restore(make_state(ema=(0.9, 0.99, 0.999)))
    assert "ema.2.linear.bias float32(3,)" in str(error.value)
    assert files(tmp_path) == before


def test_many_differences_are_cut_short(tmp_path):
    checkpointer = train.Checkpointer(tmp_path)
    checkpointer.save(0, {f"a{i:02}": jnp.zeros(1) for i in range(30)})
    with pytest.raises(ValueError, match="and 24 more") as error:
        checkpointer.restore({})
    assert len(str(error.value).splitlines()) < 12


@pytest.mark.parametrize("how", ["truncated", "missing"])
@pytest.mark.parametrize("part", ["state", "manifest"])
def test_damage_is_noticed(part, how, tmp_path):
    checkpointer = train.Checkpointer(tmp_path)
    state = make_state()
    for step in (1, 2):
        checkpointer.save(step, state, step)
    damage(checkpointer.path(2) / part, how)
    with pytest.raises(train.CheckpointError, match=r"step_00000002 is damaged .*step=1") as error:
        checkpointer.restore(state, step=2)
    assert "\n" not in str(error.value)
    with pytest.warns(match=r"step_00000002 is damaged.*the one before: .*step_00000001"):
        restored, _, step = checkpointer.restore(state)
    assert step == 1
    assert_identical(restored, state)
    damage(checkpointer.path(1) / part, how)
    with pytest.raises(train.CheckpointError, match="no earlier one"):
        checkpointer.restore(state, step=1)
    with pytest.raises(train.CheckpointError, match="00002 is damaged .*00001 is dam.*no earlier"):
        checkpointer.restore(state)


def test_flipped_bits(tmp_path):
    """One wrong bit anywhere is noticed, or it is somewhere that is not read."""
    checkpointer = train.Checkpointer(tmp_path)
    state = {"weight": jax.random.normal(jax.random.key(0), (50, 50))}
    checkpointer.save(1, state, {"position": 3})
    noticed = set()
    for name, data in files(checkpointer.path(1)).items():
        for place in {0, len(data) // 2, len(data) - 1} if data else ():
            spoilt = bytearray(data)
            spoilt[place] ^= 16
            (checkpointer.path(1) / name).write_bytes(spoilt)
            try:
                restored, extra, _ = checkpointer.restore(state)
            except train.CheckpointError:
                noticed.add(name.parts[0])
            else:
                assert_identical(restored, state)
                assert extra == {"position": 3}
        (checkpointer.path(1) / name).write_bytes(data)
    assert {"state", "manifest"} <= noticed


def test_no_checkpoint(tmp_path):
    checkpointer = train.Checkpointer(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        checkpointer.restore({})
    checkpointer.save(5, {"x": jnp.ones(1)})
    with pytest.raises(FileNotFoundError, match=r"step 4 in .* those of steps 5"):
        checkpointer.restore({}, step=4)


def test_extra_must_be_json(tmp_path):
    with pytest.raises(ValueError, match="Use numbers, strings, lists and dictionaries"):
        train.Checkpointer(tmp_path).save(0, {}, {"position": np.zeros(3)})
    assert list(tmp_path.iterdir()) == []


def test_wrong_options(tmp_path):
    with pytest.raises(ValueError, match="keep=0"):
        train.Checkpointer(tmp_path, keep=0)


def test_tensorstore_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(ImportError, match=r"pip install 'eqdiff\[checkpoint\]'"):
        train.Checkpointer(tmp_path).check_writable()


def test_orbax_reads_the_arrays(tmp_path):
    checkpointer = train.Checkpointer(tmp_path)
    tree = {"a/b": jnp.arange(6.0).reshape(2, 3), "c": jnp.asarray([1, 2], jnp.bfloat16)}
    checkpointer.save(1, tree)
    found = orbax.checkpoint.PyTreeCheckpointer().restore(checkpointer.path(1) / "state")
    assert found.keys() == {"a%2Fb", "c"}
    np.testing.assert_array_equal(found["a%2Fb"], tree["a/b"])
    np.testing.assert_array_equal(found["c"], tree["c"])


def test_manifest_is_plain_json(tmp_path):
    """A person, or a version of this library years from now, can see what is inside."""
    checkpointer = train.Checkpointer(tmp_path)
    checkpointer.save(7, {"x": jnp.ones((2, 3), jnp.float32)}, {"a": 1})
    body = json.loads((checkpointer.path(7) / "manifest" / "metadata").read_text())["body"]
    assert body["step"] == 7 and body["extra"] == {"a": 1}
    assert body["leaves"]["x"]["shape"] == [2, 3] and body["leaves"]["x"]["dtype"] == "float32"
