"""Σ x·y of the rows of a block, or of its columns, as pairs of float64, with a bound on the absolute error.

A product of values of at most 24 bits is exact in float64; of others, Dekker's gives the rest. With a power
of two s >= 2·n·max|p| for n products, (p+s)-s is p to a multiple of s·2⁻⁵³: those parts add up exactly, in
any order, and the rest is at most s·2⁻⁵³. Errors are absolute, for sums may cancel.

Sources: Dekker 1971, "A floating-point technique for extending the available precision"; Rump, Ogita and
Oishi 2008, "Accurate floating-point summation".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import product

import numpy as np

from wnconvert.numerics.sums import UNIT
from wnconvert.tensors.blocks import Array, Floats, scratch, shares

__all__ = [
    "RUN",
    "TINY",
    "Dots",
    "Pairs",
    "along_rows",
    "extracted",
    "extracted_of_any",
    "of_pieces",
    "pieces",
    "rest_of_products",
    "rough",
]


#: Products that are added up at once: with more, the bound on the rest of the sum would grow.
RUN = 1 << 13
#: Terms of a product that is rounded in each addition.
_DOT = 512
_ONES = np.ones(RUN)
#: What a rounding below the range of float64 adds up to in a run, at most.
TINY = 2.0**-1040


@dataclass(slots=True)
class Pairs:
    """Numbers as high + low, each within its ``error``, which is absolute (infinite: not known)."""

    high: Floats
    low: Floats
    error: Floats

    @staticmethod
    def zeros(count: int) -> Pairs:
        """Zeros, to which terms are added."""
        return Pairs(np.zeros(count), np.zeros(count), np.zeros(count))

    def at(self, some: slice) -> Pairs:
        """Some of them, to which terms may be added."""
        return Pairs(self.high[some], self.low[some], self.error[some])

    def add(self, high: Floats, low: Floats, error: float) -> None:
        """Add such numbers: Knuth's sum, whose rest goes to the low parts."""
        have, rest = self.high, self.low
        total = have + high
        back = total - have
        more = low + ((have - (total - back)) + (high - back))
        rest += more
        have[...] = total
        self.error += error + (np.abs(more) + np.abs(rest)) * (2 * UNIT)

    def interval(self, at: int) -> tuple[Fraction, Fraction]:
        """A lower and an upper bound on number ``at``."""
        middle = Fraction(float(self.high[at])) + Fraction(float(self.low[at]))
        return middle - (slack := Fraction(float(self.error[at]))), middle + slack


#: Adds to pairs the sums of products of a block with factors, given the largest magnitude in it.
Dots = Callable[[Array, Floats, float, Pairs], None]


def along_rows(values: Array, factors: Floats) -> bool:
    """Whether factors are those of the elements of a row, and sums those of rows."""
    return factors.shape == (values.shape[0], 1, values.shape[2])


@lru_cache(maxsize=64)
def pieces(shape: tuple[int, int, int]) -> tuple[tuple[slice, slice, slice], ...]:
    """The slabs, rows and inner elements of pieces of a block, of at most ``RUN`` in rows and columns.

    >>> pieces((1, 2, 10_000))[:2]
    ((slice(0, 1, None), slice(0, 2, None), slice(0, 8192, None)), \
(slice(0, 1, None), slice(0, 2, None), slice(8192, 10000, None)))
    """
    found = []
    for run, (slabs, rows, inner), _ in shares(shape):
        slab, rest = divmod(run.start, shape[1] * shape[2])
        row, first = divmod(rest, shape[2])
        for by, at in product(range(0, rows, RUN), range(0, inner, RUN)):
            its_rows = slice(row + by, row + min(by + RUN, rows))
            found.append(
                (slice(slab, slab + slabs), its_rows, slice(first + at, first + min(at + RUN, inner)))
            )
    return tuple(found)


def rough(x: Floats, factors: Floats, top: float, found: Pairs) -> None:
    """Add Σ x·factor, within the roundings of so many additions."""
    slabs, count, inner = x.shape
    rows = along_rows(x, factors)
    if rows:
        sums = np.zeros(count)
        for run in (slice(first, first + _DOT) for first in range(0, inner, _DOT)):
            dots = np.matmul(x[:, :, run], factors[:, 0, run, None])
            sums += np.add.reduce(dots[..., 0], axis=0)
    else:
        sums = np.matmul(factors[:, :, 0], x).reshape(-1)
    terms = slabs * (min(inner, _DOT) + inner // _DOT + 1) if rows else count
    size = float(np.max(np.sum(np.abs(factors), axis=(0, 2) if rows else 1), initial=0.0))
    found.add(sums, np.zeros(len(sums)), (terms + 2) * UNIT * top * size * 1.01)


def extracted(x: Floats, factors: Floats, top: float, found: Pairs) -> None:
    """Add Σ x·factor of values of at most 24 bits. ``x`` is overwritten."""
    most, rows = top * float(np.max(np.abs(factors), initial=0.0)), along_rows(x, factors)
    _add_parts(np.multiply(x, factors, out=x), None, most, found, rows=rows)


def extracted_of_any(x: Floats, factors: Floats, rest: Floats | None, top: float, found: Pairs) -> None:
    """Add Σ x·(factors + rest) of any values."""
    products = x * factors
    lost = rest_of_products(x, factors, products)
    if rest is not None:
        lost += x * rest
    most = top * float(np.max(np.abs(factors), initial=0.0))
    _add_parts(products, lost, most, found, rows=along_rows(x, factors))


def of_pieces(values: Array, factors: Floats) -> Iterator[tuple[Array, Floats, slice]]:
    """Pieces of a block, their factors, and where their sums belong."""
    rows, inner = along_rows(values, factors), values.shape[2]
    for slabs, its, part in pieces(values.shape):
        if rows:
            yield values[slabs, its, part], factors[slabs, :, part], its
        else:
            at = slice(slabs.start * inner + part.start, (slabs.stop - 1) * inner + part.stop)
            yield values[slabs, its, part], factors[:, its], at


def _add_parts(p: Floats, lost: Floats | None, most: float, found: Pairs, *, rows: bool) -> None:
    """Add the sums of products, and of what they lost, along rows or columns of a piece."""
    slabs, count, inner = p.shape
    terms = slabs * inner if rows else count
    extractor = 2.0 ** (math.frexp(most)[1] + math.ceil(math.log2(terms)) + 1)
    q = scratch("extract", p.shape, np.float64)
    np.add(p, extractor, out=q)
    np.subtract(q, extractor, out=q)
    np.subtract(p, q, out=p)
    small = extractor * UNIT
    if lost is not None:
        np.add(p, lost, out=p)
        small += float(np.max(np.abs(lost)))
    error = terms * (terms + 6) * UNIT * small * 1.01 + (0.0 if lost is None else terms * TINY)
    found.add(_added(q, rows=rows), _added(p, rows=rows), error)


def _added(x: Floats, *, rows: bool) -> Floats:
    """Sums of a piece's rows, or of its columns; exact in any order, or within as many roundings as terms."""
    if rows:
        sums: Floats = np.matmul(x, _ONES[: x.shape[2]])
        return np.asarray(np.add.reduce(sums, axis=0), np.float64)
    columns: Floats = np.matmul(_ONES[: x.shape[1]], x)
    return columns.reshape(-1)


def _halves(x: Floats) -> tuple[Floats, Floats]:
    """The upper 26 bits, and the rest."""
    x = np.ascontiguousarray(x)
    upper = (x.view(np.int64) & np.int64(-(1 << 27))).view(np.float64)
    return upper, x - upper


def rest_of_products(x: Floats, y: Floats, product: Floats) -> Floats:
    """What rounding took from products, within 2⁻¹⁰² of them: Dekker's."""
    (a, b), (c, d) = _halves(x), _halves(y)
    lost: Floats = ((a * c - product) + a * d + b * c) + b * d
    return lost
