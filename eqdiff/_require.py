"""Optional packages are imported where they are used; missing ones are reported alike."""

import importlib
from typing import Any


# What to install: a module's name is not always its package's.
_PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn"}


def require(module: str, what: str, *, extra: str) -> Any:
    """Imports a module of one of eqdiff's extras.

    **Arguments:**

    - `module`: its name, such as `"safetensors.numpy"`.
    - `what`: what needs it, the subject of the sentence: `"eqdiff.data"`.
    - `extra`: the extra of eqdiff that installs it.

    **Raises:** `ImportError`, with the command to write, where it is missing.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # Installed, but broken inside: that message is the useful one.
        top = module.partition(".")[0]
        raise ImportError(
            f"{what} needs {_PACKAGES.get(top, top)}, which is not installed: "
            f"pip install 'eqdiff[{extra}]'"
        ) from error
