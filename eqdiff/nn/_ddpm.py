r"""The network of DDPM (Ho et al. 2020), as score_sde has it.

$$h = \mathrm{conv}(\mathrm{SiLU}(\mathrm{GN}(x))) + W\,\mathrm{SiLU}(e), \qquad
  y = \mathrm{skip}(x) + \mathrm{conv}(\mathrm{drop}(\mathrm{SiLU}(\mathrm{GN}(h)))), \tag{1}$$

in levels as in `_body.py`, with one head of attention, on the way up after the last block of a
level alone (`attention_after_every` puts it where Ho et al. have it, after every block). Improved
DDPM's [`eqdiff.nn.UNet`][] with `scale_shift_norm=False` differs from it in four places: attention
after every block on the way up, the order and frequencies of the time embedding, the constant of
the normalisation, and the padding of strided convolutions.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._types import Args, Example, Key, Time
from ._body import UNetBody
from ._c_noise import check_sigma_levels, run_score_network, SigmaLevels
from ._embed import ClassEmbedding, TimeEmbedding
from ._init import fan_average, key_stream, zeros
from ._style import levels, Style


class DDPM(eqx.Module):
    r"""The network of DDPM, for images of any size that the levels divide and any number of
    channels.

    The time input is embedded as it is: the index of a schedule of 1000 steps (the `c_noise` of
    [`eqdiff.Schedule`][]), or $999\,t$ of [`eqdiff.VPSDE`][]; the output is ε. With `sigma_levels`
    the time input is $\log\sigma$, the `c_noise` of [`eqdiff.VESDE`][], and with `scale_by_sigma`
    the output is the score (`eqdiff.PredictScore()`).

    One example at a time, channels first; use `jax.vmap` for a batch. Trained weights are read by
    [`eqdiff.interop.score_sde_network`][].

    ??? cite "Reference"

        Ho, Jain & Abbeel, *Denoising Diffusion Probabilistic Models*, NeurIPS 2020.
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
    dropout: float = eqx.field(static=True)
    num_classes: int | None = eqx.field(static=True)
    conv_resample: bool = eqx.field(static=True)
    conditional: bool = eqx.field(static=True)
    centred: bool = eqx.field(static=True)
    sigma_levels: SigmaLevels | None = eqx.field(static=True)
    scale_by_sigma: bool = eqx.field(static=True)
    norm_groups: int = eqx.field(static=True)
    attention_after_every: bool = eqx.field(static=True)
    compute_dtype: Any = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        channels: int = 128,
        num_res_blocks: int = 2,
        channel_mult: tuple[int, ...] = (1, 2, 2, 2),
        attention_downsamples: tuple[int, ...] = (2,),
        dropout: float = 0.1,
        num_classes: int | None = None,
        conv_resample: bool = True,
        conditional: bool = True,
        centred: bool = True,
        sigma_levels: SigmaLevels | None = None,
        scale_by_sigma: bool = False,
        norm_groups: int = 32,
        attention_after_every: bool = False,
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
            attention. The middle always has.
        - `dropout`: its probability, in every residual block.
        - `num_classes`: how many classes there are; `None` for a network without.
        - `conv_resample`: whether sides change with convolutions, or with a 2×2 mean and repeated
            pixels.
        - `conditional`: whether the blocks depend on the time input at all.
        - `centred`: whether data are in $[-1, 1]$; those in $[0, 1]$ are moved there first.
        - `sigma_levels`: `(sigma_min, sigma_max, N)` for a network trained on $N$ noise levels,
            whose sinusoids are of the level's number; its time input is $\log\sigma$.
        - `scale_by_sigma`: whether the output is divided by σ; needs `sigma_levels`.
        - `norm_groups`: groups of every normalisation; must divide every width.
        - `attention_after_every`: whether attention follows every block of a level on the way up,
            as in Ho et al. (2020) and diffusers, or its last block only, as in score_sde.
        - `compute_dtype`, `remat`, `key`: as for [`eqdiff.nn.UNet`][].

        **Raises:** `ValueError` where a width cannot be normalised, or the output is to be divided
        by a σ that the network does not know.
        """
        if scale_by_sigma and sigma_levels is None:
            raise ValueError(
                "scale_by_sigma=True divides the output by σ, which DDPM knows only where it has "
                "sigma_levels=(sigma_min, sigma_max, N)."
            )
        if num_classes is not None and not conditional:
            raise ValueError("a network with num_classes needs conditional=True.")
        self.in_channels, self.out_channels, self.channels = in_channels, out_channels, channels
        self.num_res_blocks, self.channel_mult = num_res_blocks, tuple(channel_mult)
        self.attention_downsamples, self.dropout = tuple(attention_downsamples), dropout
        self.num_classes, self.conv_resample = num_classes, conv_resample
        self.conditional, self.centred, self.scale_by_sigma = conditional, centred, scale_by_sigma
        self.sigma_levels = check_sigma_levels(sigma_levels, "DDPM")
        self.norm_groups, self.remat = norm_groups, remat
        self.attention_after_every = attention_after_every
        self.compute_dtype = jnp.dtype(compute_dtype)
        self.time_embedding, self.class_embedding, self.body = self._build(key)

    def _build(self, key):
        keys = key_stream(key)
        size = 4 * self.channels if self.conditional else None
        time = classes = None
        if size is not None:
            time = TimeEmbedding(
                self.channels,
                size,
                cosine_first=False,
                endpoint=True,
                init=fan_average(),
                bias_init=zeros,
                key=next(keys),
            )
            if self.num_classes is not None:
                classes = ClassEmbedding(self.num_classes, size, key=next(keys))
        style = Style(
            size,
            self.dropout,
            groups=self.norm_groups,
            scale=1.0,
            kernel=None,
            resample_in_block=False,
            conv_resample=self.conv_resample,
        )
        body = UNetBody(
            style,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            stem=self.channels,
            num_res_blocks=self.num_res_blocks,
            **levels(self),
            attention_after_every=self.attention_after_every,
            remat=self.remat,
            key=next(keys),
        )
        return time, classes, body

    @jax.named_scope("eqdiff.nn.DDPM")
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
        return run_score_network(self, "DDPM", c_noise, x, args, key)
