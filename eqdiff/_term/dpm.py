r"""The probability flow in data prediction: its linear part is solved exactly.

In the clock $\ell = \log(\alpha/\sigma)$ (half the log-SNR, increasing towards the data) the
probability flow is

$$\mathrm d\!\left(\frac x\sigma\right) = \hat x_0\,\mathrm d\!\left(\frac\alpha\sigma\right)
  = \hat x_0\, e^{\ell}\,\mathrm d\ell, \tag{1}$$

with no linear term left, so that a step of size $h = \ell_1 - \ell_0$ costs only the error of
holding $\hat x_0$ fixed,

$$\frac{x_1}{\sigma_1} = \frac{x_0}{\sigma_0} + \left(e^{\ell_1} - e^{\ell_0}\right) D. \tag{2}$$

With $D = \hat x_0$ at the step's start this is DDIM, of order 1; `multistep.py` has better ones.
"""

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
    `log_snr`, in either direction. With `DPMSolverPP` it is DPM-Solver++, with
    `diffrax.Euler` DDIM.

    **Arguments:**

    - `denoiser`: any denoiser, on any process.
    """
    return _DataPrediction(denoiser)
