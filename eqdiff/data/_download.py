"""Downloading CIFAR-10, all or nothing.

Everything happens in a temporary folder beside the target: the archive is checked against its MD5,
only the files whose names are known are taken out of it, and one rename makes the result visible.
An interrupted or refused download, a wrong archive or a full disk leave the directory as it was.
"""

import contextlib
import hashlib
import http.client
import os
import shutil
import tarfile
import tempfile
import urllib.request
import zlib
from pathlib import Path

from ._files import default_directory, FOLDER, TEST_FILES, TRAIN_FILES
from ._require import require


_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
_CHUNK = 1 << 16


class DownloadError(ConnectionError):
    """A download failed: no connection, an interrupted one, or not the file that was expected."""


def _save(response, path: Path, *, progress: bool) -> tuple[str, int]:
    length = response.headers.get("Content-Length")
    digest, size = hashlib.md5(usedforsecurity=False), 0
    bar = require("tqdm").tqdm(
        total=None if length is None else int(length),
        desc="CIFAR-10",
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=not progress,
    )
    with bar, open(path, "wb") as file:
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            bar.update(len(chunk))
    return digest.hexdigest(), size


def _extract(archive: Path, into: Path) -> list[str]:
    """Takes the known files out of the archive; returns the names that it lacks."""
    wanted = {f"{FOLDER}/{name}" for name in (*TRAIN_FILES, *TEST_FILES)}
    optional = {f"{FOLDER}/batches.meta.txt", f"{FOLDER}/readme.html"}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            # Known names of regular files only: a path that climbs out, a link or a device is never
            # written.
            if member.isreg() and member.name in wanted | optional:
                tar.extract(member, into, filter="data")
                wanted.discard(member.name)
    return sorted(wanted)


def _install(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        # Another process may have finished first; whatever is there now is its complete download.
        if not all((target / name).is_file() for name in (*TRAIN_FILES, *TEST_FILES)):
            raise


@contextlib.contextmanager
def _scratch(parent: Path):
    """A temporary folder in `parent`, which is made if need be; an error leaves neither."""
    made = [p for p in (parent, *parent.parents) if not p.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".cifar10-", dir=parent))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def fetch_cifar10(
    directory: str | os.PathLike | None = None,
    *,
    url: str = _URL,
    md5: str = _MD5,
    timeout: float = 5.0,
    progress: bool = True,
) -> Path:
    """Downloads CIFAR-10's official binary archive (170 MB) and unpacks it.

    **Arguments:**

    - `directory`: where to put the folder `cifar-10-batches-bin` (or that folder itself). Default:
        `eqdiff` in `$XDG_CACHE_HOME`, or in `~/.cache`.
    - `url`, `md5`: of the archive; change them for a mirror.
    - `timeout`: seconds without an answer after which to give up.
    - `progress`: whether to show a progress bar.

    **Returns:** the folder with the files.

    **Raises:** [`eqdiff.data.DownloadError`][] if the archive cannot be had or is not the right
    one, and `FileExistsError` if the folder already holds something. Either way nothing is left
    behind.
    """
    root = default_directory() if directory is None else Path(directory).expanduser()
    target = root if root.name == FOLDER else root / FOLDER
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(
            f"{target} already exists and nothing is overwritten: read it with "
            "eqdiff.data.cifar10, or remove it to download again"
        )
    # A new opener reads the proxy settings of now, where urlopen's hidden global one keeps those of
    # its first call.
    opener = urllib.request.build_opener()
    try:
        with opener.open(url, timeout=timeout) as response, _scratch(target.parent) as scratch:
            archive = scratch / "archive.tar.gz"
            found, size = _save(response, archive, progress=progress)
            if found != md5:
                raise DownloadError(
                    f"{url} gave {size} bytes with MD5 {found}, expected {md5}: the download was "
                    "interrupted or the file is another; try again or pass a mirror's url="
                )
            if missing := _extract(archive, scratch):
                raise DownloadError(f"the archive {url} lacks {', '.join(missing)}")
            _install(scratch / FOLDER, target)
    except DownloadError:
        raise
    except (OSError, http.client.HTTPException, tarfile.TarError, EOFError, zlib.error) as error:
        reason = str(error) or type(error).__name__
        raise DownloadError(
            f"could not download CIFAR-10 from {url} to {target} ({reason}): put the folder "
            f"{FOLDER} "
            "somewhere and pass directory=, or try again"
        ) from error
    return target
