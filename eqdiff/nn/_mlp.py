r"""A residual perceptron for vectors, conditioned on the time and on what `_conditions.py` has.

$$h_0 = W_0 x, \qquad
  h_{i+1} = h_i + W_2\,\mathrm{SiLU}(W_1\,\mathrm{SiLU}((1 + s_i)\,\mathrm{LN}(h_i) + b_i)), \qquad
  F = W_F\,\mathrm{SiLU}(\mathrm{LN}(h_n)), \tag{1}$$

with $(s_i, b_i)$ linear in the embedding $e$, as in the U-Net. $W_2$ and $W_F$ start at zero. A
class or a vector is embedded and added to $e$; tokens are pooled by attention (`_cross.py`), whose
one query is that embedding, and added too.

**Time inputs of any scale.** Conventions differ: $[0, 1000]$, $[0, 1]$, $\log\sigma$ of either
sign. The time input $c = c_\text{noise}$ is embedded twice, and the perceptron that follows picks
what it needs:

- by sinusoids of $c$ with frequencies $10^{-4}, \dots, 1$, which tell $c = 400$ from $c = 401$, and
  vary slowly over a log-noise level, as EDM's network sees it;
- by sinusoids of $\operatorname{arsinh}(100\,c)$ with frequencies $\tfrac14, \dots, 2$, which tell
  $c = 0.01$ from $c = 0.02$ and stay smooth in $\log c$ as $c$ grows.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Args, Example, Key, Scalar, Time
from ._check import check_c_noise, check_class
from ._conditioning import (
    all_conditions,
    build_conditions,
    conditions_of,
    enter,
    has_tokens,
    refuse_both,
)
from ._conditions import FieldCondition
from ._conv import Linear
from ._cross import ContextAttention
from ._embed import ClassEmbedding, sinusoidal_embedding
from ._init import key_stream, zeros
from ._norm import at_least_float32, GroupNorm


_LINEAR_SIZE, _LOG_SIZE = 64, 16


def _embed_c_noise(c_noise: Scalar) -> Float[Array, " size"]:
    linear = sinusoidal_embedding(c_noise, _LINEAR_SIZE, endpoint=True)
    # The second group's frequencies are 2 × 8^(−i/7): a factor of 2 on the argument, and periods up
    # to 8 times longer.
    log = sinusoidal_embedding(
        2 * jnp.arcsinh(100 * c_noise), _LOG_SIZE, endpoint=True, max_period=8.0
    )
    return jnp.concatenate([linear, log])


class Block(eqx.Module):
    """One step of equation (1)."""

    norm: GroupNorm
    embedding: Linear
    linear1: Linear
    linear2: Linear

    def __init__(self, width: int, *, key: Key):
        key1, key2, key3 = jax.random.split(key, 3)
        # One group is a layer normalisation.
        self.norm = GroupNorm(width, 1)
        self.embedding = Linear(width, 2 * width, key=key1)
        self.linear1 = Linear(width, width, key=key2)
        self.linear2 = Linear(width, width, init=zeros, key=key3)

    def __call__(
        self, h: Float[Array, " width"], embedding: Float[Array, " width"]
    ) -> Float[Array, " width"]:
        scale, shift = jnp.split(self.embedding(embedding), 2)
        update = self.linear1(self.norm(h, scale, shift, activation=jax.nn.silu))
        return h + self.linear2(jax.nn.silu(update))


class MLP(eqx.Module):
    """A residual network for vectors, such as points in the plane: equation (1).

    The time input may have any scale: it resolves $[0, 1000]$, $[0, 1]$ and logarithms of a noise
    level equally finely.

    **Example:**

    ```python
    net = eqd.nn.MLP(2, 2, width=64, key=jax.random.key(0))
    F = jax.vmap(net)(jnp.array([1.0, 500.0]), jnp.ones((2, 2)))
    ```
    """

    linear_in: Linear
    embedding: tuple[Linear, Linear]
    class_embedding: ClassEmbedding | None
    blocks: tuple[Block, ...]
    norm_out: GroupNorm
    linear_out: Linear
    condition_embeddings: Any
    token_pool: ContextAttention | None
    in_size: int = eqx.field(static=True)
    out_size: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    num_classes: int | None = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        out_size: int,
        width: int = 128,
        depth: int = 3,
        *,
        num_classes: int | None = None,
        conditions: Any = None,
        key: Key,
    ):
        """**Arguments:**

        - `in_size`: of $x$.
        - `out_size`: of $F$; twice `in_size` where a variance is learned.
        - `width`: of the hidden layers.
        - `depth`: how many residual blocks of two layers each.
        - `num_classes`: how many classes there are; `None` for a network without. A class that may
            be missing, or that is not alone, is one of the conditions.
        - `conditions`: [`eqdiff.nn.ClassCondition`][], [`eqdiff.nn.VectorCondition`][] or
            [`eqdiff.nn.TokenCondition`][], or a dictionary or tuple of them; the `args` of a call
            are then their values, in the same places.
        - `key`: a PRNG key.

        **Raises:** `ValueError` for `num_classes` next to conditions, or a field among them.
        """
        refuse_both(conditions, "MLP", num_classes=num_classes)
        keys = key_stream(key)
        self.linear_in = Linear(in_size, width, key=next(keys))
        self.embedding = (
            Linear(_LINEAR_SIZE + _LOG_SIZE, width, key=next(keys)),
            Linear(width, width, key=next(keys)),
        )
        if num_classes is None:
            self.class_embedding = None
        else:
            self.class_embedding = ClassEmbedding(num_classes, width, key=next(keys))
        self.blocks = tuple(Block(width, key=next(keys)) for _ in range(depth))
        self.norm_out = GroupNorm(width, 1)
        self.linear_out = Linear(width, out_size, init=zeros, key=next(keys))
        self.in_size, self.out_size = in_size, out_size
        self.width, self.depth, self.num_classes = width, depth, num_classes
        self.condition_embeddings = build_conditions(conditions, "MLP", width, next(keys))
        if any(isinstance(c, FieldCondition) for c in all_conditions(self.condition_embeddings)):
            raise ValueError(
                "an MLP takes vectors and has no channels to append a field to. Give it the field "
                "as a vector, eqdiff.nn.VectorCondition(field.size), or its pixels as tokens, "
                "eqdiff.nn.TokenCondition(size); or use a UNet."
            )
        self.token_pool = None
        if has_tokens(self.condition_embeddings):
            heads = next(n for n in (4, 2, 1) if width % n == 0)
            self.token_pool = ContextAttention(width, width, heads, key=next(keys))

    @property
    def conditions(self) -> Any:
        """What the network was built with."""
        return conditions_of(self.condition_embeddings)

    def _embed(
        self, c_noise: Scalar, args: Args, dtype: Any, key: Key | None
    ) -> Float[Array, " width"]:
        first, second = self.embedding
        embedding = second(jax.nn.silu(first(_embed_c_noise(c_noise).astype(dtype))))
        if self.class_embedding is not None:
            index = check_class(args, self.num_classes, "MLP")
            assert index is not None
            return embedding + self.class_embedding(index).astype(dtype)
        entered = enter(self.condition_embeddings, args, "MLP", (), dtype, key)
        if entered.vector is not None:
            embedding = embedding + entered.vector
        if self.token_pool is not None and entered.context is not None:
            embedding = embedding + self.token_pool(embedding[None], entered.context)[0]
        return embedding

    @jax.named_scope("eqdiff.nn.MLP")
    def __call__(
        self, c_noise: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        """**Arguments:**

        - `c_noise`: the network's time input, one number of any scale.
        - `x`: one vector, `(in_size,)`.
        - `args`: the values of its conditions, in the places of `conditions`, `None` for a learned
            null; a class, one integer from 0 to `num_classes - 1`, where `num_classes` was given;
            otherwise `None`.
        - `key`: a PRNG key for dropping conditions. Without one, none is dropped.

        **Returns:** $F$, `(out_size,)`, in the dtype of `x`.

        **Raises:** `ValueError` where an argument has the wrong shape, or a condition is missing,
        unexpected or out of range.
        """
        dtype = at_least_float32(x.dtype)
        c_noise = check_c_noise(c_noise, dtype, "MLP")
        if x.shape != (self.in_size,):
            hint = " Batch with jax.vmap(net)(c_noises, xs)." if x.ndim == 2 else ""
            raise ValueError(
                f"this MLP takes one vector of shape ({self.in_size},), got {x.shape}.{hint}"
            )
        embedding = jax.nn.silu(self._embed(c_noise, args, dtype, key))
        h = self.linear_in(x.astype(dtype))
        for block in self.blocks:
            h = block(h, embedding)
        return self.linear_out(self.norm_out(h, activation=jax.nn.silu)).astype(x.dtype)
