r"""Dynamic thresholding.

Strong guidance drives $\hat x_0$ beyond the range of the data, and clipping it saturates the image.
Instead, with $u = (\hat x_0 - m)/r$ the estimate on a scale where the range of the data is
$[-1, 1]$ (m its middle and r half its width),

$$s = \max(1, \mathrm{quantile}_p |u|), \qquad u \leftarrow \min(\max(u, -s), s) / s, \tag{1}$$

each example with its own $s$: saturated elements are drawn inwards and the rest keep their
contrast (Saharia et al. 2022, section 2.3).
"""

import equinox as eqx
import jax.numpy as jnp

from .._denoiser import AbstractDenoiser, AbstractWrapper, Estimate
from .._types import Args, Example, Key, Time


class DynamicThreshold(AbstractWrapper):
    r"""Clips $\hat x_0$ to a quantile of its own magnitude and rescales it to the range of the
    data, equation (1).

    $\hat\varepsilon$ moves with it. If at most a fraction $1 - p$ of the elements lies outside the
    range, they are clipped and nothing is rescaled.

    **Example:**

    ```python
    denoiser = eqd.DynamicThreshold(eqd.GaussianDenoiser(eqd.VPSDE(), std=2.0), 0.9)
    ```

    ??? cite "Reference"

        Saharia et al., *Photorealistic Text-to-Image Diffusion Models with Deep Language
        Understanding* (Imagen), NeurIPS 2022, section 2.3.
    """

    denoiser: AbstractDenoiser
    percentile: float = eqx.field(static=True)
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)

    def __init__(
        self,
        denoiser: AbstractDenoiser,
        percentile: float = 0.995,
        low: float = -1.0,
        high: float = 1.0,
    ):
        r"""**Arguments:**

        - `denoiser`: the denoiser to wrap, usually guided.
        - `percentile`: $p$ as a fraction: the part of the elements that are not saturated.
        - `low`, `high`: the range of the data.

        **Raises:** `ValueError` unless `0 < percentile <= 1` and `low < high`.
        """
        if not 0 < percentile <= 1:
            raise ValueError(
                f"DynamicThreshold(percentile={percentile}): expected a fraction between 0 and 1, "
                "such as 0.995 for 99.5 %."
            )
        if not low < high:
            raise ValueError(f"DynamicThreshold(low={low}, high={high}): expected low < high.")
        self.denoiser, self.percentile = denoiser, float(percentile)
        self.low, self.high = low, high

    def __call__(
        self, t: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Estimate:
        estimate = self.denoiser(t, x, args, key=key)
        middle, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        u = (estimate.x0 - middle) / half
        p = jnp.asarray(self.percentile, u.dtype)
        scale = jnp.maximum(jnp.quantile(jnp.abs(u), p), 1)
        moved = middle + half * jnp.clip(u, -scale, scale) / scale
        # Where nothing is saturated δ is exactly 0, not the rounding of u.
        delta = jnp.where((scale > 1) | (jnp.abs(u) > 1), moved - estimate.x0, 0)
        return self.moved(estimate, t, delta)
