"""Two processes run one loop: one writes, a signal to either stops both, a kill costs no step."""

import json
import os
import pathlib
import signal
import subprocess
import time

import pytest
from processes import started

from eqdiff import train


TRAINING = """
import agreeing as a, eqdiff as eqd, time
from eqdiff import data

mesh = train.data_mesh()
step = train.make_step(a.loss_fn, a.OPTIMISER, mesh=mesh)
folder = pathlib.Path(sys.argv[5])
batches = data.loader(data.ArraySource(a.X0, a.LABELS), 4, seed=0)


class Slow:
    def __iter__(self):
        return self

    def __next__(self):
        time.sleep(0.02)
        return next(batches)

    def get_state(self):
        return batches.get_state()

    def set_state(self, state):
        batches.set_state(state)


def main():
    every = dict(log_every=5, save_every=15, progress=False)
    with train.Run(folder / "run", {"a": 1}) as run:
        for state in train.fit(step, a.make_state(), Slow(), num_steps=60, run=run, **every):
            (folder / f"saved.{index}").write_text(str(int(state.step)))
            run.record(state, seen=1)
    (folder / f"{index}.json").write_text(json.dumps(a.described(state, [])))


sys.argv = sys.argv[:1]
train.command(main)
"""


def ended(folder: pathlib.Path) -> list[int]:
    with started(TRAINING, folder) as running:
        return [process.wait(200) for process in running]


def interrupted(folder: pathlib.Path, victims: tuple[int, ...], number: int) -> list[int]:
    """Sends a signal once the log has lines; how the processes ended."""
    log = folder / "run" / "metrics.jsonl"
    before = len(log.read_text().splitlines()) if log.exists() else 0
    with started(TRAINING, folder) as running:
        for _ in range(4000):
            if log.exists() and len(log.read_text().splitlines()) >= before + 2:
                break
            time.sleep(0.02)
        for index in victims:
            os.kill(running[index].pid, number)
        try:
            return [process.wait(90) for process in running]
        except subprocess.TimeoutExpired:
            pytest.fail("a process waits for ever")


def logs(folder: pathlib.Path) -> list[str]:
    return [(folder / f"{i}.log").read_text() for i in range(2)]


@pytest.mark.slow
def test_two_processes_fit_stop_and_resume(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    assert ended(whole) == [0, 0], logs(whole)
    expected = [json.loads((whole / f"{i}.json").read_text()) for i in range(2)]
    assert expected[0] == expected[1]

    # A signal to the process that does not write stops both after the same step, which is saved.
    codes = interrupted(parts, (1,), signal.SIGTERM)
    assert codes == [128 + signal.SIGINT, 128 + signal.SIGTERM], logs(parts)
    said = logs(parts)
    assert "SIGTERM: stopped; step" in said[1] and "a signal to another process" in said[0]
    checkpoints = train.Checkpointer(parts / "run" / "checkpoints")
    assert checkpoints.latest_step() % 10 == 0

    # Killed: both, and one, after which the other ends too.
    assert interrupted(parts, (0, 1), signal.SIGKILL) == 2 * [-signal.SIGKILL]
    assert interrupted(parts, (1,), signal.SIGKILL)[0] != 0
    assert ended(parts) == [0, 0], logs(parts)
    assert [json.loads((parts / f"{i}.json").read_text()) for i in range(2)] == expected
    lines = [line["step"] for line in train.read_metrics(parts / "run" / "metrics.jsonl")]
    assert lines == sorted(lines) and lines[-1] == 60

    # Other settings are refused by both, with one sentence.
    program = TRAINING.replace('{"a": 1}', '{"a": 2}')
    with started(program, parts) as running:
        assert [process.wait(100) for process in running] == [1, 1]
    assert all("a is 2 here and 1 there" in text for text in logs(parts))


@pytest.mark.slow
def test_batches_that_fail_in_one_process_end_both(tmp_path):
    """Neither waits for the other for ever: the checkpoint before is what the run goes on from."""
    program = TRAINING.replace(
        "        return next(batches)",
        "        if index == 1 and batches.get_state()['position'] >= 160:\n"
        "            raise OSError('the disk has gone')\n"
        "        return next(batches)",
    )
    with started(program, tmp_path) as running:
        codes = [process.wait(100) for process in running]
    assert codes[1] == 1 and codes[0] != 0, logs(tmp_path)
    assert "error: the disk has gone" in logs(tmp_path)[1]
    assert train.Checkpointer(tmp_path / "run" / "checkpoints").latest_step() == 15
