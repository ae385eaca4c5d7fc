r"""Classifier-free guidance for flow matching.

The velocity $v = \dot\alpha\hat x_0 + \dot\sigma\hat\varepsilon$ without a condition is first
rescaled so that it is nearest to the one with,

$$v = s^*v_\varnothing + s\,(v_y - s^*v_\varnothing), \qquad
  s^* = \frac{\langle v_y, v_\varnothing\rangle}{\|v_\varnothing\|^2}, \tag{1}$$

and in a first fraction of the time, where zero is a better guess than the network's velocity, it is
zero (Fan et al. 2025, equations 7 to 9).
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._check import check_finite
from .._denoiser import AbstractDenoiser, AbstractWrapper, Estimate
from .._parameterisation import PredictFlow
from .._types import Args, Example, Key, Time
from .classifier_free import both, dot, ratio


class ZeroStarClassifierFree(AbstractWrapper):
    r"""CFG-Zero*, equation (1), for flow matching.

    Two network calls. At scale 1 it is the conditional model after the first fraction.

    **Example:**

    ```python
    conditions = eqd.nn.ClassCondition(10, dropout=0.1)
    net = eqd.nn.MLP(2, 2, conditions=conditions, key=jax.random.key(0))
    denoiser = eqd.Denoiser(net, eqd.RectifiedFlow(), eqd.PredictFlow())
    guided = eqd.ZeroStarClassifierFree(denoiser, 3.0)
    ```

    ??? cite "Reference"

        Fan et al., *CFG-Zero\*: Improved Classifier-Free Guidance for Flow Matching Models*, 2025.
    """

    denoiser: AbstractDenoiser
    scale: float | Array
    null: Args
    zero_fraction: float = eqx.field(static=True)

    def __init__(
        self,
        denoiser: AbstractDenoiser,
        scale: float | Array,
        null: Args = None,
        *,
        zero_fraction: float = 0.04,
    ):
        r"""**Arguments:**

        - `denoiser`, `scale`, `null`: as for [`eqdiff.ClassifierFree`][].
        - `zero_fraction`: the fraction of $[t_0, t_1]$, from $t_1$ down, in which the velocity is
            zero; 0 for nowhere.

        **Raises:** `ValueError` for a scale that is not finite or a fraction outside $[0, 1)$.
        """
        check_finite(self, scale=scale)
        if not 0 <= zero_fraction < 1:
            raise ValueError(
                f"ZeroStarClassifierFree(zero_fraction={zero_fraction}): expected 0 to less than 1."
            )
        self.denoiser, self.scale, self.null = denoiser, scale, null
        self.zero_fraction = float(zero_fraction)

    def __call__(
        self, t: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Estimate:
        given, null = both(self, t, x, args, key)
        process, flow = self.process, PredictFlow()
        v_given = flow.target(process, t, given.x0, given.noise)
        v_null = flow.target(process, t, null.x0, null.noise)
        v_null = ratio(dot(v_given, v_null), dot(v_null, v_null)) * v_null
        v = v_given + (jnp.asarray(self.scale, x.dtype) - 1) * (v_given - v_null)
        if self.zero_fraction > 0:
            first = process.t1 - self.zero_fraction * (process.t1 - process.t0)
            v = jnp.where(jnp.asarray(t) > first, 0, v)
        return Estimate(*flow.estimate(process, t, x, v), given.raw_variance)
