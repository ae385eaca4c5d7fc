"""The settings of a run: what a continued run may change, and what it has changed.

A run's settings are plain values by name. Some may always differ, such as the number of steps
between two pictures; some may differ when that is asked for, such as the learning rate, and the
change is recorded; all others decide what is trained, and a run of others is another run.
"""

import json
import time
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from ._run_folder import read_object, write_text


class Changes(NamedTuple):
    """How settings differ from those of a run: `name: (there, here)`."""

    adjustable: dict[str, tuple[Any, Any]]
    others: dict[str, tuple[Any, Any]]


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back.

    **Raises:** `ValueError` for what JSON cannot hold.
    """
    try:
        return json.loads(json.dumps({k: _plain(v) for k, v in settings.items()}, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"a run's settings must be numbers, texts, lists and dictionaries: {error}."
        ) from error


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def compare(
    saved: Mapping[str, Any],
    settings: Mapping[str, Any],
    free: Collection[str],
    adjustable: Collection[str],
) -> Changes:
    """Where they differ, apart from those that are free."""
    missing = "nothing"
    names = [*settings, *(name for name in saved if name not in settings)]
    differ = {
        name: (saved.get(name, missing), settings.get(name, missing))
        for name in names
        if name not in free and saved.get(name, missing) != settings.get(name, missing)
    }
    return Changes(
        {name: pair for name, pair in differ.items() if name in adjustable},
        {name: pair for name, pair in differ.items() if name not in adjustable},
    )


def listed(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """`learning_rate is 0.0001 here and 0.001 there`, for each."""
    return "; ".join(
        f"{name} is {_short(here)} here and {_short(there)} there"
        for name, (there, here) in changes.items()
    )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:80] + "…"


class Configuration:
    """`config.json` of a run."""

    def __init__(self, path: Path):
        self.path = path

    def exists(self) -> bool:
        return self.path.is_file()

    def read(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The settings, and the changes that were made to them.

        **Raises:** `ValueError` for a file that holds none.
        """
        found = read_object(self.path)
        # Version 0.1 wrote the settings alone.
        settings, changes = found.get("settings", found), found.get("changes", [])
        if not isinstance(settings, dict) or not isinstance(changes, list):
            raise ValueError(f"{self.path} is damaged (it holds no settings): restore it.")
        return settings, changes

    def write(self, settings: Mapping[str, Any], changes: list[dict[str, Any]]) -> None:
        body = {"eqdiff": version("eqdiff"), "settings": settings, "changes": changes}
        write_text(self.path, json.dumps(body, indent=2) + "\n")


def change(step: int, changes: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """The record of a change."""
    return {
        "after_step": step,
        "time": time.time(),
        "from": {name: there for name, (there, _) in changes.items()},
        "to": {name: here for name, (_, here) in changes.items()},
    }
