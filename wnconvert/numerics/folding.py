"""The fold: w = g·v/‖v‖, block by block, each value rounded once.

A contiguous v is seen as a box of A slabs, D rows and B inner elements, where D is the axis that is not
summed over (for the whole tensor, one row), so there are D norms. Boxes are processed block by block, so a
tensor never has to be in memory as a whole.

float32, float16 and bfloat16 results are the values *nearest* to the exact quotient, ties to even.
The float64 evaluation has a known bound on its error. If both ends of that interval round to the same value,
this is the result (Ziv's test); else (about one element in 2²¹) it is decided with integers:
w < m  ⇔  (g·v)² < m²·Σv².  float64 results are within 4 ulp.

Where v, g and w have at most 24 bits, blocks are worked on in pieces, as the ``kernel`` does; rows that are
zero, not finite or near the largest number are left to the ``Wide`` way, which takes any.

Sources: Salimans and Kingma 2016 (arXiv:1602.07868); ``torch._weight_norm``; Ziv 1991, "Fast evaluation
of elementary mathematical functions with correctly rounded last bit".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from wnconvert.errors import LayerError
from wnconvert.numerics.kernel.choice import block_sums, products
from wnconvert.numerics.kernel.interface import OpenElements
from wnconvert.numerics.kernel.plain import keeps_subnormals
from wnconvert.numerics.norms import RowSource, arithmetic, as_float64
from wnconvert.numerics.rounding import FLOAT_FORMATS, DTypeLike, name_of
from wnconvert.numerics.rows import RowReport, rows_where, runs
from wnconvert.numerics.scales import NarrowFactors, Scaling
from wnconvert.numerics.sums import Sums, accurate_sums
from wnconvert.numerics.wide import WideFactors, wide_products
from wnconvert.tensors.blocks import (
    BLOCK_BYTES,
    Array,
    Block,
    Read,
    RowValues,
    reader_of,
    scratch,
    shares,
    whole,
)
from wnconvert.tensors.tree import Dim, rows_of

__all__ = ["Folding", "fold_array", "fold_with_report"]


class Folding:
    """A fold in progress: ``blocks`` gives w block by block, then ``report`` describes the odd rows.

    ``read(block)`` gives v's elements as an array of ``block.shape`` that may be reused by the next call.
    ``g`` has one element for each row, in any shape: an array, or ``RowValues`` that are read as rows come.
    v is read once if rows are contiguous and fit a block, else twice. Every row is computed: zero rows of v
    give zeros; NaN and infinities follow IEEE 754.

    Raises ``LayerError`` if a dtype cannot be folded or g has another number of elements.

    >>> v = np.array([[3.0, 4.0]])
    >>> folding = Folding(lambda block: v[None], (1, 2), 0, np.array([10.0]), "float64", "float64")
    >>> [(block.start, w.tolist()) for block, w in folding.blocks()], folding.report().kept.count
    ([(0, [[[6.0, 8.0]]])], 0)
    """

    def __init__(  # noqa: PLR0917 -- the tensor, its magnitudes, the result's dtype
        self,
        read: Read,
        shape: tuple[int, ...],
        dim: Dim,
        g: Array | RowValues,
        v_dtype: DTypeLike,
        out_dtype: DTypeLike,
        *,
        limit: int = BLOCK_BYTES,
    ) -> None:
        self.g = g = g if isinstance(g, RowValues) else RowValues.of(g)
        if g.count != rows_of(shape, dim):
            raise LayerError(f"g {g.shape} does not fit v {shape} along dim {dim}")
        self.out = out = name_of(out_dtype)
        self.form = FLOAT_FORMATS[out]
        dtype = name_of(v_dtype)
        self.narrow = "float64" not in (dtype, name_of(g.dtype), out) and keeps_subnormals()
        self.source = RowSource(read, shape, dim, dtype, limit, block_sums if self.narrow else accurate_sums)
        self.scaling = Scaling(self.source, g.dtype, out)
        self.overflow: NDArray[np.bool_] | None = None

    def blocks(self, room: Callable[[Block], Array] | None = None) -> Iterator[tuple[Block, Array]]:
        """Each of ``blocks(shape, dim, …)`` with its w, made in the array that ``room`` gives for it.

        Without ``room`` it is valid until this thread folds again.
        """
        source, room = self.source, room or self._spare
        every: _Rows | None = None
        # The arithmetic is never set around a yield: the caller keeps its own handling of errors.
        if source.count and not source.whole_rows:
            with arithmetic():
                every = self._every()
        for block in source.blocks():
            with arithmetic():
                self._block(block, every, w := room(block))
            yield block, w

    def report(self) -> RowReport:
        """The odd rows of the blocks so far."""
        if self.overflow is not None:
            self.scaling.tally.put("overflow", rows_where(self.overflow))
        return self.scaling.tally.report()

    def _every(self) -> _Rows:
        """The factors of all rows: the first of two passes."""
        sums = self.source.sums()
        parts = [self._rows(sums.at(rows), rows) for rows in runs(self.source.count)]
        narrow, wide = (
            [part.narrow for part in parts if part.narrow],
            [part.wide for part in parts if part.wide],
        )
        return _Rows(
            sums,
            NarrowFactors.joined(narrow) if narrow else None,
            WideFactors.joined(wide) if wide else None,
        )

    def _rows(self, sums: Sums, rows: slice) -> _Rows:
        """The factors of some rows, in the way that serves their values best."""
        g = self.g.at(rows)
        if self.narrow:
            return _Rows(sums, self.scaling.narrow(sums, g, rows.start), None)
        return _Rows(sums, None, self.scaling.wide(sums, g, rows.start, tell=True))

    def _spare(self, block: Block) -> Array:
        return scratch("w", block.shape, self.form.dtype)

    def _block(self, block: Block, every: _Rows | None, w: Array) -> None:
        """Make the block's values of w."""
        self.g.hold(block.rows)  # what v is read into, it may be read into too
        values = self.source.take(block)
        rows = (
            self._rows(self.source.block_sums(values), block.rows) if every is None else every.at(block.rows)
        )
        if rows.narrow is None:
            questions = [self._wide(block, values, rows, w)]
        else:
            questions = list(self._pieces(block, values, rows, rows.narrow, w))
        for question in questions:  # after all: an answer may need another reading
            self._settle(question)

    def _pieces(
        self, block: Block, values: Array, rows: _Rows, narrow: NarrowFactors, w: Array
    ) -> Iterator[_Question]:
        """Make the pieces of a block, those with odd rows in the wide way; what is open comes out."""
        flat, made = values.reshape(-1), w.reshape(-1)
        cut = shares(block.shape) if narrow.odd is not None else (whole(block.shape),)
        for run, shape, its in cut:
            part, out = flat[run].reshape(shape), made[run].reshape(shape)
            piece = Block(block.start + run.start, shape, block.row + its.start)
            if narrow.odd is not None and narrow.odd[its].any():
                yield self._wide(piece, part, rows.at(its), out)
                continue
            found = products(part, narrow.factor[its], narrow.width, self.out, out)
            if found.places.size:
                yield _Question(piece, found, rows.sums.at(its), out, part)

    def _wide(self, piece: Block, values: Array, rows: _Rows, out: Array) -> _Question:
        """Make a piece of w in the way that takes all values, but for the elements that are open."""
        factors = rows.wide
        if factors is None:
            factors = self.scaling.wide(rows.sums, self.g.at(piece.rows), piece.row, tell=False)
        x = as_float64(values)
        found = wide_products(x, factors, self.out, out)
        return _Question(piece, found, rows.sums, out, x, factors.large)

    def _count_overflow(self, rows: slice, large: NDArray[np.bool_], out: Array) -> None:
        """Count rows of which a piece has an infinity; rows in many pieces are counted in the end."""
        flags = large.copy()
        flags[large] = ~np.isfinite(out[:, large]).all(axis=(0, 2))
        if self.source.whole_rows:
            self.scaling.tally.add("overflow", flags, rows.start)
        elif flags.any():
            if self.overflow is None:
                self.overflow = np.zeros(self.source.count, bool)
            self.overflow[rows] |= flags

    def _settle(self, question: _Question) -> None:
        """Decide exactly the elements whose error interval holds a midpoint."""
        piece, (places, below) = question.piece, question.found
        codes = question.out.view(self.form.codes).reshape(-1)
        sign = self.form.codes.type(1 << (8 * self.form.codes.itemsize - 1))
        numbers = np.abs(question.values)
        g = self.g.at(piece.rows) if places.size else np.empty(0)
        known: dict[tuple[int, float], int] = {}
        rows = places // piece.shape[2] % piece.shape[1]
        for place, at, value, code in zip(
            *(each.tolist() for each in (places, rows, numbers, below)), strict=True
        ):
            if (at, value) not in known:
                square = (Fraction(value) * Fraction(float(g[at]))) ** 2
                known[at, value] = self._nearest(piece.row + at, at, question.sums, square, code)
            codes[place] = known[at, value] | (codes[place] & sign)
        if question.large is not None and question.large.any():
            self._count_overflow(piece.rows, question.large, question.out)

    def _nearest(self, row: int, at: int, sums: Sums, square: Fraction, code: int) -> int:
        """The code of the value nearest to |g·v|/‖v‖, given (g·v)² and a code that is not larger."""
        found = 0
        for least, most in self.source.ladder(row, sums, at):
            found = self.form.nearest_root(square / most, code)
            if found == self.form.nearest_root(square / least, found):
                break
        return found


@dataclass(frozen=True, slots=True)
class _Rows:
    """Sums and factors of rows; narrow ones where all is narrow, but for odd rows, else wide ones."""

    sums: Sums
    narrow: NarrowFactors | None
    wide: WideFactors | None

    def at(self, rows: slice) -> _Rows:
        """Those of some of the rows."""
        narrow, wide = self.narrow and self.narrow.at(rows), self.wide and self.wide.at(rows)
        return _Rows(self.sums.at(rows), narrow, wide)


class _Question:
    """A piece of w, the elements in it that are open, and the values of v there.

    ``large`` are the rows that may have a result that is too large.
    """

    def __init__(  # noqa: PLR0917 -- what is asked, of which sums, where the answer belongs
        self,
        piece: Block,
        found: OpenElements,
        sums: Sums,
        out: Array,
        x: Array,
        large: NDArray[np.bool_] | None = None,
    ) -> None:
        self.piece, self.found, self.sums, self.out = piece, found, sums, out
        self.values = x.reshape(-1)[found.places].astype(np.float64)
        self.large = large


# -- the verbs


def fold_with_report(
    v: Array, g: Array, dim: Dim, *, dtype: DTypeLike | None = None, limit: int = BLOCK_BYTES
) -> tuple[Array, RowReport]:
    """``fold_array``, with a report on odd rows."""
    out = np.empty(v.size, FLOAT_FORMATS[name_of(dtype or v.dtype)].dtype)
    folding = Folding(reader_of(v), v.shape, dim, g, v.dtype, out.dtype, limit=limit)
    for _ in folding.blocks(lambda block: out[block.start : block.stop].reshape(block.shape)):
        pass
    return out.reshape(v.shape), folding.report()


def fold_array(v: Array, g: Array, dim: Dim, *, dtype: DTypeLike | None = None) -> Array:
    """Compute w = g·v/‖v‖, the norm over all axes but ``dim`` (None: over all), as v's dtype or ``dtype``.

    v may have any shape and layout, and g any shape with one element for each row; float64, float32, float16
    and bfloat16 may be mixed. A row whose g is the rounded norm of v is v, bit for bit. Zero rows of v give
    zeros; ``fold_with_report`` reports those, NaN and infinities.

    Raises ``LayerError`` as ``Folding`` does. Source: ``torch._weight_norm``.

    >>> fold_array(np.array([[3, 4], [0, 2]], np.float32), np.array([10, 3], np.float32), 0)
    array([[6., 8.],
           [0., 3.]], dtype=float32)
    """
    return fold_with_report(v, g, dim, dtype=dtype)[0]
