r"""Adaptive projected guidance.

Guidance moves an estimate from the conditional one, $\hat x_{0,y}$, by $(s - 1)\Delta$, where
$\Delta = \hat x_{0,y} - \hat x_{0,\varnothing}$. The part of Δ along $\hat x_{0,y}$ only raises
contrast, and at a large $s$ saturates. With $\Delta' = \Delta\min(1, r/\|\Delta\|)$ in its parts
along and across,

$$\hat x_0 = \hat x_{0,y} + (s - 1)\,(\Delta'_\perp + \eta\,\Delta'_\parallel) \tag{1}$$

(Sadat et al. 2025, section 4).
"""

import jax.numpy as jnp
from jaxtyping import Array

from .._check import check_finite, check_positive
from .._denoiser import AbstractDenoiser, AbstractWrapper, Estimate
from .._types import Args, Example, Key, Time
from .classifier_free import both, dot, ratio


class ProjectedClassifierFree(AbstractWrapper):
    r"""Adaptive projected guidance (APG), equation (1): scale 1 is unguided.

    Two network calls. The paper's momentum over steps is left out: a denoiser has no memory.

    **Example:**

    ```python
    conditions = eqd.nn.ClassCondition(10, dropout=0.1)
    net = eqd.nn.MLP(2, 2, conditions=conditions, key=jax.random.key(0))
    denoiser = eqd.Denoiser(net, eqd.VPSDE())
    guided = eqd.ProjectedClassifierFree(denoiser, 3.0)
    ```

    ??? cite "Reference"

        Sadat, Hilliges & Weber, *Eliminating Oversaturation and Artifacts of High Guidance Scales
        in Diffusion Models*, ICLR 2025.
    """

    denoiser: AbstractDenoiser
    scale: float | Array
    null: Args
    parallel: float | Array
    radius: float | Array | None

    def __init__(
        self,
        denoiser: AbstractDenoiser,
        scale: float | Array,
        null: Args = None,
        *,
        parallel: float | Array = 0.0,
        radius: float | Array | None = None,
    ):
        r"""**Arguments:**

        - `denoiser`, `scale`, `null`: as for [`eqdiff.ClassifierFree`][].
        - `parallel`: η, how much of the parallel part is kept: 1 is plain guidance.
        - `radius`: $r > 0$, the longest Δ; by default it may have any length.

        **Raises:** `ValueError` for a scale or η that is not finite, or a radius that is not
        positive.
        """
        check_finite(self, scale=scale, parallel=parallel)
        if radius is not None:
            check_positive(self, radius=radius)
        self.denoiser, self.scale, self.null = denoiser, scale, null
        self.parallel, self.radius = parallel, radius

    def __call__(
        self, t: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Estimate:
        given, null = both(self, t, x, args, key)
        delta = given.x0 - null.x0
        if self.radius is not None:
            square = dot(delta, delta)
            limit = jnp.asarray(self.radius, x.dtype) ** 2
            # The larger of the two, so that no root is taken of 0, which has no derivative.
            delta = delta * jnp.sqrt(limit / jnp.maximum(square, limit))
        along = ratio(dot(delta, given.x0), dot(given.x0, given.x0)) * given.x0
        kept = delta - along + jnp.asarray(self.parallel, x.dtype) * along
        return self.moved(given, t, (jnp.asarray(self.scale, x.dtype) - 1) * kept)
