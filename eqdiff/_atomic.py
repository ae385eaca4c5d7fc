"""Files that appear whole or not at all, whatever ends the process that writes them.

A file is written under a temporary name beside it and then renamed. A process that is killed
between the two leaves the temporary file, whose name says whose it was: the next one to open the
folder deletes it.
"""

import os
import platform
import re
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


_TEMPORARY = re.compile(r"\..+\.(?P<host>[^/]*)-(?P<process>\d+)-[0-9a-f]{32}\.tmp")
# Seconds after which a temporary file of another host counts as left behind.
_STALE = 3600


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Replaces a file by what `write` writes; its folder is created if need be.

    **Raises:** `OSError` if that is not possible. The file is then what it was before.
    """
    temporary = _temporary(path)
    try:
        with open(temporary, "wb") as file:
            write(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def create_whole(path: Path, content: bytes) -> bytes:
    """Writes a file unless there is one; returns what is there then.

    Of several processes that do this at once, one succeeds.
    """
    if not path.exists():
        temporary = _temporary(path)
        try:
            temporary.write_bytes(content)
            _link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return path.read_bytes()


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:
        # A file system without hard links.
        temporary.replace(path)


def remove_stale(folder: Path) -> None:
    """Deletes what killed processes left in a folder."""
    for path in folder.glob(".*.tmp"):
        found = _TEMPORARY.fullmatch(path.name)
        if found is None:
            continue
        if found["host"] == _host():
            stale = not _is_running(int(found["process"]))
        else:
            # Whether it runs there cannot be asked from here.
            try:
                stale = time.time() - path.stat().st_mtime > _STALE
            except FileNotFoundError:
                continue
        if stale:
            path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{uuid.uuid4().hex}.tmp")


def _host() -> str:
    return re.sub(r"[^\w.]", "_", platform.node())


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # Somebody else's.
    return True
