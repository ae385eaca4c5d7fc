r"""The residual block of Improved DDPM.

$$h = \mathrm{conv}(\mathrm{SiLU}(\mathrm{GN}(x))), \qquad
  y = \mathrm{skip}(x) + \mathrm{conv}_0(\mathrm{drop}(\mathrm{SiLU}(
      (1 + s)\,\mathrm{GN}(h) + b))), \qquad (s, b) = W\,\mathrm{SiLU}(e), \tag{1}$$

where $e$ embeds the time and the class, $\mathrm{conv}_0$ starts at zero, and the skip is the
identity or a 1×1 convolution. Without scale-shift norm the embedding is added before the
normalisation, $\mathrm{GN}(h + W\, \mathrm{SiLU}(e))$, as in Ho et al. (2020).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Key
from ._conv import Conv, Linear
from ._dropout import dropout
from ._init import Init, torch_default, zeros
from ._norm import GroupNorm


class ResBlock(eqx.Module):
    """Equation (1)."""

    norm1: GroupNorm
    conv1: Conv
    embedding: Linear
    norm2: GroupNorm
    conv2: Conv
    skip: Linear | None
    dropout: float = eqx.field(static=True)
    scale_shift_norm: bool = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_size: int,
        *,
        dropout: float = 0.0,
        scale_shift_norm: bool = True,
        groups: int = 32,
        eps: float = 1e-5,
        init: Init = torch_default,
        out_init: Init = zeros,
        key: Key,
    ):
        """**Arguments:**

        - `in_channels`, `out_channels`: of the image.
        - `embedding_size`: of $e$.
        - `dropout`: a probability.
        - `scale_shift_norm`: whether the embedding scales and shifts the second normalisation, or
            is added before it.
        - `groups`, `eps`: of the group normalisations.
        - `init`, `out_init`: of all maps but the last, and of the last one.
        - `key`: a PRNG key.
        """
        key1, key2, key3, key4 = jax.random.split(key, 4)
        size = 2 * out_channels if scale_shift_norm else out_channels
        self.norm1 = GroupNorm(in_channels, groups, eps=eps)
        self.conv1 = Conv(in_channels, out_channels, init=init, key=key1)
        self.embedding = Linear(embedding_size, size, init=init, key=key2)
        self.norm2 = GroupNorm(out_channels, groups, eps=eps)
        self.conv2 = Conv(out_channels, out_channels, init=out_init, key=key3)
        if in_channels == out_channels:
            self.skip = None
        else:
            self.skip = Linear(in_channels, out_channels, init=init, key=key4)
        self.dropout = dropout
        self.scale_shift_norm = scale_shift_norm

    def __call__(
        self,
        x: Float[Array, "height width in"],
        embedding: Float[Array, " size"],
        key: Key | None = None,
    ) -> Float[Array, "height width out"]:
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        e = self.embedding(jax.nn.silu(embedding))
        if self.scale_shift_norm:
            scale, shift = jnp.split(e, 2)
            h = self.norm2(h, scale, shift)
        else:
            h = self.norm2(h + jax.lax.broadcast(e.astype(h.dtype), h.shape[:-1]))
        h = self.conv2(dropout(jax.nn.silu(h), self.dropout, key))
        return h + (x if self.skip is None else self.skip(x))
