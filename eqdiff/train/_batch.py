r"""A batch on its way to the devices.

A process gives a step its own share of the global batch: with $m$ processes, of the $n$ examples at
positions $0, 1, \dots, n - 1$ of the data process $i$ gives those at

$$i,\; i + m,\; i + 2m,\; \dots \tag{1}$$

which is how [`eqdiff.data.loader`][] reads. In memory the shares lie one after another, process by
process. Times, noise and whatever else is drawn belong to *positions*, so they are brought into
that order, and losses back from it: an example gets the same draws whatever the number of
processes.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from ._shard import batch_axes, batch_devices, processes_of


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Order:
    """How the examples of a global batch lie: in `shares` shares, each every `shares`-th."""

    shares: int

    def laid_out(self, x: Array) -> Array:
        """From the order of positions to that in memory, along the last axis; equation (1)."""
        if self.shares == 1:
            return x
        cut = x.reshape(*x.shape[:-1], -1, self.shares)
        return jnp.swapaxes(cut, -1, -2).reshape(x.shape)

    def by_position(self, x: Array) -> Array:
        """The inverse."""
        if self.shares == 1:
            return x
        cut = x.reshape(*x.shape[:-1], self.shares, -1)
        return jnp.swapaxes(cut, -1, -2).reshape(x.shape)


def split_examples(mesh: Mesh, accumulate: int, lead: int = 0) -> NamedSharding:
    """For arrays of shape `(n, …)`, or `(accumulate, n, …)` where there are microbatches.

    Both behind `lead` axes that are not split.
    """
    lead = lead if accumulate == 1 else lead + 1
    return NamedSharding(mesh, PartitionSpec(*lead * (None,), batch_axes(mesh)))


def into_microbatches(tree: PyTree, accumulate: int, lead: int = 0) -> PyTree:
    """`(n, …)` to `(accumulate, n / accumulate, …)`, in order, behind `lead` other axes.

    Unchanged for one microbatch.
    """
    if accumulate == 1:
        return tree
    return jax.tree.map(
        lambda x: x.reshape(*x.shape[:lead], accumulate, -1, *x.shape[lead + 1 :]), tree
    )


def _is_global(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def is_share(batch: Any, mesh: Mesh | None) -> bool:
    """Whether a batch is one process's share, not the global batch."""
    return processes_of(mesh) > 1 and not any(map(_is_global, jax.tree.leaves(batch)))


def check_batch(batch: Any, mesh: Mesh | None, accumulate: int, lead: int = 0) -> None:
    """**Raises:** `ValueError` unless `batch` is `(x0, args)` and can be divided evenly.

    With `lead = 1`, a stack of batches.
    """
    if not (isinstance(batch, tuple) and len(batch) == 2):
        raise ValueError(
            f"a batch is the pair (x0, args), got {type(batch).__name__}: "
            "write step(state, (x0, None)) for data without conditions."
        )
    leaves = jax.tree.leaves(batch)
    shapes = [np.shape(leaf) for leaf in leaves]
    leading = {shape[: lead + 1] for shape in shapes}
    if len(leading) != 1 or len(next(iter(leading))) <= lead:
        axes = "leading axis, the examples" if lead == 0 else "leading axes, steps and examples"
        raise ValueError(f"the arrays of a batch share their {axes}; got shapes {shapes}.")
    ((*steps, size),) = leading
    if 0 in steps:
        raise ValueError(f"expected the batches of at least one step; got shapes {shapes}.")
    if processes_of(mesh) > 1 and len({_is_global(leaf) for leaf in leaves}) > 1:
        raise ValueError(
            "some arrays of the batch are of this process alone and some of all processes: give "
            "each process its own share, as NumPy arrays, or global arrays alone."
        )
    share = is_share(batch, mesh)
    devices = batch_devices(mesh) // (processes_of(mesh) if share else 1)
    unit = devices * accumulate
    if size == 0 or size % unit != 0:
        below = size // unit * unit
        nearest = f"{below} or {below + unit}" if below else f"{unit}"
        of_process = " of this process" if share else ""
        raise ValueError(
            f"a batch of {size} examples{of_process} cannot be split evenly over {devices} devices "
            f"× {accumulate} microbatches: use a multiple of {unit}, such as {nearest}."
        )


def place_batch(
    batch: tuple[PyTree, PyTree], mesh: Mesh | None, accumulate: int, lead: int = 0
) -> tuple[PyTree, PyTree, Order]:
    """The batch on the devices, in microbatches, and how its examples lie."""
    # Microbatches are cut before the batch is spread over the devices, not afterwards: that would
    # send it back and forth.
    share = is_share(batch, mesh)
    cut = into_microbatches(jax.tree.map(_as_array, batch), accumulate, lead)
    if mesh is None:
        return *jax.tree.map(jnp.asarray, cut), Order(1)
    sharding = split_examples(mesh, accumulate, lead)
    if not share:
        return *jax.device_put(cut, sharding), Order(1)
    shares = processes_of(mesh)
    axis = lead if accumulate == 1 else lead + 1

    def of_all(x: Any) -> jax.Array:
        shape = (*x.shape[:axis], shares * x.shape[axis], *x.shape[axis + 1 :])
        return jax.make_array_from_process_local_data(sharding, x, shape)

    return *jax.tree.map(of_all, cut), Order(shares)


def _as_array(x: Any) -> Any:
    return x if isinstance(x, jax.Array) else np.asarray(x)
