r"""Fast deterministic sampling with multistep methods.

A Diffrax solver, `_term/multistep.py`, for the data-prediction form of the probability flow,
`_term/dpm.py`, along given times: at each the denoiser is called once, its estimate and those
before extrapolate ahead, and the last step goes to the data by $\hat x_0$. From a time without
signal, where $\ell = -\infty$, the first step is DDIM's.
"""

import abc

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from .._denoiser import AbstractDenoiser
from .._term import data_prediction
from .._types import Args, Example, Key
from .adjoint import adjoint_named
from .base import AbstractSampler, check_call, Trajectory
from .grid import Grid


class AbstractMultistep(AbstractSampler):
    """A sampler that solves the flow in data prediction along a grid. Deterministic."""

    grid: eqx.AbstractVar[Grid]
    adjoint: eqx.AbstractVar[diffrax.AbstractAdjoint]

    @abc.abstractmethod
    def solver(self) -> diffrax.AbstractSolver:
        """The method."""

    @property
    def num_calls(self) -> int | None:
        return self.grid.num_steps

    def __call__(
        self, denoiser: AbstractDenoiser, x1: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        check_call(self, denoiser, x1)
        times = self.grid.times(denoiser.process)
        return denoiser(times[-1], self._states(denoiser, x1, args, times, all=False)[-1], args).x0

    def trajectory(
        self, denoiser: AbstractDenoiser, x1: Example, args: Args = None, *, key: Key | None = None
    ) -> Trajectory:
        """Draws one sample and keeps every state: see [`eqdiff.Trajectory`][]. Arguments as for the
        call.

        The estimates are computed once more, so it costs twice as many network calls.
        """
        check_call(self, denoiser, x1)
        times = self.grid.times(denoiser.process)
        states = self._states(denoiser, x1, args, times, all=True)
        x0 = jax.lax.map(lambda at: denoiser(at[0], at[1], args).x0, (times, states))
        return Trajectory(times, jnp.concatenate([states[1:], x0[-1:]]), x0)

    def _states(
        self,
        denoiser: AbstractDenoiser,
        x1: Example,
        args: Args,
        times: Shaped[Array, " n"],
        *,
        all: bool,
    ) -> Example:
        """The states at all times, or at the last alone."""
        process = denoiser.process
        if len(times) > 1 and self.grid.begins_without_signal(process):
            estimate = denoiser(times[0], x1, args)
            alpha, sigma = process.levels(times[1], like=x1)
            x = alpha * estimate.x0 + sigma * estimate.noise
            rest = self._solved(denoiser, x, args, times[1:], all=all)
            return jnp.concatenate([x1[None], rest]) if all else rest
        return self._solved(denoiser, x1, args, times, all=all)

    def _solved(self, denoiser, x1, args, times, *, all: bool) -> Example:
        """The same, from a time with signal."""
        if len(times) == 1:
            return x1[None]
        process = denoiser.process
        clock = (0.5 * jax.vmap(process.log_snr)(times)).astype(x1.dtype)
        with adjoint_named(self, self.adjoint):
            solution = diffrax.diffeqsolve(
                data_prediction(denoiser),
                self.solver(),
                t0=clock[0],
                t1=clock[-1],
                dt0=None,
                y0=x1 / process.sigma(times[0]).astype(x1.dtype),
                args=args,
                stepsize_controller=diffrax.StepTo(clock),
                saveat=diffrax.SaveAt(ts=clock) if all else diffrax.SaveAt(t1=True),
                max_steps=max(len(times), 16),
                adjoint=self.adjoint,
            )
        kept = times if all else times[-1:]
        assert solution.ys is not None
        scale = jax.vmap(process.sigma)(kept).astype(x1.dtype)
        return jax.vmap(lambda s, y: s * y)(scale, solution.ys)
