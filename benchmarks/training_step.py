"""What Python costs a training step: processor time besides that of the compiled program.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --network iddpm_imagenet64 --steps 200

The network is one of the presets with every parameter shrunk to a single number, so that its tree
is the real one and the device has next to nothing to do. Its step, of clipped Adam with one
average, is called many times; the processor time of a call, in the calling thread, is what stands
between two launches on a GPU. `bare jit` is a compiled function of as many arrays as the state has,
donated likewise: no library can do with less. The best of five rounds is reported.
"""

import argparse
import platform
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import eqdiff as eqd
from eqdiff import train


OPTIMISER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-4))
ROUNDS = 5


def shrunk(name: str) -> Any:
    """A preset whose parameters have one element each."""
    make = getattr(eqd.nn.presets, name)
    shapes = eqx.filter_eval_shape(lambda key: make(key=key), jax.random.key(0))

    def shrink(x: Any) -> Any:
        is_array = isinstance(x, jax.ShapeDtypeStruct)
        return jnp.full(len(x.shape) * (1,), 0.1, x.dtype) if is_array else x

    return jax.tree.map(shrink, shapes)


def loss_fn(net, t, x0, args, *, key):
    """Depends on every parameter, and computes next to nothing."""
    total = sum(jnp.sum(x) for x in jax.tree.leaves(eqx.filter(net, eqx.is_inexact_array)))
    return (total - x0[0]) ** 2, {}


def processor_time(call: Callable[[Any], Any], state: Any, calls: int) -> float:
    """Milliseconds of processor time of a call in this thread, in the best round."""
    for _ in range(3):
        state = call(state)
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.thread_time()
        for _ in range(calls):
            state = call(state)
        best = min(best, time.thread_time() - began)
        jax.block_until_ready(jax.tree.leaves(eqx.filter(state, eqx.is_array)))
    return 1e3 * best / calls


def rows(net: Any, layout: train.AbstractLayout, calls: int, stack: int):
    """Name, arrays of the state and milliseconds a step of each way to take one."""
    name = f"{type(layout).__name__}()"
    batch, batches = (jnp.zeros((2, 1)), None), (jnp.zeros((stack, 2, 1)), None)

    def start() -> train.TrainState:
        timesteps = eqd.Uniform(eqd.cosine_schedule(4000))
        key = jax.random.key(0)
        return train.init(net, OPTIMISER, timesteps=timesteps, layout=layout, key=key)

    arrays = len([x for x in jax.tree.leaves(start()) if eqx.is_array(x)])
    bare = jax.jit(lambda xs: [x + 1 for x in xs], donate_argnums=0)
    floats = [jnp.zeros(1) for _ in range(arrays)]
    yield f"bare jit, as {name}", arrays, processor_time(bare, floats, calls)
    step = train.make_step(loss_fn, OPTIMISER)
    each = processor_time(lambda state: step(state, batch)[0], start(), calls)
    yield f"make_step, {name}", arrays, each
    steps = train.make_steps(loss_fn, OPTIMISER)
    each = processor_time(lambda state: steps(state, batches)[0], start(), -(-calls // stack))
    yield f"make_steps of {stack}, {name}", arrays, each / stack


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="iddpm_cifar10")
    parser.add_argument("--steps", type=int, default=100, help="calls in a round")
    parser.add_argument("--stack", type=int, default=10, help="steps in a call of make_steps")
    options = parser.parse_args()
    net = shrunk(options.network)
    leaves = len(jax.tree.leaves(eqx.filter(net, eqx.is_inexact_array)))
    print(
        f"{options.network}, {leaves} parameters' arrays; jax {jax.__version__}, "
        f"Python {platform.python_version()}, {jax.devices()[0].device_kind}\n"
    )
    print("| | arrays in the state | processor time a step, ms |\n|---|---|---|")
    for layout in (train.Flat(), train.Leaves()):
        for name, arrays, each in rows(net, layout, options.steps, options.stack):
            print(f"| {name} | {arrays} | {each:.3f} |", flush=True)


if __name__ == "__main__":
    main()
