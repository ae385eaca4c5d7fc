r"""Group normalisation (Wu & He 2018) with the time-dependent scale and shift of Improved DDPM
(section 4.2).

With the mean $\mu$ and variance $\varsigma^2$ of a group of channels over the whole image, and per
channel a learned $\gamma, \beta$ and an optional $s, b$ made from the time embedding,

$$y = (1 + s)\left(\gamma\,\frac{x - \mu}{\sqrt{\varsigma^2 + \epsilon}} + \beta\right) + b
    = a\,\hat x + c, \tag{1}$$

computed as `_normalise.py` says, in float32 or better, whatever $x$ is.

NCSNv2's InstanceNorm++ (Song & Ermon 2020) normalises every channel, and adds back how its mean
$\mu_c$ compares with the other channels',

$$y_c = \gamma_c\left(\frac{x_c - \mu_c}{\sqrt{\varsigma_c^2 + \epsilon}}
    + \alpha_c\frac{\mu_c - m}{\sqrt{v + \epsilon}}\right) + \beta_c, \tag{2}$$

with $m$ and $v$ the mean and the unbiased variance of the $\mu_c$.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Key
from ._dropout import Dropout
from ._normalise import normalise, Settings


def at_least_float32(dtype: Any) -> Any:
    """Float32, or float64 where that is what the network computes in.

    For normalisation, softmax and embeddings: bfloat16 has three significant digits, too few for
    the mean of a thousand pixels.
    """
    return jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32


# How many groups, or how many for a given number of channels.
Groups = int | Callable[[int], int]


def song_groups(channels: int) -> int:
    """32 groups, but never fewer than four channels in one (NCSN++, and all of EDM's networks)."""
    return max(1, min(channels // 4, 32))


class GroupNorm(eqx.Module):
    """Equation (1) for one channels-last image."""

    weight: Float[Array, " channels"]
    bias: Float[Array, " channels"]
    groups: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(self, channels: int, groups: Groups = 32, *, eps: float = 1e-5):
        """**Arguments:**

        - `channels`: of the image.
        - `groups`: how many, or how many for a given number of channels; must divide `channels`.
        - `eps`: added to the variance: 1e-5 in PyTorch and OpenAI's networks, 1e-6 in Flax and
            Song's.
        """
        groups = groups(channels) if callable(groups) else groups
        if channels % groups != 0:
            valid = [g for g in range(1, min(groups, channels) + 1) if channels % g == 0]
            raise ValueError(
                f"{channels} channels cannot be normalised in {groups} groups; use "
                f"norm_groups={valid[-1]}, or widths that are multiples of {groups}."
            )
        self.weight = jnp.ones((channels,), jnp.float32)
        self.bias = jnp.zeros((channels,), jnp.float32)
        self.groups = groups
        self.eps = eps

    def __call__(
        self,
        x: Float[Array, "*spatial channels"],
        scale: Float[Array, " channels"] | None = None,
        shift: Float[Array, " channels"] | None = None,
        *,
        bias: Float[Array, " channels"] | None = None,
        activation: Callable[[Array], Array] = lambda y: y,
        dropout: Dropout | None = None,
    ) -> Float[Array, "*spatial channels"]:
        """What comes just before and after is part of the call, which then reads the image once.

        **Arguments:**

        - `x`: one image.
        - `scale`, `shift`: $s$ and $b$.
        - `bias`: added to `x` first.
        - `activation`: of the result.
        - `dropout`: after that.
        """
        dtype = at_least_float32(x.dtype)
        a, c = self.weight.astype(dtype), self.bias.astype(dtype)
        if scale is not None:
            a, c = a * (1 + scale.astype(dtype)), c * (1 + scale.astype(dtype))
        if shift is not None:
            c = c + shift.astype(dtype)
        before = jnp.zeros_like(a) if bias is None else bias.astype(dtype)
        settings = Settings(self.groups, self.eps, activation)
        if dropout is None:
            return normalise(x, before, a, c, settings)
        settings = settings._replace(gain=dropout.gain)
        return normalise(x, before, a, c, settings, dropout.keep)


class InstanceNormPlus(eqx.Module):
    """Equation (2) for one channels-last image of at least two channels."""

    alpha: Float[Array, " channels"]
    gamma: Float[Array, " channels"]
    beta: Float[Array, " channels"]
    eps: float = eqx.field(static=True)

    def __init__(self, channels: int, *, eps: float = 1e-5, key: Key):
        """**Arguments:**

        - `channels`: of the image.
        - `eps`: added to both variances.
        - `key`: a PRNG key; α and γ are N(1, 0.02²) at first.
        """
        if channels < 2:
            raise ValueError(
                f"InstanceNorm++ compares channels and needs at least 2, got {channels}."
            )
        noise = jax.random.normal(key, (2, channels), jnp.float32)
        self.alpha, self.gamma = 1 + 0.02 * noise[0], 1 + 0.02 * noise[1]
        self.beta = jnp.zeros((channels,), jnp.float32)
        self.eps = eps

    def __call__(
        self, x: Float[Array, "height width channels"]
    ) -> Float[Array, "height width channels"]:
        dtype, spatial = at_least_float32(x.dtype), x.shape[:-1]
        h = x.astype(dtype)
        means = jnp.mean(h, (0, 1))
        h = h - jax.lax.broadcast(means, spatial)
        a = jax.lax.rsqrt(jnp.mean(h**2, (0, 1)) + self.eps)
        compared = (means - jnp.mean(means)) * jax.lax.rsqrt(jnp.var(means, ddof=1) + self.eps)
        gamma = self.gamma.astype(dtype)
        c = gamma * self.alpha.astype(dtype) * compared + self.beta.astype(dtype)
        a = gamma * a
        return (h * jax.lax.broadcast(a, spatial) + jax.lax.broadcast(c, spatial)).astype(x.dtype)
