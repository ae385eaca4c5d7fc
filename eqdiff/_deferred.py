"""Checks of integers, left to the caller who knows their values (floor 0).

Inside a compiled program a class label has no value yet. Such a program can check it only through a
callback to Python; with one it is neither exported nor kept in JAX's compilation cache, and where
several devices run it, a failing one ends the process. Functions that compile a user's function and
call it (`eqdiff.generate`, `eqdiff.map_examples`, train steps) hold the labels as arrays. The trace
notes which checks it needs, and they are made before the program runs.

A label is recognised by identity: it must *be* a leaf of the arguments. A label that was computed
or transformed is not, and keeps its check in the program.
"""

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree


Result = TypeVar("Result")


class Deferred(eqx.Module):
    """The checks that a trace needs of the leaves of its arguments.

    A pytree without leaves: a function under `jax.vmap`, `jax.grad`, `jax.lax.scan` or `jax.jit`
    can return it, and JAX keeps it with the compiled program.
    """

    # (leaf, n, complaint): values of this leaf lie in 0 ... n − 1, or the complaint, a text with
    # one `{}` for the value, is due.
    asked: tuple[tuple[int, int, str], ...] = eqx.field(static=True)

    def check(self, owner: str, args: PyTree[Any]) -> None:
        """Checks concrete arguments with leading axes of examples.

        Arrays on a device are copied from it. Of an array spread over several processes, each
        checks its own part.

        **Raises:** `ValueError` that names the first bad value and its example.
        """
        leaves = jax.tree.leaves(args)
        for leaf, number, complaint in self.asked:
            for start, values in _known(leaves[leaf]):
                bad = np.flatnonzero((values < 0) | (values >= number))
                if bad.size:
                    said = complaint.format(values[bad[0]])
                    raise ValueError(f"{owner}: example {start + bad[0]}: {said}")


def _known(leaf: Any) -> list[tuple[int, np.ndarray]]:
    """The values in this process, each part with the index of its first."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        shards = [(shard.index[0].start or 0, shard.data) for shard in leaf.addressable_shards]
        return [(start, np.asarray(data).ravel()) for start, data in shards]
    return [(0, np.asarray(leaf).ravel())]


# The leaves of the arguments whose checks are deferred, and what was asked of them so far.
_current: ContextVar[tuple[list[Any], dict[tuple[int, int, str], None]] | None] = ContextVar(
    "deferred", default=None
)


def defer(args: PyTree[Any], function: Callable[[], Result]) -> tuple[Result, Deferred]:
    """`function()`, which uses `args`, and the checks that it leaves to the caller."""
    asked: dict[tuple[int, int, str], None] = {}
    token = _current.set((jax.tree.leaves(args), asked))
    try:
        result = function()
    finally:
        _current.reset(token)
    return result, Deferred(tuple(asked))


def unchecked(function: Callable[..., Result]) -> Callable[..., Result]:
    """The same function, compiled without a check of its class labels.

    Without the check the program does not call back to Python, so you can export it (`jax.export`)
    and JAX keeps it in its compilation cache. Check the labels yourself: a class that the network
    does not have gives NaN. [`eqdiff.generate`][] and [`eqdiff.map_examples`][] do both for you.

    This covers labels that are arguments, or leaves of arguments; a label computed from them keeps
    its check.

    **Arguments:**

    - `function`: any function. Wrap it *inside* `jax.vmap`, where a label is one number.

    **Example:**

    ```python
    conditions = eqd.nn.ClassCondition(10)
    net = eqd.nn.MLP(2, 2, conditions=conditions, key=jax.random.key(0))
    denoiser = eqd.Denoiser(net, eqd.VPSDE())
    draw = jax.jit(jax.vmap(eqd.unchecked(lambda x1, y: eqd.DDIM(2)(denoiser, x1, y))))
    ```
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Result:
        return defer((args, kwargs), lambda: function(*args, **kwargs))[0]

    return wrapped


def ask(value: Tracer, number: int, complaint: str) -> bool:
    """Leaves it to the caller to check that `value` is in 0 ... `number` − 1, if there is one that
    can; whether there is.
    """
    current = _current.get()
    if current is None:
        return False
    leaves, asked = current
    for index, leaf in enumerate(leaves):
        if leaf is value:
            asked[index, number, complaint] = None
            return True
    return False
