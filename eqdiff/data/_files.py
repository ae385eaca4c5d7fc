"""The files of a folder or of a zip archive, by name, opened safely.

Names are relative and have forward slashes, sorted, so that a seeded split is the same on every
machine. Only regular files are opened: a pipe could block, a device might never end. What
an archive says about itself is not trusted: a member is read up to a limit and its CRC-32 checked.
"""

import dataclasses
import io
import os
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path


SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
_TEXTS = (".json", ".jsonl", ".csv")
# No encoded image and no list of labels of a sane size is larger.
_MOST_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class ZipMember:
    """A file in an archive, with as much of a path's interface as a source needs."""

    archive: zipfile.ZipFile
    member: str

    @property
    def name(self) -> str:
        """The last part of its name."""
        return self.member.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.archive.filename}/{self.member}"

    def open(self) -> io.BufferedIOBase:
        """Its content, read whole: members have no cheap way back to their beginning."""
        info = self.archive.getinfo(self.member)
        if info.file_size > _MOST_BYTES:
            raise ValueError(
                f"it unpacks to {info.file_size} bytes, more than the {_MOST_BYTES} that are read"
            )
        # zipfile gives no more than it promised, whatever the compressed bytes hold.
        return io.BytesIO(self.archive.read(info))


File = Path | ZipMember


def open_file(file: File) -> io.BufferedIOBase:
    """Opens a regular file, or a member of an archive, for reading."""
    if isinstance(file, ZipMember):
        return file.open()
    # Without O_NONBLOCK to open a pipe would wait for its writer.
    descriptor = os.open(
        file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is not a regular file but a pipe, a device, a socket or a folder")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


@dataclasses.dataclass(frozen=True)
class Files:
    """What is in a folder or an archive.

    `names[i]` is the relative name of image `files[i]`; `texts` the files that may hold labels.
    """

    root: str
    names: tuple[str, ...]
    files: tuple[File, ...]
    texts: Mapping[str, File]

    def read_text(self, name: str) -> str:
        """The text of `texts[name]`, bounded, with errors that name it."""
        where = f"{self.root}/{name}"
        if name not in self.texts:
            raise FileNotFoundError(f"there is no {where}")
        try:
            with open_file(self.texts[name]) as stream:
                content = stream.read(_MOST_BYTES + 1)
        except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
            raise ValueError(f"cannot read {where} ({error})") from error
        if len(content) > _MOST_BYTES:
            raise ValueError(f"{where} has more than {_MOST_BYTES} bytes, too many for labels")
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where} is not UTF-8 text ({error})") from error

    def within(self, folder: str) -> "Files":
        """The part below a first-level folder, with names relative to it."""
        start = f"{folder}/"
        kept = [(n, f) for n, f in zip(self.names, self.files, strict=True) if n.startswith(start)]
        texts = {n[len(start) :]: f for n, f in self.texts.items() if n.startswith(start)}
        return Files(
            f"{self.root}/{folder}",
            tuple(n[len(start) :] for n, _ in kept),
            tuple(f for _, f in kept),
            texts,
        )


def _sorted_files(root: str, found: dict[str, File]) -> Files:
    images = {n: f for n, f in found.items() if n.lower().endswith(SUFFIXES)}
    names = tuple(sorted(images))
    texts = {n: f for n, f in sorted(found.items()) if n.lower().endswith(_TEXTS)}
    return Files(root, names, tuple(images[n] for n in names), texts)


def files_of_folder(root: Path) -> Files:
    """All files of a folder and its sub-folders, but for hidden ones."""
    found: dict[str, File] = {}
    visited = set()
    # Data sets are often assembled from links to folders; remembering those visited breaks cycles.
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in names:
            if not name.startswith("."):
                path = Path(folder, name)
                found[path.relative_to(root).as_posix()] = path
    return _sorted_files(str(root), found)


def files_of_zip(path: Path) -> Files:
    """All files of a zip archive, but for hidden ones and macOS's copies of them.

    An archive with nothing but one folder is read from within that folder.
    """
    try:
        open_file(path).close()  # A pipe is refused; the archive closes what it opens itself.
        archive = zipfile.ZipFile(path)
        members = archive.infolist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ValueError(f"cannot read the archive {path} ({error})") from error
    found: dict[str, File] = {}
    for info in members:
        parts = info.filename.split("/")
        if info.is_dir() or any(p.startswith(".") or p in ("", "__MACOSX") for p in parts):
            continue
        if info.filename in found:
            raise ValueError(f"the archive {path} has two members named {info.filename!r}")
        found[info.filename] = ZipMember(archive, info.filename)
    files = _sorted_files(str(path), found)
    tops = {name.partition("/")[0] for name in (*files.names, *files.texts)}
    alone = len(tops) == 1 and all("/" in name for name in files.names)
    return files.within(tops.pop()) if alone else files
