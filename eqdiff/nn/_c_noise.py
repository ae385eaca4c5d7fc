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
from typing import Any

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from .._types import Args, Example, Key, Scalar, Time
from ._check import check_c_noise, check_class, check_levels
from ._norm import at_least_float32


# σ_min, σ_max and N of equation (1).
SigmaLevels = tuple[float | int, float | int, int]


def check_sigma_levels(levels: SigmaLevels | None, network: str) -> SigmaLevels | None:
    """**Raises:** `ValueError` for levels that are not increasing, positive and at least two."""
    if levels is None:
        return None
    low, high, number = levels
    if not 0 < low < high or number < 2:
        raise ValueError(
            f"{network}: sigma_levels is (sigma_min, sigma_max, how many) with "
            f"0 < sigma_min < sigma_max and at least two, got {levels}."
        )
    return float(low), float(high), int(number)


def level_number(c_noise: Scalar, levels: SigmaLevels) -> Scalar:
    r"""The $i$ of equation (1) whose $\log\sigma_i$ is the nearest to `c_noise`."""
    low, high, number = levels
    i = (math.log(high) - c_noise) * ((number - 1) / math.log(high / low))
    return jnp.clip(jnp.round(i), 0, number - 1)


def divide_by_sigma(output: Float[Array, "..."], c_noise: Scalar) -> Float[Array, "..."]:
    r"""The output over σ, whose logarithm is `c_noise`."""
    return output * jnp.exp(-c_noise).astype(output.dtype)


def run_score_network(
    net: Any, network: str, c_noise: Time, x: Example, args: Args, key: Key | None
) -> Example:
    """What DDPM and NCSN++ do with their arguments, named `network` in errors."""
    dtype = at_least_float32(net.compute_dtype)
    c, embedding = check_c_noise(c_noise, dtype, network), None
    check_levels(x, net.in_channels, len(net.channel_mult), network)
    index = check_class(args, net.num_classes, network)
    if net.time_embedding is not None:
        levels = net.sigma_levels
        number = c if levels is None else level_number(c, levels)
        embedding = net.time_embedding(number, dtype)
        if index is not None:
            embedding = embedding + net.class_embedding(index).astype(dtype)
    h = x if net.centred else 2 * x - 1
    h = rearrange(h, "c height width -> height width c").astype(net.compute_dtype)
    h = net.body(h, embedding, key)
    h = rearrange(h, "height width c -> c height width").astype(dtype)
    return (divide_by_sigma(h, c) if net.scale_by_sigma else h).astype(x.dtype)
