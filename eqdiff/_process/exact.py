"""Numbers of a process that are known before a program is compiled, in float64 whatever its precision."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._check import is_traced
from .base import AbstractProcess


def exactly(function: Callable[..., Any], process: AbstractProcess, *args: Any) -> Any:
    """`function(process, *args)`: in float64, as NumPy arrays, where all of it is known.

    Where the process or an argument is traced, or the process holds functions of its own, it is the
    plain call.
    """
    leaves = jax.tree.leaves((process, args))
    if is_traced(*leaves) or not all(isinstance(leaf, _NUMBERS) for leaf in leaves):
        return function(process, *args)
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        process, args = jax.tree.map(_in_float64, (process, args))
        return jax.tree.map(np.asarray, function(process, *args))


_NUMBERS = (int, float, np.ndarray, np.generic, Array)


def _in_float64(leaf: Any) -> Any:
    array = isinstance(leaf, (np.ndarray, np.generic, Array))
    if not array or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return jnp.asarray(np.asarray(leaf), jnp.float64)
