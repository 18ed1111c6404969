"""(w − S/n)·γ·c/d + β of rows: from their moments to centres and factors.

n·Q − S² and S/n are computed as pairs of float64, so that only their last roundings count; where S² leaves
too little of n·Q for that, the row is an odd one, and is computed in integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wnconvert.numerics.kernel.dots import rest_of_products
from wnconvert.numerics.rounding import FLOAT_FORMATS
from wnconvert.numerics.rows import RowTally
from wnconvert.numerics.rules.computed.centred import CentredFactors, ShiftedFactors, WideCentredFactors
from wnconvert.numerics.rules.computed.formula import Standard
from wnconvert.numerics.rules.computed.moments import Moments, MomentSource
from wnconvert.numerics.rules.factors import Bounds, Common, NarrowFactors, both
from wnconvert.numerics.sums import UNIT, Sums, accurate_sums
from wnconvert.numerics.wide import WideFactors
from wnconvert.tensors.blocks import Floats, RowValues

__all__ = ["StandardScale"]


#: The error of a product in units of relative size 2⁻⁵³: 8 of the factor, 3 of what is left, and its own.
_STEPS = 14
#: Factors between these multiply any narrow value to a float64 that has all its bits.
_LEAST, _MOST = 2.0**-300, 2.0**300
#: The same of wide products: 1 of the factor, 2 of what is left, their own.
_WIDE_STEPS = 5
#: Relative errors of n·Q − S² that do not count, and such that count in no sum.
_FINE, _FINEST = 2.0**-60, 2.0**-90


class StandardScale:
    """From the moments of rows, γ and β to what makes their elements, for one fold."""

    def __init__(
        self,
        source: MomentSource,
        formula: Standard,
        gain: RowValues | None,
        shift: RowValues | None,
        out: str,
    ) -> None:
        self.source, self.formula, self.gain, self.shift, self.out = source, formula, gain, shift, out
        self.is_narrow = source.way is not accurate_sums and shift is None
        self.tally = RowTally()
        form = FLOAT_FORMATS[out]
        self.large = form.largest * 0.99
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
        """Have γ and β of these rows at hand."""
        for values in (self.gain, self.shift):
            if values:
                values.hold(rows)

    def sums(self) -> Moments:
        """The moments of all rows, in a reading of their own."""
        return self.source.sums()

    def results(self, value: float, row: int, sums: Sums, at: int) -> Iterator[Bounds]:
        """Ever narrower bounds on y·|y|, where y is what an element of a row becomes."""
        own = self._results(value, row, sums, at)
        if not self.common:
            return own
        return both(own, iter(self.common.squares), negative=self.common.mantissa < 0)

    def short_factors(self, _rows: NDArray[np.intp]) -> Floats | None:
        """No factor that is known to be exact."""
        return None

    def _results(self, value: float, row: int, sums: Sums, at: int) -> Iterator[Bounds]:
        gain, shift = (Fraction(float(each[0])) for each in self._rows_of(slice(row, row + 1)))
        for total, square in self._moments(row, sums, at):
            yield from self.formula.results(value, total, square, gain, shift)

    def _moments(self, row: int, sums: Sums, at: int) -> Iterator[tuple[Bounds, Bounds]]:
        """Bounds on S and Q of a row, then both exactly."""
        if row not in self.source.known:
            yield _moments_of(sums).total_bounds(at), sums.bounds(at)
        total, square = self.source.exactly(row)
        yield (total, total), (square, square)

    def narrow(self, sums: Sums, rows: slice) -> NarrowFactors:
        """Centres and factors for ``Kernel.centred``; odd rows are counted."""
        moments, n = _moments_of(sums).flat(), float(self.source.length)
        gain, _ = self._rows_of(rows)
        centre, rest, off, spread, error = _means_and_spreads(moments, n)
        gain = gain * self.formula.operation.scale
        factor = gain / self._divisors(spread / self.formula.over)
        size = np.abs(factor)
        plain = (error < spread * (UNIT / 2)) & (size > _LEAST) & (size < _MOST)
        plain &= np.abs(gain) * math.sqrt(n) < self.large
        if not plain.all():
            self._tell(moments, rows)
        upper = factor * (1 + _STEPS * UNIT)
        odd = None if plain.all() else ~plain
        least = off / UNIT + _LEAST
        factors = CentredFactors(upper, 2 * _STEPS, odd, centre, rest, least)
        return self.common.on_narrow(factors) if self.common else factors

    def _divisors(self, variance: Floats) -> Floats:
        """d of rows with these variances."""
        operation = self.formula.operation
        if operation.eps_at == "var":
            return np.sqrt(variance + operation.eps)
        if operation.eps_at == "std":
            return np.sqrt(variance) + operation.eps
        return np.sqrt(np.maximum(variance * operation.fan, operation.eps))

    def wide(self, sums: Sums, rows: slice, *, tell: bool) -> WideFactors:
        """Centres and factors for any values; with ``tell``, odd rows are counted."""
        moments = _moments_of(sums)
        gain, shift = self._rows_of(rows)
        nonfinite = self._nonfinite(moments, gain, shift)
        self._know(moments, rows)
        if tell:
            self._tell(moments, rows)
        numbers = zip(
            np.isfinite(moments.high).tolist(), np.where(np.isfinite(gain), gain, 1.0).tolist(), strict=True
        )
        made = [
            self._row(moments, rows.start, at, its_gain) if is_finite else _NAN
            for at, (is_finite, its_gain) in enumerate(numbers)
        ]
        its = _Row(*(np.array(each) for each in zip(*made, strict=True)))
        mantissa = np.where(np.isfinite(gain), its.mantissa, its.mantissa * gain)
        power = np.where(np.isfinite(moments.high), moments.exponent, 0).astype(np.int32)
        size = np.abs(gain * self.formula.operation.scale) * math.sqrt(self.source.length) + np.abs(shift)
        large = ~nonfinite & ~(size < self.large)
        exponent = its.exponent.astype(np.int32) + power
        centres = its.centre, its.rest, its.least, power
        factors: WideFactors
        if self.shift is None:
            exact = its.exact | nonfinite
            factors = WideCentredFactors(mantissa, exponent, _WIDE_STEPS, exact, large, nonfinite, *centres)
        else:
            factors = ShiftedFactors(
                mantissa,
                exponent,
                0,
                nonfinite,
                large,
                nonfinite,
                *centres,
                finer=its.finer,
                shift=shift,
                apart=its.apart,
                outer=np.ones(len(shift)),
                outer_power=np.zeros(len(shift), np.int32),
            )
        return self.common.on_wide(factors) if self.common else factors

    def _row(self, moments: Moments, first: int, at: int, gain: float) -> _Row:
        """What makes the elements of a row of finite ones."""
        total, square = moments.total_bounds(at), moments.bounds(at)
        if first + at in self.source.known:
            exact = self.source.known[first + at]
            total, square = (exact[0], exact[0]), (exact[1], exact[1])
        unit = Fraction(2) ** int(moments.exponent[at])
        least, most = (each / self.source.length / unit for each in total)
        centre = float(least)
        rest = float((least + most) / 2 - Fraction(centre))
        off = float(most - least) + abs(centre) * 2.0**-104
        divisor = self.formula.divisor(self.formula.variance(self.formula.spread(total, square)), 128)
        factor = Fraction(gain) * Fraction(self.formula.operation.scale)
        if not divisor[1] or not factor:
            return _Row(math.copysign(0.0, factor), 0.0, 0, centre, rest, off / UNIT + _LEAST, 0.0, True)
        low, high = factor / divisor[1], factor / divisor[0]
        power = low.numerator.bit_length() - low.denominator.bit_length()
        middle = (low + high) / 2 / Fraction(2) ** power
        mantissa = float(middle)
        apart = float(abs(high / low - 1)) + 2.0**-104
        is_constant = square[0] == square[1] and self.formula.spread(total, square)[1] == 0
        return _Row(
            mantissa,
            float(middle - Fraction(mantissa)),
            power,
            centre,
            rest,
            off / UNIT + _LEAST,
            apart,
            is_constant,
        )

    def _rows_of(self, rows: slice) -> tuple[Floats, Floats]:
        """γ and β of some rows."""
        count = rows.stop - rows.start
        gain = self.gain.at(rows) if self.gain else np.ones(count)
        return gain, self.shift.at(rows) if self.shift else np.zeros(count)

    def _know(self, moments: Moments, rows: slice) -> None:
        """Have the exact moments of rows of which the others are not enough."""
        *_, spread, error = _means_and_spreads(moments, float(self.source.length))
        enough = spread * (_FINEST if self.out == "float64" and self.shift else _FINE)
        doubtful = np.isfinite(moments.high) & ~(error < enough)
        self.source.know([rows.start + at for at in np.flatnonzero(doubtful).tolist()])

    def _tell(self, moments: Moments, rows: slice) -> None:
        """Count odd rows."""
        nonfinite = self._nonfinite(moments, *self._rows_of(rows))
        self.tally.add("nonfinite", nonfinite, rows.start)
        if not self.formula.operation.eps:
            self._know(moments, rows)
            known = (self.source.known.get(row) for row in range(rows.start, rows.stop))
            constant = [
                exact is not None and self.source.length * exact[1] == exact[0] ** 2 for exact in known
            ]
            self.tally.add("constant", np.array(constant) & ~nonfinite, rows.start)

    @staticmethod
    def _nonfinite(moments: Moments, gain: Floats, shift: Floats) -> NDArray[np.bool_]:
        """The rows with NaN or an infinity."""
        found: NDArray[np.bool_] = ~(np.isfinite(moments.high) & np.isfinite(gain) & np.isfinite(shift))
        return found


class _Row(NamedTuple):
    """What makes the elements of a row, or of rows."""

    mantissa: Any
    finer: Any
    exponent: Any
    centre: Any
    rest: Any
    least: Any
    apart: Any
    exact: Any


#: What makes NaN.
_NAN = _Row(1.0, 0.0, 0, math.nan, 0.0, 0.0, 0.0, True)


def _moments_of(sums: Sums) -> Moments:
    assert isinstance(sums, Moments)  # noqa: S101 - its source gives no others
    return sums


def _means_and_spreads(moments: Moments, n: float) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """S/n as pairs, and how far off it may be; n·Q − S², and how far but for a rounding; no exponents."""
    total = moments.total
    centre = total / n
    left = np.stack([np.full(len(total), n), total, centre])
    right = np.stack([moments.high, total, left[0]])
    squares, totals, again = products = left * right
    lost = rest_of_products(left, right, products)
    rest = (((total - again) - lost[2]) + moments.rest) / n
    off = moments.off / n * 1.01 + np.abs(rest) * (3 * UNIT) + np.abs(centre) * 2.0**-103
    spread = squares - totals
    back = spread - squares
    less = (lost[0] + n * moments.low) - (lost[1] + 2 * total * moments.rest)
    less += (squares - (spread - back)) - (totals + back)
    error = squares * (moments.error + 2.0**-98) + (2 * np.abs(total) + moments.off) * moments.off
    return centre, rest, off, spread + less, error * 1.01
