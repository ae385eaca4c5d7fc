"""What a loader is given: the path of a file, or what such a file holds, in memory."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from ..._shown import shown
from ..._torch_file import read_torch, state_dict
from .._wrapped import state_inside, without_prefix


Given = str | os.PathLike | Mapping[str, Any]


def name_of(weights: Any) -> str:
    """What to call it in messages.

    **Raises:** `TypeError` for anything else.
    """
    if isinstance(weights, Mapping):
        return "the state dict"
    if isinstance(weights, str | os.PathLike):
        return str(weights)
    raise TypeError(
        "expected the path of a file, or names and arrays (a state dict), got a "
        f"{type(weights).__name__}. Of a PyTorch module, give module.state_dict()."
    )


def given_state_dict(weights: Any, starts: Iterable[str]) -> Mapping[str, Any]:
    """Names and arrays of a network, of which some begin with one of `starts`: those of a file of
    `torch.save`, or those given; taken out of a training state, and of a wrapper's names.

    **Raises:** `ValueError` for other names than text, and for several networks.
    """
    source = name_of(weights)
    contents = weights if isinstance(weights, Mapping) else read_torch(weights)
    contents = state_inside(contents, source)
    if not isinstance(weights, Mapping):
        contents = state_dict(contents, source)
    elif not all(isinstance(name, str) for name in contents):
        raise ValueError(f"a state dict has names as keys, got {shown(list(weights))}.")
    return without_prefix(contents, starts, source)
