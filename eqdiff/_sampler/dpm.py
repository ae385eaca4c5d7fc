"""DPM-Solver++: the probability flow by an explicit multistep method."""

from typing import Any

import diffrax
import equinox as eqx

from .. import _term
from .._process import log_snr_times
from .grid import Grid, grid_of, Spacing
from .multistep import AbstractMultistep


class DPMSolverPP(AbstractMultistep):
    r"""DPM-Solver++(2M) or (3M): second or third order at one network call per step, on any
    process. Deterministic.

    Times are evenly spaced in the log-SNR unless given. The sample is $\hat x_0$ at the last of
    them.

    **Example:**

    ```python
    x0 = eqd.DPMSolverPP(10)(eqd.GaussianDenoiser(eqd.VPSDE()), jnp.ones(3))
    ```

    ??? cite "Reference"

        Lu et al., *DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
        Models*, 2022, algorithm 2.
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
        - `order`: 2 or 3; the third is for samples without strong guidance. The official (3M) takes
            half of its last term, and is of second order.
        - `adjoint`: how a sample is differentiated.

        **Raises:** `ValueError` for another order, and as [`eqdiff.Grid`][].
        """
        if order not in (2, 3):
            raise ValueError(f"DPMSolverPP(order={order}): expected 2 or 3.")
        self.grid = grid_of(
            self, num_steps, spacing, times, default=20, default_spacing=log_snr_times
        )
        self.adjoint, self.order = adjoint, order

    def solver(self) -> diffrax.AbstractSolver:
        return _term.DPMSolverPP(self.order)
