"""Checkpoints: exact resume, refusal of what does not fit, and survival of damage and kill −9."""

import contextlib
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest

from eqdiff import train
from eqdiff._process import AbstractProcess, VPSDE
from eqdiff._timesteps import AbstractTimesteps


class Counting(AbstractTimesteps):
    """Draws times that depend on every loss it has seen."""

    process: AbstractProcess = VPSDE()

    def init(self):
        return jnp.zeros(())

    def sample(self, state, n, *, key):
        return jax.random.uniform(key, (n,)) + state, jnp.ones(n)

    def update(self, state, t, losses):
        return 0.5 * state + jnp.mean(losses).astype(state.dtype)


OPTIMISER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
BATCHES = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)


def loss_fn(net, t, x0, args, *, key):
    dropped = net.dropout(x0, key=key)
    return jnp.mean((net.linear(dropped) - x0) ** 2) * jnp.cos(t).astype(x0.dtype), {}


class Net(eqx.Module):
    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    empty: jax.Array
    counter: jax.Array


def make_state(seed=0, width=3, ema=(0.9, train.EMA(0.99))):
    key = jax.random.key(seed)
    linear = eqx.nn.Linear(width, width, dtype=jnp.float32, key=key)
    net = Net(linear, eqx.nn.Dropout(0.5), jnp.zeros((0, 3)), jnp.asarray(7))
    return train.init(net, OPTIMISER, timesteps=Counting(), ema=ema, key=key)


def as_numpy(x):
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


def arrays(tree):
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_array))
    return {jax.tree_util.keystr(path): as_numpy(x) for path, x in leaves}


def assert_identical(one, two):
    one, two = arrays(one), arrays(two)
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype and np.array_equal(one[name], two[name]), name


def files(path):
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def damage(folder, how):
    """Spoils the largest file below a folder that is read."""
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != "_METADATA")
    path = max(found, key=lambda p: p.stat().st_size)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.unlink()


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


def test_saving_leaves_the_state_usable(tmp_path):
    state = make_state()
    before = arrays(state)
    train.Checkpointer(tmp_path).save(0, state)
    stepped, _ = train.make_step(loss_fn, OPTIMISER)(state, (BATCHES[0], None))
    restored, _, _ = train.Checkpointer(tmp_path).restore(stepped)
    assert all(np.array_equal(before[k], x) for k, x in arrays(restored).items())


def test_which_are_kept(tmp_path):
    checkpointer = train.Checkpointer(tmp_path, keep=2, keep_every=30)
    assert checkpointer.steps() == [] and checkpointer.latest_step() is None
    for step in (10, 20, 30, 40, 50):
        checkpointer.save(step, {"x": jnp.asarray(step)}, step)
    assert checkpointer.steps() == [30, 40, 50] and checkpointer.latest_step() == 50
    like = {"x": jnp.asarray(0)}
    assert [int(checkpointer.restore(like, step=s)[0]["x"]) for s in (30, 40, 50)] == [30, 40, 50]
    assert checkpointer.read_extra() == 50 and checkpointer.read_extra(30) == 30
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step_000000{s}" for s in (30, 40, 50)]


def test_an_abandoned_future_is_set_aside(tmp_path):
    checkpointer = train.Checkpointer(tmp_path, keep=5)
    for step, value in [(1, 1), (2, 2), (3, 3), (2, 20)]:
        checkpointer.save(step, {"x": jnp.asarray(value)})
    assert checkpointer.steps() == [1, 2]
    assert int(checkpointer.restore({"x": jnp.asarray(0)})[0]["x"]) == 20
    assert (tmp_path / "step_00000003.superseded").is_dir()


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
    for read in (checkpointer.restore, checkpointer.restore_net):
        like = state if read == checkpointer.restore else state.net
        with pytest.warns(match=r"step_00000002 is damaged.*the one before: .*step_00000001"):
            restored = read(like)
        assert_identical(restored[0] if isinstance(restored, tuple) else restored, like)
    damage(checkpointer.path(1) / part, how)
    with pytest.raises(train.CheckpointError, match="no earlier one"):
        checkpointer.restore(state, step=1)
    with pytest.raises(train.CheckpointError, match="00002 is damaged .*00001 is dam.*no earlier"):
        checkpointer.restore(state)


def test_a_stray_folder_stops_nothing(tmp_path):
    checkpointer = train.Checkpointer(tmp_path)
    state = {"x": jnp.ones(3)}
    checkpointer.save(5, state, "five")
    (tmp_path / "step_99999999").mkdir()
    (tmp_path / "step_00000007").write_text("a file, and no folder")
    assert checkpointer.steps() == [5] and checkpointer.latest_step() == 5
    with pytest.warns(match=r"step_99999999 is damaged \(it has no manifest\).*step_00000005"):
        assert checkpointer.restore(state)[1:] == ("five", 5)
    checkpointer.save(6, state)
    assert checkpointer.restore(state)[2] == 6


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


def test_leftovers_of_a_killed_save(tmp_path):
    checkpointer = train.Checkpointer(tmp_path)
    checkpointer.save(1, {"x": jnp.asarray(1)})
    # A kill leaves a folder under a temporary name, ours or Orbax's, with part of the files.
    for name in ("tmp_step_00000002", "tmp_step_00000002.orbax-checkpoint-tmp"):
        shutil.copytree(checkpointer.path(1), tmp_path / name)
        damage(tmp_path / name, "truncated")
    assert checkpointer.steps() == [1]
    assert int(checkpointer.restore({"x": jnp.asarray(0)})[0]["x"]) == 1
    checkpointer.save(2, {"x": jnp.asarray(2)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


_SAVER = """
import sys
import numpy as np
from eqdiff import train
checkpointer = train.Checkpointer(sys.argv[1], keep=2)
step = (checkpointer.latest_step() or 0) + 1
while True:
    checkpointer.save(step, {{"x": np.full({size}, step, np.float32), "step": np.asarray(step)}})
    print(step, flush=True)
    step += 1
"""


@pytest.mark.slow
def test_kill_during_saves(tmp_path):
    size = 200_000
    root = pathlib.Path(train.__file__).parents[2]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    checkpointer = train.Checkpointer(tmp_path)
    like = {"x": np.zeros(size, np.float32), "step": np.asarray(0)}
    for delay in (0.0, 0.013, 0.05):
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _SAVER.format(size=size), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        assert process.stdout is not None
        promised = 0
        for _ in range(3):
            promised = int(process.stdout.readline())
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        rest, errors = process.communicate()
        promised = int(rest.split()[-1]) if rest.split() else promised
        assert errors == b""
        latest = checkpointer.latest_step()
        assert latest is not None and latest in (promised, promised + 1)
        for step in checkpointer.steps():
            restored, _, _ = checkpointer.restore(like, step=step)
            assert int(restored["step"]) == step and np.all(np.asarray(restored["x"]) == step)


def test_no_checkpoint(tmp_path):
    checkpointer = train.Checkpointer(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        checkpointer.restore({})
    checkpointer.save(5, {"x": jnp.ones(1)})
    with pytest.raises(FileNotFoundError, match=r"step 4 in .* those of steps 5"):
        checkpointer.restore({}, step=4)


def test_unwritable_directory(tmp_path):
    (tmp_path / "file").write_text("")
    checkpointer = train.Checkpointer(tmp_path / "file" / "checkpoints")
    for action in (checkpointer.check_writable, lambda: checkpointer.save(0, {})):
        with pytest.raises(train.CheckpointError, match="choose another directory"):
            action()
    assert checkpointer.steps() == []


@contextlib.contextmanager
def files_of_at_most(size):
    """A disk without room, near enough: writing more into a file fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_failed_write_keeps_what_was_there(tmp_path, capfd):
    checkpointer = train.Checkpointer(tmp_path)
    checkpointer.save(1, {"x": jnp.asarray(1)})
    state = {f"x{i}": np.ones(50_000) for i in range(5)}
    with files_of_at_most(100_000):
        with pytest.raises(train.CheckpointError, match=r"File too large\)\. That of step 1 is") as e:
            checkpointer.save(2, state)
        checkpointer.save_in_background(3, state)
        with pytest.raises(train.CheckpointError, match="of step 3 could not be written"):
            checkpointer.save_in_background(4, state)
        checkpointer.wait()
        checkpointer.save_in_background(5, state)
        checkpointer._background.join()
    assert "\n" not in str(e.value) and len(str(e.value)) < 200 + len(str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
    with pytest.warns(match="of step 5 could not .* The one of step 6 has been written"):
        checkpointer.save(6, state)
    assert checkpointer.steps() == [1, 6] and capfd.readouterr() == ("", "")


def test_extra_must_be_json(tmp_path):
    with pytest.raises(ValueError, match="Use numbers, strings, lists and dictionaries"):
        train.Checkpointer(tmp_path).save(0, {}, {"position": np.zeros(3)})
    assert list(tmp_path.iterdir()) == []


def test_wrong_options(tmp_path):
    with pytest.raises(ValueError, match="keep=0"):
        train.Checkpointer(tmp_path, keep=0)


def test_nothing_is_printed(tmp_path):
    """Log lines would run through a progress bar."""
    code = (
        "import sys, numpy as np\n"
        "from eqdiff import train\n"
        "c = train.Checkpointer(sys.argv[1])\n"
        "for step in (1, 2, 3, 4): c.save(step, {'x': np.ones(3)})\n"
        "c.restore({'x': np.zeros(3)})\n"
    )
    root = pathlib.Path(train.__file__).parents[2]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


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
