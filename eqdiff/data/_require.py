"""Third parties are imported where they are used: `import eqdiff.data` is quick and works."""

import importlib
from typing import Any


# What to tell the user: a module's name is not always its package's.
_PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn"}


def require(module: str) -> Any:
    """Imports a module of the extra `[data]`, or says in one sentence how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.split(".")[0]
        if error.name != top:  # Installed, but broken inside: that message is the useful one.
            raise
        package = _PACKAGES.get(top, top)
        raise ImportError(
            f"eqdiff.data needs {package}, which is not installed: pip install 'eqdiff[data]'"
        ) from error
