r"""The parameters of a network's conditions, and what each makes of its value.

A condition of `_conditions.py` describes one of these modules. Each returns what it gives a
network: a sum to its embedding, channels to its input, or tokens to attend to.
"""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._types import Key
from ._conditions import (
    AbstractCondition,
    ClassCondition,
    FieldCondition,
    has_null,
    Numbers,
    TokenCondition,
    VectorCondition,
)
from ._conv import Linear
from ._cross import Context
from ._embed import class_row
from ._norm import at_least_float32


class Entered(NamedTuple):
    """What conditions give a network; `None` for nothing.

    - `vector`: added to the embedding.
    - `channels`: further channels of the input, `(channels, *spatial)`.
    - `context`: what there is to attend to.
    """

    vector: Float[Array, " size"] | None = None
    channels: Float[Array, "channels *spatial"] | None = None
    context: Context | None = None


class AbstractConditionEmbedding(eqx.Module):
    """The parameters of one condition."""

    condition: eqx.AbstractVar[AbstractCondition]

    @abc.abstractmethod
    def __call__(
        self, value: Any, keep: Bool[Array, ""] | None, spatial: tuple[int, ...], dtype: Any
    ) -> Entered:
        """**Arguments:**

        - `value`: what the condition read, or `None` for its null.
        - `keep`: whether to use it and not the null; `None` for yes.
        - `spatial`: the sides of the input.
        - `dtype`: of the result.
        """


def _standardised(value: Array, mean: Numbers, std: Numbers, axis: int) -> Array:
    # In the precision of the value: what is small next to its mean would otherwise be lost.
    shape = (-1, *(1,) * (value.ndim - 1)) if axis == 0 else (-1,)
    m, s = (jnp.reshape(jnp.asarray(n, value.dtype), shape) for n in (mean, std))
    return (value - jnp.broadcast_to(m, value.shape)) / jnp.broadcast_to(s, value.shape)


def _kept(keep: Array | None, value: Array, null: Array) -> Array:
    return value if keep is None else jnp.where(keep, value, null)


class ClassConditionEmbedding(AbstractConditionEmbedding):
    """One learned vector for each class; the last is the null."""

    weight: Float[Array, "classes size"]
    condition: ClassCondition = eqx.field(static=True)

    def __init__(self, condition: ClassCondition, size: int, *, key: Key):
        number = condition.num_classes + has_null(condition)
        self.weight = jax.random.normal(key, (number, size), jnp.float32)
        self.condition = condition

    def __call__(self, value, keep, spatial, dtype):
        null = jnp.asarray(self.condition.num_classes, jnp.int32 if value is None else value.dtype)
        index = null if value is None else _kept(keep, value, null)
        return Entered(vector=class_row(self.weight, index).astype(dtype))


class VectorConditionEmbedding(AbstractConditionEmbedding):
    """A perceptron of two layers."""

    linear1: Linear
    linear2: Linear
    null: Float[Array, " size"] | None
    condition: VectorCondition = eqx.field(static=True)

    def __init__(self, condition: VectorCondition, size: int, *, key: Key):
        key1, key2 = jax.random.split(key)
        self.linear1 = Linear(condition.size, size, key=key1)
        self.linear2 = Linear(size, size, key=key2)
        self.null = jnp.zeros((size,), jnp.float32) if has_null(condition) else None
        self.condition = condition

    def __call__(self, value, keep, spatial, dtype):
        null = None if self.null is None else self.null.astype(dtype)
        if value is None:
            return Entered(vector=null)
        y = _standardised(value, self.condition.mean, self.condition.std, -1).astype(dtype)
        e = self.linear2(jax.nn.silu(self.linear1(y)))
        return Entered(vector=e if null is None else _kept(keep, e, null))


class FieldConditionEmbedding(AbstractConditionEmbedding):
    """The field as it is; only its null is learned."""

    null: Float[Array, " channels"] | None
    condition: FieldCondition = eqx.field(static=True)

    def __init__(self, condition: FieldCondition):
        number = (condition.channels,)
        self.null = jnp.zeros(number, jnp.float32) if has_null(condition) else None
        self.condition = condition

    def __call__(self, value, keep, spatial, dtype):
        shape, null = (self.condition.channels, *spatial), None
        if self.null is not None:
            null = self.null.astype(dtype).reshape(-1, *(1,) * len(spatial))
            null = jnp.broadcast_to(null, shape)
        if value is None:
            return Entered(channels=null)
        y = _standardised(value, self.condition.mean, self.condition.std, 0)
        y = resized(y, spatial).astype(dtype)
        return Entered(channels=y if null is None else _kept(keep, y, null))


class TokenConditionEmbedding(AbstractConditionEmbedding):
    """A perceptron of two layers for each token, then a normalisation; and one token more."""

    linear1: Linear
    linear2: Linear
    null: Float[Array, " size"]
    condition: TokenCondition = eqx.field(static=True)

    def __init__(self, condition: TokenCondition, size: int, *, key: Key):
        key1, key2, key3 = jax.random.split(key, 3)
        self.linear1 = Linear(condition.size, size, key=key1)
        self.linear2 = Linear(size, size, key=key2)
        self.null = jax.random.normal(key3, (size,), jnp.float32)
        self.condition = condition

    def __call__(self, value, keep, spatial, dtype):
        null, always = self.null.astype(dtype)[None], jnp.ones((1,), bool)
        if value is None:
            return Entered(context=Context(null, always))
        tokens, mask = value
        y = _standardised(tokens, self.condition.mean, self.condition.std, -1).astype(dtype)
        # Whatever stands in padding, a NaN too, meets no product.
        y = jnp.where(jnp.broadcast_to(mask[:, None], y.shape), y, jnp.zeros_like(y))
        y = self.linear2(jax.nn.silu(self.linear1(y)))
        y = y - jnp.mean(y, -1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y**2, -1, keepdims=True) + 1e-5)
        mask = mask if keep is None else mask & keep
        tokens = jnp.concatenate([null, y])
        return Entered(context=Context(tokens, jnp.concatenate([always, mask])))


def resized(image: Array, spatial: tuple[int, ...]) -> Array:
    """An image of channels first with other sides, by linear interpolation between the centres of
    pixels, with edges repeated (torch's align_corners=False); in float32 at least, as every weight
    is a small fraction."""
    if image.shape[1:] == spatial:
        return image
    wide = image.astype(at_least_float32(image.dtype))
    return jax.image.resize(wide, (image.shape[0], *spatial), "linear")
