"""Files that are made of others: tensors that lie in chunks, and bytes that are in memory already.

A view is frozen data. The source of a checkpoint's bytes opens it over the files that it is made of, and
reads it as it reads a file; nothing is put together but what is asked for.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wnconvert.tensors.files import Identity, MemoryFile, ReadableFile, became_shorter
from wnconvert.tensors.tree import ByteRange

__all__ = ["Assembled", "Chunk", "FileView", "Held"]


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
