"""The factors of rows times those of their channels: what is made of a weight beside which a norm stands.

Rows are those of the axis of channels where each is one row of what stands beneath, too, else finer ones.
Their factors are made for each block, so they never take the place of the tensor.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from wnconvert.layers.rules import Neighbour
from wnconvert.numerics.finite import all_finite
from wnconvert.numerics.kernel.choice import largest_code
from wnconvert.numerics.norms import RowSource
from wnconvert.numerics.rounding import FLOAT_FORMATS, ieee
from wnconvert.numerics.rows import WHOLE, RowTally, rows_where
from wnconvert.numerics.rules.channels.vector import FACTOR_STEPS, NormChannels
from wnconvert.numerics.rules.channels.views import FineRows, PlainRows, RowIndex
from wnconvert.numerics.rules.factors import (
    Bounds,
    Common,
    NarrowFactors,
    RowFactors,
    Scale,
    both,
    signed_products,
)
from wnconvert.numerics.sums import Sums, accurate_sums
from wnconvert.numerics.wide import WideFactors
from wnconvert.tensors.blocks import Block, Floats
from wnconvert.tensors.tree import Shape

__all__ = ["ChannelScale"]


class ChannelScale:
    """From blocks to the factors of their rows, times those of ``channels``, for one fold.

    ``inner`` makes the factors of what stands beneath, if anything does; ``tensor`` is what is read.
    """

    def __init__(  # noqa: PLR0917 -- the factors, of which channels of what, on what, for what
        self,
        channels: NormChannels,
        operation: Neighbour,
        tensor: RowSource,
        shape: Shape,
        inner: Scale | None,
        out: str,
    ) -> None:
        self.channels, self.inner = channels, inner
        self.source = _rows_of(operation, tensor, shape, inner)
        self.tally = inner.tally if inner else RowTally()
        self.is_aligned = not isinstance(self.source, FineRows)
        self.is_narrow = tensor.way is not accurate_sums and (inner is None or inner.is_narrow)
        form = FLOAT_FORMATS[out]
        self.large = form.largest * 0.99
        with ieee():
            self.values, not_narrow = channels.values, channels.not_narrow
        self.not_narrow = not_narrow if not_narrow.any() else None
        self.short: Floats | None = None
        self.common: Common | None = None
        # What is known of the rows beneath: of all of them, or of those from ``first`` on in this block.
        self.beneath: RowFactors | None = None
        self.block: Block | None = None
        self.first = 0
        self.tally.put("variance", rows_where(channels.negative))
        self.tally.put("channels", rows_where(channels.nonfinite))

    @property
    def needs_all(self) -> bool:
        """Factors are made for each block."""
        return False

    def under(self, common: Common) -> None:
        """Have all rows multiplied by one more factor, too."""
        if self.inner:
            self.inner.under(common)
        else:
            self.common = common

    def hold(self, rows: slice) -> None:
        """Have what is read for these rows at hand; before the first, the factors of all rows beneath."""
        if not self.inner:
            return
        if self.is_aligned and not self.inner.needs_all:
            self.inner.hold(rows)
            return
        if self.beneath is None:
            self.beneath = RowFactors.all_of(self.inner, self.inner.source.count)
        self.inner.hold(slice(0, self.inner.source.count))

    def sums(self) -> Sums:
        """No sum that matters."""
        return self.source.block_sums(self.source.values)

    def results(self, value: float, row: int, _sums: Sums, _at: int) -> Iterator[Bounds]:
        """Ever narrower bounds on p·|p|, where p is what an element of a row becomes."""
        rows = slice(row, row + 1)
        channel = int(_numbers(self.source.channels(rows))[0])
        square, negative = self.channels.square(channel), bool(self.channels.gamma[channel] < 0)
        own = iter([(square, square)])
        if self.inner and self.beneath:
            beneath = int(_numbers(self.source.beneath(rows))[0])
            results = self.inner.results(value, beneath, self.beneath.sums, beneath - self.first)
            return both(results, own, negative=negative)
        if not self.common:
            return signed_products(value, own, negative=negative)
        squares = both(iter(self.common.squares), own)
        return signed_products(value, squares, negative=negative != (self.common.mantissa < 0))

    def short_factors(self, rows: NDArray[np.intp]) -> Floats | None:
        """The factors of some rows that are exact, in at most 24 bits, and NaN for others."""
        if self.inner or self.common:
            return None
        if self.short is None:
            self.short = self.channels.short()
        first = int(rows.min())
        factors: Floats = self.short[self.source.channels(slice(first, int(rows.max()) + 1))][rows - first]
        return factors

    def narrow(self, _sums: Sums, rows: slice) -> NarrowFactors:
        """Factors for ``products``; odd rows are counted."""
        at = self.source.channels(rows)
        if self.inner:
            known = self._known().narrow
            assert known is not None  # noqa: S101 - what is beneath is narrow, too
            factors = known.at(self._places(rows))
        else:
            factors = NarrowFactors(np.ones(rows.stop - rows.start), 0, None)
            if self.common:
                factors = self.common.on_narrow(factors)
        factors = factors.times(self.values[at], FACTOR_STEPS)
        if self.not_narrow is not None:
            factors = factors.without(self.not_narrow[at])
        return factors.without(self._too_large(factors.factor * factors.reach))

    def wide(self, _sums: Sums, rows: slice, *, tell: bool) -> WideFactors:
        """Factors for ``wide_products``; with ``tell``, odd rows are counted."""
        at, count = self.source.channels(rows), rows.stop - rows.start
        if self.inner:
            factors = self._wide_beneath(self.inner, rows)
        else:
            odd = self._nonfinite(rows)
            if tell and odd.any():
                self.tally.put("nonfinite", WHOLE)
            factors = WideFactors(np.ones(count), np.zeros(count, np.int32), 0, odd, odd, odd)
            if self.common:
                factors = self.common.on_wide(factors)
        channels = self.channels
        return factors.times(channels.mantissa[at], channels.exponent[at], FACTOR_STEPS)

    def _known(self) -> RowFactors:
        """The factors of rows beneath: of all, or of those of the block at work."""
        inner, source = self.inner, self.source
        if (
            inner
            and self.is_aligned
            and not inner.needs_all
            and self.block is not source.block
            and source.block
        ):
            self.block, self.first = source.block, source.block.row
            inner.source.show(source.block, source.values)
            self.beneath = RowFactors.of(inner, inner.source.block_sums(source.values), source.block.rows)
        assert self.beneath is not None  # noqa: S101 - ``hold`` made them, or the lines before
        return self.beneath

    def _places(self, rows: slice) -> RowIndex:
        """Where the rows beneath some rows stand among those that are known."""
        at = self.source.beneath(rows)
        return (
            slice(at.start - self.first, at.stop - self.first) if isinstance(at, slice) else at - self.first
        )

    def _wide_beneath(self, inner: Scale, rows: slice) -> WideFactors:
        known, at = self._known(), self._places(rows)
        if known.wide:
            return known.wide.at(at)
        first, last = (at.start, at.stop) if isinstance(at, slice) else (int(at.min()), int(at.max()) + 1)
        these = slice(first + self.first, last + self.first)
        factors = inner.wide(known.sums.at(slice(first, last)), these, tell=False)
        return factors if isinstance(at, slice) else factors.at(at - first)

    def _nonfinite(self, rows: slice) -> NDArray[np.bool_]:
        """Which rows of the block at work have NaN or infinities."""
        block, values = self.source.block, self.source.values
        if block is None or all_finite(values):
            return np.zeros(rows.stop - rows.start, bool)
        these = values[:, rows.start - block.row : rows.stop - block.row]
        flags: NDArray[np.bool_] = np.logical_not(np.isfinite(these).all(axis=(0, 2)))
        return flags

    def _too_large(self, factors: Floats) -> NDArray[np.bool_] | None:
        """Which rows of the block at work may have results that are too large, or are not finite."""
        values = self.source.values
        form, code = FLOAT_FORMATS[values.dtype.name], largest_code(values)
        if code >= form.inf and not self.inner:
            self.tally.put("nonfinite", WHOLE)
        sizes = np.abs(factors)
        if code < form.inf and float(form.value(code)) * np.maximum.reduce(sizes) < self.large:
            return None
        tops = np.abs(values.astype(np.float64)).max(axis=(0, 2))
        flags: NDArray[np.bool_] = np.logical_not(tops * sizes < self.large)
        return flags


def _rows_of(
    operation: Neighbour, tensor: RowSource, shape: Shape, inner: Scale | None
) -> PlainRows | FineRows:
    """The rows of a tensor that have one channel each, and one row of what stands beneath."""
    read, dtype, way, limit = tensor.read, tensor.dtype, tensor.way, tensor.cut[3]
    below = inner.source.cut[1] if inner else operation.dim
    if operation.groups == 1 and below == operation.dim:
        return PlainRows(read, shape, operation.dim, dtype, limit, way)
    return FineRows(read, shape, dtype, limit, way, operation.dim, operation.groups, below)


def _numbers(index: RowIndex) -> NDArray[np.intp]:
    return np.arange(index.start, index.stop) if isinstance(index, slice) else index
