r"""Linear operators as callables.

A measurement $y = A x_0$ is given by the function $x \mapsto Ax$ alone, and JAX finds its
transpose, $\langle u, Ax \rangle = \langle A^\top u, x \rangle$. That a function is linear is
checked where it costs nothing: on two probes, while the program around it is traced.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from .._check import is_traced
from .._types import Example


# x ↦ A x, from one example to what is measured of it.
LinearOperator = Callable[[Example], Example]

# Float32 rounding in a sum of many terms is far below, any non-linearity worth the name above.
_TOLERANCE = 1e-3


def output_shape(owner: str, operator: LinearOperator, x: Example) -> tuple[int, ...]:
    """The shape of `operator(x)`. Raises `ValueError` unless it is one floating-point array."""
    out = jax.eval_shape(operator, jax.ShapeDtypeStruct(x.shape, x.dtype))
    if not (isinstance(out, jax.ShapeDtypeStruct) and jnp.issubdtype(out.dtype, jnp.floating)):
        raise ValueError(
            f"{owner}: for x of shape {x.shape} the operator returned {out}, expected one "
            "floating-point array, A x."
        )
    return out.shape


def transpose_of(operator: LinearOperator, x: Example) -> LinearOperator:
    r"""$u \mapsto A^\top u$, for an operator that takes arrays like `x`."""
    transpose = jax.linear_transpose(operator, jax.ShapeDtypeStruct(x.shape, x.dtype))
    return lambda u: transpose(u)[0]


def check_partial_isometry(owner: str, operator: LinearOperator, x: Example) -> None:
    r"""Raises `ValueError` for an operator whose rows are not orthonormal (or 0): one with
    $AA^\top A \ne A$.
    """
    with jax.ensure_compile_time_eval():
        u, _ = _probes(x)
        once = operator(u)
        twice = operator(transpose_of(operator, u)(once))
        if _differ(twice, once):
            raise ValueError(
                f"{owner}: the rows of the operator are not orthonormal: A Aᵀ A is not A. Divide "
                "A and y by the length of the rows (for a mean of n elements multiply both by "
                "√n), or use eqdiff.PosteriorGuidance, which takes any A."
            )


def _probes(x: Example):
    rng = np.random.default_rng(0)
    return (jnp.asarray(rng.standard_normal(x.shape), x.dtype) for _ in range(2))


def _differ(a: Example, b: Example) -> bool:
    if is_traced(a, b):
        return False
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    size = np.linalg.norm(first) + np.linalg.norm(second)
    return not np.linalg.norm(first - second) <= _TOLERANCE * size
