"""Names become opened files here, and nowhere else.

A new store needs a class like ``LocalFile``, and names that are not paths of this machine.

Nothing is mapped into memory: a mapped file that becomes shorter ends the process, and no error can be
raised.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from wnconvert.errors import InputError
from wnconvert.messages import printable
from wnconvert.tensors.files import ReadableFile, became_shorter

__all__ = ["LocalFile", "open_beside", "open_file"]


def open_file(path: Path) -> ReadableFile:
    """Open a file for reading; close it afterwards.

    Raises ``InputError`` for a file that is not there, cannot be read, or is not a regular file.
    """
    return LocalFile(path)


class LocalFile:
    """A file on a disk of this machine, read by ``pread`` and ``preadv``, which know no position."""

    def __init__(self, path: Path) -> None:
        self.path: Path | None = path
        self._where = os.fspath(path)
        try:
            regular = stat.S_ISREG(path.stat().st_mode)
            # A pipe that has come in its place since is not waited for: it cannot be read at a place.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK) if regular else -1
        except OSError as error:
            raise self._unreadable(error) from error
        if not regular:
            raise InputError("not a regular file", where=self._where, fix="save it to a file first")

    @property
    def size(self) -> int:
        """The number of its bytes, as it is now."""
        return os.fstat(self._fd).st_size

    def read(self, at: int, size: int, /) -> bytes:
        """All of ``size`` bytes, beginning at byte ``at``."""
        parts = []
        try:
            while size:
                part = os.pread(self._fd, size, at)
                if not part:
                    raise became_shorter(self._where)
                parts.append(part)
                at, size = at + len(part), size - len(part)
        except OSError as error:
            raise self._unreadable(error) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_into(self, at: int, buffer: memoryview, /) -> None:
        """Fill a buffer with the bytes that begin at byte ``at``."""
        done = 0
        try:
            while done < len(buffer):
                count = os.preadv(self._fd, [buffer[done:]], at + done)
                if not count:
                    raise became_shorter(self._where)
                done += count
        except OSError as error:
            raise self._unreadable(error) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _unreadable(self, error: OSError) -> InputError:
        return InputError(f"it cannot be read ({error.strerror})", where=self._where)


def open_beside(model: Path, location: str) -> ReadableFile:
    """Open a data file of an ONNX model by its path in the model's folder.

    Raises ``FileNotFoundError`` for one that is not there, and ``InputError`` for one that leaves the
    folder, cannot be read, or is not a regular file.
    """
    path, shown = model.parent / location, printable(location)
    try:
        # A model that is itself a link has data beside the link or beside the file: caches are made so.
        homes = (Path(os.path.realpath(model.parent)), Path(os.path.realpath(model)).parent)
        inside = any(Path(os.path.realpath(path)).is_relative_to(home) for home in homes)
        regular = stat.S_ISREG(path.stat().st_mode) if inside else False
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"its data file {shown} cannot be read ({error.strerror})") from error
    if not inside:
        raise InputError(
            f"its data file {shown} is a link that leaves the model's folder",
            fix="copy the files themselves into one folder",
        )
    if not regular:
        raise InputError(f"its data file {shown} is not a regular file", fix=f"put {shown} beside the model")
    return open_file(path)
