"""How fast the networks are: forward and training images per second, compile time, parameters.

    python benchmarks/networks.py --network iddpm_cifar10 iddpm_digits --batch 8 --dtype float32
    python benchmarks/networks.py --batch 8 --rbg --remat
    python benchmarks/networks.py --network iddpm_cifar10 ncsnpp_cifar10 --torch eager compiled

A training step is what a trainer does: dropout on, the gradient of a mean squared error, Adam. The
cases are measured in turns, one call each per round after one that is not timed, so that whatever
else the machine does hits all of them alike; the best round is reported, and the median next to it
tells how quiet it was. Each library has its own process: where PyTorch's threads have run, JAX
trains a quarter slower. Memory is what XLA reserves for intermediate values of the training step.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from tqdm import trange

import eqdiff.nn as nn


class Facts(NamedTuple):
    """Of one row of the table, what is known before anything is timed."""

    name: str
    runs_on: str
    batch: int
    parameters: int
    compile_seconds: float
    megabytes: float | None


class Case(NamedTuple):
    """One row of the table: two functions that block until they are done."""

    facts: Facts
    forward: Callable[[], Any]
    train: Callable[[], Any]


def _mlp(*, compute_dtype, key):
    if compute_dtype != jnp.float32:
        raise SystemExit("mlp computes in float32; leave --dtype out.")
    return nn.MLP(2, 2, key=key)


# name -> (constructor, shape of one example, the greatest c_noise)
NETWORKS = {
    "iddpm_cifar10": (nn.presets.iddpm_cifar10, (3, 32, 32), 999.0),
    "ncsnpp_cifar10": (nn.presets.ncsnpp_cifar10, (3, 32, 32), 3.9),
    "ddpmpp_cifar10": (nn.presets.ddpmpp_cifar10, (3, 32, 32), 999.0),
    "iddpm_digits": (nn.presets.iddpm_digits, (1, 8, 8), 999.0),
    "mlp": (_mlp, (2,), 999.0),
}


def _loss(params, static, c_noise, x, keys):
    net = eqx.combine(params, static)
    out = jax.vmap(lambda c_noise, x, key: net(c_noise, x, key=key))(c_noise, x, keys)
    return jnp.mean((out[:, : x.shape[1]] - x) ** 2)


def eqdiff_case(name: str, batch: int, dtype: str, *, remat: bool, rbg: bool) -> Case:
    """One of our networks. Another library's case is another function that returns a `Case`."""
    constructor, shape, greatest = NETWORKS[name]
    options = {"remat": True} if remat else {}
    net = constructor(compute_dtype=jnp.dtype(dtype), key=jax.random.key(0), **options)
    params, static = eqx.partition(net, eqx.is_inexact_array)
    optimiser = optax.adam(1e-4)
    x = jax.random.normal(jax.random.key(1), (batch, *shape))
    c_noise = jnp.linspace(0.0, greatest, batch)
    # Dropout alone may use rbg under vmap: its masks are then shared by the batch's examples.
    keys = jax.random.split(jax.random.key(2, impl="rbg" if rbg else None), batch)

    def forward(params, c_noise, x):
        return jax.vmap(eqx.combine(params, static))(c_noise, x)

    def train(params, state, c_noise, x, keys):
        grads = jax.grad(_loss)(params, static, c_noise, x, keys)
        updates, state = optimiser.update(grads, state)
        return optax.apply_updates(params, updates), state

    start = time.perf_counter()
    state = optimiser.init(params)
    compiled_forward = jax.jit(forward).lower(params, c_noise, x).compile()
    # Donated like in a trainer: the parameters are updated in place.
    jitted_train = jax.jit(train, donate_argnums=(0, 1))
    compiled_train = jitted_train.lower(params, state, c_noise, x, keys).compile()
    seconds = time.perf_counter() - start
    parameters = sum(p.size for p in jax.tree.leaves(params))
    carry = (jax.tree.map(jnp.copy, params), state)

    def run_train():
        nonlocal carry
        carry = jax.block_until_ready(compiled_train(*carry, c_noise, x, keys))

    def run_forward():
        return jax.block_until_ready(compiled_forward(params, c_noise, x))

    label = f"eqdiff {name} {dtype}{' remat' if remat else ''}"
    memory = compiled_train.memory_analysis()
    megabytes = None if memory is None else memory.temp_size_in_bytes / 2**20
    runs_on = f"jax {jax.__version__}, {jax.devices()[0].device_kind or platform.machine()}"
    facts = Facts(label, runs_on, batch, parameters, seconds, megabytes)
    return Case(facts, run_forward, run_train)


def torch_case(name: str, batch: int, dtype: str, *, compiled: bool) -> Case:
    """The same network from diffusers, eager or compiled."""
    # Only here, so that the benchmark of our own networks needs neither torch nor diffusers.
    from _torch_networks import torch_network

    net = torch_network(name, batch, dtype, compiled=compiled)
    label = f"torch {name} {dtype} {'compiled' if compiled else 'eager'}"
    facts = Facts(label, net.runs_on, batch, net.parameters, net.compile_seconds, None)
    return Case(facts, net.forward, net.train)


def serve(pipe: Connection, makers: list[partial[Case]]) -> None:
    """Builds cases and sends what they are; then times what it is asked to, (case, function)."""
    cases = []
    for make in makers:
        case = make()
        cases.append(case)
        pipe.send(case.facts)
    while (request := pipe.recv()) is not None:
        which, function = request
        run = getattr(cases[which], function)
        # Once untimed: memory and threads that were idle during the others' turns come back.
        # Training is never idle.
        run()
        start = time.perf_counter()
        run()
        pipe.send(time.perf_counter() - start)


def measure(
    libraries: list[list[partial[Case]]], rounds: int
) -> tuple[list[Facts], list[dict[str, list[float]]]]:
    """What the cases are, and the seconds of each call, in turns over the cases.

    The first round is not counted.
    """
    context = get_context("spawn")
    facts, owners = [], []
    for makers in libraries:
        pipe, theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, makers), daemon=True).start()
        # A process that dies shows as the end of its pipe.
        theirs.close()
        # One library after the other, so that none compiles while another does.
        facts += [pipe.recv() for _ in makers]
        owners += [(pipe, which) for which in range(len(makers))]
    times = [{"forward": [], "train": []} for _ in facts]
    for round_number in trange(rounds + 1, desc="rounds", leave=False):
        for (pipe, which), seconds in zip(owners, times, strict=True):
            for function in ("forward", "train"):
                pipe.send((which, function))
                found = pipe.recv()
                if round_number > 0:
                    seconds[function].append(found)
    for pipe, which in owners:
        if which == 0:
            pipe.send(None)
    return facts, times


def print_table(cases: list[Facts], times: list[dict[str, list[float]]]) -> None:
    header = (
        "network",
        "batch",
        "parameters",
        "compile s",
        "train MiB",
        "forward im/s",
        "train im/s",
        "(median)",
    )
    print(("{:40}" + "{:>14}" * 7).format(*header))
    for case, seconds in zip(cases, times, strict=True):
        forward, train = seconds["forward"], seconds["train"]
        rates = [case.batch / min(forward), case.batch / min(train)]
        medians = "{:.1f}, {:.1f}".format(
            *(case.batch / statistics.median(each) for each in (forward, train))
        )
        print(
            f"{case.name:40}{case.batch:>14}{case.parameters:>14,}{case.compile_seconds:>14.1f}"
            f"{'' if case.megabytes is None else round(case.megabytes):>14}"
            f"{rates[0]:>14.1f}{rates[1]:>14.1f}{medians:>14}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=["iddpm_digits"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--remat", action="store_true", help="rematerialise each block (U-Nets)")
    parser.add_argument("--rbg", action="store_true", help="draw dropout with the rbg generator")
    parser.add_argument(
        "--torch",
        nargs="*",
        choices=("eager", "compiled"),
        default=(),
        help="also diffusers' networks",
    )
    args = parser.parse_args()
    ours = [
        partial(eqdiff_case, name, args.batch, dtype, remat=args.remat, rbg=args.rbg)
        for name in args.network
        for dtype in args.dtype
    ]
    theirs = [
        partial(torch_case, name, args.batch, dtype, compiled=mode == "compiled")
        for name in args.network
        for dtype in args.dtype
        for mode in args.torch
    ]
    cases, times = measure([makers for makers in (ours, theirs) if makers], args.rounds)
    print(*dict.fromkeys(case.runs_on for case in cases), sep="; ")
    print_table(cases, times)


if __name__ == "__main__":
    main()
