r"""Networks that were trained on a list of noise levels, for any noise level.

The networks of NCSN and of score_sde's discrete VE runs know $N$ levels by number, from the largest
down,

$$\sigma_i = \sigma_{\max}\left(\frac{\sigma_{\min}}{\sigma_{\max}}\right)^{i/(N-1)},
  \qquad i = 0, \dots, N - 1. \tag{1}$$

Here the time input of every network of a variance-exploding process is $\log\sigma$, as that of
continuous ones is; such a network finds the number of the nearest level itself. Dividing its output
by σ uses the exact σ, which on a level is the same.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Scalar


# σ_min, σ_max and N of equation (1).
SigmaLevels = tuple[float | int, float | int, int]


def level_number(c_noise: Scalar, levels: SigmaLevels) -> Scalar:
    r"""The $i$ of equation (1) whose $\log\sigma_i$ is the nearest to `c_noise`."""
    low, high, number = levels
    i = (math.log(high) - c_noise) * ((number - 1) / math.log(high / low))
    return jnp.clip(jnp.round(i), 0, number - 1)


def divide_by_sigma(output: Float[Array, "..."], c_noise: Scalar) -> Float[Array, "..."]:
    r"""The output over σ, whose logarithm is `c_noise`."""
    return output * jnp.exp(-c_noise).astype(output.dtype)
