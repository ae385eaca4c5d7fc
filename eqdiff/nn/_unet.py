r"""The U-Net of Improved DDPM (Nichol & Dhariwal 2021), which later families vary.

An image goes down through levels of residual blocks, each level at half the side of the one above
and `channel_mult[i]` times as wide as the first, through a middle with attention, and up again; on
the way up every block also sees the output of its counterpart on the way down:

$$h_0 = \mathrm{conv}(x), \quad h_{i+1} = \mathrm{down}_i(h_i, e), \qquad
  u_{i} = \mathrm{up}_i([u_{i+1}, h_i], e), \qquad
  F = \mathrm{conv}_0(\mathrm{SiLU}(\mathrm{GN}(u_0))), \tag{1}$$

with $e = \mathrm{MLP}(\mathrm{sinusoids}(l)) + E_\text{class}$. The way up has one block more per
level than the way down, because the outputs of the first convolution and of every downsampling are
shown to it too.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Args, Example, Key, Time
from ._attention import AttentionBlock
from ._block import ResBlock
from ._check import check_levels
from ._conv import Conv
from ._embed import check_class, check_label, ClassEmbedding, TimeEmbedding
from ._init import key_stream, zeros
from ._norm import GroupNorm
from ._precision import at_least_float32
from ._resample import Downsample, Upsample


class Level(eqx.Module):
    """The blocks at one resolution, in order; then the change to the next resolution, if any."""

    blocks: tuple[ResBlock, ...]
    attentions: tuple[AttentionBlock | None, ...]
    resample: Downsample | Upsample | None


class Middle(eqx.Module):
    """What happens at the lowest resolution."""

    before: ResBlock
    attention: AttentionBlock
    after: ResBlock


class UNet(eqx.Module):
    r"""Equation (1): the network of Improved DDPM, for images of any size and number of channels.

    It computes channels-last inside and takes and returns `(channels, height, width)`, one example
    at a time; use `jax.vmap` for a batch, which becomes one batched convolution per layer. At first
    it returns zeros, because its last convolution starts at zero.

    ??? cite "Reference"

        ```bibtex
        @inproceedings{nichol2021improved,
            title={Improved Denoising Diffusion Probabilistic Models},
            author={Nichol, Alexander Quinn and Dhariwal, Prafulla},
            booktitle={International Conference on Machine Learning},
            year={2021},
        }
        ```
    """

    time_embedding: TimeEmbedding
    class_embedding: ClassEmbedding | None
    conv_in: Conv
    encoder: tuple[Level, ...]
    middle: Middle
    decoder: tuple[Level, ...]
    norm_out: GroupNorm
    conv_out: Conv
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    num_res_blocks: int = eqx.field(static=True)
    channel_mult: tuple[int, ...] = eqx.field(static=True)
    attention_downsamples: tuple[int, ...] = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)
    num_heads_upsample: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    num_classes: int | None = eqx.field(static=True)
    scale_shift_norm: bool = eqx.field(static=True)
    conv_resample: bool = eqx.field(static=True)
    norm_groups: int = eqx.field(static=True)
    compute_dtype: Any = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 6,
        channels: int = 128,
        num_res_blocks: int = 3,
        channel_mult: tuple[int, ...] = (1, 2, 2, 2),
        attention_downsamples: tuple[int, ...] = (2, 4),
        num_heads: int = 4,
        num_heads_upsample: int | None = None,
        dropout: float = 0.0,
        num_classes: int | None = None,
        scale_shift_norm: bool = True,
        conv_resample: bool = True,
        norm_groups: int = 32,
        compute_dtype: Any = jnp.float32,
        remat: bool = False,
        *,
        key: Key,
    ):
        """**Arguments:**

        - `in_channels`: of $x$.
        - `out_channels`: of $F$; twice `in_channels` where a variance is learned.
        - `channels`: the width of the first level.
        - `num_res_blocks`: per level on the way down; one more on the way up.
        - `channel_mult`: the width of each level as a multiple of `channels`; its length is the
            number of levels.
        - `attention_downsamples`: the factors by which the side has shrunk where attention follows
            every block; `(2, 4)` is 16 and 8 for images of side 32. The middle always has
            attention.
        - `num_heads`, `num_heads_upsample`: attention heads; the latter, on the way up, defaults to
            the former.
        - `dropout`: its probability, in every residual block.
        - `num_classes`: how many classes there are; `None` for a network without.
        - `scale_shift_norm`: whether the embedding scales and shifts the normalisation or is added
            before it.
        - `conv_resample`: whether sides change with convolutions, or with a 2×2 mean and repeated
            pixels.
        - `norm_groups`: groups of every normalisation; must divide every width.
        - `compute_dtype`: of convolutions and attention's products, such as `jnp.bfloat16`.
            Parameters, normalisation, softmax and embeddings stay float32 (or become float64 with
            it).
        - `remat`: whether to compute each block again in the backward pass instead of storing what
            is inside it.
        - `key`: a PRNG key.

        **Raises:** `ValueError` where a width cannot be split into heads or groups.
        """
        self.in_channels, self.out_channels = in_channels, out_channels
        self.channels, self.num_res_blocks = channels, num_res_blocks
        self.channel_mult = tuple(channel_mult)
        self.attention_downsamples = tuple(attention_downsamples)
        self.num_heads = num_heads
        self.num_heads_upsample = num_heads if num_heads_upsample is None else num_heads_upsample
        self.dropout, self.num_classes = dropout, num_classes
        self.scale_shift_norm, self.conv_resample = scale_shift_norm, conv_resample
        self.norm_groups, self.remat = norm_groups, remat
        self.compute_dtype = jnp.dtype(compute_dtype)

        keys = key_stream(key)
        self.time_embedding = TimeEmbedding(channels, 4 * channels, key=next(keys))
        if num_classes is None:
            self.class_embedding = None
        else:
            self.class_embedding = ClassEmbedding(num_classes, 4 * channels, key=next(keys))
        self.conv_in = Conv(in_channels, channels * self.channel_mult[0], key=next(keys))
        self.encoder, skips = self._build_encoder(next(keys))
        self.middle = self._build_middle(next(keys))
        self.decoder = self._build_decoder(skips, next(keys))
        width = channels * self.channel_mult[0]
        self.norm_out = GroupNorm(width, norm_groups)
        self.conv_out = Conv(width, out_channels, init=zeros, key=next(keys))

    def _block(self, in_channels: int, out_channels: int, key: Key) -> ResBlock:
        return ResBlock(
            in_channels,
            out_channels,
            4 * self.channels,
            dropout=self.dropout,
            scale_shift_norm=self.scale_shift_norm,
            groups=self.norm_groups,
            key=key,
        )

    def _attention(self, width: int, level: int, heads: int, key: Key) -> AttentionBlock | None:
        if 2**level not in self.attention_downsamples:
            return None
        return AttentionBlock(width, heads, groups=self.norm_groups, key=key)

    def _build_encoder(self, key: Key) -> tuple[tuple[Level, ...], list[int]]:
        # Also returns the widths of the skip connections, in the order in which they are made.
        keys = key_stream(key)
        width = self.channels * self.channel_mult[0]
        skips, levels = [width], []
        for i, mult in enumerate(self.channel_mult):
            blocks, attentions = [], []
            for _ in range(self.num_res_blocks):
                blocks.append(self._block(width, mult * self.channels, next(keys)))
                width = mult * self.channels
                attentions.append(self._attention(width, i, self.num_heads, next(keys)))
                skips.append(width)
            if i == len(self.channel_mult) - 1:
                resample = None
            else:
                resample = Downsample(width, conv=self.conv_resample, key=next(keys))
                skips.append(width)
            levels.append(Level(tuple(blocks), tuple(attentions), resample))
        return tuple(levels), skips

    def _build_middle(self, key: Key) -> Middle:
        key1, key2, key3 = jax.random.split(key, 3)
        width = self.channels * self.channel_mult[-1]
        attention = AttentionBlock(width, self.num_heads, groups=self.norm_groups, key=key2)
        return Middle(self._block(width, width, key1), attention, self._block(width, width, key3))

    def _build_decoder(self, skips: list[int], key: Key) -> tuple[Level, ...]:
        keys = key_stream(key)
        skips, levels = list(skips), []
        width = self.channels * self.channel_mult[-1]
        for i, mult in reversed(list(enumerate(self.channel_mult))):
            blocks, attentions = [], []
            for _ in range(self.num_res_blocks + 1):
                blocks.append(self._block(width + skips.pop(), mult * self.channels, next(keys)))
                width = mult * self.channels
                attentions.append(self._attention(width, i, self.num_heads_upsample, next(keys)))
            resample = Upsample(width, conv=self.conv_resample, key=next(keys)) if i > 0 else None
            levels.append(Level(tuple(blocks), tuple(attentions), resample))
        return tuple(levels)

    def _embed(self, label: Time, args: Args) -> Float[Array, " size"]:
        index = check_class(args, self.num_classes, "UNet")
        dtype = at_least_float32(self.compute_dtype)
        embedding = self.time_embedding(jnp.asarray(label, dtype))
        if self.class_embedding is None or index is None:
            return embedding
        return embedding + self.class_embedding(index).astype(dtype)

    def _apply(self, block, attention, h, embedding, key):
        # One block and the attention after it: the unit of rematerialisation.
        def run(block, attention, h, embedding, key):
            h = block(h, embedding, key)
            return h if attention is None else attention(h)

        run = eqx.filter_checkpoint(run) if self.remat else run
        return run(block, attention, h, embedding, key)

    @jax.named_scope("eqdiff.nn.UNet")
    def __call__(
        self, label: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        """**Arguments:**

        - `label`: what the network is told as time, one number; Improved DDPM's are in [0, 1000].
        - `x`: one image, `(in_channels, height, width)`, whose sides are multiples of 2^(levels −
            1).
        - `args`: its class, one integer, where `num_classes` was given (others give NaNs);
            otherwise `None`.
        - `key`: a PRNG key for dropout. Without it there is no dropout.

        **Returns:** $F$, `(out_channels, height, width)`, in the dtype of `x`.

        **Raises:** `ValueError` where an argument has the wrong shape, or a class is missing or
        unexpected.
        """
        check_label(label, "UNet")
        check_levels(x, self.in_channels, len(self.channel_mult), "UNet")
        embedding = self._embed(label, args)
        keys = None if key is None else key_stream(key)

        def apply(block, attention, h):
            return self._apply(block, attention, h, embedding, None if keys is None else next(keys))

        h = self.conv_in(jnp.transpose(x, (1, 2, 0)).astype(self.compute_dtype))
        skips = [h]
        for level in self.encoder:
            for block, attention in zip(level.blocks, level.attentions, strict=True):
                h = apply(block, attention, h)
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h)
                skips.append(h)
        h = apply(self.middle.before, self.middle.attention, h)
        h = apply(self.middle.after, None, h)
        for level in self.decoder:
            for block, attention in zip(level.blocks, level.attentions, strict=True):
                h = apply(block, attention, jnp.concatenate([h, skips.pop()], axis=-1))
            if level.resample is not None:
                h = level.resample(h)
        h = self.conv_out(jax.nn.silu(self.norm_out(h)))
        return jnp.transpose(h, (2, 0, 1)).astype(x.dtype)
