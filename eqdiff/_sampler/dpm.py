r"""Fast deterministic sampling with a multistep method.

DPM-Solver++(2M), the Diffrax solver of `_term/dpm.py`, along given times: at each the denoiser is
called once, its estimate and the one before extrapolate half a step ahead, and the last step goes
to the data by $\hat x_0$.
"""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from .._denoiser import AbstractDenoiser
from .._process import log_snr_times
from .._term import data_prediction, DPMSolverPP2M
from .._types import Args, Example, Key
from .adjoint import adjoint_named
from .base import AbstractSampler, check_call, Trajectory
from .grid import Grid, grid_of, Spacing


class DPMSolverPP(AbstractSampler):
    r"""DPM-Solver++(2M): second order at one network call per step, on any process. Deterministic.

    ```python
    x0 = eqd.DPMSolverPP(20)(denoiser, x1)
    ```

    Times are evenly spaced in the log-SNR unless given. The sample is $\hat x_0$ at the last of
    them.

    ??? cite "Reference"

        Lu et al., *DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
        Models*, 2022, algorithm 2.
    """

    grid: Grid
    adjoint: diffrax.AbstractAdjoint

    def __init__(
        self,
        num_steps: int | None = None,
        *,
        spacing: Spacing | None = None,
        times: Any = None,
        adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),
    ):
        r"""**Arguments:**

        - `num_steps`, `spacing`, `times`: the times, as for [`eqdiff.Grid`][]; 20 of
            [`eqdiff.log_snr_times`][] by default.
        - `adjoint`: how a sample is differentiated.

        **Raises:** as [`eqdiff.Grid`][].
        """
        self.grid = grid_of(
            self, num_steps, spacing, times, default=20, default_spacing=log_snr_times
        )
        self.adjoint = adjoint

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
        if len(times) == 1:
            return x1[None]
        process = denoiser.process
        clock = (0.5 * jax.vmap(process.log_snr)(times)).astype(x1.dtype)
        with adjoint_named(self, self.adjoint):
            solution = diffrax.diffeqsolve(
                data_prediction(denoiser),
                DPMSolverPP2M(),
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
