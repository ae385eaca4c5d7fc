r"""One U-Net for DDPM, Improved DDPM, NCSN++ and DDPM++, ADM, and EDM's versions of them.

$$F = \mathrm{body}(x, e), \qquad e = \mathrm{embed}(c_\text{noise}, \text{class}), \tag{1}$$

with the levels of `_body.py`. How large it is (`_shape.py`), what it is made of (`_style.py`) and
how its conditioning inputs become $e$ (`_embedding.py`) are three objects. Further conditions
(`_conditions.py`) are added to $e$, to the channels of $x$, or attended to.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from einops import rearrange

from .._types import Args, Example, Key, Time
from ._body import UNetBody
from ._check import check_c_noise, check_class, check_levels
from ._condition import Conditions, OneHotLinear
from ._condition_embeddings import Entered
from ._conditioning import (
    all_conditions,
    build_conditions,
    conditions_of,
    enter,
    field_channels,
    has_tokens,
    refuse_both,
)
from ._conditions import ClassCondition, VectorCondition
from ._conv import Linear
from ._embed import ClassEmbedding, TimeEmbedding
from ._embedding import Embedding
from ._norm import at_least_float32
from ._padded import padded
from ._shape import UNetShape
from ._style import Layers, Style


class UNet(eqx.Module):
    r"""A U-Net for images of any size that its levels divide, of any channels: equation (1).

    With two conditions, each of which the network also learns to do without:

    ```python
    conditions = {
        "coarse": eqd.nn.FieldCondition(1, dropout=0.1),
        "parameters": eqd.nn.VectorCondition(5, dropout=0.1),
    }
    net = eqd.nn.UNet(shape, style, embed, conditions=conditions, key=key)
    F = net(c_noise, x, {"coarse": field, "parameters": None})
    ```

    It takes and returns one example, `(channels, height, width)`, and computes channels-last; use
    `jax.vmap` for a batch, which becomes one batched convolution per layer.

    `eqdiff.nn.presets` makes published configurations; for trained weights see
    [`eqdiff.interop.openai_unet`][], [`eqdiff.interop.score_sde_network`][],
    [`eqdiff.interop.edm_network`][] and [`eqdiff.interop.diffusers_network`][].

    **Example:**

    ```python
    shape = eqd.nn.UNetShape(channels=64, channel_mult=(1, 2, 2), attention_downsamples=(4,))
    style, embed = eqd.nn.styles.ncsnpp(dropout=0.1), eqd.nn.embeddings.iddpm()
    net = eqd.nn.UNet(shape, style, embed, key=jax.random.key(0))
    F = net(500.0, jnp.ones((3, 32, 32)))
    ```

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
    condition_embeddings: Any
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
        conditions: Any = None,
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
        - `conditions`: [`eqdiff.nn.ClassCondition`][], [`eqdiff.nn.VectorCondition`][],
            [`eqdiff.nn.FieldCondition`][] or [`eqdiff.nn.TokenCondition`][], or a dictionary or
            tuple of them; the `args` of a call are then their values, in the same places. Classes
            and vectors are added to the embedding, fields are further channels of the input, and
            a cross-attention to the tokens follows every attention.
        - `compute_dtype`: of convolutions and attention's products, such as `jnp.bfloat16`.
            Parameters, normalisation, softmax and embeddings stay float32 (or become float64 with
            it).
        - `remat`: whether to compute each block again in the backward pass instead of storing what
            is inside it.
        - `key`: a PRNG key.

        **Raises:** `ValueError` where a width cannot be split into heads or groups, the embedding
        has no place for the classes or the augmentations of the shape, the shape has any next to
        conditions, or a filter of the style cannot have its padding.
        """
        given = dict(num_classes=shape.num_classes, augment_size=shape.augment_size)
        refuse_both(conditions, "UNet", **given)
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
        context_size = size or 4 * shape.channels
        # Not one of the keys that the body and the embedding are drawn from.
        key3 = jax.random.fold_in(key, 2)
        self.condition_embeddings = build_conditions(conditions, "UNet", context_size, key3)
        found = all_conditions(self.condition_embeddings)
        if embed is None and any(isinstance(c, ClassCondition | VectorCondition) for c in found):
            raise ValueError(
                "a UNet without an embedding has nothing to add a class or a vector to; give it an "
                "embed, such as eqdiff.nn.embeddings.iddpm()."
            )
        channels = shape.in_channels + field_channels(self.condition_embeddings)
        body = UNetBody(
            dataclasses.replace(shape, in_channels=channels),
            Layers(style, size, shape.dims),
            context_size=context_size if has_tokens(self.condition_embeddings) else None,
            remat=remat,
            key=key2,
        )
        self.body = padded(body, style.padding)
        self.shape, self.style, self.embed, self.remat = shape, style, embed, remat
        self.compute_dtype = jnp.dtype(compute_dtype)

    @property
    def conditions(self) -> Any:
        """What the network was built with."""
        return conditions_of(self.condition_embeddings)

    def _embed(
        self, c_noise: Time, args: Args, spatial: tuple[int, ...], key: Key | None
    ) -> tuple[Any, Entered]:
        dtype, entered = at_least_float32(self.compute_dtype), Entered()
        c_noise = check_c_noise(c_noise, dtype, "UNet")
        shape = self.shape
        own = shape.num_classes is not None or shape.augment_size or isinstance(args, Conditions)
        if not own:
            entered = enter(self.condition_embeddings, args, "UNet", spatial, dtype, key)
            args = None
        if self.embed is None or self.time_embedding is None:
            check_class(args, None, "UNet")
            return None, entered
        modules = self.class_embedding, self.augment_embedding
        e = self.embed(self.time_embedding, modules, shape, c_noise, args, dtype, key)
        return e if entered.vector is None else e + entered.vector, entered

    @jax.named_scope("eqdiff.nn.UNet")
    def __call__(
        self, c_noise: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        """**Arguments:**

        - `c_noise`: the network's time input, one number.
        - `x`: one image, `(in_channels, height, width)`, whose sides are multiples of 2^(levels −
            1); with other `dims`, a signal or a volume (of any depth).
        - `args`: the values of its conditions, in the places of `conditions`, `None` for a learned
            null; its class, one integer from 0 to `num_classes - 1`, where the shape has
            `num_classes`; otherwise `None`. With EDM's embeddings also `None` for no class, or
            [`eqdiff.nn.Conditions`][].
        - `key`: a PRNG key for dropout, and for dropping conditions. Without one,
            nothing is dropped.

        **Returns:** $F$, `(out_channels, height, width)`, with the sides and in the dtype of `x`.

        **Raises:** `ValueError` where an argument has the wrong shape, or a condition is missing,
        unexpected or out of range.
        """
        check_levels(x, self.shape.in_channels, self.shape.num_levels, "UNet", self.shape.dims)
        embedding, entered = self._embed(c_noise, args, x.shape[1:], key)
        h = x.astype(self.compute_dtype)
        if entered.channels is not None:
            h = jnp.concatenate([h, entered.channels.astype(self.compute_dtype)])
        h = self.body(rearrange(h, "c ... -> ... c"), embedding, key, entered.context)
        return rearrange(h, "... c -> c ...").astype(x.dtype)
