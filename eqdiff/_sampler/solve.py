r"""Samplers that are Diffrax solves.

The probability-flow ODE and the reverse SDE of `_term.py`, from prior noise at $t_1$ down to $t_0$, and then the denoised
estimate there. Adaptive by default: the error is controlled for each example on its own, so a sample does not depend on the
batch it was drawn in.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from .._denoiser import AbstractDenoiser
from .._process import AbstractSDE
from .._term import interval, probability_flow, require_sde, reverse_sde, shape_of
from .._types import Args, Example, Key
from .base import AbstractSampler, check_num_steps


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
    max_steps: int = eqx.field(static=True)
    adjoint: diffrax.AbstractAdjoint

    def __init__(
        self,
        solver: diffrax.AbstractSolver = diffrax.Tsit5(),
        *,
        rtol: float = 1e-4,
        atol: float = 1e-4,
        num_steps: int | None = None,
        max_steps: int = 4096,
        adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),
    ):
        """**Arguments:**

        - `solver`: any Diffrax ODE solver.
        - `rtol`, `atol`: the tolerances of adaptive steps.
        - `num_steps`: if given, this many equal steps instead of adaptive ones.
        - `max_steps`: more than this is an error.
        - `adjoint`: how a sample is differentiated.
        """
        check_num_steps("ProbabilityFlow", num_steps)
        self.solver, self.rtol, self.atol = solver, rtol, atol
        self.num_steps, self.max_steps, self.adjoint = num_steps, max_steps, adjoint

    def solve(self, denoiser: AbstractDenoiser, x1: Example, args: Args = None) -> diffrax.Solution:
        """The Diffrax solution itself, with its statistics, before the final denoising."""
        process = require_sde(denoiser.process, "ProbabilityFlow")
        t0, t1 = interval(process, x1)
        if self.num_steps is None:
            controller = diffrax.PIDController(rtol=self.rtol, atol=self.atol)
        else:
            controller = diffrax.StepTo(process.grid(self.num_steps + 1).astype(x1.dtype))
        return diffrax.diffeqsolve(
            probability_flow(denoiser),
            self.solver,
            t0=t1,
            t1=t0,
            dt0=None,
            y0=x1,
            args=args,
            stepsize_controller=controller,
            max_steps=max(self.max_steps, self.num_steps or 0),
            adjoint=self.adjoint,
        )

    def __call__(
        self, denoiser: AbstractDenoiser, x1: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        return _final(denoiser, self.solve(denoiser, x1, args), args)


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
    max_steps: int = eqx.field(static=True)
    adjoint: diffrax.AbstractAdjoint

    def __init__(
        self,
        solver: diffrax.AbstractSolver = diffrax.ShARK(),
        *,
        rtol: float = 1e-2,
        atol: float = 1e-2,
        num_steps: int | None = None,
        max_steps: int = 4096,
        adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),
    ):
        """**Arguments:**

        - `solver`: any Diffrax SDE solver; adaptive steps need one with an error estimate (ShARK, SRA1, SPaRK, Heun).
        - `rtol`, `atol`: the tolerances of adaptive steps.
        - `num_steps`: if given, this many equal steps instead of adaptive ones.
        - `max_steps`: more than this is an error.
        - `adjoint`: how a sample is differentiated.
        """
        check_num_steps("ReverseSDE", num_steps)
        self.solver, self.rtol, self.atol = solver, rtol, atol
        self.num_steps, self.max_steps, self.adjoint = num_steps, max_steps, adjoint

    def solve(
        self, denoiser: AbstractDenoiser, x1: Example, args: Args = None, *, key: Key
    ) -> diffrax.Solution:
        """The Diffrax solution itself, on the clock −t, before the final denoising."""
        process = require_sde(denoiser.process, "ReverseSDE")
        t0, t1 = interval(process, x1)
        if self.num_steps is None:
            # Diffrax's advice for SDEs: a little proportional control, since a path's roughness is not smooth in t.
            controller = diffrax.PIDController(
                rtol=self.rtol, atol=self.atol, pcoeff=0.1, icoeff=0.3
            )
            dt0 = (t1 - t0) / 100
        else:
            controller = diffrax.StepTo(-process.grid(self.num_steps + 1).astype(x1.dtype))
            dt0 = None
        return diffrax.diffeqsolve(
            reverse_sde(denoiser, self._brownian(process, x1, key)),
            self.solver,
            t0=-t1,
            t1=-t0,
            dt0=dt0,
            y0=x1,
            args=args,
            stepsize_controller=controller,
            max_steps=max(self.max_steps, self.num_steps or 0),
            adjoint=self.adjoint,
        )

    def _brownian(self, process: AbstractSDE, x1: Example, key: Key):
        t0, t1 = interval(process, x1)
        # The path is exact at points this far apart and bridged between; well below any step a sampler takes.
        fineness = 4 * max(self.num_steps or 0, 4096)
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
        return _final(denoiser, self.solve(denoiser, x1, args, key=key), args)


def _final(denoiser: AbstractDenoiser, solution: diffrax.Solution, args: Args) -> Example:
    """x̂0 at t0: what is left of the noise there is removed, not shown."""
    process = require_sde(denoiser.process, "A Diffrax sampler")
    assert solution.ys is not None
    x = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
    return denoiser(jnp.asarray(process.t0, x.dtype), x, args).x0
