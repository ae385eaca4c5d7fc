"""Arrays of one process and arrays of all: how one becomes the other.

An array of a job of several processes is *global*: each process holds the parts on its own devices,
and only what all of them compute together can use it. What every process has a copy of, such as a
fresh state, becomes global by each giving its devices their parts; a network to be sampled from,
or saved, becomes local by gathering what is spread.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ._processes import gather


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def to_mesh(arrays: PyTree, shardings: PyTree, processes: int) -> PyTree:
    """Arrays under these shardings; several processes each have all of the arrays.

    **Raises:** `ValueError` in all processes if their arrays differ.
    """
    if processes == 1:
        return jax.device_put(arrays, shardings)
    leaves, structure = jax.tree.flatten(arrays)
    here = {n for n, x in enumerate(leaves) if x.is_fully_addressable}
    on_host = {
        n: np.asarray(jax.random.key_data(x) if _is_key(x) else x)
        for n, x in enumerate(leaves)
        if n in here
    }
    _check_equal(list(on_host.values()))
    each = [
        _from_host(on_host[n], x, sharding) if n in here else jax.device_put(x, sharding)
        for n, (x, sharding) in enumerate(zip(leaves, jax.tree.leaves(shardings), strict=True))
    ]
    return jax.tree.unflatten(structure, each)


def _from_host(array: np.ndarray, like: jax.Array, sharding: NamedSharding) -> jax.Array:
    # Copied: a JAX array may be a view of a NumPy array, which a step that donates it would write.
    placed = jax.make_array_from_callback(
        array.shape, sharding, lambda index: np.array(array[index], copy=True)
    )
    if _is_key(like):
        return jax.random.wrap_key_data(placed, impl=jax.random.key_impl(like))
    return placed


def _check_equal(arrays: list[np.ndarray]) -> None:
    crc = 0
    for array in arrays:
        crc = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, crc)
    found = gather(f"{len(arrays)} arrays, checksum {crc:08x}", "state")
    if len(set(found.values())) > 1:
        listed = "; ".join(f"process {index}: {text}" for index, text in found.items())
        raise ValueError(
            f"the processes begin with different states ({listed}): make each with the same key, "
            "network and optimiser, and restore the same checkpoint in all of them."
        )


def to_process(tree: PyTree) -> PyTree:
    """Arrays in one piece, on every device of a mesh, or in each of several processes on one.

    Processes that share the arrays call this together.
    """
    return jax.tree.map(_whole, tree)


def _whole(x: Any) -> Any:
    if not isinstance(x, jax.Array) or isinstance(x, Tracer):
        return x
    if not x.is_fully_replicated and isinstance(x.sharding, NamedSharding):
        everywhere = NamedSharding(x.sharding.mesh, PartitionSpec())
        x = jax.jit(lambda x: x, out_shardings=everywhere)(x)
    return x if x.is_fully_addressable else x.addressable_data(0)


def memory_per_device(state: PyTree) -> int:
    """The bytes that the arrays of a state take on one device: the one of this process with most.

    A step needs more: gathered parameters, a gradient, and what the network computes. See the
    `peak_bytes` of a step's `compile`.

    **Arguments:**

    - `state`: a [`eqdiff.train.TrainState`][], or any pytree. Only its JAX arrays count.

    **Example:**

    ```python
    num_bytes = eqd.train.memory_per_device({"weights": jnp.ones(1000)})
    ```
    """
    taken: dict[Any, int] = {}
    for x in jax.tree.leaves(state):
        if isinstance(x, jax.Array):
            for shard in x.addressable_shards:
                taken[shard.device] = taken.get(shard.device, 0) + shard.data.nbytes
    return max(taken.values(), default=0)
