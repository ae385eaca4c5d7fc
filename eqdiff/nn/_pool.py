r"""How a classifier turns the images inside it into one vector of logits.

From the outputs $h_0, \dots, h_n$ of every block on the way down, and of the middle last, ADM's
noisy classifiers (Dhariwal & Nichol 2021, section 4 and their code) make logits in one of these
ways. With means over all pixels $\langle\cdot\rangle$,

$$\text{average:}\quad W \langle\mathrm{SiLU}(\mathrm{GN}(h_n))\rangle + b, \tag{1}$$

$$\text{spatial:}\quad
  W_2\,\varphi(W_1 [\langle h_0\rangle, \dots, \langle h_n\rangle] + b_1) + b_2, \qquad
  \varphi = \mathrm{ReLU} \text{ or } \mathrm{SiLU} \circ \mathrm{GN}, \tag{2}$$

and, as CLIP does (Radford et al. 2021), one query that attends to all pixels,

$$\text{attention:}\quad z = [\langle g\rangle, g_1, \dots, g_m] + p, \quad
  g = \mathrm{SiLU}(\mathrm{GN}(h_n)), \qquad
  W\,\mathrm{softmax}\left(\frac{q(z_0)\,k(z)^\top}{\sqrt c}\right) v(z) + b, \tag{3}$$

with learned positions $p$: the mean token asks, and its answer alone is kept.
"""

import abc
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from .._types import Key
from ._attend import PlainAttention
from ._attention import split_heads
from ._conv import Linear
from ._init import zeros
from ._norm import at_least_float32, GroupNorm, Groups
from ._pyramid import Image


Logits = Float[Array, " classes"]


def _float32(h: Image) -> Image:
    return h.astype(at_least_float32(h.dtype))


def _mean(h: Image) -> Float[Array, " channels"]:
    return jnp.mean(_float32(h), axis=tuple(range(h.ndim - 1)))


class AbstractHead(eqx.Module):
    """The last layers of a classifier."""

    @abc.abstractmethod
    def __call__(self, images: Sequence[Image]) -> Logits:
        """**Arguments:**

        - `images`: $h_0, \\dots, h_n$, channels last.

        **Returns:** logits, in float32 or better.
        """


class AbstractPool(eqx.Module):
    """Chooses a classifier's head, and says what it is built with."""

    @abc.abstractmethod
    def build(
        self, widths: Sequence[int], num_levels: int, num_classes: int, groups: Groups, key: Key
    ) -> AbstractHead:
        """**Arguments:**

        - `widths`: the channels of every $h_i$.
        - `num_levels`: how many levels the images went down, counting the first.
        - `num_classes`: the number of logits.
        - `groups`: of normalisations.
        - `key`: a PRNG key.

        **Returns:** the head.
        """


class AverageHead(AbstractHead):
    """Equation (1)."""

    norm: GroupNorm
    linear: Linear

    def __call__(self, images: Sequence[Image]) -> Logits:
        return self.linear(_mean(self.norm(_float32(images[-1]), activation=jax.nn.silu)))


class AveragePool(AbstractPool):
    """Global average pooling, equation (1); the official code's `pool="adaptive"`.

    At first all logits are zero.

    **Example:**

    ```python
    pool = eqd.nn.AveragePool()  # the `pool` of an eqd.nn.UNetClassifier
    ```
    """

    def build(
        self, widths: Sequence[int], num_levels: int, num_classes: int, groups: Groups, key: Key
    ) -> AverageHead:
        """See `AbstractPool.build`."""
        del num_levels
        width = widths[-1]
        return AverageHead(
            GroupNorm(width, groups), Linear(width, num_classes, init=zeros, key=key)
        )


class AttentionHead(AbstractHead):
    """Equation (3)."""

    norm: GroupNorm
    positions: Float[Array, "tokens channels"]
    qkv: Linear
    out: Linear
    num_heads: int = eqx.field(static=True)
    side: int = eqx.field(static=True)
    image_size: int = eqx.field(static=True)

    def __call__(self, images: Sequence[Image]) -> Logits:
        h = images[-1]
        if h.shape[:-1] != (self.side, self.side):
            height, width = (self.image_size // self.side * side for side in h.shape[:-1])
            raise ValueError(
                f"this UNetClassifier pools by attention over the positions of images of side "
                f"{self.image_size}, got {height}×{width}. Resize the image, or build the network "
                "with another AttentionPool(image_size=...); AveragePool() takes any size."
            )
        h = self.norm(_float32(h), activation=jax.nn.silu)
        tokens = rearrange(h, "height width c -> (height width) c")
        tokens = jnp.concatenate([jnp.mean(tokens, axis=0, keepdims=True), tokens])
        qkv = self.qkv(tokens + self.positions.astype(tokens.dtype))
        q, k, v = split_heads(qkv, self.num_heads)
        pooled = PlainAttention()(q[:1], k, v)
        return self.out(rearrange(pooled, "1 heads c -> (heads c)"))


class AttentionPool(AbstractPool):
    """Attention pooling, equation (3): what ADM's published classifiers have.

    For square images of a fixed side: it learns a position for each pixel at the lowest level.

    **Example:**

    ```python
    pool = eqd.nn.AttentionPool(image_size=64)  # the `pool` of an eqd.nn.UNetClassifier
    ```
    """

    image_size: int = eqx.field(static=True)
    channels_per_head: int = eqx.field(static=True)

    def __init__(self, image_size: int, channels_per_head: int = 64):
        """**Arguments:**

        - `image_size`: the side of the classifier's images.
        - `channels_per_head`: of the attention.
        """
        self.image_size, self.channels_per_head = image_size, channels_per_head

    def build(
        self, widths: Sequence[int], num_levels: int, num_classes: int, groups: Groups, key: Key
    ) -> AttentionHead:
        """See `AbstractPool.build`.

        **Raises:** `ValueError` where the width cannot be split into heads, or the side not halved.
        """
        width, unit, per_head = widths[-1], 2 ** (num_levels - 1), self.channels_per_head
        if per_head < 1 or width % per_head != 0:
            raise ValueError(
                f"AttentionPool: {width} channels cannot be split into heads of {per_head}; use a "
                "channels_per_head that divides the width of the last level."
            )
        if self.image_size < 1 or self.image_size % unit != 0:
            raise ValueError(
                f"AttentionPool: images of side {self.image_size} cannot go down {num_levels} "
                f"levels; use an image_size that is a multiple of {unit}, or a shorter "
                "channel_mult."
            )
        key1, key2, key3 = jax.random.split(key, 3)
        side = self.image_size // unit
        positions = jax.random.normal(key1, (side**2 + 1, width), jnp.float32) / width**0.5
        return AttentionHead(
            GroupNorm(width, groups),
            positions,
            Linear(width, 3 * width, key=key2),
            Linear(width, num_classes, key=key3),
            num_heads=width // per_head,
            side=side,
            image_size=self.image_size,
        )


class SpatialHead(AbstractHead):
    """Equation (2)."""

    linear1: Linear
    norm: GroupNorm | None
    linear2: Linear

    def __call__(self, images: Sequence[Image]) -> Logits:
        h = self.linear1(jnp.concatenate([_mean(h) for h in images]))
        h = jax.nn.relu(h) if self.norm is None else self.norm(h, activation=jax.nn.silu)
        return self.linear2(h)


class SpatialPool(AbstractPool):
    """A perceptron of the means of every block's output, equation (2); the official code's
    `pool="spatial"` and `"spatial_v2"`.

    **Example:**

    ```python
    pool = eqd.nn.SpatialPool(normalise=True)  # the `pool` of an eqd.nn.UNetClassifier
    ```
    """

    normalise: bool = eqx.field(static=True)
    hidden_size: int = eqx.field(static=True)

    def __init__(self, normalise: bool = False, hidden_size: int = 2048):
        """**Arguments:**

        - `normalise`: whether the hidden layer is normalised in groups, with SiLU after it
            (`"spatial_v2"`), or has ReLU alone (`"spatial"`).
        - `hidden_size`: of the perceptron.
        """
        self.normalise, self.hidden_size = normalise, hidden_size

    def build(
        self, widths: Sequence[int], num_levels: int, num_classes: int, groups: Groups, key: Key
    ) -> SpatialHead:
        """See `AbstractPool.build`."""
        del num_levels
        key1, key2 = jax.random.split(key)
        return SpatialHead(
            Linear(sum(widths), self.hidden_size, key=key1),
            GroupNorm(self.hidden_size, groups) if self.normalise else None,
            Linear(self.hidden_size, num_classes, key=key2),
        )
