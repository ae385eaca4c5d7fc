r"""DDIM, for every process.

$$x_s = \alpha_s\hat x_0 + \sqrt{\sigma_s^2 - \varsigma^2}\,\hat\varepsilon + \varsigma z, \qquad
  \varsigma^2 = \eta^2\,\frac{\sigma_s^2}{\sigma_t^2}\left(\sigma_t^2 - \frac{\alpha_t^2}{\alpha_s^2}\sigma_s^2\right)
  = -\eta^2\sigma_s^2\,\mathrm{expm1}(\lambda_t - \lambda_s) \tag{1}$$

(Song, Meng & Ermon 2021, equations 12 and 16, written for any α and σ; the right-hand form does not cancel on fine grids).
At $\eta = 0$ this is Euler's method on $\mathrm d(x/\alpha) = \hat\varepsilon\,\mathrm d(\sigma/\alpha)$, the probability flow in the
clock $\sigma/\alpha$; at $\eta = 1$ it is ancestral sampling with variance $\tilde\beta$. The last step goes to $\alpha = 1$, $\sigma = 0$.

The same Euler steps in the other direction, $s > t$, encode: from data to the latent that decodes to them,

$$x_s = \alpha_s\hat x_0(t, x_t) + \sigma_s\hat\varepsilon(t, x_t), \tag{2}$$

the inverse of (1) up to the error of a step, since each evaluates the denoiser at the other's end (Song, Meng & Ermon 2021,
section 4.3).
"""

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from .._denoiser import AbstractDenoiser, check_time
from .._gaussian import is_traced
from .._process import AbstractProcess
from .._types import Args, Example
from .base import AbstractChain, check_call, check_decreasing, check_num_steps, levels_of


class DDIM(AbstractChain):
    r"""DDIM, $x_s = \alpha_s\hat x_0 + \sqrt{\sigma_s^2-\varsigma^2}\,\hat\varepsilon + \varsigma z$, on any process.

    Each step costs one network call. Deterministic at η = 0, and then needs no key, and `encode` is its inverse.

    ??? cite "Reference"

        Song, Meng & Ermon, *Denoising Diffusion Implicit Models*, ICLR 2021, equations 12 and 16.
    """

    num_steps: int = eqx.field(static=True)
    eta: float = eqx.field(static=True)
    times: Shaped[Array, " n"] | None

    def __init__(
        self,
        num_steps: int = 50,
        *,
        eta: float = 0.0,
        times: Shaped[Array, "..."] | Shaped[np.ndarray, "..."] | None = None,
    ):
        r"""**Arguments:**

        - `num_steps`: the number of network calls, at evenly spaced times.
        - `eta`: η in $[0, 1]$: 0 is deterministic, 1 has the noise of ancestral sampling.
        - `times`: the decreasing times themselves, instead of evenly spaced ones: `ddim_timesteps(1000, 50)[::-1]`.

        **Raises:** `ValueError` for η outside $[0, 1]$, less than one step, or times that do not decrease; when called, for
        times that the process does not have.
        """
        check_num_steps("DDIM", num_steps)
        if times is not None:
            times = check_decreasing("DDIM", times)
        if not 0 <= eta <= 1:
            raise ValueError(f"DDIM(eta={eta}): expected a number between 0 and 1.")
        self.num_steps = num_steps if times is None else len(times)
        self.eta, self.times = float(eta), times

    @property
    def random(self) -> bool:
        return self.eta > 0

    def steps(self, process):
        times = self._times(process)
        return times, levels_of(process, times)

    def _times(self, process: AbstractProcess) -> Shaped[Array, " n"]:
        if self.times is None:
            return process.grid(self.num_steps)
        if not is_traced(self.times):
            # NumPy, because an element of a JAX array is traced under jit, and then unknown.
            for t in np.asarray(self.times)[[0, -1]]:
                check_time(process, t.item())
        return self.times

    def step(self, denoiser, t, this, x, args, *, key):
        estimate = denoiser(t, x, args)
        this = jax.tree.map(lambda leaf: leaf.astype(x.dtype), this)
        # The last λ_s is ∞, where the factor is 1 and σ_s is 0.
        variance = -(self.eta**2) * this.next_sigma**2 * jnp.expm1(this.log_snr - this.next_log_snr)
        along = jnp.sqrt(jnp.maximum(this.next_sigma**2 - variance, 0))
        x = this.next_alpha * estimate.x0 + along * estimate.noise
        if self.random:
            x = x + jnp.sqrt(variance) * jax.random.normal(key, x.shape, x.dtype)
        return x, estimate.x0

    def encode(self, denoiser: AbstractDenoiser, x0: Example, args: Args = None) -> Example:
        r"""The latent from which this sampler, at η = 0, draws `x0`: equation (2) along its times, upwards.

        The data are taken for a state at the first time, as in the official code, and the latent is a state at the last one,
        where sampling begins; that makes one network call less than there are times. (The official code goes on to
        $\bar\alpha = 0$: its latent is `denoiser(t1, z).noise` of this one.)

        `decode(encode(x0))` is `x0` but for an error of first order in the steps, and one of order $\sigma_{t_0}^2$ that is
        the noise the data do not have at the first time. Not through [`eqdiff.Clip`][], which cannot be undone. For an error of
        your choice, in continuous time, there is [`eqdiff.encode`][].

        **Arguments:**

        - `denoiser`: any denoiser.
        - `x0`: one example of data.
        - `args`: what conditions the network.

        **Returns:** the latent, shaped like `x0`.

        **Raises:** `ValueError` for η > 0, whose chain has no inverse.
        """
        if self.random:
            raise ValueError(
                f"DDIM(eta={self.eta:g}).encode: noise cannot be undone; write DDIM({self.num_steps}).encode."
            )
        check_call("DDIM.encode", denoiser, x0)
        times = self._times(denoiser.process)[::-1]
        alpha, sigma = (
            jax.vmap(f)(times[1:]) for f in (denoiser.process.alpha, denoiser.process.sigma)
        )

        def body(x, inputs):
            t, alpha, sigma = inputs
            estimate = denoiser(t, x, args)
            return alpha * estimate.x0 + sigma * estimate.noise, None

        levels = alpha.astype(x0.dtype), sigma.astype(x0.dtype)
        return jax.lax.scan(body, x0, (times[:-1], *levels))[0]
