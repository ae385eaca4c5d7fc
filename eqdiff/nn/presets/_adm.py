"""The networks of guided-diffusion's published models (Dhariwal & Nichol 2021), by name.

Numbers are those of the flags in the README of the official code. Its schedules have 1000 steps,
cosine at 64×64 and linear elsewhere, and the time input is the index of the step as it is.
"""

from typing import Any

from ..._types import Key
from .. import embeddings, styles
from .._check import check_variant
from .._classifier import UNetClassifier
from .._heads import AbstractHeads, Heads, HeadsOf
from .._pool import AttentionPool
from .._shape import UNetShape
from .._super_resolution import SuperResolution
from .._unet import UNet
from ._build import split, unet


# By the side of the image: the widths of the levels, from it down to 8.
_MULT: dict[int, tuple[float | int, ...]] = {
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}


def _sizes(image_size: int, **sizes: Any) -> dict[str, Any]:
    # Attention at 32×32, 16×16 and 8×8, whatever the side.
    defaults: dict[str, Any] = dict(
        out_channels=6,
        channels=256,
        channel_mult=_MULT[image_size],
        attention_downsamples=tuple(image_size // side for side in (32, 16, 8)),
        num_classes=1000,
    )
    return defaults | sizes


_IMAGENET: dict[int, dict[str, Any]] = {
    64: dict(channels=192, num_res_blocks=3),
    128: {},
    256: {},
    512: {},
}


def adm_imagenet(
    image_size: int, *, dropout: float | None = None, key: Key, **options: Any
) -> UNet:
    """ADM for ImageNet: 296, 422, 554 and 559 million parameters.

    Two blocks per level (64×64: three), 256 channels (64×64: 192) times the widths of the level,
    attention at 32×32, 16×16 and 8×8 with heads of 64 channels (128×128: four heads), sides that
    change inside residual blocks, learned variance, 1000 classes.

    **Arguments:**

    - `image_size`: the side of the images, 64, 128, 256 or 512.
    - `dropout`: as for [`eqdiff.nn.Style`][]; by default 0.1 for 64×64 and 0 elsewhere.
    - `key`: a PRNG key.
    - `options`: sizes of [`eqdiff.nn.UNetShape`][], `num_classes=None` for the unconditional
        network, which was published for 256×256, and `compute_dtype` and `remat` of
        [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.UNet`][].

    **Raises:** `ValueError` for another side.

    **Example:**

    ```python
    net = eqd.nn.presets.adm_imagenet(64, key=jax.random.key(0))
    ```
    """
    check_variant("image_size", image_size, _IMAGENET)
    # The one published network with a fixed number of heads.
    heads: AbstractHeads = Heads(4) if image_size == 128 else HeadsOf(64)
    dropout = dropout if dropout is not None else 0.1 if image_size == 64 else 0.0
    style, defaults = styles.adm(dropout=dropout, heads=heads), _sizes(image_size)
    return unet(style, embeddings.iddpm(), defaults | _IMAGENET[image_size], options, key)


def adm_lsun(*, dropout: float = 0.1, key: Key, **options: Any) -> UNet:
    """ADM for the bedrooms, cats and horses of 256×256 LSUN: 553 million parameters.

    The 256×256 network of `adm_imagenet` without classes and with dropout 0.1.

    **Arguments:**

    - `dropout`: as for [`eqdiff.nn.Style`][]; 0 for the second network of horses.
    - `key`: a PRNG key.
    - `options`: sizes of [`eqdiff.nn.UNetShape`][], and `compute_dtype` and `remat` of
        [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.UNet`][].

    **Example:**

    ```python
    net = eqd.nn.presets.adm_lsun(remat=True, key=jax.random.key(0))
    ```
    """
    defaults = _sizes(256, num_classes=None)
    return unet(styles.adm(dropout=dropout), embeddings.iddpm(), defaults, options, key)


_UPSAMPLER: dict[int, dict[str, Any]] = {
    256: {},
    # No attention at 8×8, and the levels of the 256×256 network.
    512: dict(channel_mult=_MULT[256], attention_downsamples=(16, 32)),
}


def adm_upsampler(
    image_size: int, *, dropout: float = 0.0, key: Key, **options: Any
) -> SuperResolution:
    """ADM's upsamplers for ImageNet, 64→256 and 128→512: 312 and 309 million parameters.

    192 channels, two blocks per level, widths (1, 1, 2, 2, 4, 4), attention at 32×32 and 16×16
    (256: and 8×8) with heads of 64 channels (256: four heads), 1000 classes: `args` is the pair of
    the small image and the class.

    **Arguments:**

    - `image_size`: the side of the large images, 256 or 512.
    - `dropout`: as for [`eqdiff.nn.Style`][].
    - `key`: a PRNG key.
    - `options`: sizes of [`eqdiff.nn.UNetShape`][], whose `in_channels` counts both images, and
        `compute_dtype` and `remat` of [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.SuperResolution`][] of an [`eqdiff.nn.UNet`][].

    **Raises:** `ValueError` for another side.

    **Example:**

    ```python
    net = eqd.nn.presets.adm_upsampler(256, key=jax.random.key(0))
    ```
    """
    check_variant("image_size", image_size, _UPSAMPLER)
    heads: AbstractHeads = Heads(4) if image_size == 256 else HeadsOf(64)
    style = styles.adm(dropout=dropout, heads=heads)
    defaults = _sizes(image_size, in_channels=6, channels=192) | _UPSAMPLER[image_size]
    return SuperResolution(unet(style, embeddings.iddpm(), defaults, options, key))


def adm_classifier(
    image_size: int,
    *,
    num_classes: int = 1000,
    dropout: float = 0.0,
    key: Key,
    **options: Any,
) -> UNetClassifier:
    """ADM's noisy classifiers of ImageNet: 65, 43, 54 and 54 million parameters.

    128 channels, two blocks per level (64×64: four), attention at 32×32, 16×16 and 8×8 and in the
    pooling, with heads of 64 channels.

    **Arguments:**

    - `image_size`: the side of the images, 64, 128, 256 or 512.
    - `num_classes`: the number of logits.
    - `dropout`: as for [`eqdiff.nn.Style`][].
    - `key`: a PRNG key.
    - `options`: sizes of [`eqdiff.nn.UNetShape`][], and `compute_dtype` and `remat` of
        [`eqdiff.nn.UNetClassifier`][].

    **Returns:** an [`eqdiff.nn.UNetClassifier`][].

    **Raises:** `ValueError` for another side.

    **Example:**

    ```python
    net = eqd.nn.presets.adm_classifier(64, key=jax.random.key(0))
    ```
    """
    check_variant("image_size", image_size, _MULT)
    blocks = 4 if image_size == 64 else 2
    defaults = _sizes(image_size, channels=128, num_res_blocks=blocks, num_classes=None)
    sizes, rest = split(options)
    defaults["out_channels"] = num_classes
    shape = UNetShape(**(defaults | sizes))
    style, pool = styles.adm(dropout=dropout), AttentionPool(image_size)
    return UNetClassifier(shape, style, embeddings.iddpm(), pool, **rest, key=key)
