"""The networks of EDM's published configurations (Karras et al. 2022), by name."""

from typing import Any

from ..._types import Key
from .. import embeddings, styles
from .._pyramids import ResidualPyramid
from .._resampling import Filtered
from .._time_features import Fourier
from .._unet import UNet
from ._build import unet


# The first convolution has 128 channels, whatever the levels.
_SIDE_32: dict[str, Any] = dict(
    num_res_blocks=4, channel_mult=(2, 2, 2), stem_mult=1, augment_size=9
)
_SIDE_64: dict[str, Any] = _SIDE_32 | dict(channel_mult=(1, 2, 2, 2), attention_downsamples=(4,))


def _ddpmpp(
    defaults: dict[str, Any],
    dropout: float,
    class_dropout: float,
    options: dict[str, Any],
    key: Key,
) -> UNet:
    embed = embeddings.edm(class_dropout=class_dropout)
    return unet(styles.edm(dropout=dropout), embed, defaults, options, key)


def _ncsnpp(
    defaults: dict[str, Any],
    dropout: float,
    class_dropout: float,
    options: dict[str, Any],
    key: Key,
) -> UNet:
    kernel = (1, 3, 3, 1)
    pyramid = ResidualPyramid(Filtered(kernel))
    style = styles.edm(dropout=dropout, kernel=kernel, input_pyramid=pyramid)
    return unet(
        style, embeddings.edm(Fourier(), class_dropout=class_dropout), defaults, options, key
    )


def edm_ddpmpp_cifar10(
    *, dropout: float = 0.13, class_dropout: float = 0.0, key: Key, **options: Any
) -> UNet:
    """EDM's DDPM++ for CIFAR-10 (`--arch=ddpmpp`): 55.7 million parameters.

    128 channels, four blocks per level, widths (2, 2, 2), attention at 16×16, dropout 0.13,
    augmentations of 9 parameters.

    **Arguments:**

    - `dropout`: as for [`eqdiff.nn.Style`][].
    - `class_dropout`: the probability that a class is dropped where a key is given.
    - `key`: a PRNG key.
    - `options`: sizes of [`eqdiff.nn.UNetShape`][], `num_classes=10` for the conditional network,
        and `compute_dtype` and `remat` of [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.UNet`][].

    **Example:**

    ```python
    net = eqd.nn.presets.edm_ddpmpp_cifar10(num_classes=10, key=jax.random.key(0))
    ```
    """
    return _ddpmpp(_SIDE_32, dropout, class_dropout, options, key)


def edm_ncsnpp_cifar10(
    *, dropout: float = 0.13, class_dropout: float = 0.0, key: Key, **options: Any
) -> UNet:
    """EDM's NCSN++ for CIFAR-10 (`--arch=ncsnpp`).

    As `edm_ddpmpp_cifar10`, with a residual pyramid on the way down, FIR filters and Fourier
    features.

    **Arguments:**

    - `dropout`: as for [`eqdiff.nn.Style`][].
    - `class_dropout`: the probability that a class is dropped where a key is given.
    - `key`: a PRNG key.
    - `options`: sizes of [`eqdiff.nn.UNetShape`][], `num_classes=10` for the conditional network,
        and `compute_dtype` and `remat` of [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.UNet`][].

    **Example:**

    ```python
    net = eqd.nn.presets.edm_ncsnpp_cifar10(key=jax.random.key(0))
    ```
    """
    return _ncsnpp(_SIDE_32, dropout, class_dropout, options, key)


def edm_ddpmpp_64(
    *, dropout: float = 0.05, class_dropout: float = 0.0, key: Key, **options: Any
) -> UNet:
    """EDM's DDPM++ for 64×64 FFHQ and AFHQv2 (`--arch=ddpmpp --cres=1,2,2,2`): 61.8 million
    parameters.

    128 channels, four blocks per level, widths (1, 2, 2, 2), attention at 16×16, augmentations of 9
    parameters, dropout 0.05 (FFHQ; AFHQv2 has 0.25).

    **Arguments:**

    - `dropout`: as for [`eqdiff.nn.Style`][].
    - `class_dropout`: the probability that a class is dropped where a key is given.
    - `key`: a PRNG key.
    - `options`: sizes of [`eqdiff.nn.UNetShape`][], and `compute_dtype` and `remat` of
        [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.UNet`][].

    **Example:**

    ```python
    net = eqd.nn.presets.edm_ddpmpp_64(dropout=0.25, key=jax.random.key(0))
    ```
    """
    return _ddpmpp(_SIDE_64, dropout, class_dropout, options, key)


def edm_ncsnpp_64(
    *, dropout: float = 0.05, class_dropout: float = 0.0, key: Key, **options: Any
) -> UNet:
    """EDM's NCSN++ for 64×64 FFHQ and AFHQv2 (`--arch=ncsnpp --cres=1,2,2,2`).

    As `edm_ddpmpp_64`, with a residual pyramid on the way down, FIR filters and Fourier features.

    **Arguments:**

    - `dropout`: as for [`eqdiff.nn.Style`][].
    - `class_dropout`: the probability that a class is dropped where a key is given.
    - `key`: a PRNG key.
    - `options`: sizes of [`eqdiff.nn.UNetShape`][], and `compute_dtype` and `remat` of
        [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.UNet`][].

    **Example:**

    ```python
    net = eqd.nn.presets.edm_ncsnpp_64(key=jax.random.key(0))
    ```
    """
    return _ncsnpp(_SIDE_64, dropout, class_dropout, options, key)


def edm_adm_imagenet64(
    *, dropout: float = 0.1, class_dropout: float = 0.0, key: Key, **options: Any
) -> UNet:
    """EDM's ADM for 64×64 ImageNet (`--arch=adm`): 296 million parameters.

    192 channels, three blocks per level, widths (1, 2, 3, 4), attention at 32×32, 16×16 and 8×8
    with heads of 64 channels, 1000 classes, dropout 0.1.

    **Arguments:**

    - `dropout`: as for [`eqdiff.nn.Style`][].
    - `class_dropout`: the probability that a class is dropped where a key is given.
    - `key`: a PRNG key.
    - `options`: sizes of [`eqdiff.nn.UNetShape`][], and `compute_dtype` and `remat` of
        [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.UNet`][].

    **Example:**

    ```python
    net = eqd.nn.presets.edm_adm_imagenet64(key=jax.random.key(0))
    ```
    """
    defaults: dict[str, Any] = dict(
        channels=192,
        num_res_blocks=3,
        channel_mult=(1, 2, 3, 4),
        attention_downsamples=(2, 4, 8),
        num_classes=1000,
    )
    embed = embeddings.edm_adm(class_dropout=class_dropout)
    return unet(styles.edm_adm(dropout=dropout), embed, defaults, options, key)
