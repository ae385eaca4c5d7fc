"""A folder that one job owns: a lock, files that appear whole, and an earlier run set aside."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .._atomic import write_whole


try:
    import fcntl
except ImportError:  # Windows has no locks of this kind.
    fcntl = None


_LOCK = ".lock"
_ASIDE = "replaced_"


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file whole or not at all, and through to the disk.

    **Arguments:**

    - `path`: of the file, which is replaced.
    - `text`: written as UTF-8.

    **Raises:** `OSError` if it cannot be written; what was there is then still there.
    """

    def write(file: BinaryIO) -> None:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())

    write_whole(Path(path), write)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    **Raises:** `ValueError`, naming the file, for anything else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({str(error)[:200]}): restore it.") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} holds a {type(found).__name__}, expected a JSON object.")
    return dict(found)


class Lock:
    """One job at a time in a folder. The system releases it when the process ends, however."""

    def __init__(self, folder: Path):
        """**Raises:** `ValueError` if another process has it."""
        path = folder / _LOCK
        self._file = open(path, "a+", encoding="utf-8")
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            owner = self._file.read(200).strip() or "another process"
            self._file.close()
            raise ValueError(
                f"{folder} is in use by {owner}: wait for it, stop it, or choose another folder."
            ) from error
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {os.uname().nodename}")
        self._file.flush()

    def release(self) -> None:
        """Lets others have it."""
        self._file.close()


def contents(folder: Path) -> list[Path]:
    """What is in a folder, but for a lock and what was set aside; nothing if there is no folder."""
    if not folder.is_dir():
        return []
    ours = (path for path in folder.iterdir() if path.name != _LOCK)
    return sorted(path for path in ours if not path.name.startswith(_ASIDE))


def set_aside(folder: Path) -> Path | None:
    """Moves what is in a folder into a new one inside it, `replaced_1`, `replaced_2`, …

    **Returns:** that folder, or `None` if there was nothing.
    """
    earlier = contents(folder)
    if not earlier:
        return None
    number = 1
    while (aside := folder / f"{_ASIDE}{number}").exists():
        number += 1
    aside.mkdir()
    for path in earlier:
        path.rename(aside / path.name)
    return aside
