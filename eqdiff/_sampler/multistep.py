r"""Fast deterministic sampling with a multistep method.

DPM-Solver++(2M), the Diffrax solver of `_solver/dpm.py`, along given times: at each the denoiser is called once, its estimate and the
one before extrapolate half a step ahead, and the last step goes to the data by $\hat x_0$.
"""

import diffrax
import equinox as eqx
import jax
from jaxtyping import Array, Shaped

from .._denoiser import AbstractDenoiser
from .._process import AbstractProcess
from .._solver import data_prediction, DPMSolverPP2M
from .._types import Args, Example, Key
from .base import AbstractSampler, check_call, check_decreasing, check_num_steps
from .times import check_times, log_snr_times


class DPMSolverPP(AbstractSampler):
    r"""DPM-Solver++(2M): second order at one network call per step, on any process. Deterministic.

    ```python
    x0 = eqd.DPMSolverPP(20)(denoiser, x1)
    ```

    Times are evenly spaced in the log-SNR unless given. The sample is $\hat x_0$ at the last of them.

    ??? cite "Reference"

        Lu et al., *DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models*, 2022, algorithm 2.
    """

    num_steps: int = eqx.field(static=True)
    times: Shaped[Array, " n"] | None
    adjoint: diffrax.AbstractAdjoint

    def __init__(
        self,
        num_steps: int = 20,
        *,
        times: Shaped[Array, " n"] | None = None,
        adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),
    ):
        r"""**Arguments:**

        - `num_steps`: the number of network calls, at the times of [`eqdiff.log_snr_times`][].
        - `times`: the decreasing times themselves: see [`eqdiff.karras_times`][] and others.
        - `adjoint`: how a sample is differentiated.

        **Raises:** `ValueError` for less than one step, or times that do not decrease; when called, for times that the process
        does not have.
        """
        check_num_steps("DPMSolverPP", num_steps)
        if times is not None:
            times = check_decreasing("DPMSolverPP", times)
        self.num_steps = num_steps if times is None else len(times)
        self.times, self.adjoint = times, adjoint

    @property
    def num_calls(self) -> int:
        """The number of network calls that make one sample."""
        return self.num_steps

    def _times(self, process: AbstractProcess) -> Shaped[Array, " n"]:
        if self.times is None:
            return log_snr_times(process, self.num_steps)
        return check_times(process, self.times)

    def solve(self, denoiser: AbstractDenoiser, x1: Example, args: Args = None) -> diffrax.Solution:
        r"""The Diffrax solution itself, on states $x/\sigma$ and the clock $\log(\alpha/\sigma)$, before the final denoising.

        **Raises:** `ValueError` for a single time, which leaves nothing to solve.
        """
        process = denoiser.process
        times = self._times(process)
        if len(times) < 2:
            raise ValueError(
                "DPMSolverPP.solve: expected at least two times; with one the sample is x̂0."
            )
        clock = (0.5 * jax.vmap(process.log_snr)(times)).astype(x1.dtype)
        return diffrax.diffeqsolve(
            data_prediction(denoiser),
            DPMSolverPP2M(),
            t0=clock[0],
            t1=clock[-1],
            dt0=None,
            y0=x1 / process.sigma(times[0]).astype(x1.dtype),
            args=args,
            stepsize_controller=diffrax.StepTo(clock),
            max_steps=max(len(times), 16),
            adjoint=self.adjoint,
        )

    def __call__(
        self, denoiser: AbstractDenoiser, x1: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        check_call("DPMSolverPP", denoiser, x1)
        times = self._times(denoiser.process)
        x = x1
        if len(times) > 1:
            solution = self.solve(denoiser, x1, args)
            assert solution.ys is not None
            x = denoiser.process.sigma(times[-1]).astype(x1.dtype) * solution.ys[-1]
        return denoiser(times[-1], x, args).x0
