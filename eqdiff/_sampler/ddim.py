r"""DDIM, for every process.

$$x_s = \alpha_s\hat x_0 + \sqrt{\sigma_s^2 - \varsigma^2}\,\hat\varepsilon + \varsigma z, \qquad
  \varsigma^2 = \eta^2\,\frac{\sigma_s^2}{\sigma_t^2}\left(\sigma_t^2 - \frac{\alpha_t^2}{\alpha_s^2}\sigma_s^2\right)
  = -\eta^2\sigma_s^2\,\mathrm{expm1}(\lambda_t - \lambda_s) \tag{1}$$

(Song, Meng & Ermon 2021, equations 12 and 16, written for any α and σ; the right-hand form does not cancel on fine grids).
At $\eta = 0$ this is Euler's method on $\mathrm d(x/\alpha) = \hat\varepsilon\,\mathrm d(\sigma/\alpha)$, the probability flow in the
clock $\sigma/\alpha$; at $\eta = 1$ it is ancestral sampling with variance $\tilde\beta$. The last step goes to $\alpha = 1$, $\sigma = 0$.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from .base import AbstractChain, check_num_steps, levels_of


class DDIM(AbstractChain):
    r"""DDIM, $x_s = \alpha_s\hat x_0 + \sqrt{\sigma_s^2-\varsigma^2}\,\hat\varepsilon + \varsigma z$, on any process.

    Each step costs one network call. Deterministic at η = 0, and then needs no key.

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
        times: Shaped[Array, " n"] | None = None,
    ):
        r"""**Arguments:**

        - `num_steps`: the number of network calls, at evenly spaced times.
        - `eta`: η in $[0, 1]$: 0 is deterministic, 1 has the noise of ancestral sampling.
        - `times`: the decreasing times themselves, instead of evenly spaced ones.

        **Raises:** `ValueError` for η outside $[0, 1]$ or less than one step.
        """
        check_num_steps("DDIM", num_steps)
        if not 0 <= eta <= 1:
            raise ValueError(f"DDIM(eta={eta}): expected a number between 0 and 1.")
        self.num_steps = num_steps if times is None else len(times)
        self.eta, self.times = float(eta), times

    @property
    def random(self) -> bool:
        return self.eta > 0

    def steps(self, process):
        times = process.grid(self.num_steps) if self.times is None else self.times
        return times, levels_of(process, times)

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
