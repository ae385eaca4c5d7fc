"""Networks of published experiments and of our examples, by name."""

from typing import Any

import jax.numpy as jnp

from .._types import Key
from ._unet import UNet


def unet_cifar10(
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
    - `num_classes`, `dropout`, `compute_dtype`, `remat`, `key`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.UNet`][].
    """
    return UNet(
        in_channels=3,
        out_channels=6 if learned_variance else 3,
        channels=128,
        num_res_blocks=3,
        channel_mult=(1, 2, 2, 2),
        attention_downsamples=(2, 4),
        num_heads=4,
        dropout=dropout,
        num_classes=num_classes,
        compute_dtype=compute_dtype,
        remat=remat,
        key=key,
    )


def unet_digits(
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
    - `num_classes`, `dropout`, `compute_dtype`, `key`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.UNet`][].
    """
    return UNet(
        in_channels=1,
        out_channels=2 if learned_variance else 1,
        channels=32,
        num_res_blocks=1,
        channel_mult=(1, 2),
        attention_downsamples=(2,),
        num_heads=4,
        dropout=dropout,
        num_classes=num_classes,
        norm_groups=8,
        compute_dtype=compute_dtype,
        key=key,
    )
