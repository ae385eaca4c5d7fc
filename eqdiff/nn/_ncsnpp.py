r"""NCSN++ and DDPM++ (Song et al. 2021, section 4.4 and appendix H).

The U-Net of DDPM with, each chosen by an ablation: sums divided by $\sqrt 2$, BigGAN's residual
blocks, more of them, FIR filters where sides change, and image pyramids next to the features.
NCSN++ (for VE) has all; DDPM++ (for VP and sub-VP) has neither filters nor pyramids. The time input
is $\log\sigma$, embedded by Fourier features, or one of DDPM's, embedded by sinusoids.
"""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from .._types import Args, Example, Key, Time
from ._body import UNetBody
from ._c_noise import check_sigma_levels, run_score_network, SigmaLevels
from ._check import check_variant
from ._embed import ClassEmbedding, fourier_frequencies, TimeEmbedding
from ._init import fan_average, key_stream, zeros
from ._style import levels, Style


PYRAMIDS_OUT = {"none": "standard", "output_skip": "skip", "residual": "residual"}
PYRAMIDS_IN = {"none": "standard", "input_skip": "skip", "residual": "residual"}


class NCSNpp(eqx.Module):
    r"""NCSN++ and DDPM++, for images of any size that the levels divide and any number of channels.

    With `embedding="fourier"` or with `sigma_levels` its time input is $\log\sigma$, the `c_noise`
    of [`eqdiff.VESDE`][]; with `scale_by_sigma` its output is then the score, so that

    ```python
    denoiser = eqdiff.Denoiser(net, eqdiff.VESDE(), eqdiff.PredictScore())
    ```

    is right. Otherwise the time input is embedded as it is: [`eqdiff.VPSDE`][] and
    [`eqdiff.SubVPSDE`][] give $999\,t$, a schedule $1000\,t/T$, and the output is ε
    (`eqdiff.PredictNoise()`).

    Official configurations are made by `presets.ncsnpp_cifar10`, `presets.ddpmpp_cifar10` and
    others; trained weights are read by [`eqdiff.interop.score_sde_network`][]. One example at a
    time, channels first; use `jax.vmap` for a batch.

    ??? cite "Reference"

        Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*,
        ICLR 2021.
    """

    time_embedding: TimeEmbedding | None
    class_embedding: ClassEmbedding | None
    body: UNetBody
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    num_res_blocks: int = eqx.field(static=True)
    channel_mult: tuple[int, ...] = eqx.field(static=True)
    attention_downsamples: tuple[int, ...] = eqx.field(static=True)
    block: str = eqx.field(static=True)
    fir_kernel: tuple[float | int, ...] | None = eqx.field(static=True)
    skip_rescale: bool = eqx.field(static=True)
    progressive: str = eqx.field(static=True)
    progressive_input: str = eqx.field(static=True)
    progressive_combine: str = eqx.field(static=True)
    embedding: str = eqx.field(static=True)
    fourier_scale: float = eqx.field(static=True)
    frequencies: tuple[float, ...] | None = eqx.field(static=True)
    sigma_levels: SigmaLevels | None = eqx.field(static=True)
    scale_by_sigma: bool = eqx.field(static=True)
    conditional: bool = eqx.field(static=True)
    centred: bool = eqx.field(static=True)
    conv_resample: bool = eqx.field(static=True)
    init_scale: float = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    num_classes: int | None = eqx.field(static=True)
    compute_dtype: Any = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        channels: int = 128,
        num_res_blocks: int = 4,
        channel_mult: tuple[int, ...] = (1, 2, 2, 2),
        attention_downsamples: tuple[int, ...] = (2,),
        block: Literal["biggan", "ddpm"] = "biggan",
        fir_kernel: tuple[float | int, ...] | None = (1, 3, 3, 1),
        skip_rescale: bool = True,
        progressive: Literal["none", "output_skip", "residual"] = "none",
        progressive_input: Literal["none", "input_skip", "residual"] = "residual",
        progressive_combine: Literal["sum", "cat"] = "sum",
        embedding: Literal["fourier", "positional"] = "fourier",
        fourier_scale: float | int = 16.0,
        frequencies: tuple[float, ...] | None = None,
        sigma_levels: SigmaLevels | None = None,
        scale_by_sigma: bool = True,
        conditional: bool = True,
        centred: bool = True,
        conv_resample: bool = True,
        init_scale: float | int = 0.0,
        dropout: float = 0.1,
        num_classes: int | None = None,
        compute_dtype: Any = jnp.float32,
        remat: bool = False,
        *,
        key: Key,
    ):
        r"""**Arguments:**

        - `in_channels`, `out_channels`: of $x$ and of $F$.
        - `channels`: the width of the first level.
        - `num_res_blocks`: per level on the way down; one more on the way up.
        - `channel_mult`: the width of each level as a multiple of `channels`.
        - `attention_downsamples`: the factors by which the side has shrunk where a level has
            attention; `(2,)` is 16 for images of side 32. The middle always has attention.
        - `block`: residual blocks as BigGAN's, which change the sides inside, or as DDPM's.
        - `fir_kernel`: the filter's taps along one axis; `None` for a 2×2 mean, repeated pixels and
            unfiltered convolutions.
        - `skip_rescale`: whether sums of two branches are divided by $\sqrt 2$.
        - `progressive`, `progressive_input`: the pyramids on the way up and down.
        - `progressive_combine`: how an input skip joins the features.
        - `embedding`: Fourier features of $\log\sigma$, or sinusoids of the time input.
        - `fourier_scale`, `frequencies`: the standard deviation of the Fourier frequencies, and the
            frequencies themselves (`channels` of them); by default the same draw in every network.
        - `sigma_levels`: `(sigma_min, sigma_max, N)` for a network trained on $N$ noise levels,
            whose sinusoids are of the level's number; its time input is $\log\sigma$.
        - `scale_by_sigma`: whether the output is divided by σ; needs a time input of $\log\sigma$.
        - `conditional`: whether the blocks depend on the time input at all.
        - `centred`: whether data are in $[-1, 1]$; those in $[0, 1]$ are moved there first.
        - `conv_resample`: whether `block="ddpm"` changes sides with convolutions.
        - `init_scale`: of the last map of every branch at first; 0 means $10^{-10}$.
        - `dropout`: its probability, in every residual block.
        - `num_classes`: how many classes there are; `None` for a network without.
        - `compute_dtype`, `remat`, `key`: as for [`eqdiff.nn.UNet`][].

        **Raises:** `ValueError` for a variant that does not exist, widths that cannot be
        normalised, or an output that is to be divided by a σ that the network does not know.
        """
        check_variant("block", block, ("biggan", "ddpm"))
        check_variant("progressive", progressive, PYRAMIDS_OUT)
        check_variant("progressive_input", progressive_input, PYRAMIDS_IN)
        check_variant("progressive_combine", progressive_combine, ("sum", "cat"))
        check_variant("embedding", embedding, ("fourier", "positional"))
        self.in_channels, self.out_channels, self.channels = in_channels, out_channels, channels
        self.num_res_blocks, self.channel_mult = num_res_blocks, tuple(channel_mult)
        self.attention_downsamples, self.block = tuple(attention_downsamples), block
        self.fir_kernel = None if fir_kernel is None else tuple(fir_kernel)
        self.skip_rescale, self.progressive = skip_rescale, progressive
        self.progressive_input, self.progressive_combine = progressive_input, progressive_combine
        self.embedding, self.fourier_scale = embedding, fourier_scale
        if embedding == "fourier" and frequencies is None:
            frequencies = fourier_frequencies(channels, fourier_scale)
        self.frequencies = None if frequencies is None else tuple(frequencies)
        self.sigma_levels = check_sigma_levels(sigma_levels, "NCSNpp")
        self.scale_by_sigma, self.conditional, self.centred = scale_by_sigma, conditional, centred
        self.conv_resample, self.init_scale, self.dropout = conv_resample, init_scale, dropout
        self.num_classes, self.remat = num_classes, remat
        self.compute_dtype = jnp.dtype(compute_dtype)
        self._check()
        self.time_embedding, self.class_embedding, self.body = self._build(key)

    def _check(self):
        if self.scale_by_sigma and self.embedding == "positional" and self.sigma_levels is None:
            raise ValueError(
                "scale_by_sigma=True divides the output by σ, but a network with "
                "embedding='positional' does not know σ. Write scale_by_sigma=False (VP), or "
                "sigma_levels=(sigma_min, sigma_max, N) (VE)."
            )
        if self.embedding == "fourier" and self.sigma_levels is not None:
            raise ValueError(
                "sigma_levels is for embedding='positional'; Fourier features need none."
            )
        if self.num_classes is not None and not self.conditional:
            raise ValueError("a network with num_classes needs conditional=True.")

    def _build(self, key):
        keys = key_stream(key)
        size = 4 * self.channels if self.conditional else None
        init = fan_average()
        time = classes = None
        if size is not None:
            time = TimeEmbedding(
                2 * self.channels if self.embedding == "fourier" else self.channels,
                size,
                frequencies=self.frequencies if self.embedding == "fourier" else None,
                cosine_first=False,
                endpoint=self.embedding == "positional",
                init=init,
                bias_init=zeros,
                key=next(keys),
            )
            if self.num_classes is not None:
                classes = ClassEmbedding(self.num_classes, size, key=next(keys))
        style = Style(
            size,
            self.dropout,
            scale=0.5**0.5 if self.skip_rescale else 1.0,
            kernel=self.fir_kernel,
            resample_in_block=self.block == "biggan",
            conv_resample=self.conv_resample,
            out_init=fan_average(self.init_scale or 1e-10),
        )
        body = UNetBody(
            style,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            stem=self.channels,
            num_res_blocks=self.num_res_blocks,
            **levels(self),
            encoder=PYRAMIDS_IN[self.progressive_input],
            decoder=PYRAMIDS_OUT[self.progressive],
            concatenate=self.progressive_combine == "cat",
            remat=self.remat,
            key=next(keys),
        )
        return time, classes, body

    @jax.named_scope("eqdiff.nn.NCSNpp")
    def __call__(
        self, c_noise: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        r"""**Arguments:**

        - `c_noise`: the network's time input, one number; see above.
        - `x`: one image, `(in_channels, height, width)`, whose sides are multiples of 2^(levels −
            1).
        - `args`: its class, one integer from 0 to `num_classes - 1`, where `num_classes` was given;
            otherwise `None`.
        - `key`: a PRNG key for dropout. Without it there is no dropout.

        **Returns:** $F$, `(out_channels, height, width)`, in the dtype of `x`.

        **Raises:** `ValueError` where an argument has the wrong shape, or a class is missing,
        unexpected or out of range.
        """
        return run_score_network(self, "NCSNpp", c_noise, x, args, key)
