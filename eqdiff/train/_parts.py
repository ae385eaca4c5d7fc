r"""How the parameters in long vectors reach the examples of a batch, and their gradients come back.

A matrix or a filter is cut out of its vector and shared by all examples. Its gradient is a product
or a convolution over the batch, and is joined with the others at the end: the transpose of a slice
would be a vector of zeros as long as the whole.

The gradient of a bias or of a norm's scale is a sum over the batch,

$$\bar b = \sum_{i=1}^n \bar b_i, \tag{1}$$

a kernel or two for each of hundreds of short vectors, which take the longer to launch than to run.
So a run of neighbouring short vectors goes to the examples as copies, one for each: an example's
$\bar b_i$ are then joined first, and summed over the batch together.

Runs are kept short: a compiler reads one from a processor's own cache wherever a piece of it is
used, but copies the pieces of a long vector out beforehand, one kernel for each.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._layout import joined, Params, Slot


# Numbers in a run: 128 KiB of float32, half of the cache of an H100's processor.
_LONGEST = 2**15


class Part(NamedTuple):
    """One parameter, or a run of neighbouring short ones."""

    slots: tuple[Slot, ...]
    is_run: bool

    @property
    def size(self) -> int:
        return sum(slot.size for slot in self.slots)


def parts_of(slots: Sequence[Slot]) -> list[Part]:
    """The parameters in the order of their vectors, short neighbours together."""
    parts: dict[str, list[Part]] = {}
    for slot in slots:
        of_vector = parts.setdefault(slot.vector, [])
        short = slot.start is not None and len(slot.shape) <= 1
        last = of_vector[-1] if of_vector else None
        if short and last and last.is_run and last.size + slot.size <= _LONGEST:
            of_vector[-1] = last._replace(slots=(*last.slots, slot))
        else:
            of_vector.append(Part((slot,), short))
    return [part for of_vector in parts.values() for part in of_vector]


def take(parts: Sequence[Part], params: Params) -> list[Array]:
    """Every part, cut out of its vector."""
    taken = []
    for part in parts:
        slot, vector = part.slots[0], params[part.slots[0].vector]
        if slot.start is None:
            taken.append(vector)
        elif part.is_run:
            taken.append(jax.lax.slice(vector, (slot.start,), (slot.start + part.size,)))
        else:
            cut_out = jax.lax.slice(vector, (slot.start,), (slot.start + slot.size,))
            taken.append(cut_out.reshape(slot.shape))
    # Otherwise the pieces of a run would be cut out of the long vector after all.
    runs = [value for part, value in zip(parts, taken, strict=True) if part.is_run]
    held = iter(jax.lax.optimization_barrier(runs))
    return [next(held) if part.is_run else v for part, v in zip(parts, taken, strict=True)]


def copies(parts: Sequence[Part], taken: Sequence[Array], n: int) -> list[Array]:
    """What `n` examples are given: runs with an axis of examples (see `axes`), the others as is."""
    return [
        jnp.broadcast_to(value, (n, value.size)) if part.is_run else value
        for part, value in zip(parts, taken, strict=True)
    ]


def axes(parts: Sequence[Part]) -> list[int | None]:
    """The axes of `copies` that `jax.vmap` maps over."""
    return [0 if part.is_run else None for part in parts]


def parameters(parts: Sequence[Part], given: Sequence[Array]) -> dict[str, Array]:
    """The parameters of one example, by name."""
    found = {}
    for part, value in zip(parts, given, strict=True):
        pieces = (
            jax.lax.split(value, [slot.size for slot in part.slots]) if part.is_run else [value]
        )
        found |= {s.name: p.reshape(s.shape) for s, p in zip(part.slots, pieces, strict=True)}
    return found


def join_parts(parts: Sequence[Part], gradient: Sequence[Array]) -> Params:
    """The gradient as the optimiser has the parameters, from that of each part."""
    alone: Params = {}
    of_vector: dict[str, list[Array]] = {}
    for part, value in zip(parts, gradient, strict=True):
        slot = part.slots[0]
        if slot.start is None:
            alone[slot.vector] = value
        else:
            of_vector.setdefault(slot.vector, []).append(value.reshape(-1))
    return alone | {name: joined(values) for name, values in of_vector.items()}
