r"""DDPM++ and NCSN++ as EDM has them (Karras et al. 2022, appendix F).

The network of `_ncsnpp.py` with small differences: the class and the augmentation are added to the
sinusoids, before the perceptron; $e = W_2\,\mathrm{SiLU}(W_1(\text{sinusoids} + \ldots))$; a
residual pyramid is always filtered; and the side of the image halves only as often as there are
widths, of which CIFAR-10 has three.
"""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from einops import rearrange

from .._types import Args, Example, Key, Time
from ._body import UNetBody
from ._check import check_c_noise, check_levels, check_variant
from ._condition import OneHotLinear, read_conditions
from ._conv import Linear
from ._embed import fourier_frequencies, TimeEmbedding
from ._init import fan_average, key_stream, zeros
from ._norm import at_least_float32
from ._style import levels, Style


PYRAMIDS_IN, PYRAMIDS_OUT = ("standard", "skip", "residual"), ("standard", "skip")


class SongUNet(eqx.Module):
    r"""EDM's DDPM++ and NCSN++, for images of any size that the levels divide.

    It embeds $c_\text{noise}$ of its preconditioning as it is: $\tfrac14\log\sigma$ under EDM's,
    which is the `c_noise` of [`eqdiff.EDMSDE`][] (then
    `eqdiff.Denoiser(net, eqdiff.EDMSDE(), eqdiff.EDMPreconditioning())` is right), $\log(\sigma/2)$
    under EDM's version of VE, and $999\,t$ under VP's.

    One example at a time, channels first; use `jax.vmap` for a batch. Trained weights are read by
    [`eqdiff.interop.edm_network`][].

    ??? cite "Reference"

        Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*,
        NeurIPS 2022.
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
    embedding: str = eqx.field(static=True)
    encoder: str = eqx.field(static=True)
    decoder: str = eqx.field(static=True)
    kernel: tuple[float | int, ...] = eqx.field(static=True)
    noise_mult: int = eqx.field(static=True)
    embedding_mult: int = eqx.field(static=True)
    frequencies: tuple[float, ...] | None = eqx.field(static=True)
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
        channels: int = 128,
        num_res_blocks: int = 4,
        channel_mult: tuple[int, ...] = (2, 2, 2),
        attention_downsamples: tuple[int, ...] = (2,),
        embedding: Literal["positional", "fourier"] = "positional",
        encoder: Literal["standard", "skip", "residual"] = "standard",
        decoder: Literal["standard", "skip"] = "standard",
        kernel: tuple[float | int, ...] = (1, 1),
        noise_mult: int = 1,
        embedding_mult: int = 4,
        frequencies: tuple[float, ...] | None = None,
        dropout: float = 0.13,
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
        - `channels`: the width after the first convolution.
        - `num_res_blocks`: per level on the way down; one more on the way up.
        - `channel_mult`: the width of each level as a multiple of `channels`.
        - `attention_downsamples`: the factors by which the side has shrunk where a level has
            attention. The middle always has.
        - `embedding`: sinusoids of the time input (DDPM++), or Fourier features (NCSN++).
        - `encoder`, `decoder`: pyramids on the way down and up; NCSN++ has a residual one down.
        - `kernel`: the filter's taps along one axis; `(1, 1)` is a 2×2 mean and repeated pixels.
        - `noise_mult`, `embedding_mult`: the sizes of the sinusoids (1 in DDPM++, 2 in NCSN++) and
            of the embedding, as multiples of `channels`.
        - `frequencies`: of Fourier features, half as many as the sinusoids; by default the same
            draw from N(0, 16²) in every network.
        - `dropout`: its probability, in every residual block.
        - `num_classes`: how many classes there are; `None` for a network without.
        - `class_dropout`: the probability that a class is dropped where a key is given.
        - `augment_size`: the number of parameters of an augmentation; EDM's has 9.
        - `compute_dtype`, `remat`, `key`: as for [`eqdiff.nn.UNet`][].

        **Raises:** `ValueError` for a variant that does not exist or widths that cannot be
        normalised.
        """
        check_variant("embedding", embedding, ("positional", "fourier"))
        check_variant("encoder", encoder, PYRAMIDS_IN)
        check_variant("decoder", decoder, PYRAMIDS_OUT)
        self.in_channels, self.out_channels, self.channels = in_channels, out_channels, channels
        self.num_res_blocks, self.channel_mult = num_res_blocks, tuple(channel_mult)
        self.attention_downsamples = tuple(attention_downsamples)
        self.embedding, self.encoder, self.decoder = embedding, encoder, decoder
        self.kernel, self.noise_mult, self.embedding_mult = (
            tuple(kernel),
            noise_mult,
            embedding_mult,
        )
        if embedding == "fourier" and frequencies is None:
            frequencies = fourier_frequencies(noise_mult * channels // 2, 16.0)
        self.frequencies = None if frequencies is None else tuple(frequencies)
        self.dropout, self.num_classes, self.class_dropout = dropout, num_classes, class_dropout
        self.augment_size, self.remat = augment_size, remat
        self.compute_dtype = jnp.dtype(compute_dtype)
        key1, key2 = jax.random.split(key)
        embeddings = self._build_embeddings(key1)
        self.time_embedding, self.class_embedding, self.augment_embedding = embeddings
        self.body = self._build_body(key2)

    def _build_embeddings(
        self, key: Key
    ) -> tuple[TimeEmbedding, OneHotLinear | None, Linear | None]:
        keys, size = key_stream(key), self.noise_mult * self.channels
        options: dict[str, Any] = dict(init=fan_average(), bias_init=zeros)
        time = TimeEmbedding(
            size,
            self.embedding_mult * self.channels,
            frequencies=self.frequencies if self.embedding == "fourier" else None,
            cosine_first=False,
            endpoint=self.embedding == "positional",
            **options,
            key=next(keys),
        )
        classes = augment = None
        if self.num_classes is not None:
            classes = OneHotLinear(
                self.num_classes,
                size,
                bias=True,
                scale=self.num_classes**0.5,
                class_dropout=self.class_dropout,
                **options,
                key=next(keys),
            )
        if self.augment_size:
            augment = Linear(self.augment_size, size, bias=False, **options, key=next(keys))
        return time, classes, augment

    def _build_body(self, key: Key) -> UNetBody:
        return UNetBody(
            Style(self.embedding_mult * self.channels, self.dropout, kernel=self.kernel),
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            stem=self.channels,
            num_res_blocks=self.num_res_blocks,
            **levels(self),
            encoder=self.encoder,
            decoder=self.decoder,
            remat=self.remat,
            key=key,
        )

    @jax.named_scope("eqdiff.nn.SongUNet")
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
        c_noise = check_c_noise(c_noise, dtype, "SongUNet")
        check_levels(x, self.in_channels, len(self.channel_mult), "SongUNet")
        index, augment = read_conditions(args, self.num_classes, self.augment_size, "SongUNet")
        key1, key2 = (None, None) if key is None else jax.random.split(key)
        extra = jnp.zeros((self.time_embedding.in_size,), dtype)
        if self.class_embedding is not None:
            extra = extra + self.class_embedding(index, dtype, key1)
        if self.augment_embedding is not None and augment is not None:
            extra = extra + self.augment_embedding(augment.astype(dtype))
        embedding = self.time_embedding(c_noise, dtype, extra)
        h = rearrange(x, "c height width -> height width c").astype(self.compute_dtype)
        h = self.body(h, embedding, key2)
        return rearrange(h, "height width c -> c height width").astype(x.dtype)
