"""(w − S/n)·γ·c/d + β between bounds that can be narrowed, and exactly where it is rational.

Without a β its square is rational, unless ε stands outside a root that is not. Else roots of integers give
128, 256, … bits; what is not rational is no midpoint, so this ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import count

from wnconvert.frozen import dataclass
from wnconvert.layers.rules import Standardize
from wnconvert.numerics.rules.factors import Bounds
from wnconvert.numerics.rules.spectral.roots import roots_between

__all__ = ["Standard"]


#: Bits of the first root.
_BITS = 128


@dataclass(frozen=True, slots=True)
class Standard:
    """What standardizes a row of ``length`` elements, given bounds on its S and Q."""

    operation: Standardize
    length: int

    @property
    def over(self) -> int:
        """What divides n·Q − S² to give the variance."""
        return self.length * (self.length - (self.operation.std == "unbiased"))

    def spread(self, total: Bounds, square: Bounds) -> Bounds:
        """Bounds on n·Q − S², which is not negative."""
        ends = sorted(each**2 for each in total)
        nearest = Fraction(0) if total[0] <= 0 <= total[1] else ends[0]
        least, most = self.length * square[0] - ends[1], self.length * square[1] - nearest
        return max(least, Fraction(0)), max(most, Fraction(0))

    def variance(self, spread: Bounds) -> Bounds:
        """Bounds on the variance."""
        return spread[0] / self.over, spread[1] / self.over

    def divisor_square(self, variance: Bounds) -> Bounds | None:
        """Bounds on d²; None where it needs the root of the variance."""
        eps = Fraction(self.operation.eps)
        if self.operation.eps_at == "var":
            return variance[0] + eps, variance[1] + eps
        if self.operation.eps_at == "max":
            fan = self.operation.fan
            return max(variance[0] * fan, eps), max(variance[1] * fan, eps)
        return None if eps else variance

    def divisor(self, variance: Bounds, bits: int) -> Bounds:
        """Bounds on d, with roots to so many bits."""
        square = self.divisor_square(variance)
        if square:
            return roots_between(square, bits)
        least, most = roots_between(variance, bits)
        return least + Fraction(self.operation.eps), most + Fraction(self.operation.eps)

    def results(
        self, value: float, total: Bounds, square: Bounds, gain: Fraction, shift: Fraction
    ) -> Iterator[Bounds]:
        """Ever narrower bounds on y·|y|, y what an element becomes; without end if it is not rational.

        Bounds on S and Q that are apart give one pair alone.
        """
        n = self.length
        centred = (_centred(value, total[1], n), _centred(value, total[0], n))
        variance = self.variance(self.spread(total, square))
        is_exact = total[0] == total[1] and square[0] == square[1]
        squared = self.divisor_square(variance)
        gain *= Fraction(self.operation.scale)
        if not any(centred) or not gain:
            yield _signed_square((shift, shift))
            return
        if squared and not shift:
            if squared[0]:
                yield _over(_signed_square(_times(centred, gain)), squared)
            return
        for bits in (_BITS * 2**power for power in count()):
            divisor = self.divisor(variance, bits)
            if divisor[0]:
                least, most = _over(_times(centred, gain), divisor)
                yield _signed_square((least + shift, most + shift))
            if not is_exact or divisor[0] == divisor[1]:
                return


def _centred(value: float, total: Fraction, length: int) -> Fraction:
    """w − S/n."""
    return Fraction(value) - total / length


def _signed_square(ends: Bounds) -> Bounds:
    """Bounds on y·|y|, given those on y."""
    least, most = (end * abs(end) for end in ends)
    return least, most


def _times(ends: Bounds, factor: Fraction) -> Bounds:
    found = sorted(end * factor for end in ends)
    return found[0], found[1]


def _over(ends: Bounds, divisor: Bounds) -> Bounds:
    """Bounds on a quotient; the divisor is positive."""
    found = [end / by for end in ends for by in divisor]
    return min(found), max(found)
