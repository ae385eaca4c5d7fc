r"""The cost of a solve.

Diffrax counts steps; what costs time is network calls. An explicit Runge–Kutta method of $s$ stages
calls the network $s$ times a step. One fewer where its last stage is the next step's first ("FSAL":
Tsit5, Dopri5): then only a step with no accepted step before it evaluates its first stage itself,
so that one call is added for the first step and one more for each time it is rejected. A rejected
step costs as much as an accepted one.
"""

from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from .._term import DPMSolverPP, UniPC


# Explicit solvers without a Runge–Kutta tableau; the diffusion of a reverse SDE calls no network.
_KNOWN = (
    (diffrax.Euler, 1),
    (diffrax.EulerHeun, 1),
    (DPMSolverPP, 1),
    (UniPC, 1),
)


class SolveStats(eqx.Module):
    r"""What a solve cost.

    - `num_calls`: network calls, the final denoising included.
    - `num_accepted_steps`, `num_rejected_steps`: of the solver; an adaptive one rejects steps whose
        error is too large.
    """

    num_calls: Int[Array, ""]
    num_accepted_steps: Int[Array, ""]
    num_rejected_steps: Int[Array, ""]


class _State(eqx.Module):
    inner: Any
    started: Bool[Array, ""]
    early: Int[Array, ""]


class Counting(diffrax.AbstractAdaptiveStepSizeController):
    """A controller that also counts the rejections before the first accepted step."""

    # A diffrax.PIDController, also after `wrap`, whose type says less.
    controller: Any

    def __init__(self, controller: Any):
        self.controller = controller

    @property
    def rtol(self):
        return self.controller.rtol

    @property
    def atol(self):
        return self.controller.atol

    @property
    def norm(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.controller.norm

    def wrap(self, direction):
        return Counting(self.controller.wrap(direction))

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        t1, inner = self.controller.init(terms, t0, t1, y0, dt0, args, func, error_order)
        return t1, _State(inner, jnp.asarray(False), jnp.zeros((), jnp.int32))

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        state = controller_state
        keep, t0, t1, jumped, inner, result = self.controller.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, state.inner
        )
        early = state.early + (~(state.started | keep)).astype(jnp.int32)
        return keep, t0, t1, jumped, _State(inner, state.started | keep, early), result


def calls_of(solver: diffrax.AbstractSolver) -> tuple[int, int]:
    """Evaluations of the drift by an explicit solver: more in the first step, and in each step.

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
        f"The network calls of {type(solver).__name__} cannot be counted from its steps. Read "
        "solution.stats, which has Diffrax's own counts; explicit Runge–Kutta methods (ODE and "
        "SDE), Euler and EulerHeun are counted."
    )


def is_counted(solver: diffrax.AbstractSolver) -> bool:
    """Whether `calls_of` knows a solver."""
    try:
        calls_of(solver)
    except ValueError:
        return False
    return True


def solve_stats(
    solver: diffrax.AbstractSolver, solution: diffrax.Solution, *, extra: int
) -> SolveStats:
    """The cost of a solution made with `Counting`, with `extra` network calls outside its steps."""
    start, each = calls_of(solver)
    accepted = jnp.asarray(solution.stats["num_accepted_steps"])
    rejected = jnp.asarray(solution.stats["num_rejected_steps"])
    # Given steps are never rejected.
    state = solution.controller_state
    early = state.early.astype(accepted.dtype) if isinstance(state, _State) else 0
    calls = start * (1 + early) + each * (accepted + rejected) + extra
    return SolveStats(calls, accepted, rejected)
