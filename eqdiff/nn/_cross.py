r"""Attention to the tokens of a condition (Vaswani et al. 2017; Rombach et al. 2022).

With features $h$ of the network and tokens $c$ of the condition,

$$\mathrm{attend}(h, c) = W_o\,\mathrm{softmax}\left(\frac{q k^\top}{\sqrt d} + m\right) v, \qquad
  q = W_q h, \quad (k, v) = W_{kv} c, \tag{1}$$

for each head of $d$ channels; $m$ is 0 for a token and $-\infty$ for padding. In a U-Net it follows
the self-attention of a level, $y = x + \mathrm{attend}(\mathrm{GN}(x), c)$, and $W_o$ starts at
zero where the style says so, as elsewhere; in a DiT every block has a gate for it; a perceptron has
one query, its embedding.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from .._types import Key
from ._conv import Linear
from ._init import Init, torch_default
from ._norm import at_least_float32, GroupNorm


class Context(NamedTuple):
    """What there is to attend to, and whether each is a token, not padding; one is at least."""

    tokens: Float[Array, "tokens size"]
    mask: Bool[Array, " tokens"]


def _attend(q: Array, k: Array, v: Array, mask: Array) -> Array:
    # The heads in front, as in `_attend.py`; cuDNN's kernel is for self-attention.
    wide = at_least_float32(q.dtype)
    q, k, v = (rearrange(a, "tokens heads d -> heads tokens d") for a in (q, k, v))
    logits = jnp.einsum("hqd,hkd->hqk", q, k, preferred_element_type=wide) * q.shape[-1] ** -0.5
    logits = jnp.where(jnp.broadcast_to(mask, logits.shape), logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return rearrange(jnp.einsum("hqk,hkd->hqd", weights, v), "heads tokens d -> tokens (heads d)")


class ContextAttention(eqx.Module):
    """Equation (1)."""

    query: Linear
    key_value: Linear
    out: Linear
    num_heads: int = eqx.field(static=True)

    def __init__(
        self,
        width: int,
        context_size: int,
        num_heads: int,
        *,
        init: Init = torch_default,
        out_init: Init = torch_default,
        bias_init: Init | None = None,
        key: Key,
    ):
        """**Arguments:**

        - `width`: of the features; a multiple of `num_heads`.
        - `context_size`: of the tokens.
        - `num_heads`: how many heads.
        - `init`, `out_init`, `bias_init`: as for `AttentionBlock`.
        - `key`: a PRNG key.
        """
        key1, key2, key3 = jax.random.split(key, 3)
        options: dict[str, Any] = dict(bias_init=bias_init)
        self.query = Linear(width, width, init=init, **options, key=key1)
        self.key_value = Linear(context_size, 2 * width, init=init, **options, key=key2)
        self.out = Linear(width, width, init=out_init, **options, key=key3)
        self.num_heads = num_heads

    def __call__(
        self, h: Float[Array, "features width"], context: Context
    ) -> Float[Array, "features width"]:
        k, v = jnp.split(self.key_value(context.tokens.astype(h.dtype)), 2, axis=-1)
        heads = "tokens (heads d) -> tokens heads d"
        q, k, v = (rearrange(a, heads, heads=self.num_heads) for a in (self.query(h), k, v))
        return self.out(_attend(q, k, v, context.mask))


class CrossAttention(eqx.Module):
    """Equation (1) over all pixels of a U-Net's features, added to them."""

    norm: GroupNorm
    attention: ContextAttention
    scale: float = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "*spatial channels"], context: Context
    ) -> Float[Array, "*spatial channels"]:
        h = jnp.reshape(self.norm(x), (-1, x.shape[-1]))
        y = x + jnp.reshape(self.attention(h, context), x.shape)
        return y if self.scale == 1 else self.scale * y
