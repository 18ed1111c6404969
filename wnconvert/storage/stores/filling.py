"""A new file of known size, filled by several threads.

What is large goes to the disk directly, past the page cache, in whole pages; all else, and all of it where
the system has no such way, goes through the cache. No page is written in both ways at a time: the edges of
a stretch, and what is small, are gathered and written together.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from wnconvert.storage.stores.disk import OpenedFile
from wnconvert.storage.stores.system import begin_sync, open_direct, reserve, write_at
from wnconvert.storage.stores.windows import PAGE, Window, Windows
from wnconvert.tensors.files import ReadableFile

__all__ = ["Fill", "Fillable", "Filling", "Stretch", "filling"]


# Smaller files are done before a second way is open.
_DIRECT_FILE = 16 << 20
# The same for stretches; of each of them a page at both ends goes through the cache anyway.
_DIRECT_STRETCH = 128 << 10

# In larger pieces the system takes longer, in search of memory that lies together.
_PIECE = 256 << 10
# The disk is at work on one part while the next is made; all left to the end, 2 GiB took a third longer.
_SYNC_BYTES = 8 << 20
# What is small is gathered up to so many bytes, each piece with what it takes in Python.
_SMALL, _GATHERED, _EACH = 64 << 10, 1 << 20, 128


@contextlib.contextmanager
def filling(
    descriptor: int,
    path: Path,
    size: int,
    threads: int,
    told: Callable[[OSError], Exception],
    *,
    cached: bool = False,
) -> Iterator[Filling]:
    """Reserve the bytes of a new file, and give what fills it; all is written when the block ends well.

    Bytes that are never written are zeros. At most ``threads`` fill it at a time. ``told`` makes the error
    to raise of one that the system raises. With ``cached`` no byte goes past the page cache.
    """
    try:
        reserved = reserve(descriptor, size)
    except OSError as error:
        raise told(error) from error
    directly = reserved and not cached and size >= _DIRECT_FILE
    direct = open_direct(descriptor, path) if directly else None
    file = Filling(descriptor, direct, threads, told)
    try:
        try:
            yield file
        except BaseException as error:
            file.abandon(error)
            raise
        file.finish()
    finally:
        if direct is not None:
            os.close(direct)


class Stretch(Protocol):
    """Bytes of a file in order: ``put`` where they lie in memory already, else filled into ``room``.

    ``at`` is where the next one goes. Used by one thread.
    """

    at: int

    def put(self, data: memoryview) -> None:
        """Take the next bytes."""

    def room(self, count: int) -> memoryview:
        """Where to put the next ``count`` bytes, at most ``WINDOW_BYTES``."""

    def filled(self, count: int) -> None:
        """Take the first bytes of ``room`` as the next ones."""

    def close(self) -> None:
        """No more bytes come."""


class Fill(Protocol):
    """What is filled by several threads: a file, or an object of a store. See ``Filling``."""

    def stretch(self, at: int, size: int) -> Stretch:
        """About to take ``size`` bytes from ``at`` on."""

    def write(self, data: bytes | memoryview, at: int) -> None:
        """Write all of ``data`` at a place; what is small, some time later."""

    def flush(self) -> None:
        """Write what was gathered."""

    def receive(self, file: ReadableFile, at: int, size: int, to: int) -> int:
        """Have the system copy bytes of another file to a place; returns how many: 0 where it cannot."""


class Fillable(Protocol):
    """What can be filled; ``in_order`` where it is to be filled from its beginning on."""

    in_order: bool

    def filling(self, size: int, threads: int) -> contextlib.AbstractContextManager[Fill]:
        """Make it ``size`` bytes long, and fill it."""


class Filling:
    """A file being filled. Its parts may be written by any thread, none of them twice."""

    def __init__(
        self, descriptor: int, direct: int | None, threads: int, told: Callable[[OSError], Exception]
    ) -> None:
        self._descriptor = descriptor
        self._direct = direct
        self._told = told
        self._windows = None if direct is None else Windows(self._past_cache, threads)
        self._lock = threading.Lock()
        self._gathered: list[tuple[int, bytes]] = []
        self._waiting = 0

    def stretch(self, at: int, size: int) -> Stretch:
        """About to take ``size`` bytes from ``at`` on."""
        if self._windows is None or size < _DIRECT_STRETCH:
            return _Cached(self, at)
        return _Direct(self._windows, at)

    def write(self, data: bytes | memoryview, at: int) -> None:
        """Write all of ``data`` at a place; what is small, some time later."""
        if len(data) >= _SMALL:
            self._by_cache(memoryview(data), at)
            return
        with self._lock:
            self._gathered.append((at, bytes(data)))
            self._waiting += len(data) + _EACH
            enough = self._waiting >= _GATHERED
        if enough:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered, pieces that touch at once."""
        with self._lock:
            taken, self._gathered, self._waiting = self._gathered, [], 0
        together, end = bytearray(), 0
        for at, data in sorted(taken):
            if at != end:
                self._by_cache(memoryview(together), end - len(together))
                together, end = bytearray(), at
            together += data
            end += len(data)
        self._by_cache(memoryview(together), end - len(together))

    def receive(self, file: ReadableFile, at: int, size: int, to: int) -> int:
        """Have the system copy bytes of another file to a place; returns how many: 0 where it cannot.

        It can where pages of the one are pages of the other, which some file systems share.
        """
        if not isinstance(file, OpenedFile) or (to - at) % PAGE:
            return 0
        return file.send(at, size, self._descriptor, to)

    def begin_sync(self, at: int, size: int) -> None:
        """Have the system begin to write a part to the disk."""
        begin_sync(self._descriptor, at, size)

    def finish(self) -> None:
        """Write all that is left; the file is to be synced after that."""
        if self._windows is not None:
            self._windows.finish()
            self._windows = None  # its memory goes now: each knows of the other
        self.flush()

    def abandon(self, error: BaseException) -> None:
        """Stop writing after an error."""
        if self._windows is not None:
            self._windows.abandon(error)

    def _by_cache(self, data: memoryview, at: int) -> None:
        try:
            while data:
                done = write_at(self._descriptor, data[:_PIECE], at)
                data, at = data[done:], at + done
        except OSError as error:
            raise self._told(error) from error

    def _past_cache(self, data: memoryview, at: int) -> None:
        """Write a part of a window: its whole pages directly, if there are many."""
        start = min(-at % PAGE, len(data))
        stop = max(len(data) - (at + len(data)) % PAGE, start)
        if stop - start < _SMALL:
            self.write(data, at)
            return
        for first, last in (0, start), (stop, len(data)):
            if first < last:
                self.write(data[first:last], at + first)
        pages, at = data[start:stop], at + start
        while pages and (direct := self._direct) is not None:
            try:
                done = write_at(direct, pages, at)
            except OSError:  # the other way does it, or tells why not
                self._direct = None
                break
            done -= done % PAGE
            if not done:
                break
            pages, at = pages[done:], at + done
        self._by_cache(pages, at)


class _Cached:
    """A stretch that goes through the cache."""

    def __init__(self, file: Filling, at: int) -> None:
        self._file = file
        self._buffer = bytearray()
        self._synced = self.at = at

    def put(self, data: memoryview) -> None:
        self._file.write(data, self.at)
        self.at += len(data)
        self._sync(_SYNC_BYTES)

    def room(self, count: int) -> memoryview:
        if len(self._buffer) < count:
            self._buffer = bytearray(count)
        return memoryview(self._buffer)[:count]

    def filled(self, count: int) -> None:
        self.put(memoryview(self._buffer)[:count])

    def close(self) -> None:
        self._sync(_SYNC_BYTES // 16)

    def _sync(self, least: int) -> None:
        if self.at - self._synced >= least:
            self._file.begin_sync(self._synced, self.at - self._synced)
            self._synced = self.at


class _Direct:
    """A stretch that goes to the disk directly, by windows that begin at a page of the file.

    Where the next bytes do not fit a window, its whole pages are given away, and what is left of it is the
    beginning of the next one.
    """

    def __init__(self, windows: Windows, at: int) -> None:
        self._windows = windows
        self._window: Window | None = None
        self._start = self._stop = 0
        self.at = at

    def put(self, data: memoryview) -> None:
        new = np.frombuffer(data, np.uint8)
        while new.size:
            window = self._window
            if window is None or self._stop == len(window):
                window = self._next()
            room = window[self._stop :][: new.size]
            np.copyto(room, new[: room.size])  # without the interpreter's lock
            self.filled(room.size)
            new = new[room.size :]

    def room(self, count: int) -> memoryview:
        window = self._window
        if window is None or self._stop + count > len(window):
            window = self._next()
        return window[self._stop : self._stop + count].data

    def filled(self, count: int) -> None:
        self._stop += count
        self.at += count

    def close(self) -> None:
        if self._window is not None:
            size = self._stop - self._start
            self._windows.give(self._window, self._start, self._stop, self.at - size)
            self._window = None

    def _next(self) -> Window:
        """An empty window, but for what is left of the one before."""
        left, start = b"", self.at % PAGE
        if self._window is not None:
            whole = self._stop - self._stop % PAGE
            left, start = self._window[whole : self._stop].tobytes(), 0
            self._windows.give(self._window, self._start, whole, self.at - (self._stop - self._start))
            self._window = None
        self._window = window = self._windows.take()
        window[: len(left)] = np.frombuffer(left, np.uint8)
        self._start, self._stop = start, start + len(left)
        return window
