"""What a checkpoint costs: the time for which the training thread stands still, and in all.

    python benchmarks/checkpoint.py [folder]

The state is that of iDDPM's CIFAR-10 U-Net with Adam and one average. While a save is under way in
the background, the thread goes on with updates that donate the state, as a training step does.
"""

import pathlib
import statistics
import sys
import tempfile
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import eqdiff as eqd
from eqdiff import train


SAVES = 7


def make_state():
    net = eqd.nn.presets.iddpm_cifar10(key=jax.random.key(0))
    return train.init(
        net,
        optax.adam(1e-4),
        timesteps=eqd.Uniform(eqd.cosine_schedule(4000)),
        key=jax.random.key(1),
    )


@eqx.filter_jit(donate="all")
def update(state):
    return eqx.tree_at(lambda s: s.step, state, state.step + jnp.asarray(1, jnp.int32))


def main(folder: pathlib.Path) -> None:
    state = update(make_state())
    arrays = jax.tree.leaves(eqx.filter(state, eqx.is_array))
    size = sum(x.nbytes for x in arrays if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key))
    print(f"{len(arrays)} arrays, {size / 1e6:.0f} MB, on {jax.devices()[0].device_kind}")
    stalls, totals, whole = [], [], []
    checkpointer = train.Checkpointer(folder, keep=1)
    for n in range(SAVES):
        jax.block_until_ready(eqx.filter(state, eqx.is_array))
        begin = time.perf_counter()
        checkpointer.save_in_background(n, state)
        stalls.append(time.perf_counter() - begin)
        for _ in range(10):
            state = update(state)
        checkpointer.wait()
        totals.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        checkpointer.save(n, state)
        whole.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    checkpointer.restore(eqx.filter_eval_shape(make_state))
    seconds = time.perf_counter() - begin
    print(f"training thread, first save: {1e3 * stalls[0]:.1f} ms")
    print(
        f"training thread, later: median {1e3 * statistics.median(stalls[1:]):.1f} ms, "
        f"worst {1e3 * max(stalls[1:]):.1f} ms"
    )
    print(f"until it is on disk: median {statistics.median(totals):.2f} s")
    print(f"save(), which waits: median {statistics.median(whole):.2f} s")
    print(f"restore(): {seconds:.2f} s")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(pathlib.Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(pathlib.Path(name))
