"""Where arrays live: the state on every device, a batch split across them.

The step is one program over a mesh of devices with an axis called "data". Arrays carry their
sharding and the compiler inserts the reductions, so the code of a step does not mention devices and
its result does not depend on their number.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
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


def check_options(mesh: Mesh | None, accumulate: int) -> Mesh | None:
    if accumulate < 1:
        raise ValueError(f"accumulate={accumulate}: expected at least one microbatch.")
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


def place_state(state: PyTree, step: jax.Array, mesh: Mesh | None) -> PyTree:
    """A state on every device of the mesh, where `step`, one of its arrays, shows where it is."""
    # One array speaks for all: they only ever move together, and asking hundreds would take
    # milliseconds.
    if mesh is None or step.sharding == replicated(mesh):
        return state
    arrays, rest = eqx.partition(state, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, replicated(mesh)), rest)


def split_examples(mesh: Mesh, accumulate: int, lead: int = 0) -> NamedSharding:
    """For arrays of shape `(n, …)`, or `(accumulate, n, …)` where there are microbatches.

    Both behind `lead` axes that are not split.
    """
    lead = lead if accumulate == 1 else lead + 1
    return NamedSharding(mesh, PartitionSpec(*lead * (None,), AXIS))


def into_microbatches(tree: PyTree, accumulate: int, lead: int = 0) -> PyTree:
    """`(n, …)` to `(accumulate, n / accumulate, …)`, in order, behind `lead` other axes.

    Unchanged for one microbatch.
    """
    if accumulate == 1:
        return tree
    return jax.tree.map(
        lambda x: x.reshape(*x.shape[:lead], accumulate, -1, *x.shape[lead + 1 :]), tree
    )


def check_batch(batch: Any, mesh: Mesh | None, accumulate: int, lead: int = 0) -> None:
    """**Raises:** `ValueError` unless `batch` is `(x0, args)` and can be divided evenly.

    With `lead = 1`, a stack of batches.
    """
    if not (isinstance(batch, tuple) and len(batch) == 2):
        raise ValueError(
            f"a batch is the pair (x0, args), got {type(batch).__name__}: "
            "write step(state, (x0, None)) for data without conditions."
        )
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
    leading = {shape[: lead + 1] for shape in shapes}
    if len(leading) != 1 or len(next(iter(leading))) <= lead:
        axes = "leading axis, the examples" if lead == 0 else "leading axes, steps and examples"
        raise ValueError(f"the arrays of a batch share their {axes}; got shapes {shapes}.")
    ((*steps, size),) = leading
    if 0 in steps:
        raise ValueError(f"expected the batches of at least one step; got shapes {shapes}.")
    devices = 1 if mesh is None else mesh.shape[AXIS]
    unit = devices * accumulate
    if size == 0 or size % unit != 0:
        below = size // unit * unit
        nearest = f"{below} or {below + unit}" if below else f"{unit}"
        raise ValueError(
            f"a batch of {size} examples cannot be split evenly over {devices} devices × "
            f"{accumulate} microbatches: use a multiple of {unit}, such as {nearest}."
        )


def place_batch(batch: tuple[PyTree, PyTree], mesh: Mesh | None, accumulate: int, lead: int = 0):
    # Microbatches are cut before the batch is spread over the devices, not afterwards: that would
    # send it back and forth.
    batch = into_microbatches(jax.tree.map(_as_array, batch), accumulate, lead)
    if mesh is None:
        return jax.tree.map(jnp.asarray, batch)
    return jax.device_put(batch, split_examples(mesh, accumulate, lead))


def _as_array(x: Any) -> Any:
    return x if isinstance(x, jax.Array) else np.asarray(x)
