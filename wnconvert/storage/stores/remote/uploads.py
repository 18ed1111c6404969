"""A new object of known size, filled by several threads: parts are sent as they become full, in any order.

Nothing is there until the upload is completed; one that fails is aborted, and of a process that is killed
an unfinished upload is left, which the next run aborts.
"""

from __future__ import annotations

import contextlib
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, Protocol

from wnconvert.errors import InputError
from wnconvert.frozen import dataclass
from wnconvert.storage.stores.remote.client import Client, Found
from wnconvert.storage.stores.remote.patience import patiently
from wnconvert.tensors.files import Identity, ReadableFile

__all__ = ["Outline", "Planned", "Upload", "Writer", "part_size"]


# The bytes of a part, and the most parts of an object; more bytes make larger parts.
_PART, _MOST_PARTS = 5 << 20, 10_000
# Smaller pieces wait as they are, until a part has a larger one.
_SMALL = 64 << 10
# How many parts are sent at a time, whatever the number of threads: each is held until it is there.
_AT_A_TIME = 3


class Writer(Client, Protocol):
    """The client of a store that takes objects, in parts. Errors are those of ``Client``.

    ``aborts`` says whether it forgets an upload at once, and not when an object is made in its place.
    """

    aborts: ClassVar[bool]

    def begin(self, key: str, /) -> str:
        """Begin an upload; what it is called."""

    def put(self, key: str, upload: str, number: int, data: bytearray, /) -> str:
        """Send a part, counted from 0; its tag. The bytes go with a checksum, where the store has one."""

    def parts(self, key: str, upload: str, /) -> dict[int, tuple[int, str]]:
        """The parts that the store has: the size and the tag of each, where it tells them."""

    def complete(self, key: str, upload: str, tags: list[str], /, *, force: bool) -> None:
        """Make an object of the parts. Raises ``FileExistsError`` where there is one, unless ``force``."""

    def abort(self, key: str, upload: str, /) -> None:
        """Forget an upload, if that can be done without making an object."""

    def sweep(self, key: str, upload: str, /) -> None:
        """Forget an unfinished upload of an earlier run, even if an empty object is there for a moment."""

    def delete(self, key: str, tag: str, /) -> None:
        """Delete an object that has this tag still, or is gone."""

    def unfinished(self, key: str, /) -> list[tuple[str, str]]:
        """The unfinished uploads of an object and of all that lie below it: keys, and their names."""


def part_size(size: int) -> int:
    """The bytes of each part of an object but the last.

    >>> part_size(1 << 30) >> 20, part_size(200 << 30) >> 20
    (5, 20)
    """
    return max(_PART, -(-size // _MOST_PARTS))


class _Part:
    """A part being filled: small pieces of it, or all of it in ``buffer``, and how much is to come."""

    def __init__(self, size: int) -> None:
        self.size = self.missing = size
        self.buffer: bytearray | None = None
        self._pieces: list[tuple[int, bytes]] = []

    def put(self, at: int, data: memoryview, new: Callable[[int], bytearray]) -> None:
        """Take bytes; ``new`` gives a buffer of zeros, which few large parts have at a time."""
        self.missing -= len(data)
        if self.buffer is None and len(data) < _SMALL:
            self._pieces.append((at, bytes(data)))
            return
        self.joined(new)[at : at + len(data)] = data

    def joined(self, new: Callable[[int], bytearray]) -> bytearray:
        """All bytes; what never was put is zero."""
        if self.buffer is None:
            self.buffer = new(self.size)
            for at, piece in self._pieces:
                self.buffer[at : at + len(piece)] = piece
            self._pieces = []
        return self.buffer


@dataclass(frozen=True, slots=True)
class Planned:
    """What is known of an object before it is filled: its size, and what is special in it.

    What is written by ``write``, and in the stretches that begin at ``kept``, stays at hand: the structure is
    read from it.
    """

    size: int
    kept: frozenset[int] = frozenset()


class Upload:
    """An upload that is being filled, by any thread: what ``Filling`` is for a file of a disk.

    What is kept of it is its ``outline``.
    """

    #: Parts are filled from the first one on, so that few are open at a time.
    in_order = True

    def __init__(self, client: Writer, key: str, where: str, planned: Planned) -> None:
        size = self.size = planned.size
        self.outline = Outline(size)
        self._client, self._key, self._where = client, key, where
        self._kept = planned.kept
        self._lock = threading.Lock()
        self._bytes = part_size(size)
        starts = range(0, max(size, 1), self._bytes)
        self._parts = [_Part(min(self._bytes, size - start)) for start in starts]
        self._free: list[bytearray] = []
        self._sent: dict[int, Future[str]] = {}
        self._room = threading.Semaphore(_AT_A_TIME)
        self._senders = ThreadPoolExecutor(_AT_A_TIME, "wnconvert-send")
        self._failed: BaseException | None = None
        self.upload = patiently(lambda: client.begin(key), where)

    @contextlib.contextmanager
    def filling(self, size: int, threads: int) -> Iterator[Upload]:
        """Fill it; all of it is sent when the block ends well."""
        assert size == self.size, "an upload is planned for its size"  # noqa: S101
        del threads  # they wait where too many parts are on their way
        yield self
        self._finish()

    def stretch(self, at: int, size: int) -> _Stretch:
        """About to take ``size`` bytes from ``at`` on."""
        del size
        return _Stretch(self, at, is_kept=at in self._kept)

    def write(self, data: bytes | memoryview, at: int) -> None:
        """Take literal bytes, or what has a checksum in it."""
        self.outline.put(at, bytes(data))
        self.take(memoryview(data), at)

    def take(self, data: memoryview, at: int) -> None:
        """Take bytes; the parts that are full with them are sent, a few at a time."""
        full: list[int] = []
        with self._lock:
            if self._failed is not None:
                raise self._failed
            for number, first, last in self._cut(at, len(data)):
                part, begin = self._parts[number], number * self._bytes + first - at
                part.put(first, data[begin : begin + last - first], self._buffer)
                if not part.missing:
                    full.append(number)
        for number in full:
            self._send(number)

    def flush(self) -> None:
        """Nothing waits here: parts go when they are full."""

    def receive(self, file: ReadableFile, at: int, size: int, to: int) -> int:
        """No system copies from a disk into a store: 0."""
        del file, at, size, to
        return 0

    def complete(self, *, force: bool) -> None:
        """Make the object. Raises ``FileExistsError`` where there is one, unless ``force``.

        Where no answer came, it may be made all the same: then it is another than before, of this size.
        """
        tags = [self._sent[number].result() for number in range(len(self._parts))]
        before, asked = self._there(), 0

        def complete() -> None:
            nonlocal asked
            asked += 1
            try:
                self._client.complete(self._key, self.upload, tags, force=force)
            except (OSError, InputError):
                now = self._there() if asked > 1 else before
                if now is None or now == before or now.size != self.size:
                    raise

        patiently(complete, self._where)

    def _there(self) -> Found | None:
        """What is there under its name."""
        try:
            return patiently(lambda: self._client.look(self._key), self._where)
        except FileNotFoundError:
            return None

    def differing_parts(self) -> list[int]:
        """The parts, counted from 0, that the store has with another size or tag than were sent."""
        there = patiently(lambda: self._client.parts(self._key, self.upload), self._where)
        sent = {number: (self._parts[number].size, tag.result()) for number, tag in self._sent.items()}
        return sorted(number for number in {*there, *sent} if there.get(number) != sent.get(number))

    def abort(self) -> None:
        """Forget it, whatever was sent."""
        self._senders.shutdown(wait=True, cancel_futures=True)
        patiently(lambda: self._client.abort(self._key, self.upload), self._where)

    def _finish(self) -> None:
        for number in range(len(self._parts)):
            if number not in self._sent:
                self._send(number)
        for future in self._sent.values():
            future.result()
        self._senders.shutdown()

    def _cut(self, at: int, size: int) -> Iterator[tuple[int, int, int]]:
        """The parts in which some bytes lie, each with their places in it."""
        end = at + size
        while at < end:
            number, first = divmod(at, self._bytes)
            last = min(self._bytes, first + end - at)
            yield number, first, last
            at += last - first

    def _send(self, number: int) -> None:
        self._room.acquire()
        with self._lock:
            if self._failed is not None:
                self._room.release()
                raise self._failed
            self._sent[number] = self._senders.submit(self._put, number)

    def _put(self, number: int) -> str:
        part = self._parts[number]
        try:
            with self._lock:
                data = part.joined(self._buffer)
            tag = patiently(lambda: self._client.put(self._key, self.upload, number, data), self._where)
        except BaseException as error:
            self._failed = error
            raise
        finally:
            part.buffer = None
            self._room.release()
        self._free.append(data)
        return tag

    def _buffer(self, size: int) -> bytearray:
        """A buffer of zeros: one that was sent, if it fits."""
        found = self._free.pop() if self._free else bytearray()
        if len(found) != size:
            return bytearray(size)
        found[:] = bytes(size)
        return found


class _Stretch:
    """Bytes of an upload in order, as ``Stretch`` has it."""

    def __init__(self, upload: Upload, at: int, *, is_kept: bool) -> None:
        self._upload = upload
        self._buffer = bytearray()
        self._is_kept = is_kept
        self.at = at

    def put(self, data: memoryview) -> None:
        """Take the next bytes."""
        if self._is_kept:
            self._upload.write(data, self.at)
        else:
            self._upload.take(data, self.at)
        self.at += len(data)

    def room(self, count: int) -> memoryview:
        """Where to put the next ``count`` bytes."""
        if len(self._buffer) < count:
            self._buffer = bytearray(count)
        return memoryview(self._buffer)[:count]

    def filled(self, count: int) -> None:
        """Take the first bytes of ``room`` as the next ones."""
        self.put(memoryview(self._buffer)[:count])

    def close(self) -> None:
        """No more bytes come."""


class Outline:
    r"""A file of which only some pieces are known, those that its structure is read from; all else is zeros.

    >>> outline = Outline(10)
    >>> outline.put(2, b"abcd"), outline.put(3, b"X"), outline.read(1, 6)
    (None, None, b'\x00aXcd\x00')
    """

    path: Path | None = None
    identity: Identity | None = None

    def __init__(self, size: int) -> None:
        self.size = size
        self._starts: list[int] = []
        self._pieces: list[bytearray] = []
        self._lock = threading.Lock()

    def put(self, at: int, data: bytes) -> None:
        """Know a piece; one that lies in another is written over it."""
        with self._lock:
            index = bisect_right(self._starts, at) - 1
            if index >= 0 and at + len(data) <= self._starts[index] + len(self._pieces[index]):
                first = at - self._starts[index]
                self._pieces[index][first : first + len(data)] = data
            else:
                self._starts.insert(index + 1, at)
                self._pieces.insert(index + 1, bytearray(data))

    def read(self, at: int, size: int, /) -> bytes:
        """All of ``size`` bytes, beginning at byte ``at``."""
        made = bytearray(size)
        first = max(bisect_right(self._starts, at) - 1, 0)
        for start, piece in zip(self._starts[first:], self._pieces[first:], strict=True):
            if start >= at + size:
                break
            begin, end = max(start, at), min(start + len(piece), at + size)
            if begin < end:
                made[begin - at : end - at] = piece[begin - start : end - start]
        return bytes(made)

    def read_into(self, at: int, buffer: memoryview, /) -> None:
        """Fill a buffer with the bytes that begin at byte ``at``."""
        buffer[:] = self.read(at, len(buffer))

    def close(self) -> None:
        """Nothing is open."""
