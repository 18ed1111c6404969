"""c·w, an exact product of two numbers, for all elements."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from wnconvert.numerics.kernel.choice import largest_code
from wnconvert.numerics.norms import RowSource
from wnconvert.numerics.rounding import FLOAT_FORMATS
from wnconvert.numerics.rows import WHOLE, RowTally
from wnconvert.numerics.rules.factors import Bounds, Common, NarrowFactors, both, signed_products
from wnconvert.numerics.sums import Sums, accurate_sums
from wnconvert.numerics.wide import WideFactors
from wnconvert.tensors.blocks import Floats

__all__ = ["EqualizedScale"]


#: Factors between these multiply any narrow value to a float64 that has all its bits.
_LEAST, _MOST = 2.0**-300, 2.0**300


class EqualizedScale:
    """One factor of all elements, which are the only row; sums say how large elements are at most."""

    def __init__(self, source: RowSource, scale: float, out: str) -> None:
        self.source, self.scale, self.out = source, scale, out
        self.is_narrow = source.way is not accurate_sums and (_LEAST < abs(scale) < _MOST or not scale)
        self.tally = RowTally()
        form = FLOAT_FORMATS[out]
        self.large = form.largest * 0.99
        self.common: Common | None = None

    @property
    def needs_all(self) -> bool:
        """Whether elements are multiplied by what all of them make, or do not lie in one block."""
        return self.common is not None or not self.source.whole_rows

    def under(self, common: Common) -> None:
        """Have all elements multiplied by one more factor, too."""
        self.common = common
        self.large = min(self.large / (abs(common.value) or 1.0), self.large)

    def hold(self, rows: slice) -> None:
        """There is nothing to read."""

    def sums(self) -> Sums:
        """The square of the largest element, in a reading of its own."""
        top = 0.0
        for block in self.source.blocks():
            values = self.source.read(block)
            code = largest_code(values)
            form = FLOAT_FORMATS[values.dtype.name]
            top = max(top, float("inf") if code >= form.inf else float(form.value(code)))
        mantissa, exponent = np.frexp(np.array([top]))
        return Sums(mantissa**2, np.zeros(1), exponent.astype(np.int32), 0.0)

    def ladder(self, _row: int, _sums: Sums, _at: int) -> Iterator[Bounds]:
        """The square of the factor."""
        own = iter([(Fraction(self.scale) ** 2,) * 2])
        return both(own, iter(self.common.squares)) if self.common else own

    def results(self, value: float, row: int, sums: Sums, at: int) -> Iterator[Bounds]:
        """Bounds on p·|p| of a product p."""
        factor = self.scale * (self.common.mantissa if self.common else 1.0)
        return signed_products(value, self.ladder(row, sums, at), negative=factor < 0)

    def short_factors(self, _rows: NDArray[np.intp]) -> Floats | None:
        """No factor that is known to be exact."""
        return None

    def narrow(self, sums: Sums, _rows: slice) -> NarrowFactors:
        """The factor for ``products``."""
        large, nonfinite = self._odd(sums)
        self._tell(nonfinite)
        odd = large | nonfinite
        upper = np.array([self.scale * (1 + 2.0**-52)])
        factors = NarrowFactors(upper, 8, odd if odd.any() else None)
        return self.common.on_narrow(factors) if self.common else factors

    def wide(self, sums: Sums, _rows: slice, *, tell: bool) -> WideFactors:
        """The factor for ``wide_products``."""
        large, nonfinite = self._odd(sums)
        if tell:
            self._tell(nonfinite)
        mantissa, exponent = np.frexp(np.array([self.scale]))
        zero = np.array([self.scale == 0])
        factors = WideFactors(mantissa, exponent.astype(np.int32), 1, zero, large, nonfinite)
        return self.common.on_wide(factors) if self.common else factors

    def _odd(self, sums: Sums) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Whether a product may be too large, and whether an element is not finite."""
        nonfinite = ~np.isfinite(sums.high)
        size = np.ldexp(np.sqrt(sums.high) * abs(self.scale), sums.exponent)
        return ~nonfinite & ~(size < self.large), nonfinite

    def _tell(self, nonfinite: NDArray[np.bool_]) -> None:
        if nonfinite.any():
            self.tally.put("nonfinite", WHOLE)
