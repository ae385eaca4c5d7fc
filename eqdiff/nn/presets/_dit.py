"""The diffusion transformers of Peebles & Xie (2023), by size."""

from typing import Any, Literal

from ..._types import Key
from .._check import check_variant
from .._dit import DiT


# The paper's table 1: channels, blocks, heads.
_DIT = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}


def dit(size: Literal["S", "B", "L", "XL"] = "S", *, key: Key, **options: Any) -> DiT:
    """A diffusion transformer of the paper's four sizes: 33, 130, 458 and 675 million parameters.

    **Arguments:**

    - `size`: which.
    - `key`: a PRNG key.
    - `options`: of [`eqdiff.nn.DiT`][]; the paper's have `num_classes=1000` and a `patch_size` of
        2, 4 or 8, for latents of 4 channels.

    **Returns:** an [`eqdiff.nn.DiT`][].

    **Raises:** `ValueError` for another size.

    **Example:**

    ```python
    net = eqd.nn.presets.dit("S", num_classes=1000, key=jax.random.key(0))
    ```
    """
    check_variant("size", size, _DIT)
    channels, depth, heads = _DIT[size]
    defaults: dict[str, Any] = dict(channels=channels, depth=depth, num_heads=heads)
    return DiT(key=key, **(defaults | options))
