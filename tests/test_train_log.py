"""The metric log and graceful exit."""

import json
import os
import resource
import signal
import sys
import threading
import types

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from eqdiff import train


def test_lines(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    with train.MetricLog(path) as log:
        log.write(1, {"loss": jnp.asarray(0.5), "count": np.int64(3), "name": "é", "flag": True})
        # Readable while the log is open.
        (line,) = path.read_text(encoding="utf-8").splitlines()
        log.write(2, {"bad": float("nan"), "worse": jnp.asarray(-jnp.inf), "list": np.arange(2)})
    first = json.loads(line)
    assert list(first)[:2] == ["step", "time"]
    assert {k: v for k, v in first.items() if k != "time"} == {
        "step": 1,
        "loss": 0.5,
        "count": 3,
        "name": "é",
        "flag": True,
    }
    second = train.read_metrics(path)[1]
    assert (second["bad"], second["worse"], second["list"]) == (None, None, [0, 1])
    assert "NaN" not in path.read_text()


def test_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with train.MetricLog(path) as log:
        for step in (10, 20, 30, 40):
            log.write(step, {"loss": step})
    with train.MetricLog(path, last_step=20) as log:
        for step in (30, 40):
            log.write(step, {"loss": -step})
    entries = train.read_metrics(path)
    assert [(e["step"], e["loss"]) for e in entries] == [(10, 10), (20, 20), (30, -30), (40, -40)]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_run_that_begins_anew_drops_every_line(tmp_path):
    """One that ended before its first checkpoint starts at step 0 again."""
    for _ in range(2):
        with train.MetricLog(tmp_path / "metrics.jsonl", last_step=0) as log:
            for step in (0, 10, 20):
                log.write(step, {})
    assert [e["step"] for e in train.read_metrics(log.path)] == [0, 10, 20]


def test_damaged_lines_are_named_and_kept_aside(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = b'{"step": 1, "loss":  0.50, "name": "\xc3\xa9"}\n'
    lines = [
        whole,
        b'{"step": 2, "name": "\xff"}\n',
        b"{\x00\x00\x00}\n",
        b"[1]\n",
        b'{"step": "five"}\n',
        b'{"step": null}\n',
        b'{"step": true}\n',
        b'{"step": 1e999}\n',
        b"[" * 100_000 + b"\n",
        b"\n",
        b'{"step": 20.0}\n',
        b'{"step": 3',
    ]
    path.write_bytes(before := b"".join(lines))
    with pytest.warns(UserWarning, match=r"8 damaged lines \(number 2, 3, 4, 5, 6, 7, …\) left"):
        assert [e["step"] for e in train.read_metrics(path)] == [1, 20]
    assert path.read_bytes() == before
    with pytest.warns(UserWarning, match=r"the file as it was is metrics\.jsonl\.damaged\."):
        log = train.MetricLog(path)
    with log:
        log.write(30, {})
    # Lines that are whole are as they were, to the byte.
    assert path.read_bytes().startswith(whole + b'{"step": 20.0}\n{"step": 30,')
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == before
    path.write_bytes(b"?\n")
    with pytest.warns(UserWarning, match=r"1 damaged line \(number 1\).*jsonl\.damaged2"):
        train.MetricLog(path).close()
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == before


@pytest.mark.parametrize("step", ["ten", 1.5, None, True, -1, jnp.ones(2)])
def test_a_step_is_a_whole_number(step, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with train.MetricLog(tmp_path / "metrics.jsonl") as log:
        with pytest.raises(ValueError, match=r"MetricLog\.write\(step=.*whole number"):
            log.write(step, {})
        with pytest.raises(ValueError, match="another name"):
            log.write(1, {"step": 3})
    assert train.read_metrics(log.path) == []


def test_a_full_disk_leaves_whole_lines(tmp_path):
    """The limit on a file's size stands for the disk's: a part of the line is written first."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with train.MetricLog(tmp_path / "metrics.jsonl") as log:
        log.write(1, {"a": 1})
        size = log.path.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
        try:
            with pytest.raises(OSError):
                log.write(2, {"a": 2})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert log.path.stat().st_size == size
        log.write(3, {"a": 3})
    assert [e["step"] for e in train.read_metrics(log.path)] == [1, 3]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_half_written_line(cut, tmp_path):
    path = tmp_path / "metrics.jsonl"
    with train.MetricLog(path) as log:
        for step in (1, 2):
            log.write(step, {"name": "é"})
    path.write_bytes(path.read_bytes()[:-cut])
    # Without its line break a line may still be whole.
    complete = [1, 2] if cut == 1 else [1]
    assert [e["step"] for e in train.read_metrics(path)] == complete
    with train.MetricLog(path) as log:
        log.write(3, {})
    assert [e["step"] for e in train.read_metrics(path)] == [*complete, 3]
    for line in path.read_text(encoding="utf-8").splitlines():
        json.loads(line)


def test_cut_inside_a_character(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "name": "\xc3')
    with train.MetricLog(path) as log:
        log.write(3, {})
    assert [e["step"] for e in train.read_metrics(path)] == [1, 3]


def test_unwritable_log(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        train.MetricLog(tmp_path / "file" / "metrics.jsonl")


def test_tensorboard(tmp_path):
    sink = train.TensorBoard(tmp_path / "board")
    with train.MetricLog(tmp_path / "metrics.jsonl", sinks=[sink]) as log:
        log.write(1, {"loss": 0.5, "name": "a", "bad": float("nan")})
    (events,) = (tmp_path / "board").glob("events.*")
    data = events.read_bytes()
    assert b"loss" in data and b"name" not in data


def test_tensorboard_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'eqdiff\[examples\]'"):
        train.TensorBoard(tmp_path)


def test_wandb(tmp_path, monkeypatch):
    """Against a stand-in with the calls of the real one that are used."""
    calls = []

    class Run:
        def log(self, metrics, *, step):
            calls.append((step, metrics))

        def finish(self):
            calls.append("finish")

    def init(**options):
        calls.append(options)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    sink = train.WandB("digits", id="run-7", config={"seed": 3})
    assert calls == []
    with train.MetricLog(tmp_path / "metrics.jsonl", sinks=[sink]) as log:
        log.write(1, {"loss": jnp.asarray(0.5), "bad": float("nan"), "name": "a"})
    options = {"project": "digits", "id": "run-7", "resume": "allow", "config": {"seed": 3}}
    assert calls == [options, (1, {"loss": 0.5, "name": "a"}), "finish"]


def test_wandb_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install 'eqdiff\[wandb\]'"):
        train.WandB("digits")


class Recorder(train.AbstractSink):
    """A user's own sink, which fails at a step."""

    def __init__(self, fails_at=None):
        self.fails_at, self.seen = fails_at, []

    def open(self, last_step):
        self.seen.append(last_step)

    def write(self, step, metrics):
        if step == self.fails_at:
            raise ConnectionError("no route")
        self.seen.append((step, dict(metrics)))

    def close(self):
        self.seen.append("closed")


def test_a_sink_that_fails_is_let_go(tmp_path):
    good, bad = Recorder(), Recorder(fails_at=2)
    with train.MetricLog(tmp_path / "metrics.jsonl", last_step=0, sinks=[bad, good]) as log:
        log.write(1, {"a": 1})
        with pytest.warns(UserWarning, match=r"Recorder failed \(ConnectionError: no route\)"):
            log.write(2, {"a": 2})
        log.write(3, {"a": 3})
    assert good.seen == [0, (1, {"a": 1}), (2, {"a": 2}), (3, {"a": 3}), "closed"]
    assert bad.seen == [0, (1, {"a": 1})]
    assert [e["step"] for e in train.read_metrics(log.path)] == [1, 2, 3]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_become_a_flag(number):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with train.GracefulExit() as stop:
        assert not stop.requested and stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.requested and stop.signal is number
        # Schedulers repeat SIGTERM; the first reason stays.
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal is number
    assert stop.requested
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_second_ctrl_c_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), train.GracefulExit():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_signals_need_the_main_thread():
    caught = []

    def enter():
        try:
            train.GracefulExit().__enter__()
        except RuntimeError as error:
            caught.append(str(error))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert "main thread" in caught[0]
