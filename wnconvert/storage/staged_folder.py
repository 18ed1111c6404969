"""Write a folder whole or not at all: a temporary folder beside the target, synced, then renamed.

An old folder is renamed aside, the new one in, then the old one is deleted. On Linux the two renames are
one step, so a process that is killed leaves the old folder or the new one, and at most the other, or a
part of it, beside it as ``….wnconvert-….tmp``. A file system that cannot exchange names takes two steps:
killed between them, a process leaves both folders, whole, and the old one is ``….wnconvert-….old.tmp``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from wnconvert.errors import OutputError
from wnconvert.storage.staging import beside, check_parent, check_room, sync_folder, translated
from wnconvert.storage.stores.system import sync_file

__all__ = ["check_folder", "replaced_folder"]


def check_folder(target: Path, *, force: bool, size: int = 0) -> Path:
    """The real path of a target that may become a folder of ``size`` bytes (links followed).

    Raises ``OutputError`` where the target exists (unless it is a folder and ``force`` is given), the
    folder that it lies in does not exist, or the disk has less space than ``size``.
    """
    real = Path(os.path.realpath(target))
    try:
        check_parent(target, real)
        if os.path.lexists(real):
            if not real.is_dir():
                raise OutputError(
                    "it is not a folder",
                    where=str(target),
                    fix="-o names the folder to write, or move it away",
                )
            if not force:
                raise OutputError(
                    "it exists", where=str(target), fix="--force replaces the folder, or choose another -o"
                )
        check_room(target, real, size)
    except OSError as error:
        raise translated(error, target) from error
    return real


@contextlib.contextmanager
def replaced_folder(target: Path, *, force: bool, size: int = 0, mode: int | None = None) -> Iterator[Path]:
    """A folder that takes the place of ``target`` when the block ends well, and vanishes when it does not.

    An existing target keeps its mode, and is private while it is written; a new one gets ``mode``, less the
    bits of the umask. Raises ``OutputError`` as
    ``check_folder`` does, and where the folder that it lies in cannot be written to.
    """
    real = check_folder(target, force=force, size=size)
    temporary = beside(real)
    aside = temporary.with_name(f"{temporary.name.removesuffix('.tmp')}.old.tmp")
    status: os.stat_result | None = None
    try:
        try:
            temporary.mkdir(
                0o700 if real.exists() else 0o777 if mode is None else mode & 0o777 | stat.S_IRWXU
            )
            status = temporary.stat()
        except OSError as error:
            raise translated(error, target) from error
        yield temporary
        try:
            _sync_all(temporary)
            check_folder(target, force=force)  # someone else may have made it meanwhile
            _swap(temporary, real, aside)
        except OSError as error:
            raise translated(error, target) from error
    finally:
        try:
            _clean(temporary, real, aside, status)
        except BaseException:  # Ctrl-C while gigabytes are deleted
            _clean(temporary, real, aside, status)
            raise
    for left in filter(os.path.lexists, (temporary, aside)):
        raise OutputError(
            f"it is written, but the old folder could not be deleted: it is {left}",
            where=str(target),
            fix=f"rm -r {left}",
        )


def _sync_all(folder: Path) -> None:
    """Put every file on the disk, then the names of all of them."""
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            file = Path(path, name)
            if not file.is_symlink():
                sync_file(file)
        sync_folder(Path(path))


def _swap(temporary: Path, real: Path, aside: Path) -> None:
    if os.path.lexists(real):
        with contextlib.suppress(OSError):  # not every file system has modes
            temporary.chmod(stat.S_IMODE(real.stat().st_mode))
        if _exchange(temporary, real):
            sync_folder(real.parent)
            return
        real.rename(aside)
    # Over a folder made since the last look a rename fails, unless that is empty.
    temporary.rename(real)
    sync_folder(real.parent)


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step; where the system cannot do that, do nothing: False.

    Source: renameat2(2).
    """
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # a C library that is older than the call
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _clean(temporary: Path, real: Path, aside: Path, status: os.stat_result | None) -> None:
    """Clean up after success or failure: keep the old folder if the new one is not in place, else delete it.

    After an exchange the temporary name is that of the old one.
    """
    if os.path.lexists(aside):
        placed = status is not None and real.exists() and os.path.samestat(real.stat(), status)
        if placed:
            shutil.rmtree(aside, ignore_errors=True)
            sync_folder(real.parent)
        else:
            with contextlib.suppress(OSError):  # the first error is the one to report
                aside.rename(real)
    shutil.rmtree(temporary, ignore_errors=True)
