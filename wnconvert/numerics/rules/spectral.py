"""w/σ, σ = uᵀ·mat(w)·v of the stored u and v: one factor for all elements, found in a reading of its own.

σ is dyadic. It is computed to about 70 bits; only if an element stays open, or σ may be 0, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from wnconvert.errors import LayerError
from wnconvert.numerics.rows import Divisor
from wnconvert.numerics.rules.factors import Bounds, Common, Ladder
from wnconvert.numerics.rules.matrix import Matrix, bilinear, exactly
from wnconvert.numerics.rules.parts import Part
from wnconvert.tensors.blocks import Floats

__all__ = ["SpectralFactor", "common_of"]


class SpectralFactor:
    """1/σ of a matrix, for results of dtype ``out``."""

    def __init__(self, matrix: Matrix, u: Part, v: Part, out: str) -> None:
        if (u.count, v.count) != (matrix.rows, matrix.columns):
            raise LayerError(
                f"u {u.shape} and v {v.shape} do not fit a matrix of {matrix.rows} × {matrix.columns}"
            )
        self.matrix, self.u, self.v, self.out = matrix, u, v, out

    def find(self) -> tuple[Common, Divisor]:
        """The factor, and what to say of σ."""
        u, v = self.u.whole(), self.v.whole()
        if self.matrix.is_long:
            first = bilinear(u, self.matrix.times(v))
        else:
            first = bilinear(v, self.matrix.transposed_times(u))
        if not (math.isfinite(self.matrix.top) and np.isfinite(u).all() and np.isfinite(v).all()):
            return Common.odd(1 / self.matrix.plainly(u, v)), Divisor(math.nan)
        return common_of(Ladder(self._rungs(u, v, first)), self.matrix.top, self.out)

    def _rungs(self, u: Floats, v: Floats, first: Bounds | None) -> Iterator[Bounds]:
        if first:
            yield first
        sigma = self.matrix.exact_times(exactly(v)).dot(exactly(u))
        yield sigma, sigma


def common_of(sigmas: Ladder, top: float, out: str) -> tuple[Common, Divisor]:
    """1/σ as a factor, and what to say of σ, given ever narrower bounds on σ."""
    for least, most in sigmas:
        if least > 0 or most < 0:
            break
    else:
        return Common.odd(math.inf), Divisor(0.0)
    common = Common.of(_squares(sigmas), top, negative=most < 0, out=out)
    return common, Divisor(1 / common.value if common.value else math.inf)


def _squares(sigmas: Ladder) -> Iterator[Bounds]:
    """Bounds on 1/σ²."""
    for least, most in sigmas:
        if least > 0 or most < 0:
            ends = 1 / least**2, 1 / most**2
            yield min(ends), max(ends)
