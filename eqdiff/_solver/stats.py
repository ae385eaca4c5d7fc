r"""What a solve cost.

Diffrax counts steps; what costs time is network calls. An explicit Runge–Kutta method of $s$ stages calls the network $s$ times a
step, one less where its last stage is the next step's first ("FSAL": Tsit5, Dopri5), whose very first stage is one more. A
rejected step costs as much as an accepted one.
"""

from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int

from .dpm import DPMSolverPP2M


# Explicit solvers that are no Runge–Kutta tableau; the diffusion of a reverse SDE calls no network.
_KNOWN = (
    (diffrax.Euler, 1),
    (diffrax.EulerHeun, 1),
    (DPMSolverPP2M, 1),
)


class SolveStats(eqx.Module):
    r"""What a solve cost.

    - `num_calls`: network calls, the final denoising included.
    - `num_accepted_steps`, `num_rejected_steps`: of the solver; an adaptive one rejects steps whose error is too large.
    """

    num_calls: Int[Array, ""]
    num_accepted_steps: Int[Array, ""]
    num_rejected_steps: Int[Array, ""]


def calls_of(solver: diffrax.AbstractSolver) -> tuple[int, int]:
    """Evaluations of the drift by an explicit solver: once at the start, and in each step.

    **Raises:** `ValueError` for a solver whose cost per step is not known: implicit ones iterate.
    """
    # Diffrax makes a wrapper an instance of what it wraps, so it is looked at first.
    if not isinstance(solver, diffrax.AbstractWrappedSolver):
        if isinstance(solver, diffrax.AbstractERK):
            tableau: Any = solver.tableau
            return (1, tableau.num_stages - 1) if tableau.fsal else (0, tableau.num_stages)
        if isinstance(solver, diffrax.AbstractSRK):
            ignored = solver.tableau.ignore_stage_f
            return 0, len(solver.tableau.b_sol) - (0 if ignored is None else int(ignored.sum()))
        for known, calls in _KNOWN:
            if isinstance(solver, known):
                return 0, calls
    raise ValueError(
        f"The network calls of {type(solver).__name__} cannot be counted from its steps. Read solution.stats, which has "
        "Diffrax's own counts; explicit Runge–Kutta methods (ODE and SDE), Euler, EulerHeun and DPMSolverPP2M are counted."
    )


def solve_stats(
    solver: diffrax.AbstractSolver, solution: diffrax.Solution, *, extra: int
) -> SolveStats:
    """The cost of a solution, with `extra` network calls outside its steps."""
    start, each = calls_of(solver)
    accepted = jnp.asarray(solution.stats["num_accepted_steps"])
    rejected = jnp.asarray(solution.stats["num_rejected_steps"])
    return SolveStats(start + each * (accepted + rejected) + extra, accepted, rejected)
