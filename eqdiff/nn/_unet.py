r"""One U-Net for DDPM, Improved DDPM, NCSN++ and DDPM++, ADM, and EDM's versions of them.

$$F = \mathrm{body}(x, e), \qquad e = \mathrm{embed}(c_\text{noise}, \text{class}), \tag{1}$$

with the levels of `_body.py`. How large it is (`_shape.py`), what it is made of (`_style.py`) and
how its conditioning inputs become $e$ (`_embedding.py`) are three objects.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from einops import rearrange

from .._types import Args, Example, Key, Time
from ._body import UNetBody
from ._check import check_c_noise, check_class, check_levels
from ._condition import OneHotLinear
from ._conv import Linear
from ._embed import ClassEmbedding, TimeEmbedding
from ._embedding import Embedding
from ._norm import at_least_float32
from ._shape import UNetShape
from ._style import Layers, Style


class UNet(eqx.Module):
    r"""Equation (1), for images of any size that the levels divide and any number of channels.

    ```python
    shape = eqd.nn.UNetShape(channels=64, channel_mult=(1, 2, 2), attention_downsamples=(4,))
    style = eqd.nn.styles.ncsnpp(dropout=0.1)
    net = eqd.nn.UNet(shape, style, eqd.nn.embeddings.iddpm(), key=key)
    ```

    It computes channels-last inside and takes and returns `(channels, height, width)`, one example
    at a time; use `jax.vmap` for a batch, which becomes one batched convolution per layer.

    Published configurations are made by `eqdiff.nn.presets`; trained weights are read by
    [`eqdiff.interop.openai_unet`][], [`eqdiff.interop.score_sde_network`][],
    [`eqdiff.interop.edm_network`][] and [`eqdiff.interop.diffusers_network`][].

    ??? cite "Reference"

        Ho, Jain & Abbeel, *Denoising Diffusion Probabilistic Models*, NeurIPS 2020.

        Nichol & Dhariwal, *Improved Denoising Diffusion Probabilistic Models*, ICML 2021.

        Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*,
        ICLR 2021.

        Dhariwal & Nichol, *Diffusion Models Beat GANs on Image Synthesis*, NeurIPS 2021.

        Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*,
        NeurIPS 2022.
    """

    time_embedding: TimeEmbedding | None
    class_embedding: ClassEmbedding | OneHotLinear | None
    augment_embedding: Linear | None
    body: UNetBody
    shape: UNetShape = eqx.field(static=True)
    style: Style = eqx.field(static=True)
    embed: Embedding | None = eqx.field(static=True)
    compute_dtype: Any = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        shape: UNetShape,
        style: Style,
        embed: Embedding | None,
        *,
        compute_dtype: Any = jnp.float32,
        remat: bool = False,
        key: Key,
    ):
        """**Arguments:**

        - `shape`: its sizes, [`eqdiff.nn.UNetShape`][].
        - `style`: what it is made of, [`eqdiff.nn.Style`][]; `eqdiff.nn.styles` has those of
            published networks.
        - `embed`: how the time input and the class are embedded, [`eqdiff.nn.Embedding`][];
            `eqdiff.nn.embeddings` has those of published networks. `None` for blocks that depend on
            neither.
        - `compute_dtype`: of convolutions and attention's products, such as `jnp.bfloat16`.
            Parameters, normalisation, softmax and embeddings stay float32 (or become float64 with
            it).
        - `remat`: whether to compute each block again in the backward pass instead of storing what
            is inside it.
        - `key`: a PRNG key.

        **Raises:** `ValueError` where a width cannot be split into heads or groups, or the
        embedding has no place for the classes or the augmentations of the shape.
        """
        key1, key2 = jax.random.split(key)
        self.time_embedding = self.class_embedding = self.augment_embedding = None
        if embed is not None:
            embed = embed.at(shape.channels)
            self.time_embedding, modules = embed.build(shape, key1)
            self.class_embedding, self.augment_embedding = modules
        elif shape.num_classes is not None or shape.augment_size:
            raise ValueError(
                f"a UNet without an embedding takes neither classes nor augmentations, got "
                f"num_classes={shape.num_classes} and augment_size={shape.augment_size}; give it "
                "an embed, such as eqdiff.nn.embeddings.iddpm()."
            )
        size = None if embed is None else embed.size(shape.channels)
        self.body = UNetBody(shape, Layers(style, size, shape.dims), remat=remat, key=key2)
        self.shape, self.style, self.embed, self.remat = shape, style, embed, remat
        self.compute_dtype = jnp.dtype(compute_dtype)

    def _embed(self, c_noise: Time, args: Args, key: Key | None) -> Any:
        dtype = at_least_float32(self.compute_dtype)
        c_noise = check_c_noise(c_noise, dtype, "UNet")
        if self.embed is None or self.time_embedding is None:
            check_class(args, None, "UNet")
            return None
        modules = self.class_embedding, self.augment_embedding
        return self.embed(self.time_embedding, modules, self.shape, c_noise, args, dtype, key)

    @jax.named_scope("eqdiff.nn.UNet")
    def __call__(
        self, c_noise: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        """**Arguments:**

        - `c_noise`: the network's time input, one number.
        - `x`: one image, `(in_channels, height, width)`, whose sides are multiples of 2^(levels −
            1); with other `dims`, a signal or a volume (of any depth).
        - `args`: its class, one integer from 0 to `num_classes - 1`, where the shape has
            `num_classes`; otherwise `None`. With EDM's embeddings also `None` for no class, or
            [`eqdiff.nn.Conditions`][].
        - `key`: a PRNG key for dropout. Without it there is no dropout.

        **Returns:** $F$, `(out_channels, height, width)`, with the sides and in the dtype of `x`.

        **Raises:** `ValueError` where an argument has the wrong shape, or a class is missing,
        unexpected or out of range.
        """
        check_levels(x, self.shape.in_channels, self.shape.num_levels, "UNet", self.shape.dims)
        embedding = self._embed(c_noise, args, key)
        h = rearrange(x, "c ... -> ... c").astype(self.compute_dtype)
        h = self.body(h, embedding, key)
        return rearrange(h, "... c -> c ...").astype(x.dtype)
