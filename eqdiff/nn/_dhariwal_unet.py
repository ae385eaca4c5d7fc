r"""ADM (Dhariwal & Nichol 2021) as EDM has it (Karras et al. 2022, appendix F).

Residual blocks with scale-shift norm that change the sides inside, attention after every block of a
level with heads of 64 channels, no pyramids. The class is added after the perceptron of the time,
and an augmentation before it.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from einops import rearrange

from .._types import Args, Example, Key, Time
from ._body import UNetBody
from ._check import check_c_noise, check_levels
from ._condition import OneHotLinear, read_conditions
from ._conv import Linear
from ._embed import TimeEmbedding
from ._init import key_stream, torch_default, zeros
from ._norm import at_least_float32
from ._style import levels, Style


def _standard_normal(key, shape, fan_in, fan_out):
    # EDM's map of the one-hot class starts as `torch.nn.Embedding` does.
    del fan_in, fan_out
    return jax.random.normal(key, shape, jnp.float32)


class DhariwalUNet(eqx.Module):
    r"""EDM's ADM, for images of any size that the levels divide.

    It embeds $c_\text{noise}$ of its preconditioning as it is: $\tfrac14\log\sigma$ under EDM's,
    which is the `c_noise` of [`eqdiff.EDMSDE`][] (then
    `eqdiff.Denoiser(net, eqdiff.EDMSDE(), eqdiff.EDMPreconditioning())` is right). At first it
    returns zeros.

    One example at a time, channels first; use `jax.vmap` for a batch. Trained weights are read by
    [`eqdiff.interop.edm_network`][].

    ??? cite "Reference"

        Dhariwal & Nichol, *Diffusion Models Beat GANs on Image Synthesis*, NeurIPS 2021.
    """

    time_embedding: TimeEmbedding
    class_embedding: OneHotLinear | None
    augment_embedding: Linear | None
    body: UNetBody
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    num_res_blocks: int = eqx.field(static=True)
    channel_mult: tuple[int, ...] = eqx.field(static=True)
    attention_downsamples: tuple[int, ...] = eqx.field(static=True)
    channels_per_head: int = eqx.field(static=True)
    embedding_mult: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    num_classes: int | None = eqx.field(static=True)
    class_dropout: float = eqx.field(static=True)
    augment_size: int = eqx.field(static=True)
    compute_dtype: Any = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        channels: int = 192,
        num_res_blocks: int = 3,
        channel_mult: tuple[int, ...] = (1, 2, 3, 4),
        attention_downsamples: tuple[int, ...] = (2, 4, 8),
        channels_per_head: int = 64,
        embedding_mult: int = 4,
        dropout: float = 0.1,
        num_classes: int | None = None,
        class_dropout: float = 0.0,
        augment_size: int = 0,
        compute_dtype: Any = jnp.float32,
        remat: bool = False,
        *,
        key: Key,
    ):
        r"""**Arguments:**

        - `in_channels`, `out_channels`: of $x$ and of $F$.
        - `channels`: the width that others are multiples of.
        - `num_res_blocks`: per level on the way down; one more on the way up.
        - `channel_mult`: the width of each level as a multiple of `channels`.
        - `attention_downsamples`: the factors by which the side has shrunk where attention follows
            every block; `(2, 4, 8)` is 32, 16 and 8 for images of side 64. The middle always has
            one.
        - `channels_per_head`: of attention.
        - `embedding_mult`: the size of the embedding as a multiple of `channels`.
        - `dropout`: its probability, in every residual block.
        - `num_classes`: how many classes there are; `None` for a network without.
        - `class_dropout`: the probability that a class is dropped where a key is given.
        - `augment_size`: the number of parameters of an augmentation; EDM's has 9.
        - `compute_dtype`, `remat`, `key`: as for [`eqdiff.nn.UNet`][].

        **Raises:** `ValueError` for widths that cannot be normalised or split into heads.
        """
        self.in_channels, self.out_channels, self.channels = in_channels, out_channels, channels
        self.num_res_blocks, self.channel_mult = num_res_blocks, tuple(channel_mult)
        self.attention_downsamples = tuple(attention_downsamples)
        self.channels_per_head, self.embedding_mult = channels_per_head, embedding_mult
        self.dropout, self.num_classes, self.class_dropout = dropout, num_classes, class_dropout
        self.augment_size, self.remat = augment_size, remat
        self.compute_dtype = jnp.dtype(compute_dtype)
        keys = key_stream(key)
        size = embedding_mult * channels
        self.time_embedding = TimeEmbedding(channels, size, key=next(keys))
        self.class_embedding = self.augment_embedding = None
        if num_classes is not None:
            options: dict[str, Any] = dict(
                bias=False, class_dropout=class_dropout, init=_standard_normal
            )
            self.class_embedding = OneHotLinear(num_classes, size, **options, key=next(keys))
        if augment_size:
            options: dict[str, Any] = dict(bias=False, init=zeros)
            self.augment_embedding = Linear(augment_size, channels, **options, key=next(keys))
        self.body = self._build_body(next(keys))

    def _build_body(self, key: Key) -> UNetBody:
        style = Style(
            self.embedding_mult * self.channels,
            self.dropout,
            eps=1e-5,
            scale=1.0,
            scale_shift_norm=True,
            kernel=(1, 1),
            project_resampled=False,
            channels_per_head=self.channels_per_head,
            init=torch_default,
            out_init=zeros,
            qkv_init=torch_default,
            bias_init=None,
        )
        return UNetBody(
            style,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            num_res_blocks=self.num_res_blocks,
            **levels(self),
            attention_after_every=True,
            remat=self.remat,
            key=key,
        )

    @jax.named_scope("eqdiff.nn.DhariwalUNet")
    def __call__(
        self, c_noise: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        r"""**Arguments:**

        - `c_noise`: the network's time input, one number; see above.
        - `x`: one image, `(in_channels, height, width)`, whose sides are multiples of 2^(levels −
            1).
        - `args`: its class, one integer; `None` for no class; or
            [`eqdiff.nn.Conditions`][].
        - `key`: a PRNG key for dropout. Without it there is no dropout.

        **Returns:** $F$, `(out_channels, height, width)`, in the dtype of `x`.

        **Raises:** `ValueError` where an argument has the wrong shape, or is unexpected, or a class
        is out of range.
        """
        dtype = at_least_float32(self.compute_dtype)
        c_noise = check_c_noise(c_noise, dtype, "DhariwalUNet")
        check_levels(x, self.in_channels, len(self.channel_mult), "DhariwalUNet")
        index, augment = read_conditions(args, self.num_classes, self.augment_size, "DhariwalUNet")
        key1, key2 = (None, None) if key is None else jax.random.split(key)
        extra = None
        if self.augment_embedding is not None and augment is not None:
            extra = self.augment_embedding(augment.astype(dtype))
        embedding = self.time_embedding(c_noise, dtype, extra)
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(index, dtype, key1)
        h = rearrange(x, "c height width -> height width c").astype(self.compute_dtype)
        h = self.body(h, embedding, key2)
        return rearrange(h, "height width c -> c height width").astype(x.dtype)
