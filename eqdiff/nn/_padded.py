"""One padding for all convolutions of a network.

Every layer is made with zeros beyond the edges, which XLA's convolutions take for free, and another
[`eqdiff.AbstractPadding`][] is put into all of them at once. So no constructor passes it on, and a
network that pads with zeros is unaffected by this file.
"""

from typing import Any, TypeVar

import jax

from .._padding import AbstractPadding, ZeroPadding
from ._conv import Conv
from ._fir import DownsampleConv, UpsampleConv
from ._resample import Resample


_Layers = TypeVar("_Layers")
_FILTERS = (DownsampleConv, UpsampleConv, Resample)


def padded(layers: _Layers, padding: AbstractPadding) -> _Layers:
    """The same layers, whose convolutions pad so.

    **Arguments:**

    - `layers`: any pytree of them.
    - `padding`: what lies beyond the edges.

    **Raises:** `ValueError` for a filter that reaches beyond the edge by itself.
    """
    if isinstance(padding, ZeroPadding):
        return layers

    def replace(layer: Any) -> Any:
        if isinstance(layer, _FILTERS) and len(layer.kernel) > 2:
            raise ValueError(
                f"a filter of {len(layer.kernel)} taps, {layer.kernel}, always takes what lies "
                f"beyond the edge for zeros, but the style has padding={padding}. Use a "
                "resampling without one: eqdiff.nn.styles.Strided(), Pooling() or InBlock(), whose "
                "kernel is (1, 1)."
            )
        if isinstance(layer, Conv):
            return layer.with_padding(padding)
        return layer

    return jax.tree.map(replace, layers, is_leaf=lambda x: isinstance(x, (Conv, *_FILTERS)))
