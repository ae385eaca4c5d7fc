"""Where arrays live: the state on every device, a batch split across them.

The step is one program over a mesh of devices with an axis called "data". Arrays carry their
sharding and the compiler inserts the reductions, so the code of a step does not mention devices and
its result does not depend on their number.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


AXIS = "data"


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices (or those given) with the one axis `"data"`.

    **Arguments:**

    - `devices`: by default `jax.devices()`.
    """
    return _automatic(Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,)))


def _automatic(mesh: Mesh) -> Mesh:
    # `jax.make_mesh` makes explicit axes, under which ordinary network code (reshapes,
    # convolutions) must spell out the sharding of its results. Ours is left to the compiler.
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def check_mesh(mesh: Mesh | None) -> Mesh | None:
    if mesh is None:
        return None
    if AXIS not in mesh.axis_names:
        raise ValueError(
            f"the mesh has the axes {mesh.axis_names}, but a batch is split along one called "
            f"{AXIS!r}: write mesh=eqdiff.train.data_mesh()."
        )
    return _automatic(mesh)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def split_examples(mesh: Mesh, accumulate: int) -> NamedSharding:
    """For arrays of shape `(n, …)`, or `(accumulate, n, …)` where there are microbatches."""
    return NamedSharding(mesh, PartitionSpec(*(() if accumulate == 1 else (None,)), AXIS))


def into_microbatches(tree: PyTree, accumulate: int) -> PyTree:
    """`(n, …)` to `(accumulate, n / accumulate, …)`, in order; unchanged for one microbatch."""
    if accumulate == 1:
        return tree
    return jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), tree)


def check_batch(batch: Any, mesh: Mesh | None, accumulate: int) -> None:
    """**Raises:** `ValueError` unless `batch` is `(x0, args)` and can be divided evenly."""
    if not (isinstance(batch, tuple) and len(batch) == 2):
        raise ValueError(
            f"a batch is the pair (x0, args), got {type(batch).__name__}: "
            "write step(state, (x0, None)) for data without conditions."
        )
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or sizes == {()}:
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
        raise ValueError(
            f"the arrays of a batch share their leading axis, the examples; got shapes {shapes}."
        )
    ((size,),) = sizes
    devices = 1 if mesh is None else mesh.shape[AXIS]
    unit = devices * accumulate
    if size == 0 or size % unit != 0:
        below = size // unit * unit
        nearest = f"{below} or {below + unit}" if below else f"{unit}"
        raise ValueError(
            f"a batch of {size} examples cannot be split evenly over {devices} devices × "
            f"{accumulate} microbatches: use a multiple of {unit}, such as {nearest}."
        )


def place_batch(batch: tuple[PyTree, PyTree], mesh: Mesh | None, accumulate: int):
    # Microbatches are cut before the batch is spread over the devices, not afterwards: that would
    # send it back and forth.
    batch = into_microbatches(jax.tree.map(_as_array, batch), accumulate)
    if mesh is None:
        return jax.tree.map(jnp.asarray, batch)
    return jax.device_put(batch, split_examples(mesh, accumulate))


def _as_array(x: Any) -> Any:
    return x if isinstance(x, jax.Array) else np.asarray(x)
