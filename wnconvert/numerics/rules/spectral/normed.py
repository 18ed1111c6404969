"""σ = uᵀ·mat(g·w/‖w‖)·v: that of a weight whose rows were normed before.

It is Σₖ gₖ·sₖ/√Qₖ over the normed rows k, where Q is the sum of a row's squares and s what the row adds to
uᵀ·mat(w)·v. From bounds on s and Q follow bounds on σ, with roots of integers; once both are exact, of 128,
256, … bits. Roots of rational numbers whose ratios are no squares are independent over the rationals: σ² is
rational only where all that is left belongs to one root, and only then can an element be a midpoint.

Source: Besicovitch 1940, "On the linear independence of fractional powers of integers".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import count

import numpy as np

from wnconvert.numerics.kernel.dots import Pairs
from wnconvert.numerics.rows import Divisor
from wnconvert.numerics.rules.factors import Bounds, Common, Ladder
from wnconvert.numerics.rules.norm import NormScale
from wnconvert.numerics.rules.parts import RulePart
from wnconvert.numerics.rules.spectral.matrix import Matrix, exactly
from wnconvert.numerics.rules.spectral.roots import by_root, sum_over_roots
from wnconvert.numerics.rules.spectral.sigma import SpectralFactor, common_of, signed_squares
from wnconvert.tensors.blocks import Array, Floats

__all__ = ["NormedSpectralFactor"]


class NormedSpectralFactor(SpectralFactor):
    """1/σ of a matrix whose rows, along any axis, were normed before."""

    def __init__(self, matrix: Matrix, u: RulePart, v: RulePart, out: str, norms: NormScale) -> None:
        super().__init__(matrix, u, v, out)
        self.norms, self.dim = norms, norms.source.cut[1]

    def find(self) -> tuple[Common, Divisor]:
        """The factor, and what to say of σ."""
        u, v = self.u.whole(), self.v.whole()
        sums = self.norms.sums()
        g = np.concatenate([part for _, part in self.norms.g.windows()])
        rungs = Ladder(self._normed(u, v, g, [sums.bounds(at) for at in range(len(g))]))
        finite = np.isfinite(sums.high).all() and all(np.isfinite(each).all() for each in (u, v, g))
        if not finite or not sums.high.all():
            return Common.odd(math.nan), Divisor(math.nan)
        return common_of(rungs, math.inf, self.out)

    def _normed(self, u: Floats, v: Floats, g: Floats, squares: list[Bounds]) -> Iterator[Bounds]:
        """Ever narrower bounds on σ·|σ|."""
        gs = [Fraction(float(each)) for each in g.tolist()]
        along_rows, weights = self._sides(u, v)
        row = self._row_of(along_rows=along_rows)
        pairs = self.matrix.times(v) if along_rows else self.matrix.transposed_times(u)
        if np.isfinite(pairs.error).all():
            sums = _grouped(weights, pairs, row, len(gs))
            yield signed_squares(
                sum_over_roots([_times(*each) for each in zip(gs, sums, strict=True)], squares, 128)
            )
        exact = (
            self.matrix.exact_times(exactly(v))
            if along_rows
            else self.matrix.exact_transposed_times(exactly(u))
        )
        terms = [Fraction(0)] * len(gs)
        for at, weight, number in zip(row.tolist(), weights.tolist(), exact.fractions(), strict=True):
            terms[at] += Fraction(weight) * number
        known = self.matrix.exact_squares(self.dim)
        yield from _refined([g * term for g, term in zip(gs, terms, strict=True)], known)

    def _sides(self, u: Floats, v: Floats) -> tuple[bool, Floats]:
        """Whether products with v along the rows keep the normed rows apart, and what those then weigh."""
        along_rows = self.dim is None or self.dim == self.matrix.dim
        return along_rows, u if along_rows else v

    def _row_of(self, *, along_rows: bool) -> Array:
        """The normed row of each row of the matrix, or of each column."""
        if self.dim is None:
            return np.zeros(self.matrix.rows, np.intp)
        if along_rows:
            return np.arange(self.matrix.rows)
        others = [size for axis, size in enumerate(self.matrix.shape) if axis != self.matrix.dim]
        axis = self.dim - (self.dim > self.matrix.dim)
        return np.asarray(np.indices(others)[axis].reshape(-1))


def _times(g: Fraction, ends: Bounds) -> Bounds:
    """Bounds on g times a number."""
    low, high = g * ends[0], g * ends[1]
    return min(low, high), max(low, high)


def _grouped(weights: Floats, numbers: Pairs, row: Array, count: int) -> list[Bounds]:
    """Bounds on Σ weight·number of each row."""
    found = [(Fraction(0), Fraction(0))] * count
    for at, (into, weight) in enumerate(zip(row.tolist(), weights.tolist(), strict=True)):
        ends = [Fraction(weight) * end for end in numbers.interval(at)]
        found[into] = found[into][0] + min(ends), found[into][1] + max(ends)
    return found


def _refined(terms: list[Fraction], squares: list[Fraction]) -> Iterator[Bounds]:
    """Ever narrower bounds on σ·|σ|, σ = Σ term/√square; equal ones if it is rational."""
    for bits in (128, 256):
        yield signed_squares(_exact_sum(terms, squares, bits))
    left = by_root(terms, squares)
    if len(left) < 2:
        square = sum((total * abs(total) / first for total, first in left), Fraction(0))
        yield square, square
        return
    totals, firsts = [total for total, _ in left], [first for _, first in left]
    for power in count(9):
        yield signed_squares(_exact_sum(totals, firsts, 2**power))


def _exact_sum(terms: Sequence[Fraction], squares: Sequence[Fraction], bits: int) -> Bounds:
    return sum_over_roots([(each, each) for each in terms], [(each, each) for each in squares], bits)
