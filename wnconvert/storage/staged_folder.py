"""Write a folder whole or not at all: a temporary folder beside the target, synced, then renamed.

An old folder is renamed aside, the new one in, then the old one is deleted. On Linux the two renames are
one step, so a process that is killed leaves the old folder or the new one, and at most the other, or a
part of it, beside it as ``….wnconvert-….tmp``. A file system that cannot exchange names takes two steps:
killed between them, a process leaves both folders, whole, and the old one is ``….wnconvert-….old.tmp``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from wnconvert.errors import OutputError
from wnconvert.storage.staging import (
    always,
    check_free,
    check_parent,
    check_room,
    sync_folder,
    translated,
)
from wnconvert.storage.stores.disk import PERMISSIONS
from wnconvert.storage.stores.renames import exchange, rename_new
from wnconvert.storage.stores.system import sync_file
from wnconvert.storage.stores.temporary import aside_of, held_folder

__all__ = ["check_folder", "replaced_folder", "sync_all"]


def check_folder(target: Path, *, force: bool, size: int = 0) -> Path:
    """The real path of a target that may become a folder of ``size`` bytes (links followed).

    Raises ``OutputError`` where the target exists or is a link into nothing (unless it is a folder and
    ``force`` is given), the folder that it lies in does not exist, or the disk has less space than ``size``.
    """
    real = Path(os.path.realpath(target))
    try:
        check_parent(target, real)
        if os.path.lexists(real) and not real.is_dir():
            raise OutputError(
                "it is not a folder",
                where=str(target),
                fix="-o names the folder to write, or move it away",
            )
        check_free(target, force=force, what="the folder")
        check_room(target, real, size)
    except OSError as error:
        raise translated(error, target) from error
    return real


@contextlib.contextmanager
def replaced_folder(
    target: Path,
    *,
    force: bool,
    size: int = 0,
    mode: int | None = None,
    check: Callable[[], None] = always,
) -> Iterator[Path]:
    """A folder that takes the place of ``target`` when the block ends well, and vanishes when it does not.

    An existing target keeps its mode, and is private while it is written; a new one gets ``mode``, less the
    bits of the umask. ``check`` is called when all is on the disk, and may raise. Raises ``OutputError`` as
    ``check_folder`` does, and where the folder that it lies in cannot be written to.
    """
    real = check_folder(target, force=force, size=size)
    try:
        new = 0o777 if mode is None else mode & PERMISSIONS | stat.S_IRWXU
        temporary, let_go = held_folder(real, 0o700 if real.exists() else new)
    except OSError as error:
        raise translated(error, target) from error
    aside, status = aside_of(temporary), temporary.stat()
    try:
        yield temporary
        try:
            sync_all(temporary)
            check_folder(target, force=force)  # someone else may have made it meanwhile
            check()
            _place(temporary, real, aside, force=force)
        except OSError as error:
            raise translated(error, target) from error
    finally:
        try:
            _clean(temporary, real, aside, status)
        except BaseException:  # Ctrl-C while gigabytes are deleted
            _clean(temporary, real, aside, status)
            raise
        finally:
            let_go()
    for left in filter(os.path.lexists, (temporary, aside)):
        raise OutputError(
            f"it is written, but the old folder could not be deleted: it is {left}",
            where=str(target),
            fix=f"rm -r {left}",
        )


def sync_all(folder: Path) -> None:
    """Put every file on the disk, then the names of all of them."""
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            file = Path(path, name)
            if not file.is_symlink():
                sync_file(file)
        sync_folder(Path(path))


def _place(temporary: Path, real: Path, aside: Path, *, force: bool) -> None:
    """Give the new folder its name; what has that name is exchanged for it only with ``force``."""
    if force and os.path.lexists(real):
        with contextlib.suppress(OSError):  # not every file system has modes
            _give_mode(temporary, real.stat().st_mode)
        if exchange(temporary, real):
            sync_folder(real.parent)
            return
        real.rename(aside)
    rename_new(temporary, real)
    sync_folder(real.parent)


def _give_mode(folder: Path, mode: int) -> None:
    """Give a folder the permissions of another; it keeps what it has of its parent, the set-group-id bit."""
    own = stat.S_IMODE(folder.stat().st_mode) & ~PERMISSIONS
    folder.chmod(mode & PERMISSIONS | own)


def _clean(temporary: Path, real: Path, aside: Path, status: os.stat_result) -> None:
    """Clean up after success or failure: keep the old folder if the new one is not in place, else delete it.

    After an exchange the temporary name is that of the old one.
    """
    if os.path.lexists(aside):
        placed = real.exists() and os.path.samestat(real.stat(), status)
        if placed:
            shutil.rmtree(aside, ignore_errors=True)
            sync_folder(real.parent)
        else:
            with contextlib.suppress(OSError):  # the first error is the one to report
                rename_new(aside, real)
    shutil.rmtree(temporary, ignore_errors=True)
