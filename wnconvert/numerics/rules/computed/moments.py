"""S = Σw and Q = Σw² of rows, to more than 60 bits, and exactly.

The bits that S² takes from n·Q are those that the variance of a row lacks, so both come with bounds, and a
row of which they are not enough is added up exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from wnconvert.numerics.kernel.choice import kernel
from wnconvert.numerics.kernel.dots import TINY, Pairs, extracted, of_pieces
from wnconvert.numerics.norms import RowSource, as_float64
from wnconvert.numerics.rules.factors import Bounds
from wnconvert.numerics.sums import Sums, Way, accurate_sums, exact_sum, merge
from wnconvert.tensors.blocks import Array, Floats, Read
from wnconvert.tensors.tree import Dim

__all__ = ["MomentSource", "Moments"]


@dataclass(slots=True)
class Moments(Sums):
    """Σv² of each row, and Σv as (total + rest)·2^exponent, each within its absolute error times 2^exponent.

    A row with NaN or infinities has these in ``high``; its total means nothing.
    """

    total: Floats
    rest: Floats
    off: Floats

    @staticmethod
    def zeros(count: int) -> Moments:
        """Those of rows without elements, to which others are added."""
        none = [np.zeros(count) for _ in range(5)]
        return Moments(none[0], none[1], np.full(count, -1100, np.int32), 0.0, *none[2:])

    def at(self, rows: slice) -> Moments:
        """The moments of some of the rows."""
        parts = (each[rows] for each in (self.total, self.rest, self.off))
        return Moments(self.high[rows], self.low[rows], self.exponent[rows], self.error, *parts)

    def flat(self) -> Moments:
        """The same without exponents, which values of at most 24 bits can do without."""
        sums = Sums.flat(self)
        parts = (np.ldexp(each, self.exponent) for each in (self.total, self.rest, self.off))
        return Moments(sums.high, sums.low, sums.exponent, sums.error, *parts)

    def total_bounds(self, at: int) -> Bounds:
        """A lower and an upper bound on the exact Σv of row ``at``."""
        middle = Fraction(float(self.total[at])) + Fraction(float(self.rest[at]))
        slack, unit = Fraction(float(self.off[at])), Fraction(2) ** int(self.exponent[at])
        return (middle - slack) * unit, (middle + slack) * unit

    def add(self, rows: slice, part: Moments) -> None:
        """Add those of a block to those of all rows."""
        before = self.exponent[rows].copy()
        merge(self, rows, part)
        old, new = before - self.exponent[rows], part.exponent - self.exponent[rows]
        have = Pairs(*(np.ldexp(each[rows], old) for each in (self.total, self.rest, self.off)))
        have.add(np.ldexp(part.total, new), np.ldexp(part.rest, new), TINY)
        self.total[rows], self.rest[rows] = have.high, have.low
        self.off[rows] = have.error + np.ldexp(part.off, new)


class MomentSource(RowSource):
    """A tensor's rows, with their sums beside the sums of their squares."""

    def __init__(  # noqa: PLR0917 -- as that of all rows
        self, read: Read, shape: tuple[int, ...], dim: Dim, dtype: str, limit: int, way: Way
    ) -> None:
        super().__init__(read, shape, dim, dtype, limit, way)
        self.length = math.prod(shape) // self.count if self.count else 0
        self.known: dict[int, tuple[Fraction, Fraction]] = {}

    def block_sums(self, values: Array) -> Moments:
        """The moments of the rows of a block, as far as they lie in it, given its values."""
        if self.way is accurate_sums or values.dtype == np.float64:
            return _moments_of_any(as_float64(values))
        sums, totals = kernel().moments(values)
        return Moments(sums.high, sums.low, sums.exponent, sums.error, totals.high, totals.low, totals.error)

    def sums(self) -> Moments:
        """The moments of all rows: the first of two passes."""
        found = Moments.zeros(self.count)
        for block in self.blocks():
            found.add(block.rows, self.block_sums(self.read(block)))
        return found

    def exactly(self, row: int) -> tuple[Fraction, Fraction]:
        """S and Q of a finite row."""
        if row not in self.known:
            total = square = Fraction(0)
            for piece in self._pieces(row):
                total, square = total + exact_total(piece), square + exact_sum(piece)
            self.known[row] = total, square
        return self.known[row]

    def know(self, rows: Sequence[int]) -> None:
        """Have S and Q of finite rows at hand: of many, in one reading of all blocks."""
        missing = [row for row in rows if row not in self.known]
        if len(missing) < 2 or (self.whole_rows and self.block is not None):
            for row in missing:
                self.exactly(row)
            return
        found = dict.fromkeys(missing, (Fraction(0), Fraction(0)))
        for block in self.blocks():
            values = self.read(block)
            for row in missing:
                if block.row <= row < block.row + block.shape[1]:
                    piece = values[:, row - block.row].astype(np.float64).ravel()
                    total, square = found[row]
                    found[row] = total + exact_total(piece), square + exact_sum(piece)
        self.known |= found


def _moments_of_any(x: Floats) -> Moments:
    """Those of any values; rows are scaled to a largest element in [½, 1), as their squares are."""
    sums = accurate_sums(x)
    finite = np.isfinite(sums.high)
    half = sums.exponent // 2
    scaled = np.where(finite[:, None], x, 0.0) * np.ldexp(1.0, -half)[:, None]
    scaled *= np.ldexp(1.0, half - sums.exponent)[:, None]
    totals = Pairs.zeros(len(finite))
    slabs, _, inner = x.shape
    for piece, ones, rows in of_pieces(scaled, np.ones((slabs, 1, inner))):
        extracted(piece, ones, 1.0, totals.at(rows))
    totals.error += x.size * TINY
    return Moments(sums.high, sums.low, sums.exponent, sums.error, totals.high, totals.low, totals.error)


def exact_total(x: Floats) -> Fraction:
    """Σv of a finite 1-D row exactly: each sum that is rounded once leaves less to add.

    >>> exact_total(np.array([1e300, 2.0**-1000, -1e300])) == Fraction(2) ** -1000
    True
    """
    found = Fraction(0)
    for part, power in ((np.ldexp(x, -600), 600), (x - np.ldexp(np.ldexp(x, -600), 600), 0)):
        terms = part.tolist()
        while left := math.fsum(terms):
            found += Fraction(left) * Fraction(2) ** power
            terms.append(-left)
    return found
