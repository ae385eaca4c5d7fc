"""What a loader is given: the path of a file, or what such a file holds, in memory."""

import os
from collections.abc import Mapping
from typing import Any

from ..._shown import shown
from ..._torch_file import read_torch, state_dict


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


def given_state_dict(weights: Any) -> Mapping[str, Any]:
    """Names and arrays: those of a file of `torch.save`, or those given.

    **Raises:** `ValueError` for other names than text.
    """
    if isinstance(weights, Mapping):
        if not all(isinstance(name, str) for name in weights):
            raise ValueError(f"a state dict has names as keys, got {shown(list(weights))}.")
        return weights
    return state_dict(read_torch(weights), str(weights))
