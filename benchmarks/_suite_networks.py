"""eqdiff and PyTorch, each in a process of its own, asked in turns.

What a worker builds is timed apart: its time to the first call is mostly compilation. A run calls
a function for a second or more and waits at the end alone, as a training loop does, so that Python
and the chip work at the same time; the processor time of the calling thread tells what Python
costs.
"""

import time
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from _suite_records import Recorder


FUNCTIONS = ("train", "forward")


class Size(NamedTuple):
    """How large everything is: as published, or a toy."""

    dtype: str
    options: dict[str, Any]
    torch_options: dict[str, Any]
    batches: tuple[int, ...]
    libraries: tuple[str, ...]
    seconds: float
    rounds: int


class Built(NamedTuple):
    """Functions for one batch size; `finish` waits for all that was called."""

    functions: dict[str, Callable[[], Any]]
    finish: Callable[[], None]
    facts: dict[str, Any]


def build_eqdiff(batch: int, size: Size) -> Built:
    """Our train step, from arrays of the host as a loader gives them, and our network."""
    import _programs as programs
    import equinox as eqx
    import jax
    import numpy as np

    setting = programs.SETTINGS["iddpm_cifar10"]
    # In one program, as the example does, and not layer by layer.
    state = eqx.filter_jit(lambda: programs.init_state(setting, size.dtype, size.options))()
    step = programs.make_step(setting)
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(batch, *setting.shape)).astype(np.float32) for _ in range(4)]
    net = programs.make_net(setting, size.dtype, size.options, key=jax.random.key(0))
    arrays, static = eqx.partition(net, eqx.is_array)
    call = jax.jit(lambda arrays, t, x: jax.vmap(eqx.combine(arrays, static))(t, x))
    t, x = jax.numpy.zeros(batch), jax.numpy.asarray(images[0])
    last: list[Any] = [None]
    calls = 0

    def train():
        nonlocal state, calls
        state, last[0] = step(state, (images[calls % len(images)], None))
        calls += 1

    def forward():
        last[0] = call(arrays, t, x)

    def finish():
        jax.block_until_ready(last[0])

    parameters = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(net, eqx.is_inexact_array)))
    return Built({"train": train, "forward": forward}, finish, {"parameters": parameters})


def build_torch(batch: int, size: Size, *, compiled: bool) -> Built:
    """The same of PyTorch."""
    import torch  # pyright: ignore[reportMissingImports]
    from _torch_unet import Trainer, UNet

    trainer = Trainer(UNet(**size.torch_options), batch, size.dtype, compiled=compiled)
    functions = {"train": trainer.train, "forward": trainer.forward}
    parameters = sum(p.numel() for p in trainer.net.parameters())
    facts = {"parameters": parameters, "torch": torch.__version__}
    return Built(functions, trainer.finish, facts)


def _eager(batch: int, size: Size) -> Built:
    return build_torch(batch, size, compiled=False)


def _compiled(batch: int, size: Size) -> Built:
    return build_torch(batch, size, compiled=True)


LIBRARIES = {"eqdiff": build_eqdiff, "torch eager": _eager, "torch compiled": _compiled}


def used_memory(library: str) -> float | None:
    """The most GiB that arrays have had so far, where the device tells."""
    if library == "eqdiff":
        import jax

        stats = jax.local_devices()[0].memory_stats() or {}
        return stats.get("peak_bytes_in_use", 0) / 2**30 or None
    import torch  # pyright: ignore[reportMissingImports]

    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None


def release(library: str) -> None:
    """Gives memory that is cached back to the device, for the others' turns."""
    if library != "eqdiff":
        import torch  # pyright: ignore[reportMissingImports]

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def run(built: Built, function: str, seconds: float) -> dict[str, Any]:
    """Calls a function for so long, after three calls that are not counted."""
    call = built.functions[function]
    for _ in range(3):
        call()
    built.finish()
    start, processor, calls = time.perf_counter(), time.thread_time(), 0
    while calls == 0 or time.perf_counter() - start < seconds:
        call()
        calls += 1
    thread = time.thread_time() - processor
    built.finish()
    return {
        "calls": calls,
        "seconds": time.perf_counter() - start,
        "thread_seconds": thread,
    }


def build(library: str, batch: int, size: Size) -> tuple[Built, dict[str, Any]]:
    """Builds, and times the first calls; what both functions need is in the first of them."""
    start = time.perf_counter()
    built = LIBRARIES[library](batch, size)
    facts: dict[str, Any] = dict(built.facts)
    for function in FUNCTIONS:
        built.functions[function]()
        built.finish()
        facts[f"first_{function}_s"] = time.perf_counter() - start
        start = time.perf_counter()
    return built, facts | {"peak_gib": used_memory(library)}


def serve(pipe: Connection, library: str, tree: str) -> None:
    """Builds and runs as it is asked to; answers with facts, or with what went wrong."""
    from pathlib import Path

    from _tree import use_tree

    use_tree(Path(tree))
    built: Built | None = None
    while (request := pipe.recv()) is not None:
        try:
            if request[0] == "build":
                built = None
                built, answer = build(library, *request[1:])
            else:
                assert built is not None
                answer = run(built, *request[1:])
                release(library)
            pipe.send(answer)
        except Exception as error:
            traceback.print_exc()
            pipe.send({"error": f"{type(error).__name__}: {error}"[:500]})


class Worker:
    """A library in a process of its own."""

    def __init__(self, library: str, tree: str):
        self.library = library
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, library, tree), daemon=True)
        self.process.start()
        # A process that dies shows as the end of its pipe.
        theirs.close()

    def ask(self, *request: Any) -> None:
        self.pipe.send(request)

    def answer(self, until: float) -> dict[str, Any]:
        """What it says; an error where it says nothing in time, or dies."""
        try:
            if self.pipe.poll(max(0.0, until - time.monotonic())):
                return self.pipe.recv()
        except (EOFError, OSError):
            return {"error": f"the process ended (exit code {self.process.exitcode})"}
        return {"error": "not ready in time"}

    def stop(self) -> None:
        self.process.kill()


def networks(
    record: Recorder, size: Size, batches: tuple[int, ...], seconds: float, tree: str
) -> None:
    """Every library at every batch size, in turns."""
    end = time.monotonic() + seconds
    workers = [Worker(library, tree) for library in size.libraries]
    for batch in batches:
        workers = _build_all(record, workers, batch, size, end)
        for number in range(size.rounds):
            for function in FUNCTIONS:
                for worker in list(workers):
                    worker.ask("run", function, size.seconds)
                    found = worker.answer(end)
                    facts = {"library": worker.library, "batch": batch, "function": function}
                    if "error" in found:
                        record("networks", kind="failed", **facts, **found)
                        worker.stop()
                        workers.remove(worker)
                        continue
                    images = batch * found["calls"]
                    record("networks", kind="run", round=number, images=images, **facts, **found)
    for worker in workers:
        worker.stop()


def _build_all(
    record: Recorder, workers: list[Worker], batch: int, size: Size, end: float
) -> list[Worker]:
    """Those that are ready. Ours is built alone at first, since its first call is a question."""
    ready = []
    groups = [workers[:1], workers[1:]] if batch == size.batches[0] else [workers]
    # What the turns need is left for them.
    until = end - 2 * (1 + size.rounds) * len(FUNCTIONS) * size.seconds * len(workers)
    for group in groups:
        for worker in group:
            worker.ask("build", batch, size)
        for worker in group:
            facts = worker.answer(until)
            kind = "failed" if "error" in facts else "build"
            record("networks", kind=kind, library=worker.library, batch=batch, **facts)
            if kind == "build":
                ready.append(worker)
            else:
                worker.stop()
    return ready
