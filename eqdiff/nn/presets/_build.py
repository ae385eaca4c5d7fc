"""The arguments that every preset passes on."""

from typing import Any

from ..._types import Key
from .._embedding import Embedding
from .._shape import UNetShape
from .._style import Style
from .._unet import UNet


def split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sizes, and the rest: `compute_dtype` and `remat`."""
    rest = {name: options[name] for name in ("compute_dtype", "remat") if name in options}
    return {name: value for name, value in options.items() if name not in rest}, rest


def unet(
    style: Style, embed: Embedding, defaults: dict[str, Any], options: dict[str, Any], key: Key
) -> UNet:
    """A network of the default sizes but for those in `options`."""
    sizes, rest = split(options)
    return UNet(UNetShape(**(defaults | sizes)), style, embed, **rest, key=key)
