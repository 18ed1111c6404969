"""Opened files: bytes that are read at any place, whatever holds them.

Every reader of a format takes a ``ReadableFile``, and no path: what a store (a disk, memory, a server) has
to offer is here, and nothing else is asked of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from wnconvert.errors import FormatError
from wnconvert.frozen import dataclass
from wnconvert.tensors.tree import ByteRange, repeated

__all__ = [
    "GET_AGAIN",
    "FarFile",
    "FrontToBack",
    "Head",
    "Identity",
    "MemoryFile",
    "PartOfFile",
    "ReadableFile",
    "became_shorter",
    "changed_while_read",
    "read_json",
]


#: What to do about a file that ends too early, or contradicts its own format.
GET_AGAIN = "download the file again: it is cut short or damaged"


@dataclass(frozen=True, slots=True)
class Identity:
    """Which file it is, and when it was last changed: another one where it was replaced, or written to.

    Stores that are no disks say so by a ``tag`` (ETag, version).
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    tag: str = ""


class ReadableFile(Protocol):
    """An opened file, read at any place and from any thread; whoever opened it closes it.

    ``path`` is where it lies on this machine, for libraries that read files by themselves; None where it
    does not. Both ways of reading raise ``FormatError`` where the file ends before the last byte that is
    asked for, and ``InputError`` where it cannot be read.
    """

    @property
    def path(self) -> Path | None:
        """Its path on this machine, or None."""

    @property
    def identity(self) -> Identity | None:
        """What it was when it was opened; None for what nobody else can change."""

    @property
    def size(self) -> int:
        """The number of its bytes, as it is now."""

    def read(self, at: int, size: int, /) -> bytes:
        """All of ``size`` bytes, beginning at byte ``at``."""

    def read_into(self, at: int, buffer: memoryview, /) -> None:
        """Fill a buffer with the bytes that begin at byte ``at``."""

    def close(self) -> None:
        """Let go of it."""


@dataclass(frozen=True, slots=True)
class Head:
    """Bytes that must be right before some ``data`` is given out; they stand at ``at``, up to the data."""

    data: ByteRange
    at: int
    check: Callable[[bytes], None]


@runtime_checkable
class FarFile(ReadableFile, Protocol):
    """An opened file of which each reading takes a journey, so that few are to be made."""

    def soon(self, ranges: Iterable[ByteRange], /) -> None:
        """Fetch what is read soon, and nothing else."""

    def after(self, heads: Iterable[Head], /) -> None:
        """Have heads checked before the data behind them is given out, rather than now."""


class MemoryFile:
    """A file whose bytes lie in memory.

    >>> MemoryFile(b"abcdef").read(2, 3)
    b'cde'
    """

    path: Path | None = None
    identity: Identity | None = None

    def __init__(self, content: bytes) -> None:
        self._content = memoryview(content)

    @property
    def size(self) -> int:
        """The number of its bytes."""
        return len(self._content)

    def read(self, at: int, size: int, /) -> bytes:
        """All of ``size`` bytes, beginning at byte ``at``."""
        found = self._content[at : at + size].tobytes()
        if len(found) < size:
            raise became_shorter()
        return found

    def read_into(self, at: int, buffer: memoryview, /) -> None:
        """Fill a buffer with the bytes that begin at byte ``at``."""
        buffer[:] = self.read(at, len(buffer))

    def close(self) -> None:
        """Let go of it: the bytes belong to whoever gave them."""


class PartOfFile:
    """Some bytes of a file, as a file of their own: one that lies inside another.

    >>> PartOfFile(MemoryFile(b"abcdef"), 1, 4).read(1, 2)
    b'cd'
    """

    path: Path | None = None
    identity: Identity | None = None

    def __init__(self, file: ReadableFile, start: int, size: int) -> None:
        self._file = file
        self._start = start
        self.size = size

    def read(self, at: int, size: int, /) -> bytes:
        """All of ``size`` bytes, beginning at byte ``at``."""
        self._check(at + size)
        return self._file.read(self._start + at, size)

    def read_into(self, at: int, buffer: memoryview, /) -> None:
        """Fill a buffer with the bytes that begin at byte ``at``."""
        self._check(at + len(buffer))
        self._file.read_into(self._start + at, buffer)

    def close(self) -> None:
        """Let go of it: the file belongs to whoever opened it."""

    def _check(self, end: int) -> None:
        if end > self.size:
            raise became_shorter()


_FIRST_WINDOW = 4 << 10
_WINDOW = 64 << 10


class FrontToBack:
    """Bytes of a file from ``start`` up to ``end``, taken one after another or skipped.

    They are read in windows that grow while nothing is skipped, so that little is read in vain.

    >>> some = FrontToBack(MemoryFile(b"abcdefgh"), 1)
    >>> some.take(2), some.skip(3), some.take(1), some.left, some.taken
    (b'bc', None, b'g', 1, 3)
    """

    def __init__(self, file: ReadableFile, start: int = 0, end: int | None = None) -> None:
        self._file = file
        self._end = file.size if end is None else end
        self._window = _FIRST_WINDOW
        self._held = b""
        self._first = self.at = start
        #: The bytes that were taken, without those that were skipped.
        self.taken = 0

    @property
    def left(self) -> int:
        """The bytes that are neither taken nor skipped yet."""
        return self._end - self.at

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes. Raises ``FormatError`` where there are fewer."""
        inside = self.at - self._first
        if inside + size > len(self._held):
            self._check(size)
            count = min(max(size, self._window), self.left)
            self._first, self._held, inside = self.at, self._file.read(self.at, count), 0
            self._window = min(4 * self._window, _WINDOW)
        self.at += size
        self.taken += size
        return self._held[inside : inside + size]

    def skip(self, size: int) -> None:
        """Go past ``size`` bytes. Raises ``FormatError`` where there are fewer."""
        self._check(size)
        self.at += size
        if self.at >= self._first + len(self._held):
            self._window = _FIRST_WINDOW

    def _check(self, size: int) -> None:
        if size > self.left:
            raise FormatError(f"it ends before {size} bytes that should stand at {self.at}", fix=GET_AGAIN)


def became_shorter(where: str = "") -> FormatError:
    """The error for a file that ends before the last byte that is asked for."""
    return changed_while_read(where, "it became shorter")


def changed_while_read(where: str, how: str) -> FormatError:
    """The error for a file that is not any more what it was when it was first opened."""
    return FormatError(
        f"it changed while it was read: {how}", where=where, fix="run it again when nothing changes the file"
    )


def read_json(
    text: bytes, *, what: str, fix: str, made: Callable[[dict[str, Any]], Any] = lambda mapping: mapping
) -> Any:
    """Read a JSON text. Raises ``FormatError`` where a key is twice in a mapping, ``ValueError`` for no JSON.

    ``made`` is called with each mapping, the inner ones first, and gives what stands in its place.

    >>> read_json(b'{"a": 1, "a": 2}', what="the index", fix="")
    Traceback (most recent call last):
    wnconvert.errors.FormatError: the index has the key 'a' twice
    """

    def mapping(pairs: list[tuple[str, Any]]) -> Any:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise FormatError(f"{what} has the key {repeated(key for key, _ in pairs)!r} twice", fix=fix)
        return made(found)

    return json.loads(text, object_pairs_hook=mapping)
