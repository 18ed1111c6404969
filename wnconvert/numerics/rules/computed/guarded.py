"""g·w/d by rows, d being their norm with a guard: as weight norm's, but that the square is another.

A row whose norm is above a least one has the factor of weight norm; a row below it has g/eps. Where eps is
added outside of the root, d is not rational: roots of integers give 128, 256, … bits of it, and what is not
rational is no midpoint, so this ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import count

import numpy as np

from wnconvert.frozen import dataclass
from wnconvert.layers.rules import Guard
from wnconvert.numerics.norms import RowSource
from wnconvert.numerics.rules.factors import Bounds, both
from wnconvert.numerics.rules.norm import NormScale
from wnconvert.numerics.rules.spectral.roots import roots_between
from wnconvert.numerics.sums import UNIT, Sums
from wnconvert.tensors.blocks import RowValues

__all__ = ["GuardedNorm", "GuardedScale"]


#: Bits of the first root.
_BITS = 128
#: What the steps from Σw² to d² add to the relative error of a sum: at most 14 roundings.
_ERROR = 16 * UNIT


@dataclass(frozen=True, slots=True)
class GuardedNorm:
    """d² of rows, of their Σw²."""

    guard: Guard

    @property
    def reach(self) -> float:
        """No element is more than so many times d."""
        share = self._of_squares
        return math.sqrt(1 / share) if share else math.inf

    @property
    def _of_squares(self) -> Fraction:
        """What multiplies Σw²."""
        share = self.guard.share
        return share if "squares" in self.guard.at else share**2

    @property
    def _eps_square(self) -> Fraction:
        """What is added to it, or is the least, or the square of what is added to its root."""
        eps = Fraction(self.guard.eps)
        return eps if "squares" in self.guard.at else eps**2

    def squares(self, sums: Sums) -> Sums:
        """d² of rows, to the error of their sums and a few roundings more."""
        share, eps = _scaled(self._of_squares), _scaled(self._eps_square)
        exponent = np.maximum(sums.exponent + share[1], eps[1]).astype(np.int32)
        high = np.ldexp(sums.high * share[0], 2 * (sums.exponent + share[1] - exponent))
        least = np.ldexp(np.full(len(high), eps[0]), 2 * (eps[1] - exponent))
        if self.guard.is_least:
            made = np.where(high < least, least, high)
        elif self.guard.at == "squares":
            made = high + least
        else:
            made = np.square(np.sqrt(high) + np.sqrt(least))
        return Sums(made, np.zeros(len(made)), exponent, sums.error + _ERROR)

    def bounds(self, rungs: Iterator[Bounds]) -> Iterator[Bounds]:
        """Ever narrower bounds on d² of a row, given those on its Σw²; without end if it is not rational."""
        share, eps = self._of_squares, self._eps_square
        for rung in rungs:
            least, most = (share * end for end in rung)
            if self.guard.is_least:
                yield max(least, eps), max(most, eps)
            elif self.guard.at == "squares":
                yield least + eps, most + eps
            else:
                yield from self._beside_roots((least, most))

    def _beside_roots(self, squares: Bounds) -> Iterator[Bounds]:
        eps = Fraction(self.guard.eps)
        for bits in (_BITS * 2**power for power in count()):
            least, most = roots_between(squares, bits)
            yield (least + eps) ** 2, (most + eps) ** 2
            if squares[0] != squares[1] or least == most:
                return


def _scaled(value: Fraction) -> tuple[float, int]:
    """A number, which is not negative, as a float64 times a power of 4."""
    if not value:
        return 0.0, -2200
    power = (value.numerator.bit_length() - value.denominator.bit_length()) // 2
    return float(value / Fraction(4) ** power), power


class GuardedScale(NormScale):
    """From the sums of rows' squares to their factors, with a guard; without one, times ``exact`` alone.

    ``exact`` is the number that ``g`` holds for all rows, rounded; None if g is as it is stored.
    """

    def __init__(
        self,
        source: RowSource,
        g: RowValues,
        exact: Fraction | None,
        guard: Guard | None,
        out: str,
        *,
        keeps: bool = False,
    ) -> None:
        is_norm = guard is not None and guard.share == 1
        super().__init__(source, g, out, keeps=keeps and is_norm)
        self.exact = exact
        self.guarded = GuardedNorm(guard) if guard else None
        if self.guarded:
            self.large = min(self.large, self.large / self.guarded.reach)

    @staticmethod
    def of_one(source: RowSource, factor: Fraction, guard: Guard | None, out: str) -> GuardedScale:
        """All rows times one number, over their d."""
        value = _as_float(factor)
        everywhere = RowValues(lambda block: np.full(block.shape, value), (source.count,), "float64")
        return GuardedScale(source, everywhere, factor, guard, out)

    def divisors(self, sums: Sums) -> Sums:
        """d² of rows."""
        made = self.guarded.squares(sums) if self.guarded else sums
        # The number that multiplies all rows is rounded once, too.
        made = Sums(made.high, made.low, made.exponent, made.error + 2 * UNIT)
        return made.flat() if self.is_narrow else made

    def rungs(self, row: int, sums: Sums, at: int) -> Iterator[Bounds]:
        """Ever narrower bounds on d² of a row."""
        rungs = super().rungs(row, sums, at)
        return self.guarded.bounds(rungs) if self.guarded else rungs

    def ladder(self, row: int, sums: Sums, at: int) -> Iterator[Bounds]:
        """Ever narrower bounds on the square of a row's factor."""
        factor = self.exact
        if factor is None:
            factor = Fraction(float(self.g.at(slice(row, row + 1))[0]))
        rungs = ((factor**2 / most, factor**2 / least) for least, most in self.rungs(row, sums, at))
        return both(rungs, iter(self.common.squares)) if self.common else rungs


def _as_float(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)
