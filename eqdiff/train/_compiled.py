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

from .._deferred import Deferred


@jax.tree_util.register_static
class _Skeleton:
    """A pytree without its arrays. Hashed and compared as a whole."""

    def __init__(self, structure: Any, fixed: tuple[Any, ...]):
        self.structure, self.fixed = structure, fixed
        # Two tables are looked up in a call.
        self._hash = hash((structure, fixed))

    def __hash__(self) -> int:
        return self._hash

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


def compiled(
    owner: str, update: Callable[[PyTree, PyTree], tuple[PyTree, PyTree, Deferred]]
) -> Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]:
    """`update(state, batch) -> (state, metrics, deferred)` compiled, the state it is given donated.

    A batch and metrics have no leaves but arrays; a state may.

    **Returns:** `call(state, batch, args) -> (state, metrics)`, where `args` are the arguments
    whose checks are deferred, as `owner` was given them.
    """

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def run(skeleton: _Skeleton, arrays: list[Any], batch: PyTree):
        state, metrics, deferred = update(skeleton.filled(arrays), batch)
        return *_taken_apart(state), metrics, deferred

    known: dict[Any, Deferred] = {}

    def check(skeleton: _Skeleton, arrays: list[Any], batch: PyTree, args: PyTree) -> None:
        leaves, structure = jax.tree.flatten(batch)
        key = (skeleton, structure, *((x.shape, x.dtype) for x in leaves))
        if key not in known:
            # `jax.jit` compiles this very trace afterwards.
            known[key] = run.eval_shape(skeleton, arrays, batch)[-1]
        known[key].check(owner, args)

    def call(state: PyTree, batch: PyTree, args: PyTree) -> tuple[PyTree, PyTree]:
        skeleton, arrays = _taken_apart(state)
        if args is not None:
            check(skeleton, arrays, batch, args)
        skeleton, arrays, metrics, _ = run(skeleton, arrays, batch)
        return skeleton.filled(arrays), metrics

    return call
