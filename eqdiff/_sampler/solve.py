r"""Samplers that are Diffrax solves.

The probability-flow ODE and the reverse SDE of `_term`, from prior noise at $t_1$ down to $t_0$, and then the
denoised estimate there. Adaptive by default: the error is controlled for each example on its own, so a sample
does not depend on the batch it was drawn in. With `num_steps=`, `spacing=` or `times=` the steps are given.

All settings of a solve live in the sampler: it encodes and decodes with them, and likelihoods take it as
`flow=`. What a solve cost is read from its solution, `sampler.stats(sampler.solve(denoiser, x1))`.
"""

import abc
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped

from .._check import check_positive, of, whole
from .._denoiser import AbstractDenoiser
from .._guidance import over_examples
from .._process import AbstractProcess
from .._term import interval, probability_flow, reverse_sde, shape_of
from .._types import Args, Example, Key, Scalar
from .base import AbstractSampler, check_call, Trajectory
from .cost import calls_of, Counting, solve_stats, SolveStats
from .grid import Grid, grid_of, Spacing


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

        - `saveat`: decreasing times at which the state is saved; by default only where the solve ends.
        """

    @property
    def num_calls(self) -> int | None:
        """Network calls of given steps and the final denoising; `None` where steps adapt: see `stats`."""
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
        last = _span(self.grid, denoiser.process, x1)[0][1]
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

        - `saveat`: the decreasing times to look at, from where the solve starts to where it ends; by default
            those of given steps, or 32 evenly spaced ones. Each costs one more network call, for $\\hat x_0$.
        """
        (first, last), given = _span(self.grid, denoiser.process, x1)
        if saveat is None:
            saveat = jnp.linspace(first, last, 32) if given is None else given
        saveat = jnp.asarray(saveat, x1.dtype)
        states = self.solve(denoiser, x1, args, key=key, saveat=saveat).ys
        x0 = jax.lax.map(lambda pair: denoiser(*pair, args).x0, (saveat, states))
        assert states is not None
        return Trajectory(saveat, jnp.concatenate([states[1:], x0[-1:]]), x0)

    def stats(self, solution: diffrax.Solution) -> SolveStats:
        """What a solution of `solve` and its final denoising cost: `num_calls`, `num_accepted_steps` and
        `num_rejected_steps`.

        **Raises:** `ValueError` for a solver whose network calls cannot be counted: implicit ones, and wrappers.
        """
        return solve_stats(self.solver, solution, extra=1)


class ProbabilityFlow(AbstractSolve):
    r"""Solves $\dot x = \dot\alpha\hat x_0 + \dot\sigma\hat\varepsilon$ with a Diffrax ODE solver: sampling, encoding, likelihoods.

    Deterministic. The sample is $\hat x_0$ at $t_0$.

    ```python
    flow = eqd.ProbabilityFlow(diffrax.Bosh3(), rtol=1e-3, atol=1e-3)
    x0 = flow(denoiser, x1)
    z = flow.encode(denoiser, x0)
    ```

    ??? cite "Reference"

        Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*, ICLR 2021, equation
        13.
    """

    solver: diffrax.AbstractSolver
    rtol: float | Array
    atol: float | Array
    grid: Grid | None
    max_steps: int = eqx.field(static=True)
    adjoint: diffrax.AbstractAdjoint

    def __init__(
        self,
        solver: diffrax.AbstractSolver = diffrax.Tsit5(),
        *,
        rtol: float | Array = 1e-4,
        atol: float | Array = 1e-4,
        num_steps: int | None = None,
        spacing: Spacing | None = None,
        times: Any = None,
        max_steps: int = 4096,
        adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),
    ):
        """**Arguments:**

        - `solver`: any Diffrax ODE solver. For a trained network, which is not smooth in time,
            `diffrax.Bosh3()` at a tolerance of 1e-3 needs the fewest network calls: see *Adaptive solves*.
        - `rtol`, `atol`: the tolerances of adaptive steps.
        - `num_steps`: if given, this many steps instead of adaptive ones, evenly spaced in time.
        - `spacing`: how `num_steps` steps are spaced: `spacing(process, num_steps + 1)` returns their ends.
        - `times`: if given, steps between these decreasing times.
        - `max_steps`: more than this is an error.
        - `adjoint`: how the solve is differentiated. For gradients in reverse mode keep the default; for forward
            mode (`jax.jvp`, `jax.jacfwd`) write `diffrax.ForwardMode()`; for both, as in `jax.hessian`,
            `diffrax.DirectAdjoint()`.

        **Raises:** `ValueError` for tolerances that are not positive, and as [`eqdiff.Grid`][].
        """
        check_positive(self, rtol=rtol, atol=atol)
        self.solver, self.rtol, self.atol = solver, rtol, atol
        self.grid = _ends_of(self, num_steps, spacing, times)
        self.max_steps, self.adjoint = whole(self, "max_steps", max_steps), adjoint

    def solve(self, denoiser, x1, args=None, *, key=None, saveat=None):
        check_call(self, denoiser, x1)
        term = probability_flow(denoiser)
        return integrate(self, term, denoiser.process, x1, x1, args, saveat=saveat)

    def encode(self, denoiser: AbstractDenoiser, x: Example, args: Args = None) -> Example:
        r"""The latent $x(t_1)$ to which the flow carries $x = x(t_0)$.

        **Arguments:**

        - `denoiser`: any denoiser; with an [`eqdiff.Batched`][] one, `x` and `args` are a batch. Do not clip it:
            where it clips, the way back contracts by $\sigma_{t_0}/\sigma_t$, so that what was encoded cannot be told
            apart again to any tolerance.
        - `x`: one example of data.
        - `args`: what conditions the network.

        **Raises:** as the call. A runtime error if `x` is not finite, or `max_steps` were not enough.
        """
        return self._carry("encode", denoiser, x, args, forwards=True)

    def decode(self, denoiser: AbstractDenoiser, latent: Example, args: Args = None) -> Example:
        r"""The inverse of `encode`: $x(t_0)$ from $x(t_1)$, without a final denoising.

        Scaling a latent sets its *temperature* (Kingma & Dhariwal 2018): `flow.decode(denoiser, 0.8 * latent)` is
        the sample of a prior of 0.8 times the standard deviation, closer to the mode and less diverse; 1 is the
        model itself.

        **Arguments:** as for `encode`.

        **Raises:** as `encode`.
        """
        return self._carry("decode", denoiser, latent, args, forwards=False)

    def _carry(
        self, name: str, denoiser: AbstractDenoiser, x: Example, args: Args, *, forwards: bool
    ) -> Example:
        owner = f"ProbabilityFlow.{name}"
        check_call(owner, denoiser, x)
        _, each = over_examples(denoiser)
        term = probability_flow(denoiser)
        solution = integrate(
            self,
            term,
            denoiser.process,
            x,
            x,
            args,
            owner=owner,
            forwards=forwards,
            norm=lambda error: jnp.max(each(error_norm)(error)),
        )
        assert solution.ys is not None
        return solution.ys[-1]


class ReverseSDE(AbstractSolve):
    r"""Solves the reverse SDE $\mathrm dx = (fx - g^2 s)\,\mathrm dt + g\,\mathrm d\bar w$ with a Diffrax SDE solver.

    Its noise is additive, so high-order and adaptive solvers apply: `ReverseSDE(diffrax.ShARK(), rtol=1e-2,
    atol=1e-2)` needs tens of steps where Euler–Maruyama (`ReverseSDE(diffrax.Euler(), num_steps=1000)`) needs a
    thousand. The sample is $\hat x_0$ at $t_0$.

    ??? cite "Reference"

        Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*, ICLR 2021, equation
        6; Foster, dos Reis & Strange, *High Order Splitting Methods for SDEs Satisfying a Commutativity Condition*,
        2023 (ShARK).
    """

    solver: diffrax.AbstractSolver
    rtol: float | Array
    atol: float | Array
    grid: Grid | None
    max_steps: int = eqx.field(static=True)
    adjoint: diffrax.AbstractAdjoint

    def __init__(
        self,
        solver: diffrax.AbstractSolver = diffrax.ShARK(),
        *,
        rtol: float | Array = 1e-2,
        atol: float | Array = 1e-2,
        num_steps: int | None = None,
        spacing: Spacing | None = None,
        times: Any = None,
        max_steps: int = 4096,
        adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),
    ):
        """**Arguments:**

        - `solver`: any Diffrax SDE solver; adaptive steps need one with an error estimate (ShARK, SRA1, SPaRK,
            Heun).
        - `rtol`, `atol`, `num_steps`, `spacing`, `times`, `max_steps`, `adjoint`: as for
            [`eqdiff.ProbabilityFlow`][].

        **Raises:** as [`eqdiff.ProbabilityFlow`][].
        """
        check_positive(self, rtol=rtol, atol=atol)
        self.solver, self.rtol, self.atol = solver, rtol, atol
        self.grid = _ends_of(self, num_steps, spacing, times)
        self.max_steps, self.adjoint = whole(self, "max_steps", max_steps), adjoint

    def solve(self, denoiser, x1, args=None, *, key=None, saveat=None):
        check_call(self, denoiser, x1)
        if key is None:
            raise ValueError("ReverseSDE draws noise and needs a key: write key=jax.random.key(0).")
        process = denoiser.process
        (first, last), times = _span(self.grid, process, x1)
        # The path is exact at points this far apart and bridged between; well below any step a sampler takes.
        fineness = 4 * max(0 if times is None else len(times), 4096)
        brownian = diffrax.VirtualBrownianTree(
            -first,
            -last,
            tol=(first - last) / fineness,
            shape=shape_of(x1),
            key=key,
            levy_area=levy_area_of(self.solver),
        )
        # Diffrax's advice for SDEs: a little proportional control, since a path is not smooth in t.
        pid = diffrax.PIDController(rtol=self.rtol, atol=self.atol, pcoeff=0.1, icoeff=0.3)
        return _diffeqsolve(
            self,
            "ReverseSDE",
            reverse_sde(denoiser, brownian),
            (-first, -last),
            (first - last) / 100,
            x1,
            args,
            controller=Counting(pid) if times is None else diffrax.StepTo(-times),
            saveat=None if saveat is None else -saveat,
        )


def levy_area_of(solver: diffrax.AbstractSolver) -> Any:
    """The Lévy areas that a solver asks for."""
    # Only Runge–Kutta solvers for SDEs do, and only those name the smallest that will do.
    asks = isinstance(solver, diffrax.AbstractSRK)
    return diffrax.SpaceTimeLevyArea if asks else diffrax.BrownianIncrement


def error_norm(error: PyTree[Array]) -> Scalar:
    """The largest RMS over the parts of a state."""
    # One RMS over state and log-density together would give the log-density one vote among D.
    return jnp.max(jnp.stack([_rms(leaf) for leaf in jax.tree.leaves(error)]))


def _rms(error: Array) -> Scalar:
    square = jnp.mean(error**2)
    # √0 has no gradient; the error is exactly 0 where the flow is constant.
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def integrate(
    flow: ProbabilityFlow,
    term: diffrax.ODETerm,
    process: AbstractProcess,
    x: Example,
    y0: PyTree[Array],
    args: Args,
    *,
    owner: str = "ProbabilityFlow",
    forwards: bool = False,
    norm: Callable[[PyTree[Array]], Scalar] = error_norm,
    saveat: Shaped[Array, " n"] | None = None,
) -> diffrax.Solution:
    """Solves a term from noise to data, or forwards from data to noise, with the settings of a flow.

    **Arguments:**

    - `x`: the example in the state `y0`; the solve is done in its precision.
    - `owner`: what error texts begin with.
    """
    (first, last), times = _span(flow.grid, process, x)
    if forwards:
        first, last, times = last, first, None if times is None else times[::-1]
    # Where a solver would look for a first step lies outside [t0, t1], if the flow is slow. A longer one than
    # this from the data steps over the times at which the noise is as wide as narrow data, and the error
    # estimate does not see what it missed.
    dt0 = 0.001 * jnp.minimum(last - first, 1) if forwards else (last - first) / 100
    pid = diffrax.PIDController(rtol=flow.rtol, atol=flow.atol, norm=norm)
    return _diffeqsolve(
        flow,
        owner,
        term,
        (first, last),
        dt0,
        y0,
        args,
        controller=Counting(pid) if times is None else diffrax.StepTo(times),
        saveat=saveat,
    )


def _diffeqsolve(sampler, owner, terms, ends, dt0, y0, args, *, controller, saveat):
    """A solve whose failure is an error, never a number."""
    finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(y0)])
    y0 = eqx.error_if(y0, ~jnp.all(finite), f"{owner} was given values that are not finite.")
    given = isinstance(controller, diffrax.StepTo)
    save = diffrax.SaveAt(t1=True) if saveat is None else diffrax.SaveAt(ts=saveat)
    try:
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
    except (TypeError, ValueError, RuntimeError) as e:
        if "forward-mode" not in str(e) and "custom_vjp" not in str(e):
            raise
        raise ValueError(
            f"{owner}: this derivative of a solve needs another adjoint than "
            f"{type(sampler.adjoint).__name__}(): for forward mode write adjoint=diffrax.ForwardMode(), for "
            "higher derivatives such as jax.hessian adjoint=diffrax.DirectAdjoint()."
        ) from e
    exhausted = solution.result == diffrax.RESULTS.max_steps_reached
    ys = eqx.error_if(
        solution.ys,
        exhausted,
        f"{owner} took max_steps={sampler.max_steps} steps without coming to the end of the solve. Loosen "
        "rtol and atol (float32 holds no tolerance below 1e-6), or raise max_steps; if the network returns "
        "NaN, no step is small enough.",
    )
    failed = solution.result != diffrax.RESULTS.successful
    ys = solution.result.error_if(ys, failed & ~exhausted)
    return eqx.tree_at(lambda s: s.ys, solution, ys)


def _ends_of(owner: AbstractSolve, num_steps: Any, spacing: Any, times: Any) -> Grid | None:
    """The grid whose times are the ends of given steps, or nothing where steps adapt."""
    if num_steps is None and times is None:
        if spacing is not None:
            raise ValueError(f"{of(owner)}: a spacing needs a number of steps: write num_steps=50.")
        return None
    ends = None if num_steps is None else whole(owner, "num_steps", num_steps) + 1
    grid = grid_of(owner, ends, spacing, times, default_spacing=_evenly)
    if grid.num_steps is not None and grid.num_steps < 2:
        raise ValueError(f"{of(owner)}: one time was given; a step needs two.")
    return grid


def _evenly(process: AbstractProcess, num_times: int) -> Float[Array, " n"]:
    """Real times, also on a schedule."""
    return jnp.linspace(process.t1, process.t0, num_times)


def _span(
    grid: Grid | None, process: AbstractProcess, x: Example
) -> tuple[tuple[Scalar, Scalar], Float[Array, " n"] | None]:
    """The first and the last time, and those between if they are given, in the precision of x."""
    t0, t1 = interval(process, x)
    if grid is None:
        return (t1, t0), None
    # Diffrax would promote the state to the precision of its times.
    times = grid.times(process).astype(x.dtype)
    return (times[0], times[-1]), times
