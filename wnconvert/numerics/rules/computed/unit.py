"""c·w/max(‖w‖, ε) by rows: their norms as weight norm's, but that the square of one is at least ε²."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from wnconvert.numerics.norms import RowSource
from wnconvert.numerics.rules.factors import Bounds, NarrowFactors, both
from wnconvert.numerics.rules.norm import NormScale
from wnconvert.numerics.sums import Sums
from wnconvert.numerics.wide import WideFactors
from wnconvert.tensors.blocks import RowValues

__all__ = ["UnitScale"]


class UnitScale(NormScale):
    """From the sums of rows' squares to their factors, which ``scale`` multiplies."""

    def __init__(self, source: RowSource, eps: float, scale: float, out: str) -> None:
        everywhere = RowValues(lambda block: np.full(block.shape, scale), (source.count,), "float64")
        super().__init__(source, everywhere, out, keeps=False)
        self.least, self.square = Fraction(eps) ** 2, Fraction(scale) ** 2

    def ladder(self, row: int, sums: Sums, at: int) -> Iterator[Bounds]:
        """Ever narrower bounds on the square of a row's factor."""
        rungs = (
            (self.square / max(most, self.least), self.square / max(least, self.least))
            for least, most in self.source.ladder(row, sums, at)
        )
        return both(rungs, iter(self.common.squares)) if self.common else rungs

    def narrow(self, sums: Sums, rows: slice) -> NarrowFactors:
        """Factors for ``products``; odd rows are counted."""
        return super().narrow(self._at_least(sums), rows)

    def wide(self, sums: Sums, rows: slice, *, tell: bool) -> WideFactors:
        """Factors for ``wide_products``; with ``tell``, odd rows are counted."""
        return super().wide(self._at_least(sums), rows, tell=tell)

    def _at_least(self, sums: Sums) -> Sums:
        high = float(self.least)
        below = np.ldexp(sums.high, 2 * sums.exponent) < high
        return Sums(
            np.where(below, high, sums.high),
            np.where(below, float(self.least - Fraction(high)), sums.low),
            np.where(below, 0, sums.exponent).astype(np.int32),
            sums.error + 2.0**-53,
        )
