"""A program around a training function: flags, one sentence for errors and signals, a cache."""

import os
import signal
import sys
import time

import jax
import pytest

from eqdiff import train


pytest.importorskip("tyro")


class Exit(Exception):
    """In place of the process's end."""


@pytest.fixture(autouse=True)
def inside_a_test(monkeypatch):
    """The tests have their own cache, and go on."""

    def leave(status):
        raise Exit(status)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr("eqdiff.train._command.compilation_cache", lambda: None)


def call(monkeypatch, main, *flags):
    monkeypatch.setattr(sys, "argv", ["program", *flags])
    train.command(main)


def test_parameters_are_flags(monkeypatch):
    seen = []

    def main(number: int, *, word: str = "a"):
        seen.append((number, word))

    call(monkeypatch, main, "--number", "3", "--word", "b")
    assert seen == [(3, "b")]


@pytest.mark.parametrize(
    "error",
    [ValueError("bad"), OSError("gone"), train.CheckpointError("x"), train.Diverged("NaN")],
)
def test_what_a_user_can_mend_is_one_sentence(monkeypatch, capsys, error):
    def main():
        raise error

    monkeypatch.delenv("EQDIFF_DEBUG", raising=False)
    with pytest.raises(Exit) as ended:
        call(monkeypatch, main)
    assert ended.value.args == (1,) and capsys.readouterr().err == f"error: {error}\n"
    monkeypatch.setenv("EQDIFF_DEBUG", "1")
    with pytest.raises(type(error)):
        call(monkeypatch, main)


def test_a_defect_keeps_its_traceback(monkeypatch):
    def main():
        raise KeyError("a defect")

    with pytest.raises(KeyError):
        call(monkeypatch, main)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("inside", [False, True])
def test_a_signal_is_one_sentence_and_its_status(monkeypatch, capsys, tmp_path, kind, inside):
    def main():
        if inside:
            with train.Run(tmp_path, {}, again="`this`"):
                os.kill(os.getpid(), kind)
                time.sleep(10)
        os.kill(os.getpid(), kind)
        time.sleep(10)

    with pytest.raises(Exit) as ended:
        call(monkeypatch, main)
    assert ended.value.args == (128 + kind,)
    safe = "stopped before the first checkpoint; `this` begins anew." if inside else "stopped."
    assert capsys.readouterr().err == f"\n{kind.name}: {safe}\n"


def test_the_cache_is_where_it_is_asked_for(monkeypatch, tmp_path):
    before = jax.config.values["jax_compilation_cache_dir"]
    monkeypatch.undo()
    try:
        train.compilation_cache(tmp_path)
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path)
        # What has been chosen already stays.
        train.compilation_cache()
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path)
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
        train.compilation_cache()
        expected = str(tmp_path / "mine" / "eqdiff" / "jax")
        assert jax.config.values["jax_compilation_cache_dir"] == expected
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_what_goes_on_does_not_begin_anew_or_go_back(monkeypatch):
    given = [
        "a b.py",
        "--overwrite",
        "--steps",
        "3",
        "--from-step",
        "7",
        "--adjust",
        "--from-step=9",
    ]
    monkeypatch.setattr(sys, "argv", given)
    monkeypatch.setattr(sys, "executable", ".venv/bin/python")
    assert train.resume_command() == ".venv/bin/python 'a b.py' --steps 3 --adjust"
