"""Names changed in one step: to one that nothing has, or with that of another."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from pathlib import Path

__all__ = ["exchange", "linked_new", "rename_new"]


_AT_FDCWD, _NOREPLACE, _EXCHANGE = -100, 1, 2

#: What a system, a file system or a sandbox says that does not know the call, or not these flags.
_UNKNOWN = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM}


def rename_new(one: Path, other: Path) -> None:
    """Rename a file or a folder, never over another. Raises ``FileExistsError`` where the name is taken.

    Linux does it in one step. Elsewhere a folder is renamed where nothing is, which fails by itself over all
    but an empty one, and a file is linked to its new name and loses the old one. Where there are no links
    either, the name is first taken by an empty file, and only that is replaced.
    """
    if _renameat2(one, other, _NOREPLACE):
        return
    if os.name == "nt":  # it renames over nothing by itself
        one.rename(other)
    elif one.is_dir():
        if os.path.lexists(other):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(other))
        one.rename(other)
    elif linked_new(one, other):
        one.unlink()
    else:
        _over_own(one, other)


def linked_new(one: Path, other: Path) -> bool:
    """Give a file a second name; False where there are no hard links.

    Raises ``FileExistsError`` where the name is taken.
    """
    try:
        os.link(one, other)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step; where the system cannot do that, do nothing: False."""
    try:
        return _renameat2(one, other, _EXCHANGE)
    except OSError:
        return False


def _over_own(one: Path, other: Path) -> None:
    """Take a name with an empty file, and rename over that."""
    try:
        other.touch(0o600, exist_ok=False)
        one.rename(other)
    except FileExistsError:
        raise
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report
            if not other.stat().st_size:
                other.unlink()
        raise


def _renameat2(one: Path, other: Path, flags: int) -> bool:
    """Rename by the call that has flags; False where there is no such call, and nothing is done then.

    Source: renameat2(2).
    """
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # a C library that is older than the call
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), flags) == 0:
        return True
    if (code := ctypes.get_errno()) in _UNKNOWN:
        return False
    raise OSError(code, os.strerror(code), os.fspath(one), None, os.fspath(other))
