"""g·w/‖w‖: the factors of rows, and which rows are odd.

An element is open as long as bounds on the square of its factor, g²/Σw², leave two values possible.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from wnconvert.numerics.norms import RowSource, round_norms
from wnconvert.numerics.rounding import FLOAT_FORMATS
from wnconvert.numerics.rows import RowTally
from wnconvert.numerics.rules.factors import Bounds, Common, NarrowFactors, both, signed_products
from wnconvert.numerics.sums import UNIT, Sums, accurate_sums
from wnconvert.numerics.wide import WideFactors
from wnconvert.tensors.blocks import Floats, RowValues
from wnconvert.tensors.dtypes import dtype_named

__all__ = ["NormScale", "largest_of"]


#: What makes a row of v itself its product, but not as if a midpoint were near: see ``kernel.plain``.
_AS_IT_IS = 1 + 2.0**-40


class NormScale:
    """From the sums of rows and their g to factors, for one fold; odd rows are counted in ``tally``.

    ``keeps``: a row whose g is its rounded norm is v itself, in v's own dtype. ``summed`` are the rows whose
    norms divide those of the ``source``, which are these themselves.
    """

    def __init__(self, source: RowSource, g: RowValues, out: str, *, keeps: bool) -> None:
        self.source = source
        self.summed = source
        self.g = g
        self.out = out
        self.is_narrow = source.way is not accurate_sums
        self.tally = RowTally()
        self.may_keep = (
            keeps and out == source.dtype and dtype_named(g.dtype).holds(dtype_named(source.dtype))
        )
        own = FLOAT_FORMATS[g.dtype]
        self.large = largest_of(out)
        # A g that is the rounded norm is next to it: within half a unit, which is more for subnormal numbers.
        self.near = 2.0**-own.digits * 1.01
        self.small = math.ldexp(1.0, own.least + own.digits)
        self.common: Common | None = None

    @property
    def needs_all(self) -> bool:
        """Whether rows are multiplied by what all of them make, or do not lie in one block."""
        return self.common is not None or not self.source.whole_rows

    def under(self, common: Common) -> None:
        """Have all rows multiplied by one more factor, too."""
        self.common = common
        self.large = min(self.large / (abs(common.value) or 1.0), self.large)

    def hold(self, rows: slice) -> None:
        """Have the g of these rows at hand."""
        self.g.hold(rows)

    def sums(self) -> Sums:
        """The sums of all rows, in a reading of their own."""
        return self.summed.sums()

    def divisors(self, sums: Sums) -> Sums:
        """The squares of what rows are divided by."""
        return sums

    def rungs(self, row: int, sums: Sums, at: int) -> Iterator[Bounds]:
        """Ever narrower bounds on the square of what a row is divided by; ``sums[at]`` is the sum so far."""
        return self.summed.ladder(row, sums, at)

    def ladder(self, row: int, sums: Sums, at: int) -> Iterator[Bounds]:
        """Ever narrower bounds on the square of a row's factor."""
        square = Fraction(float(self.g.at(slice(row, row + 1))[0])) ** 2
        rungs = ((square / most, square / least) for least, most in self.rungs(row, sums, at))
        return both(rungs, iter(self.common.squares)) if self.common else rungs

    def results(self, value: float, row: int, sums: Sums, at: int) -> Iterator[Bounds]:
        """Ever narrower bounds on p·|p| of a product p of a row's element."""
        factor = float(self.g.at(slice(row, row + 1))[0]) * (self.common.mantissa if self.common else 1.0)
        return signed_products(value, self.ladder(row, sums, at), negative=factor < 0)

    def short_factors(self, _rows: NDArray[np.intp]) -> Floats | None:
        """No factor that is known to be exact."""
        return None

    def narrow(self, sums: Sums, rows: slice) -> NarrowFactors:
        """Factors for ``products``; odd rows are counted."""
        g, first = self.g.at(rows), rows.start
        divisors = self.divisors(sums)
        root, steps = divisors.root(), _steps(divisors)
        size = self.sizes(divisors, g, rows)
        factor = g / root
        plain = np.maximum.reduce(size) < self.large and np.minimum.reduce(divisors.high) > 0
        is_plain = plain and np.maximum.reduce(divisors.high) < math.inf
        odd = None if is_plain else self._odd(divisors, g, size, first)
        upper = factor * (1 + steps * UNIT)
        if self.may_keep and (
            np.minimum.reduce(np.abs(factor - 1)) <= self.near or np.minimum.reduce(size) < self.small
        ):
            kept = self._kept(sums, g, first)
            self.tally.add("kept", kept, first)
            upper[kept] = _AS_IT_IS
        factors = NarrowFactors(upper, 2 * steps, odd)
        return self.common.on_narrow(factors) if self.common else factors

    def wide(self, sums: Sums, rows: slice, *, tell: bool) -> WideFactors:
        """Factors for ``wide_products``; with ``tell``, odd rows are counted."""
        g, first = self.g.at(rows), rows.start
        divisors = self.divisors(sums)
        size = self.sizes(divisors, g, rows)
        zero, nonfinite = divisors.high == 0, ~_are_finite(divisors, g, size)
        kept = self._kept(sums, g, first) if self.may_keep else np.zeros(len(g), bool)
        mantissa, exponent = np.frexp(g)
        mantissa = mantissa / divisors.root()
        exponent = np.where(np.isfinite(g), exponent, 0) - divisors.exponent
        mantissa[kept], exponent[kept] = 1, 0
        mantissa[zero], exponent[zero] = 0, 0
        if "float64" not in (self.source.dtype, self.out):
            # 2^±900 times any v but 0 is out of range, as the exact product would be.
            exponent = np.clip(exponent, -900, 900)
        if tell:
            self._odd(divisors, g, size, first)
            self.tally.add("kept", kept, first)
        large = ~nonfinite & (size >= self.large)
        exact = kept | nonfinite | zero
        factors = WideFactors(mantissa, exponent, _steps(divisors), exact, large, nonfinite)
        return self.common.on_wide(factors) if self.common else factors

    def sizes(self, _divisors: Sums, g: Floats, _rows: slice) -> Floats:
        """No element of a row becomes larger than that."""
        return np.abs(g)

    def _odd(self, divisors: Sums, g: Floats, size: Floats, first: int) -> NDArray[np.bool_]:
        """The rows without factors of the narrow kind, which are counted but for too large ones."""
        zero = divisors.high == 0
        finite = _are_finite(divisors, g, size)
        self.tally.add("zero", zero, first)
        self.tally.add("zero_with_g", zero & (g != 0), first)
        self.tally.add("nonfinite", ~finite, first)
        odd: NDArray[np.bool_] = zero | ~finite | (size >= self.large)
        return odd

    def _kept(self, sums: Sums, g: Floats, first: int) -> NDArray[np.bool_]:
        """The rows whose g is the rounded norm (or what stands in its place), so that w is v."""
        norm = round_norms(self.divisors(sums), lambda at: self.rungs(first + at, sums, at), self.g.dtype, g)
        kept: NDArray[np.bool_] = (norm == g) & np.isfinite(g) & np.isfinite(sums.high) & (sums.high != 0)
        return kept


def largest_of(out: str) -> float:
    """What is less than the largest number of a dtype, by more than it may be off."""
    return FLOAT_FORMATS[out].largest * 0.99


def _are_finite(divisors: Sums, g: Floats, size: Floats) -> NDArray[np.bool_]:
    """The rows without NaN and infinities; that of zeros has no size."""
    sized = np.isfinite(size) | (divisors.high == 0)
    finite: NDArray[np.bool_] = np.isfinite(g) & np.isfinite(divisors.high) & sized
    return finite


def _steps(sums: Sums) -> int:
    """Error in units of relative size 2⁻⁵³: half the sum's, and five roundings."""
    return math.ceil(sums.error / 2 / UNIT) + 6
