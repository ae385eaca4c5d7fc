r"""The noisy classifier of ADM (Dhariwal & Nichol 2021, section 4): half a U-Net.

$$(h_0, \dots, h_n) = \mathrm{down}(x, e), \qquad e = \mathrm{MLP}(\mathrm{sinusoids}(l)), \qquad
  \log p(y|x_t) = \log\mathrm{softmax}(\mathrm{pool}(h_0, \dots, h_n))_y, \tag{1}$$

where `down` is the way down and the middle of `_body.py`, and `pool` one of `_pool.py`.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from .._types import Args, Example, Key, Time
from ._body import UNetEncoder
from ._check import check_c_noise, check_levels
from ._embed import TimeEmbedding
from ._init import key_stream
from ._norm import at_least_float32
from ._pool import AbstractHead, AbstractPool, AveragePool
from ._style import levels, openai_style


class UNetClassifier(eqx.Module):
    r"""Equation (1): logits of a noisy image, from the way down of [`eqdiff.nn.UNet`][].

    ```python
    net = eqdiff.nn.UNetClassifier(num_classes=10, pool=eqdiff.nn.AttentionPool(32), key=key)
    classifier = eqdiff.Classifier(net, schedule)
    loss = eqdiff.classifier_loss(classifier, t, x0, class_label, key=key)      # to train it
    guided = eqdiff.ClassifierGuidance(eqdiff.FixedArgs(denoiser), classifier, scale=2.0)
    ```

    The published classifiers are made by `presets.adm_classifier`; their weights are read by
    [`eqdiff.interop.openai_classifier`][]. One example at a time, channels first; use
    `jax.vmap` for a batch.

    ??? cite "Reference"

        Dhariwal & Nichol, *Diffusion Models Beat GANs on Image Synthesis*, NeurIPS 2021.
    """

    time_embedding: TimeEmbedding
    body: UNetEncoder
    head: AbstractHead
    pool: AbstractPool
    in_channels: int = eqx.field(static=True)
    num_classes: int = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    num_res_blocks: int = eqx.field(static=True)
    channel_mult: tuple[float | int, ...] = eqx.field(static=True)
    attention_downsamples: tuple[int, ...] = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)
    channels_per_head: int | None = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    scale_shift_norm: bool = eqx.field(static=True)
    conv_resample: bool = eqx.field(static=True)
    resblock_updown: bool = eqx.field(static=True)
    norm_groups: int = eqx.field(static=True)
    compute_dtype: Any = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1000,
        channels: int = 128,
        num_res_blocks: int = 2,
        channel_mult: tuple[float | int, ...] = (1, 2, 3, 4),
        attention_downsamples: tuple[int, ...] = (2, 4, 8),
        num_heads: int = 1,
        channels_per_head: int | None = 64,
        pool: AbstractPool = AveragePool(),
        dropout: float = 0.0,
        scale_shift_norm: bool = True,
        conv_resample: bool = True,
        resblock_updown: bool = True,
        norm_groups: int = 32,
        compute_dtype: Any = jnp.float32,
        remat: bool = False,
        *,
        key: Key,
    ):
        """**Arguments:**

        - `in_channels`: of $x$.
        - `num_classes`: the number of logits.
        - `channels`, `num_res_blocks`, `channel_mult`, `attention_downsamples`, `num_heads`,
            `channels_per_head`, `dropout`, `scale_shift_norm`, `conv_resample`, `resblock_updown`,
            `norm_groups`, `compute_dtype`, `remat`, `key`: as for [`eqdiff.nn.UNet`][].
        - `pool`: how the images become logits: [`eqdiff.nn.AveragePool`][],
            [`eqdiff.nn.AttentionPool`][] or [`eqdiff.nn.SpatialPool`][].

        **Raises:** `ValueError` where a width cannot be split into heads or groups, or for images
        that the pooling does not fit.
        """
        self.in_channels, self.num_classes = in_channels, num_classes
        self.channels, self.num_res_blocks = channels, num_res_blocks
        self.channel_mult = tuple(channel_mult)
        self.attention_downsamples = tuple(attention_downsamples)
        self.num_heads, self.channels_per_head = num_heads, channels_per_head
        self.pool, self.dropout = pool, dropout
        self.scale_shift_norm, self.conv_resample = scale_shift_norm, conv_resample
        self.resblock_updown, self.norm_groups, self.remat = resblock_updown, norm_groups, remat
        self.compute_dtype = jnp.dtype(compute_dtype)

        keys = key_stream(key)
        self.time_embedding = TimeEmbedding(channels, 4 * channels, key=next(keys))
        self.body = UNetEncoder(
            openai_style(self),
            in_channels=in_channels,
            num_res_blocks=num_res_blocks,
            **levels(self),
            remat=remat,
            key=next(keys),
        )
        widths = self.body.widths
        self.head = pool.build(widths, len(self.channel_mult), num_classes, norm_groups, next(keys))

    @jax.named_scope("eqdiff.nn.UNetClassifier")
    def __call__(
        self, c_noise: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Float[Array, " classes"]:
        """**Arguments:**

        - `c_noise`: the network's time input, one number.
        - `x`: one image, `(in_channels, height, width)`, whose sides are multiples of 2^(levels −
            1).
        - `args`: `None`: a classifier takes no class.
        - `key`: a PRNG key for dropout. Without it there is no dropout.

        **Returns:** logits, `(num_classes,)`, in the dtype of `x`.

        **Raises:** `ValueError` where an argument has the wrong shape, or a class is given.
        """
        dtype = at_least_float32(self.compute_dtype)
        c_noise = check_c_noise(c_noise, dtype, "UNetClassifier")
        check_levels(x, self.in_channels, len(self.channel_mult), "UNetClassifier")
        if args is not None:
            raise ValueError(
                "UNetClassifier returns the logits of all classes and takes none, got "
                f"args={args}. For log p(y|x) write eqdiff.Classifier(net, process)(t, x, y)."
            )
        embedding = self.time_embedding(c_noise, dtype)
        h = rearrange(x, "c height width -> height width c").astype(self.compute_dtype)
        return self.head(self.body(h, embedding, key)).astype(x.dtype)
