r"""Guidance in a limited interval of noise levels.

At high noise guidance collapses samples onto a few modes, and at low noise it costs network calls
and changes nothing. So it is applied where the noise level $\sigma/\alpha$ (EDM's σ) lies between
two bounds (Kynkäänniemi et al. 2024, equation 4):

$$\hat x_0 = \begin{cases} \text{guided} & \text{low} < \sigma_t/\alpha_t \le \text{high} \\
  \text{unguided} & \text{elsewhere.}
  \end{cases} \tag{1}$$
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp

from .._denoiser import AbstractDenoiser, AbstractWrapper, Estimate
from .._process import described, known_to_differ
from .._types import Args, Example, Key, Time


class GuidanceInterval(AbstractWrapper):
    r"""One denoiser for noise levels $\sigma/\alpha$ in (low, high], another elsewhere: equation
    (1).

    Only the active one is called, provided the time is not batched (in samplers it is not).

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    guided = eqd.ClassifierGuidance(denoiser, lambda t, x, y: jnp.sum(x))  # or any other
    limited = eqd.GuidanceInterval(guided, denoiser, low=0.3, high=5.0)
    ```

    ??? cite "Reference"

        Kynkäänniemi et al., *Applying Guidance in a Limited Interval Improves Sample and
        Distribution Quality in Diffusion Models*, NeurIPS 2024.
    """

    guided: AbstractDenoiser
    unguided: AbstractDenoiser
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)

    def __init__(
        self,
        guided: AbstractDenoiser,
        unguided: AbstractDenoiser,
        low: float = 0.0,
        high: float = math.inf,
    ):
        r"""**Arguments:**

        - `guided`, `unguided`: the denoisers inside and outside the interval, of the same process.
        - `low`, `high`: noise levels $\sigma/\alpha$; `low` is outside the interval, `high` inside.

        **Raises:** `ValueError` unless `0 <= low < high`, or for denoisers with different processes
        or kinds of variance.
        """
        if not 0 <= low < high:
            raise ValueError(
                f"GuidanceInterval(low={low}, high={high}): expected noise levels sigma/alpha "
                "with 0 <= low < high."
            )
        variances = type(guided.variance), type(unguided.variance)
        if variances[0] is not variances[1] or known_to_differ(guided.process, unguided.process):
            raise ValueError(
                "GuidanceInterval: both denoisers must have the same process and variance, but "
                f"they are on {described(guided.process)} with {variances[0].__name__}() and on "
                f"{described(unguided.process)} with {variances[1].__name__}(). Make both from "
                "one denoiser."
            )
        self.guided, self.unguided = guided, unguided
        self.low, self.high = float(low), float(high)

    @property
    def denoiser(self) -> AbstractDenoiser:
        return self.guided

    def __call__(
        self, t: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Estimate:
        # log σ/α = −λ/2, which no α or σ near 0 can spoil.
        level = -0.5 * self.process.log_snr(t)
        low = math.log(self.low) if self.low > 0 else -math.inf
        inside = jnp.logical_and(level > low, level <= math.log(self.high))
        return jax.lax.cond(
            inside,
            lambda: self.guided(t, x, args, key=key),
            lambda: self.unguided(t, x, args, key=key),
        )
