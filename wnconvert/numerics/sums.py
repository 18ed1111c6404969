"""Sums of squares: fast with a bound on the error, accurate to 70 bits, or exact.

Source: Rump, Ogita and Oishi 2008, "Accurate floating-point summation" (the error-free extraction of
``accurate_sums``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from wnconvert.tensors.blocks import Array, Floats, scratch

__all__ = [
    "UNIT",
    "Sums",
    "Totals",
    "Way",
    "accurate_sums",
    "careful_sums",
    "end_to_end",
    "exact_sum",
    "fast_sums",
    "merge",
]


#: The unit roundoff of float64.
UNIT = 2.0**-53
#: Elements of a dot product: longer ones leave more values next to a midpoint, shorter ones are slower.
_DOT = 128
#: Rows shorter than this are summed column by column.
_SHORT = 32


@dataclass(slots=True)
class Sums:
    """Σv² of each row as (high + low)·4^exponent, with a bound on the relative error.

    A row with NaN or infinities has these in ``high``.
    """

    high: Floats
    low: Floats
    exponent: NDArray[np.int32]
    error: float

    def root(self) -> Floats:
        """√(high + low), within 1 ulp, without the exponent."""
        return np.sqrt(self.high)

    def at(self, rows: slice) -> Sums:
        """The sums of some of the rows."""
        return Sums(self.high[rows], self.low[rows], self.exponent[rows], self.error)

    def flat(self) -> Sums:
        """The same without exponents, which values of at most 24 bits can do without."""
        high, low = (np.ldexp(each, 2 * self.exponent) for each in (self.high, self.low))
        return Sums(high, low, np.zeros(len(high), np.int32), self.error)

    def bounds(self, at: int) -> tuple[Fraction, Fraction]:
        """A lower and an upper bound on the exact sum of row ``at``."""
        total = Fraction(float(self.high[at])) + Fraction(float(self.low[at]))
        total *= Fraction(4) ** int(self.exponent[at])
        return total * (1 - Fraction(self.error)), total * (1 + Fraction(self.error))


def _adds(slabs: int, inner: int) -> float:
    """Longest chain of additions in ``_row_sum``: its relative error for positive terms is at most this·2⁻⁵³.

    numpy sums a contiguous axis pairwise: runs of at most 128 in 8 accumulators (15 additions, 3 to
    combine, 7 left over), then a binary tree; one more per 8,192, should it ever be buffered. Slabs are
    added four at a time: at most 7 additions a level, ⌈log₄⌉ levels.
    """
    return 32 + math.log2(inner) + inner / 8192 + 7 * math.ceil(math.log(slabs, 4) + 1)


def _row_sum(x: Array) -> Floats:
    """Sums over the first and last axis, as a tree. ``x`` is overwritten."""
    _, rows, inner = x.shape
    flat = _slab_sum(x)
    if inner == 1:
        return np.array(flat, np.float64)
    return np.asarray(np.add.reduce(flat.reshape(rows, inner), axis=1), np.float64)


def _slab_sum(x: Array) -> Array:
    """The sum of all slabs, flat, as a tree of four branches. ``x`` is overwritten."""
    slabs = len(x)
    flat = x.reshape(slabs, -1)
    while slabs > 1:
        step = max(slabs // 4, 1)
        whole = slabs // step * step
        sums = flat[:step]
        for at in range(step, whole, step):
            sums += flat[at : at + step]
        if whole < slabs:
            sums[: slabs - whole] += flat[whole:slabs]
        slabs = step
    first: Array = flat[0]
    return first


def fast_sums(x: Floats) -> Sums:
    """Σv² of values of at most 24 bits: squares are exact and in range, only the additions round.

    Long rows are sums of dot products, in whatever order BLAS adds: n terms that are not negative are off
    by at most n - 1 roundings in any order (Higham 2002, "Accuracy and stability of numerical algorithms",
    4.2).
    """
    slabs, rows, inner = x.shape
    if inner < _SHORT:
        high, adds = _short_sums(x)
    else:
        parts, rest = divmod(inner, _DOT)
        high, adds = np.zeros(rows), slabs * (parts + 1) + _DOT
        if parts:
            dots = _dots(x[:, :, : inner - rest].reshape(slabs, rows, parts, _DOT))
            np.add.reduce(dots, axis=(0, 2), out=high)
        if rest:
            high += np.add.reduce(_dots(x[:, :, inner - rest :]), axis=0)
    return Sums(high, np.zeros(rows), np.zeros(rows, np.int32), adds * UNIT)


def _dots(x: Floats) -> Floats:
    """Σx² over the last axis."""
    dots: Floats = np.matmul(x[..., None, :], x[..., None])[..., 0, 0]
    return dots


def _short_sums(x: Floats) -> tuple[Floats, float]:
    """Σv² of rows that are short in each slab, and the longest chain of additions."""
    slabs, rows, inner = x.shape
    squares = scratch("squares", x.shape, np.float64)
    np.multiply(x, x, out=squares)
    terms = _slab_sum(squares).reshape(rows, inner)
    high = terms[:, 0].copy()
    for at in range(1, inner):
        high += terms[:, at]
    return high, inner + 7 * math.ceil(math.log(slabs, 4) + 1)


def careful_sums(x: Floats) -> Sums:
    """Σv² of values of at most 24 bits to more than 60 bits.

    Squares p are exact. With a power of two s >= 2·N·max p for N terms, (p+s)-s is p to a multiple of
    s·2⁻⁵²: those parts add up exactly, in any order, and the rest is at most s·2⁻⁵³. Where a row is too
    small for the s of all of them, ``accurate_sums`` scales it.
    """
    slabs, _, inner = x.shape
    terms = slabs * inner
    p, q = (scratch(use, x.shape, np.float64) for use in ("squares", "extract"))
    np.multiply(x, x, out=p)
    top = float(np.maximum.reduce(p, axis=None))
    if not 0 < top < math.inf:
        return accurate_sums(x).flat()
    extractor = 2.0 ** (math.frexp(top)[1] + math.ceil(math.log2(terms)) + 1)
    np.add(p, extractor, out=q)
    np.subtract(q, extractor, out=q)
    np.subtract(p, q, out=p)
    high, low = _row_sum(q), _row_sum(p)
    off = terms * extractor * UNIT * _adds(slabs, inner) * UNIT
    least = float(np.minimum.reduce(high))
    if off > least * 2.0**-64:
        return accurate_sums(x).flat()
    sums = Sums(high, low, np.zeros(len(high), np.int32), 2.0**-63)
    _normalize(sums)
    return sums


def accurate_sums(x: Floats) -> Sums:
    """Σv² of any values to about 70 bits.

    Each row is scaled by a power of two to a largest element in [½, 1). Squares p = h² + (v-h)(v+h), h the
    upper 26 bits of v, so that h² is exact. With a power of two s >= 2N for N terms, (p+s)-s is p
    to a multiple of s·2⁻⁵²: those parts add up exactly, in any order, and the rest is below s·2⁻⁵³.
    """
    slabs, _, inner = x.shape
    terms = slabs * inner
    p, h, q = (scratch(use, x.shape, np.float64) for use in ("squares", "upper", "extract"))
    np.abs(x, out=p)
    top = np.maximum.reduce(np.maximum.reduce(p, axis=0), axis=1)
    exponent = np.frexp(top)[1]
    half = exponent // 2  # 2^1074 is not a float64, but a product of two
    np.multiply(x, np.ldexp(1.0, -half)[:, None], out=p)
    np.multiply(p, np.ldexp(1.0, half - exponent)[:, None], out=p)
    np.bitwise_and(p.view(np.int64), np.int64(-(1 << 27)), out=h.view(np.int64))
    np.subtract(p, h, out=q)
    np.add(p, h, out=p)
    np.multiply(q, p, out=q)
    low = _row_sum(q)
    np.multiply(h, h, out=p)
    extractor = 2.0 ** (math.ceil(math.log2(terms)) + 1)
    np.add(p, extractor, out=q)
    np.subtract(q, extractor, out=q)
    np.subtract(p, q, out=p)
    high = _row_sum(q)
    low += _row_sum(p)
    # The rest is N terms below 2⁻⁵³·s with s <= 4N, against a sum of at least 1/4; the lower products are at
    # most 2⁻²⁵ of the sum, each within 2 roundings.
    error = _adds(slabs, inner) * (terms**2 * 2.0**-102 + 2.0**-76)
    finite = np.isfinite(top)
    zero = top == 0
    high, low = np.where(finite, high, top), np.where(finite, low, 0.0)
    sums = Sums(high, low, np.where(zero, -1100, exponent), error)
    _normalize(sums)
    return sums


def _normalize(sums: Sums) -> None:
    high = sums.high + sums.low
    low = sums.low - (high - sums.high)
    sums.high, sums.low = high, np.where(np.isfinite(high), low, 0.0)


def end_to_end(parts: Sequence[Sums]) -> Sums:
    """The sums of rows, of which each part has some, in their order."""
    if len(parts) == 1:
        return parts[0]
    return Sums(
        np.concatenate([part.high for part in parts]),
        np.concatenate([part.low for part in parts]),
        np.concatenate([part.exponent for part in parts]),
        max(part.error for part in parts),
    )


def merge(into: Sums, rows: slice, part: Sums) -> None:
    """Add the sums of a block to those of all rows."""
    exponent = np.maximum(into.exponent[rows], part.exponent)
    old, new = 2 * (into.exponent[rows] - exponent), 2 * (part.exponent - exponent)
    a, b = np.ldexp(into.high[rows], old), np.ldexp(part.high, new)
    high = a + b
    back = high - a
    rest = (a - (high - back)) + (b - back)
    rest = rest + np.ldexp(into.low[rows], old) + np.ldexp(part.low, new)
    total = Sums(high, np.where(np.isfinite(high), rest, 0.0), exponent, 0.0)
    _normalize(total)
    into.high[rows], into.low[rows], into.exponent[rows] = total.high, total.low, total.exponent
    into.error = max(into.error, part.error) + 2.0**-100


#: A way to the sums of the rows of a block (slabs, rows, inner).
Way = Callable[[Array], Sums]


class Totals:
    """Sums of rows of which some terms come with every block, as ``fast_sums`` gives them.

    What an addition loses is added up beside the sum (Knuth's TwoSum). Each of the n losses is at most 2⁻⁵³
    of the sum and added with n roundings at most.
    """

    def __init__(self, count: int) -> None:
        self._high, self._low = np.zeros(count), np.zeros(count)
        self._error, self._parts = 0.0, 0

    def add(self, rows: slice, part: Sums) -> None:
        """Add the sums of a block to those of all rows."""
        have, low = self._high[rows], self._low[rows]
        total = have + part.high
        back = total - have
        low += part.low
        low += part.high - back
        np.subtract(total, back, out=back)
        low += np.subtract(have, back, out=back)
        have[...] = total
        self._error, self._parts = max(self._error, part.error), self._parts + 1

    def put(self, rows: slice, part: Sums) -> None:
        """Take the sums of rows that come once."""
        self._high[rows], self._low[rows] = part.high, part.low
        self._error, self._parts = max(self._error, part.error), max(self._parts, 1)

    def sums(self) -> Sums:
        """The sums of all rows. This is the end: the arrays are given away."""
        self._low[~np.isfinite(self._high)] = 0
        error = self._error + (self._parts * UNIT) ** 2 * 2 + UNIT**2
        sums = Sums(self._high, self._low, np.zeros(len(self._high), np.int32), error)
        _normalize(sums)  # the root is that of the high part alone
        return sums


def exact_sum(x: Floats) -> Fraction:
    """Σv² of a finite 1-D row exactly: limbs of 18 bits, their products added up per exponent."""
    total = 0
    low = -1074
    for at in range(0, len(x), 1 << 16):  # 2¹⁶ products below 2³⁶ add up exactly in float64
        mantissa, exponent = np.frexp(np.abs(x[at : at + (1 << 16)]))
        digits = np.ldexp(mantissa, 53).astype(np.int64)
        place = exponent - low
        limbs = (digits & 0x3FFFF, (digits >> 18) & 0x3FFFF, digits >> 36)
        for i in range(3):
            for j in range(3):
                counts = np.bincount(place, weights=(limbs[i] * limbs[j]).astype(np.float64))
                for power in np.flatnonzero(counts).tolist():
                    total += int(counts[power]) << (2 * power + 18 * (i + j))
    return total * Fraction(4) ** (low - 53)
