r"""Where a state lives: the same on every device, or spread over groups of them.

The step is one program over a mesh of devices. A batch is split over all of them; arrays carry
their sharding and the compiler inserts the reductions, so the code of a step does not mention
devices and its result does not depend on their number.

With a second axis, of $s$ devices, each of these keeps one $s$-th of the parameters, of their
averages and of the optimiser's state, and updates it (ZeRO: Rajbhandari et al. 2020). A state of
$P$ parameters with Adam and one average is $4 P$ numbers: instead of these, a device keeps

$$\frac{4 P}{s} \quad\text{and, during a step, } P \text{ gathered parameters and } P \text{ of a
  gradient.} \tag{1}$$

Vectors are divided by construction (`_layout.py`), other arrays along their longest axis that can
be; what cannot, or is short, is whole everywhere.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ._place import to_mesh
from ._processes import num_processes


DATA, SHARD = "data", "shard"

# Fewer numbers than these are not worth a message.
_SHORT = 2**10


def data_mesh(devices: Sequence[jax.Device] | None = None, *, shards: int = 1) -> Mesh:
    r"""A mesh over all devices (or those given) with the axis `"data"`, or also `"shard"`.

    A batch is split over all devices. With `shards` above 1, every group of so many neighbouring
    devices shares one copy of the parameters, their averages and the optimiser's state, each
    keeping an equal part: for a state that does not fit into one device's memory. It costs the
    gathering of the parameters in every step; keep a group within one machine.

    **Arguments:**

    - `devices`: by default `jax.devices()`, those of all processes.
    - `shards`: how many devices share a copy, a divisor of their number.

    **Raises:** `ValueError` for a number of shards that does not divide that of devices.

    **Example:**

    ```python
    mesh = eqd.train.data_mesh()  # the `mesh` of eqd.train.make_step
    ```
    """
    found = np.asarray(jax.devices() if devices is None else devices)
    if shards < 1 or found.size % shards:
        divisors = ", ".join(str(n) for n in range(1, found.size + 1) if found.size % n == 0)
        raise ValueError(
            f"data_mesh(shards={shards}): {found.size} devices can be shared out in groups of "
            f"{divisors}."
        )
    if shards == 1:
        return _automatic(Mesh(found, (DATA,)))
    return _automatic(Mesh(found.reshape(-1, shards), (DATA, SHARD)))


def _automatic(mesh: Mesh) -> Mesh:
    # `jax.make_mesh` makes explicit axes, under which ordinary network code (reshapes,
    # convolutions) must spell out the sharding of its results. Ours is left to the compiler.
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def check_options(mesh: Mesh | None, accumulate: int) -> Mesh | None:
    if accumulate < 1:
        raise ValueError(f"accumulate={accumulate}: expected at least one microbatch.")
    if mesh is None:
        if num_processes() > 1:
            raise ValueError(
                f"mesh=None in a job of {num_processes()} processes, each of which would train "
                "for itself: write mesh=eqdiff.train.data_mesh(), or, if they are to, "
                "mesh=eqdiff.train.data_mesh(jax.local_devices())."
            )
        return None
    if DATA not in mesh.axis_names:
        raise ValueError(
            f"the mesh has the axes {mesh.axis_names}, but a batch is split along one called "
            f"{DATA!r}: write mesh=eqdiff.train.data_mesh()."
        )
    _check_processes(mesh)
    return _automatic(mesh)


def _check_processes(mesh: Mesh) -> None:
    """Shares of a batch lie one after another, in the order of the processes."""
    order = [device.process_index for device in mesh.devices.flat]
    if processes_of(mesh) == 1:
        return
    even = len(set(Counter(order).values())) == 1
    known = mesh.axis_names in ((DATA,), (DATA, SHARD))
    if not even or not known or order != sorted(order) or len(set(order)) != num_processes():
        raise ValueError(
            f"the mesh of axes {mesh.axis_names} has devices of the processes {order}: a mesh of "
            f"some of a job's {num_processes()} processes has equally many devices of each, one "
            "process after another. Write mesh=eqdiff.train.data_mesh()."
        )


def processes_of(mesh: Mesh | None) -> int:
    """How many processes take part in a step."""
    return 1 if mesh is None else len({device.process_index for device in mesh.devices.flat})


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes of a mesh that a batch is split over."""
    return tuple(name for name in mesh.axis_names if name in (DATA, SHARD))


def batch_devices(mesh: Mesh | None) -> int:
    """How many parts a batch is split into."""
    return 1 if mesh is None else math.prod(mesh.shape[name] for name in batch_axes(mesh))


def is_shared(mesh: Mesh | None) -> bool:
    """Whether devices share a copy of the state."""
    return mesh is not None and mesh.shape.get(SHARD, 1) > 1


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def _shared(x: Any, mesh: Mesh) -> NamedSharding:
    """How one array of the parameters, averages or optimiser's state lies."""
    shards = mesh.shape.get(SHARD, 1)
    longest = sorted(range(len(x.shape)), key=lambda axis: -x.shape[axis])
    even = [axis for axis in longest if x.shape[axis] and x.shape[axis] % shards == 0]
    if shards == 1 or not even or math.prod(x.shape) < _SHORT:
        return replicated(mesh)
    return NamedSharding(mesh, PartitionSpec(*even[0] * (None,), SHARD))


def shared_out(tree: PyTree, mesh: Mesh) -> PyTree:
    """In a compiled step: parameters, or what is like them, on the devices that share them."""
    if not is_shared(mesh):
        return tree
    return jax.tree.map(
        lambda x: jax.lax.with_sharding_constraint(x, _shared(x, mesh)) if eqx.is_array(x) else x,
        tree,
    )


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """For each array of a train state."""
    arrays = eqx.filter(state, eqx.is_array)
    whole = jax.tree.map(lambda _: replicated(mesh), arrays)

    def divided(state: Any) -> tuple[Any, ...]:
        return state.params, state.ema, state.opt_state

    parts = jax.tree.map(lambda x: _shared(x, mesh), divided(arrays))
    return eqx.tree_at(divided, whole, parts, is_leaf=lambda x: x is None)


def place_state(state: Any, mesh: Mesh | None) -> Any:
    """A state on the devices of the mesh."""
    # One array speaks for all: they only ever move together, and asking hundreds would take
    # milliseconds.
    if mesh is None or state.step.sharding == replicated(mesh):
        return state
    arrays, rest = eqx.partition(state, eqx.is_array)
    placed = to_mesh(arrays, state_shardings(state, mesh), processes_of(mesh))
    return eqx.combine(placed, rest)


def keep_state(state: Any, mesh: Mesh) -> Any:
    """In a compiled step: the new state where the old one was."""
    arrays, rest = eqx.partition(state, eqx.is_array)
    placed = jax.lax.with_sharding_constraint(arrays, state_shardings(state, mesh))
    return eqx.combine(placed, rest)
