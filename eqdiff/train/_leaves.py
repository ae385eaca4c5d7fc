"""A pytree as named NumPy arrays, and back.

Names are the paths of the leaves, such as `net.layers.0.weight`. Keys are stored as their data.
Every array is recorded with its shape, dtype and checksum, so that a file can be compared with what
is expected before anything is read, and what was read with what was written.
"""

import zlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


Record = dict[str, Any]

# How many differences an error message lists of each kind.
_LISTED = 6


def _is_array(x: Any) -> bool:
    return eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The arrays of a pytree (or their shapes, from `eqx.filter_eval_shape`) by name."""
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(tree, _is_array))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def record(leaf: Any) -> Record:
    """What is compared: shape and dtype (that of a key names its generator)."""
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def full_record(leaf: Any, array: np.ndarray) -> Record:
    """What is stored: also the checksum, and the generator that makes data a key again."""
    generator = {"generator": str(jax.random.key_impl(leaf))} if _is_key(leaf) else {}
    return {**record(leaf), "crc32": checksum(array), **generator}


def checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def to_numpy(leaves: dict[str, Any]) -> dict[str, np.ndarray]:
    data = {k: jax.random.key_data(x) if _is_key(x) else x for k, x in leaves.items()}
    return {name: np.asarray(array) for name, array in jax.device_get(data).items()}


def _to_jax(array: np.ndarray, entry: Record, like: Any) -> jax.Array:
    # Copied: a JAX array may be a view of a NumPy array, which a step that donates it would write.
    value = jnp.array(array, copy=True)
    if "generator" in entry:
        value = jax.random.wrap_key_data(value, impl=entry["generator"])
    placed = isinstance(like, jax.Array) and like.committed
    return jax.device_put(value, like.sharding) if placed else value


def from_numpy(arrays: dict[str, np.ndarray], records: dict[str, Record], like: PyTree) -> PyTree:
    """`like` with its arrays replaced, on the devices where they were."""
    dynamic, static = eqx.partition(like, _is_array)
    leaves, structure = jax.tree.flatten(dynamic)
    names = named_leaves(like)
    values = [_to_jax(arrays[k], records[k], x) for k, x in zip(names, leaves, strict=True)]
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
