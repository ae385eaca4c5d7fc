"""Networks of formats 1 to 3.

Then every family of U-Nets was a class with flat arguments, which a file holds without exception.
Their arrays have the names of today's but for the wrappers of data in [0, 1] and of scores.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from ..nn._ends import Centred, DividedBySigma
from ..nn._flags import (
    ddpm,
    edm_dhariwal,
    edm_song,
    ncsnpp,
    openai_classifier,
    openai_unet,
)


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
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(net)[0]]
    names = {_joined(path): _joined(_old_path(net, path)) for path in paths}
    return {new: old for new, old in names.items() if new != old}


def _joined(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _old_path(net: Any, path: tuple[Any, ...]) -> tuple[Any, ...]:
    kept, at = [], net
    for key in path:
        if not isinstance(at, Centred | DividedBySigma):
            kept.append(key)
        at = _child(at, key)
    return tuple(kept)


def _child(tree: Any, key: Any) -> Any:
    if isinstance(key, GetAttrKey):
        return getattr(tree, key.name)
    if isinstance(key, SequenceKey | DictKey):
        return tree[key.idx if isinstance(key, SequenceKey) else key.key]
    return None  # in a class that does not say where its parts come from
