"""U-Nets by the flat flags of the official codes, in this library's names.

Official configurations (`eqdiff.interop`) and files of formats 1 to 3 (`eqdiff.load_model`)
describe a network by one list of flags for each family. Each function takes those of one family and
the sizes of a shape, and makes the network.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from .._types import Key, Network
from . import embeddings, styles
from ._activation import AbstractActivation, ELU, LeakyReLU, ReLU, SiLU
from ._classifier import UNetClassifier
from ._embedding import Embedding
from ._ends import wrapped
from ._fir import Kernel
from ._heads import AbstractHeads, EveryBlock, Heads, HeadsOf, HeadsOfAtLeast, LastBlock
from ._pool import AbstractPool, AveragePool
from ._pyramids import InputSkip, OutputSkip, ResidualPyramid
from ._resampling import Filtered, InBlock, Pooling, Strided
from ._shape import UNetShape
from ._style import AbstractResampling, Added, FanInit, ScaleShift, Style
from ._time_features import AbstractTime, Fourier, NoiseLevels, SongSinusoids
from ._unet import UNet


def openai_unet(
    *,
    num_heads: int = 4,
    num_heads_upsample: int | None = None,
    channels_per_head: int | None = None,
    dropout: float = 0.0,
    scale_shift_norm: bool = True,
    conv_resample: bool = True,
    resblock_updown: bool = False,
    norm_groups: int = 32,
    compute_dtype: Any = jnp.float32,
    remat: bool = False,
    key: Key,
    **sizes: Any,
) -> UNet:
    """Improved DDPM's and ADM's `UNetModel`."""
    style = _openai_style(
        Heads(num_heads, num_heads_upsample) if channels_per_head is None else channels_per_head,
        dropout,
        scale_shift_norm,
        conv_resample,
        resblock_updown,
        norm_groups,
    )
    shape, embed = UNetShape(**sizes), embeddings.iddpm()
    return UNet(shape, style, embed, compute_dtype=compute_dtype, remat=remat, key=key)


def openai_classifier(
    *,
    num_classes: int,
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
    key: Key,
    **sizes: Any,
) -> UNetClassifier:
    """ADM's `EncoderUNetModel`."""
    style = _openai_style(
        Heads(num_heads) if channels_per_head is None else channels_per_head,
        dropout,
        scale_shift_norm,
        conv_resample,
        resblock_updown,
        norm_groups,
    )
    shape, embed = UNetShape(out_channels=num_classes, **sizes), embeddings.iddpm()
    return UNetClassifier(
        shape, style, embed, pool, compute_dtype=compute_dtype, remat=remat, key=key
    )


def _openai_style(
    heads: AbstractHeads | int,
    dropout: float,
    scale_shift_norm: bool,
    conv_resample: bool,
    resblock_updown: bool,
    norm_groups: int,
) -> Style:
    flat: AbstractResampling = Strided() if conv_resample else Pooling()
    return styles.iddpm(
        dropout=dropout,
        heads=HeadsOf(heads) if isinstance(heads, int) else heads,
        modulation=ScaleShift() if scale_shift_norm else Added(),
        resampling=InBlock() if resblock_updown else flat,
        norm_groups=norm_groups,
    )


def ddpm(
    *,
    dropout: float = 0.1,
    conv_resample: bool = True,
    conditional: bool = True,
    centred: bool = True,
    sigma_levels: Iterable[Any] | None = None,
    scale_by_sigma: bool = False,
    norm_groups: int = 32,
    attention_after_every: bool = False,
    nonlinearity: str = "swish",
    compute_dtype: Any = jnp.float32,
    remat: bool = False,
    key: Key,
    **sizes: Any,
) -> Network:
    """score_sde's `ddpm`."""
    style = styles.ddpm(
        dropout=dropout,
        resampling=Strided((0, 1)) if conv_resample else Pooling(),
        attention_up=EveryBlock() if attention_after_every else LastBlock(),
        norm_groups=norm_groups,
    )
    time = SongSinusoids() if sigma_levels is None else NoiseLevels(*sigma_levels)
    style, embed = _activated(style, embeddings.score_sde(time), nonlinearity)
    embed = embed if conditional else None
    shape = UNetShape(stem_mult=1, **sizes)
    net = UNet(shape, style, embed, compute_dtype=compute_dtype, remat=remat, key=key)
    return wrapped(net, centred=centred, by_sigma=scale_by_sigma)


def ncsnpp(
    *,
    block: str = "biggan",
    fir_kernel: Kernel | None = (1, 3, 3, 1),
    skip_rescale: bool = True,
    progressive: str = "none",
    progressive_input: str = "residual",
    progressive_combine: str = "sum",
    embedding: str = "fourier",
    fourier_scale: float | int = 16.0,
    frequencies: tuple[float, ...] | None = None,
    sigma_levels: Iterable[Any] | None = None,
    scale_by_sigma: bool = True,
    conditional: bool = True,
    centred: bool = True,
    conv_resample: bool = True,
    init_scale: float | int = 0.0,
    dropout: float = 0.1,
    nonlinearity: str = "swish",
    compute_dtype: Any = jnp.float32,
    remat: bool = False,
    key: Key,
    **sizes: Any,
) -> Network:
    """score_sde's `ncsnpp`, DDPM++ among them."""
    kernel = (1, 1) if fir_kernel is None else fir_kernel
    flat = Strided((0, 1)) if fir_kernel is None else Filtered(kernel)
    concatenate = _choice("progressive_combine", progressive_combine, sum=False, cat=True)
    residual = ResidualPyramid(flat)
    into = dict(none=None, input_skip=InputSkip(kernel, concatenate), residual=residual)
    out = dict(none=None, output_skip=OutputSkip(kernel), residual=residual)
    plain = flat if conv_resample else Pooling(kernel)
    style = dataclasses.replace(
        styles.ncsnpp(
            dropout=dropout,
            input_pyramid=_choice("progressive_input", progressive_input, **into),
            output_pyramid=_choice("progressive", progressive, **out),
        ),
        resampling=_choice("block", block, biggan=InBlock(kernel, project=True), ddpm=plain),
        init=FanInit(init_scale or 1e-10),
        scale=0.5**0.5 if skip_rescale else 1.0,
    )
    positional = SongSinusoids() if sigma_levels is None else NoiseLevels(*sigma_levels)
    fourier = Fourier(2, fourier_scale, frequencies)
    time = _choice("embedding", embedding, fourier=fourier, positional=positional)
    style, embed = _activated(style, embeddings.score_sde(time), nonlinearity)
    embed = embed if conditional else None
    shape = UNetShape(stem_mult=1, **sizes)
    net = UNet(shape, style, embed, compute_dtype=compute_dtype, remat=remat, key=key)
    return wrapped(net, centred=centred, by_sigma=scale_by_sigma)


def _activated(style: Style, embed: Embedding, nonlinearity: str) -> tuple[Style, Embedding]:
    known = dict(swish=SiLU(), elu=ELU(), relu=ReLU(), lrelu=LeakyReLU(0.2))
    activation: AbstractActivation = _choice("nonlinearity", nonlinearity, **known)
    replace = dataclasses.replace
    return replace(style, activation=activation), replace(embed, activation=activation)


def edm_song(
    *,
    embedding: str = "positional",
    encoder: str = "standard",
    decoder: str = "standard",
    kernel: Kernel = (1, 1),
    noise_mult: int = 1,
    embedding_mult: int = 4,
    frequencies: tuple[float, ...] | None = None,
    dropout: float = 0.13,
    class_dropout: float = 0.0,
    compute_dtype: Any = jnp.float32,
    remat: bool = False,
    key: Key,
    **sizes: Any,
) -> UNet:
    """EDM's `SongUNet`."""
    into = dict(standard=None, skip=InputSkip(kernel), residual=ResidualPyramid(Filtered(kernel)))
    style = styles.edm(
        dropout=dropout,
        kernel=kernel,
        input_pyramid=_choice("encoder", encoder, **into),
        output_pyramid=_choice("decoder", decoder, standard=None, skip=OutputSkip(kernel)),
    )
    fourier, positional = Fourier(noise_mult, 16.0, frequencies), SongSinusoids(noise_mult)
    time: AbstractTime = _choice("embedding", embedding, positional=positional, fourier=fourier)
    embed = embeddings.edm(time, class_dropout=class_dropout, mult=embedding_mult)
    defaults: dict[str, Any] = dict(num_res_blocks=4, channel_mult=(2, 2, 2), stem_mult=1)
    return _edm(style, embed, defaults | sizes, compute_dtype, remat, key)


def edm_dhariwal(
    *,
    channels_per_head: int = 64,
    embedding_mult: int = 4,
    dropout: float = 0.1,
    class_dropout: float = 0.0,
    compute_dtype: Any = jnp.float32,
    remat: bool = False,
    key: Key,
    **sizes: Any,
) -> UNet:
    """EDM's `DhariwalUNet`."""
    style = styles.edm_adm(dropout=dropout, heads=HeadsOfAtLeast(channels_per_head))
    embed = embeddings.edm_adm(class_dropout=class_dropout, mult=embedding_mult)
    defaults: dict[str, Any] = dict(channels=192, num_res_blocks=3, channel_mult=(1, 2, 3, 4))
    defaults |= dict(attention_downsamples=(2, 4, 8))
    return _edm(style, embed, defaults | sizes, compute_dtype, remat, key)


def _edm(
    style: Style, embed: Embedding, sizes: dict[str, Any], dtype: Any, remat: bool, key: Key
) -> UNet:
    return UNet(UNetShape(**sizes), style, embed, compute_dtype=dtype, remat=remat, key=key)


def _choice(flag: str, value: str, **known: Any) -> Any:
    """**Raises:** `ValueError` for an unknown value."""
    if value not in known:
        raise ValueError(f"{flag} is one of {', '.join(map(repr, known))}; got {value!r}.")
    return known[value]
