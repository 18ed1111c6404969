"""Calls of the system that not every system has, each with a plain stand-in.

Linux has them all, macOS nearly all, Windows few. A stand-in for reading and writing at a place seeks first,
one thread at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from pathlib import Path

__all__ = ["READING", "WRITING_NEW", "read_at", "read_into", "set_mode", "sync_file", "write_at"]


def _flags(*names: str) -> int:
    made = 0
    for name in names:
        made |= getattr(os, name, 0)
    return made


#: How a file is opened; a pipe that has come in its place is not waited for, and Windows changes no line end.
READING = _flags("O_RDONLY", "O_CLOEXEC", "O_NONBLOCK", "O_BINARY", "O_NOINHERIT")
WRITING_NEW = _flags("O_RDWR", "O_CREAT", "O_EXCL", "O_CLOEXEC", "O_BINARY", "O_NOINHERIT")

_seeking = threading.Lock()


def read_at(descriptor: int, size: int, at: int) -> bytes:
    """At most ``size`` bytes of a file, beginning at byte ``at``; none behind its end."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, at)
    with _seeking:
        os.lseek(descriptor, at, os.SEEK_SET)
        return os.read(descriptor, size)


def read_into(descriptor: int, buffer: memoryview, at: int) -> int:
    """Fill a buffer, or its beginning; returns the number of bytes, 0 behind the end of the file."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], at)
    data = read_at(descriptor, len(buffer), at)
    buffer[: len(data)] = data
    return len(data)


def write_at(descriptor: int, data: memoryview, at: int) -> int:
    """Write some of ``data`` at a place; returns the number of bytes."""
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, at)
    with _seeking:
        os.lseek(descriptor, at, os.SEEK_SET)
        return os.write(descriptor, data)


def set_mode(descriptor: int, mode: int) -> None:
    """Give an opened file a mode, where the system and the file system have modes."""
    if hasattr(os, "fchmod"):
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, mode)


def sync_file(path: Path) -> None:
    """Put a file on the disk; Windows does that for no file that is opened for reading."""
    with path.open("rb") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
