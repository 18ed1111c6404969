"""w/σ, σ² = ‖mat·y‖²/‖y‖² with y = matᵀ·u: one step of the power iteration from the stored u.

σ² is rational. Both norms are computed to about 60 bits; only if an element stays open, or one may be 0,
exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from wnconvert.errors import LayerError
from wnconvert.numerics.kernel.dots import Pairs
from wnconvert.numerics.rows import Divisor
from wnconvert.numerics.rules.factors import Bounds, Common, Ladder
from wnconvert.numerics.rules.parts import RulePart
from wnconvert.numerics.rules.spectral.matrix import Matrix, exactly, squared
from wnconvert.numerics.rules.spectral.sigma import common_of
from wnconvert.tensors.blocks import Floats

__all__ = ["StepFactor"]


class StepFactor:
    """1/σ of a matrix after one step, for results of dtype ``out``."""

    def __init__(self, matrix: Matrix, u: RulePart, out: str) -> None:
        if u.count != matrix.rows:
            raise LayerError(f"u {u.shape} does not fit a matrix of {matrix.rows} × {matrix.columns}")
        self.matrix, self.u, self.out = matrix, u, out

    def find(self) -> tuple[Common, Divisor]:
        """The factor, and what to say of σ."""
        u = self.u.whole()
        back = self.matrix.transposed_times(u)
        if not (math.isfinite(self.matrix.top) and np.isfinite(u).all()):
            return Common.odd(math.nan), Divisor(math.nan)
        return common_of(Ladder(self._rungs(u, back)), self.matrix.top, self.out)

    def _rungs(self, u: Floats, back: Pairs) -> Iterator[Bounds]:
        """Bounds on σ²; 0 where it is no number."""
        if np.isfinite(back.error).all():
            below, above = squared(back), squared(self.matrix.times_pairs(back))
            if below and above and below[0] > 0 and above[0] > 0:
                yield above[0] / below[1], above[1] / below[0]
        exact = self.matrix.exact_transposed_times(exactly(u))
        forth = self.matrix.exact_times(exact)
        square = exact.dot(exact)
        ratio = forth.dot(forth) / square if square else Fraction(0)
        yield ratio, ratio
