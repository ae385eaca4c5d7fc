r"""The diffusion transformer (Peebles & Xie 2023).

An image is cut into patches, each a token of $n$ channels with its place added to it. Every block
normalises its tokens, scales and shifts them as the time and the class demand — adaptive layer
norm — and gates what it adds,

$$h \leftarrow h + g_1\,\mathrm{attention}((1 + s_1)\,\mathrm{LN}(h) + b_1), \qquad
  h \leftarrow h + g_2\,\mathrm{MLP}((1 + s_2)\,\mathrm{LN}(h) + b_2), \tag{1}$$

$$(b_1, s_1, g_1, b_2, s_2, g_2) = W\,\mathrm{SiLU}(e), \qquad
  e = \mathrm{MLP}(\text{sinusoids}(c)) + E_\text{class}, \tag{2}$$

with the time input $c = c_\text{noise}$. Further conditions (`_conditions.py`) are added to $e$,
are channels of the image, or are tokens that every block attends to (`_cross.py`) between the two
steps of (1), with its own scale, shift and gate.

$W$ starts at zero ("adaLN-Zero"): at first every block is the identity, and the network returns
zeros.

The place of a patch is embedded by sinusoids of its column (the first half of the channels) and of
its row, $\omega_i = 10^{-4 i / (n/4)}$, sines before cosines. It is a constant, made for the size
of the image.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from .._types import Args, Example, Key, Time
from ._attend import AbstractAttention, FusedAttention
from ._attention import split_heads
from ._check import check_c_noise, check_class, check_image
from ._condition_embeddings import Entered
from ._conditioning import (
    build_conditions,
    conditions_of,
    enter,
    field_channels,
    has_tokens,
    refuse_both,
)
from ._conv import Linear
from ._cross import Context, ContextAttention
from ._embed import ClassEmbedding, TimeEmbedding
from ._init import fan_average, Init, key_stream, zeros
from ._norm import at_least_float32


Tokens = Float[Array, "tokens channels"]

# The sinusoids of the time input, before their perceptron.
_SINUSOIDS = 256


def positions(rows: int, columns: int, size: int) -> np.ndarray:
    """The sinusoids of every patch's column and row, `(rows * columns, size)`."""
    frequencies = 10_000.0 ** (-np.arange(size // 4) / (size // 4))

    def sinusoids(places):
        angles = places.reshape(-1, 1) * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    row, column = np.mgrid[:rows, :columns]
    return np.concatenate([sinusoids(column), sinusoids(row)], axis=1)


def _normal(scale: float) -> Init:
    def init(key, shape, fan_in, fan_out):
        del fan_in, fan_out
        return scale * jax.random.normal(key, shape, jnp.float32)

    return init


def modulated_norm(
    h: Tokens, scale: Float[Array, " channels"], shift: Float[Array, " channels"]
) -> Tokens:
    """(1 + scale) LN(h) + shift, with statistics in float32 or better and no parameters."""
    x = h.astype(at_least_float32(h.dtype))
    x = x - jnp.mean(x, -1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)
    scale, shift = (jnp.broadcast_to(a.astype(x.dtype), x.shape) for a in (scale, shift))
    return ((1 + scale) * x + shift).astype(h.dtype)


class DiTCrossAttention(eqx.Module):
    """A gated attention to the tokens of a condition, which is the identity at first."""

    modulation: Linear
    attention: ContextAttention

    def __init__(self, channels: int, num_heads: int, *, key: Key):
        key1, key2 = jax.random.split(key)
        options: dict[str, Any] = dict(
            init=fan_average(), out_init=fan_average(), bias_init=zeros, key=key2
        )
        self.modulation = Linear(channels, 3 * channels, init=zeros, key=key1)
        self.attention = ContextAttention(channels, channels, num_heads, **options)

    def __call__(self, h: Tokens, embedding: Float[Array, " channels"], context: Context) -> Tokens:
        shift, scale, gate = jnp.split(self.modulation(jax.nn.silu(embedding)), 3)
        seen = self.attention(modulated_norm(h, scale, shift), context)
        return h + jnp.broadcast_to(gate.astype(h.dtype), h.shape) * seen


class DiTBlock(eqx.Module):
    """Equation (1)."""

    modulation: Linear
    qkv: Linear
    out: Linear
    mlp1: Linear
    mlp2: Linear
    cross: DiTCrossAttention | None
    attention: AbstractAttention = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)

    def __init__(
        self,
        channels: int,
        num_heads: int,
        mlp_ratio: float,
        attention: AbstractAttention,
        *,
        crosses: bool = False,
        key: Key,
    ):
        keys, hidden = key_stream(key), int(mlp_ratio * channels)
        options: dict[str, Any] = dict(init=fan_average(), bias_init=zeros)
        self.modulation = Linear(channels, 6 * channels, init=zeros, key=next(keys))
        self.qkv = Linear(channels, 3 * channels, **options, key=next(keys))
        self.out = Linear(channels, channels, **options, key=next(keys))
        self.mlp1 = Linear(channels, hidden, **options, key=next(keys))
        self.mlp2 = Linear(hidden, channels, **options, key=next(keys))
        self.attention, self.num_heads = attention, num_heads
        self.cross = None
        if crosses:
            self.cross = DiTCrossAttention(channels, num_heads, key=next(keys))

    def __call__(
        self, h: Tokens, embedding: Float[Array, " channels"], context: Context | None = None
    ) -> Tokens:
        modulation = self.modulation(jax.nn.silu(embedding))
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6)

        def gate(g, x):
            return jnp.broadcast_to(g.astype(x.dtype), x.shape) * x

        qkv = self.qkv(modulated_norm(h, scale1, shift1))
        seen = self.attention(*split_heads(qkv, self.num_heads))
        seen = rearrange(seen, "tokens heads c -> tokens (heads c)")
        h = h + gate(gate1, self.out(seen))
        if self.cross is not None and context is not None:
            h = self.cross(h, embedding, context)
        x = self.mlp1(modulated_norm(h, scale2, shift2))
        return h + gate(gate2, self.mlp2(jax.nn.gelu(x, approximate=True)))


class DiT(eqx.Module):
    r"""The diffusion transformer, for images whose sides are multiples of the patch's, or for
    latents: equations (1) and (2).

    The time input is embedded as it is, so it should range over about $[0, 1000]$, as those of
    [`eqdiff.Schedule`][], [`eqdiff.VPSDE`][] and [`eqdiff.RectifiedFlow`][] do. With classes, one
    more label stands for "no class": pass `args=None` (or `args=num_classes`) for the unconditional
    network, which `class_dropout` trains.

    One example at a time, channels first; use `jax.vmap` for a batch.
    [`eqdiff.nn.presets.dit`][] makes the paper's sizes.

    **Example:**

    ```python
    net = eqd.nn.DiT(channels=64, depth=2, num_heads=4, num_classes=10, key=jax.random.key(0))
    F = net(500.0, jnp.ones((4, 8, 8)), 3)
    ```

    ??? cite "Reference"

        Peebles & Xie, *Scalable Diffusion Models with Transformers*, ICCV 2023.
    """

    time_embedding: TimeEmbedding
    class_embedding: ClassEmbedding | None
    patch_in: Linear
    blocks: tuple[DiTBlock, ...]
    modulation_out: Linear
    patch_out: Linear
    condition_embeddings: Any
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)
    patch_size: int = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)
    mlp_ratio: float = eqx.field(static=True)
    num_classes: int | None = eqx.field(static=True)
    class_dropout: float = eqx.field(static=True)
    attention: AbstractAttention = eqx.field(static=True)
    compute_dtype: Any = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 8,
        patch_size: int = 2,
        channels: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        num_classes: int | None = None,
        class_dropout: float = 0.1,
        attention: AbstractAttention = FusedAttention(),
        compute_dtype: Any = jnp.float32,
        remat: bool = False,
        *,
        conditions: Any = None,
        key: Key,
    ):
        r"""**Arguments:**

        - `in_channels`: of $x$.
        - `out_channels`: of $F$; twice `in_channels` where a variance is learned.
        - `patch_size`: the side of a patch, in pixels.
        - `channels`: of every token; a multiple of 4 and of `num_heads`.
        - `depth`: the number of blocks.
        - `num_heads`: of attention.
        - `mlp_ratio`: the hidden channels of the perceptrons as a multiple of `channels`.
        - `num_classes`: how many classes there are; `None` for a network without.
        - `class_dropout`: the probability that a class becomes the unconditional one where a key is
            given.
        - `attention`: what computes attention: [`eqdiff.nn.FusedAttention`][] or
            [`eqdiff.nn.PlainAttention`][].
        - `compute_dtype`, `remat`, `conditions`, `key`: as for [`eqdiff.nn.UNet`][]; every block
            attends to the tokens.

        **Raises:** `ValueError` where the channels cannot be split, or for `num_classes` next to
        conditions.
        """
        refuse_both(conditions, "DiT", num_classes=num_classes)
        if channels % num_heads != 0 or channels % 4 != 0:
            raise ValueError(
                f"a DiT's channels are a multiple of 4 and of num_heads={num_heads}, "
                f"got {channels}."
            )
        self.in_channels, self.out_channels, self.patch_size = in_channels, out_channels, patch_size
        self.channels, self.depth, self.num_heads = channels, depth, num_heads
        self.mlp_ratio, self.num_classes = mlp_ratio, num_classes
        self.class_dropout, self.attention, self.remat = class_dropout, attention, remat
        self.compute_dtype = jnp.dtype(compute_dtype)
        keys, pixels = key_stream(key), patch_size**2
        options: dict[str, Any] = dict(init=_normal(0.02), bias_init=zeros)
        self.time_embedding = TimeEmbedding(_SINUSOIDS, channels, **options, key=next(keys))
        self.class_embedding = None
        if num_classes is not None:
            table = ClassEmbedding(num_classes + 1, channels, key=next(keys))
            self.class_embedding = eqx.tree_at(lambda e: e.weight, table, 0.02 * table.weight)
        options: dict[str, Any] = dict(init=fan_average(), bias_init=zeros)
        # Not one of the keys that the rest is drawn from.
        key = jax.random.fold_in(key, 2)
        self.condition_embeddings = build_conditions(conditions, "DiT", channels, key)
        seen = in_channels + field_channels(self.condition_embeddings)
        self.patch_in = Linear(pixels * seen, channels, **options, key=next(keys))
        crosses = has_tokens(self.condition_embeddings)
        self.blocks = tuple(
            DiTBlock(channels, num_heads, mlp_ratio, attention, crosses=crosses, key=next(keys))
            for _ in range(depth)
        )
        self.modulation_out = Linear(channels, 2 * channels, init=zeros, key=next(keys))
        self.patch_out = Linear(channels, pixels * out_channels, init=zeros, key=next(keys))

    @property
    def conditions(self) -> Any:
        """What the network was built with."""
        return conditions_of(self.condition_embeddings)

    def _embed(
        self, c_noise: Time, args: Args, spatial: tuple[int, ...], key: Key | None
    ) -> tuple[Float[Array, " channels"], Entered]:
        dtype = at_least_float32(self.compute_dtype)
        e = self.time_embedding(check_c_noise(c_noise, dtype, "DiT"), dtype)
        if self.class_embedding is None:
            entered = enter(self.condition_embeddings, args, "DiT", spatial, dtype, key)
            return e if entered.vector is None else e + entered.vector, entered
        # The last label is the learned null.
        args = self.num_classes if args is None and self.class_dropout > 0 else args
        index = check_class(args, self.num_classes, "DiT", unconditional=True)
        assert index is not None
        if key is not None and self.class_dropout > 0:
            drop = jax.random.bernoulli(key, self.class_dropout)
            index = jnp.where(drop, jnp.asarray(self.num_classes, index.dtype), index)
        return e + self.class_embedding(index).astype(dtype), Entered()

    @jax.named_scope("eqdiff.nn.DiT")
    def __call__(
        self, c_noise: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        r"""**Arguments:**

        - `c_noise`: the network's time input, one number.
        - `x`: one image, `(in_channels, height, width)`, whose sides are multiples of `patch_size`.
        - `args`: the values of its conditions, in the places of `conditions`, `None` for a learned
            null; its class, one integer from 0 to `num_classes - 1`, or `None` for the
            unconditional network, where `num_classes` was given; otherwise `None`.
        - `key`: a PRNG key for dropping conditions. Without one, none is dropped.

        **Returns:** $F$, `(out_channels, height, width)`, in the dtype of `x`.

        **Raises:** `ValueError` where an argument has the wrong shape, or a condition is missing,
        unexpected or out of range.
        """
        p = self.patch_size
        check_image(x, self.in_channels, p, "DiT", "use a smaller patch_size")
        embedding, entered = self._embed(c_noise, args, x.shape[1:], key)
        x_dtype, x = x.dtype, x.astype(self.compute_dtype)
        if entered.channels is not None:
            x = jnp.concatenate([x, entered.channels.astype(self.compute_dtype)])
        rows, columns = x.shape[1] // p, x.shape[2] // p
        cut = "c (rows p) (columns q) -> (rows columns) (p q c)"
        h = self.patch_in(rearrange(x, cut, p=p, q=p))
        h = h + jnp.asarray(positions(rows, columns, self.channels), h.dtype)

        def run(block, h, embedding, context):
            return block(h, embedding, context)

        run = eqx.filter_checkpoint(run) if self.remat else run
        for block in self.blocks:
            h = run(block, h, embedding, entered.context)
        shift, scale = jnp.split(self.modulation_out(jax.nn.silu(embedding)), 2)
        h = self.patch_out(modulated_norm(h, scale, shift))
        join = "(rows columns) (p q c) -> c (rows p) (columns q)"
        return rearrange(h, join, rows=rows, p=p, q=p).astype(x_dtype)
