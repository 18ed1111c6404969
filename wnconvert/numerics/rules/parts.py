"""The tensors of a rule: how they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from wnconvert.frozen import dataclass
from wnconvert.numerics.rounding import DTypeLike, name_of
from wnconvert.tensors.blocks import Array, Block, Floats, Read, RowValues, reader_of

__all__ = ["RulePart", "RuleParts"]


@dataclass(frozen=True, slots=True)
class RulePart:
    """A stored tensor: ``read(block)`` gives its elements, in an array that the next call may reuse.

    >>> part = RulePart.of(np.float32([[3, 4]]))
    >>> part.count, part.whole().tolist()
    (2, [3.0, 4.0])
    """

    read: Read
    shape: tuple[int, ...]
    dtype: DTypeLike

    @staticmethod
    def of(array: Array) -> RulePart:
        """An array in memory."""
        return RulePart(reader_of(array), array.shape, array.dtype)

    @property
    def name(self) -> str:
        """The name of the dtype. Raises ``LayerError`` for one that cannot be folded."""
        return name_of(self.dtype)

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def rows(self) -> RowValues:
        """One element for each row, read as rows come."""
        return RowValues(self.read, self.shape, self.name)

    def whole(self) -> Floats:
        """All elements of a small tensor, flat."""
        values: Floats = np.zeros(self.count)
        if self.count:
            with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN here
                values[:] = self.read(Block(0, (1, 1, self.count), 0)).reshape(-1)
        return values


#: The tensors of a rule by their roles.
RuleParts = Mapping[str, RulePart]
