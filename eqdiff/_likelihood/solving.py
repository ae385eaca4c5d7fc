"""The solve that likelihood, encoding and decoding have in common: its error norm, and what is said when it fails."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._process import AbstractSDE
from .._term import interval
from .._types import Args, Example, Scalar


class Options(NamedTuple):
    """For Diffrax, as the public functions take them."""

    solver: diffrax.AbstractSolver
    rtol: float | Scalar
    atol: float | Scalar
    max_steps: int | None
    adjoint: diffrax.AbstractAdjoint


def _rms(error: Array) -> Scalar:
    square = jnp.mean(error**2)
    # √0 has no gradient; the error is exactly 0 where the flow is constant.
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def _norm(error: PyTree[Array]) -> Scalar:
    # An RMS over state and log-density together would give the log-density one vote among D: each is held to the tolerance.
    return jnp.max(jnp.stack([_rms(leaf) for leaf in jax.tree.leaves(error)]))


def solve(
    owner: str,
    term: diffrax.ODETerm,
    process: AbstractSDE,
    x: Example,
    y0: PyTree[Array],
    args: Args,
    each: Callable[[Callable[..., Any]], Callable[..., Any]],
    options: Options,
    *,
    forwards: bool = True,
) -> diffrax.Solution:
    """Solves from t0 to t1, or back; the error is controlled for each example. A failed solve is an error, never a number."""
    t0, t1 = interval(process, x)
    start, end = (t0, t1) if forwards else (t1, t0)
    y0 = eqx.error_if(
        y0, ~jnp.all(jnp.isfinite(x)), f"{owner} was given values that are not finite."
    )
    solution = diffrax.diffeqsolve(
        term,
        options.solver,
        t0=start,
        t1=end,
        # Where a solver would look for a first step lies outside [t0, t1], if the flow is slow. A longer one than this steps over the
        # times at which the noise is as wide as narrow data, and the error estimate does not see what it missed.
        dt0=0.001 * jnp.clip(end - start, -1, 1),
        y0=y0,
        args=args,
        stepsize_controller=diffrax.PIDController(
            rtol=options.rtol,
            atol=options.atol,
            norm=lambda error: jnp.max(each(_norm)(error)),
        ),
        max_steps=options.max_steps,
        adjoint=options.adjoint,
        throw=False,
    )
    exhausted = solution.result == diffrax.RESULTS.max_steps_reached
    ys = eqx.error_if(
        solution.ys,
        exhausted,
        f"{owner} took max_steps={options.max_steps} steps without coming to the end of the flow. Loosen rtol and atol (float32 "
        "holds no tolerance below 1e-6), or raise max_steps; if the network returns NaN, no step is small enough.",
    )
    failed = solution.result != diffrax.RESULTS.successful
    ys = solution.result.error_if(ys, failed & ~exhausted)
    return eqx.tree_at(lambda s: s.ys, solution, ys)
