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
from functools import partial

import numpy as np
from numpy.typing import NDArray

from wnconvert.layers.rules import ORIGINAL, Norm, Rule
from wnconvert.numerics.finite import all_finite
from wnconvert.numerics.kernel.interface import OpenElements
from wnconvert.numerics.norms import arithmetic, as_float64
from wnconvert.numerics.rounding import FLOAT_FORMATS, DTypeLike, cast, name_of
from wnconvert.numerics.rows import WHOLE, Divisor, RowReport, RowTally, rows_where
from wnconvert.numerics.rules.factors import Bounds, NarrowFactors, RowFactors, Scale
from wnconvert.numerics.rules.parts import RulePart, RuleParts
from wnconvert.numerics.rules.table import stage_of
from wnconvert.tensors.blocks import BLOCK_BYTES, Array, Block, scratch, shares, whole
from wnconvert.tensors.tree import Dim

__all__ = ["Folding", "fold_array", "fold_with_report"]


class Folding:
    """A fold in progress: ``blocks`` gives w block by block, then ``report`` describes the odd rows.

    ``parts`` are the tensors of the rule, by their roles. The original is read once if the rule is a mask,
    or a norm of rows that are contiguous and fit a block, else twice (thrice for a step, and for a σ behind a
    norm); a mask is read with it. Every element is computed: zero rows give zeros; NaN and infinities follow
    IEEE 754.

    Raises ``LayerError`` if a dtype cannot be folded, or parts do not fit each other.

    >>> parts = {"original": RulePart.of(np.array([[3.0, 4.0]])), "g": RulePart.of(np.array([10.0]))}
    >>> folding = Folding(Rule((Norm(0),)), parts, "float64")
    >>> [(block.start, w.tolist()) for block, w in folding.blocks()], folding.report().kept.count
    ([(0, [[[6.0, 8.0]]])], 0)
    """

    def __init__(
        self, rule: Rule, parts: RuleParts, out_dtype: DTypeLike, *, limit: int = BLOCK_BYTES
    ) -> None:
        self.out = out = name_of(out_dtype)
        self.form = FLOAT_FORMATS[out]
        self.stage = stage = stage_of(rule, parts, out, limit)
        self.scale = stage.scale
        self.source = stage.scale.source if stage.scale else stage.source(None)
        self.tally = stage.scale.tally if stage.scale else RowTally()
        self.divisor: Divisor | None = None
        self.overflow: NDArray[np.bool_] | None = None

    def blocks(self, room: Callable[[Block], Array] | None = None) -> Iterator[tuple[Block, Array]]:
        """Each of ``blocks(shape, dim, …)`` with its w, made in the array that ``room`` gives for it.

        Without ``room`` it is valid until this thread folds again.
        """
        room = room or self._spare
        make: Callable[[Block, Array], None] | None = None
        # The arithmetic is never set around a yield: the caller keeps its own handling of errors.
        for block in self.source.blocks():
            with arithmetic():
                make = make or self._maker()
                make(block, w := room(block))
            yield block, w

    def report(self) -> RowReport:
        """The odd rows of the blocks so far."""
        if self.overflow is not None:
            self.tally.put("overflow", rows_where(self.overflow))
        return self.tally.report(self.divisor)

    def _maker(self) -> Callable[[Block, Array], None]:
        """What makes the values of a block, after the first of two passes, where that is needed."""
        scale = self.scale
        if scale is None:
            return self._copy
        every: RowFactors | None = None
        if self.source.count:
            if self.stage.common:
                common, self.divisor = self.stage.common.find()
                scale.under(common)
            if scale.needs_all:
                every = RowFactors.all_of(scale, self.source.count)
        return partial(self._block, scale, every)

    def _copy(self, block: Block, w: Array) -> None:
        """Make the block's values of w, which are what is read."""
        values = self.source.take(block)
        if values.dtype == w.dtype:
            np.copyto(w, values)
        else:
            w[...] = cast(values, self.out)
        if not all_finite(w):
            self.tally.put("overflow" if all_finite(values) else "nonfinite", WHOLE)

    def _spare(self, block: Block) -> Array:
        return scratch("w", block.shape, self.form.dtype)

    def _block(self, scale: Scale, every: RowFactors | None, block: Block, w: Array) -> None:
        """Make the block's values of w."""
        scale.hold(block.rows)  # what is read for them may be read into the same memory as values are
        values = self.source.take(block)
        if every is None:
            rows = RowFactors.of(scale, self.source.block_sums(values), block.rows)
        else:
            rows = every.at(block.rows)
        if rows.narrow is None or values.dtype == np.float64:
            questions = [self._wide(block, values, rows, w)]
        else:
            questions = list(self._pieces(block, values, rows, rows.narrow, w))
        for question in questions:  # after all: an answer may need another reading
            self._settle(question)

    def _pieces(
        self, block: Block, values: Array, rows: RowFactors, narrow: NarrowFactors, w: Array
    ) -> Iterator[_Question]:
        """Make the pieces of a block, those with odd rows in the wide way; what is open comes out."""
        if narrow.odd is not None:
            values = values.copy()  # what odd rows need may be read into the same memory
        flat, made = values.reshape(-1), w.reshape(-1)
        cut = shares(block.shape) if narrow.odd is not None else (whole(block.shape),)
        for run, shape, its in cut:
            part, out = flat[run].reshape(shape), made[run].reshape(shape)
            piece = Block(block.start + run.start, shape, block.row + its.start)
            if narrow.odd is not None and narrow.odd[its].any():
                yield self._wide(piece, part, rows.at(its), out)
                continue
            found = narrow.products(part, its, self.out, out)
            if found.places.size:
                yield _Question(piece, found, rows.at(its), out, part)

    def _wide(self, piece: Block, values: Array, rows: RowFactors, out: Array) -> _Question:
        """Make a piece of w in the way that takes all values, but for the elements that are open."""
        factors = rows.wide
        if factors is None:
            factors = rows.scale.wide(rows.sums, piece.rows, tell=False)
        x = as_float64(values)
        found = factors.products(x, self.out, out)
        return _Question(piece, found, rows, out, x, factors.large)

    def _count_overflow(self, rows: slice, large: NDArray[np.bool_], out: Array) -> None:
        """Count rows of which a piece has an infinity; rows in many pieces are counted in the end."""
        flags = large.copy()
        flags[large] = ~np.isfinite(out[:, large]).all(axis=(0, 2))
        if self.source.whole_rows:
            self.tally.add("overflow", flags, rows.start)
        elif flags.any():
            if self.overflow is None:
                self.overflow = np.zeros(self.source.count, bool)
            self.overflow[self.source.numbers(rows)[flags]] = True

    def _settle(self, question: _Question) -> None:
        """Decide exactly the elements whose error interval holds a midpoint."""
        piece, (places, below) = question.piece, question.found
        codes = question.out.view(self.form.codes).reshape(-1)
        rows = places // piece.shape[2] % piece.shape[1]
        values, is_open = question.values, self._plain_products(question, piece.row + rows)
        places, rows, values, below = places[is_open], rows[is_open], values[is_open], below[is_open]
        known: dict[tuple[int, float], int] = {}
        for place, at, value, code in zip(
            *(each.tolist() for each in (places, rows, values, below)), strict=True
        ):
            if (at, value) not in known:
                results = question.rows.scale.results(value, piece.row + at, question.rows.sums, at)
                known[at, value] = self._nearest(results, code, int(codes[place]))
            codes[place] = known[at, value]
        if question.large is not None and question.large.any():
            self._count_overflow(piece.rows, question.large, question.out)

    def _plain_products(self, question: _Question, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Round the products that float64 holds exactly; true for the elements that are still open."""
        values, is_open = question.values, np.ones(len(rows), bool)
        factors = question.rows.scale.short_factors(rows) if len(rows) else None
        if factors is not None:
            is_open = np.isnan(factors) | (values.astype(np.float32) != values)
            made = cast(values[~is_open] * factors[~is_open], self.out)
            question.out.reshape(-1)[question.found.places[~is_open]] = made
        return is_open

    def _nearest(self, results: Iterator[Bounds], below: int, made: int) -> int:
        """The code of the value nearest to p, given ever narrower bounds on p·|p|.

        ``below`` is the code of a magnitude that is not larger, 0 if none is known; where p is 0, it has the
        sign of what was ``made``.
        """
        sign = 1 << (8 * self.form.codes.itemsize - 1)
        found = 0
        for ends in results:
            least, most = (
                self.form.nearest_root(abs(end), below)
                | (sign if end < 0 or (not end and made & sign) else 0)
                for end in ends
            )
            found = least
            if least == most:
                break
        return found


class _Question:
    """A piece of w, the elements in it that are open, and the values of v there.

    ``large`` are the rows that may have a result that is too large.
    """

    def __init__(  # noqa: PLR0917 -- what is asked, of which rows, where the answer belongs
        self,
        piece: Block,
        found: OpenElements,
        rows: RowFactors,
        out: Array,
        x: Array,
        large: NDArray[np.bool_] | None = None,
    ) -> None:
        self.piece, self.found, self.rows, self.out = piece, found, rows, out
        self.values = x.reshape(-1)[found.places].astype(np.float64)
        self.large = large


# -- the verbs


def fold_with_report(
    v: Array, g: Array, dim: Dim, *, dtype: DTypeLike | None = None, limit: int = BLOCK_BYTES
) -> tuple[Array, RowReport]:
    """``fold_array``, with a report on odd rows."""
    out = np.empty(v.size, FLOAT_FORMATS[name_of(dtype or v.dtype)].dtype)
    parts = {ORIGINAL: RulePart.of(v), "g": RulePart.of(g)}
    folding = Folding(Rule((Norm(dim),)), parts, out.dtype, limit=limit)
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
