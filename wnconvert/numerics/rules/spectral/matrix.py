"""mat(w)·v and mat(w)ᵀ·u of a tensor that is read block by block: to more than 60 bits, or exactly.

Sums are pairs of float64, with a bound on the *absolute* error, for they may cancel: see ``kernel.dots``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from wnconvert.frozen import dataclass
from wnconvert.numerics.kernel.choice import kernel, largest_code
from wnconvert.numerics.kernel.dots import (
    RUN,
    TINY,
    Dots,
    Pairs,
    extracted_of_any,
    of_pieces,
    rest_of_products,
)
from wnconvert.numerics.kernel.plain import keeps_subnormals
from wnconvert.numerics.rounding import FLOAT_FORMATS
from wnconvert.numerics.sums import UNIT
from wnconvert.tensors.blocks import Array, Floats, Read, blocks, box
from wnconvert.tensors.tree import Dim, rows_of

__all__ = ["Exact", "Matrix", "bilinear", "exactly", "squared"]


#: Bytes of a matrix that is held as a whole.
_WHOLE_BYTES = 64 << 20
#: Vectors along axes shorter than this are not what a block is multiplied by first.
_SHORT = 512
#: Numbers between these can be multiplied thrice: no float64 product is out of range, but for tiny ones.
_LEAST, _MOST = 2.0**-300, 2.0**300


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
        self.top = 0.0

    @property
    def is_long(self) -> bool:
        """Whether blocks are better multiplied by a vector along the columns than along the rows."""
        return self.inner >= _SHORT

    def roughly_times(self, u: Floats, v: Floats) -> tuple[Floats, Pairs]:
        """mat·v and u, or matᵀ·u and v: what is faster, and enough for results of few digits."""
        if self.is_long:
            return u, self._along_rows(v, None, kernel().dots)
        return v, self._along_columns(u, kernel().dots)

    def accurately_times(self, u: Floats, v: Floats) -> tuple[Floats, Pairs]:
        """The same to more than 60 bits."""
        return (u, self.times(v)) if self.is_long else (v, self.transposed_times(u))

    def times(self, v: Floats) -> Pairs:
        """mat·v: a number for each row."""
        return self._along_rows(v, None, kernel().careful_dots)

    def times_pairs(self, v: Pairs) -> Pairs:
        """mat·v of a v that is not exact: a number for each row."""
        found = self._along_rows(v.high, v.low, kernel().careful_dots)
        found.error += self.top * float(np.sum(v.error)) * 1.01
        return found

    def transposed_times(self, u: Floats) -> Pairs:
        """matᵀ·u: a number for each column."""
        return self._along_columns(u, kernel().careful_dots)

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
        for values, at in self._blocks():
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
        for values, at in self._blocks():
            total += (
                values.astype(np.float64) * columns[at.vector(rows=True)] * rows[at.vector(rows=False)]
            ).sum()
        return total

    def _along_rows(self, v: Floats, low: Floats | None, way: Dots) -> Pairs:
        shape = (self.slabs, 1, self.inner)
        rest = None if low is None else low.reshape(shape)
        return self._sums(v.reshape(shape), rest, Pairs.zeros(self.rows), way, rows=True)

    def _along_columns(self, u: Floats, way: Dots) -> Pairs:
        return self._sums(u.reshape(1, self.rows, 1), None, Pairs.zeros(self.columns), way, rows=False)

    def _sums(self, factors: Floats, rest: Floats | None, found: Pairs, way: Dots, *, rows: bool) -> Pairs:
        """Add the sums of products with factors + rest of all columns or rows, in that way if it can."""
        is_short = rest is None and bool((factors.astype(np.float32) == factors).all()) and keeps_subnormals()
        most = float(np.max(np.abs(factors), initial=0.0))
        for values, at in self._blocks():
            its, part, top = factors[at.vector(rows=rows)], found.at(at.out(rows=rows)), _top(values)
            self.top = max(self.top, top)
            if not (_LEAST < top * most < _MOST and _LEAST < top < _MOST and most < _MOST):
                if top * most != 0 or not math.isfinite(top * most):
                    part.error[...] = np.inf
            elif is_short and values.dtype != np.float64:
                way(values, its, top, part)
            else:
                small = np.zeros_like(its) if rest is None else rest[at.vector(rows=rows)]
                _add_any(values, its, small, top, part)
        return found

    def _exact(self, vector: Exact, count: int, *, rows: bool) -> Exact:
        found = Exact(np.zeros(count, object), 0)
        factors = vector.numbers.reshape((self.slabs, 1, self.inner) if rows else (1, self.rows, 1))
        for values, at in self._blocks():
            start = at.out(rows=rows).start
            for piece, its, to in of_pieces(values, factors[at.vector(rows=rows)]):
                x = exactly(piece.astype(np.float64))
                sums = (x.numbers * its).sum(axis=(0, 2) if rows else 1).reshape(-1)
                there = slice(start + to.start, start + to.stop)
                found = found.plus(there, Exact(sums, x.exponent + vector.exponent))
        return found

    def _blocks(self) -> Iterator[tuple[Array, _Place]]:
        """The values, block by block, and where they lie."""
        for block in blocks(*self.cut):
            slab, rest = divmod(block.start, self.rows * self.inner)
            yield self.read(block), _Place(self.inner, slab, *divmod(rest, self.inner), block.shape)


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
    form, code = FLOAT_FORMATS[values.dtype.name], largest_code(values)
    return float(form.value(code)) if code < form.inf else math.inf


def _add_any(values: Array, factors: Floats, rest: Floats, top: float, found: Pairs) -> None:
    """Add the dots of a block with factors + rest of any digits."""
    for (piece, its, at), (_, small, _) in zip(
        of_pieces(values, factors), of_pieces(values, rest), strict=True
    ):
        extracted_of_any(piece.astype(np.float64), its, small, top, found.at(at))


def bilinear(weights: Floats, numbers: Pairs) -> tuple[Fraction, Fraction] | None:
    """Bounds on Σ weight·number, if they are known.

    >>> three = Pairs(np.array([1.0, 2.0]), np.zeros(2), np.zeros(2))
    >>> least, most = bilinear(np.array([1.0, 1.0]), three)
    >>> float(least), float(most)
    (3.0, 3.0)
    """
    total = slack = Fraction(0)
    for first in range(0, len(weights), RUN):
        w, high, low, error = (
            each[first : first + RUN] for each in (weights, numbers.high, numbers.low, numbers.error)
        )
        products = w * high
        most = float(np.max(np.abs(products), initial=0.0))
        off = float(np.sum(np.abs(w) * (error + np.abs(low) * 2.0**-52))) * 1.01
        if not (most < _MOST**2 and off < _MOST**2):
            return None
        if most:
            rest = rest_of_products(w, high, products) + w * low
            extractor = 2.0 ** (math.frexp(most)[1] + math.ceil(math.log2(len(w))) + 1)
            upper = (products + extractor) - extractor
            rest += products - upper
            total += Fraction(float(upper.sum())) + Fraction(float(rest.sum()))
            off += len(w) * ((len(w) + 6) * UNIT * float(np.max(np.abs(rest))) + most * 2.0**-100 + TINY)
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
