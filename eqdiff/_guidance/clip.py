r"""Static thresholding.

$$\hat x_0 \leftarrow \min(\max(\hat x_0, \text{low}), \text{high}), \tag{1}$$

and $\hat\varepsilon$ moved so that $x = \alpha\hat x_0 + \sigma\hat\varepsilon$ still holds (Ho et
al. 2020, official code). diffusers leaves $\hat\varepsilon$ as it is.
"""

import equinox as eqx
import jax.numpy as jnp

from .._check import of
from .._denoiser import AbstractDenoiser, AbstractWrapper, Estimate
from .._types import Args, Example, Key, Time


class Clip(AbstractWrapper):
    r"""Clips $\hat x_0$ to the range of the data, equation (1).

    Both papers' samplers do this with images. Do not use it for likelihoods or encoding: a clipped
    flow is not invertible. diffusers' `clip_sample=True` is [`eqdiff.ClipDataAlone`][]; with
    `use_clipped_model_output=True` it is this.

    The official code makes an exception: where the network predicts the mean itself
    ([`eqdiff.PreviousMean`][]) it clips the $\hat x_0$ that it reports, not the mean that it
    samples from. Here the estimate is clipped for every parameterisation, and every sampler steps
    from it. To reproduce the official samples, leave such a denoiser unwrapped.

    **Example:**

    ```python
    x0 = eqd.Clip(eqd.GaussianDenoiser(eqd.VPSDE(), std=10.0))(0.5, jnp.full(3, 4.0)).x0  # 1 each
    ```
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
        _check(self, low, high)
        self.denoiser, self.low, self.high = denoiser, low, high

    def __call__(
        self, t: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Estimate:
        estimate = self.denoiser(t, x, args, key=key)
        clipped = jnp.clip(estimate.x0, self.low, self.high)
        return self.moved(estimate, t, clipped - estimate.x0)


class ClipDataAlone(AbstractWrapper):
    r"""Clips $\hat x_0$ and leaves $\hat\varepsilon$ as it is: diffusers' `clip_sample=True`.

    Use it to reproduce a diffusers pipeline. What it returns does not satisfy $x = \alpha\hat x_0 +
    \sigma\hat\varepsilon$, so it matters to samplers that use both, such as [`eqdiff.DDIM`][],
    whose samples differ from those with [`eqdiff.Clip`][] where much is clipped. Ancestral sampling
    uses $\hat x_0$ alone, and gives the same with either.

    **Example:**

    ```python
    denoiser = eqd.ClipDataAlone(eqd.GaussianDenoiser(eqd.VPSDE()))
    ```

    ??? cite "Reference"

        diffusers, `DDIMScheduler.step` with `use_clipped_model_output=False`, its default.
    """

    denoiser: AbstractDenoiser
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)

    def __init__(self, denoiser: AbstractDenoiser, low: float = -1.0, high: float = 1.0):
        r"""**Arguments and errors:** as for [`eqdiff.Clip`][]; diffusers' `clip_sample_range` of
        $r$ is `low=-r, high=r`.
        """
        _check(self, low, high)
        self.denoiser, self.low, self.high = denoiser, low, high

    def __call__(
        self, t: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Estimate:
        estimate = self.denoiser(t, x, args, key=key)
        x0 = jnp.clip(estimate.x0, self.low, self.high)
        return Estimate(x0, estimate.noise, estimate.raw_variance)


def _check(owner: AbstractWrapper, low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"{of(owner)}(low={low}, high={high}): expected low < high.")
