"""Packages that an optional part of eqdiff needs, and one sentence for where one is missing."""

import importlib
from types import ModuleType


def require(module: str, what: str, *, extra: str) -> ModuleType:
    """Imports a module of an optional dependency.

    **Arguments:**

    - `module`: its name, such as `"safetensors.numpy"`.
    - `what`: what needs it, as the beginning of a sentence.
    - `extra`: the extra of eqdiff that installs it.

    **Raises:** `ImportError`, with the command to write, where it is missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as e:
        package = module.partition(".")[0]
        raise ImportError(f"{what} needs {package}: pip install 'eqdiff[{extra}]'.") from e
