r"""Samplers that are Diffrax solves.

The probability-flow ODE and the reverse SDE of `_term`, from prior noise at $t_1$ down to $t_0$,
and then the denoised estimate there. Adaptive by default: the error is controlled for each example
on its own, so a sample does not depend on the batch it was drawn in. With `num_steps=`, `spacing=`
or `times=` the steps are given.

All settings of a solve live in the sampler: it encodes and decodes with them, and likelihoods take
it as `flow=`. What a solve cost is read from its solution,
`sampler.stats(sampler.solve(denoiser, x1))`.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Shaped

from .._check import check_positive, whole
from .._denoiser import AbstractDenoiser
from .._guidance import over_examples
from .._process import AbstractProcess
from .._term import probability_flow, reverse_sde, shape_of
from .._types import Args, Example, Scalar
from .abstract_solve import AbstractSolve, ends_of, solve_terms, span_of
from .base import check_call
from .cost import Counting
from .grid import Grid, Spacing


class ProbabilityFlow(AbstractSolve):
    r"""Solves $\dot x = \dot\alpha\hat x_0 + \dot\sigma\hat\varepsilon$ with a Diffrax ODE solver:
    sampling, encoding, likelihoods.

    Deterministic. The sample is $\hat x_0$ at $t_0$.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    flow = eqd.ProbabilityFlow(rtol=1e-3, atol=1e-3)
    x0 = flow(denoiser, jnp.ones(3))
    z = flow.encode(denoiser, x0)
    ```

    ??? cite "Reference"

        Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*,
        ICLR 2021, equation 13.
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
            `diffrax.Bosh3()` at a tolerance of 1e-3 needs the fewest network calls: see *Adaptive
            solves*.
        - `rtol`, `atol`: the tolerances of adaptive steps.
        - `num_steps`: if given, this many steps instead of adaptive ones, evenly spaced in time.
        - `spacing`: how `num_steps` steps are spaced: `spacing(process, num_steps + 1)` returns
            their ends.
        - `times`: if given, steps between these decreasing times.
        - `max_steps`: the largest number of steps; a solve that needs more raises an error.
        - `adjoint`: how the solve is differentiated. For gradients in reverse mode keep the
            default; for forward mode (`jax.jvp`, `jax.jacfwd`) write `diffrax.ForwardMode()`; for
            both, as in `jax.hessian`, `diffrax.DirectAdjoint()`. (Under `jax.jit` the error is
            JAX's own: "can't apply forward-mode autodiff (jvp) to a custom_vjp function".)

        **Raises:** `ValueError` for tolerances that are not positive, and as [`eqdiff.Grid`][].
        """
        check_positive(self, rtol=rtol, atol=atol)
        self.solver, self.rtol, self.atol = solver, rtol, atol
        self.grid = ends_of(self, num_steps, spacing, times)
        self.max_steps, self.adjoint = whole(self, "max_steps", max_steps), adjoint

    def solve(self, denoiser, x1, args=None, *, key=None, saveat=None):
        check_call(self, denoiser, x1)
        term = probability_flow(denoiser)
        return integrate(self, term, denoiser.process, x1, x1, args, saveat=saveat)

    def encode(self, denoiser: AbstractDenoiser, x: Example, args: Args = None) -> Example:
        r"""The latent $x(t_1)$ to which the flow carries $x = x(t_0)$.

        **Arguments:**

        - `denoiser`: any denoiser; with an [`eqdiff.Batched`][] one, `x` and `args` are a batch. Do
            not clip it: where it clips, the way back contracts by $\sigma_{t_0}/\sigma_t$, so that
            what was encoded cannot be told apart again to any tolerance.
        - `x`: one example of data.
        - `args`: the network's conditioning, if any.

        **Raises:** as the call. A runtime error if `x` is not finite, or `max_steps` is too small.
        """
        return self._carry("encode", denoiser, x, args, forwards=True)

    def decode(self, denoiser: AbstractDenoiser, latent: Example, args: Args = None) -> Example:
        r"""The inverse of `encode`: $x(t_0)$ from $x(t_1)$, without a final denoising.

        Scaling a latent sets its *temperature* (Kingma & Dhariwal 2018):
        `flow.decode(denoiser, 0.8 * latent)` is the sample of a prior of 0.8 times the standard
        deviation, closer to the mode and less diverse; 1 is the model itself.

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
    r"""Solves the reverse SDE $\mathrm dx = (fx - g^2 s)\,\mathrm dt + g\,\mathrm d\bar w$ with a
    Diffrax SDE solver.

    Its noise is additive, so high-order and adaptive solvers apply:
    `ReverseSDE(diffrax.ShARK(), rtol=1e-2, atol=1e-2)` needs tens of steps where Euler–Maruyama
    (`ReverseSDE(diffrax.Euler(), num_steps=1000)`) needs a thousand. The sample is $\hat x_0$ at
    $t_0$.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    x0 = eqd.ReverseSDE()(denoiser, jnp.ones(3), key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*,
        ICLR 2021, equation 6; Foster, dos Reis & Strange, *High Order Splitting Methods for SDEs
        Satisfying a Commutativity Condition*, 2023 (ShARK).
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

        - `solver`: any Diffrax SDE solver; adaptive steps need one with an error estimate (ShARK,
            SRA1, SPaRK, Heun).
        - `rtol`, `atol`, `num_steps`, `spacing`, `times`, `max_steps`, `adjoint`: as for
            [`eqdiff.ProbabilityFlow`][].

        **Raises:** as [`eqdiff.ProbabilityFlow`][].
        """
        check_positive(self, rtol=rtol, atol=atol)
        self.solver, self.rtol, self.atol = solver, rtol, atol
        self.grid = ends_of(self, num_steps, spacing, times)
        self.max_steps, self.adjoint = whole(self, "max_steps", max_steps), adjoint

    def solve(self, denoiser, x1, args=None, *, key=None, saveat=None):
        check_call(self, denoiser, x1)
        if key is None:
            raise ValueError("ReverseSDE draws noise and needs a key: write key=jax.random.key(0).")
        process = denoiser.process
        (first, last), times = span_of(self.grid, process, x1)
        # The path is exact at points this far apart and bridged between; well below any step a
        # sampler takes.
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
        return solve_terms(
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
    """Solves a term from noise to data, or forwards from data to noise, with the settings of a
    flow.

    **Arguments:**

    - `x`: the example in the state `y0`; the solve is done in its precision.
    - `owner`: what error texts begin with.
    """
    (first, last), times = span_of(flow.grid, process, x)
    if forwards:
        first, last, times = last, first, None if times is None else times[::-1]
    # Where a solver would look for a first step lies outside [t0, t1], if the flow is slow. A
    # longer one than this from the data steps over the times at which the noise is as wide as
    # narrow data, and the error estimate does not see what it missed.
    dt0 = 0.001 * jnp.minimum(last - first, 1) if forwards else (last - first) / 100
    pid = diffrax.PIDController(rtol=flow.rtol, atol=flow.atol, norm=norm)
    return solve_terms(
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
