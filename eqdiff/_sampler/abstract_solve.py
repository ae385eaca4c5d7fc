"""The common part of samplers that are Diffrax solves: a failure is an error, never a number."""

import abc
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from .._check import of, whole
from .._denoiser import AbstractDenoiser
from .._process import AbstractProcess, default_times, Schedule
from .._term import interval
from .._types import Args, Example, Key, Scalar
from .adjoint import adjoint_named
from .base import AbstractSampler, check_call, Trajectory
from .cost import calls_of, solve_stats, SolveStats
from .grid import Grid, grid_of


class AbstractSolve(AbstractSampler):
    """A sampler that is a Diffrax solve: a solver, and adaptive or given steps."""

    solver: eqx.AbstractVar[diffrax.AbstractSolver]
    rtol: eqx.AbstractVar[float | Array]
    atol: eqx.AbstractVar[float | Array]
    # The times of given steps; None where they adapt.
    grid: eqx.AbstractVar[Grid | None]
    max_steps: eqx.AbstractVar[int]
    adjoint: eqx.AbstractVar[diffrax.AbstractAdjoint]

    @abc.abstractmethod
    def solve(
        self,
        denoiser: AbstractDenoiser,
        x1: Example,
        args: Args = None,
        *,
        key: Key | None = None,
        saveat: Shaped[Array, " n"] | None = None,
    ) -> diffrax.Solution:
        """The Diffrax solution itself, with its statistics, before the final denoising.

        **Arguments:** as for the call, and

        - `saveat`: decreasing times at which the state is saved; by default only where the solve
            ends.
        """

    @property
    def num_calls(self) -> int | None:
        """Network calls of given steps and the final denoising; `None` where steps adapt: see
        `stats`.
        """
        if self.grid is None or self.grid.num_steps is None:
            return None
        start, each = calls_of(self.solver)
        return start + each * (self.grid.num_steps - 1) + 1

    def __call__(
        self, denoiser: AbstractDenoiser, x1: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        solution = self.solve(denoiser, x1, args, key=key)
        assert solution.ys is not None
        # What is left of the noise at the last time is removed, not shown.
        last = span_of(self.grid, denoiser.process, x1)[0][1]
        return denoiser(last, solution.ys[-1], args).x0

    def trajectory(
        self,
        denoiser: AbstractDenoiser,
        x1: Example,
        args: Args = None,
        *,
        key: Key | None = None,
        saveat: Shaped[Array, " n"] | None = None,
    ) -> Trajectory:
        """Draws one sample and keeps states on the way: see [`eqdiff.Trajectory`][].

        **Arguments:** as for the call, and

        - `saveat`: the decreasing times to look at, from where the solve starts to where it ends;
            by default those of given steps, or 32 evenly spaced ones. Each costs one more network
            call, for $\\hat x_0$.
        """
        check_call(self, denoiser, x1)
        (first, last), given = span_of(self.grid, denoiser.process, x1)
        if saveat is None:
            saveat = jnp.linspace(first, last, 32) if given is None else given
        saveat = jnp.asarray(saveat, x1.dtype)
        states = self.solve(denoiser, x1, args, key=key, saveat=saveat).ys
        x0 = jax.lax.map(lambda at: denoiser(at[0], at[1], args).x0, (saveat, states))
        assert states is not None
        return Trajectory(saveat, jnp.concatenate([states[1:], x0[-1:]]), x0)

    def stats(self, solution: diffrax.Solution) -> SolveStats:
        """What a solution of `solve` and its final denoising cost: `num_calls`,
        `num_accepted_steps` and `num_rejected_steps`.

        **Raises:** `ValueError` for a solver whose network calls cannot be counted: implicit ones,
        and wrappers.
        """
        return solve_stats(self.solver, solution, extra=1)


def ends_of(owner: AbstractSolve, num_steps: Any, spacing: Any, times: Any) -> Grid | None:
    """The grid whose times are the ends of given steps, or nothing where steps adapt."""
    if num_steps is None and times is None:
        if spacing is not None:
            raise ValueError(f"{of(owner)}: a spacing needs a number of steps: write num_steps=50.")
        return None
    if num_steps is None or times is not None:
        grid = grid_of(owner, num_steps, spacing, times)
    else:
        ends = whole(owner, "num_steps", num_steps) + 1
        grid = grid_of(owner, ends, spacing, None, default_spacing=_real_times)
    if grid.num_steps is not None and grid.num_steps < 2:
        raise ValueError(f"{of(owner)}: one time was given; a step needs two.")
    return grid


def _real_times(process: AbstractProcess, num_times: int) -> Float[Array, " n"]:
    """The default times of chains, but real ones on a schedule too."""
    if isinstance(process, Schedule):
        return jnp.linspace(process.t1, process.t0, num_times)
    return default_times(process, num_times)


def solve_terms(sampler, owner, terms, ends, dt0, y0, args, *, controller, saveat):
    """A solve whose failure is an error, never a number."""
    finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(y0)])
    y0 = eqx.error_if(y0, ~jnp.all(finite), f"{owner} was given values that are not finite.")
    given = isinstance(controller, diffrax.StepTo)
    save = diffrax.SaveAt(t1=True) if saveat is None else diffrax.SaveAt(ts=saveat)
    with adjoint_named(owner, sampler.adjoint):
        solution = diffrax.diffeqsolve(
            terms,
            sampler.solver,
            t0=ends[0],
            t1=ends[1],
            dt0=None if given else dt0,
            y0=y0,
            args=args,
            stepsize_controller=controller,
            saveat=eqx.tree_at(lambda s: s.controller_state, save, True),
            max_steps=max(sampler.max_steps, len(controller.ts)) if given else sampler.max_steps,
            adjoint=sampler.adjoint,
            throw=False,
        )
    exhausted = solution.result == diffrax.RESULTS.max_steps_reached
    ys = eqx.error_if(
        solution.ys,
        exhausted,
        f"{owner} took max_steps={sampler.max_steps} steps without reaching the end of the solve. "
        "Loosen rtol and atol (float32 holds no tolerance below 1e-6), or raise max_steps; if the "
        "network returns NaN, no step is small enough.",
    )
    failed = solution.result != diffrax.RESULTS.successful
    ys = solution.result.error_if(ys, failed & ~exhausted)
    return eqx.tree_at(lambda s: s.ys, solution, ys)


def span_of(
    grid: Grid | None, process: AbstractProcess, x: Example
) -> tuple[tuple[Scalar, Scalar], Float[Array, " n"] | None]:
    """The first and the last time, and those between if they are given, in the precision of x."""
    t0, t1 = interval(process, x)
    if grid is None:
        return (t1, t0), None
    # Diffrax would promote the state to the precision of its times.
    times = grid.times(process).astype(x.dtype)
    return (times[0], times[-1]), times
