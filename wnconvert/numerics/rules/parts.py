"""The tensors of a rule: how they are read, and how large those may be that are read whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from wnconvert.errors import LayerError
from wnconvert.numerics.rounding import DTypeLike, name_of
from wnconvert.tensors.blocks import Array, Block, Floats, Read, RowValues, reader_of

__all__ = ["VECTOR_BYTES", "RulePart", "RuleParts", "refuse_large"]


#: Bytes of float64 that the tensors of a rule may take which are read whole.
VECTOR_BYTES = 32 << 20
#: Their roles; a mask is streamed as the original is, and g is read as rows come.
_WHOLE = ("u", "v")


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


def refuse_large(counts: Mapping[str, int]) -> None:
    """Raise ``LayerError`` if the tensors that are read whole are too large, given elements by role.

    >>> refuse_large({"original": 1 << 40, "u": 1 << 20, "v": 1 << 20})
    """
    whole = {role: count for role, count in counts.items() if role in _WHOLE}
    size = 8 * sum(whole.values())
    if size > VECTOR_BYTES:
        sizes = " and ".join(f"{role} of {count:,}" for role, count in whole.items())
        raise LayerError(
            f"{sizes} elements are read whole, and take {size >> 20} MiB of at most {VECTOR_BYTES >> 20}"
        )
