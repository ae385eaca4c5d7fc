"""Improved DDPM's networks (Nichol & Dhariwal 2021), by name, and a small one of the same kind."""

from typing import Any

import jax.numpy as jnp

from ..._types import Key
from .. import embeddings, styles
from .._heads import Heads
from .._shape import UNetShape
from .._style import Added
from .._super_resolution import SuperResolution
from .._unet import UNet
from ._build import unet


def iddpm_cifar10(
    *,
    learned_variance: bool = True,
    num_classes: int | None = None,
    dropout: float = 0.3,
    compute_dtype: Any = jnp.float32,
    remat: bool = False,
    key: Key,
) -> UNet:
    """Improved DDPM's network for CIFAR-10: 52.5 million parameters (Nichol & Dhariwal 2021, README
    of the code).

    128 channels, three blocks per level, widths (1, 2, 2, 2), attention at 16×16 and 8×8 with four
    heads, scale-shift norm. The paper's linear-schedule runs used dropout 0.1, its cosine-schedule
    runs 0.3.

    **Arguments:**

    - `learned_variance`: whether there are six output channels, or three.
    - `num_classes`: as for [`eqdiff.nn.UNetShape`][].
    - `dropout`: as for [`eqdiff.nn.Style`][].
    - `compute_dtype`, `remat`, `key`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.UNet`][].

    **Example:**

    ```python
    net = eqd.nn.presets.iddpm_cifar10(dropout=0.1, key=jax.random.key(0))
    ```
    """
    shape = UNetShape(
        out_channels=6 if learned_variance else 3,
        num_res_blocks=3,
        attention_downsamples=(2, 4),
        num_classes=num_classes,
    )
    style, embed = styles.iddpm(dropout=dropout), embeddings.iddpm()
    return UNet(shape, style, embed, compute_dtype=compute_dtype, remat=remat, key=key)


# Flags that the README's larger networks share, by the side of the image.
_SIDE_64: dict[str, Any] = dict(
    out_channels=6, num_res_blocks=3, channel_mult=(1, 2, 3, 4), attention_downsamples=(4, 8)
)
_SIDE_256: dict[str, Any] = dict(out_channels=6, channel_mult=(1, 1, 2, 2, 4, 4))


def iddpm_imagenet64(*, dropout: float = 0.0, key: Key, **options: Any) -> UNet:
    """Improved DDPM's network for 64×64 ImageNet: 121 million parameters.

    128 channels, three blocks per level, widths (1, 2, 3, 4), attention at 16×16 and 8×8 with four
    heads, learned variance.

    **Arguments:**

    - `dropout`: as for [`eqdiff.nn.Style`][].
    - `key`: a PRNG key.
    - `options`: sizes of [`eqdiff.nn.UNetShape`][], `channels=192, num_classes=1000` for the
        class-conditional network of 270 million parameters, and `compute_dtype` and `remat` of
        [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.UNet`][].

    **Example:**

    ```python
    net = eqd.nn.presets.iddpm_imagenet64(num_classes=1000, key=jax.random.key(0))
    ```
    """
    return unet(styles.iddpm(dropout=dropout), embeddings.iddpm(), _SIDE_64, options, key)


def iddpm_lsun256(*, dropout: float = 0.0, key: Key, **options: Any) -> UNet:
    """Improved DDPM's network for 256×256 LSUN bedrooms.

    128 channels, two blocks per level, widths (1, 1, 2, 2, 4, 4), attention at 16×16 with one head,
    the embedding added before the normalisation, learned variance.

    **Arguments:**

    - `dropout`: as for [`eqdiff.nn.Style`][].
    - `key`: a PRNG key.
    - `options`: sizes of [`eqdiff.nn.UNetShape`][], and `compute_dtype` and `remat` of
        [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.UNet`][].

    **Example:**

    ```python
    net = eqd.nn.presets.iddpm_lsun256(compute_dtype=jnp.bfloat16, key=jax.random.key(0))
    ```
    """
    style = styles.iddpm(dropout=dropout, heads=Heads(1), modulation=Added())
    defaults = _SIDE_256 | dict(attention_downsamples=(16,))
    return unet(style, embeddings.iddpm(), defaults, options, key)


def iddpm_upsampler256(*, dropout: float = 0.0, key: Key, **options: Any) -> SuperResolution:
    """Improved DDPM's upsampler from 64×64 to 256×256 ImageNet: 280 million parameters.

    192 channels, two blocks per level, widths (1, 1, 2, 2, 4, 4), attention at 16×16 and 8×8 with
    four heads, 1000 classes, learned variance: `args` is the pair of the small image and the class.

    **Arguments:**

    - `dropout`: as for [`eqdiff.nn.Style`][].
    - `key`: a PRNG key.
    - `options`: sizes of [`eqdiff.nn.UNetShape`][], whose `in_channels` counts both images, and
        `compute_dtype` and `remat` of [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.SuperResolution`][] of an [`eqdiff.nn.UNet`][].

    **Example:**

    ```python
    net = eqd.nn.presets.iddpm_upsampler256(key=jax.random.key(0))
    ```
    """
    defaults = _SIDE_256 | dict(
        in_channels=6, channels=192, attention_downsamples=(16, 32), num_classes=1000
    )
    style = styles.iddpm(dropout=dropout)
    return SuperResolution(unet(style, embeddings.iddpm(), defaults, options, key))


def iddpm_digits(
    *,
    learned_variance: bool = True,
    num_classes: int | None = None,
    dropout: float = 0.0,
    compute_dtype: Any = jnp.float32,
    key: Key,
) -> UNet:
    """A small network for 1×8×8 images such as scikit-learn's digits, which trains in minutes on
    two CPU cores.

    32 channels, one block per level, widths (1, 2), attention at 4×4 with four heads, eight groups
    per normalisation.

    **Arguments:**

    - `learned_variance`: whether there are two output channels, or one.
    - `num_classes`: as for [`eqdiff.nn.UNetShape`][].
    - `dropout`: as for [`eqdiff.nn.Style`][].
    - `compute_dtype`, `key`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.UNet`][].

    **Example:**

    ```python
    net = eqd.nn.presets.iddpm_digits(num_classes=10, key=jax.random.key(0))
    F = net(500.0, jnp.zeros((1, 8, 8)), 3)  # (2, 8, 8)
    ```
    """
    shape = UNetShape(
        in_channels=1,
        out_channels=2 if learned_variance else 1,
        channels=32,
        num_res_blocks=1,
        channel_mult=(1, 2),
        num_classes=num_classes,
    )
    style = styles.iddpm(dropout=dropout, norm_groups=8)
    return UNet(shape, style, embeddings.iddpm(), compute_dtype=compute_dtype, key=key)
