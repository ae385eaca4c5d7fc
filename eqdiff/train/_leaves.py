"""A pytree as named NumPy arrays, and back.

Names are the paths of the leaves, such as `opt_state.0.count`. The vectors of a train state are
written parameter by parameter under the paths these have in the network, `net.layers.0.weight`,
`ema.0.layers.0.weight`, `opt_state.0.mu.layers.0.weight`: a file does not depend on how the state
that it came from was packed, and how two networks differ can be said by name. Keys are stored as
their data. Every array is recorded with its shape, dtype and checksum, so that a file can be
compared with what is expected before anything is read, and what was read with what was written.
"""

import math
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._layout import Slot, vector_length
from ._state import TrainState


# A leaf's shape and dtype, and what else a manifest says of it.
Record = dict[str, Any]

# How many differences an error message lists of each kind.
_LISTED = 6


class Leaf(NamedTuple):
    """What has a name: an array of a pytree, or its elements from `start` on.

    `place` counts the arrays of the pytree; `generator` is that of a key. `parameter` is the path
    in the network of what the numbers belong to, where they belong to one array of it: the end of
    the name.
    """

    place: int
    start: int | None
    shape: tuple[int, ...]
    dtype: Any
    generator: str | None = None
    parameter: str | None = None


def _is_array(x: Any) -> bool:
    return eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct)


def is_state(x: Any) -> bool:
    return isinstance(x, TrainState)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _generator(x: Any) -> str | None:
    return str(jax.random.key_impl(x)) if eqx.is_array(x) and _is_key(x) else None


def dotted(*parts: Any) -> str:
    """Texts and paths, joined by dots."""
    texts = [
        part if isinstance(part, str) else jax.tree_util.keystr(part, simple=True, separator=".")
        for part in parts
    ]
    return ".".join(text for text in texts if text)


def _in_state(
    path: tuple, leaf: Any, vectors: dict[str, list[Slot]], alone: set[str]
) -> Iterator[tuple[str, int | None, tuple[int, ...], str | None]]:
    """The names in one array of a train state, where in it they begin, their shapes and parameters.

    An optimiser's state has a vector wherever it has one number for each parameter: in a
    dictionary like that of the parameters, under the same name and of the same length.
    """
    (field, *rest) = path
    field = "net" if field.name in ("params", "constants") else field.name
    last = [key.key for key in rest[-1:] if isinstance(key, jax.tree_util.DictKey)]
    slots = vectors.get(last[0], []) if last else []
    if slots and leaf.shape == (vector_length(sum(slot.size for slot in slots)),):
        for slot in slots:
            name = dotted(field, tuple(rest[:-1]), slot.name)
            yield name, slot.start, slot.shape, slot.name
    else:
        parameter = last[0] if last and last[0] in alone else None
        yield dotted(field, tuple(rest)), None, tuple(leaf.shape), parameter


def named_leaves(tree: PyTree, *, states: bool = True) -> dict[str, Leaf]:
    """The arrays of a pytree (or their shapes, from `eqx.filter_eval_shape`) by name.

    With `states=False`, only those outside train states.
    """
    found: dict[str, Leaf] = {}
    place = 0
    tree = eqx.filter(tree, _is_array)
    for path, x in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_state):
        if not is_state(x):
            name = dotted(path)
            found[name] = Leaf(place, None, tuple(x.shape), x.dtype, _generator(x), name)
            place += 1
        elif states:
            found |= _leaves_of_state(dotted(path), x, place)
            place += len(jax.tree.leaves(x))
    return found


def _leaves_of_state(prefix: str, state: TrainState, place: int) -> dict[str, Leaf]:
    vectors: dict[str, list[Slot]] = {}
    for slot in state.packing.slots:
        if slot.start is not None:
            vectors.setdefault(slot.vector, []).append(slot)
    alone = {slot.name for slot in state.packing.slots if slot.start is None} | {*state.constants}
    found = {}
    for n, (path, x) in enumerate(jax.tree_util.tree_leaves_with_path(state)):
        for name, start, shape, parameter in _in_state(path, x, vectors, alone):
            leaf = Leaf(place + n, start, shape, x.dtype, _generator(x), parameter)
            found[dotted(prefix, name)] = leaf
    return found


def record(leaf: Leaf) -> Record:
    """What is compared: shape and dtype (that of a key names its generator)."""
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def full_record(leaf: Leaf, array: np.ndarray) -> Record:
    """What is stored: also the checksum, and the generator that makes data a key again."""
    generator = {} if leaf.generator is None else {"generator": leaf.generator}
    return {**record(leaf), "crc32": checksum(array), **generator}


def checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def to_numpy(tree: PyTree, leaves: dict[str, Leaf]) -> dict[str, np.ndarray]:
    """The named leaves of a pytree."""
    arrays = jax.tree.leaves(eqx.filter(tree, _is_array))
    arrays = jax.device_get([jax.random.key_data(x) if _is_key(x) else x for x in arrays])

    def cut(leaf: Leaf) -> np.ndarray:
        array = np.asarray(arrays[leaf.place])
        if leaf.start is None:
            return array
        return array[leaf.start : leaf.start + math.prod(leaf.shape)].reshape(leaf.shape)

    return {name: cut(leaf) for name, leaf in leaves.items()}


def _to_jax(array: np.ndarray, generator: str | None, like: Any) -> jax.Array:
    # Copied: a JAX array may be a view of a NumPy array, which a step that donates it would write.
    value = jnp.array(array, copy=True)
    if generator is not None:
        value = jax.random.wrap_key_data(value, impl=generator)
    placed = isinstance(like, jax.Array) and like.committed
    return jax.device_put(value, like.sharding) if placed else value


def from_numpy(arrays: dict[str, np.ndarray], records: dict[str, Record], like: PyTree) -> PyTree:
    """`like` with its arrays replaced, on the devices where they were."""
    dynamic, static = eqx.partition(like, _is_array)
    leaves, structure = jax.tree.flatten(dynamic)
    names: list[list[str]] = [[] for _ in leaves]
    # The pieces of a vector come in the order in which they lie in it.
    named = named_leaves(like)
    for name, leaf in named.items():
        names[leaf.place].append(name)

    def value(names: list[str], like: Any) -> jax.Array:
        whole = arrays[names[0]]
        if named[names[0]].start is not None:
            whole = np.concatenate([arrays[name].reshape(-1) for name in names])
            # A long vector ends in zeros, which are in no file.
            whole = np.pad(whole, (0, like.size - whole.size))
        return _to_jax(whole, records[names[0]].get("generator"), like)

    values = [value(*each) for each in zip(names, leaves, strict=True)]
    return eqx.combine(jax.tree.unflatten(structure, values), static)


def _describe(record: Record) -> str:
    return f"{record['dtype']}{tuple(record['shape'])}"


def _listed(title: str, lines: list[str]) -> list[str]:
    if not lines:
        return []
    more = [f"    … and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return [f"  {title}:", *(f"    {line}" for line in lines[:_LISTED]), *more]


def differences(stored: dict[str, Record], expected: dict[str, Record]) -> list[str]:
    """Lines that say how two sets of leaves differ; none if they agree."""
    missing = [f"{k} {_describe(r)}" for k, r in expected.items() if k not in stored]
    unexpected = [f"{k} {_describe(r)}" for k, r in stored.items() if k not in expected]
    changed = [
        f"{k} is {_describe(stored[k])}, expected {_describe(r)}"
        for k, r in expected.items()
        if k in stored and _describe(stored[k]) != _describe(r)
    ]
    return [
        *_listed("missing from the checkpoint", missing),
        *_listed("in the checkpoint but not expected", unexpected),
        *_listed("of another shape or dtype", changed),
    ]
