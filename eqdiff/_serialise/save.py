"""Writing a denoiser."""

import json
import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .._denoiser import Denoiser
from .._process import KernelSDE
from .checksum import crc_of_tensor, crc_of_text
from .classes import arguments_of, ATTRIBUTES, FORMAT_VERSION, leaves_of, PARTS, table
from .write import write_safetensors


class _Writer:
    """Turns objects into JSON, putting arrays aside as tensors."""

    def __init__(self, table: dict[str, type]):
        self.names = {cls: name for name, cls in table.items()}
        self.tensors: dict[str, np.ndarray] = {}

    def object(self, value: Any, path: str) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (tuple, list)):
            return {"tuple": [self.object(v, f"{path}.{i}") for i, v in enumerate(value)]}
        if isinstance(value, dict):
            return {"dict": {name: self.object(v, f"{path}.{name}") for name, v in value.items()}}
        if isinstance(value, np.dtype):
            return {"dtype": value.name}
        if isinstance(value, (np.ndarray, jax.Array)):
            self.tensors[path] = np.asarray(value)
            # NumPy tables stay NumPy: JAX would round float64 to its own precision.
            return {"tensor" if isinstance(value, np.ndarray) else "array": path}
        if type(value) not in self.names:
            raise ValueError(
                f"save_model: {path} is a {type(value).__module__}.{type(value).__qualname__}, "
                "which the format does not know. For a class of your own write "
                "classes=(YourClass,), here and in load_model."
            )
        names = arguments_of(type(value))
        kept = {name: ATTRIBUTES.get((type(value), name), name) for name in names}
        missing = [name for name in names if not hasattr(value, kept[name])]
        if missing:
            raise ValueError(
                f"save_model: {path} is a {type(value).__qualname__}, whose constructor takes "
                f"{', '.join(missing)}, but it has no attribute of that name. Keep each argument "
                "(but key) as an attribute: self.name = name."
            )
        arguments = {
            name: self.object(getattr(value, kept[name]), f"{path}.{name}") for name in names
        }
        return {"class": self.names[type(value)], "arguments": arguments}


def save_model(
    path: str | os.PathLike,
    denoiser: Denoiser,
    *,
    classes: Iterable[type] = (),
    overwrite: bool = False,
) -> None:
    """Writes a denoiser to one safetensors file.

    It holds weights, architecture, process, parameterisation and variance, each with a checksum.
    The file is written completely or not at all; a process that is killed meanwhile leaves
    `.NAME.tmp` next to it, which the next save overwrites.

    **Arguments:**

    - `path`: the file; `~` stands for your home folder, and missing folders are created.
    - `denoiser`: the denoiser, with concrete weights.
    - `classes`: your own classes among its parts, such as a network. Each must keep every argument
        of its constructor as an attribute of the same name.
    - `overwrite`: whether an existing file may be replaced.

    **Raises:** `ValueError` for a part that the format does not know; `FileExistsError` if the file
    exists and `overwrite` is false; `OSError` if it cannot be written, for instance on a full disk;
    the message says what `path` holds then.

    **Example:**

    ```python
    net = eqd.nn.MLP(2, 2, key=jax.random.key(0))
    eqd.save_model("model.safetensors", eqd.Denoiser(net, eqd.VPSDE()))
    ```
    """
    path = Path(path).expanduser()
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; write overwrite=True to replace it.")
    if not isinstance(denoiser, Denoiser):
        raise ValueError(
            f"save_model: expected an eqdiff.Denoiser, got a {type(denoiser).__name__}. Save the "
            "denoiser that it wraps, and wrap what load_model returns."
        )
    known = table(classes)
    if denoiser.c_noise is not None and type(denoiser.c_noise) not in known.values():
        raise ValueError(
            "save_model: the denoiser's c_noise is a function, which cannot be saved. Write it as "
            "eqdiff.ScaledTime(...) or eqdiff.LogNoise(...), or as a class of your own named in "
            "classes=; or put "
            "the numbers into the process (Schedule(betas, c_noise=...))."
        )
    if isinstance(denoiser.process, KernelSDE):
        raise ValueError(
            "save_model: the process is a KernelSDE, which holds functions, and a file cannot. "
            "Write it as a "
            "subclass of eqdiff.AbstractProcess whose constructor takes numbers, and name that "
            "class in classes=."
        )
    writer = _Writer(known)
    model = {part: writer.object(getattr(denoiser, part), part) for part in PARTS}
    leaves = leaves_of(denoiser.net)
    weights = {f"net/{name}": np.asarray(leaf) for name, leaf in leaves.items()}
    # Tables that are NumPy's in a network stay so.
    model["tables"] = [name for name, leaf in leaves.items() if isinstance(leaf, np.ndarray)]
    tensors = writer.tensors | weights
    model["checksums"] = {name: crc_of_tensor(name, array) for name, array in tensors.items()}
    said, text = str(FORMAT_VERSION), json.dumps(model)
    metadata = {
        "format": "eqdiff",
        "format_version": said,
        "eqdiff_version": version("eqdiff"),
        "model": text,
        "crc32": crc_of_text(said, text),
    }
    write_safetensors(path, tensors, metadata)
