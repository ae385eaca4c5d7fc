"""EDM's pickles without EDM.

They are made by `pickle.dump` of a dictionary whose `ema` is a module of a class that records its
own source (NVIDIA's `torch_utils.persistence`): the pickle calls one function with a dictionary of
`class_name`, `module_src`, `state` and a version, where the official one runs the source. Here the
call makes a record of name and state. A module's state is that of `torch.nn.Module`: `_parameters`,
`_buffers` and `_modules` by name, together with the constructor's `_init_args` and `_init_kwargs`.
Each storage is a whole file of `torch.save` inside the pickle.
"""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..._shown import shortened, shown
from ..._torch_file._read import load_from_bytes, map_file
from ..._torch_file._records import Global, Instance, Refused, Tensor
from ..._torch_file._unpickle import plain, Unpickler


_RECONSTRUCT = Global("torch_utils.persistence", "_reconstruct_persistent_obj")
_LOAD = Global("torch.storage", "_load_from_bytes")
# More modules and tensors than any network has, and longer names; a file whose modules refer to
# each other must end somewhere.
_MOST_MODULES, _DEEPEST, _LONGEST = 100_000, 16, 400


class EDMModule(NamedTuple):
    """A module of a pickle: its class's name, its arguments, its parameters and buffers by name."""

    class_name: str
    init_kwargs: dict[str, Any] | None
    state_dict: dict[str, np.ndarray]


def _module(meta: Any) -> Instance:
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise Refused("has an object that does not describe a class")
    name, state = meta.get("class_name"), meta.get("state")
    if not isinstance(name, str) or not isinstance(state, dict):
        raise Refused("has an object without a class name or a state")
    return Instance(name, state)


class _Collector:
    """The tensors of a module and of those inside it, by their names in PyTorch's state dicts."""

    def __init__(self):
        self.tensors: dict[str, np.ndarray] = {}
        self.seen = 0

    def collect(self, module: Instance, prefix: str = "", depth: int = 0) -> None:
        self.seen += 1
        state = module.state or {}
        for part in ("_parameters", "_buffers"):
            self.seen += len(_mapping(state, part))
            if self.seen > _MOST_MODULES or depth > _DEEPEST or len(prefix) > _LONGEST:
                raise Refused("nests modules without end")
            for name, value in _mapping(state, part).items():
                if isinstance(value, Tensor):
                    self.tensors[prefix + name] = value.numpy()
                elif value is not None:
                    raise Refused(
                        f"has a {type(value).__name__} as {shortened(prefix + name, 80)}, expected "
                        "a tensor"
                    )
        for name, child in _mapping(state, "_modules").items():
            if isinstance(child, Instance):
                self.collect(child, f"{prefix}{name}.", depth + 1)
            elif child is not None:
                raise Refused(
                    f"has a {type(child).__name__} as the module {shortened(prefix + name, 80)}"
                )


def _mapping(state: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    found = state.get(part, {})
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise Refused(f"has a module whose {part} are not names and values")
    return found


def read_edm(path: str | os.PathLike, key: str = "ema") -> EDMModule:
    """A module of one of EDM's pickles, without running anything of it.

    **Arguments:**

    - `path`: the file.
    - `key`: which of the objects in it.

    **Raises:** `FileNotFoundError`; `ValueError` for a truncated or damaged file and for anything
    that is not a module, a tensor or plain data.
    """
    source = str(path)
    calls = {_RECONSTRUCT: _module, _LOAD: lambda data: load_from_bytes(data, source)}
    value = Unpickler(map_file(path), source, calls=calls).load()
    module = value.get(key) if isinstance(value, dict) else value
    if not isinstance(module, Instance):
        kind = f"a {type(value).__name__}"
        if isinstance(value, dict):
            kind = f"the keys {shown(list(value), 200)}"
        raise ValueError(
            f"{source} holds {kind}, expected a module under {key!r} (a pickle of EDM)."
        )
    collector = _Collector()
    try:
        collector.collect(module)
    except Refused as e:
        raise ValueError(f"{source} {e}.") from None
    arguments = (module.state or {}).get("_init_kwargs")
    arguments = plain(arguments, source) if isinstance(arguments, dict) else None
    return EDMModule(module.class_name, arguments, collector.tensors)
