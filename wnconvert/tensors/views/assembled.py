"""Files that are made of others: tensors in chunks, bytes that are in memory already, bytes that are a text.

A view is frozen data. The source of a checkpoint's bytes opens it over the files that it is made of, and
reads it as it reads a file; nothing is put together but what is asked for.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path

from wnconvert.errors import FormatError
from wnconvert.frozen import dataclass
from wnconvert.tensors.files import GET_AGAIN, Identity, MemoryFile, ReadableFile, became_shorter
from wnconvert.tensors.tree import ByteRange

__all__ = ["Assembled", "Chunk", "Decoded", "FileView", "Held"]


class FileView(ABC):
    """A file that is made of others."""

    @abstractmethod
    def over(self, files: Sequence[ReadableFile]) -> ReadableFile:
        """The view as an opened file; ``files`` are those of the checkpoint."""


@dataclass(frozen=True, slots=True)
class Held(FileView):
    """Bytes that are in memory already."""

    content: bytes = field(repr=False)

    def over(self, files: Sequence[ReadableFile]) -> ReadableFile:  # noqa: ARG002
        """The bytes as a file."""
        return MemoryFile(self.content)


@dataclass(frozen=True, slots=True)
class Decoded(FileView):
    r"""``size`` bytes that are a text of a file, in UTF-8: each of them is a character.

    >>> Decoded(ByteRange(1, 3), 2).over([MemoryFile(b"aa\xc3\xbf")]).read(0, 2)
    b'a\xff'
    """

    text: ByteRange
    size: int

    def over(self, files: Sequence[ReadableFile]) -> ReadableFile:
        """The bytes as a file."""
        return _DecodedFile(self, files[self.text.shard])


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a tensor: where it begins on each axis, its sizes, and its elements in C order."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    data: ByteRange


@dataclass(frozen=True, slots=True)
class Assembled(FileView):
    """The elements of a whole tensor, in C order, from ``chunks`` that fill it without overlapping.

    >>> left, right = (Chunk((0, at), (2, 1), ByteRange(2 * at, 2)) for at in (0, 1))
    >>> Assembled((2, 2), 1, (left, right)).over([MemoryFile(b"acbd")]).read(0, 4)
    b'abcd'
    """

    shape: tuple[int, ...]
    itemsize: int
    chunks: tuple[Chunk, ...]

    def over(self, files: Sequence[ReadableFile]) -> ReadableFile:
        """The elements as a file."""
        return _AssembledFile(self, files)


# Short runs are taken from a piece of the chunk that is kept while one block is put together.
_SHORT = 4 << 10
_PIECE = 64 << 10


class _AssembledFile:
    """Reads a tensor from its chunks, run by run: a run is what lies end to end in one of them."""

    path: Path | None = None
    identity: Identity | None = None

    def __init__(self, made: Assembled, files: Sequence[ReadableFile]) -> None:
        self._files = files
        self._chunks = made.chunks
        # The axes that some chunk cuts; what lies behind them is whole in every chunk.
        cut = [
            axis
            for axis, size in enumerate(made.shape)
            if any(chunk.sizes[axis] != size for chunk in made.chunks)
        ]
        self._axes = made.shape[: cut[-1] + 1] if cut else ()
        self._unit = math.prod(made.shape[len(self._axes) :]) * made.itemsize
        self.size = math.prod(made.shape) * made.itemsize

    def read(self, at: int, size: int, /) -> bytes:
        """All of ``size`` bytes, beginning at byte ``at``."""
        made = bytearray(size)
        self.read_into(at, memoryview(made))
        return bytes(made)

    def read_into(self, at: int, buffer: memoryview, /) -> None:
        """Fill a buffer with the bytes that begin at byte ``at``."""
        if at + len(buffer) > self.size:
            raise became_shorter()
        pieces: dict[int, tuple[int, bytes]] = {}
        done, which = 0, 0
        while done < len(buffer):
            unit, inside = divmod(at + done, self._unit)
            place = self._place(unit)
            which = self._holding(place, which)
            chunk = self._chunks[which]
            start, run = self._run(chunk, place)
            start, run = start * self._unit + inside, run * self._unit - inside
            part = buffer[done : done + run]
            if len(part) < _SHORT:
                part[:] = self._piece(pieces, which, start, len(part))
            else:
                self._files[chunk.data.shard].read_into(chunk.data.start + start, part)
            done += len(part)

    def close(self) -> None:
        """Let go of it: the files belong to whoever opened them."""

    def _place(self, unit: int) -> list[int]:
        """The index of a unit on the axes that are cut."""
        place = []
        for size in reversed(self._axes):
            unit, index = divmod(unit, size)
            place.append(index)
        return place[::-1]

    def _holding(self, place: Sequence[int], guess: int) -> int:
        """The number of the chunk that holds a place: that which held the last, or the next, most likely."""
        count = len(self._chunks)
        for step in range(count):
            chunk = self._chunks[(guess + step) % count]
            if all(
                start <= index < start + size
                for index, start, size in zip(place, chunk.offsets, chunk.sizes, strict=False)
            ):
                return (guess + step) % count
        raise became_shorter()

    @staticmethod
    def _run(chunk: Chunk, place: Sequence[int]) -> tuple[int, int]:
        """The unit of a chunk at which a place lies, and the units from there to the end of its last axis."""
        at, run = 0, 1
        for index, start, size in zip(place, chunk.offsets, chunk.sizes, strict=False):
            at = at * size + index - start
            run = start + size - index
        return at, run

    def _piece(self, pieces: dict[int, tuple[int, bytes]], which: int, start: int, size: int) -> bytes:
        """A few bytes of a chunk, from a piece of it that is kept."""
        first, piece = pieces.get(which, (0, b""))
        if not first <= start <= start + size <= first + len(piece):
            data = self._chunks[which].data
            first, piece = (
                start,
                self._files[data.shard].read(data.start + start, min(max(_PIECE, size), data.size - start)),
            )
            pieces[which] = first, piece
        return piece[start - first : start - first + size]


class _DecodedFile:
    """Reads bytes that are a text, from the last place before them that was met so far."""

    path: Path | None = None
    identity: Identity | None = None

    def __init__(self, made: Decoded, file: ReadableFile) -> None:
        self._text = made.text
        self._file = file
        self.size = made.size
        # The bytes that were met, and the place in the text of each: a pair for each piece.
        self._met: list[tuple[int, int]] = [(0, 0)]
        self._growing = threading.Lock()

    def read(self, at: int, size: int, /) -> bytes:
        """All of ``size`` bytes, beginning at byte ``at``."""
        if at + size > self.size:
            raise became_shorter()
        found = bytearray()
        first, place = self._met[bisect_right(self._met, (at, self._text.size)) - 1]
        while first + len(found) < at + size or (at + size == self.size and place < self._text.size):
            if first + len(found) <= at:
                first, found = first + len(found), bytearray()
            piece, taken = self._piece(place)
            found += piece
            place += taken
            self._meet(first + len(found), place)
        if at + size == self.size and first + len(found) != self.size:
            raise _not_as_long()
        return bytes(found[at - first : at - first + size])

    def read_into(self, at: int, buffer: memoryview, /) -> None:
        """Fill a buffer with the bytes that begin at byte ``at``."""
        buffer[:] = self.read(at, len(buffer))

    def close(self) -> None:
        """Let go of it: the file belongs to whoever opened it."""

    def _piece(self, place: int) -> tuple[bytes, int]:
        """The bytes of a piece of the text, and how long that is: no character is cut."""
        count = min(_PIECE, self._text.size - place)
        if not count:
            raise _not_as_long()
        text = self._file.read(self._text.start + place, count)
        if text[-1] >= 0xC0 and len(text) > 1:  # the first half of a character
            text = text[:-1]
        try:
            return text.decode().encode("latin-1"), len(text)
        except UnicodeError as error:
            raise FormatError("the text of an array in it is damaged", fix=GET_AGAIN) from error

    def _meet(self, at: int, place: int) -> None:
        with self._growing:
            if at > self._met[-1][0]:
                self._met.append((at, place))


def _not_as_long() -> FormatError:
    return FormatError("the text of an array in it is not as long as its shape says", fix=GET_AGAIN)
