"""A pytree as named NumPy arrays, and back.

Names are the paths of the leaves, such as `opt_state.0.count`. In the vectors of a train state each
parameter has its own, by its path in the network: `net.layers.0.weight`, `ema.0.layers.0.weight`,
`opt_state.0.mu.layers.0.weight`. So a checkpoint can be restored however the state that it came
from was packed, and how two networks differ can be said by name. Keys are stored as their data.
Every leaf is recorded with its shape and dtype, so that a checkpoint can be compared with what is
expected before anything is read.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._layout import Slot
from ._state import TrainState


# A leaf's shape and dtype, and what else a manifest says of it.
Record = dict[str, Any]

# How many differences an error message lists of each kind.
_LISTED = 6


class Leaf(NamedTuple):
    """What has a name: an array of a pytree, or its elements from `start` on.

    `place` counts the arrays of the pytree, and `array` is what that one is stored as; `generator`
    is that of a key. `parameter` is the path in the network of what the numbers belong to, where
    they belong to one array of it: the end of the name.
    """

    place: int
    start: int | None
    shape: tuple[int, ...]
    dtype: Any
    array: str
    generator: str | None = None
    parameter: str | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def is_array(x: Any) -> bool:
    return eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct)


def is_state(x: Any) -> bool:
    return isinstance(x, TrainState)


def is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _generator(x: Any) -> str | None:
    return str(jax.random.key_impl(x)) if eqx.is_array(x) and is_key(x) else None


def dotted(*parts: Any) -> str:
    """Texts and paths, joined by dots."""
    texts = [
        part if isinstance(part, str) else jax.tree_util.keystr(part, simple=True, separator=".")
        for part in parts
    ]
    return ".".join(text for text in texts if text)


def _in_state(
    path: tuple, leaf: Any, vectors: dict[str, tuple[tuple[int, ...], list[Slot]]], alone: set[str]
) -> Iterator[tuple[str, int | None, tuple[int, ...], str | None]]:
    """The names in one array of a train state, where in it they begin, their shapes and parameters.

    An optimiser's state has a vector wherever it has one number for each parameter: in a
    dictionary like that of the parameters, under the same name and of the same length, which may
    be more than the parameters need.
    """
    (field, *rest) = path
    field = "net" if field.name in ("params", "constants") else field.name
    last = [key.key for key in rest[-1:] if isinstance(key, jax.tree_util.DictKey)]
    shape, slots = vectors.get(last[0], (None, [])) if last else (None, [])
    if leaf.shape == shape:
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
    tree = eqx.filter(tree, is_array)
    for path, x in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_state):
        if not is_state(x):
            name = dotted(path)
            shape = tuple(x.shape)
            found[name] = Leaf(place, None, shape, x.dtype, name, _generator(x), name)
            place += 1
        elif states:
            found |= _leaves_of_state(dotted(path), x, place)
            place += len(jax.tree.leaves(x))
    return found


def _leaves_of_state(prefix: str, state: TrainState, place: int) -> dict[str, Leaf]:
    vectors: dict[str, tuple[tuple[int, ...], list[Slot]]] = {}
    for slot in state.packing.slots:
        if slot.start is not None:
            shape = tuple(state.params[slot.vector].shape)
            vectors.setdefault(slot.vector, (shape, []))[1].append(slot)
    alone = {slot.name for slot in state.packing.slots if slot.start is None} | {*state.constants}
    found = {}
    for n, (path, x) in enumerate(jax.tree_util.tree_leaves_with_path(state)):
        for name, start, shape, parameter in _in_state(path, x, vectors, alone):
            name = dotted(prefix, name)
            array = name if start is None else dotted(prefix, path)
            leaf = Leaf(place + n, start, shape, x.dtype, array, _generator(x), parameter)
            found[name] = leaf
    return found


def record(leaf: Leaf) -> Record:
    """What is compared: shape and dtype (that of a key names its generator)."""
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def full_record(leaf: Leaf) -> Record:
    """What is stored: also in which array, and the generator that makes data a key again."""
    generator = {} if leaf.generator is None else {"generator": leaf.generator}
    place = {} if leaf.start is None else {"array": leaf.array, "start": leaf.start}
    return {**record(leaf), **place, **generator}


def _to_jax(array: np.ndarray, generator: str | None, like: Any) -> jax.Array:
    sharding = getattr(like, "sharding", None)
    if isinstance(like, jax.Array) and not like.committed:
        sharding = None
    if sharding is not None and not sharding.is_fully_addressable:
        # Every process has the whole array, and gives its devices their parts.
        value = jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])
        return value if generator is None else jax.random.wrap_key_data(value, impl=generator)
    # Copied: a JAX array may be a view of a NumPy array, which a step that donates it would write.
    value = jnp.array(array, copy=True)
    if generator is not None:
        value = jax.random.wrap_key_data(value, impl=generator)
    return value if sharding is None else jax.device_put(value, sharding)


def from_numpy(arrays: dict[str, np.ndarray], records: dict[str, Record], like: PyTree) -> PyTree:
    """`like` with its arrays replaced, on the devices where they were."""
    dynamic, static = eqx.partition(like, is_array)
    leaves, structure = jax.tree.flatten(dynamic)
    names: list[list[str]] = [[] for _ in leaves]
    # The pieces of a vector come in the order in which they lie in it.
    named = named_leaves(like)
    for name, leaf in named.items():
        names[leaf.place].append(name)

    def value(names: list[str], like: Any) -> jax.Array:
        generator = records[names[0]].get("generator")
        if named[names[0]].start is None:
            return _to_jax(arrays[names[0]], generator, like)
        parts = [arrays[name].reshape(-1) for name in names]
        padding = like.size - sum(part.size for part in parts)
        whole = np.concatenate([*parts, np.zeros(padding, parts[0].dtype)])
        return _to_jax(whole, generator, like)

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
