"""What is known of an object: what it was, pieces of it, and what must stand before bytes of it.

It stays when the object is closed, so nothing is fetched again when it is opened once more.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

from wnconvert.storage.stores.remote.client import Found
from wnconvert.tensors.files import Head

__all__ = ["NEAR", "Known", "joined_ranges"]


#: Ranges that are so near are fetched as one: what lies between takes less time than a request.
NEAR = 16 << 10
# The bytes of pieces that are kept.
_MOST = 8 << 20


def joined_ranges(ranges: Iterable[tuple[int, int]], near: int = NEAR) -> list[tuple[int, int]]:
    """Ranges (first byte, byte behind the last one) in order, those that are near each other as one.

    >>> joined_ranges([(90, 95), (0, 10), (12, 20), (5, 11)], near=2)
    [(0, 20), (90, 95)]
    """
    made: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if made and start - made[-1][1] <= near:
            made[-1] = (made[-1][0], max(made[-1][1], stop))
        else:
            made.append((start, stop))
    return made


@dataclass(slots=True)
class Known:
    """What is known of an object; any thread may ask.

    >>> known = Known(Found(100, "tag"))
    >>> known.keep(10, b"abc"), known.piece(11, 2), known.piece(11, 3)
    (None, b'bc', None)
    """

    found: Found
    _pieces: dict[int, bytes] = field(default_factory=dict)
    _heads: list[Head] = field(default_factory=list)
    _starts: list[int] = field(default_factory=list)
    _checked: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, at: int, data: bytes) -> None:
        """Keep a piece; the oldest ones go where they are too many."""
        with self._lock:
            self._pieces[at] = max(self._pieces.pop(at, b""), data, key=len)
            held = sum(map(len, self._pieces.values()))
            while held > _MOST and len(self._pieces) > 1:
                held -= len(self._pieces.pop(next(iter(self._pieces))))

    def beginning(self, at: int, size: int) -> bytes:
        """Those of some bytes that are kept, from the first one on."""
        with self._lock:
            for start, piece in self._pieces.items():
                if start <= at < start + len(piece):
                    return piece[at - start : at - start + size]
        return b""

    def piece(self, at: int, size: int) -> bytes | None:
        """Some bytes, if all of them are kept."""
        found = self.beginning(at, size)
        return found if len(found) == size else None

    def expect(self, heads: Iterable[Head]) -> None:
        """Have these checked before their data is given out."""
        with self._lock:
            self._heads = sorted((head for head in heads if head.data.size), key=lambda it: it.data.start)
            self._starts = [head.data.start for head in self._heads]

    def heads_of(self, at: int, size: int) -> list[Head]:
        """What must be checked before some bytes are given out, and was not yet."""
        first = max(bisect_right(self._starts, at) - 1, 0)
        found: list[Head] = []
        for index in range(first, len(self._heads)):
            head = self._heads[index]
            if head.data.start >= at + size:
                break
            if head.data.end > at and index not in self._checked:
                found.append(head)
        return found

    def is_right(self, head: Head) -> None:
        """Remember that a head was checked."""
        self._checked.add(bisect_right(self._starts, head.data.start) - 1)
