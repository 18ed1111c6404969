"""Σ term/√square between bounds, by roots of integers: as narrow as one likes, exact if rational.

Roots of rational numbers whose ratios are no squares are independent over the rationals: a sum is rational
only where all that is left belongs to a root that is.

Source: Besicovitch 1940, "On the linear independence of fractional powers of integers".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import count

__all__ = [
    "by_root",
    "cut",
    "rational_root",
    "refined_sum",
    "root_between",
    "roots_between",
    "sum_over_roots",
]


#: A lower and an upper bound.
_Bounds = tuple[Fraction, Fraction]


def root_between(square: Fraction, bits: int) -> _Bounds:
    """Bounds on a root, to so many bits.

    >>> least, most = root_between(Fraction(2), 20)
    >>> float(least), float(most)
    (1.4142131805419922, 1.4142141342163086)
    """
    power = bits - (square.numerator.bit_length() - square.denominator.bit_length()) // 2
    scaled = square * Fraction(4) ** power
    below = math.isqrt(scaled.numerator // scaled.denominator)
    return Fraction(below) / Fraction(2) ** power, Fraction(below + 1) / Fraction(2) ** power


def roots_between(squares: _Bounds, bits: int) -> _Bounds:
    """Bounds on the root of a number that is not negative, given those on it; exact of a rational one's.

    >>> roots_between((Fraction(9, 4), Fraction(4)), 128)
    (Fraction(3, 2), Fraction(2, 1))
    """
    least, most = (_root(end, bits) for end in squares)
    return least[0], most[1]


def _root(square: Fraction, bits: int) -> _Bounds:
    exact = rational_root(square)
    return root_between(square, bits) if exact is None else (exact, exact)


def cut(value: Fraction, bits: int) -> _Bounds:
    """A value between two of few digits."""
    if not value:
        return value, value
    power = bits + value.denominator.bit_length() - value.numerator.bit_length()
    scaled, unit = value * Fraction(2) ** power, Fraction(2) ** power
    return Fraction(math.floor(scaled)) / unit, Fraction(math.ceil(scaled)) / unit


def sum_over_roots(terms: Sequence[_Bounds], squares: Sequence[_Bounds], bits: int) -> _Bounds:
    """Bounds on Σ term/√square, given those on terms and squares, roots to so many bits."""
    least = most = Fraction(0)
    for (low, high), (below, above) in zip(terms, squares, strict=True):
        sides = root_between(1 / above, bits)[0], root_between(1 / below, bits)[1]
        ends = [end * side for end in (low, high) for side in sides]
        least, most = least + cut(min(ends), bits)[0], most + cut(max(ends), bits)[1]
    return least, most


def by_root(terms: Sequence[Fraction], squares: Sequence[Fraction]) -> list[tuple[Fraction, Fraction]]:
    """Σ term/√square as the sum of fewer such terms, no two of which have a rational ratio.

    >>> by_root([Fraction(3), Fraction(4)], [Fraction(2), Fraction(8)])
    [(Fraction(5, 1), Fraction(2, 1))]
    """
    together: dict[Fraction, Fraction] = {}
    for term, square in zip(terms, squares, strict=True):
        together[square] = together.get(square, Fraction(0)) + term
    sums: list[tuple[Fraction, Fraction]] = []
    for square, term in together.items():
        for at, (total, first) in enumerate(sums):
            ratio = rational_root(first / square)
            if ratio is not None:
                sums[at] = total + term * ratio, first
                break
        else:
            sums.append((term, square))
    return [(total, first) for total, first in sums if total]


def rational_root(square: Fraction) -> Fraction | None:
    """The root of a square of a rational number; None of any other."""
    up, down = math.isqrt(square.numerator), math.isqrt(square.denominator)
    return Fraction(up, down) if (up**2, down**2) == (square.numerator, square.denominator) else None


def refined_sum(terms: Sequence[Fraction], squares: Sequence[Fraction]) -> Iterator[_Bounds]:
    """Ever narrower bounds on Σ term/√square, of width 0 if it is rational; else they have no end.

    >>> list(refined_sum([Fraction(1), Fraction(1)], [Fraction(9), Fraction(1)]))[-1]
    (Fraction(4, 3), Fraction(4, 3))
    """
    for bits in (128, 256):
        yield _at(terms, squares, bits)
    left = by_root(terms, squares)
    roots = [rational_root(square) for _, square in left]
    if None not in roots:
        total = sum((term / each for (term, _), each in zip(left, roots, strict=True) if each), Fraction(0))
        yield total, total
        return
    for power in count(9):
        yield _at([term for term, _ in left], [square for _, square in left], 2**power)


def _at(terms: Sequence[Fraction], squares: Sequence[Fraction], bits: int) -> _Bounds:
    return sum_over_roots([(term, term) for term in terms], [(square, square) for square in squares], bits)
