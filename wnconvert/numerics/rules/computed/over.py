"""g·w/d by rows, d the norm of another tensor's rows, or the root of the sum of what it holds.

As weight norm with a guard, but that the sums come from other rows: w's own may be of any size beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from wnconvert.errors import LayerError
from wnconvert.layers.rules import Guard
from wnconvert.numerics.norms import RowSource
from wnconvert.numerics.rules.computed.guarded import GuardedScale
from wnconvert.numerics.rules.computed.moments import Moments, MomentSource
from wnconvert.numerics.rules.factors import Bounds
from wnconvert.numerics.rules.norm import largest_of
from wnconvert.numerics.sums import Sums
from wnconvert.tensors.blocks import Array, Floats, RowValues

__all__ = ["OverScale", "SquareSource"]


class SquareSource(MomentSource):
    """A tensor of squares: its rows have Σd in the place of Σd².

    Raises ``LayerError`` for a negative number.
    """

    def block_sums(self, values: Array) -> Moments:
        """The moments of the rows of a block, given its values."""
        if np.minimum.reduce(values, axis=None, initial=0) < 0:
            raise LayerError("the tensor of squares, whose root divides rows, has negative numbers")
        return super().block_sums(values)

    def sums(self) -> Moments:
        """Σd of all rows, as the sum of the squares of what is divided by."""
        found = super().sums()
        half = found.exponent >> 1
        high, rest, off = (
            np.ldexp(each, found.exponent - 2 * half) for each in (found.total, found.rest, found.off)
        )
        finite = np.isfinite(found.high)
        high, low = np.where(finite, high, found.high), np.where(finite, rest, 0.0)
        # All terms are of one sign, so a sum that is small has small terms, and a small error.
        error = float(np.max(off[finite & (high > 0)] / high[finite & (high > 0)], initial=0.0))
        return Moments(high, low, half, error * (1 + 2.0**-20), found.total, found.rest, found.off)

    def ladder(self, row: int, sums: Sums, at: int) -> Iterator[Bounds]:
        """Ever narrower bounds on Σd of a row, the last of width 0."""
        yield sums.bounds(at)
        total, _ = self.exactly(row)
        yield total, total


class OverScale(GuardedScale):
    """From the norms of the rows of ``summed`` to the factors of those of ``source``."""

    def __init__(  # noqa: PLR0917 -- as that of a guarded norm
        self,
        source: RowSource,
        summed: RowSource,
        g: RowValues,
        exact: Fraction | None,
        guard: Guard | None,
        out: str,
    ) -> None:
        super().__init__(source, g, exact, guard, out)
        self.summed = summed
        self.large = largest_of(out)
        self.tops = np.zeros(source.count)

    @property
    def needs_all(self) -> bool:
        """Rows are divided by what other rows make, so these are read first."""
        return True

    def sums(self) -> Sums:
        """The sums of all rows of the other tensor; the largest elements of this one are found too."""
        for block in self.source.blocks():
            its = np.maximum.reduce(np.abs(self.source.read(block)), axis=(0, 2)).astype(np.float64)
            self.tops[block.rows] = np.maximum(self.tops[block.rows], its)
        return self.summed.sums()

    def sizes(self, divisors: Sums, g: Floats, rows: slice) -> Floats:
        """The largest element of each row, a little more than it becomes."""
        largest = self.tops[rows] / divisors.root() * (1 + 2.0**-30)
        sizes: Floats = np.abs(g) * np.ldexp(largest, -divisors.exponent)
        return sizes
