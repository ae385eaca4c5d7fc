"""The metric log and graceful exit."""

import json
import os
import signal
import sys
import threading

import jax.numpy as jnp
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
    with train.MetricLog(tmp_path / "metrics.jsonl", tensorboard=tmp_path / "board") as log:
        log.write(1, {"loss": 0.5, "name": "a", "bad": float("nan")})
    (events,) = (tmp_path / "board").glob("events.*")
    data = events.read_bytes()
    assert b"loss" in data and b"name" not in data


def test_tensorboard_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'eqdiff\[examples\]'"):
        train.MetricLog(tmp_path / "metrics.jsonl", tensorboard=tmp_path)


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
