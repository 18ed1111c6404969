"""w/max(‖w‖, ε) of a vector: its norm as a row's, but that its square is at least ε²."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from wnconvert.numerics.norms import RowSource
from wnconvert.numerics.rules.factors import Bounds, NarrowFactors
from wnconvert.numerics.rules.norm import NormScale
from wnconvert.numerics.sums import Sums
from wnconvert.numerics.wide import WideFactors
from wnconvert.tensors.blocks import RowValues

__all__ = ["UnitScale"]


class UnitScale(NormScale):
    """From the sum of a vector's squares to its factor."""

    def __init__(self, source: RowSource, eps: float, out: str) -> None:
        super().__init__(source, RowValues.of(np.ones(1, np.float32)), out, keeps=False)
        self.least = Fraction(eps) ** 2

    def ladder(self, row: int, sums: Sums, at: int) -> Iterator[Bounds]:
        """Ever narrower bounds on the square of the factor."""
        for least, most in self.source.ladder(row, sums, at):
            yield 1 / max(most, self.least), 1 / max(least, self.least)

    def narrow(self, sums: Sums, rows: slice) -> NarrowFactors:
        """The factor for ``products``."""
        return super().narrow(self._at_least(sums), rows)

    def wide(self, sums: Sums, rows: slice, *, tell: bool) -> WideFactors:
        """The factor for ``wide_products``."""
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
