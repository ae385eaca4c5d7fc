"""The networks of EDM's published configurations (Karras et al. 2022), by name."""

from typing import Any

from ..._types import Key
from .._dhariwal_unet import DhariwalUNet
from .._song_unet import SongUNet


def edm_ddpmpp_cifar10(*, key: Key, **options: Any) -> SongUNet:
    """EDM's DDPM++ for CIFAR-10 (`--arch=ddpmpp`): 55.7 million parameters.

    128 channels, four blocks per level, widths (2, 2, 2), attention at 16×16, dropout 0.13,
    augmentations of 9 parameters.

    **Arguments:**

    - `key`: a PRNG key.
    - `options`: of [`eqdiff.nn.SongUNet`][]; `num_classes=10` for the conditional network.

    **Returns:** an [`eqdiff.nn.SongUNet`][].
    """
    defaults: dict[str, Any] = dict(augment_size=9)
    return SongUNet(key=key, **(defaults | options))


_NCSNPP: dict[str, Any] = dict(
    embedding="fourier", encoder="residual", kernel=(1, 3, 3, 1), noise_mult=2, augment_size=9
)


def edm_ncsnpp_cifar10(*, key: Key, **options: Any) -> SongUNet:
    """EDM's NCSN++ for CIFAR-10 (`--arch=ncsnpp`).

    As `edm_ddpmpp_cifar10`, with a residual pyramid on the way down, FIR filters and Fourier
    features.

    **Arguments:**

    - `key`: a PRNG key.
    - `options`: of [`eqdiff.nn.SongUNet`][]; `num_classes=10` for the conditional network.

    **Returns:** an [`eqdiff.nn.SongUNet`][].
    """
    return SongUNet(key=key, **(_NCSNPP | options))


_SIDE_64: dict[str, Any] = dict(channel_mult=(1, 2, 2, 2), attention_downsamples=(4,), dropout=0.05)


def edm_ddpmpp_64(*, key: Key, **options: Any) -> SongUNet:
    """EDM's DDPM++ for 64×64 FFHQ and AFHQv2 (`--arch=ddpmpp --cres=1,2,2,2`): 61.8 million
    parameters.

    128 channels, four blocks per level, widths (1, 2, 2, 2), attention at 16×16, augmentations of 9
    parameters, dropout 0.05 (FFHQ; AFHQv2 has 0.25).

    **Arguments:**

    - `key`: a PRNG key.
    - `options`: of [`eqdiff.nn.SongUNet`][].

    **Returns:** an [`eqdiff.nn.SongUNet`][].
    """
    defaults: dict[str, Any] = dict(augment_size=9) | _SIDE_64
    return SongUNet(key=key, **(defaults | options))


def edm_ncsnpp_64(*, key: Key, **options: Any) -> SongUNet:
    """EDM's NCSN++ for 64×64 FFHQ and AFHQv2 (`--arch=ncsnpp --cres=1,2,2,2`).

    As `edm_ddpmpp_64`, with a residual pyramid on the way down, FIR filters and Fourier features.

    **Arguments:**

    - `key`: a PRNG key.
    - `options`: of [`eqdiff.nn.SongUNet`][].

    **Returns:** an [`eqdiff.nn.SongUNet`][].
    """
    return SongUNet(key=key, **(_NCSNPP | _SIDE_64 | options))


def edm_adm_imagenet64(*, key: Key, **options: Any) -> DhariwalUNet:
    """EDM's ADM for 64×64 ImageNet (`--arch=adm`): 296 million parameters.

    192 channels, three blocks per level, widths (1, 2, 3, 4), attention at 32×32, 16×16 and 8×8
    with heads of 64 channels, 1000 classes, dropout 0.1.

    **Arguments:**

    - `key`: a PRNG key.
    - `options`: of [`eqdiff.nn.DhariwalUNet`][].

    **Returns:** an [`eqdiff.nn.DhariwalUNet`][].
    """
    defaults: dict[str, Any] = dict(num_classes=1000)
    return DhariwalUNet(key=key, **(defaults | options))
