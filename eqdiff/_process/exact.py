"""Numbers of a process that are known before a program is compiled, in float64 whatever its
precision.
"""

import contextlib
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
    with jax.ensure_compile_time_eval(), jax.enable_x64(True), _on_host():
        process, args = jax.tree.map(_in_float64, (process, args))
        return jax.tree.map(np.asarray, function(process, *args))


def _on_host() -> Any:
    """An accelerator compiles and computes a few numbers more slowly than its host."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


_NUMBERS = (int, float, np.ndarray, np.generic, Array)


def _in_float64(leaf: Any) -> Any:
    if not isinstance(leaf, (np.ndarray, np.generic, Array)):
        return leaf
    leaf = np.asarray(leaf)
    return jnp.asarray(leaf, jnp.float64 if jnp.issubdtype(leaf.dtype, jnp.floating) else None)
