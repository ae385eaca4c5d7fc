"""Samples over processes and straight to files, and that none is lost to a kill."""

import collections
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest


HERE = pathlib.Path(__file__).parent
NUM, BATCH = 1203, 4
CHUNKS = -(-NUM // BATCH)


def start(kind, folder, log, processes=1):
    """A job of `many_samples_job.py`."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "JAX_PLATFORMS": "cpu"}
    script = [sys.executable, str(HERE / "many_samples_job.py"), kind, str(folder), str(log)]
    return [
        subprocess.Popen(
            [*script, str(process), str(processes), str(port)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]


def finish(running):
    for process in running:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said


def lines(log):
    return log.read_text().splitlines() if log.exists() else []


def content(folder):
    """Every file, but whose process wrote it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What a call that nobody disturbs leaves, by kind."""
    found = {}

    def of(kind):
        if kind not in found:
            folder = tmp_path_factory.mktemp("whole") / kind
            finish(start(kind, folder, folder.with_suffix(".log")))
            found[kind] = content(folder)
        return found[kind]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", ["folder", "npz", "png"])
def test_a_killed_job_continues_bit_for_bit(kind, processes, uninterrupted, tmp_path):
    folder, log = tmp_path / "place", tmp_path / "log"
    rng = random.Random(f"{kind} {processes} {os.environ.get('EQDIFF_TEST_SEED', '')}")
    kills = int(os.environ.get("EQDIFF_TEST_KILLS", "4"))
    for kill in range(kills):
        running = start(kind, folder, log, processes)
        # Somewhere on the way from here to the end, by the number of chunks that have begun.
        left = CHUNKS - len(set(lines(log)))
        until = len(lines(log)) + rng.randrange(1, max(2, 2 * left // (kills - kill + 1)))
        while len(lines(log)) < until and all(process.poll() is None for process in running):
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)
        # One process before the other: what it would have done, nobody does.
        rng.shuffle(running)
        for process in running:
            process.send_signal(signal.SIGKILL)
            time.sleep(rng.random() * 0.1)
        for process in running:
            process.communicate()
    before = len(lines(log))
    finish(start(kind, folder, log, processes))
    found = content(folder)
    expected = dict(uninterrupted(kind))
    if processes == 2 and kind == "folder":
        expected["result1.npy"] = expected["result0.npy"]
    assert found.keys() == expected.keys()
    assert all(found[name] == expected[name] for name in expected)
    # Nothing is computed twice but what was under way: two chunks on the device, one on the host.
    assert before >= kills / 2
    assert CHUNKS <= len(lines(log)) <= CHUNKS + 3 * kills * processes
    assert len({line.split()[1] for line in lines(log)}) == CHUNKS


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "npz", "png", "memory"])
def test_processes_share_the_work_and_have_the_same_results(kind, uninterrupted, tmp_path):
    finish(start(kind, tmp_path / "place", tmp_path / "log", 2))
    found, expected = content(tmp_path / "place"), dict(uninterrupted(kind))
    if "result0.npy" in expected:
        expected["result1.npy"] = expected["result0.npy"]
    assert found == expected
    shares = collections.Counter(line.split()[0] for line in lines(tmp_path / "log"))
    assert sum(shares.values()) == CHUNKS and max(shares.values()) - min(shares.values()) <= 1


@pytest.mark.slow
def test_all_processes_hear_of_a_failed_example(tmp_path):
    finish(start("failures", tmp_path / "place", tmp_path / "log", 2))
    numbers = np.arange(400)
    expected = np.where(numbers % 100 == 17, np.nan, 2.0 * numbers)
    for process in range(2):
        found = np.load(tmp_path / "place" / f"result{process}.npy")
        np.testing.assert_array_equal(found, expected)
