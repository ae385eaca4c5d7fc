r"""Classifier-free guidance that keeps the spread of the network's prediction.

At a large scale guidance saturates images: its prediction $F$ has a spread that no data have. With
$F_s = F_\varnothing + s\,(F_y - F_\varnothing)$ in the quantity that the network predicts,

$$F = \varphi\,\frac{\operatorname{std}(F_y)}{\operatorname{std}(F_s)}\,F_s
  + (1 - \varphi)\,F_s, \tag{1}$$

standard deviations being over the elements of an example (Lin et al. 2024, equations 14 to 16).
"""

import jax.numpy as jnp
from jaxtyping import Array

from .._check import check_finite
from .._denoiser import AbstractDenoiser, AbstractWrapper, Estimate
from .._types import Args, Example, Key, Scalar, Time
from .classifier_free import both


class RescaledClassifierFree(AbstractWrapper):
    r"""Classifier-free guidance whose prediction keeps the spread of the conditional one, equation
    (1): scale 1 is unguided.

    Two network calls. diffusers calls φ `guidance_rescale`.

    **Example:**

    ```python
    conditions = eqd.nn.ClassCondition(10, dropout=0.1)
    net = eqd.nn.MLP(2, 2, conditions=conditions, key=jax.random.key(0))
    denoiser = eqd.Denoiser(net, eqd.VPSDE())
    guided = eqd.RescaledClassifierFree(denoiser, 3.0)
    ```

    ??? cite "Reference"

        Lin et al., *Common Diffusion Noise Schedules and Sample Steps are Flawed*, WACV 2024,
        section 3.4.
    """

    denoiser: AbstractDenoiser
    scale: float | Array
    null: Args
    rescale: float | Array

    def __init__(
        self,
        denoiser: AbstractDenoiser,
        scale: float | Array,
        null: Args = None,
        *,
        rescale: float | Array = 0.7,
    ):
        r"""**Arguments:**

        - `denoiser`, `scale`, `null`: as for [`eqdiff.ClassifierFree`][].
        - `rescale`: φ: 0 is plain guidance, 1 keeps the spread exactly.

        **Raises:** `ValueError` for a scale or φ that is not finite.
        """
        check_finite(self, scale=scale, rescale=rescale)
        self.denoiser, self.scale, self.null = denoiser, scale, null
        self.rescale = rescale

    def __call__(
        self, t: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Estimate:
        given, null = both(self, t, x, args, key)
        target, process = self.parameterisation.target, self.process
        f_given = target(process, t, given.x0, given.noise)
        f_null = target(process, t, null.x0, null.noise)
        guided = f_given + (jnp.asarray(self.scale, x.dtype) - 1) * (f_given - f_null)
        ratio = jnp.exp(0.5 * (_log_variance(f_given) - _log_variance(guided)))
        guided = (1 + jnp.asarray(self.rescale, x.dtype) * (ratio - 1)) * guided
        return Estimate(*self.parameterisation.estimate(process, t, x, guided), given.raw_variance)


def _log_variance(x: Example) -> Scalar:
    """log Var, with the derivative 0 where all elements are equal."""
    variance = jnp.var(x)
    return jnp.log(jnp.where(variance > 0, variance, jnp.finfo(x.dtype).tiny))
