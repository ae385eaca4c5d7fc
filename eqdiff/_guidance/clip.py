r"""Static thresholding.

$$\hat x_0 \leftarrow \min(\max(\hat x_0, \text{low}), \text{high}), \tag{1}$$

and $\hat\varepsilon$ moved so that $x = \alpha\hat x_0 + \sigma\hat\varepsilon$ still holds (Ho et
al. 2020, official code).
"""

import equinox as eqx
import jax.numpy as jnp

from .._denoiser import AbstractDenoiser, AbstractWrapper, Estimate
from .._types import Args, Example, Key, Time


class Clip(AbstractWrapper):
    r"""Clips $\hat x_0$ to the range of the data, equation (1).

    What both papers' samplers do with images. Not for likelihoods or encoding: a clipped flow is
    not invertible.

    The official code leaves one mean as it is when it clips: where the network predicts the mean
    itself ([`eqdiff.PreviousMean`][]) it clips the $\hat x_0$ that it reports, not the mean that it
    samples from. Here the estimate is clipped for every parameterisation, and every sampler steps
    from it. For the official samples leave such a denoiser unwrapped.
    """

    denoiser: AbstractDenoiser
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)

    def __init__(self, denoiser: AbstractDenoiser, low: float = -1.0, high: float = 1.0):
        r"""**Arguments:**

        - `denoiser`: the denoiser to wrap.
        - `low`, `high`: the range of the data.

        **Raises:** `ValueError` unless `low < high`.
        """
        if not low < high:
            raise ValueError(f"Clip(low={low}, high={high}): expected low < high.")
        self.denoiser, self.low, self.high = denoiser, low, high

    def __call__(
        self, t: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Estimate:
        estimate = self.denoiser(t, x, args, key=key)
        clipped = jnp.clip(estimate.x0, self.low, self.high)
        return self.moved(estimate, t, clipped - estimate.x0)
