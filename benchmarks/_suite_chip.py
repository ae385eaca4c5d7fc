"""The chip itself, where its time goes in a step of ours, and our rates of sampling and scoring."""

import collections
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _programs import init_state, make_net, make_step, SETTINGS
from _suite_networks import build_eqdiff, Size
from _suite_records import covered, Recorder

import eqdiff as eqd


SETTING = SETTINGS["iddpm_cifar10"]


def best_seconds(call: Callable[[], Any], rounds: int = 5, uncounted: int = 2) -> float:
    """Of the best call, after some that are not counted."""
    found = []
    for _ in range(uncounted + rounds):
        start = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - start)
    return min(found[uncounted:])


# Of convolutions and products, counted by `h100.py`.
FLOP_PER_IMAGE = {"train": 50.31e9, "forward": 16.77e9}


def chip(record: Recorder, side: int, megabytes: int, flop_per_image: Mapping[str, float]) -> None:
    """What it is, and what it can do: a large bf16 product, and a large copy."""
    device = jax.devices()[0]
    facts = {"device": device.device_kind, "platform": device.platform, "jax": jax.__version__}
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv"]
        found = subprocess.run(query, capture_output=True, text=True, check=False)
        facts["nvidia_smi"] = found.stdout.strip().splitlines()[-1]
    except (OSError, IndexError):
        pass
    record("chip", kind="device", **facts, flop_per_image=flop_per_image)
    # Random numbers: products of zeros draw less power, and are faster.
    a, b = (jax.random.normal(jax.random.key(i), (side, side), jnp.bfloat16) for i in range(2))
    products = 8

    @jax.jit
    def chain(a, b):
        return jax.lax.fori_loop(0, products, lambda _, a: (a @ b) * jnp.bfloat16(side**-0.5), a)

    seconds = best_seconds(lambda: chain(a, b)) / products
    record("chip", kind="product", side=side, flop_per_second=2 * side**3 / seconds)
    x = jnp.ones(megabytes * 2**18, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    seconds = best_seconds(lambda: add(x))
    record("chip", kind="copy", megabytes=megabytes, bytes_per_second=2 * x.nbytes / seconds)


class Event(NamedTuple):
    """A kernel in a trace, in seconds, and the operation of the program that it belongs to."""

    name: str
    start: float
    duration: float
    op: str


def read_trace(folder: Path) -> list[Event]:
    """What ran on the device; on a CPU, in XLA's threads."""
    (path,) = folder.rglob("*.xplane.pb")
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    on_device = [line for p in planes if p.name.startswith("/device:GPU") for line in p.lines]
    lines = [line for line in on_device if line.name.startswith("Stream")]
    if not lines:
        lines = [line for p in planes for line in p.lines if line.name.startswith("tf_XLA")]
    events = []
    for line in lines:
        for event in line.events:
            stats = dict(event.stats)
            if event.duration_ns > 0 and (on_device or "hlo_op" in stats):
                op = re.sub(r"[.\d]+$", "", str(stats.get("hlo_op", "")))
                events.append(Event(event.name, event.start_ns / 1e9, event.duration_ns / 1e9, op))
    return events


def kernel_table(events: Iterable[Event], steps: int, top: int = 60) -> str:
    """The longest kernels, as Markdown."""
    groups: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    for event in events:
        groups[event.name[:100], event.op].append(event.duration)
    total = sum(map(sum, groups.values()))
    lines = ["| ms a step | launches a step | share | kernel | HLO |", "|---:|---:|---:|---|---|"]
    for (name, op), found in sorted(groups.items(), key=lambda item: -sum(item[1]))[:top]:
        lines.append(
            f"| {1e3 * sum(found) / steps:.3f} | {len(found) / steps:.1f} "
            f"| {100 * sum(found) / total:.1f} % | `{name}` | {op} |"
        )
    return "\n".join(lines) + "\n"


def trace(record: Recorder, size: Size, out: Path, steps: int = 5) -> None:
    """The kernels of a training step, and how long the chip waits."""
    batch = size.batches[0]
    start = time.perf_counter()
    built = build_eqdiff(batch, size)
    for _ in range(3):
        built.functions["train"]()
    built.finish()
    seconds = time.perf_counter() - start
    record("rates", kind="memory", batch=batch, peak_gib=_peak(), first_steps_from_cache_s=seconds)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                built.functions["train"]()
            built.finish()
        events = read_trace(Path(folder))
    if not events:
        raise RuntimeError("the trace holds no kernels")
    (out / "kernels.md").write_text(kernel_table(events, steps))
    busy = covered((e.start, e.start + e.duration) for e in events)
    span = max(e.start + e.duration for e in events) - min(e.start for e in events)
    record(
        "rates",
        kind="trace",
        batch=batch,
        kernels_a_step=len(events) / steps,
        busy_ms_a_step=1e3 * busy / steps,
        ms_a_step=1e3 * span / steps,
        idle_share=1 - busy / span,
    )


def several(record: Recorder, size: Size, steps: int) -> None:
    """Images per second of training with several steps in one call, where eqdiff has that."""
    make = getattr(eqd.train, "make_steps", None)
    if make is None:
        return
    batch = size.batches[0]
    state = eqx.filter_jit(lambda: init_state(SETTING, size.dtype, size.options))()
    step = make_step(SETTING, make)
    shape = (steps, batch, *SETTING.shape)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def call():
        nonlocal state
        state, metrics = step(state, (images, None))
        return metrics

    start = time.perf_counter()
    jax.block_until_ready(call())
    first = time.perf_counter() - start
    found = steps * batch / best_seconds(call, 3, 1)
    facts = {"batch": batch, "steps_a_call": steps, "images_per_second": found}
    record("rates", kind="several", **facts, first_call_s=first)


def launches(record: Recorder, size: Size, flags: str, steps: int) -> None:
    """Milliseconds of a training step under the XLA flags of this process."""
    batch = size.batches[0]
    state = eqx.filter_jit(lambda: init_state(SETTING, size.dtype, size.options))()
    step = make_step(SETTING)
    images = np.random.default_rng(0).normal(size=(batch, *SETTING.shape)).astype(np.float32)

    def call():
        nonlocal state
        metrics = None
        for _ in range(steps):
            state, metrics = step(state, (images, None))
        return metrics

    start = time.perf_counter()
    jax.block_until_ready(call())
    first = time.perf_counter() - start
    seconds = best_seconds(call, 3, 0) / steps
    facts = {"ms_a_step": 1e3 * seconds, "images_per_second": batch / seconds}
    record("launches", kind="launches", flags=flags, batch=batch, **facts, first_calls_s=first)


def _peak() -> float | None:
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", 0) / 2**30 or None


def _filled(net: Any) -> Any:
    """Arrays that start at zero get values: a network that returns zeros is easy to integrate."""
    rng = np.random.default_rng(0)

    def fill(leaf: Any) -> Any:
        if not eqx.is_inexact_array(leaf):
            return leaf
        noise = 0.02 * rng.standard_normal(leaf.shape).astype(np.float32)
        return jnp.where(leaf == 0, noise, leaf)

    return jax.tree.map(fill, net)


class Likelihood(eqx.Module):
    """An image's log-likelihood and what it cost; a module, so that it is compiled once."""

    denoiser: eqd.Denoiser
    flow: eqd.ProbabilityFlow

    def __call__(self, image, key):
        found = eqd.log_likelihood(self.denoiser, image, flow=self.flow, key=key)
        return found.log_prob, found.stats["num_calls"]


def rates(record: Recorder, size: Size, batch: int, steps: int) -> None:
    """Network calls of an image per second: alone, in a sampler, and with a divergence."""
    net = _filled(make_net(SETTING, size.dtype, size.options, key=jax.random.key(0)))
    denoiser = SETTING.denoiser(net)
    x, t = jnp.zeros((batch, *SETTING.shape)), jnp.zeros(batch)
    forward = eqx.filter_jit(lambda net, t, x: jax.vmap(net)(t, x))
    alone = batch / best_seconds(lambda: forward(net, t, x))
    sampler, key = eqd.DDIM(steps), jax.random.key(1)

    def sample():
        return eqd.generate(sampler, denoiser, 2 * batch, SETTING.shape, key=key, batch_size=batch)

    first = time.perf_counter()
    sample()
    first = time.perf_counter() - first
    found = 2 * batch * steps / best_seconds(sample, 2, 0)
    record(
        "rates",
        kind="sampling",
        batch=batch,
        steps=steps,
        network_calls_a_second=alone,
        sampler_calls_a_second=found,
        beyond_the_network=alone / found - 1,
        first_call_s=first,
    )
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, x.shape).astype(np.float32))
    one = Likelihood(denoiser, eqd.ProbabilityFlow(diffrax.Bosh3(), rtol=1e-1, atol=1e-1))

    def score():
        return eqd.map_examples(one, images, key=key, batch_size=batch)

    first = time.perf_counter()
    # Under vmap the loop runs until the slowest example is done.
    calls = int(np.max(score()[1]))
    first = time.perf_counter() - first
    found = batch * calls / best_seconds(score, 2, 0)
    record(
        "rates",
        kind="likelihood",
        batch=batch,
        calls=calls,
        calls_a_second=found,
        network_calls_in_the_time_of_one=alone / found,
        first_call_s=first,
    )
