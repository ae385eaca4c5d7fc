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
from ._embedding import Embedding
from ._init import key_stream
from ._norm import at_least_float32
from ._padded import padded
from ._pool import AbstractHead, AbstractPool, AveragePool
from ._shape import UNetShape
from ._style import Layers, Style


class UNetClassifier(eqx.Module):
    r"""A classifier of noisy images, from the way down of [`eqdiff.nn.UNet`][]: equation (1).

    Train it with [`eqdiff.classifier_loss`][] and guide with it in [`eqdiff.ClassifierGuidance`][].
    [`eqdiff.nn.presets.adm_classifier`][] makes the published classifiers, and
    [`eqdiff.interop.openai_classifier`][] reads their weights. One example at a time, channels
    first; use `jax.vmap` for a batch.

    **Example:**

    ```python
    shape = eqd.nn.UNetShape(out_channels=10, channels=64, attention_downsamples=(2, 4))
    embed, pool = eqd.nn.embeddings.iddpm(), eqd.nn.AttentionPool(image_size=32)
    net = eqd.nn.UNetClassifier(shape, eqd.nn.styles.adm(), embed, pool, key=jax.random.key(0))
    classifier = eqd.Classifier(net, eqd.cosine_schedule(1000))
    ```

    ??? cite "Reference"

        Dhariwal & Nichol, *Diffusion Models Beat GANs on Image Synthesis*, NeurIPS 2021.
    """

    time_embedding: TimeEmbedding
    body: UNetEncoder
    head: AbstractHead
    pool: AbstractPool
    shape: UNetShape = eqx.field(static=True)
    style: Style = eqx.field(static=True)
    embed: Embedding = eqx.field(static=True)
    compute_dtype: Any = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        shape: UNetShape,
        style: Style,
        embed: Embedding,
        pool: AbstractPool = AveragePool(),
        *,
        compute_dtype: Any = jnp.float32,
        remat: bool = False,
        key: Key,
    ):
        """**Arguments:**

        - `shape`, `style`, `embed`, `compute_dtype`, `remat`, `key`: as for [`eqdiff.nn.UNet`][];
            the `out_channels` of the shape are the number of logits.
        - `pool`: how the images become logits: [`eqdiff.nn.AveragePool`][],
            [`eqdiff.nn.AttentionPool`][] or [`eqdiff.nn.SpatialPool`][].

        **Raises:** `ValueError` where a width cannot be split into heads or groups, for images
        that the pooling does not fit, or for a shape with classes, augmentations or other data
        than images.
        """
        if shape.num_classes is not None or shape.augment_size or shape.dims != 2:
            raise ValueError(
                "UNetClassifier returns logits of images and takes neither classes nor "
                f"augmentations, got {shape}. The number of logits is out_channels."
            )
        keys = key_stream(key)
        self.shape, self.style, self.embed = shape, style, embed.at(shape.channels)
        self.pool, self.remat, self.compute_dtype = pool, remat, jnp.dtype(compute_dtype)
        self.time_embedding, _ = self.embed.build(shape, next(keys))
        layers = Layers(style, embed.size(shape.channels), shape.dims)
        self.body = padded(UNetEncoder(shape, layers, remat=remat, key=next(keys)), style.padding)
        groups, widths = style.norm.number, self.body.widths
        self.head = pool.build(widths, shape.num_levels, shape.out_channels, groups, next(keys))

    @jax.named_scope("eqdiff.nn.UNetClassifier")
    def __call__(
        self, c_noise: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Float[Array, " classes"]:
        """**Arguments:**

        - `c_noise`: the network's time input, one number.
        - `x`: one image, `(in_channels, height, width)`, whose sides are multiples of 2^(levels −
            1).
        - `args`: `None`: a classifier takes no class.
        - `key`: a PRNG key for dropout. Without one, nothing is dropped.

        **Returns:** logits, `(out_channels,)`, in the dtype of `x`.

        **Raises:** `ValueError` where an argument has the wrong shape, or a class is given.
        """
        dtype = at_least_float32(self.compute_dtype)
        c_noise = check_c_noise(c_noise, dtype, "UNetClassifier")
        check_levels(x, self.shape.in_channels, self.shape.num_levels, "UNetClassifier")
        if args is not None:
            raise ValueError(
                "UNetClassifier returns the logits of all classes and takes none, got "
                f"args={args}. For log p(y|x) write eqdiff.Classifier(net, process)(t, x, y)."
            )
        modules = None, None
        embedding = self.embed(self.time_embedding, modules, self.shape, c_noise, None, dtype, None)
        h = rearrange(x, "c height width -> height width c").astype(self.compute_dtype)
        return self.head(self.body(h, embedding, key)).astype(x.dtype)
