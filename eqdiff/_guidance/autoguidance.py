r"""Guidance by a worse version of the network itself.

A smaller or less trained network for the same task makes the same mistakes, only larger ones.
Extrapolated away from it, through the good network,

$$\hat x_0 = \hat x_{0,\text{bad}} + s\,(\hat x_{0,\text{good}} - \hat x_{0,\text{bad}}), \tag{1}$$

samples leave what both get wrong (Karras et al. 2024, equation 3), without the loss of variety that
comes with guidance away from the unconditional model. Here too **s = 1 is unguided**.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._check import check_finite
from .._denoiser import AbstractDenoiser, AbstractWrapper, Estimate
from .._process import described, known_to_differ
from .._types import Args, Example, Key, Time


class AutoGuidance(AbstractWrapper):
    r"""Extrapolates from a worse denoiser through a good one, equation (1): scale 1 is unguided.

    Two network calls. A worse network is one of fewer channels, or an early checkpoint
    ([`eqdiff.train.Checkpointer`][]); both must have been trained on the same data. Where the worse
    one is unconditional, write `eqd.FixedArgs(worse)`. A learned variance is the good one's.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE(), 1.0, 0.5)
    worse = eqd.GaussianDenoiser(eqd.VPSDE(), 0.5, 1.0)
    guided = eqd.AutoGuidance(denoiser, worse, 2.0)
    ```

    ??? cite "Reference"

        Karras et al., *Guiding a Diffusion Model with a Bad Version of Itself*, NeurIPS 2024.
    """

    denoiser: AbstractDenoiser
    worse: AbstractDenoiser
    scale: float | Array

    def __init__(
        self, denoiser: AbstractDenoiser, worse: AbstractDenoiser, scale: float | Array = 2.0
    ):
        r"""**Arguments:**

        - `denoiser`, `worse`: the good and the bad one, of one process.
        - `scale`: $s$ of equation (1).

        **Raises:** `ValueError` for a scale that is not finite, and for denoisers of different
        processes.
        """
        check_finite(self, scale=scale)
        if known_to_differ(denoiser.process, worse.process):
            raise ValueError(
                "AutoGuidance: both denoisers must have the same process, but they are on "
                f"{described(denoiser.process)} and on {described(worse.process)}. Put one on "
                "the other's with eqdiff.on."
            )
        self.denoiser, self.worse, self.scale = denoiser, worse, scale

    def __call__(
        self, t: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Estimate:
        good = self.denoiser(t, x, args, key=key)
        bad = self.worse(t, x, args, key=key)
        further = jnp.asarray(self.scale, x.dtype) - 1
        x0, noise = jax.tree.map(
            lambda a, b: a + further * (a - b), (good.x0, good.noise), (bad.x0, bad.noise)
        )
        return Estimate(x0, noise, good.raw_variance)
