"""Cutting a tensor into blocks, and the scratch arrays in which a thread works on one.

A contiguous tensor is seen as a box of A slabs, D rows and B inner elements, D being the axis that is not
summed over (the whole tensor is one row).
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from wnconvert.frozen import dataclass
from wnconvert.tensors.tree import Dim, StoredTensor

__all__ = [
    "BLOCK_BYTES",
    "Array",
    "Block",
    "Elements",
    "Floats",
    "Read",
    "RowValues",
    "Share",
    "blocks",
    "box",
    "processors",
    "reader_of",
    "scratch",
    "shares",
    "whole",
]


#: Bytes of a block, which is read at once.
BLOCK_BYTES = 1 << 20
# Elements that are computed at once: with fewer, two threads wait for the interpreter's lock.
_PIECE = 1 << 17
# Numbers of rows that are read at once.
_WINDOW = 1 << 16

Array = NDArray[Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Block:
    """A contiguous run of a tensor's elements in C order: ``shape`` = (slabs, rows, inner elements).

    ``start`` is its first element, ``row`` its first row.
    """

    start: int
    shape: tuple[int, int, int]
    row: int

    @property
    def stop(self) -> int:
        """The element after the last one."""
        return self.start + math.prod(self.shape)

    @property
    def rows(self) -> slice:
        """The rows of the block among all rows."""
        return slice(self.row, self.row + self.shape[1])


class Share(NamedTuple):
    """A run of the elements of a block, its own shape, and its rows among those of the block."""

    span: slice
    shape: tuple[int, int, int]
    rows: slice


def blocks(shape: tuple[int, ...], dim: Dim, itemsize: int, limit: int = BLOCK_BYTES) -> Iterator[Block]:
    """Cut a tensor into blocks of at most ``limit`` bytes (at least one element), in the order of memory.

    Whole slabs where they fit, else rows of one slab, else pieces of one row. The cut depends on the
    arguments only, so sums do not depend on threads or on where the tensor lies.

    >>> [block.shape for block in blocks((6, 4, 2), 0, itemsize=4, limit=64)]
    [(1, 2, 8), (1, 2, 8), (1, 2, 8)]
    """
    outer, rows, inner = box(shape, dim)
    most = max(limit // itemsize, 1)
    if outer * rows * inner == 0:
        return
    if rows * inner <= most:
        step = most // (rows * inner)
        for slab in range(0, outer, step):
            yield Block(slab * rows * inner, (min(step, outer - slab), rows, inner), 0)
        return
    for slab in range(outer):
        start = slab * rows * inner
        if inner <= most:
            step = most // inner
            for row in range(0, rows, step):
                yield Block(start + row * inner, (1, min(step, rows - row), inner), row)
            continue
        for row in range(rows):
            for piece in range(0, inner, most):
                yield Block(start + row * inner + piece, (1, 1, min(most, inner - piece)), row)


@lru_cache(maxsize=64)
def shares(shape: tuple[int, int, int]) -> tuple[Share, ...]:
    """A block's elements in runs of at most 128 Ki: their float64 scratch stays in a core's own cache.

    Smaller ones would cost more in calls than they save, and threads would wait for the interpreter's lock.

    >>> [(piece.span.start, piece.shape, piece.rows) for piece in shares((1, 2, 80_000))]
    [(0, (1, 1, 80000), slice(0, 1, None)), (80000, (1, 1, 80000), slice(1, 2, None))]
    """
    return tuple(
        Share(slice(cut.start, cut.stop), cut.shape, cut.rows) for cut in blocks(shape, 1, 1, _PIECE)
    )


def whole(shape: tuple[int, int, int]) -> Share:
    """A block's elements in one run."""
    return Share(slice(0, math.prod(shape)), shape, slice(0, shape[1]))


def box(shape: tuple[int, ...], dim: Dim) -> tuple[int, int, int]:
    """Number of slabs, rows and inner elements of a tensor."""
    if dim is None:
        return 1, 1, math.prod(shape)
    return math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])


#: From a block to its elements, an array of the block's shape that the next call may reuse.
Read = Callable[[Block], Array]


_local = threading.local()


def scratch(use: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """An array that lives until this thread asks for the same ``use`` again."""
    pool: dict[tuple[str, Any], Array] = _local.__dict__.setdefault("pool", {})
    have = pool.get((use, dtype))
    if have is not None and have.shape == shape:
        return have
    size = math.prod(shape)
    base = None if have is None else have.base
    if base is None or base.size < size:
        base = np.empty(size, dtype)
    found = pool[use, dtype] = base[:size].reshape(shape)
    return found


class RowValues:
    """One number for each row of a tensor, read as rows come, a window at a time.

    >>> values = RowValues.of(np.float32([3, 4, 5]))
    >>> values.count, values.at(slice(1, 3)).tolist()
    (3, [4.0, 5.0])
    """

    def __init__(self, read: Read, shape: tuple[int, ...], dtype: str) -> None:
        self.shape = shape
        self.count = math.prod(shape)
        self.dtype = dtype
        self._read = read
        self._first = 0
        self._held: Array = np.empty(0)

    @staticmethod
    def of(array: Array) -> RowValues:
        """Those of an array in memory."""
        return RowValues(reader_of(array), array.shape, array.dtype.name)

    def hold(self, rows: slice) -> None:
        """Have these rows at hand: ``at`` reads no more."""
        if self._first <= rows.start and rows.stop <= self._first + len(self._held):
            return
        count = min(max(rows.stop - rows.start, _WINDOW), self.count - rows.start)
        self._first = rows.start
        self._held = self._read(Block(rows.start, (1, 1, count), 0)).reshape(-1).copy()

    def at(self, rows: slice) -> Floats:
        """The numbers of some rows as float64."""
        self.hold(rows)
        with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN here
            held: Floats = self._held[rows.start - self._first : rows.stop - self._first].astype(np.float64)
        return held

    def windows(self) -> Iterator[tuple[slice, Floats]]:
        """All numbers, a window at a time, each with its rows."""
        for first in range(0, self.count, _WINDOW):
            rows = slice(first, min(first + _WINDOW, self.count))
            yield rows, self.at(rows)


class Elements(Protocol):
    """Where the elements of tensors come from: the files of a checkpoint, or a mapping in memory."""

    def reader(self, tensor: StoredTensor) -> Callable[[Block], Array]:
        """A function from a block of a tensor to its elements."""

    def whole(self, tensor: StoredTensor) -> Array:
        """All elements of a small tensor."""


def reader_of(array: Array) -> Read:
    """The blocks of an array in memory."""
    flat = array.reshape(-1)
    return lambda block: flat[block.start : block.stop].reshape(block.shape)


def processors() -> int:
    """How many threads can work at a time: the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
