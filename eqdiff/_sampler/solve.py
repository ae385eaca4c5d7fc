r"""Samplers that are Diffrax solves.

The probability-flow ODE and the reverse SDE of `_term.py`, from prior noise at $t_1$ down to $t_0$, and then the denoised
estimate there. Adaptive by default: the error is controlled for each example on its own, so a sample does not depend on the
batch it was drawn in.

A fixed grid is given as `times=`, decreasing: the solution starts from `x1` at the first and the sample is $\hat x_0$ at the last. What
a solve cost is read from its solution, `sampler.stats(sampler.solve(denoiser, x1))`.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._denoiser import AbstractDenoiser
from .._process import AbstractSDE
from .._solver import solve_stats, SolveStats
from .._term import interval, probability_flow, require_sde, reverse_sde, shape_of
from .._types import Args, Example, Key, Scalar
from .base import AbstractSampler, check_call, check_decreasing, check_num_steps
from .times import check_times


class ProbabilityFlow(AbstractSampler):
    r"""Solves $\dot x = \dot\alpha\hat x_0 + \dot\sigma\hat\varepsilon$ from $t_1$ to $t_0$ with a Diffrax ODE solver.

    Deterministic. The sample is $\hat x_0$ at $t_0$.

    ??? cite "Reference"

        Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*, ICLR 2021, equation 13.
    """

    solver: diffrax.AbstractSolver
    rtol: float
    atol: float
    num_steps: int | None = eqx.field(static=True)
    times: Float[Array, " n"] | None
    max_steps: int = eqx.field(static=True)
    adjoint: diffrax.AbstractAdjoint

    def __init__(
        self,
        solver: diffrax.AbstractSolver = diffrax.Tsit5(),
        *,
        rtol: float = 1e-4,
        atol: float = 1e-4,
        num_steps: int | None = None,
        times: Float[Array, " n"] | None = None,
        max_steps: int = 4096,
        adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),
    ):
        """**Arguments:**

        - `solver`: any Diffrax ODE solver.
        - `rtol`, `atol`: the tolerances of adaptive steps.
        - `num_steps`: if given, this many equal steps instead of adaptive ones.
        - `times`: if given, steps between these decreasing times: see [`eqdiff.karras_times`][] and others.
        - `max_steps`: more than this is an error.
        - `adjoint`: how a sample is differentiated.

        **Raises:** `ValueError` for less than one step, fewer than two times, times that do not decrease, or both given; when
        called, for times that the process does not have.
        """
        times = _check_grid("ProbabilityFlow", num_steps, times)
        self.solver, self.rtol, self.atol = solver, rtol, atol
        self.num_steps, self.times = num_steps, times
        self.max_steps, self.adjoint = max_steps, adjoint

    def solve(self, denoiser: AbstractDenoiser, x1: Example, args: Args = None) -> diffrax.Solution:
        """The Diffrax solution itself, with its statistics, before the final denoising."""
        check_call("ProbabilityFlow", denoiser, x1)
        process = require_sde(denoiser.process, "ProbabilityFlow")
        (t0, t1), grid = _grid(process, self.num_steps, self.times, x1)
        if grid is None:
            controller = diffrax.PIDController(rtol=self.rtol, atol=self.atol)
        else:
            controller = diffrax.StepTo(grid)
        return diffrax.diffeqsolve(
            probability_flow(denoiser),
            self.solver,
            t0=t1,
            t1=t0,
            dt0=None,
            y0=x1,
            args=args,
            stepsize_controller=controller,
            max_steps=max(self.max_steps, 0 if grid is None else len(grid)),
            adjoint=self.adjoint,
        )

    def __call__(
        self, denoiser: AbstractDenoiser, x1: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        return _final(denoiser, self.solve(denoiser, x1, args), self.times, args)

    def stats(self, solution: diffrax.Solution) -> SolveStats:
        """What a solution of `solve` and its final denoising cost: see [`eqdiff.SolveStats`][].

        **Raises:** `ValueError` for a solver whose network calls cannot be counted: implicit ones, and wrappers.
        """
        return solve_stats(self.solver, solution, extra=1)


class ReverseSDE(AbstractSampler):
    r"""Solves the reverse SDE $\mathrm dx = (fx - g^2 s)\,\mathrm dt + g\,\mathrm d\bar w$ with a Diffrax SDE solver.

    Its noise is additive, so high-order and adaptive solvers apply: `ReverseSDE(diffrax.ShARK(), rtol=1e-2, atol=1e-2)`
    needs tens of steps where Euler–Maruyama (`ReverseSDE(diffrax.Euler(), num_steps=1000)`) needs a thousand. The sample
    is $\hat x_0$ at $t_0$.

    ??? cite "Reference"

        Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*, ICLR 2021, equation 6;
        Foster, dos Reis & Strange, *High Order Splitting Methods for SDEs Satisfying a Commutativity Condition*, 2023
        (ShARK).
    """

    solver: diffrax.AbstractSolver
    rtol: float
    atol: float
    num_steps: int | None = eqx.field(static=True)
    times: Float[Array, " n"] | None
    max_steps: int = eqx.field(static=True)
    adjoint: diffrax.AbstractAdjoint

    def __init__(
        self,
        solver: diffrax.AbstractSolver = diffrax.ShARK(),
        *,
        rtol: float = 1e-2,
        atol: float = 1e-2,
        num_steps: int | None = None,
        times: Float[Array, " n"] | None = None,
        max_steps: int = 4096,
        adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),
    ):
        """**Arguments:**

        - `solver`: any Diffrax SDE solver; adaptive steps need one with an error estimate (ShARK, SRA1, SPaRK, Heun).
        - `rtol`, `atol`: the tolerances of adaptive steps.
        - `num_steps`: if given, this many equal steps instead of adaptive ones.
        - `times`: if given, steps between these decreasing times: see [`eqdiff.karras_times`][] and others.
        - `max_steps`: more than this is an error.
        - `adjoint`: how a sample is differentiated.

        **Raises:** `ValueError` for less than one step, fewer than two times, times that do not decrease, or both given; when
        called, for times that the process does not have.
        """
        times = _check_grid("ReverseSDE", num_steps, times)
        self.solver, self.rtol, self.atol = solver, rtol, atol
        self.num_steps, self.times = num_steps, times
        self.max_steps, self.adjoint = max_steps, adjoint

    def solve(
        self, denoiser: AbstractDenoiser, x1: Example, args: Args = None, *, key: Key
    ) -> diffrax.Solution:
        """The Diffrax solution itself, on the clock −t, before the final denoising."""
        check_call("ReverseSDE", denoiser, x1)
        process = require_sde(denoiser.process, "ReverseSDE")
        (t0, t1), grid = _grid(process, self.num_steps, self.times, x1)
        if grid is None:
            # Diffrax's advice for SDEs: a little proportional control, since a path's roughness is not smooth in t.
            controller = diffrax.PIDController(
                rtol=self.rtol, atol=self.atol, pcoeff=0.1, icoeff=0.3
            )
            dt0 = (t1 - t0) / 100
        else:
            controller = diffrax.StepTo(-grid)
            dt0 = None
        return diffrax.diffeqsolve(
            reverse_sde(denoiser, self._brownian(t0, t1, x1, key)),
            self.solver,
            t0=-t1,
            t1=-t0,
            dt0=dt0,
            y0=x1,
            args=args,
            stepsize_controller=controller,
            max_steps=max(self.max_steps, 0 if grid is None else len(grid)),
            adjoint=self.adjoint,
        )

    def _brownian(self, t0: Scalar, t1: Scalar, x1: Example, key: Key):
        # The path is exact at points this far apart and bridged between; well below any step a sampler takes.
        steps = self.num_steps if self.times is None else len(self.times)
        fineness = 4 * max(steps or 0, 4096)
        # Only Runge–Kutta solvers for SDEs ask for Lévy areas, and only those name the smallest that will do.
        area = (
            diffrax.SpaceTimeLevyArea
            if hasattr(self.solver, "minimal_levy_area")
            else diffrax.BrownianIncrement
        )
        return diffrax.VirtualBrownianTree(
            -t1,
            -t0,
            tol=(t1 - t0) / fineness,
            shape=shape_of(x1),
            key=key,
            levy_area=area,
        )

    def __call__(
        self, denoiser: AbstractDenoiser, x1: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        if key is None:
            raise ValueError("ReverseSDE draws noise and needs a key: write key=jax.random.key(0).")
        return _final(denoiser, self.solve(denoiser, x1, args, key=key), self.times, args)

    def stats(self, solution: diffrax.Solution) -> SolveStats:
        """What a solution of `solve` and its final denoising cost: see [`eqdiff.SolveStats`][].

        **Raises:** `ValueError` for a solver whose network calls cannot be counted: implicit ones, and wrappers.
        """
        return solve_stats(self.solver, solution, extra=1)


def _check_grid(
    owner: str, num_steps: int | None, times: Float[Array, " n"] | None
) -> Float[Array, " n"] | None:
    check_num_steps(owner, num_steps)
    if times is None:
        return None
    if num_steps is not None:
        raise ValueError(
            f"{owner}: num_steps={num_steps} and times were both given; give one of them."
        )
    if len(times) < 2:
        raise ValueError(f"{owner}: {len(times)} times were given; a step needs two.")
    return check_decreasing(owner, times)


def _grid(
    process: AbstractSDE, num_steps: int | None, times: Float[Array, " n"] | None, x: Example
) -> tuple[tuple[Scalar, Scalar], Float[Array, " n"] | None]:
    """The last and the first time, and those between if they are fixed, in the precision of x."""
    if times is not None:
        # Diffrax would promote the state to the precision of its times.
        times = check_times(process, times).astype(x.dtype)
        return (times[-1], times[0]), times
    grid = None if num_steps is None else process.grid(num_steps + 1).astype(x.dtype)
    return interval(process, x), grid


def _final(
    denoiser: AbstractDenoiser,
    solution: diffrax.Solution,
    times: Float[Array, " n"] | None,
    args: Args,
) -> Example:
    """x̂0 at the last time: what is left of the noise there is removed, not shown."""
    process = require_sde(denoiser.process, "A Diffrax sampler")
    assert solution.ys is not None
    x = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
    last = process.t0 if times is None else times[-1]
    return denoiser(jnp.asarray(last, x.dtype), x, args).x0
