r"""The U-Nets of Improved DDPM (Nichol & Dhariwal 2021) and ADM (Dhariwal & Nichol 2021).

Residual blocks with scale-shift norm and attention after every block of a level, in levels as in
`_body.py`,

$$F = \mathrm{body}(x, e), \qquad
  e = \mathrm{MLP}(\mathrm{sinusoids}(c)) + E_\text{class}, \tag{1}$$

for a time input $c = c_\text{noise}$. ADM ("ablated diffusion model", the code is called
guided-diffusion) is the same network with sides that change inside residual blocks, as BigGAN's do,
and heads of a fixed number of channels.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from .._types import Args, Example, Key, Time
from ._body import UNetBody
from ._check import check_c_noise, check_class, check_dims, check_levels
from ._embed import ClassEmbedding, TimeEmbedding
from ._init import key_stream
from ._norm import at_least_float32
from ._style import levels, openai_style


class UNet(eqx.Module):
    r"""Equation (1): the network of Improved DDPM and ADM, for images of any size and number of
    channels.

    It computes channels-last inside and takes and returns `(channels, height, width)`, one example
    at a time; use `jax.vmap` for a batch, which becomes one batched convolution per layer. At first
    it returns zeros, because its last convolution starts at zero.

    With `dims=1` an example is a signal `(channels, length)`, with `dims=3` a volume or a video
    `(channels, depth, height, width)`, of which every level halves the height and the width and
    keeps the depth, as the official code does; kernels are 3×3×3.

    Published configurations are made by `presets.iddpm_cifar10`, `presets.adm_imagenet` and others;
    trained weights are read by [`eqdiff.interop.openai_unet`][].

    ??? cite "Reference"

        Nichol & Dhariwal, *Improved Denoising Diffusion Probabilistic Models*, ICML 2021.

        Dhariwal & Nichol, *Diffusion Models Beat GANs on Image Synthesis*, NeurIPS 2021.
    """

    time_embedding: TimeEmbedding
    class_embedding: ClassEmbedding | None
    body: UNetBody
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    num_res_blocks: int = eqx.field(static=True)
    channel_mult: tuple[float | int, ...] = eqx.field(static=True)
    attention_downsamples: tuple[int, ...] = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)
    num_heads_upsample: int = eqx.field(static=True)
    channels_per_head: int | None = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    num_classes: int | None = eqx.field(static=True)
    scale_shift_norm: bool = eqx.field(static=True)
    conv_resample: bool = eqx.field(static=True)
    resblock_updown: bool = eqx.field(static=True)
    norm_groups: int = eqx.field(static=True)
    dims: int = eqx.field(static=True)
    compute_dtype: Any = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 6,
        channels: int = 128,
        num_res_blocks: int = 3,
        channel_mult: tuple[float | int, ...] = (1, 2, 2, 2),
        attention_downsamples: tuple[int, ...] = (2, 4),
        num_heads: int = 4,
        num_heads_upsample: int | None = None,
        channels_per_head: int | None = None,
        dropout: float = 0.0,
        num_classes: int | None = None,
        scale_shift_norm: bool = True,
        conv_resample: bool = True,
        resblock_updown: bool = False,
        norm_groups: int = 32,
        dims: int = 2,
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
        - `channel_mult`: the width of each level as a multiple of `channels`, which need not be a
            whole one; its length is the number of levels.
        - `attention_downsamples`: the factors by which the side has shrunk where attention follows
            every block; `(2, 4)` is 16 and 8 for images of side 32. The middle always has
            attention.
        - `num_heads`, `num_heads_upsample`: attention heads; the latter, on the way up, defaults to
            the former.
        - `channels_per_head`: of attention; where given, it replaces the number of heads.
        - `dropout`: its probability, in every residual block.
        - `num_classes`: how many classes there are; `None` for a network without.
        - `scale_shift_norm`: whether the embedding scales and shifts the normalisation or is added
            before it.
        - `conv_resample`: whether sides change with convolutions, or with a 2×2 mean and repeated
            pixels.
        - `resblock_updown`: whether sides change inside residual blocks (ADM), whatever
            `conv_resample`.
        - `norm_groups`: groups of every normalisation; must divide every width.
        - `dims`: the number of spatial dimensions, 1 to 3.
        - `compute_dtype`: of convolutions and attention's products, such as `jnp.bfloat16`.
            Parameters, normalisation, softmax and embeddings stay float32 (or become float64 with
            it).
        - `remat`: whether to compute each block again in the backward pass instead of storing what
            is inside it.
        - `key`: a PRNG key.

        **Raises:** `ValueError` where a width cannot be split into heads or groups, or for another
        number of dimensions.
        """
        check_dims(dims)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.channels, self.num_res_blocks = channels, num_res_blocks
        self.channel_mult = tuple(channel_mult)
        self.attention_downsamples = tuple(attention_downsamples)
        self.num_heads = num_heads
        self.num_heads_upsample = num_heads if num_heads_upsample is None else num_heads_upsample
        self.channels_per_head = channels_per_head
        self.dropout, self.num_classes = dropout, num_classes
        self.scale_shift_norm, self.conv_resample = scale_shift_norm, conv_resample
        self.resblock_updown, self.dims = resblock_updown, dims
        self.norm_groups, self.remat = norm_groups, remat
        self.compute_dtype = jnp.dtype(compute_dtype)

        keys = key_stream(key)
        self.time_embedding = TimeEmbedding(channels, 4 * channels, key=next(keys))
        if num_classes is None:
            self.class_embedding = None
        else:
            self.class_embedding = ClassEmbedding(num_classes, 4 * channels, key=next(keys))
        self.body = UNetBody(
            openai_style(self, dims, self.num_heads_upsample),
            in_channels=in_channels,
            out_channels=out_channels,
            num_res_blocks=num_res_blocks,
            **levels(self),
            attention_after_every=True,
            remat=remat,
            key=next(keys),
        )

    def _embed(self, c_noise: Time, args: Args) -> Float[Array, " size"]:
        dtype = at_least_float32(self.compute_dtype)
        c_noise = check_c_noise(c_noise, dtype, "UNet")
        index = check_class(args, self.num_classes, "UNet")
        embedding = self.time_embedding(c_noise, dtype)
        if self.class_embedding is None or index is None:
            return embedding
        return embedding + self.class_embedding(index).astype(dtype)

    @jax.named_scope("eqdiff.nn.UNet")
    def __call__(
        self, c_noise: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        """**Arguments:**

        - `c_noise`: the network's time input, one number; Improved DDPM's are in
            [0, 1000].
        - `x`: one image, `(in_channels, height, width)`, whose sides are multiples of 2^(levels −
            1); with other `dims`, a signal or a volume (of any depth).
        - `args`: its class, one integer from 0 to `num_classes - 1`, where `num_classes` was given;
            otherwise `None`.
        - `key`: a PRNG key for dropout. Without it there is no dropout.

        **Returns:** $F$, `(out_channels, height, width)`, with the sides and in the dtype of `x`.

        **Raises:** `ValueError` where an argument has the wrong shape, or a class is missing,
        unexpected or out of range.
        """
        check_levels(x, self.in_channels, len(self.channel_mult), "UNet", self.dims)
        embedding = self._embed(c_noise, args)
        h = rearrange(x, "c ... -> ... c").astype(self.compute_dtype)
        h = self.body(h, embedding, key)
        return rearrange(h, "... c -> c ...").astype(x.dtype)
