"""mat(w)·v and mat(w)ᵀ·u of a tensor that is read block by block: to more than 60 bits, or exactly.

A product of values of at most 24 bits is exact in float64; of others, Dekker's gives the rest. With a power
of two s >= 2·n·max|p| for n products, (p+s)-s is p to a multiple of s·2⁻⁵³: those parts add up exactly, in
any order, and the rest is at most s·2⁻⁵³. So sums are pairs of float64, with a bound on the *absolute* error,
for they may cancel.

Sources: Dekker 1971, "A floating-point technique for extending the available precision"; Rump, Ogita and
Oishi 2008, "Accurate floating-point summation".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import numpy as np

from wnconvert.numerics.kernel.plain import keeps_subnormals, loaded, power_of
from wnconvert.numerics.rounding import FLOAT_FORMATS
from wnconvert.numerics.sums import UNIT
from wnconvert.tensors.blocks import Array, Floats, Read, blocks, box, scratch, shares
from wnconvert.tensors.tree import Dim, rows_of

__all__ = ["Exact", "Matrix", "Pairs", "bilinear", "exactly", "squared"]


#: Products that are added up at once: with more, the bound on the rest of the sum would grow.
_RUN = 1 << 13
#: Terms of a product that is rounded in each addition.
_DOT = 512
_ONES = np.ones(_RUN)
#: Bytes of a matrix that is held as a whole.
_WHOLE_BYTES = 64 << 20
#: Vectors along axes shorter than this are not what a block is multiplied by first.
_SHORT = 32
#: Numbers between these can be multiplied thrice: no float64 product is out of range, but for tiny ones.
_LEAST, _MOST = 2.0**-300, 2.0**300
#: What all roundings of numbers below the range of float64 add up to, at most.
_TINY = 2.0**-1040


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

    def add(self, at: slice, high: Floats, low: Floats, error: float) -> None:
        """Add such numbers to some of these: Knuth's sum, whose rest goes to the low parts."""
        have, rest = self.high[at], self.low[at]
        total = have + high
        back = total - have
        more = low + ((have - (total - back)) + (high - back))
        rest += more
        have[...] = total
        self.error[at] += error + (np.abs(more) + np.abs(rest)) * (2 * UNIT)

    def interval(self, at: int) -> tuple[Fraction, Fraction]:
        """A lower and an upper bound on number ``at``."""
        middle = Fraction(float(self.high[at])) + Fraction(float(self.low[at]))
        return middle - (slack := Fraction(float(self.error[at]))), middle + slack


@dataclass(frozen=True, slots=True)
class Exact:
    """Numbers times 2^exponent, exactly: an array of Python's integers."""

    numbers: Array
    exponent: int

    def plus(self, at: slice, other: Exact) -> Exact:
        """These, with others added to some of them."""
        low = min(self.exponent, other.exponent)
        numbers = self.numbers << (self.exponent - low)
        numbers[at] += other.numbers << (other.exponent - low)
        return Exact(numbers, low)

    def fractions(self) -> list[Fraction]:
        """The same as fractions."""
        return [Fraction(number) * Fraction(2) ** self.exponent for number in self.numbers.tolist()]

    def dot(self, other: Exact) -> Fraction:
        """The sum of products with other numbers."""
        total = sum(a * b for a, b in zip(self.numbers.tolist(), other.numbers.tolist(), strict=True))
        return Fraction(total) * Fraction(2) ** (self.exponent + other.exponent)


def exactly(x: Floats) -> Exact:
    """Finite values exactly, in their shape.

    >>> exactly(np.array([0.75, -4.0]))
    Exact(numbers=array([3, -16], dtype=object), exponent=-2)
    """
    mantissas, exponents = np.frexp(x)
    numbers = np.ldexp(mantissas, 53).astype(np.int64)
    zeros = np.frexp((numbers & -numbers).astype(np.float64))[1] - 1  # trailing
    exponents = exponents - 53 + np.maximum(zeros, 0)
    low = int(exponents.min(where=numbers != 0, initial=2000))
    shifts = np.where(numbers != 0, exponents - low, 0).astype(object)
    return Exact((numbers >> np.maximum(zeros, 0)).astype(object) << shifts, low)


class Matrix:
    """mat(w): w's axis ``dim`` are the rows, all others, in their order, the columns.

    ``top`` is the largest |w| that a reading saw, not finite if one of them is not.
    """

    def __init__(self, read: Read, shape: tuple[int, ...], dim: int, dtype: str, limit: int) -> None:
        self.read = read
        self.shape, self.dim = shape, dim
        self.slabs, self.rows, self.inner = box(shape, dim)
        self.columns = self.slabs * self.inner
        self.cut = (shape, dim, FLOAT_FORMATS[dtype].dtype.itemsize, limit)
        self.power = power_of(dtype) if keeps_subnormals() else 0
        self.top = 0.0

    @property
    def is_long(self) -> bool:
        """Whether blocks are better multiplied by a vector along the columns than along the rows."""
        return self.inner >= _SHORT

    def roughly_times(self, u: Floats, v: Floats) -> tuple[Floats, Pairs]:
        """mat·v and u, or matᵀ·u and v: what is faster, within the roundings of so many additions."""
        rows = self.is_long
        vector = v.reshape(self.slabs, 1, self.inner) if rows else u.reshape(1, self.rows, 1)
        found = Pairs.zeros(self.rows if rows else self.columns)
        for values, at, top in self._pieces():
            self.top = max(self.top, top)
            slabs, count, inner = values.shape
            terms = slabs * (_DOT + inner // _DOT + 1) if rows else count
            factors = vector[at.vector(rows=rows)]
            x = loaded(values, power := self.power if values.dtype != np.float64 else 0)
            if rows:
                sums = np.zeros(count)
                for run in (slice(first, first + _DOT) for first in range(0, inner, _DOT)):
                    dots = np.matmul(x[:, :, run], factors[:, 0, run, None])
                    sums += np.add.reduce(dots[..., 0], axis=0)
            else:
                sums = np.matmul(factors[:, :, 0], x).reshape(-1)
            size = float(np.max(np.sum(np.abs(factors), axis=(0, 2) if rows else 1), initial=0.0))
            error = (terms + 2) * UNIT * top * size * 1.01
            found.add(at.out(rows=rows), sums * 2.0**power, np.zeros(len(sums)), error)
        return (u if rows else v), found

    def times(self, v: Floats) -> Pairs:
        """mat·v: a number for each row."""
        return self._sums(v.reshape(self.slabs, 1, self.inner), None, Pairs.zeros(self.rows), rows=True)

    def times_pairs(self, v: Pairs) -> Pairs:
        """mat·v of a v that is not exact: a number for each row."""
        high, low = (each.reshape(self.slabs, 1, self.inner) for each in (v.high, v.low))
        found = self._sums(high, low, Pairs.zeros(self.rows), rows=True)
        found.error += self.top * float(np.sum(v.error)) * 1.01
        return found

    def transposed_times(self, u: Floats) -> Pairs:
        """matᵀ·u: a number for each column."""
        return self._sums(u.reshape(1, self.rows, 1), None, Pairs.zeros(self.columns), rows=False)

    def exact_times(self, v: Exact) -> Exact:
        """mat·v."""
        return self._exact(v, self.rows, rows=True)

    def exact_transposed_times(self, u: Exact) -> Exact:
        """matᵀ·u."""
        return self._exact(u, self.columns, rows=False)

    def whole(self) -> Floats | None:
        """The matrix as float64, if it is not too large."""
        if 8 * self.rows * self.columns > _WHOLE_BYTES:
            return None
        box = np.empty((self.slabs, self.rows, self.inner))
        for values, at, _ in self._pieces():
            box[at.slabs, at.rows, at.inner] = values
        return box.transpose(1, 0, 2).reshape(self.rows, self.columns)

    def exact_squares(self, dim: Dim) -> list[Fraction]:
        """The sums of squares of the tensor's rows along ``dim``."""
        found = Exact(np.zeros(rows_of(self.shape, dim), object), 0)
        for block in blocks(self.cut[0], dim, *self.cut[2:]):
            x = exactly(self.read(block).astype(np.float64))
            found = found.plus(block.rows, Exact((x.numbers**2).sum(axis=(0, 2)), 2 * x.exponent))
        return found.fractions()

    def plainly(self, u: Floats, v: Floats) -> np.float64:
        """uᵀ·mat·v as float64 has it, with NaN and infinities."""
        total = np.float64(0)
        rows, columns = u.reshape(1, -1, 1), v.reshape(self.slabs, 1, self.inner)
        for values, at, _ in self._pieces():
            total += (
                values.astype(np.float64) * columns[at.vector(rows=True)] * rows[at.vector(rows=False)]
            ).sum()
        return total

    def _sums(self, vector: Floats, low: Floats | None, found: Pairs, *, rows: bool) -> Pairs:
        is_short = bool((vector.astype(np.float32) == vector).all()) and low is None
        most = float(np.max(np.abs(vector), initial=0.0))
        for values, at, top in self._pieces():
            narrow = is_short and values.dtype != np.float64
            power = self.power if values.dtype != np.float64 else 0
            self.top = max(self.top, top)
            if not (_LEAST < top * most < _MOST and _LEAST < top < _MOST and most < _MOST):
                if top * most != 0 or not math.isfinite(top * most):
                    found.error[at.out(rows=rows)] = np.inf
                continue
            factors = vector[at.vector(rows=rows)]
            x = loaded(values, power)
            small = None if low is None else low[at.vector(rows=rows)]
            dots = _dots(x, factors, small, top * most * 2.0**-power, narrow=narrow, rows=rows)
            scale = 2.0**power
            found.add(at.out(rows=rows), dots[0] * scale, dots[1] * scale, dots[2] * scale)
        return found

    def _exact(self, vector: Exact, count: int, *, rows: bool) -> Exact:
        found = Exact(np.zeros(count, object), 0)
        shape = (self.slabs, 1, self.inner) if rows else (1, self.rows, 1)
        factors = vector.numbers.reshape(shape)
        for values, at, _ in self._pieces():
            x = exactly(values.astype(np.float64))
            products = (x.numbers * factors[at.vector(rows=rows)]).sum(axis=(0, 2) if rows else 1)
            found = found.plus(at.out(rows=rows), Exact(products.reshape(-1), x.exponent + vector.exponent))
        return found

    def _pieces(self) -> Iterator[tuple[Array, _Place, float]]:
        """Pieces of the values, where they lie, and the largest magnitude there."""
        for block in blocks(*self.cut):
            values = self.read(block)
            flat, top = values.reshape(-1), _top(values)
            for run, (slabs, rows, inner), _ in shares(block.shape):
                part = flat[run].reshape(slabs, rows, inner)
                slab, rest = divmod(block.start + run.start, self.rows * self.inner)
                row, column = divmod(rest, self.inner)
                for by, first in product(range(0, rows, _RUN), range(0, inner, _RUN)):
                    piece = part[:, by : by + _RUN, first : first + _RUN]
                    yield piece, _Place(self.inner, slab, row + by, column + first, piece.shape), top


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a piece lies in a matrix: its first slab, row and inner element, and its shape."""

    width: int
    slab: int
    row: int
    first: int
    shape: tuple[int, int, int]

    @property
    def slabs(self) -> slice:
        """Its slabs among all."""
        return slice(self.slab, self.slab + self.shape[0])

    @property
    def rows(self) -> slice:
        """Its rows among all."""
        return slice(self.row, self.row + self.shape[1])

    @property
    def inner(self) -> slice:
        """Its inner elements among all."""
        return slice(self.first, self.first + self.shape[2])

    def vector(self, *, rows: bool) -> tuple[slice, slice, slice]:
        """What it is multiplied by, among the elements of a vector along the columns, or along the rows."""
        every = slice(None)
        return (self.slabs, every, self.inner) if rows else (every, self.rows, every)

    def out(self, *, rows: bool) -> slice:
        """Where its sums belong, among those of all rows, or of all columns."""
        slabs, _, inner = self.shape
        if rows:
            return self.rows
        start = self.slab * self.width + self.first
        return slice(start, start + slabs * inner)


def _top(values: Array) -> float:
    """The largest of some |values|; infinite if one of them is not finite."""
    if values.dtype.itemsize == 2:
        form = FLOAT_FORMATS[values.dtype.name]
        codes = scratch("codes", values.shape, form.codes)
        np.bitwise_and(values.view(form.codes), np.uint16(0x7FFF), out=codes)
        code = int(np.maximum.reduce(codes, axis=None))
        return math.inf if code >= form.inf else float(form.value(code))
    top = max(float(np.maximum.reduce(values, axis=None)), -float(np.minimum.reduce(values, axis=None)))
    return math.inf if math.isnan(top) else top


def _dots(
    x: Floats, factors: Floats, rest: Floats | None, most: float, *, narrow: bool, rows: bool
) -> tuple[Floats, Floats, float]:
    """Σ x·(factors + rest) along rows or columns of a piece: high and low parts, and their error.

    No x·factor is more than ``most``. ``x`` is overwritten.
    """
    slabs, count, inner = x.shape
    terms = slabs * inner if rows else count
    extra, p, q = None, x, scratch("extract", x.shape, np.float64)
    if narrow:
        np.multiply(x, factors, out=p)
    else:
        p = x * factors
        extra = _lost(x, factors, p)
        if rest is not None:
            extra += x * rest
    extractor = 2.0 ** (math.frexp(most)[1] + math.ceil(math.log2(terms)) + 1)
    np.add(p, extractor, out=q)
    np.subtract(q, extractor, out=q)
    np.subtract(p, q, out=p)
    if extra is not None:
        np.add(p, extra, out=p)
    high, low = _added(q, rows=rows), _added(p, rows=rows)
    small = extractor * UNIT
    if extra is not None:
        small += float(np.max(np.abs(extra)))
    return high, low, terms * (terms + 6) * UNIT * small * 1.01 + (0.0 if narrow else terms * _TINY)


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


def _lost(x: Floats, y: Floats, product: Floats) -> Floats:
    """What rounding took from a product, within 2⁻¹⁰² of it: Dekker's."""
    (a, b), (c, d) = _halves(x), _halves(y)
    lost: Floats = ((a * c - product) + a * d + b * c) + b * d
    return lost


def bilinear(weights: Floats, numbers: Pairs) -> tuple[Fraction, Fraction] | None:
    """Bounds on Σ weight·number, if they are known.

    >>> three = Pairs(np.array([1.0, 2.0]), np.zeros(2), np.zeros(2))
    >>> least, most = bilinear(np.array([1.0, 1.0]), three)
    >>> float(least), float(most)
    (3.0, 3.0)
    """
    total = slack = Fraction(0)
    for first in range(0, len(weights), _RUN):
        w, high, low, error = (
            each[first : first + _RUN] for each in (weights, numbers.high, numbers.low, numbers.error)
        )
        products = w * high
        most = float(np.max(np.abs(products), initial=0.0))
        off = float(np.sum(np.abs(w) * (error + np.abs(low) * 2.0**-52))) * 1.01
        if not (most < _MOST**2 and off < _MOST**2):
            return None
        if most:
            rest = _lost(w, high, products) + w * low
            extractor = 2.0 ** (math.frexp(most)[1] + math.ceil(math.log2(len(w))) + 1)
            upper = (products + extractor) - extractor
            rest += products - upper
            total += Fraction(float(upper.sum())) + Fraction(float(rest.sum()))
            off += len(w) * ((len(w) + 6) * UNIT * float(np.max(np.abs(rest))) + most * 2.0**-100 + _TINY)
        slack += Fraction(off)
    return total - slack, total + slack


def squared(numbers: Pairs) -> tuple[Fraction, Fraction] | None:
    """Bounds on Σ number², if they are known."""
    parts = bilinear(numbers.high, numbers), bilinear(numbers.low, numbers)
    if parts[0] is None or parts[1] is None:
        return None
    size = np.abs(numbers.high) + np.abs(numbers.low) + numbers.error
    slack = Fraction(float(np.sum(size * numbers.error)) * 1.01)
    return parts[0][0] + parts[1][0] - slack, parts[0][1] + parts[1][1] + slack
