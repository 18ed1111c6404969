"""What a weight exactly is, for any rule: Python's fractions, one element at a time, and nothing clever.

Every operation but a mask multiplies by the root of a rational number, so a weight is held as its sign and
its square. Where a matrix was normed before (its σ is a sum of roots), roots are cut off after 600 bits.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from tests.helpers.oracle import DTYPES, Array, nearest_root
from wnconvert.layers.rules import Mask, Norm, Rule, Spectral, SpectralStep, UnitVector

_BITS = 600


def exact_weight(rule: Rule, arrays: dict[str, Array], dtype: str) -> Array:
    """The correctly rounded weight; no rows that are zero, no σ that is 0, no NaN."""
    original = arrays["original"]
    out = np.empty(original.shape, DTYPES[dtype])
    values = {index: Fraction(float(original[index])) for index in np.ndindex(original.shape)}
    signs = {index: math.copysign(1.0, float(original[index])) for index in values}
    squares = {index: Fraction(1) for index in values}  # by which the square of a value is multiplied
    for operation in rule.operations:
        if isinstance(operation, Mask):
            for index in values:
                values[index] *= Fraction(float(arrays["mask"][index]))
                signs[index] *= math.copysign(1.0, float(arrays["mask"][index]))
            continue
        whole = {index: values[index] * _root(squares[index]) for index in values}
        whole = {
            index: -value if (value > 0) != (signs[index] > 0) else value for index, value in whole.items()
        }
        factors, sign = _factors(operation, whole, arrays, original.shape)
        for index, factor in factors.items():
            squares[index] *= factor
            signs[index] *= sign[index]
    for index, value in values.items():
        out[index] = math.copysign(nearest_root(value**2 * squares[index], dtype), signs[index])
    return out


def _factors(
    operation: object,
    values: dict[tuple[int, ...], Fraction],
    arrays: dict[str, Array],
    shape: tuple[int, ...],
) -> tuple[dict[tuple[int, ...], Fraction], dict[tuple[int, ...], float]]:
    """The square of what each element is multiplied by, and its sign."""
    if isinstance(operation, Norm):
        row = {index: 0 if operation.dim is None else index[operation.dim] for index in values}
        sums: dict[int, Fraction] = {}
        for index, value in values.items():
            sums[row[index]] = sums.get(row[index], Fraction(0)) + value**2
        g = [float(x) for x in arrays["g"].ravel()]
        return (
            {index: Fraction(g[row[index]]) ** 2 / sums[row[index]] for index in values},
            {index: math.copysign(1.0, g[row[index]]) for index in values},
        )
    if isinstance(operation, UnitVector):
        total = max(sum((value**2 for value in values.values()), Fraction(0)), Fraction(operation.eps) ** 2)
        return dict.fromkeys(values, 1 / total), dict.fromkeys(values, 1.0)
    assert isinstance(operation, (Spectral, SpectralStep))
    assert operation.dim is not None
    columns = [size for axis, size in enumerate(shape) if axis != operation.dim]
    matrix = [[Fraction(0)] * math.prod(columns) for _ in range(shape[operation.dim])]
    for index, value in values.items():
        rest = [at for axis, at in enumerate(index) if axis != operation.dim]
        column = int(np.ravel_multi_index(rest, columns)) if rest else 0
        matrix[index[operation.dim]][column] = value
    u = [Fraction(float(x)) for x in arrays["u"].ravel()]
    if isinstance(operation, Spectral):
        v = [Fraction(float(x)) for x in arrays["v"].ravel()]
        sigma = _dot(u, [_dot(line, v) for line in matrix])
        return dict.fromkeys(values, 1 / sigma**2), dict.fromkeys(values, math.copysign(1.0, sigma))
    back = [_dot(u, list(line)) for line in zip(*matrix, strict=True)]
    forth = [_dot(line, back) for line in matrix]
    return dict.fromkeys(values, _dot(back, back) / _dot(forth, forth)), dict.fromkeys(values, 1.0)


def _dot(a: list[Fraction], b: list[Fraction]) -> Fraction:
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


def _root(square: Fraction) -> Fraction:
    """√square, exactly where it is rational, else to 600 bits."""
    up, down = math.isqrt(square.numerator), math.isqrt(square.denominator)
    if (up**2, down**2) == (square.numerator, square.denominator):
        return Fraction(up, down)
    scaled = square * 4**_BITS
    return Fraction(math.isqrt(scaled.numerator // scaled.denominator), 2**_BITS)
