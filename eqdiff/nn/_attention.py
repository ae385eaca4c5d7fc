r"""Self-attention over the pixels of an image (Wang et al. 2018; Ho et al. 2020).

With heads of $c$ channels,

$$y = x + W_o\,\mathrm{softmax}\left(\frac{q k^\top}{\sqrt c}\right) v, \qquad
  (q, k, v) = W_{qkv}\,\mathrm{GroupNorm}(x). \tag{1}$$

The output channels of $W_{qkv}$ are ordered $(\{q, k, v\}, \text{head}, c)$ here. Official networks
interleave them in three different ways; that is a matter of their files, and `eqdiff.interop`
permutes the weights. Song's networks multiply the sum $y$ by $1/\sqrt 2$.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from .._types import Key
from ._attend import AbstractAttention, FusedAttention
from ._conv import add_bias, Linear
from ._init import Init, torch_default, zeros
from ._norm import GroupNorm, Groups


def split_heads(
    qkv: Float[Array, "tokens channels"], num_heads: int
) -> tuple[Float[Array, "tokens heads c"], ...]:
    """Queries, keys and values of every head, from the channels in equation (1)'s order."""
    parts = jnp.split(qkv, 3, axis=-1)
    return tuple(rearrange(a, "tokens (heads c) -> tokens heads c", heads=num_heads) for a in parts)


class AttentionBlock(eqx.Module):
    """Equation (1)."""

    norm: GroupNorm
    qkv: Linear
    out: Linear
    kernel: AbstractAttention = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        groups: Groups = 32,
        eps: float = 1e-5,
        scale: float = 1.0,
        kernel: AbstractAttention = FusedAttention(),
        init: Init = torch_default,
        out_init: Init = zeros,
        bias_init: Init | None = None,
        key: Key,
    ):
        """**Arguments:**

        - `channels`: of the image; a multiple of `num_heads`.
        - `num_heads`: how many heads.
        - `groups`, `eps`: of the group normalisation.
        - `scale`: of the sum of both branches.
        - `kernel`: what computes the softmax and its products.
        - `init`, `out_init`, `bias_init`: of the maps into and out of the attention, and of the
            biases of both (by default as their weights).
        - `key`: a PRNG key.
        """
        if num_heads < 1 or channels % num_heads != 0:
            raise ValueError(
                f"{channels} channels cannot be split into {num_heads} heads of equal size; "
                "use a num_heads that divides every width with attention."
            )
        key1, key2 = jax.random.split(key)
        self.norm = GroupNorm(channels, groups, eps=eps)
        self.qkv = Linear(channels, 3 * channels, init=init, bias_init=bias_init, key=key1)
        self.out = Linear(channels, channels, init=out_init, bias_init=bias_init, key=key2)
        self.kernel, self.num_heads, self.scale = kernel, num_heads, scale

    def __call__(self, x: Float[Array, "*spatial channels"]) -> Float[Array, "*spatial channels"]:
        # All pixels are tokens, whatever the number of spatial axes.
        h = jnp.reshape(self.norm(x), (-1, x.shape[-1]))
        # Biases are added where an image is read anyway: to the parts of a product, to what it is
        # added to.
        parts = split_heads(self.qkv.without_bias(h), self.num_heads)
        if self.qkv.bias is not None:
            biases = split_heads(self.qkv.bias[None], self.num_heads)
            parts = [add_bias(a, b[0]) for a, b in zip(parts, biases, strict=True)]
        h = rearrange(self.kernel(*parts), "tokens heads c -> tokens (heads c)")
        y = add_bias(x, self.out.bias) + jnp.reshape(self.out.without_bias(h), x.shape)
        return y if self.scale == 1 else self.scale * y
