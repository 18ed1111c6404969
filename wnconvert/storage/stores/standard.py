"""stdin as a store of one file, and stdout as the place of one: both are spooled through temporary files.

A checkpoint is read at any place, and an output is there whole or not at all; a stream gives neither.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import IO, Any

from wnconvert.errors import InputError, OutputError, WnconvertError
from wnconvert.storage.stores.disk import OpenedFile, identity_of
from wnconvert.storage.stores.store import Address, PathKind, Status, Store
from wnconvert.storage.stores.temporary import held_folder
from wnconvert.tensors.files import ReadableFile

__all__ = ["STANDARD", "StandardInput", "spooled_beside", "standard_output"]


#: How a user names stdin, where a file is read, and stdout, where one is written.
STANDARD = "-"

_PIECE = 1 << 20
_SENT = 1 << 30
_ELSEWHERE = "TMPDIR=FOLDER, where there is room; or save it to a file"


class StandardInput(Store):
    """stdin, under the one path ``stdin``: read to its end once, when it is first asked for."""

    def __init__(self) -> None:
        self._of: object = None
        self._kept = -1  # a descriptor, as long as the process lives

    def path(self, name: str) -> PurePath:  # noqa: ARG002 - there is but one
        """Its path."""
        return Address("stdin")

    def status(self, path: PurePath) -> Status:
        """A file without a mode."""
        found = os.fstat(self._descriptor(path))
        return Status(PathKind.FILE, found.st_size, identity=identity_of(found))

    def open(self, path: PurePath) -> ReadableFile:
        """All that came in."""
        return OpenedFile(os.dup(self._descriptor(path)), str(path))

    def names(self, folder: PurePath) -> list[str]:
        """Nothing lies beside it."""
        del folder
        return []

    def local(self, path: PurePath) -> Path | None:
        """Its file, where the system has names for opened files."""
        found = Path(f"/dev/fd/{self._descriptor(path)}")
        return found if found.exists() else None

    def _descriptor(self, path: PurePath) -> int:
        stream = getattr(sys.stdin, "buffer", None)
        if stream is None or stream.isatty():
            what = "no checkpoint comes from it" if stream is None else "it is a terminal"
            raise InputError(what, where=str(path), fix="pipe a checkpoint into it, or name a file")
        if self._kept < 0 or self._of is not sys.stdin:
            self._forget()
            try:
                self._kept = _spooled(stream)
            except OSError as error:
                import tempfile

                where = tempfile.gettempdir()
                raise InputError(
                    f"it cannot be kept in {where} ({error.strerror})", where=str(path), fix=_ELSEWHERE
                ) from error
            self._of = sys.stdin
        return self._kept

    def _forget(self) -> None:
        if self._kept >= 0:
            os.close(self._kept)
        self._kept = -1


def _spooled(stream: Any) -> int:
    """The descriptor of a file with all that comes from a stream: its own, if it is a file."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        descriptor = stream.fileno()
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and not os.lseek(descriptor, 0, os.SEEK_CUR):
            return os.dup(descriptor)
    import shutil
    import tempfile  # which few need

    with tempfile.TemporaryFile(prefix="wnconvert-") as made:
        shutil.copyfileobj(stream, made, _PIECE)
        made.flush()
        return os.dup(made.fileno())


# -- stdout


def _check_standard_output() -> None:
    """Raise ``OutputError`` where stdout cannot take a file."""
    stream = getattr(sys.stdout, "buffer", None)
    if stream is None:
        raise OutputError("it takes only text here", where="stdout", fix="name a file")
    if stream.isatty():
        raise OutputError("it is a terminal", where="stdout", fix="redirect it: -o - > FILE, or -o FILE")


@contextlib.contextmanager
def standard_output(name: str) -> Iterator[Path]:
    """A path with that name; the file that is made there goes to stdout if the block ends well."""
    import shutil

    _check_standard_output()
    try:
        folder, let_go = held_folder(spooled_beside(), 0o700)
    except OSError as error:
        raise OutputError(
            f"no temporary file can be made ({error.strerror})", where="stdout", fix=_ELSEWHERE
        ) from error
    try:
        path = folder / name
        try:
            yield path
        except WnconvertError as error:
            error.where = error.where.replace(str(path), "stdout")
            error.heading = error.heading.replace(str(path), "stdout")
            raise
        if len([*folder.iterdir()]) > 1:
            raise OutputError("it takes one file, and this would be several", where="stdout", fix="-o FILE")
        with path.open("rb") as made:
            _copy_out(made)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        let_go()


def spooled_beside() -> Path:
    """What stdout would be called as a file: beside that its output is made."""
    import tempfile

    return Path(tempfile.gettempdir(), "stdout")


def _copy_out(made: IO[bytes]) -> None:
    import shutil

    sys.stdout.flush()
    try:
        made.seek(_sent(made))
        shutil.copyfileobj(made, sys.stdout.buffer, _PIECE)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"it cannot be written ({error.strerror})", where="stdout", fix="free some space"
        ) from error


def _sent(made: IO[bytes]) -> int:
    """Have the system send a file to stdout; returns how many bytes it did."""
    done = 0
    with contextlib.suppress(OSError, AttributeError, ValueError):  # writing does it, or tells why not
        target = sys.stdout.fileno()
        while count := os.sendfile(target, made.fileno(), done, _SENT):
            done += count
    return done
