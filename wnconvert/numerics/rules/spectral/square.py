"""Which axis are the rows, where the first two have one size and u and v fit both: the numbers decide.

A trained u and v are singular vectors, nearly: σ along the right axis is at least 0.71 of the largest
singular value, and along the wrong one at most 0.07 of it. Where one σ is not at least twice the other, it is
not known.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from wnconvert.frozen import dataclass
from wnconvert.numerics.norms import arithmetic
from wnconvert.numerics.rows import Divisor
from wnconvert.numerics.rules.factors import Common
from wnconvert.numerics.rules.parts import RulePart
from wnconvert.numerics.rules.spectral.matrix import Matrix
from wnconvert.numerics.rules.spectral.sigma import SpectralFactor
from wnconvert.tensors.blocks import BLOCK_BYTES, Floats

__all__ = ["MatrixHealth", "SquareFactor", "matrix_health"]


#: Steps of the power iteration.
_STEPS = 30
#: How much of the largest singular value σ has at least along the right axis.
_LEAST = 0.5


class SquareFactor:
    """1/σ along the one of two axes where it is that of trained vectors."""

    def __init__(self, one: SpectralFactor, other: SpectralFactor) -> None:
        self.both = one, other

    def find(self) -> tuple[Common, Divisor]:
        """The factor, and what to say of σ."""
        (common, divisor), (other, small) = found = [factor.find() for factor in self.both]
        sizes = [abs(each.value) for _, each in found]
        if not all(np.isfinite(sizes)) or _is_same(common, other):
            return common, divisor
        at = int(sizes[1] > sizes[0])
        common, divisor = found[at]
        largest = _largest_of(self.both[at])
        if sizes[at] >= 2 * sizes[1 - at] and (largest is None or sizes[at] >= _LEAST * largest):
            return common, divisor
        what = (
            f"u and v fit both axes: σ is {found[0][1].value:.3g} along dim 0, {small.value:.3g} along dim 1"
        )
        return common, replace(divisor, doubt=f"{what}, and neither is known to be right")


def _is_same(one: Common, other: Common) -> bool:
    """Whether two factors are equal: one element, or a symmetric matrix."""
    if (one.mantissa > 0) != (other.mantissa > 0) or not (one.plain and other.plain):
        return False
    for (least, most), (low, high) in zip(one.squares, other.squares, strict=False):
        if most < low or high < least:
            return False
        if least == most == low == high:
            return True
    return False


def _largest_of(factor: SpectralFactor) -> float | None:
    """The largest singular value times the lengths of u and v."""
    u, v = factor.u.whole(), factor.v.whole()
    largest = _largest(factor.matrix, u)
    return None if largest is None else largest * float(np.linalg.norm(u) * np.linalg.norm(v))


def _largest(matrix: Matrix, u: Floats) -> float | None:
    """The largest singular value, by a power iteration from u; None of a matrix that is too large."""
    values = matrix.whole()
    if values is None:
        return None
    found = 0.0
    left = u / (np.linalg.norm(u) or 1.0)
    for _ in range(_STEPS):
        right = left @ values
        right /= np.linalg.norm(right) or 1.0
        left = values @ right
        found = float(np.linalg.norm(left))
        left /= found or 1.0
    return found


@dataclass(frozen=True, slots=True)
class MatrixHealth:
    """What spectral norm shows: σ, the largest singular value (None of too large a matrix), and lengths.

    All but σ are sums that numpy leaves to BLAS, in an order of its own on each processor, so they have the
    12 digits that are the same everywhere.
    """

    sigma: float
    largest: float | None
    u: float
    v: float


def matrix_health(original: RulePart, u: RulePart, v: RulePart, dim: int) -> MatrixHealth:
    """σ of the stored u and v, and how near it is to the largest singular value after 30 steps from u.

    >>> parts = (RulePart.of(np.array(each)) for each in ([[2.0, 0.0], [0.0, 1.0]], [1.0, 0.0], [1.0, 0.0]))
    >>> matrix_health(*parts, dim=0)
    MatrixHealth(sigma=2.0, largest=2.0, u=1.0, v=1.0)
    """
    matrix = Matrix(original.read, original.shape, dim, original.name, BLOCK_BYTES)
    with arithmetic():
        divisor = SpectralFactor(matrix, u, v, "float64").find()[1]
        left, right = u.whole(), v.whole()
        largest = _largest(matrix, left)
        lengths = _digits(float(np.linalg.norm(left))), _digits(float(np.linalg.norm(right)))
        return MatrixHealth(divisor.value, None if largest is None else _digits(largest), *lengths)


def _digits(value: float) -> float:
    return float(f"{value:.12g}")
