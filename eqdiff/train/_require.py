"""Optional packages are imported where they are used: `eqdiff.train` needs the core alone."""

import importlib
from typing import Any


def require(module: str, extra: str) -> Any:
    """Imports a module of one of eqdiff's extras, or says in one sentence how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # Installed, but broken inside: that message is the useful one.
        raise ImportError(
            f"eqdiff.train needs {module} here, which is not installed: "
            f"pip install 'eqdiff[{extra}]'"
        ) from error
