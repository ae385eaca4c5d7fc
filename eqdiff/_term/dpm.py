r"""DPM-Solver++(2M): the probability flow with its linear part solved exactly.

In the clock $\ell = \log(\alpha/\sigma)$ (half the log-SNR, increasing towards the data) the
probability flow is

$$\mathrm d\!\left(\frac x\sigma\right) = \hat x_0\,\mathrm d\!\left(\frac\alpha\sigma\right)
  = \hat x_0\, e^{\ell}\,\mathrm d\ell, \tag{1}$$

with no linear term left, so that a step of size $h = \ell_1 - \ell_0$ costs only the error of
holding $\hat x_0$ fixed,

$$\frac{x_1}{\sigma_1} = \frac{x_0}{\sigma_0} + \left(e^{\ell_1} - e^{\ell_0}\right) D. \tag{2}$$

With $D = \hat x_0$ at the step's start this is DDIM, of order 1. With the step before, of size
$h_-$ and estimate $\hat x_{0-}$, the estimate half a step ahead,

$$D = \hat x_0 + \frac{h}{2h_-}\left(\hat x_0 - \hat x_{0-}\right), \tag{3}$$

gives order 2 for the same single network call (Lu et al. 2022b, algorithm 2). Equation (3) knows
nothing of diffusion: it is the two-step Adams–Bashforth method with variable steps. All of (1) lies
in the term.
"""

from collections.abc import Callable
from typing import ClassVar

import diffrax
import jax
import jax.numpy as jnp

from .._denoiser import AbstractDenoiser


class _DataPrediction(diffrax.AbstractTerm):
    """Equation (1): x̂0 against d(α/σ), on states x/σ and the clock log(α/σ)."""

    denoiser: AbstractDenoiser

    def vf(self, t, y, args):
        process = self.denoiser.process
        time = process.time(2 * jnp.asarray(t))
        return self.denoiser(time, process.sigma(time).astype(y.dtype) * y, args).x0

    def contr(self, t0, t1, **kwargs):
        # Of two nearby levels, without subtracting their exponentials.
        return jnp.exp(t0) * jnp.expm1(t1 - t0)

    def prod(self, vf, control):
        return jax.tree.map(lambda leaf: control.astype(leaf.dtype) * leaf, vf)


def data_prediction(denoiser: AbstractDenoiser) -> diffrax.AbstractTerm:
    r"""The probability flow as $\mathrm d(x/\sigma) = \hat x_0\,\mathrm d(\alpha/\sigma)$, equation
    (1).

    The state is $x/\sigma$ and the solver's time $\log(\alpha/\sigma)$, half the process's
    `log_snr`, in either direction. With `DPMSolverPP2M` it is DPM-Solver++(2M), with
    `diffrax.Euler` DDIM.

    **Arguments:**

    - `denoiser`: any denoiser, on any process.
    """
    return _DataPrediction(denoiser)


class DPMSolverPP2M(diffrax.AbstractSolver):
    r"""DPM-Solver++(2M) as a Diffrax solver, for the term `data_prediction`.

    $$y_1 = y_0 + \left(\hat x_0 + \frac{h}{2h_-}(\hat x_0 - \hat x_{0-})\right)
      \left(e^{\ell_1} - e^{\ell_0}\right),$$

    on $y = x/\sigma$ and $\ell = \log(\alpha/\sigma)$: second order, one network call per step, and
    no error estimate, so its steps are given (`diffrax.StepTo`). The first step is DDIM's. On an
    ordinary `diffrax.ODETerm` it is the Adams–Bashforth method.

    ??? cite "Reference"

        Lu et al., *DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
        Models*, 2022, algorithm 2.
    """

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., diffrax.LocalLinearInterpolation]] = (
        diffrax.LocalLinearInterpolation
    )

    def order(self, terms):
        return 2

    def init(self, terms, t0, t1, y0, args):
        # The size of the step before, 0 where there is none, and its estimate.
        return jnp.zeros_like(t0), jax.tree.map(jnp.zeros_like, y0)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        previous_size, previous = solver_state
        size, estimate = t1 - t0, terms.vf(t0, y0, args)
        alone = made_jump | (previous_size == 0)
        # Division only where there is a step before: gradients see the branch not taken too.
        ratio = jnp.where(alone, 0.0, 0.5 * size / jnp.where(alone, 1.0, previous_size))
        ahead = jax.tree.map(
            lambda now, before: now + ratio.astype(now.dtype) * (now - before), estimate, previous
        )
        moved = terms.prod(ahead, terms.contr(t0, t1))
        y1 = jax.tree.map(jnp.add, y0, moved)
        ends = dict(y0=y0, y1=y1)
        return y1, None, ends, (size, estimate), diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)
