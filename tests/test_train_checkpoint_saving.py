"""Saving checkpoints: in the background, one at a time, through kills and full disks."""

import contextlib
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_toys import arrays, BATCHES, damage, loss_fn, make_state, OPTIMISER

from eqdiff import train
from eqdiff.train import _checkpoint
from eqdiff.train._folder import only_writer


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


def test_scores(tmp_path):
    checkpointer = train.Checkpointer(tmp_path, keep=1, keep_best=2)
    assert checkpointer.best_step() is None
    for step, score in enumerate([3.0, 1.0, 2.0, float("nan"), 5.0, None]):
        checkpointer.save(step, {"x": jnp.asarray(step)}, score=score)
    assert checkpointer.steps() == [1, 2, 5] and checkpointer.best_step() == 1
    again = train.Checkpointer(tmp_path, keep=1, keep_best=1)
    assert again.best_step() == 1
    again.save_in_background(6, {"x": jnp.asarray(6)}, score=np.float32(0.5))
    again.close()
    assert again.steps() == [6] and train.Checkpointer(tmp_path).best_step() == 6


def test_the_state_is_free_at_once(tmp_path, monkeypatch):
    """What is saved in the background is the state as it was, though donated or written over."""
    step = train.make_step(loss_fn, OPTIMISER)
    # Of another run: what shares the memory of an array keeps it from being donated.
    before = arrays({"state": step(make_state(), (BATCHES[0], None))[0], "numpy": np.arange(5)})
    state, _ = step(make_state(), (BATCHES[0], None))
    tree = {"state": state, "numpy": np.arange(5)}
    begin = threading.Event()
    write = _checkpoint.write_checkpoint
    monkeypatch.setattr(_checkpoint, "write_checkpoint", lambda *a: begin.wait(20) and write(*a))
    with train.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save_in_background(1, tree)
        for x0 in BATCHES:
            state, _ = step(state, (x0, None))
        tree["numpy"] += 1
        assert tree["state"].params["vectors"].is_deleted() and checkpointer.steps() == []
        begin.set()
    restored, _, _ = checkpointer.restore({"state": state, "numpy": np.zeros(5, int)})
    for name, value in arrays(restored).items():
        np.testing.assert_array_equal(value, before[name])


def test_saves_take_turns(tmp_path):
    state = {"x": np.zeros(100_000)}
    with train.Checkpointer(tmp_path, keep=9) as checkpointer:
        for step in range(5):
            state["x"][:] = step
            checkpointer.save_in_background(step, state, step)
        restored, extra, step = checkpointer.restore(state)
        assert (extra, step) == (4, 4) and np.all(restored["x"] == 4)
        assert np.all(checkpointer.restore(state, step=2)[0]["x"] == 2)


def test_a_folder_that_vanished(tmp_path):
    checkpointer = train.Checkpointer(tmp_path / "run")
    checkpointer.save(1, {"x": jnp.asarray(1)})
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(train.CheckpointError, match="was there and is gone.*There is none"):
        checkpointer.save(2, {"x": jnp.asarray(2)})
    assert not (tmp_path / "run").exists()


def test_one_writer_at_a_time(tmp_path, monkeypatch):
    """Another's checkpoint under way stays."""
    monkeypatch.setattr("eqdiff.train._folder._PATIENCE", 0.1)
    checkpointer = train.Checkpointer(tmp_path)
    checkpointer.save(1, {"x": jnp.asarray(1)})
    with only_writer(tmp_path):
        (tmp_path / "tmp_step_00000002").mkdir()
        with pytest.raises(train.CheckpointError, match="another process is writing"):
            checkpointer.save(2, {"x": jnp.asarray(2)})
        assert (tmp_path / "tmp_step_00000002").is_dir()
    checkpointer.save(2, {"x": jnp.asarray(2)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


def test_killed_while_one_takes_the_place_of_another(tmp_path):
    checkpointer = train.Checkpointer(tmp_path)
    like = {"x": jnp.asarray(0)}
    checkpointer.save(1, {"x": jnp.asarray(1)})
    final = checkpointer.path(1)
    final.rename(tmp_path / "step_00000001.replaced")
    assert checkpointer.steps() == [1] and int(checkpointer.restore(like)[0]["x"]) == 1
    checkpointer.save(2, {"x": jnp.asarray(2)})
    assert checkpointer.steps() == [1, 2] and checkpointer.path(1) == final
    checkpointer.save(2, {"x": jnp.asarray(20)})
    assert int(checkpointer.restore(like)[0]["x"]) == 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


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
step = checkpointer.latest_step() or 0
x = np.full({size}, step, np.float32)
while True:
    step += 1
    x[:] = step
    checkpointer.save_in_background(step, {{"x": x, "step": np.asarray(step)}})
    # The one before has been waited for, and this one is under way.
    print(step - 1, flush=True)
"""


@pytest.mark.slow
def test_kill_during_saves(tmp_path):
    """Whatever was promised is there, whole; what was under way may be."""
    size = 200_000
    root = pathlib.Path(train.__file__).parents[2]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    checkpointer = train.Checkpointer(tmp_path)
    like = {"x": np.zeros(size, np.float32), "step": np.asarray(0)}
    for delay in (0.0, 0.007, 0.013, 0.05):
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
        # A line may be cut short, but only the last.
        promised = max(promised, *map(int, rest[: rest.rfind(b"\n") + 1].split()), 0)
        assert errors == b""
        latest = checkpointer.latest_step()
        assert latest is not None and latest in (promised, promised + 1)
        for step in checkpointer.steps():
            restored, _, _ = checkpointer.restore(like, step=step)
            assert int(restored["step"]) == step and np.all(np.asarray(restored["x"]) == step)


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
        with pytest.raises(
            train.CheckpointError, match=r"File too large\)\. That of step 1 is"
        ) as e:
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


def test_nothing_is_printed(tmp_path):
    """Log lines would run through a progress bar. And a program may end while it saves."""
    code = (
        "import sys, numpy as np\n"
        "from eqdiff import train\n"
        "c = train.Checkpointer(sys.argv[1])\n"
        "for step in (1, 2, 3, 4): c.save(step, {'x': np.ones(3)})\n"
        "c.restore({'x': np.zeros(3)})\n"
        "c.save_in_background(5, {'x': np.ones(1_000_000)})\n"
    )
    root = pathlib.Path(train.__file__).parents[2]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    restored, _, step = train.Checkpointer(tmp_path).restore({"x": np.zeros(1_000_000)})
    assert step == 5 and np.all(restored["x"] == 1)


def test_a_score_may_be_told_later(tmp_path):
    """It is kept in a file of its own, which another process's `Checkpointer` reads."""
    state = {"x": jnp.arange(3.0)}
    with train.Checkpointer(tmp_path, keep=1, keep_best=1) as checkpoints:
        for step, score in ((1, 3.0), (2, 1.0), (3, float("nan")), (4, 2.0)):
            checkpoints.save_in_background(step, state)
            checkpoints.set_score(step, score)
    assert checkpoints.steps() == [2, 4] and checkpoints.best_step() == 2
    again = train.Checkpointer(tmp_path, keep=1, keep_best=1)
    assert again.best_step() == 2
    again.save(5, state, score=0.5)
    assert again.best_step() == 5 and again.steps() == [5]
    (tmp_path / "scores.json").write_text("{")
    assert train.Checkpointer(tmp_path).best_step() == 5
