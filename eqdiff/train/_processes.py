"""What the processes of one job agree on, through the key-value store of `jax.distributed`.

A job on several hosts runs the same program once on each. What every process computes on devices is
one program for all of them; what each decides in Python (to stop, to write, to raise) they have to
agree on, or some wait indefinitely in a computation that the others never start. They agree through
the store and never on devices, so from any thread and while the devices are busy.

With one process all of this is at once and free. All processes call the same functions with the
same names in the same order; calls of different names may come from different threads.
"""

import collections
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

# The store has no public name; Orbax takes it from here too.
from jax._src import distributed


# Long, because the others may be compiling or evaluating. A process that died is noticed by its
# heartbeat, which ends the wait with an error.
_PATIENCE = 7 * 24 * 3600 * 1000

_counters: collections.Counter[str] = collections.Counter()
_lock = threading.Lock()


def start_processes(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_timeout: int = 100,
) -> None:
    """Joins this process to the others of its job; every host runs the same program.

    A thin wrapper of `jax.distributed.initialize`. Call it first: before anything is computed and
    before `jax.devices()`, which then lists the devices of all processes. Without arguments the
    cluster is asked: SLURM, Open MPI, Kubernetes and Cloud TPU say who is who. On CPUs the
    processes talk through Gloo.

    When a process dies, the others end too, as soon as `heartbeat_timeout` has passed: start the
    job again, and it resumes from its last checkpoint.

    **Arguments:**

    - `coordinator`: address and free port of process 0, `"10.0.0.1:1234"`.
    - `num_processes`: how many processes there are.
    - `process_id`: which of them this one is, from 0.
    - `heartbeat_timeout`: seconds without a sign of life after which a process counts as dead.

    **Raises:** `ValueError` if no cluster says what was not given, and `RuntimeError` if JAX has
    computed something already, or has been started before.

    **Example:**

    ```python
    eqd.train.start_processes()  # the first line of a program that runs on every host
    mesh = eqd.train.data_mesh()
    ```
    """
    given = coordinator, num_processes, process_id
    try:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=heartbeat_timeout
        )
    except ValueError as error:
        raise ValueError(
            f"start_processes{given}: {error} No cluster (SLURM, Open MPI, Kubernetes, Cloud TPU) "
            "was found that says the rest: write start_processes('10.0.0.1:1234', num_processes, "
            "process_id), with the address of process 0. A single process needs no call."
        ) from error
    except RuntimeError as error:
        if "before any JAX" not in str(error):
            raise
        raise RuntimeError(
            "start_processes() comes before anything is computed and before jax.devices(): make "
            "it the first line of main()."
        ) from error


def num_processes() -> int:
    """How many processes the job has. Unlike `jax.process_count()`, this starts no device."""
    return distributed.global_state.num_processes


def is_writer() -> bool:
    """Whether this process writes the files that all share: process 0.

    **Example:**

    ```python
    if eqd.train.is_writer():
        print("process 0 writes the files")
    ```
    """
    return distributed.global_state.process_id == 0


def barrier(name: str) -> None:
    """Returns once every process has called it."""
    if num_processes() > 1:
        with _waiting(name):
            _interruptible(lambda: _client().wait_at_barrier(f"eqdiff/{name}", _PATIENCE))


def any_process(flag: bool, name: str) -> bool:
    """Whether `flag` is true in some process. All get the same answer."""
    return bool(gather("yes" if flag else "", name))


def gather(text: str, name: str) -> dict[int, str]:
    """The texts of all processes, by process; empty ones are left out."""
    index = distributed.global_state.process_id
    if num_processes() == 1:
        return {index: text} if text else {}
    count = _count(name)
    folder = f"eqdiff/{name}/{count}/"
    with _waiting(name):
        if text:
            _client().key_value_set(f"{folder}{index}", text)
        barrier(name)
        found = _client().key_value_dir_get(folder)
        if count > 0 and is_writer():
            # Everyone has read what was before this one.
            _client().key_value_delete(f"eqdiff/{name}/{count - 1}/")
    return {int(key.rsplit("/", 1)[1]): value for key, value in sorted(found)}


def from_writer(text: str, name: str) -> str:
    """The text of process 0, in every process."""
    if num_processes() == 1:
        return text
    return gather(f"={text}" if is_writer() else "", name)[0][1:]


def _count(name: str) -> int:
    with _lock:
        _counters[name] += 1
        return _counters[name] - 1


def _client() -> Any:
    return distributed.global_state.client


def _interruptible(wait: Callable[[], None]) -> None:
    """Waits in a separate thread: Python notices no signal while it waits outside Python."""
    failures = []

    def run() -> None:
        try:
            wait()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


@contextlib.contextmanager
def _waiting(name: str) -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0][:300]
        raise RuntimeError(
            f"process {distributed.global_state.process_id} waited for the others ({name}), but "
            f"one of them has ended: {reason}. Start the job again to resume it."
        ) from error
