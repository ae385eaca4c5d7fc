"""Several real processes on this machine, joined by `jax.distributed`."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator


ROOT = pathlib.Path(__file__).parent.parent

# `out(value)` is what the test reads; whatever a program prints besides is shown when it fails.
HEAD = """
import json, os, pathlib, sys
os.environ["JAX_PLATFORMS"] = "cpu"
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[3]))
jax.config.update("jax_enable_x64", False)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
import numpy as np
from eqdiff import train
count, index = int(sys.argv[2]), int(sys.argv[4])
if count > 1:
    train.start_processes(sys.argv[1], count, index, heartbeat_timeout=10)
def out(value):
    pathlib.Path(sys.argv[5], f"{index}.json").write_text(json.dumps(value))
"""


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@contextlib.contextmanager
def started(
    body: str, folder: pathlib.Path, count: int = 2, devices: int = 1
) -> Iterator[list[subprocess.Popen]]:
    """The processes of a job that runs `body`; whatever happens, none outlives the block."""
    program = folder / "program.py"
    program.write_text(HEAD + textwrap.dedent(body))
    address = f"127.0.0.1:{free_port()}"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("XLA_FLAGS")}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**kept, "PYTHONPATH": paths}
    running = []
    try:
        for index in range(count):
            arguments = [address, count, devices, index, folder]
            with (folder / f"{index}.log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, str(program), *map(str, arguments)],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
            running.append(process)
        yield running
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def outputs(body: str, count: int = 2, devices: int = 1, seconds: float = 120) -> list:
    """What each process of a job gave to `out`. Fails if one fails, or none ends in time."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        with started(body, folder, count, devices) as running:
            try:
                codes = [process.wait(seconds) for process in running]
            except subprocess.TimeoutExpired:
                codes = ["hung"]
        logs = "\n".join((folder / f"{i}.log").read_text()[-6000:] for i in range(count))
        assert codes == count * [0], f"{codes}\n{logs}"
        return [json.loads((folder / f"{i}.json").read_text()) for i in range(count)]
