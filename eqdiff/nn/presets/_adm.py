"""The networks of guided-diffusion's published models (Dhariwal & Nichol 2021), by name.

Numbers are those of the flags in the README of the official code. Its schedules have 1000 steps,
cosine at 64×64 and linear elsewhere, and the time input is the index of the step as it is.
"""

from typing import Any

from ..._types import Key
from .._check import check_variant
from .._classifier import UNetClassifier
from .._pool import AttentionPool
from .._super_resolution import SuperResolution
from .._unet import UNet


# By the side of the image: the widths of the levels, from it down to 8.
_MULT: dict[int, tuple[float | int, ...]] = {
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}


def _adm(image_size: int, **options: Any) -> dict[str, Any]:
    # Attention at 32×32, 16×16 and 8×8, whatever the side.
    defaults: dict[str, Any] = dict(
        out_channels=6,
        channels=256,
        num_res_blocks=2,
        channel_mult=_MULT[image_size],
        attention_downsamples=tuple(image_size // side for side in (32, 16, 8)),
        channels_per_head=64,
        num_classes=1000,
        resblock_updown=True,
    )
    return defaults | options


_IMAGENET: dict[int, dict[str, Any]] = {
    64: dict(channels=192, num_res_blocks=3, dropout=0.1),
    # The one published network with a fixed number of heads.
    128: dict(num_heads=4, channels_per_head=None),
    256: {},
    512: {},
}


def adm_imagenet(image_size: int, *, key: Key, **options: Any) -> UNet:
    """ADM for ImageNet: 296, 422, 554 and 559 million parameters.

    Two blocks per level (64×64: three), 256 channels (64×64: 192) times the widths of the level,
    attention at 32×32, 16×16 and 8×8 with heads of 64 channels (128×128: four heads), sides that
    change inside residual blocks, learned variance, 1000 classes.

    **Arguments:**

    - `image_size`: the side of the images, 64, 128, 256 or 512.
    - `key`: a PRNG key.
    - `options`: of [`eqdiff.nn.UNet`][]; `num_classes=None` for the unconditional network, which
        was published for 256×256.

    **Returns:** an [`eqdiff.nn.UNet`][].

    **Raises:** `ValueError` for another side.
    """
    check_variant("image_size", image_size, _IMAGENET)
    return UNet(key=key, **(_adm(image_size) | _IMAGENET[image_size] | options))


def adm_lsun(*, key: Key, **options: Any) -> UNet:
    """ADM for the bedrooms, cats and horses of 256×256 LSUN: 553 million parameters.

    The 256×256 network of `adm_imagenet` without classes and with dropout 0.1.

    **Arguments:**

    - `key`: a PRNG key.
    - `options`: of [`eqdiff.nn.UNet`][]; `dropout=0.0` for the second network of horses.

    **Returns:** an [`eqdiff.nn.UNet`][].
    """
    return UNet(key=key, **(_adm(256, num_classes=None, dropout=0.1) | options))


_UPSAMPLER: dict[int, dict[str, Any]] = {
    256: dict(num_heads=4, channels_per_head=None),
    # No attention at 8×8, and the levels of the 256×256 network.
    512: dict(channel_mult=_MULT[256], attention_downsamples=(16, 32)),
}


def adm_upsampler(image_size: int, *, key: Key, **options: Any) -> SuperResolution:
    """ADM's upsamplers for ImageNet, 64→256 and 128→512: 312 and 309 million parameters.

    192 channels, two blocks per level, widths (1, 1, 2, 2, 4, 4), attention at 32×32 and 16×16
    (256: and 8×8) with heads of 64 channels (256: four heads), 1000 classes: `args` is the pair of
    the small image and the class.

    **Arguments:**

    - `image_size`: the side of the large images, 256 or 512.
    - `key`: a PRNG key.
    - `options`: of [`eqdiff.nn.UNet`][], whose `in_channels` counts both images.

    **Returns:** an [`eqdiff.nn.SuperResolution`][] of an [`eqdiff.nn.UNet`][].

    **Raises:** `ValueError` for another side.
    """
    check_variant("image_size", image_size, _UPSAMPLER)
    defaults = _adm(image_size, in_channels=6, channels=192) | _UPSAMPLER[image_size]
    return SuperResolution(UNet(key=key, **(defaults | options)))


def adm_classifier(image_size: int, *, key: Key, **options: Any) -> UNetClassifier:
    """ADM's noisy classifiers of ImageNet: 65, 43, 54 and 54 million parameters.

    128 channels, two blocks per level (64×64: four), attention at 32×32, 16×16 and 8×8 and in the
    pooling, with heads of 64 channels.

    **Arguments:**

    - `image_size`: the side of the images, 64, 128, 256 or 512.
    - `key`: a PRNG key.
    - `options`: of [`eqdiff.nn.UNetClassifier`][].

    **Returns:** an [`eqdiff.nn.UNetClassifier`][].

    **Raises:** `ValueError` for another side.
    """
    check_variant("image_size", image_size, _MULT)
    defaults: dict[str, Any] = dict(
        num_res_blocks=4 if image_size == 64 else 2,
        channel_mult=_MULT[image_size],
        attention_downsamples=tuple(image_size // side for side in (32, 16, 8)),
        pool=AttentionPool(image_size),
    )
    return UNetClassifier(key=key, **(defaults | options))
