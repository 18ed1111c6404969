"""The disks of this machine.

Nothing is mapped into memory: a mapped file that becomes shorter ends the process, and no error can be
raised.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from pathlib import Path, PurePath

from wnconvert.errors import InputError
from wnconvert.storage.stores.store import PathKind, Status, Store
from wnconvert.storage.stores.system import READING, copy_range, read_at, read_into
from wnconvert.tensors.files import Identity, ReadableFile, became_shorter

__all__ = ["PERMISSIONS", "Disk", "FileAddresses", "LocalFile", "OpenedFile", "identity_of", "kind_of_mode"]


#: The bits of a mode that are copied: not those that let a program run as its owner.
PERMISSIONS = 0o777

_KINDS = (
    (stat.S_ISREG, PathKind.FILE),
    (stat.S_ISDIR, PathKind.FOLDER),
    (stat.S_ISFIFO, PathKind.PIPE),
    (stat.S_ISCHR, PathKind.DEVICE),
    (stat.S_ISBLK, PathKind.DEVICE),
)


def kind_of_mode(mode: int) -> PathKind:
    """What a mode says that a thing is.

    >>> kind_of_mode(os.stat(os.devnull).st_mode)
    <PathKind.DEVICE: 'a device'>
    """
    return next((kind for test, kind in _KINDS if test(mode)), PathKind.OTHER)


def identity_of(found: os.stat_result) -> Identity:
    """Which file it is that the system describes; Windows tells little of it twice in the same way."""
    if os.name == "nt":
        return Identity(0, 0, found.st_size, found.st_mtime_ns, 0)
    return Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Disk(Store):
    """Files by their paths."""

    def path(self, name: str) -> Path:
        """The path as it is written."""
        return Path(name)

    def status(self, path: PurePath) -> Status:
        """What ``stat`` says of a path."""
        found = os.stat(path)  # noqa: PTH116 - of any path
        kind, mode = kind_of_mode(found.st_mode), found.st_mode & PERMISSIONS
        return Status(kind, found.st_size, mode, identity_of(found))

    def names(self, folder: PurePath) -> list[str]:
        """The names in a folder, sorted."""
        return sorted(os.listdir(folder))  # noqa: PTH208 - of any path

    def open(self, path: PurePath) -> ReadableFile:
        """A file, opened for reading."""
        return LocalFile(Path(path))

    def local(self, path: PurePath) -> Path:
        """The path itself."""
        return Path(path)

    def real(self, path: PurePath) -> Path:
        """The path with all links in it followed."""
        return Path(os.path.realpath(path))


class FileAddresses(Disk):
    """The same files by ``file://`` addresses, which become paths at once."""

    def path(self, name: str) -> Path:
        """The path that an address means.

        >>> str(FileAddresses().path("file:///data/two%20words.pt"))
        '/data/two words.pt'
        """
        from urllib.request import url2pathname  # 20 ms, which few need

        host, slash, rest = name[len("file://") :].partition("/")
        if host not in ("", "localhost") or not rest:
            raise InputError(
                "a file:// address that is not of this machine"
                if host
                else "a file:// address without a path",
                where=name,
                fix="file:///PATH, with three slashes, is a file of this machine",
            )
        return Path(url2pathname(slash + rest))


class OpenedFile:
    """A file by its descriptor, read at places, which disturb no other reader; ``where`` names it."""

    path: Path | None = None

    def __init__(self, descriptor: int, where: str) -> None:
        self._descriptor = descriptor
        self._where = where
        self.identity: Identity | None = identity_of(os.fstat(descriptor))

    @property
    def size(self) -> int:
        """The number of its bytes, as it is now."""
        return os.fstat(self._descriptor).st_size

    def read(self, at: int, size: int, /) -> bytes:
        """All of ``size`` bytes, beginning at byte ``at``."""
        parts = []
        try:
            while size:
                part = read_at(self._descriptor, size, at)
                if not part:
                    raise became_shorter(self._where)
                parts.append(part)
                at, size = at + len(part), size - len(part)
        except OSError as error:
            raise _unreadable(error, self._where) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_into(self, at: int, buffer: memoryview, /) -> None:
        """Fill a buffer with the bytes that begin at byte ``at``."""
        done = 0
        try:
            while done < len(buffer):
                count = read_into(self._descriptor, buffer[done:], at + done)
                if not count:
                    raise became_shorter(self._where)
                done += count
        except OSError as error:
            raise _unreadable(error, self._where) from error

    def send(self, at: int, size: int, target: int, to: int) -> int:
        """Have the system copy bytes into another opened file; returns how many: 0 where it cannot."""
        return copy_range(self._descriptor, at, target, to, size)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class LocalFile(OpenedFile):
    """A file by its path."""

    def __init__(self, path: Path) -> None:
        where = os.fspath(path)
        try:
            kind = kind_of_mode(path.stat().st_mode)
            descriptor = os.open(path, READING) if kind is PathKind.FILE else -1
        except OSError as error:
            raise _unreadable(error, where) from error
        if kind is not PathKind.FILE:
            raise InputError(f"{kind.value}, not a regular file", where=where, fix=_fix(kind, where))
        super().__init__(descriptor, where)
        self.path = path


def _fix(kind: PathKind, where: str) -> str:
    """What to do about a path that is not a file."""
    if kind is not PathKind.PIPE:
        return "save it to a file first"
    if where.startswith(("/dev/", "/proc/")):  # of a shell's <(COMMAND)
        return "- is stdin: COMMAND | wnconvert …, with - as the file"
    return f"- is stdin: name that, and redirect it: < {shlex.quote(where)}"


def _unreadable(error: OSError, where: str) -> InputError:
    fix = "ulimit -n 4096 lets a process open more" if error.errno in (errno.EMFILE, errno.ENFILE) else ""
    return InputError(f"it cannot be read ({error.strerror})", where=where, fix=fix)
