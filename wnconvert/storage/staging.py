"""Write a file whole or not at all: a temporary file beside the target, fsync, rename.

Whatever happens, the target is either the old file or the whole new one; a process that is killed can leave
at most a file or folder named ``….wnconvert-….tmp`` beside it, which the next run finds (``temporary``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from wnconvert.errors import OutputError
from wnconvert.storage.stores.disk import PERMISSIONS, kind_of_mode
from wnconvert.storage.stores.filling import Filling, filling
from wnconvert.storage.stores.renames import linked_new, rename_new
from wnconvert.storage.stores.store import PathKind
from wnconvert.storage.stores.system import WRITING_NEW, set_mode, sync_file, write_at
from wnconvert.storage.stores.temporary import held_file, held_folder, kept_open

__all__ = [
    "Staged",
    "always",
    "check_free",
    "check_parent",
    "check_room",
    "check_target",
    "file_in",
    "free_name",
    "put_in_place",
    "scratch_folder",
    "staged",
    "staged_folder",
    "sync_folder",
    "translated",
]


# Where the names of opened files are.
_STREAMS = re.compile(r"/dev/fd|/proc/\d+(?:/task/\d+)?/fd")
_FULL = {errno.ENOSPC, errno.EDQUOT}


class Staged:
    """A file being written: its descriptor, open for reading and writing, and its temporary path.

    ``target`` is its final name, as the user gave it. One that is ``passing`` is read at once
    and then deleted: it is not synced, and stays in the page cache.
    """

    passing = False
    #: The largest tensors first: any place of a file is written at any time.
    in_order = False

    def __init__(self, fd: int, path: Path, target: Path) -> None:
        self.fd = fd
        self.path = path
        self.target = target

    def write(self, data: bytes | memoryview, at: int) -> None:
        """Write all of ``data`` at an offset; threads may write at the same time.

        Raises ``OutputError`` where the disk is full.
        """
        view = memoryview(data)
        try:
            while view:
                done = write_at(self.fd, view, at)
                view, at = view[done:], at + done
        except OSError as error:
            raise translated(error, self.target) from error

    def filling(self, size: int, threads: int) -> contextlib.AbstractContextManager[Filling]:
        """Make the file ``size`` bytes long, and fill it from several threads; bytes never written are zeros.

        Raises ``OutputError`` where the disk is full: when the bytes are reserved, if it can reserve them.
        """
        return filling(
            self.fd,
            self.path,
            size,
            threads,
            lambda error: translated(error, self.target),
            cached=self.passing,
        )


def always() -> None:
    """Nothing speaks against it."""


def check_target(target: Path, *, force: bool, size: int = 0, option: str = "-o") -> Path:
    """The real path of a target that may be written with ``size`` bytes (links followed).

    Every file that is written is looked at here; ``option`` is what names it. Raises ``OutputError`` where
    the target exists, or is a link into nothing (unless ``force``), or is not a file, where its folder does
    not exist, and where the disk has less space than ``size``.
    """
    real = Path(os.path.realpath(target))
    try:
        _check_regular(target)
        check_parent(target, real)
        check_free(target, force=force, option=option)
        check_room(target, real, size)
    except OSError as error:
        raise translated(error, target) from error
    return real


def _check_regular(target: Path) -> None:
    """Raise ``OutputError`` where a target is there and is not a file, to be replaced whole or not at all."""
    kind = kind_of_mode(target.stat().st_mode) if target.exists() else PathKind.FILE
    if any(_STREAMS.fullmatch(folder) for folder in _folders_of_links(target)):
        raise OutputError("it is a stream of this process", where=str(target), fix="-o - writes to stdout")
    if kind is PathKind.FOLDER:
        raise OutputError("it is a folder", where=str(target), fix="-o names the file to write")
    if kind is not PathKind.FILE:
        fix = (
            "--dry-run writes nothing" if str(target) == os.devnull else f"-o - > {shlex.quote(str(target))}"
        )
        raise OutputError(f"it is {kind.value}, not a regular file", where=str(target), fix=fix)


def _folders_of_links(target: Path) -> Iterator[str]:
    """The real folder of a name, then, as long as that is a link, of what it leads to.

    The link of an opened file leads to any text: what was deleted is called ``….pt (deleted)``.
    """
    for _ in range(40):  # as many as Linux follows
        folder = os.path.realpath(target.parent)
        yield folder
        if not target.is_symlink():
            return
        target = Path(folder, os.readlink(target))  # noqa: PTH115 - of a text


def check_free(target: Path, *, force: bool, option: str = "-o", what: str = "it") -> None:
    """Raise ``OutputError`` where a name is taken, and ``force``, which replaces ``what``, is not given."""
    if force or not os.path.lexists(target):
        return
    if not target.exists():
        leads = f"it is a link to {os.readlink(target)}, where nothing is"  # noqa: PTH115
        fix = f"{option.partition(' ')[0]} {os.path.realpath(target)}, or --force"
        raise OutputError(leads, where=str(target), fix=fix)
    fix = f"--force replaces {what}, or choose another {option}"
    raise OutputError("it exists", where=str(target), fix=fix)


def check_parent(target: Path, real: Path) -> None:
    """Raise ``OutputError`` where the parent folder of a target does not exist, or is not a folder."""
    if real.parent.exists() and not real.parent.is_dir():
        raise OutputError(f"{target.parent} is not a folder", where=str(target), fix="choose another -o")
    if not real.parent.is_dir():
        raise OutputError(
            f"its folder {target.parent} does not exist",
            where=str(target),
            fix=f"mkdir -p {target.parent}",
        )


def check_room(target: Path, real: Path, size: int) -> None:
    """Raise ``OutputError`` where the disk of a target has less space than ``size``."""
    free = shutil.disk_usage(real.parent).free
    if size > free:
        raise OutputError(
            f"the disk is full: {size} bytes are needed, {free} are free",
            where=str(target),
            fix="free some space",
        )


@contextlib.contextmanager
def staged(
    target: Path,
    *,
    force: bool,
    size: int = 0,
    mode: int | None = None,
    check: Callable[[], None] = always,
) -> Iterator[Staged]:
    """A file that takes the place of ``target`` when the block ends well, and vanishes when it does not.

    An existing target keeps its mode; a new one gets ``mode``, as ``cp`` gives it that of a source: less the
    bits of the umask. ``check`` is called when all is on the disk, and may raise. Raises ``OutputError`` as
    ``check_target`` does, and where the folder cannot be written to.
    """
    real = check_target(target, force=force, size=size)
    temporary, fd = _create(real, target, mode)
    with kept_open(fd):
        try:
            try:
                file = Staged(fd, temporary, target)
                yield file
                if not file.passing:
                    _sync(fd, target)
            finally:
                os.close(fd)  # Windows neither renames nor deletes an opened file
            check()
            try:
                _publish(temporary, target, real, force=force)
            except OSError as error:
                raise translated(error, target) from error
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to report
                temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def staged_folder(
    target: Path, *, force: bool, size: int = 0, check: Callable[[], None] = always
) -> Iterator[Path]:
    """A private folder whose files are put beside ``target`` when the block ends well; it vanishes anyway.

    The file called ``target.name`` takes the place of ``target``, after all others stand there: they are
    what it names (an ONNX model's external data), so their names must be free (``free_name``), ``force`` or
    not. An existing target keeps its mode. ``check`` is as for ``staged``. Raises ``OutputError`` as that
    does, and where a name is taken; then none of the files stays.
    """
    with scratch_folder(target, force=force, size=size) as folder:
        yield folder
        put_in_place(folder, target, force=force, check=check)


@contextlib.contextmanager
def scratch_folder(target: Path, *, force: bool, size: int = 0) -> Iterator[Path]:
    """A private folder beside ``target``, on the same disk; it is deleted when the block ends.

    Raises ``OutputError`` as ``check_target`` does, and where the folder cannot be made.
    """
    real = check_target(target, force=force, size=size)
    try:
        folder, let_go = held_folder(real, 0o700)
    except OSError as error:
        raise translated(error, target) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        let_go()


def put_in_place(folder: Path, target: Path, *, force: bool, check: Callable[[], None] = always) -> None:
    """Put the files of a folder on the same disk beside ``target``, as ``staged_folder`` does at its end."""
    try:
        _publish_all(folder, target, Path(os.path.realpath(target)), force=force, check=check)
    except OSError as error:
        raise translated(error, target) from error


@contextlib.contextmanager
def file_in(folder: Path, name: str, target: Path, mode: int | None = None) -> Iterator[Staged]:
    """A new file in a folder of ``staged_folder``; errors name the ``target`` that the user asked for."""
    try:
        fd = os.open(folder / name, WRITING_NEW, _mode_of_new(mode))
    except OSError as error:
        raise translated(error, target) from error
    try:
        yield Staged(fd, folder / name, target)
    finally:
        os.close(fd)


def free_name(target: Path, suffix: str = ".data") -> str:
    """A name for a file beside ``target`` that no file has: ``model.onnx.data``, ``model.onnx.2.data``, ….

    >>> free_name(Path("nowhere/model.onnx"))
    'model.onnx.data'
    """
    folder = Path(os.path.realpath(target)).parent
    number, name = 1, f"{target.name}{suffix}"
    while os.path.lexists(folder / name):
        number += 1
        name = f"{target.name}.{number}{suffix}"
    return name


def _create(real: Path, target: Path, mode: int | None) -> tuple[Path, int]:
    """Create the temporary file with its mode from the start: its content may be private."""
    try:
        old = real.stat().st_mode & PERMISSIONS if real.exists() else None
        temporary, fd = held_file(real, _mode_of_new(mode) if old is None else old)
        if old is not None:
            set_mode(fd, old)  # the bits that umask took away
    except OSError as error:
        raise translated(error, target) from error
    return temporary, fd


def _mode_of_new(mode: int | None) -> int:
    """The mode of a new file, before umask takes bits away; it is read back, so its owner may read it."""
    return 0o666 if mode is None else mode & PERMISSIONS | stat.S_IRUSR


def _sync(fd: int, target: Path) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        raise translated(error, target) from error


def _publish(temporary: Path, target: Path, real: Path, *, force: bool) -> None:
    check_target(target, force=force)  # someone else may have made it meanwhile
    if force:
        temporary.replace(real)
    else:
        rename_new(temporary, real)
    sync_folder(real.parent)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, if the system can sync folders.

    A rename is on the disk only when its folder is.
    """
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _publish_all(folder: Path, target: Path, real: Path, *, force: bool, check: Callable[[], None]) -> None:
    others = sorted(path for path in folder.iterdir() if path.name != target.name)
    if others and target.parent.resolve() != real.parent:
        raise OutputError(
            "it is a link into another folder, and its data files must lie beside it",
            where=str(target),
            fix=f"-o {real}",
        )
    check_target(target, force=force)
    for path in (*others, folder / target.name):
        sync_file(path)
        if real.exists():
            with contextlib.suppress(OSError):  # not every file system has modes
                path.chmod(real.stat().st_mode & PERMISSIONS)
    check()
    placed: list[Path] = []
    try:
        for path in others:
            _put(path, real.with_name(path.name))
            placed.append(real.with_name(path.name))
        sync_folder(real.parent)  # before the file that names them
        if force:
            (folder / target.name).replace(real)
        else:
            rename_new(folder / target.name, real)
    except BaseException:
        for path in placed:
            with contextlib.suppress(OSError):  # the first error is the one to report
                path.unlink(missing_ok=True)
        raise
    sync_folder(real.parent)


def _put(temporary: Path, real: Path) -> None:
    """Give a file its final name, never over another; by the old one, which stays, it is found again."""
    try:
        if not linked_new(temporary, real):
            rename_new(temporary, real)
    except FileExistsError as error:
        raise OutputError("it exists", where=str(real), fix="move it away, or choose another -o") from error


def translated(error: OSError, where: Path) -> OutputError:
    """An error of the system while a target is written, in the user's words."""
    if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
        return OutputError("it exists", where=str(where), fix="--force replaces it, or choose another -o")
    if error.errno in _FULL:
        return OutputError("the disk is full", where=str(where), fix="free some space, or choose another -o")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(
            "its folder cannot be written to", where=str(where), fix="-o names a place where you may write"
        )
    return OutputError(f"it cannot be written ({error.strerror})", where=str(where), fix="choose another -o")
