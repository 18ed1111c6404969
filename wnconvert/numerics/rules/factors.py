"""What rows are multiplied by: bounds that can be narrowed, and factors in float64 made of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from itertools import zip_longest
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from wnconvert.numerics.kernel.choice import products
from wnconvert.numerics.kernel.interface import OpenElements
from wnconvert.numerics.norms import RowSource
from wnconvert.numerics.rounding import FLOAT_FORMATS
from wnconvert.numerics.rows import RowTally, runs
from wnconvert.numerics.sums import UNIT, Sums, accurate_sums
from wnconvert.numerics.wide import WideFactors
from wnconvert.tensors.blocks import Array, Floats

__all__ = [
    "Alone",
    "Bounds",
    "Common",
    "Ladder",
    "NarrowFactors",
    "RowFactors",
    "Scale",
    "both",
    "signed_products",
]


#: A lower and an upper bound on a number.
Bounds = tuple[Fraction, Fraction]
#: Relative errors of a factor in float64 that do not matter, for results of so many digits.
_FINE, _COARSE = 2.0**-54, 2.0**-34


@dataclass(frozen=True, slots=True)
class NarrowFactors:
    """The upper end of each row's factor, for ``products``; ``odd`` are rows that it cannot make."""

    #: What is multiplied is at most so many times the largest value.
    reach: ClassVar[float] = 1.0
    factor: Floats
    width: int
    odd: NDArray[np.bool_] | None

    def at(self, rows: slice | NDArray[np.intp]) -> NarrowFactors:
        """Those of some of the rows."""
        odd = self.odd[rows] if self.odd is not None and self.odd[rows].any() else None
        its: dict[str, Any] = {name: getattr(self, name)[rows] for name in self._of_rows()}
        return replace(self, odd=odd, **its)

    def times(self, values: Floats, steps: int) -> NarrowFactors:
        """These, each times another factor that is within so many steps."""
        upper = values * (1 + (steps + 4) * UNIT)
        upper *= self.factor
        return replace(self, factor=upper, width=self.width + 2 * (steps + 4))

    def without(self, odd: NDArray[np.bool_] | None) -> NarrowFactors:
        """These, with more odd rows."""
        if odd is None:
            return self
        return replace(self, odd=odd if self.odd is None else odd | self.odd)

    @staticmethod
    def joined(parts: Sequence[NarrowFactors]) -> NarrowFactors:
        """Those of all rows, given runs of them with sums of one error."""
        odd = [np.zeros(len(part.factor), bool) if part.odd is None else part.odd for part in parts]
        every = np.concatenate(odd) if any(part.odd is not None for part in parts) else None
        names = parts[0]._of_rows()
        its: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in names
        }
        return replace(parts[0], odd=every, **its)

    def _of_rows(self) -> list[str]:
        """The fields that have one element for each row."""
        return [each.name for each in fields(self) if each.name not in {"width", "odd"}]

    def products(self, values: Array, rows: slice, dtype: str, out: Array) -> OpenElements:
        """Values of some of the rows times their factors, each rounded once, as ``Kernel.products``."""
        return products(values, self.factor[rows], self.width, dtype, out)


class Ladder:
    """Ever narrower bounds on a number, each computed when it is first asked for.

    >>> ladder = Ladder(iter([(Fraction(1), Fraction(2)), (Fraction(3, 2), Fraction(3, 2))]))
    >>> [len(list(ladder)) for _ in range(2)]
    [2, 2]
    """

    def __init__(self, rungs: Iterator[Bounds]) -> None:
        self._rungs = rungs
        self._known: list[Bounds] = []

    def __iter__(self) -> Iterator[Bounds]:
        at = 0
        while True:
            if at == len(self._known):
                rung = next(self._rungs, None)
                if rung is None:
                    return
                self._known.append(rung)
            yield self._known[at]
            at += 1


def both(one: Iterator[Bounds], other: Iterator[Bounds], *, negative: bool = False) -> Iterator[Bounds]:
    """Bounds on the product of two numbers, given those on each, or of its negative.

    >>> list(both(iter([(Fraction(-1), Fraction(2))]), iter([(Fraction(1), Fraction(3))])))
    [(Fraction(-3, 1), Fraction(6, 1))]
    """
    left = right = (Fraction(0), Fraction(0))
    for rung, other_rung in zip_longest(one, other):
        left, right = rung or left, other_rung or right
        ends = [x * y for x in left for y in right]
        yield (-max(ends), -min(ends)) if negative else (min(ends), max(ends))


def signed_products(value: float, squares: Iterator[Bounds], *, negative: bool) -> Iterator[Bounds]:
    """Bounds on p·|p| of a value times a factor, given those on the square of the factor.

    >>> list(signed_products(-3.0, iter([(Fraction(1), Fraction(2))]), negative=False))
    [(Fraction(-18, 1), Fraction(-9, 1))]
    """
    square = Fraction(value) ** 2
    if negative == (value < 0):
        return ((square * least, square * most) for least, most in squares)
    return ((-square * most, -square * least) for least, most in squares)


@dataclass(frozen=True, slots=True)
class Common:
    """One factor of all rows: mantissa·2^exponent, within ``steps`` units of relative size 2⁻⁵³.

    ``squares`` are bounds on its square. ``top`` is the largest magnitude of what it multiplies. ``plain`` is
    false of a factor that is 0, infinite or NaN: products are then as IEEE 754 has them.
    """

    mantissa: float
    exponent: int
    steps: int
    squares: Ladder
    top: float
    plain: bool = True

    @staticmethod
    def of(squares: Iterator[Bounds], top: float, *, negative: bool, out: str) -> Common:
        """The factor of that square, which is not 0, to as many bits as results of dtype ``out`` need."""
        ladder = Ladder(squares)
        least = most = Fraction(1)
        for least, most in ladder:
            if most - least <= least * Fraction(_COARSE if out in ("float16", "bfloat16") else _FINE):
                break
        power = (least.numerator.bit_length() - least.denominator.bit_length()) // 2
        mantissa = math.sqrt(least / Fraction(4) ** power)
        steps = math.ceil((most - least) / least / Fraction(UNIT)) + 3
        return Common(-mantissa if negative else mantissa, power, steps, ladder, top)

    @staticmethod
    def odd(value: float) -> Common:
        """A factor that is 0, infinite or NaN."""
        return Common(value, 0, 0, Ladder(iter(())), math.inf, plain=False)

    @property
    def value(self) -> float:
        """The factor as a float64, perhaps out of its range."""
        try:
            return math.ldexp(self.mantissa, self.exponent)
        except OverflowError:
            return math.copysign(math.inf, self.mantissa)

    @property
    def is_narrow(self) -> bool:
        """Whether ``NarrowFactors`` can have it."""
        return self.plain and self.steps < 1 << 20 and abs(self.exponent) < 400

    def on_narrow(self, factors: NarrowFactors) -> NarrowFactors:
        """Factors of rows, and this one."""
        odd = factors.odd if self.is_narrow else np.ones(len(factors.factor), bool)
        upper = factors.factor * (self.value * (1 + (self.steps + 4) * UNIT))
        return replace(factors, factor=upper, width=factors.width + 2 * (self.steps + 4), odd=odd)

    def on_wide(self, factors: WideFactors) -> WideFactors:
        """Factors of rows, and this one."""
        odd = np.full(len(factors.mantissa), not self.plain)
        made = factors.scaled(np.full(len(odd), self.mantissa), np.int32(self.exponent), self.steps)
        large, nonfinite = factors.large & ~odd, factors.nonfinite | odd
        return replace(made, exact=factors.exact | odd, large=large, nonfinite=nonfinite)


class Scale(Protocol):
    """The factors of rows, once the sums of their squares are known, and a factor of all."""

    tally: RowTally
    is_narrow: bool

    @property
    def source(self) -> RowSource:
        """What is read, as rows."""

    @property
    def needs_all(self) -> bool:
        """Whether the factors of all rows are made before the first block is."""

    def under(self, common: Common) -> None:
        """Have all rows multiplied by one more factor, too."""

    def hold(self, rows: slice) -> None:
        """Have what is read for these rows at hand."""

    def sums(self) -> Sums:
        """The sums of all rows, in a reading of their own."""

    def results(self, value: float, row: int, sums: Sums, at: int) -> Iterator[Bounds]:
        """Ever narrower bounds on p·|p|, where p is what an element of a row becomes."""

    def short_factors(self, rows: NDArray[np.intp]) -> Floats | None:
        """The factors of some rows that are exact, in at most 24 bits, and NaN for others; None: no such."""

    def narrow(self, sums: Sums, rows: slice) -> NarrowFactors:
        """Factors for ``products``; odd rows are counted."""

    def wide(self, sums: Sums, rows: slice, *, tell: bool) -> WideFactors:
        """Factors for ``wide_products``; with ``tell``, odd rows are counted."""


@dataclass(frozen=True, slots=True)
class RowFactors:
    """Sums and factors of rows; narrow ones where all is narrow, but for odd rows, else wide ones."""

    scale: Scale
    sums: Sums
    narrow: NarrowFactors | None
    wide: WideFactors | None

    @staticmethod
    def of(scale: Scale, sums: Sums, rows: slice) -> RowFactors:
        """Those of some rows, in the way that serves their values best."""
        if scale.is_narrow:
            return RowFactors(scale, sums, scale.narrow(sums, rows), None)
        return RowFactors(scale, sums, None, scale.wide(sums, rows, tell=True))

    @staticmethod
    def all_of(scale: Scale, count: int) -> RowFactors:
        """Those of all rows: the first of two passes."""
        sums = scale.sums()
        parts = [RowFactors.of(scale, sums.at(rows), rows) for rows in runs(count)]
        narrow, wide = (
            [part.narrow for part in parts if part.narrow],
            [part.wide for part in parts if part.wide],
        )
        return RowFactors(
            scale,
            sums,
            NarrowFactors.joined(narrow) if narrow else None,
            WideFactors.joined(wide) if wide else None,
        )

    def at(self, rows: slice) -> RowFactors:
        """Those of some of the rows."""
        narrow, wide = self.narrow and self.narrow.at(rows), self.wide and self.wide.at(rows)
        return RowFactors(self.scale, self.sums.at(rows), narrow, wide)


class Alone:
    """One factor of all elements, as that of the only row."""

    def __init__(self, source: RowSource, out: str) -> None:
        self.source = source
        self.out = out
        self.is_narrow = source.way is not accurate_sums
        self.tally = RowTally()
        form = FLOAT_FORMATS[out]
        self.large = form.largest * 0.99
        self.common = Common.odd(1.0)
        self.needs_all = True

    def under(self, common: Common) -> None:
        """Say which factor."""
        self.common = common

    def hold(self, rows: slice) -> None:
        """There is nothing to read."""

    def sums(self) -> Sums:
        """No sum that matters."""
        return Sums(np.ones(1), np.zeros(1), np.zeros(1, np.int32), 0.0)

    def ladder(self, _row: int, _sums: Sums, _at: int) -> Iterator[Bounds]:
        """Ever narrower bounds on the square of the factor."""
        return iter(self.common.squares)

    def results(self, value: float, row: int, sums: Sums, at: int) -> Iterator[Bounds]:
        """Ever narrower bounds on p·|p| of a product p."""
        return signed_products(value, self.ladder(row, sums, at), negative=self.common.mantissa < 0)

    def short_factors(self, _rows: NDArray[np.intp]) -> Floats | None:
        """No factor that is known to be exact."""
        return None

    def narrow(self, _sums: Sums, _rows: slice) -> NarrowFactors:
        """The factor for ``products``."""
        one = np.ones(1)
        large = self._large()
        return self.common.on_narrow(NarrowFactors(one, 0, large if large.any() else None))

    def wide(self, _sums: Sums, _rows: slice, *, tell: bool) -> WideFactors:  # noqa: ARG002 -- no odd rows
        """The factor for ``wide_products``."""
        one, zero, none = np.ones(1), np.zeros(1, np.int32), np.zeros(1, bool)
        return self.common.on_wide(WideFactors(one, zero, 0, none, self._large(), none))

    def _large(self) -> NDArray[np.bool_]:
        """Whether a product may be too large."""
        return np.array([not self.common.top * abs(self.common.value) < self.large])
