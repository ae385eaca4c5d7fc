"""Two processes are killed in the middle of training and resume bit for bit."""

import json
import os
import pathlib
import signal
import subprocess
import time

import pytest
from processes import started


TRAINING = """
import agreeing as a, time
mesh = train.data_mesh(shards=jax.local_device_count())
step = train.make_step(a.loss_fn, a.OPTIMISER, mesh=mesh)
folder = pathlib.Path(sys.argv[5])
checkpointer = train.Checkpointer(folder / "checkpoints", keep=2)
state = a.make_state()
if checkpointer.latest_step() is not None:
    state, _, _ = checkpointer.restore(state)
began = int(state.step)
for n in range(began, 40):
    state, metrics = step(state, a.share(index, count, n % a.STEPS))
    if n % 2:
        checkpointer.save_in_background(n + 1, state)
    with (folder / f"losses.{index}").open("a") as log:
        log.write(json.dumps([n, float(metrics.loss).hex()]) + "\\n")
    time.sleep(0.05)
checkpointer.close()
out([began, a.described(state, [metrics])])
"""


def losses(folder: pathlib.Path, index: int) -> dict[int, set[str]]:
    """By step, whatever was logged: of a step taken twice, both."""
    found: dict[int, set[str]] = {}
    for line in (folder / f"losses.{index}").read_text().splitlines():
        n, loss = json.loads(line)
        found.setdefault(n, set()).add(loss)
    return found


def ended(folder: pathlib.Path, devices: int) -> list:
    with started(TRAINING, folder, 2, devices) as running:
        codes = [process.wait(200) for process in running]
    assert codes == [0, 0], [(folder / f"{i}.log").read_text()[-4000:] for i in range(2)]
    return [json.loads((folder / f"{i}.json").read_text()) for i in range(2)]


def killed(folder: pathlib.Path, devices: int, after: int, victims: tuple[int, ...]) -> list[int]:
    """Kills these processes once so many steps are logged; how the processes ended."""
    log = folder / "losses.0"
    with started(TRAINING, folder, 2, devices) as running:
        for _ in range(4000):
            if log.exists() and len(log.read_text().splitlines()) >= after:
                break
            time.sleep(0.02)
        for index in victims:
            os.killpg(running[index].pid, signal.SIGKILL)
        try:
            return [process.wait(60) for process in running]
        except subprocess.TimeoutExpired:
            pytest.fail("a process waits for one that is dead")


@pytest.mark.slow
def test_killed_and_resumed(tmp_path):
    """Both at once, and one alone, after which the other ends too. Their devices share states."""
    devices = 2
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    (_, expected), again = ended(whole, devices)
    assert killed(parts, devices, 9, (0, 1)) == [-signal.SIGKILL, -signal.SIGKILL]
    for after, victim in ((18, 1), (27, 0)):
        codes = killed(parts, devices, after, (victim,))
        assert codes[victim] == -signal.SIGKILL and codes[1 - victim] != 0
    (began, resumed), other = ended(parts, devices)
    assert began > 0 and resumed == expected == again[1] == other[1]
    for index in range(2):
        assert losses(parts, index) == losses(whole, index)
        assert all(len(values) == 1 for values in losses(parts, index).values())
