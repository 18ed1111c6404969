"""w/σ, σ = uᵀ·mat(w)·v of the stored u and v: one factor for all elements, found in a reading of its own.

σ is dyadic. It is computed to about 70 bits; only if an element stays open, or σ may be 0, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np

from wnconvert.errors import LayerError
from wnconvert.numerics.rows import Divisor
from wnconvert.numerics.rules.factors import Bounds, Common, Ladder
from wnconvert.numerics.rules.parts import RulePart
from wnconvert.numerics.rules.spectral.matrix import Matrix, bilinear, exactly
from wnconvert.tensors.blocks import Floats

__all__ = ["SpectralFactor", "common_of", "signed_squares"]


class SpectralFactor:
    """1/σ of a matrix, for results of dtype ``out``."""

    def __init__(self, matrix: Matrix, u: RulePart, v: RulePart, out: str) -> None:
        if (u.count, v.count) != (matrix.rows, matrix.columns):
            raise LayerError(
                f"u {u.shape} and v {v.shape} do not fit a matrix of {matrix.rows} × {matrix.columns}"
            )
        self.matrix, self.u, self.v, self.out = matrix, u, v, out

    def find(self) -> tuple[Common, Divisor]:
        """The factor, and what to say of σ."""
        u, v = self.u.whole(), self.v.whole()
        if self.out in ("float16", "bfloat16"):
            weights, numbers = self.matrix.roughly_times(u, v)
        else:
            weights, numbers = self.matrix.accurately_times(u, v)
        if not (math.isfinite(self.matrix.top) and np.isfinite(u).all() and np.isfinite(v).all()):
            return Common.odd(1 / self.matrix.plainly(u, v)), Divisor(math.nan)
        squares = Ladder(self._rungs(u, v, bilinear(weights, numbers)))
        common, divisor = common_of(squares, self.matrix.top, self.out)
        most = float(np.linalg.norm(weights) * np.linalg.norm(numbers.high))
        return common, replace(divisor, share=abs(divisor.value) / most if most else 1.0)

    def _rungs(self, u: Floats, v: Floats, first: Bounds | None) -> Iterator[Bounds]:
        """Bounds on σ·|σ|."""
        if first:
            yield signed_squares(first)
        if self.out in ("float16", "bfloat16") and (second := bilinear(*self.matrix.accurately_times(u, v))):
            yield signed_squares(second)
        sigma = self.matrix.exact_times(exactly(v)).dot(exactly(u))
        yield signed_squares((sigma, sigma))


def signed_squares(ends: Bounds) -> Bounds:
    """Bounds on σ·|σ|, given those on σ."""
    return ends[0] * abs(ends[0]), ends[1] * abs(ends[1])


def common_of(squares: Ladder, top: float, out: str) -> tuple[Common, Divisor]:
    """1/σ as a factor of what is at most ``top``, and what to say of σ, given bounds on σ·|σ|."""
    least = most = Fraction(0)
    for least, most in squares:
        if least > 0 or most < 0:
            break
    else:
        return Common.odd(math.inf), Divisor(0.0)
    common = Common.of(_inverse(squares), top, negative=most < 0, out=out)
    return common, Divisor(1 / common.value if common.value else math.inf)


def _inverse(squares: Ladder) -> Iterator[Bounds]:
    """Bounds on 1/σ²."""
    for least, most in squares:
        if least > 0 or most < 0:
            ends = 1 / abs(least), 1 / abs(most)
            yield min(ends), max(ends)
