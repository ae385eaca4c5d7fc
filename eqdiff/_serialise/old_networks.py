"""Networks of formats 1 to 3.

Then every family of U-Nets was a class with flat arguments, which a file holds without exception.
Their arrays have the names of today's but for the wrappers of data in [0, 1] and of scores.
"""

from collections.abc import Callable
from typing import Any

from ..nn._ends import Centred, DividedBySigma
from ..nn._flags import (
    ddpm,
    edm_dhariwal,
    edm_song,
    ncsnpp,
    openai_classifier,
    openai_unet,
)
from .classes import leaves_of


OLD_NETWORKS: dict[str, Callable[..., Any]] = {
    "eqdiff.nn.UNet": openai_unet,
    "eqdiff.nn.UNetClassifier": openai_classifier,
    "eqdiff.nn.DDPM": ddpm,
    "eqdiff.nn.NCSNpp": ncsnpp,
    "eqdiff.nn.SongUNet": edm_song,
    "eqdiff.nn.DhariwalUNet": edm_dhariwal,
}


def old_names(net: Any) -> dict[str, str]:
    """The path of every array of a network, such as `net.body.conv_in.weight`, and its path before
    format 4, `body.conv_in.weight`; only those that differ."""
    names = {name: _old_name(net, name) for name in leaves_of(net)}
    return {new: old for new, old in names.items() if new != old}


def _old_name(net: Any, name: str) -> str:
    kept, at = [], net
    for step in name.split("."):
        if not isinstance(at, Centred | DividedBySigma):
            kept.append(step)
        at = at[int(step)] if isinstance(at, tuple | list) else getattr(at, step, None)
    return ".".join(kept)
