"""`jax.jit` for a function of a state, with as little Python in a call as there can be.

A state is flattened once in a call, its arrays are passed to `jax.jit` as a list, and whatever in
it is no array is part of the key that a compiled program is found by. `eqx.filter_jit` does the
same leaf by leaf, several times over.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree


@jax.tree_util.register_static
class _Skeleton:
    """A pytree without its arrays. Hashed and compared as a whole."""

    def __init__(self, structure: Any, fixed: tuple[Any, ...]):
        self.structure, self.fixed = structure, fixed

    def __hash__(self) -> int:
        return hash((self.structure, self.fixed))

    def __eq__(self, other: Any) -> bool:
        return (self.structure, self.fixed) == (other.structure, other.fixed)

    def filled(self, arrays: list[Any]) -> PyTree:
        remaining = iter(arrays)
        leaves = [next(remaining) if x is None else x for x in self.fixed]
        return jax.tree.unflatten(self.structure, leaves)


def _taken_apart(tree: PyTree) -> tuple[_Skeleton, list[Any]]:
    leaves, structure = jax.tree.flatten(tree)
    # None is no leaf of a pytree, so it can stand for an array.
    fixed = tuple(None if isinstance(x, jax.Array | np.ndarray) else x for x in leaves)
    arrays = [x for x, rest in zip(leaves, fixed, strict=True) if rest is None]
    return _Skeleton(structure, fixed), arrays


def compiled(update: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]) -> Callable:
    """`update(state, batch) -> (state, metrics)` compiled, the state it is given donated.

    A batch and metrics have no leaves but arrays; a state may.
    """

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def run(skeleton: _Skeleton, arrays: list[Any], batch: PyTree):
        state, metrics = update(skeleton.filled(arrays), batch)
        return *_taken_apart(state), metrics

    def call(state: PyTree, batch: PyTree) -> tuple[PyTree, PyTree]:
        skeleton, arrays, metrics = run(*_taken_apart(state), batch)
        return skeleton.filled(arrays), metrics

    return call
