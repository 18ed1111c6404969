"""‖v‖ of the rows of a tensor, read block by block and correctly rounded.

As in ``folding``, the float64 root has a known bound on its error. Only a norm next to a midpoint is decided
exactly, from ever narrower bounds on Σv² (``RowSource.ladder``).

Source: Rump, Ogita and Oishi 2008, "Accurate floating-point summation" (in ``sums``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wnconvert.numerics.kernel.choice import block_sums, careful_block_sums
from wnconvert.numerics.kernel.plain import loaded
from wnconvert.numerics.rounding import FLOAT_FORMATS, DTypeLike, cast, ieee, name_of
from wnconvert.numerics.rows import RowReport, RowTally, runs
from wnconvert.numerics.sums import (
    UNIT,
    Sums,
    Totals,
    Way,
    accurate_sums,
    end_to_end,
    exact_sum,
    merge,
)
from wnconvert.tensors.blocks import (
    BLOCK_BYTES,
    Array,
    Block,
    Floats,
    Read,
    blocks,
    box,
    reader_of,
)
from wnconvert.tensors.tree import Dim, rows_of

__all__ = ["Divisors", "RowSource", "arithmetic", "as_float64", "norm_blocks", "norms", "round_norms"]


#: A tensor of so few rows is one whose rows are long, and one of so many elements has some that are open.
_FEW, _LARGE = 8, 1 << 22
#: Rows that are summed again one by one, each in a reading of its own.
_ASKED = 2
#: Rows whose norms are rounded at once, of as many blocks as hold them: a call costs as much as a thousand.
_AT_ONCE = 1 << 14
#: Elements that numpy copies at a time: where rows are longer, it need not repeat their factor in a buffer.
_BUFFER = 512


@contextmanager
def arithmetic() -> Iterator[None]:
    """How numpy computes here: as ``ieee`` says, in whole rows. No ``yield`` in it."""
    with ieee():
        before = np.setbufsize(_BUFFER)
        try:
            yield
        finally:
            np.setbufsize(before)


class RowSource:
    """A tensor v behind ``read``: its blocks and their sums, and if needed the exact sum of a row.

    ``way`` says how sums are made: ``block_sums``, which is enough where v and the results have at most 24
    bits, ``careful_block_sums`` of such a v for any results, or ``accurate_sums`` of any v. A row of which
    the fast sum is not enough is summed again; where it lies all over a large tensor, it is better to be
    careful at once.
    """

    def __init__(  # noqa: PLR0917 -- the tensor, how it is cut, how it is summed
        self, read: Read, shape: tuple[int, ...], dim: Dim, dtype: str, limit: int, way: Way
    ) -> None:
        self.read = read
        self.dtype = dtype
        self.itemsize = FLOAT_FORMATS[dtype].dtype.itemsize
        self.cut = (shape, dim, self.itemsize, limit)
        self.count = rows_of(shape, dim) if math.prod(shape) else 0
        outer, _, inner = box(shape, dim)
        self.whole_rows = outer == 1 and inner * self.itemsize <= max(limit, self.itemsize)
        is_asked_again = self.count <= _FEW or math.prod(shape) >= _LARGE
        is_dear = way is block_sums and not self.whole_rows and is_asked_again
        self.way = careful_block_sums if is_dear else way
        self.exact: dict[int, Fraction] = {}
        self.again: Sums | None = None
        self.asked = 0
        self.block: Block | None = None
        self.values: Array = np.empty((0, 0, 0))

    def blocks(self) -> Iterator[Block]:
        """All blocks, in the order of memory."""
        return blocks(*self.cut)

    def numbers(self, rows: slice) -> NDArray[np.intp]:
        """The numbers by which a report knows some rows."""
        return np.arange(rows.start, rows.stop)

    def take(self, block: Block) -> Array:
        """The values of a block; they are the block at work until the next one."""
        self.show(block, self.read(block))
        return self.values

    def show(self, block: Block, values: Array) -> None:
        """Say which block is at work."""
        self.block, self.values = block, values

    def block_sums(self, values: Array) -> Sums:
        """The sums of the rows of a block, as far as they lie in it, given its values."""
        if self.way is accurate_sums:
            return accurate_sums(as_float64(values))
        if values.dtype == np.float64:  # products of what has at most 24 bits
            return accurate_sums(as_float64(values)).flat()
        return self.way(values)

    def sums(self) -> Sums:
        """The sums of all rows: the first of two passes."""
        if self.way is accurate_sums:
            return self._accurate(slice(0, self.count))
        totals = Totals(self.count)
        for block in self.blocks():
            totals.add(block.rows, self.block_sums(self.read(block)))
        return totals.sums()

    def sums_of_whole_rows(self) -> Iterator[tuple[int, Sums]]:
        """The sums of rows that lie in one block each, many at a time, with the first row of each part."""
        held: list[Sums] = []
        first = rows = 0
        for block in self.blocks():
            held.append(self.block_sums(self.read(block)))
            rows += block.shape[1]
            if rows >= _AT_ONCE:
                yield first, end_to_end(held)
                held, first, rows = [], first + rows, 0
        if held:
            yield first, end_to_end(held)

    def _accurate(self, rows: slice) -> Sums:
        """Accurate sums of some rows, in a reading of all blocks that hold one of them."""
        count = rows.stop - rows.start
        total = Sums(np.zeros(count), np.zeros(count), np.full(count, -1100, np.int32), 0.0)
        for block in self.blocks():
            first, last = max(rows.start, block.row), min(rows.stop, block.rows.stop)
            if first < last:
                values = self.read(block)[:, first - block.row : last - block.row]
                merge(total, slice(first - rows.start, last - rows.start), accurate_sums(as_float64(values)))
        return total

    def ladder(self, row: int, sums: Sums, at: int) -> Iterator[tuple[Fraction, Fraction]]:
        """Ever narrower bounds on Σv² of a row, the last of width 0; ``sums[at]`` is the sum known so far."""
        if row not in self.exact:
            yield sums.bounds(at) if sums.error < 2.0**-60 else self._again(row)
            self.exact[row] = sum((exact_sum(piece) for piece in self._pieces(row)), Fraction(0))
        yield self.exact[row], self.exact[row]

    def _again(self, row: int) -> tuple[Fraction, Fraction]:
        """Bounds on Σv² of a row, from a sum that is more accurate; who asks for a few rows gets all."""
        if self.whole_rows:
            return accurate_sums(self._row(row).astype(np.float64)).bounds(0)
        self.asked += 1
        if self.asked > _ASKED and self.again is None:
            self.again = self._accurate(slice(0, self.count))
        return self.again.bounds(row) if self.again else self._accurate(slice(row, row + 1)).bounds(0)

    def _row(self, row: int) -> Array:
        """The values of a row that lies in one block, which is at work from now on."""
        block = self.block
        if block is None or not block.row <= row < block.rows.stop:
            block = next(each for each in self.blocks() if each.row <= row < each.rows.stop)
            self.take(block)
        return self.values[:, row - block.row : row - block.row + 1]

    def _pieces(self, row: int) -> Iterator[Floats]:
        if self.whole_rows:
            yield self._row(row).astype(np.float64).ravel()
            return
        for block in self.blocks():
            if block.row <= row < block.row + block.shape[1]:
                yield self.read(block)[:, row - block.row].astype(np.float64).ravel()


def as_float64(values: Array) -> Floats:
    """Values as float64, in a scratch array."""
    return loaded(values, 0)


class Divisors(Protocol):
    """What rows are divided by in the place of ‖v‖: its square, and bounds on that, of Σv²."""

    def squares(self, sums: Sums) -> Sums:
        """The squares of rows."""

    def bounds(self, rungs: Iterator[tuple[Fraction, Fraction]]) -> Iterator[tuple[Fraction, Fraction]]:
        """Ever narrower bounds on the square of a row."""


def round_norms(
    sums: Sums,
    ladder: Callable[[int], Iterator[tuple[Fraction, Fraction]]],
    name: str,
    wanted: Floats | None = None,
) -> Floats:
    """The roots of ``sums``, correctly rounded to dtype ``name``, as float64: ‖v‖ of rows.

    ``ladder`` gives ever narrower bounds on the sum at an index. If ``wanted`` is given, only norms that may
    equal it are rounded correctly; others are within a few ulp.
    """
    root = sums.root()
    if name == "float64":
        # One Newton step gives the part of the root behind its last bit: (S - root²) / 2·root.
        upper = (root.view(np.int64) & np.int64(-(1 << 27))).view(np.float64)
        lower = root - upper
        rest = ((sums.high - upper * upper) - 2 * (upper * lower)) - lower * lower + sums.low
        rest = np.where(root > 0, rest / (2 * root), 0.0)
        slack = root * (sums.error / 2 + 2.0**-98)
        low, high = (np.ldexp(root + (rest + by), sums.exponent) for by in (-slack, slack))
        low = np.where(low < 2.0**-1020, np.nextafter(low, 0), low)  # ldexp rounded a subnormal
        high = np.where(high < 2.0**-1020, np.nextafter(high, np.inf), high)
    else:
        slack = root * (sums.error / 2 + 4 * UNIT)
        ends = (np.ldexp(root + by, sums.exponent) for by in (-slack, slack))
        low, high = (cast(end, name).astype(np.float64) for end in ends)
    plain = ~np.isfinite(root) | (root == 0)
    low[plain] = high[plain] = root[plain]
    unsure = low < high
    if wanted is not None:
        unsure &= (wanted >= low) & (wanted <= high)
    form = FLOAT_FORMATS[name]
    for at in np.flatnonzero(unsure).tolist():
        code = found = int(cast(low[at : at + 1], name).view(form.codes)[0])
        for least, most in ladder(at):
            found = form.nearest_root(least, code)
            if found == form.nearest_root(most, found):
                break
        low[at] = np.array([found], form.codes).view(form.dtype)[0]
    return low


def norm_blocks(
    read: Read,
    shape: tuple[int, ...],
    dim: Dim,
    v_dtype: DTypeLike,
    g_dtype: DTypeLike,
    *,
    limit: int = BLOCK_BYTES,
    divisors: Divisors | None = None,
) -> tuple[Array, RowReport]:
    """The norms of a tensor's rows, correctly rounded to ``g_dtype``: shape (D,), and a report on odd rows.

    ``read`` as in ``Folding``, each block once (again only for a norm next to a midpoint). The report has
    ``zero``, ``nonfinite`` and ``overflow``. With ``divisors`` they are what rows are divided by in the
    place of their norms, but for a zero row, which stays 0.
    """
    name = name_of(g_dtype)
    narrow = name_of(v_dtype) != "float64"
    way = accurate_sums if not narrow else careful_block_sums if name == "float64" else block_sums
    source = RowSource(read, shape, dim, name_of(v_dtype), limit, way)
    found = np.zeros(rows_of(shape, dim), FLOAT_FORMATS[name].dtype)
    tally = RowTally()

    def put(first: int, sums: Sums) -> None:
        def ladder(at: int) -> Iterator[tuple[Fraction, Fraction]]:
            rungs = source.ladder(first + at, sums, at)
            return divisors.bounds(rungs) if divisors else rungs

        finite = np.isfinite(sums.high)
        norms = round_norms(divisors.squares(sums) if divisors else sums, ladder, name)
        norms[sums.high == 0] = 0
        found[first : first + len(norms)] = cast(norms, name)
        tally.add("zero", sums.high == 0, first)
        tally.add("nonfinite", ~finite, first)
        tally.add("overflow", finite & np.isinf(norms), first)

    with arithmetic():
        if source.whole_rows:
            for first, sums in source.sums_of_whole_rows():
                put(first, sums)
        elif source.count:
            sums = source.sums()
            for rows in runs(source.count):
                put(rows.start, sums.at(rows))
    return found, tally.report()


def norms(v: Array, dim: Dim, dtype: DTypeLike | None = None) -> Array:
    """The norms of v's rows, correctly rounded to v's dtype or ``dtype``: shape (D,), or (1,) for dim None.

    >>> norms(np.array([[3, 4], [0, 2]], np.float32), 0)
    array([5., 2.], dtype=float32)
    """
    return norm_blocks(reader_of(v), v.shape, dim, v.dtype, dtype or v.dtype)[0]
