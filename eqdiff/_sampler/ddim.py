r"""DDIM, for every process.

$$x_s = \alpha_s\hat x_0 + \sqrt{\sigma_s^2 - \varsigma^2}\,\hat\varepsilon + \varsigma z, \qquad
  \varsigma^2 = \eta^2\,\frac{\sigma_s^2}{\sigma_t^2}
    \left(\sigma_t^2 - \frac{\alpha_t^2}{\alpha_s^2}\sigma_s^2\right)
  = -\eta^2\sigma_s^2\,\mathrm{expm1}(\lambda_t - \lambda_s) \tag{1}$$

(Song, Meng & Ermon 2021, equations 12 and 16, written for any α and σ; the right-hand form does not
cancel on fine grids). At $\eta = 0$ this is Euler's method on
$\mathrm d(x/\alpha) = \hat\varepsilon\,\mathrm d(\sigma/\alpha)$, the probability flow in the clock
$\sigma/\alpha$; at $\eta = 1$ it is ancestral sampling with variance $\tilde\beta$. The last step
goes to $\alpha = 1$, $\sigma = 0$.

The same Euler steps in the other direction, $s > t$, encode: from data to the latent that decodes
to them,

$$x_s = \alpha_s\hat x_0(t, x_t) + \sigma_s\hat\varepsilon(t, x_t), \tag{2}$$

the inverse of (1) up to the error of a step, since each evaluates the denoiser at the other's end
(Song, Meng & Ermon 2021, section 4.3).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._check import check_fraction
from .._denoiser import AbstractDenoiser
from .._types import Args, Example
from .base import AbstractChain, check_call
from .grid import Grid, grid_of, Spacing


class DDIM(AbstractChain):
    r"""DDIM,
    $x_s = \alpha_s\hat x_0 + \sqrt{\sigma_s^2-\varsigma^2}\,\hat\varepsilon + \varsigma z$, on any
    process.

    Each step costs one network call. At η = 0 it is deterministic, needs no key, and has `encode`
    as its inverse.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    x0 = eqd.DDIM(20)(denoiser, jax.random.normal(jax.random.key(0), (3,)))
    ```

    ??? cite "Reference"

        Song, Meng & Ermon, *Denoising Diffusion Implicit Models*, ICLR 2021, equations 12 and 16.
    """

    grid: Grid
    eta: float = eqx.field(static=True)

    def __init__(
        self,
        num_steps: int | None = None,
        *,
        eta: float = 0.0,
        spacing: Spacing | None = None,
        times: Any = None,
    ):
        r"""**Arguments:**

        - `num_steps`, `spacing`, `times`: the times, as for [`eqdiff.Grid`][]; 50 evenly spaced
            ones by default. `DDIM(times=ddim_timesteps(1000, 50)[::-1])` is the official "ddim50".
        - `eta`: η in $[0, 1]$: 0 is deterministic, 1 has the noise of ancestral sampling.

        **Raises:** `ValueError` for η outside $[0, 1]$, and as [`eqdiff.Grid`][].
        """
        check_fraction(self, eta=eta)
        self.grid = grid_of(self, num_steps, spacing, times, default=50)
        self.eta = float(eta)

    @property
    def random(self) -> bool:
        return self.eta > 0

    @property
    def num_calls(self) -> int | None:
        return self.grid.num_steps

    def step(self, denoiser, step, x, args, *, key):
        estimate = denoiser(step.t, x, args)
        # The last λ_s is ∞, where the factor is 1 and σ_s is 0.
        variance = -(self.eta**2) * step.sigma_s**2 * jnp.expm1(-step.log_snr_fall)
        along = jnp.sqrt(jnp.maximum(step.sigma_s**2 - variance, 0))
        x = step.alpha_s * estimate.x0 + along * estimate.noise
        if self.random:
            x = x + jnp.sqrt(variance) * jax.random.normal(key, x.shape, x.dtype)
        return x, estimate.x0

    def encode(self, denoiser: AbstractDenoiser, x0: Example, args: Args = None) -> Example:
        r"""The latent from which this sampler, at η = 0, draws `x0`: equation (2) along its times,
        upwards.

        The data count as a state at the cleanest time, as in the official code, and the latent is a
        state at the noisiest, where sampling begins. That takes one network call fewer than there
        are times. (The official code goes on to $\bar\alpha = 0$: its latent is `denoiser(t1,
        z).noise` of this one.)

        Decoding returns `x0` up to an error of first order in the steps, and one of order
        $\sigma_{t_0}^2$ because the data lack the noise of the cleanest time. Do not encode through
        [`eqdiff.Clip`][], which cannot be undone. To choose the error, use
        `ProbabilityFlow(rtol=..., atol=...).encode`.

        **Arguments:**

        - `denoiser`: any denoiser.
        - `x0`: one example of data.
        - `args`: the network's conditioning, if any.

        **Returns:** the latent, shaped like `x0`.

        **Raises:** `ValueError` for η > 0, whose chain has no inverse.
        """
        if self.random:
            raise ValueError(
                f"DDIM(eta={self.eta:g}).encode: noise cannot be undone; write "
                f"DDIM({self.grid.num_steps}).encode."
            )
        check_call("DDIM.encode", denoiser, x0)
        times = self.grid.times(denoiser.process)[::-1]
        levels = jax.vmap(lambda t: denoiser.process.levels(t, like=x0))(times[1:])

        def body(x, inputs):
            t, (alpha, sigma) = inputs
            estimate = denoiser(t, x, args)
            return alpha * estimate.x0 + sigma * estimate.noise, None

        return jax.lax.scan(body, x0, (times[:-1], levels))[0]
