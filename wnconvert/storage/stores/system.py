"""Calls of the system that not every system has, each with a plain stand-in.

Linux has them all, macOS nearly all, Windows few. A stand-in for reading and writing at a place seeks first,
one thread at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from pathlib import Path, PurePath

__all__ = [
    "READING",
    "WRITING_NEW",
    "begin_sync",
    "copy_range",
    "lock",
    "open_direct",
    "read_at",
    "read_into",
    "reserve",
    "set_mode",
    "sync_file",
    "write_at",
]


def _flags(*names: str) -> int:
    made = 0
    for name in names:
        made |= getattr(os, name, 0)
    return made


#: How a file is opened; a pipe that has come in its place is not waited for, and Windows changes no line end.
READING = _flags("O_RDONLY", "O_CLOEXEC", "O_NONBLOCK", "O_BINARY", "O_NOINHERIT")
WRITING_NEW = _flags("O_RDWR", "O_CREAT", "O_EXCL", "O_CLOEXEC", "O_BINARY", "O_NOINHERIT")

_WRITING_DIRECT = _flags("O_WRONLY", "O_CLOEXEC", "O_DIRECT")

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

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


def reserve(descriptor: int, size: int) -> bool:
    """Make a new file ``size`` bytes long; True if the bytes have their places on the disk, too.

    Raises ``OSError`` where there is no room for them.
    """
    while size and (code := _allocate(descriptor, size)) != 0:
        if code in _NO_ROOM:
            raise OSError(code, os.strerror(code))
        if code != errno.EINTR:
            os.ftruncate(descriptor, size)
            return False
    return True


def _allocate(descriptor: int, size: int) -> int:
    """Linux's ``fallocate``: 0, or the number of an error.

    ``os.posix_fallocate`` would write zeros where the file system cannot do it.
    """
    if sys.platform != "linux":
        return errno.ENOSYS
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    call = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if call is None:
        return errno.ENOSYS
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return ctypes.get_errno() if call(descriptor, 0, 0, size) else 0


def open_direct(descriptor: int, path: Path) -> int | None:
    """An opened file once more, for writing past the page cache; None where there is no such way."""
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        made = os.open(path, _WRITING_DIRECT)
    except OSError:
        return None
    if os.path.sameopenfile(descriptor, made):
        return made
    os.close(made)
    return None


def copy_range(source: int, at: int, target: int, to: int, size: int) -> int:
    """Have the system copy bytes from file to file, or share them; returns how many: 0 where it cannot."""
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(source, target, size, at, to)
    except OSError:  # reading and writing does it, or tells why not
        return 0


def begin_sync(descriptor: int, at: int, size: int) -> None:
    """Ask the system to begin writing a part of a file to the disk, so that the last ``fsync`` is short."""
    if hasattr(os, "posix_fadvise"):
        # Linux begins to write dirty pages, and drops only those that were written before.
        with contextlib.suppress(OSError):  # it is advice
            os.posix_fadvise(descriptor, at, size, os.POSIX_FADV_DONTNEED)


def begin_reading(path: PurePath, at: int, size: int) -> None:
    """Ask the system to begin reading a part of a file from the disk, where it does so by a call."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # it is advice
            descriptor = os.open(path, READING)
            try:
                os.posix_fadvise(descriptor, at, size, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)


def set_mode(descriptor: int, mode: int) -> None:
    """Give an opened file a mode, where the system and the file system have modes."""
    if hasattr(os, "fchmod"):
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, mode)


def lock(descriptor: int) -> bool | None:
    """Lock an opened file or folder for as long as it is open, in this process or its children.

    False where another holds it; None where there are no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def sync_file(path: Path) -> None:
    """Put a file on the disk; Windows does that for no file that is opened for reading."""
    with path.open("rb") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
