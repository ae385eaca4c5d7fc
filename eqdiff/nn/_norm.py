r"""Group normalisation (Wu & He 2018) with the time-dependent scale and shift of Improved DDPM
(section 4.2).

With the mean $\mu$ and variance $\varsigma^2$ of a group of channels over the whole image, and per
channel a learned $\gamma, \beta$ and an optional $s, b$ made from the time embedding,

$$y = (1 + s)\left(\gamma\,\frac{x - \mu}{\sqrt{\varsigma^2 + \epsilon}} + \beta\right) + b
    = a\,(x - \mu) + c, \tag{1}$$

whose right-hand side has one multiplication per pixel. Statistics are float32 or better, whatever
$x$ is.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._precision import at_least_float32


class GroupNorm(eqx.Module):
    """Equation (1) for one channels-last image."""

    weight: Float[Array, " channels"]
    bias: Float[Array, " channels"]
    groups: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(self, channels: int, groups: int = 32, *, eps: float = 1e-5):
        """**Arguments:**

        - `channels`: of the image.
        - `groups`: how many; must divide `channels`.
        - `eps`: added to the variance: 1e-5 in PyTorch and OpenAI's networks, 1e-6 in Flax and
            Song's.
        """
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

    def _over_group(self, x: Float[Array, " channels"]) -> Float[Array, " channels"]:
        # The mean over the channels of each group, repeated for each of them.
        size = x.size // self.groups
        mean = jnp.mean(jnp.reshape(x, (self.groups, size)), axis=1, keepdims=True)
        return jnp.reshape(jnp.broadcast_to(mean, (self.groups, size)), x.shape)

    def __call__(
        self,
        x: Float[Array, "*spatial channels"],
        scale: Float[Array, " channels"] | None = None,
        shift: Float[Array, " channels"] | None = None,
    ) -> Float[Array, "*spatial channels"]:
        dtype = at_least_float32(x.dtype)
        spatial = x.shape[:-1]
        axes = tuple(range(len(spatial)))
        h = x.astype(dtype)
        # Two passes: E[x²] − E[x]² would lose digits where a channel's mean is large.
        mean = self._over_group(jnp.mean(h, axes))
        h = h - jax.lax.broadcast(mean, spatial)
        variance = self._over_group(jnp.mean(h**2, axes))
        a = self.weight.astype(dtype) * jax.lax.rsqrt(variance + self.eps)
        c = self.bias.astype(dtype)
        if scale is not None:
            a, c = a * (1 + scale.astype(dtype)), c * (1 + scale.astype(dtype))
        if shift is not None:
            c = c + shift.astype(dtype)
        return (h * jax.lax.broadcast(a, spatial) + jax.lax.broadcast(c, spatial)).astype(x.dtype)
