r"""The linear systems of guidance by a measurement, $Su = r$ with $S = \Sigma + HVH^\top$.

Both solvers need products alone, and are scans rather than loops, so that they can be
differentiated both ways (a likelihood's trace does).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from .._measurement import Linearised
from .._types import Example, Scalar


class Krylov(NamedTuple):
    r"""What is known of $S$ and $V$ on the orthonormal $q_1, \dots, q_k$ that span
    $r, Sr, S^2r, \dots$; 0 where the latter end.
    """

    seen: Float[Array, "k n"]
    r"""$v_j = H^\top q_j$."""
    moves: Float[Array, "k n"]
    r"""$Vv_j$."""
    images: Float[Array, "k m"]
    r"""$Sq_j = \Sigma q_j + HVv_j$."""


def krylov(
    near: Linearised, product: Callable[[Example], Example], iterations: int, x: Example
) -> Krylov:
    r"""Arnoldi's iterations from the residual: as many products with $V$ as iterations."""
    residual = near.residual
    number = min(iterations, residual.size)
    basis = jnp.zeros((number + 1, residual.size), residual.dtype)
    basis = basis.at[0].set(_unit(residual.reshape(-1), residual))

    def step(basis, j):
        q = basis[j].reshape(residual.shape)
        seen = near.transpose(q)
        move = product(seen)
        image = (near.noise(q) + near.forward(move)).reshape(-1)
        rest = image
        for _ in range(2):  # Once leaves rounding in the directions that are there already.
            rest = rest - (basis @ rest) @ basis
        basis = basis.at[j + 1].set(_unit(rest, image))
        return basis, (seen.reshape(-1), move.reshape(-1), image)

    _, columns = jax.lax.scan(step, basis, jnp.arange(number))
    return Krylov(*columns)


def ridge(
    images: Float[Array, "k m"], error: Float[Array, " k"], residual: Float[Array, " m"]
) -> Float[Array, " k"]:
    r"""The $z$ that minimises $|\sum_j z_jSq_j - r|^2 + \sum_j e_j^2z_j^2$."""
    square = jnp.sum(images**2, axis=1)
    # A column that is rounding of the others is left alone, and one of zeros anything.
    rounding = jnp.finfo(images.dtype).eps ** 2 * jnp.max(square)
    weight = jnp.sqrt(jnp.where(square > 0, error**2 + rounding, 1))
    q, r = jnp.linalg.qr(jnp.concatenate([images.T, jnp.diag(weight)]))
    return solve_triangular(r, q[: residual.size].T @ residual)


def conjugate_gradients(system: Callable, b: Example, iterations: int) -> Example:
    """Solves `system(u) = b`, symmetric and positive semi-definite, from 0."""
    first = jnp.sum(b**2)
    # Below, the residual is rounding, and its direction arbitrary.
    enough = jnp.finfo(b.dtype).eps ** 2 * first

    def step(state, _):
        u, residual, direction, square = state
        image = system(direction)
        curvature = jnp.sum(direction * image)
        go = (square > enough) & (curvature > 0)
        size = jnp.where(go, square / jnp.where(go, curvature, 1), 0)
        u, residual = u + size * direction, residual - size * image
        next_square = jnp.sum(residual**2)
        turn = jnp.where(go, next_square / jnp.where(go, square, 1), 0)
        # Once stopped, always stopped: a direction of 0 has no curvature.
        direction = jnp.where(go, residual + turn * direction, 0)
        return (u, residual, direction, next_square), None

    (u, *_), _ = jax.lax.scan(step, (jnp.zeros_like(b), b, b, first), length=iterations)
    return u


def weighed_residual(
    here: Linearised, covariance: Callable[[Example], Example], iterations: int
) -> Example:
    r"""$u = S^{-1}r$ by conjugate gradients, for a symmetric $V$ as a product with vectors."""

    def system(u: Example) -> Example:
        return here.noise(u) + here.forward(covariance(here.transpose(u)))

    return conjugate_gradients(system, here.residual, iterations)


def safe_divide(a: Array, b: Array) -> Array:
    """a/b, and 0 where b is 0, with derivatives of 0 there."""
    return jnp.where(b != 0, a / jnp.where(b != 0, b, 1), 0)


def safe_norm(v: Array) -> Scalar:
    """The Euclidean norm, with a derivative of 0 at 0."""
    square = jnp.sum(v**2)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _unit(v: Float[Array, " m"], like: Example) -> Float[Array, " m"]:
    """v/|v|, or 0 for one that is rounding of `like`."""
    square = jnp.sum(v**2)
    go = square > (64 * jnp.finfo(v.dtype).eps) ** 2 * jnp.sum(like**2)
    return jnp.where(go, v / jnp.sqrt(jnp.where(go, square, 1)), 0)
