"""The published weights of a network: where they may lie already, and how to fetch them.

A file counts as found only if its SHA-256 is the published one, so that a damaged copy is never
used. It is read without Python's unpickler either way.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._download import cache_directory, download, DownloadError


class Published(NamedTuple):
    """A weight file: its name, address, size in bytes and SHA-256."""

    name: str
    url: str
    size: int
    sha256: str


def digest_of(path: Path) -> str:
    """A file's SHA-256, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_arrays(named: Mapping[str, Any]) -> str:
    """Eight digits of what a state dict holds."""
    digest = hashlib.sha256()
    for name in sorted(named):
        array = np.ascontiguousarray(named[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:8]


def torch_hub() -> Path:
    """Where `torch.hub` keeps the files that it downloads."""
    home = os.environ.get("TORCH_HOME")
    if home is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints"


def checked(path: str | os.PathLike, file: Published) -> Path:
    """The path, if it is the published file.

    **Raises:** `FileNotFoundError`; `ValueError` for another file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}, expected {file.name} from {file.url}.")
    found = digest_of(path)
    if found != file.sha256:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) has the SHA-256 {found}, expected "
            f"{file.sha256} ({file.size} bytes): it is damaged or another file. Weights of your "
            "own are given as names and arrays, eqd.interop.read_torch(path)."
        )
    return path


def find(file: Published, others: Iterable[Path] = ()) -> Path | None:
    """The published file in our cache or one of the other places, if it is there undamaged."""
    for path in (cache_directory() / file.name, *others):
        with contextlib.suppress(OSError):
            if path.stat().st_size == file.size and digest_of(path) == file.sha256:
                return path
    return None


def fetch(file: Published, *, progress: bool) -> Path:
    """Downloads the file into our cache, where it appears whole or not at all.

    **Raises:** [`eqdiff.data.DownloadError`][], with what to do instead.
    """
    target = cache_directory() / file.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as scratch:
            temporary = Path(scratch) / file.name
            found, size = download(
                file.url,
                temporary,
                digest=hashlib.sha256(),
                timeout=5.0,
                total_timeout=3600.0,
                min_rate=1000.0,
                max_bytes=file.size,
                label=file.name,
                progress=progress,
            )
            if found != file.sha256:
                raise DownloadError(
                    f"it gave {size} bytes with the SHA-256 {found}, expected {file.sha256}"
                )
            temporary.replace(target)
    except OSError as error:
        raise DownloadError(
            f"could not download {file.url} to {target} ({error}). Put the file there, or give its "
            "path."
        ) from error
    return target
