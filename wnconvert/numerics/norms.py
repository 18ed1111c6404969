"""‖v‖ of the rows of a tensor, read block by block and correctly rounded.

As in ``folding``, the float64 root has a known bound on its error. Only a norm next to a midpoint is decided
exactly, from ever narrower bounds on Σv² (``RowSource.ladder``).

Source: Rump, Ogita and Oishi 2008, "Accurate floating-point summation" (in ``sums``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from wnconvert.numerics.rounding import FLOAT_FORMATS, DTypeLike, cast, name_of
from wnconvert.numerics.rows import RowReport, rows_where
from wnconvert.numerics.sums import UNIT, Sums, accurate_sums, exact_sum, fast_sums, merge
from wnconvert.tensors.blocks import (
    BLOCK_BYTES,
    Array,
    Block,
    Floats,
    Read,
    blocks,
    box,
    reader_of,
    scratch,
)
from wnconvert.tensors.tree import Dim, rows_of

__all__ = ["RowSource", "norm_blocks", "norms", "round_norms"]


class RowSource:
    """A tensor v behind ``read``: its blocks, its sums, and if needed the exact sum of a row."""

    def __init__(self, read: Read, shape: tuple[int, ...], dim: Dim, dtype: str, limit: int) -> None:
        self.read = read
        self.dtype = dtype
        self.itemsize = FLOAT_FORMATS[dtype].dtype.itemsize
        self.cut = (shape, dim, self.itemsize, limit)
        self.count = rows_of(shape, dim) if math.prod(shape) else 0
        outer, _, inner = box(shape, dim)
        self.whole_rows = outer == 1 and inner * self.itemsize <= max(limit, self.itemsize)
        self.exact: dict[int, Fraction] = {}
        self.block: Block | None = None
        self.x: Floats = np.empty((0, 0, 0))

    def blocks(self) -> Iterator[Block]:
        """All blocks, in the order of memory."""
        return blocks(*self.cut)

    def load(self, block: Block) -> Floats:
        """A block as float64 in a scratch array."""
        self.block, self.x = block, scratch("x", block.shape, np.float64)
        np.copyto(self.x, self.read(block))
        return self.x

    def sums(self) -> Sums:
        """Accurate sums of all rows: the first of two passes."""
        count = self.count
        total = Sums(np.zeros(count), np.zeros(count), np.full(count, -1100, np.int32), 0.0)
        for block in self.blocks():
            merge(total, block.rows, accurate_sums(self.load(block)))
        return total

    def ladder(self, row: int, sums: Sums, at: int) -> Iterator[tuple[Fraction, Fraction]]:
        """Ever narrower bounds on Σv² of a row, the last of width 0; ``sums[at]`` is the sum known so far."""
        if row not in self.exact:
            if sums.error > 2.0**-60 and self.whole_rows and self.block is not None:
                yield accurate_sums(self.x[:, row - self.block.row : row - self.block.row + 1]).bounds(0)
            else:
                yield sums.bounds(at)
            self.exact[row] = sum((exact_sum(piece) for piece in self._pieces(row)), Fraction(0))
        yield self.exact[row], self.exact[row]

    def _pieces(self, row: int) -> Iterator[Floats]:
        if self.whole_rows and self.block is not None:
            yield self.x[:, row - self.block.row].ravel()
            return
        for block in self.blocks():  # not into the scratch array: that still holds the block at work
            if block.row <= row < block.row + block.shape[1]:
                yield self.read(block)[:, row - block.row].astype(np.float64).ravel()


def round_norms(source: RowSource, sums: Sums, first: int, name: str, wanted: Floats | None = None) -> Floats:
    """‖v‖ of the rows from ``first`` on, correctly rounded to dtype ``name``, as float64.

    If ``wanted`` is given, only norms that may equal it are rounded correctly; others are within a few ulp.
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
        for least, most in source.ladder(first + at, sums, at):
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
) -> tuple[Array, RowReport]:
    """The norms of a tensor's rows, correctly rounded to ``g_dtype``: shape (D,), and a report on odd rows.

    ``read`` as in ``Folding``, each block once (again only for a norm next to a midpoint). The report has
    ``zero``, ``nonfinite`` and ``overflow``.
    """
    source = RowSource(read, shape, dim, name_of(v_dtype), limit)
    name = name_of(g_dtype)
    fast = "float64" not in (source.dtype, name)
    found = np.zeros(rows_of(shape, dim))
    zero, finite = np.zeros(len(found), bool), np.ones(len(found), bool)
    with np.errstate(all="ignore"):
        if source.whole_rows:
            for block in source.blocks():
                x = source.load(block)
                sums = fast_sums(x) if fast else accurate_sums(x)
                found[block.rows] = round_norms(source, sums, block.row, name)
                zero[block.rows], finite[block.rows] = sums.high == 0, np.isfinite(sums.high)
        elif source.count:
            sums = source.sums()
            found[:] = round_norms(source, sums, 0, name)
            zero[:], finite[:] = sums.high == 0, np.isfinite(sums.high)
    overflow = rows_where(finite & np.isinf(found))
    return cast(found, name), RowReport(
        zero=rows_where(zero), nonfinite=rows_where(~finite), overflow=overflow
    )


def norms(v: Array, dim: Dim, dtype: DTypeLike | None = None) -> Array:
    """The norms of v's rows, correctly rounded to v's dtype or ``dtype``: shape (D,), or (1,) for dim None.

    >>> norms(np.array([[3, 4], [0, 2]], np.float32), 0)
    array([5., 2.], dtype=float32)
    """
    return norm_blocks(reader_of(v), v.shape, dim, v.dtype, dtype or v.dtype)[0]
