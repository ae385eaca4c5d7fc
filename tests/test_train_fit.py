"""The loop and the folder of a run: what is yielded, kept, refused, and left by an interruption."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqdiff as eqd
from eqdiff import train


PROCESS = eqd.VPSDE()
STEPS = 8


def loss_fn(net, t, x0, args, *, key):
    p = eqd.predict(eqd.Denoiser(net, PROCESS), t, x0, key=key)
    return eqd.l_simple(p), {"noise": jnp.mean((p.estimate.noise - p.noise) ** 2)}


class Numbers:
    """Batches that depend on their number alone, and continue where they were."""

    def __init__(self, at=None):
        self.number, self.at = 0, at or {}

    def __iter__(self):
        return self

    def __next__(self):
        special = self.at.get(self.number + 1)
        if callable(special):
            special()
        self.number += 1
        x = np.random.default_rng(self.number).normal(size=(4, 2)).astype(np.float32)
        return (np.full_like(x, special) if isinstance(special, float) else x), None

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]


@pytest.fixture(scope="module")
def step():
    return train.make_step(loss_fn, optax.adam(1e-2))


def fresh():
    net = eqd.nn.MLP(2, 2, width=8, depth=1, key=jax.random.key(0))
    return train.init(
        net, optax.adam(1e-2), timesteps=eqd.Uniform(PROCESS), ema=(0.9,), key=jax.random.key(1)
    )


def fit(run, step, batches=None, *, num_steps=STEPS, **options):
    options = {"log_every": 2, "save_every": 3, "progress": False} | options
    return train.fit(step, fresh(), batches or Numbers(), num_steps=num_steps, run=run, **options)


def finish(folder, step, batches=None, settings=None, **options):
    """The leaves of a run's last state."""
    with train.Run(folder, settings or {}) as run:
        *_, last = fit(run, step, batches, **options)
        return leaves(last)


def leaves(state):
    arrays = jax.tree.leaves(eqx.filter(state, eqx.is_array))
    return [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in arrays
    ]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, step):
    return finish(tmp_path_factory.mktemp("whole") / "run", step)


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def test_it_yields_after_every_save_and_at_the_end(tmp_path, step):
    with train.Run(tmp_path / "run", {}, keep=5) as run:
        seen = [int(state.step) for state in fit(run, step)]
        assert seen == [3, 6, 8]
        assert run.checkpoints.steps() == [3, 6, 8]
    lines = train.read_metrics(run.metrics)
    # Windows end where a line is due, and before a save.
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 8]
    assert [line["steps"] for line in lines] == [2, 1, 1, 2, 2]
    assert all(line["images_per_second"] > 0 and line["noise"] > 0 for line in lines)
    assert run.seconds["images"] == 4 * STEPS
    # A finished run yields its state again, so that what the loop's body writes is there.
    before = (tmp_path / "run/metrics.jsonl").read_text()
    with train.Run(tmp_path / "run", {}, keep=5) as run:
        assert [int(state.step) for state in fit(run, step)] == [8]
    assert (tmp_path / "run/metrics.jsonl").read_text() == before


def test_a_run_may_be_made_longer_but_not_shorter(tmp_path, step, uninterrupted):
    finish(tmp_path, step, num_steps=5)
    assert_same(finish(tmp_path, step), uninterrupted)
    with train.Run(tmp_path, {}) as run, pytest.raises(ValueError, match="is at step 8 already"):
        next(fit(run, step, num_steps=7))


@pytest.mark.parametrize("number", [1, 3, 4, STEPS])
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_the_run_goes_on(tmp_path, step, uninterrupted, number, kind):
    ask = Numbers({number: lambda: os.kill(os.getpid(), kind)})
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(train.Stopped, match=f"{kind.name}: stopped; step {number} is saved"):
        finish(tmp_path, step, ask)
    assert signal.getsignal(signal.SIGINT) is before
    steps = [line["step"] for line in train.read_metrics(tmp_path / "metrics.jsonl")]
    assert steps[-1] == number
    assert_same(finish(tmp_path, step), uninterrupted)
    steps = [line["step"] for line in train.read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == sorted(set(steps)) and steps[-1] == STEPS


def test_a_signal_in_the_body_of_the_loop_ends_at_once(tmp_path, step, uninterrupted):
    with (
        pytest.raises(train.Stopped, match=r"step 3 is saved in .*, and `go on` goes on from it"),
        train.Run(tmp_path, {}, again="`go on`") as run,
    ):
        for _ in fit(run, step):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
    assert_same(finish(tmp_path, step), uninterrupted)


def test_before_the_first_checkpoint_nothing_is_said_to_be_saved(tmp_path):
    with (
        pytest.raises(train.Stopped, match="stopped before the first checkpoint"),
        train.Run(tmp_path, {}),
    ):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)


def test_an_error_elsewhere_loses_no_step(tmp_path, step, uninterrupted):
    def broken():
        raise OSError("the disk has gone")

    with pytest.raises(OSError, match="the disk has gone"):
        finish(tmp_path, step, Numbers({5: broken}))
    assert train.Checkpointer(tmp_path / "checkpoints").latest_step() == 4
    with pytest.raises(ZeroDivisionError), train.Run(tmp_path, {}) as run:
        for _ in fit(run, step):
            raise ZeroDivisionError
    assert_same(finish(tmp_path, step), uninterrupted)


def test_batches_that_end(tmp_path, step, capsys):
    with train.Run(tmp_path, {}) as run:
        seen = [int(state.step) for state in fit(run, step, itertools.islice(Numbers(), 5))]
    assert seen == [3, 5] and run.checkpoints.latest_step() == 5
    assert "ended after 5 steps" in capsys.readouterr().out


def test_divergence_says_from_where_to_go_on(tmp_path, step):
    with pytest.raises(train.Diverged, match=r"step 7\).* is of step 6: .*from_step=3"):
        finish(tmp_path, step, Numbers({7: float("nan")}))
    # The checkpoints are those from before.
    assert train.Checkpointer(tmp_path / "checkpoints").steps() == [3, 6]
    with train.Run(tmp_path, {}, from_step=3) as run:
        assert [int(state.step) for state in fit(run, step)] == [6, 8]
    # The abandoned future is set aside, not deleted.
    assert (tmp_path / "checkpoints" / "step_00000006.superseded").is_dir()
    with pytest.raises(train.Diverged, match="no checkpoint yet"):
        finish(tmp_path / "other", step, Numbers({2: float("nan")}))


def test_a_folder_that_vanishes_is_an_error(tmp_path, step):
    gone = Numbers({5: lambda: shutil.rmtree(tmp_path / "run")})
    with pytest.raises(train.CheckpointError, match="is gone|could not be written"):
        finish(tmp_path / "run", step, gone)


def test_spoilt_steps_may_be_tolerated_and_are_named(tmp_path, step, capsys):
    spoilt = Numbers({2: float("nan"), 5: float("nan")})
    finish(tmp_path / "a", step, spoilt, max_spoilt=2)
    said = capsys.readouterr().out
    assert "step 2 was NaN or infinite" in said and "step 5 was NaN or infinite" in said
    with pytest.raises(train.Diverged, match="step 5"):
        finish(tmp_path / "b", step, Numbers(spoilt.at), max_spoilt=1)


def test_a_run_of_other_settings_is_refused_and_untouched(tmp_path, step):
    finish(tmp_path, step, settings={"rate": 0.1, "data": "moons"}, num_steps=3)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match='data is "digits" here and "moons" there'):
        train.Run(tmp_path, {"rate": 0.1, "data": "digits"}).__enter__()
    with pytest.raises(
        ValueError, match=r"rate is 0.2 here and 0.1 there\. To go on .* say adjust"
    ):
        train.Run(tmp_path, {"rate": 0.2, "data": "moons"}, adjustable=("rate",)).__enter__()
    kept = {path: path.stat().st_mtime_ns for path in files if path.name != ".lock"}
    assert all(files[path] == when for path, when in kept.items())


def test_settings_may_be_adjusted_and_that_is_recorded(tmp_path, step):
    finish(tmp_path, step, settings={"rate": 0.1, "every": 1}, num_steps=3)
    options = dict(free=("every",), adjustable=("rate",), adjust=True)
    with train.Run(tmp_path, {"rate": 0.2, "every": 2}, **options) as run:
        for _ in fit(run, step):
            pass
    found = json.loads((tmp_path / "config.json").read_text())
    assert found["settings"] == {"rate": 0.2, "every": 2} == train.read_settings(tmp_path)
    (change,) = found["changes"]
    assert (change["after_step"], change["from"], change["to"]) == (3, {"rate": 0.1}, {"rate": 0.2})


def test_overwrite_sets_the_earlier_run_aside(tmp_path, step):
    finish(tmp_path, step, settings={"a": 1})
    (tmp_path / "notes.txt").write_text("mine")
    with train.Run(tmp_path, {"a": 2}, overwrite=True) as run:
        assert [int(state.step) for state in fit(run, step)] == [3, 6, 8]
    aside = tmp_path / "replaced_1"
    # What was set aside does not make a folder one that is in use.
    (tmp_path / "config.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints")
    for path in (tmp_path / "metrics.jsonl", tmp_path / ".seen"):
        path.unlink()
    finish(tmp_path, step, num_steps=1)
    assert (aside / "notes.txt").read_text() == "mine"
    assert train.Checkpointer(aside / "checkpoints").latest_step() == STEPS
    assert train.read_settings(aside) == {"a": 1}


def test_folders_that_are_no_run_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="holds no run"):
        train.Run(tmp_path, {}, overwrite=True).__enter__()
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(ValueError, match="Give one of them"):
        train.Run(tmp_path, {}, overwrite=True, from_step=3)
    with pytest.raises(ValueError, match="cannot be written to"):
        train.Run(tmp_path / "thesis.tex" / "run", {}).__enter__()
    with pytest.raises(FileNotFoundError, match="holds no run"):
        train.read_settings(tmp_path)
    with pytest.raises(ValueError, match="numbers, texts"):
        train.Run(tmp_path / "run", {"f": print})


@pytest.mark.parametrize("text", [b"[1]", b"\xff\xfe", b"{", b"[" * 100_000, b'{"settings": 1}'])
def test_a_damaged_configuration_is_one_sentence(tmp_path, step, text):
    finish(tmp_path, step, num_steps=1)
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"config\.json") as error:
        train.Run(tmp_path, {}).__enter__()
    assert len(str(error.value)) < 400 + len(str(tmp_path))


def test_one_job_at_a_time(tmp_path, step):
    with train.Run(tmp_path, {}) as run:
        for _ in fit(run, step, num_steps=1):
            with pytest.raises(ValueError, match=f"in use by process {os.getpid()}"):
                train.Run(tmp_path, {}).__enter__()
    finish(tmp_path, step)


def test_the_best_checkpoint_is_kept(tmp_path, step):
    scores = {2: 3.0, 4: 1.0, 6: 2.0, 8: 4.0}
    with train.Run(tmp_path, {}, keep=1, keep_best=1) as run:
        for state in fit(run, step, save_every=2):
            run.record(state, score=scores[int(state.step)], bits=1.5)
    assert run.checkpoints.steps() == [4, 8] and run.checkpoints.best_step() == 4
    lines = [line for line in train.read_metrics(run.metrics) if "bits" in line]
    assert [line["score"] for line in lines] == [3.0, 1.0, 2.0, 4.0]


def test_what_was_not_looked_at_is_yielded_again(tmp_path, step):
    """A signal, or an error in the loop's body, comes between a save and what is made of it."""
    stop = Numbers({4: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    seen = []
    with pytest.raises(train.Stopped), train.Run(tmp_path, {}) as run:
        for state in fit(run, step, stop):
            seen.append(int(state.step))
    with pytest.raises(ZeroDivisionError), train.Run(tmp_path, {}) as run:
        for state in fit(run, step):
            seen.append(int(state.step))
            if int(state.step) == 6:
                raise ZeroDivisionError
    with train.Run(tmp_path, {}) as run:
        seen += [int(state.step) for state in fit(run, step)]
    assert seen == [3, 4, 6, 6, 8]


def test_a_run_without_its_configuration_goes_on_if_told_to(tmp_path, step):
    finish(tmp_path, step, num_steps=3)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json is missing.* \[3\]; to go on .* say adjust"):
        train.Run(tmp_path, {"a": 1}).__enter__()
    with train.Run(tmp_path, {"a": 1}, adjust=True) as run:
        assert [int(state.step) for state in fit(run, step)] == [6, 8]
    assert train.read_settings(tmp_path) == {"a": 1}


def test_a_folder_may_be_named_from_where_one_is(tmp_path, step, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    finish("../run", step)
    assert train.Checkpointer(tmp_path / "run" / "checkpoints").latest_step() == STEPS


def test_what_is_recorded_is_there_once(tmp_path, step):
    for _ in range(2):
        with train.Run(tmp_path, {}) as run:
            for state in fit(run, step):
                run.record(state, score=1.0, bits=1.5)
    lines = [line["step"] for line in train.read_metrics(run.metrics) if "bits" in line]
    assert lines == [3, 6, 8]


def test_a_run_adds_up_the_time_of_its_parts(tmp_path, step):
    finish(tmp_path, step, num_steps=3)
    first = train.Checkpointer(tmp_path / "checkpoints").read_extra()["seconds"]
    time.sleep(0.3)  # Between two parts: nobody's time.
    with train.Run(tmp_path, {}) as run:
        for _ in fit(run, step):
            pass
    assert run.seconds["wall"] > first["wall"]
    assert run.seconds["training"] + run.seconds["compilation"] <= run.seconds["wall"]


@pytest.mark.parametrize("options", [{"num_steps": 0}, {"log_every": 0}, {"save_every": -1}])
def test_bad_numbers_are_refused_first(tmp_path, step, options):
    with train.Run(tmp_path, {}) as run, pytest.raises(ValueError, match=next(iter(options))):
        next(fit(run, step, **options))


@pytest.mark.slow
def test_a_signal_ends_a_compilation(tmp_path):
    """Python does not run while XLA compiles: the watcher ends the process, with a sentence."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import jax, jax.numpy as jnp
            from eqdiff import train

            @jax.jit
            def long(x):
                for i in range(6000):
                    x = jnp.sin(x @ x + i)
                return x

            def main(folder: str):
                with train.Run(folder, {}, again="this") as run:
                    lowered = long.lower(jnp.ones((16, 16)))
                    print("compiling", flush=True)
                    lowered.compile()
                    print("compiled", flush=True)

            train.command(main)
            """
        )
    )
    command = [sys.executable, str(program), "--folder", str(tmp_path / "run")]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert job.stdout is not None and job.stdout.readline() == "compiling\n"
    time.sleep(3)
    began = time.monotonic()
    job.send_signal(signal.SIGTERM)
    out, err = job.communicate(timeout=60)
    assert "compiled" not in out, "the compilation is too short for this test"
    assert time.monotonic() - began < 10
    assert job.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: stopped before the first checkpoint; this begins anew." in err
