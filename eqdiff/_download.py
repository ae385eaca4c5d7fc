"""A file from the network: bounded in time, in size and in what it unpacks to.

A server may be slow, broken or hostile. A time-out per read is none at all for one that drips a
byte a second, so the whole has one too, and a least rate; the number of bytes is capped before
their digest is known; and an archive is read as a stream that ends at a limit.
"""

import contextlib
import gzip
import http.client
import os
import socket
import tarfile
import threading
import time
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ._require import require


_CHUNK = 1 << 16
# Seconds over which a rate is measured.
_WINDOW = 30.0


class DownloadError(ConnectionError):
    """A download failed: no connection, an interrupted one, or not the file that was expected.

    **Example:**

    ```python
    try:
        data = eqd.data.cifar10()
    except eqd.data.DownloadError as error:
        print(error)
    ```
    """


def cache_directory() -> Path:
    """`eqdiff` in the user's cache directory (XDG Base Directory Specification)."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "eqdiff"


class _Deadline:
    """Ends all connections when the time is over: no blocking call then outlives it."""

    def __init__(self, seconds: float):
        self.passed = False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def _end(self) -> None:
        self.passed = True
        for duplicate in self._sockets:
            with contextlib.suppress(OSError):
                duplicate.shutdown(socket.SHUT_RDWR)

    def connect(self, *args: Any, **kwargs: Any) -> socket.socket:
        connected = socket.create_connection(*args, **kwargs)
        # A duplicate: encryption takes the original's descriptor away.
        self._sockets.append(connected.dup())
        return connected

    def __enter__(self) -> "_Deadline":
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        for duplicate in self._sockets:
            duplicate.close()


def _opener(deadline: _Deadline) -> urllib.request.OpenerDirector:
    # A new opener reads the present proxy settings; urlopen's hidden global one keeps those of its
    # first call.
    def watched(kind):
        def connection(*args, **kwargs):
            made = kind(*args, **kwargs)
            made._create_connection = deadline.connect
            return made

        return connection

    class Plain(urllib.request.HTTPHandler):
        def http_open(self, req):
            return self.do_open(watched(http.client.HTTPConnection), req)  # pyright: ignore

    class Encrypted(urllib.request.HTTPSHandler):
        def https_open(self, req):
            return self.do_open(watched(http.client.HTTPSConnection), req)  # pyright: ignore

    return urllib.request.build_opener(Plain, Encrypted)


def _length(response: Any, max_bytes: int) -> int | None:
    text = response.headers.get("Content-Length")
    if text is None:
        return None
    text = text.strip()
    if not (text.isascii() and text.isdigit()):
        raise DownloadError(f"the server gave Content-Length {text[:40]!r}, expected a number")
    if len(text) > 18 or int(text) > max_bytes:
        raise DownloadError(
            f"the server announces {text[:40]} bytes, more than the {max_bytes} that are accepted"
        )
    return int(text)


def _save(
    response: Any,
    path: Path,
    digest: Any,
    *,
    max_bytes: int,
    min_rate: float,
    label: str,
    progress: bool,
) -> tuple[str, int]:
    size = 0
    bar = require("tqdm", "A download", extra="data").tqdm(
        total=_length(response, max_bytes),
        desc=label,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=not progress,
    )
    began, before = time.monotonic(), 0
    with bar, open(path, "wb") as file:
        # read1 gives what has come; read would wait until the chunk is full.
        while chunk := response.read1(_CHUNK):
            size += len(chunk)
            if size > max_bytes:
                raise DownloadError(f"it sent more than the {max_bytes} bytes that are accepted")
            file.write(chunk)
            digest.update(chunk)
            bar.update(len(chunk))
            if (elapsed := time.monotonic() - began) > _WINDOW:
                if size - before < min_rate * elapsed:
                    raise DownloadError(
                        f"only {size - before} bytes came in {elapsed:.0f} s, less than the least "
                        f"rate of {min_rate:g} bytes/s"
                    )
                began, before = time.monotonic(), size
    return digest.hexdigest(), size


def download(
    url: str,
    path: Path,
    *,
    digest: Any,
    timeout: float,
    total_timeout: float,
    min_rate: float,
    max_bytes: int,
    label: str,
    progress: bool,
) -> tuple[str, int]:
    """Saves what a URL gives.

    **Arguments:**

    - `digest`: a new hash of `hashlib`, which is fed every byte.

    **Returns:** its hexadecimal digest, and the size.

    **Raises:** [`eqdiff.data.DownloadError`][], with a reason that does not name the URL.
    """
    with _Deadline(total_timeout) as deadline:
        try:
            with _opener(deadline).open(url, timeout=timeout) as response:
                found = _save(
                    response,
                    path,
                    digest,
                    max_bytes=max_bytes,
                    min_rate=min_rate,
                    label=label,
                    progress=progress,
                )
        # ValueError: how urllib answers a redirect to something else than a URL.
        except (OSError, http.client.HTTPException, EOFError, ValueError) as error:
            if deadline.passed:
                raise DownloadError(f"it was not done after {total_timeout:g} s") from error
            if isinstance(error, DownloadError):
                raise
            reason = str(error)[:500] or type(error).__name__
            raise DownloadError(reason) from error
        if deadline.passed:  # The end of a connection may look like the end of the file.
            raise DownloadError(f"it was not done after {total_timeout:g} s")
        return found


class _Bounded:
    """A stream that ends in an error at a limit."""

    def __init__(self, stream: Any, limit: int):
        self._stream, self._limit, self._left = stream, limit, limit

    def read(self, size: int) -> bytes:
        data = self._stream.read(min(size, self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            raise DownloadError(
                f"the archive unpacks to more than the {self._limit} bytes that are expected"
            )
        return data


def _members(archive: Path, limit: int) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    with gzip.open(archive) as stream:
        with tarfile.open(fileobj=_Bounded(stream, limit), mode="r|") as tar:  # pyright: ignore
            for member in tar:
                yield tar, member


def unpack(archive: Path, into: Path, sizes: Mapping[str, int], *, limit: int) -> set[str]:
    """Takes known files out of a `.tar.gz`.

    **Arguments:**

    - `sizes`: the names of members to take, and the most bytes of each.
    - `limit`: the most bytes of the whole archive, unpacked.

    **Returns:** the names that were there.

    **Raises:** [`eqdiff.data.DownloadError`][] for a damaged archive or one beyond these sizes.
    """
    found = set()
    try:
        for tar, member in _members(archive, limit):
            # Known names of regular files only: a path that climbs out, a link or a device is never
            # written.
            if member.name not in sizes or not member.isreg() or member.issparse():
                continue
            if member.size > sizes[member.name]:
                raise DownloadError(
                    f"the archive's {member.name} has {member.size} bytes, more than the "
                    f"{sizes[member.name]} that are expected"
                )
            tar.extract(member, into, filter="data")
            found.add(member.name)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise DownloadError(f"the archive is damaged ({error})") from error
    return found
