"""A weight seen as rows of which each has one channel, and lies in one row of what stands beneath."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from wnconvert.numerics.norms import RowSource
from wnconvert.numerics.sums import Sums, Way
from wnconvert.tensors.blocks import Array, Block, Read
from wnconvert.tensors.tree import Dim, Shape

__all__ = ["FineRows", "PlainRows", "RowIndex"]


#: Rows by their numbers.
RowIndex: TypeAlias = slice | NDArray[np.intp]

_NOTHING = Sums(np.empty(0), np.empty(0), np.empty(0, np.int32), 0.0)


class PlainRows(RowSource):
    """A tensor's rows along an axis, of which no sum is needed; each is a channel, and a row beneath."""

    def block_sums(self, values: Array) -> Sums:  # noqa: ARG002 - as all others have it
        """Nothing."""
        return _NOTHING

    def channels(self, rows: slice) -> RowIndex:
        """The channels of some rows."""
        return rows

    def beneath(self, rows: slice) -> RowIndex:
        """The rows of the operation beneath in which some rows lie."""
        return rows


class FineRows(PlainRows):
    """A tensor's rows along several axes, from the first on, cut into blocks of its first and the others.

    ``dim`` is the axis of channels, in as many ``groups`` of the first axis, and ``below`` that of the
    operation beneath.
    """

    def __init__(  # noqa: PLR0917 -- the tensor, how it is cut, the axes
        self, read: Read, shape: Shape, dtype: str, limit: int, way: Way, dim: int, groups: int, below: Dim
    ) -> None:
        last = max(1 if len(shape) > 1 else 0, dim, below or 0) + 1
        self.lead, self.dim, self.groups, self.below = shape[:last], dim, groups, below
        self.width = math.prod(shape[1:last])
        super().__init__(read, (shape[0], self.width, math.prod(shape[last:])), 1, dtype, limit, way)
        self.count = shape[0] * self.width if math.prod(shape) else 0
        self.whole_rows = False
        self.known: dict[tuple[int, int, int], NDArray[np.intp]] = {}

    def blocks(self) -> Iterator[Block]:
        """All blocks, in the order of memory, as rows."""
        for block in super().blocks():
            slabs, rows, inner = block.shape
            row = block.start // self.cut[0][2]
            yield Block(block.start, (1, slabs * rows, inner), row)

    def channels(self, rows: slice) -> NDArray[np.intp]:
        """The channels of some rows."""
        channels = self._along(rows, self.dim)
        if self.groups > 1:
            channels = channels + self._along(rows, 0) // (self.lead[0] // self.groups) * self.lead[1]
        return channels

    def beneath(self, rows: slice) -> NDArray[np.intp]:
        """The rows of the operation beneath in which some rows lie."""
        if self.below is None:
            return np.zeros(rows.stop - rows.start, np.intp)
        return self._along(rows, self.below)

    def numbers(self, rows: slice) -> NDArray[np.intp]:
        """The numbers by which a report knows some rows: their channels."""
        return self.channels(rows)

    def _along(self, rows: slice, axis: int) -> NDArray[np.intp]:
        """The place of each row on one of the leading axes; blocks ask for the same ones again and again."""
        first, last = rows.start // self.width, -(-rows.stop // self.width)
        offset, count = rows.start - first * self.width, rows.stop - rows.start
        if axis == 0:
            lengths = np.full(last - first, self.width)
            lengths[0] -= offset
            lengths[-1] -= last * self.width - rows.stop
            return np.repeat(np.arange(first, last), lengths)
        if (axis, offset, count) not in self.known:
            self.known = {key: places for key, places in self.known.items() if key[0] != axis}
            self.known[axis, offset, count] = self._across(axis, offset, count)
        return self.known[axis, offset, count]

    def _across(self, axis: int, offset: int, count: int) -> NDArray[np.intp]:
        inner = math.prod(self.lead[axis + 1 :])
        return np.arange(offset, offset + count) // inner % self.lead[axis]
