"""What a weight exactly is, for any rule: Python's fractions, one element at a time, and nothing clever.

Most operations multiply by the root of a rational number, so a weight is held as its sign and its square.
Where a matrix was normed before (its σ is a sum of roots), roots are cut off after 600 bits.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from tests.helpers.oracle import DTYPES, Array, nearest_root
from wnconvert.layers.rules import (
    AffineBefore,
    Equalized,
    Guard,
    Mask,
    Neighbour,
    Norm,
    NormBefore,
    NormBehind,
    Over,
    Rule,
    Spectral,
    SpectralStep,
    Standardize,
    Unit,
    UnitVector,
)

_BITS = 600

Numbers = dict[tuple[int, ...], Fraction]


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
        if isinstance(operation, Standardize):
            values, squares, signs = _standardized(operation, whole, arrays)
            continue
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
            {
                index: Fraction(g[row[index]]) ** 2 / _divisor_square(operation.guard, sums[row[index]])
                for index in values
            },
            {index: math.copysign(1.0, g[row[index]]) for index in values},
        )
    if isinstance(operation, (Unit, Equalized, Over)):
        return _scaled(operation, values, arrays)
    if isinstance(operation, (NormBehind, NormBefore, AffineBefore)):
        found = _channel_factors(operation, arrays, shape)
        return (
            {index: found[_channel(operation, index, shape)][0] for index in values},
            {index: found[_channel(operation, index, shape)][1] for index in values},
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


def _scaled(
    operation: Unit | Equalized | Over, values: Numbers, arrays: dict[str, Array]
) -> tuple[Numbers, dict[tuple[int, ...], float]]:
    """The square of what each element is multiplied by, and its sign."""
    if isinstance(operation, Over):
        return _over(operation, arrays, values)
    scale, sign = Fraction(operation.scale) ** 2, math.copysign(1.0, operation.scale)
    squares = dict.fromkeys(values, scale)
    if isinstance(operation, Unit):
        for indices in _rows(values, operation.dim):
            total = sum((values[index] ** 2 for index in indices), Fraction(0))
            squares.update(dict.fromkeys(indices, scale / _divisor_square(operation.guard, total)))
    return squares, dict.fromkeys(values, sign)


def _over(
    operation: Over, arrays: dict[str, Array], values: Numbers
) -> tuple[Numbers, dict[tuple[int, ...], float]]:
    """The square of what each element is multiplied by, and its sign."""
    squares: Numbers = {}
    signs: dict[tuple[int, ...], float] = {}
    g = [Fraction(float(x)) for x in arrays["g"].ravel()] if operation.gain else []
    for row, indices in enumerate(_rows(values, operation.dim)):
        held = [Fraction(float(arrays["divisor"][index])) for index in indices]
        total = sum(held if operation.squares else (each**2 for each in held), Fraction(0))
        factor = g[row] if operation.gain else operation.scale
        square = factor**2 / _divisor_square(operation.guard, total)
        squares |= dict.fromkeys(indices, square)
        signs |= dict.fromkeys(indices, math.copysign(1.0, factor))
    return squares, signs


def _divisor_square(guard: Guard | None, total: Fraction) -> Fraction:
    """The square of what a row with this sum of squares is divided by."""
    if guard is None:
        return total
    eps = Fraction(guard.eps)
    return {
        "max": max(total * guard.share**2, eps**2),
        "max of squares": max(total * guard.share, eps),
        "norm": (_root(total) * guard.share + eps) ** 2,
        "squares": total * guard.share + eps,
    }[guard.at]


def _rows(values: Numbers, dim: int | None) -> list[list[tuple[int, ...]]]:
    """The indices of the elements of each row."""
    found: dict[int, list[tuple[int, ...]]] = {}
    for index in values:
        found.setdefault(0 if dim is None else index[dim], []).append(index)
    return list(found.values())


def _standardized(
    operation: Standardize, values: Numbers, arrays: dict[str, Array]
) -> tuple[Numbers, Numbers, dict[tuple[int, ...], float]]:
    """Numbers, what their squares are multiplied by, and their signs."""
    made, squares, signs = {}, {}, {}
    for row, indices in enumerate(_rows(values, operation.dim)):
        n = len(indices)
        mean = sum((values[index] for index in indices), Fraction(0)) / n
        variance = sum(((values[index] - mean) ** 2 for index in indices), Fraction(0))
        variance /= n if operation.std == "biased" else n - 1
        divisor_square = {
            "var": variance + Fraction(operation.eps),
            "std": (_root(variance) + Fraction(operation.eps)) ** 2,
            "max": max(variance * operation.fan, Fraction(operation.eps)),
        }[operation.eps_at]
        gain = Fraction(operation.scale)
        if operation.gain:
            gain *= Fraction(float(arrays["gain"].ravel()[row]))
        for index in indices:
            value, square = (values[index] - mean) * gain, 1 / divisor_square
            if operation.shift:
                beta = Fraction(float(arrays["shift"].ravel()[row]))
                value, square = value * _root(square) + beta, Fraction(1)
            made[index], squares[index] = value, square
            signs[index] = -1.0 if value < 0 or (not value and gain < 0 and not operation.shift) else 1.0
    return made, squares, signs


def _channel(operation: Neighbour, index: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """The channel of an element, as torch lays out the weights of grouped convolutions."""
    if operation.dim == 0:
        return index[0]
    per_group = shape[0] // operation.groups
    return index[0] // per_group * shape[1] + index[1]


def _channel_factors(
    operation: Neighbour, arrays: dict[str, Array], shape: tuple[int, ...]
) -> list[tuple[Fraction, float]]:
    """γ²/(v + ε) and the sign of γ, of each channel."""
    count = shape[operation.dim] * operation.groups
    gamma = [float(x) for x in arrays["gamma"].ravel()] if "gamma" in operation.roles else [1.0] * count
    if isinstance(operation, AffineBefore):
        return [(Fraction(each) ** 2, math.copysign(1.0, each)) for each in gamma]
    sums = [Fraction(float(x)) + Fraction(operation.eps) for x in arrays["variance"].ravel()]
    return [
        (Fraction(each) ** 2 / total, math.copysign(1.0, each))
        for each, total in zip(gamma, sums, strict=True)
    ]


def exact_bias(rule: Rule, arrays: dict[str, Array], dtype: str) -> Array:
    """The correctly rounded bias of a layer into which a norm is folded; a zero has no sign."""
    operation = rule.neighbour
    assert operation is not None
    original = arrays["original"]
    factors = [
        _root(square) * int(sign) for square, sign in _channel_factors(operation, arrays, original.shape)
    ]
    numbers = {role: [Fraction(float(x)) for x in array.ravel()] for role, array in arrays.items()}
    zeros = [Fraction(0)] * len(factors)
    mean = numbers["mean"] if "mean" in operation.offsets else zeros
    beta = numbers["beta"] if "beta" in operation.offsets else zeros
    if isinstance(operation, NormBehind):
        bias = numbers.get("bias", zeros)
        made = [(b - m) * a + s for b, m, a, s in zip(bias, mean, factors, beta, strict=True)]
    else:
        out = 1 - operation.dim
        made = list(numbers.get("bias", [Fraction(0)] * original.shape[out]))
        shifts = [s - m * a for s, m, a in zip(beta, mean, factors, strict=True)]
        for index in np.ndindex(original.shape):
            weight = Fraction(float(original[index])) * Fraction(
                float(arrays["mask"][index]) if "mask" in arrays else 1
            )
            made[index[out]] += weight * shifts[_channel(operation, index, original.shape)]
    return np.array([math.copysign(nearest_root(value**2, dtype), value) for value in made]).astype(
        DTYPES[dtype]
    )


def _dot(a: list[Fraction], b: list[Fraction]) -> Fraction:
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


def _root(square: Fraction) -> Fraction:
    """√square, exactly where it is rational, else to 600 bits and more."""
    up, down = math.isqrt(square.numerator), math.isqrt(square.denominator)
    if (up**2, down**2) == (square.numerator, square.denominator):
        return Fraction(up, down)
    bits = _BITS + max(square.denominator.bit_length() - square.numerator.bit_length(), 0) // 2
    scaled = square * 4**bits
    return Fraction(math.isqrt(scaled.numerator // scaled.denominator), 2**bits)
