"""What weight norm's numbers exactly are: Python's fractions, one element at a time, and nothing clever."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
NARROW = ("float32", "float16", "bfloat16")
# mantissa bits (with the hidden one), smallest exponent of a unit in the last place, 2 to the overflow
_FORMATS = {
    "float64": (53, -1074, 1024),
    "float32": (24, -149, 128),
    "float16": (11, -24, 16),
    "bfloat16": (8, -133, 128),
}


def nearest_root(square: Fraction, dtype: str) -> float:
    """√square rounded to the nearest value of ``dtype``, ties to even, infinity past the largest."""
    if square == 0:
        return 0.0
    bits, least, overflow = _FORMATS[dtype]
    exponent = (square.numerator.bit_length() - square.denominator.bit_length()) // 2 + 1
    while Fraction(4) ** exponent > square:  # the largest with 4^exponent <= square
        exponent -= 1
    unit = max(exponent - bits + 1, least)
    scaled = square / Fraction(4) ** unit
    below = math.isqrt(scaled.numerator // scaled.denominator)
    middle = (Fraction(2 * below + 1) / 2) ** 2
    if scaled > middle or (scaled == middle and below % 2 == 1):
        below += 1
    value = Fraction(below) * Fraction(2) ** unit
    return math.inf if value >= Fraction(2) ** overflow else float(value)


def box(array: Array, dim: int | None) -> Array:
    """The array as (slabs, rows, inner elements)."""
    if dim is None:
        return array.reshape(1, 1, -1)
    return array.reshape(math.prod(array.shape[:dim]), array.shape[dim], -1)


def squares(v: Array, dim: int | None) -> list[Fraction]:
    """Σv² of each row."""
    rows = box(v, dim)
    return [
        sum((Fraction(float(x)) ** 2 for x in rows[:, at].ravel()), Fraction(0))
        for at in range(rows.shape[1])
    ]


def exact_norms(v: Array, dim: int | None, dtype: str) -> Array:
    """The correctly rounded norms."""
    return np.array([nearest_root(square, dtype) for square in squares(v, dim)]).astype(DTYPES[dtype])


def exact_fold(v: Array, g: Array, dim: int | None, dtype: str) -> Array:
    """The correctly rounded fold, without the rule that a row may be v itself; no zero rows."""
    rows, found = box(v, dim), np.empty(box(v, dim).shape, DTYPES[dtype])
    for at, (square, magnitude) in enumerate(zip(squares(v, dim), g.ravel(), strict=True)):
        for slab, inner in np.ndindex(rows.shape[0], rows.shape[2]):
            product = Fraction(float(rows[slab, at, inner])) * Fraction(float(magnitude))
            sign = math.copysign(1.0, float(rows[slab, at, inner])) * math.copysign(1.0, float(magnitude))
            found[slab, at, inner] = math.copysign(nearest_root(product**2 / square, dtype), sign)
    return found.reshape(v.shape)


def ulps_off(v: Array, g: Array, dim: int | None, w: Array) -> float:
    """How many float64 ulp the elements of w are at most off, measured with 40 more bits."""
    rows, results, worst = box(v, dim), box(w, dim), 0.0
    for at, (square, magnitude) in enumerate(zip(squares(v, dim), g.ravel(), strict=True)):
        for slab, inner in np.ndindex(rows.shape[0], rows.shape[2]):
            product = abs(Fraction(float(rows[slab, at, inner])) * Fraction(float(magnitude)))
            got = float(results[slab, at, inner])
            ulp = Fraction(math.ulp(got)) / 2**40
            scaled = product**2 / square / ulp**2
            exact = math.isqrt(scaled.numerator // scaled.denominator)
            worst = max(worst, float(abs(abs(Fraction(got)) / ulp - exact) / 2**40))
    return worst
