"""UniPC: the probability flow by a multistep predictor and corrector."""

from typing import Any

import diffrax
import equinox as eqx

from .. import _term
from .._process import log_snr_times
from .grid import Grid, grid_of, Spacing
from .multistep import AbstractMultistep


class UniPC(AbstractMultistep):
    r"""UniPC in data prediction ("bh2"): one order more than [`eqdiff.DPMSolverPP`][] at the same
    one network call per step, on any process. Deterministic.

    Times are evenly spaced in the log-SNR unless given. The sample is $\hat x_0$ at the last of
    them.

    **Example:**

    ```python
    x0 = eqd.UniPC(10)(eqd.GaussianDenoiser(eqd.VPSDE()), jnp.ones(3))
    ```

    ??? cite "Reference"

        Zhao et al., *UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion
        Models*, NeurIPS 2023.
    """

    grid: Grid
    adjoint: diffrax.AbstractAdjoint
    order: int = eqx.field(static=True)

    def __init__(
        self,
        num_steps: int | None = None,
        *,
        order: int = 2,
        spacing: Spacing | None = None,
        times: Any = None,
        adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),
    ):
        r"""**Arguments:**

        - `num_steps`, `spacing`, `times`: the times, as for [`eqdiff.Grid`][]; 20 of
            [`eqdiff.log_snr_times`][] by default.
        - `order`: of the predictor, 1, 2 or 3; the corrector has one more. 2 is the authors' choice
            for guided sampling, 3 for unconditional.
        - `adjoint`: how a sample is differentiated.

        **Raises:** `ValueError` for another order, and as [`eqdiff.Grid`][].
        """
        if order not in (1, 2, 3):
            raise ValueError(f"UniPC(order={order}): expected 1, 2 or 3.")
        self.grid = grid_of(
            self, num_steps, spacing, times, default=20, default_spacing=log_snr_times
        )
        self.adjoint, self.order = adjoint, order

    def solver(self) -> diffrax.AbstractSolver:
        return _term.UniPC(self.order)
