"""An object of a store, opened: pieces of it are fetched several at a time, and ahead of who reads on."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

from wnconvert.errors import InputError
from wnconvert.storage.stores.remote.client import Client, Found
from wnconvert.storage.stores.remote.known import Known, joined_ranges
from wnconvert.storage.stores.remote.patience import Passing, patiently
from wnconvert.tensors.files import Head, Identity, became_shorter, changed_while_read
from wnconvert.tensors.tree import ByteRange

__all__ = ["RemoteFile"]


# What is fetched at least: at the beginning, where headers stand, and elsewhere.
_FIRST, _LEAST = 32 << 10, 4 << 10
# Tensors are fetched in pieces, that many of them ahead, and so many come at a time.
_PIECE, _AHEAD, _AT_A_TIME = 2 << 20, 2, 8
# So many are held, and up to the second number of those that not all was read of yet.
_HELD, _MOST_HELD = 10, 24


@cache
def _fetchers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_AT_A_TIME, "wnconvert-fetch")


class RemoteFile:
    """An object of a store, read at any place and from any thread; ``where`` names it in messages.

    ``read`` is for headers, and fetches little more than it is asked for; ``read_into`` is for tensors, which
    are read on and on, and fetches ahead. What ``soon`` names comes at once.
    """

    path: Path | None = None

    def __init__(self, client: Client, key: str, known: Known, where: str) -> None:
        self._client = client
        self._key = key
        self._known = known
        self._where = where
        self._lock = threading.Lock()
        self._pieces: dict[int, Future[mmap.mmap]] = {}
        self._read: dict[int, list[tuple[int, int]]] = {}  # the ranges that were read of some pieces
        self._over: set[int] = set()  # the pieces that were read whole, which nobody needs ahead
        self._closed = False

    @property
    def identity(self) -> Identity:
        """What it was when it was opened."""
        return self._known.found.identity

    @property
    def size(self) -> int:
        """The number of its bytes."""
        return self._known.found.size

    def read(self, at: int, size: int, /) -> bytes:
        """All of ``size`` bytes, beginning at byte ``at``."""
        self._check_end(at + size)
        for head in self._known.heads_of(at, size):
            head.check(self._exactly(head.at, head.data.start - head.at))
            self._known.is_right(head)
        return self._exactly(at, size)

    def read_into(self, at: int, buffer: memoryview, /) -> None:
        """Fill a buffer with the bytes that begin at byte ``at``."""
        self._check_end(at + len(buffer))
        for head in self._known.heads_of(at, len(buffer)):
            content = bytearray(head.data.start - head.at)
            self._fill(head.at, memoryview(content))
            head.check(bytes(content))
            self._known.is_right(head)
        self._fill(at, buffer)

    def soon(self, ranges: Iterable[ByteRange]) -> None:
        """Fetch what is read soon, and nothing else: several pieces at a time, those that are near as one."""
        wanted = []
        for data in ranges:
            wanted.append((data.start, data.end))
            wanted += [(head.at, head.data.start) for head in self._known.heads_of(data.start, data.size)]
        missing = [(start, stop) for start, stop in wanted if self._known.piece(start, stop - start) is None]
        joined = joined_ranges(missing)
        pieces = _fetchers().map(lambda span: self._fetched(*span), joined)
        for (start, _), piece in zip(joined, pieces, strict=True):
            self._known.keep(start, piece[:])

    def after(self, heads: Iterable[Head]) -> None:
        """Have heads checked before the data behind them is given out."""
        self._known.expect(heads)

    def close(self) -> None:
        """Let go of it: nothing more is fetched."""
        self._closed = True
        with self._lock:
            for piece in self._pieces.values():
                piece.cancel()
            self._pieces.clear()

    def _check_end(self, end: int) -> None:
        if end > self.size:
            raise became_shorter(self._where)

    def _exactly(self, at: int, size: int) -> bytes:
        """Bytes of a header, and few more."""
        begun = self._known.beginning(at, size)
        if len(begun) == size:
            return begun
        rest = at + len(begun)
        stop = min(max(at + size, rest + (_LEAST if rest else _FIRST)), self.size)
        data = self._fetched(rest, stop)
        whole = begun + data[:]
        self._known.keep(at, whole)
        return whole[:size]

    def _fill(self, at: int, buffer: memoryview) -> None:
        kept = self._known.piece(at, len(buffer))
        if kept is not None:
            buffer[:] = kept
            return
        done = 0
        while done < len(buffer):
            number, begin = divmod(at + done, _PIECE)
            data = self._piece(number).result()
            part = memoryview(data)[begin : begin + len(buffer) - done]
            buffer[done : done + len(part)] = part
            done += len(part)
            with self._lock:
                self._note(number, begin, begin + len(part), len(data))

    def _piece(self, number: int) -> Future[mmap.mmap]:
        """A piece, and those after it begun."""
        with self._lock:
            last = (self.size - 1) // _PIECE
            for each in range(number, min(number + _AHEAD, last) + 1):
                if each not in self._pieces and (each == number or each not in self._over):
                    span = (each * _PIECE, min((each + 1) * _PIECE, self.size))
                    self._pieces[each] = _fetchers().submit(self._fetched, *span)
            found = self._pieces[number]
            self._let_go(number)
            return found

    def _note(self, number: int, begin: int, end: int, size: int) -> None:
        """Remember what was read of a piece of ``size`` bytes.

        Where one tensor ends and the next begins, the end of a piece may be read long before all of it.
        """
        if number not in self._over:
            self._read[number] = joined_ranges([*self._read.get(number, []), (begin, end)], near=0)
            if self._read[number] == [(0, size)]:
                self._over.add(number)
                del self._read[number]

    def _let_go(self, wanted: int) -> None:
        """Let go of pieces that are too many: those that were read, and the oldest of others if need be."""
        done = [each for each, piece in self._pieces.items() if piece.done() and each != wanted]
        read = [each for each in done if each in self._over]
        unread = [each for each in done if each not in self._over]
        gone = read[: max(len(self._pieces) - _HELD, 0)]
        gone += unread[: max(len(self._pieces) - len(gone) - _MOST_HELD, 0)]
        for old in gone:
            del self._pieces[old]

    def _fetched(self, start: int, stop: int) -> mmap.mmap:
        """Bytes from the store. Raises ``FormatError`` where the object is not any more what it was."""
        data = mmap.mmap(-1, stop - start)  # which is given back whole, and leaves no holes in the heap

        def ask() -> Found:
            if self._closed:
                raise CancelledError
            return self._client.read(self._key, start, memoryview(data))

        try:
            self._check_same(patiently(ask, self._where))
        except FileNotFoundError as error:
            raise changed_while_read(self._where, "it is gone") from error
        except InputError:
            with contextlib.suppress(FileNotFoundError, Passing):  # a part that is no more cannot be read
                self._check_same(self._client.look(self._key))
            raise
        return data

    def _check_same(self, found: Found) -> None:
        before = self._known.found
        if found.size != before.size:
            how = "shorter" if found.size < before.size else "longer"
            raise changed_while_read(self._where, f"it became {how}")
        if found.tag != before.tag:
            raise changed_while_read(self._where, "it was written to, or another one took its place")
