"""The four float formats, and casts between them that round once, to nearest even.

``round_both`` is Ziv's test: both ends of an interval are rounded, and if they agree, everything between
them is rounded to the same value. Source: Ziv 1991, "Fast evaluation of elementary mathematical functions
with correctly rounded last bit".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from wnconvert.errors import LayerError
from wnconvert.messages import option
from wnconvert.subnormals import subnormals
from wnconvert.tensors.blocks import Array, Floats, scratch
from wnconvert.tensors.dtypes import DType

__all__ = [
    "FLOAT_FORMATS",
    "DTypeLike",
    "Format",
    "cast",
    "count_overflow",
    "ieee",
    "name_of",
    "round_both",
]


DTypeLike = DType | np.dtype[Any] | str


class Format(NamedTuple):
    """A float format as codes: the magnitudes' bit patterns, which count upwards with the values.

    ``digits`` are the bits of a significand, the hidden one among them; the smallest number is 2**``least``.
    """

    dtype: np.dtype[Any]
    codes: np.dtype[Any]
    inf: int
    beyond: Fraction  # where the next value after the largest would be
    digits: int
    least: int

    @property
    def largest(self) -> float:
        """The largest value that is finite."""
        return math.ldexp(1 - 2.0**-self.digits, self.beyond.numerator.bit_length() - 1)

    def value(self, code: int) -> Fraction:
        """The magnitude of a code; for that of infinity, the value that would come next."""
        if code >= self.inf:
            return self.beyond
        return Fraction(float(np.array(code, self.codes).view(self.dtype)[()]))

    def nearest_root(self, square: Fraction, code: int) -> int:
        """The code of the value nearest to √square, ties to even, given one at most as large."""
        code = code or self._below_root(square)
        while code < self.inf:
            middle = (self.value(code) + self.value(code + 1)) / 2
            if square < middle**2 or (square == middle**2 and code % 2 == 0):
                break
            code += 1
        return code

    def _below_root(self, square: Fraction) -> int:
        """The code of the largest value that is at most √square."""
        if not square:
            return 0
        power = (square.numerator.bit_length() - square.denominator.bit_length()) // 2 - 1
        unit = max(power - self.digits, self.least)
        scaled = square / Fraction(4) ** unit
        below = math.isqrt(scaled.numerator // scaled.denominator)
        spare = max(below.bit_length() - self.digits, 0)
        value = Fraction(below >> spare << spare) * Fraction(2) ** unit
        if value >= self.beyond:
            return self.inf
        return int(np.array(float(value)).astype(self.dtype).view(self.codes))


FLOAT_FORMATS = {
    "float64": Format(np.dtype(np.float64), np.dtype(np.uint64), 0x7FF << 52, Fraction(2) ** 1024, 53, -1074),
    "float32": Format(np.dtype(np.float32), np.dtype(np.uint32), 0xFF << 23, Fraction(2) ** 128, 24, -149),
    "float16": Format(np.dtype(np.float16), np.dtype(np.uint16), 0x1F << 10, Fraction(2) ** 16, 11, -24),
    "bfloat16": Format(
        np.dtype(ml_dtypes.bfloat16), np.dtype(np.uint16), 0xFF << 7, Fraction(2) ** 128, 8, -133
    ),
}


@contextmanager
def ieee() -> Iterator[None]:
    """How numbers are computed here: by IEEE 754, subnormal ones too, without a word. No ``yield`` in it."""
    with np.errstate(all="ignore"), subnormals():
        yield


def name_of(dtype: DTypeLike) -> str:
    """The name of a foldable dtype. Raises ``LayerError`` for any other."""
    name = dtype if isinstance(dtype, str) else dtype.name
    if name not in FLOAT_FORMATS:
        raise LayerError(f"{name} cannot be folded", fix=f"{option('exclude')} leaves it as it is")
    return name


def cast(array: Array, dtype: DTypeLike) -> Array:
    """Cast between the four foldable dtypes with one rounding, to nearest even; any shape.

    float64 to bfloat16 goes through float32 in ml_dtypes and in torch, and so rounds twice.

    >>> x = np.array(1 + 2.0**-8 + 2.0**-40)
    >>> float(x.astype(ml_dtypes.bfloat16)), float(cast(x, "bfloat16"))
    (1.0, 1.0078125)
    """
    to = FLOAT_FORMATS[name_of(dtype)].dtype
    out = np.empty(array.shape, to)
    with ieee():
        _round(array, out)
    return out


def count_overflow(before: Array, after: Array) -> int:
    """Number of finite elements of ``before`` that a cast made infinite in ``after``."""
    with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN here
        return int(np.count_nonzero(np.isinf(after) & np.isfinite(before)))


def _round(x: Array, out: Array) -> None:
    if x.dtype != np.float64 or out.dtype != ml_dtypes.bfloat16:
        np.copyto(out, x, casting="unsafe")
        return
    # Where float32 gives a tie between two bfloat16, it may have rounded to that tie: step off it, to the
    # side of x. Bit patterns order magnitudes, so this is right for both signs.
    single = scratch("round", x.shape, np.float32)
    np.copyto(single, x, casting="unsafe")
    bits = single.view(np.uint32)
    ties = (bits & 0xFFFF) == 0x8000
    if ties.any():
        away = np.abs(x[ties]) - np.abs(single[ties].astype(np.float64))
        bits[ties] += np.sign(away).astype(np.int32).view(np.uint32)
    np.copyto(out, single, casting="unsafe")


def round_both(y: Floats, steps: int, low: Array) -> NDArray[np.bool_]:
    """Round y into ``low``; true where y's bits + ``steps`` round to another value. ``y`` is overwritten."""
    high = scratch("high", y.shape, low.dtype)
    _round(y, low)
    np.add(y.view(np.int64), steps, out=y.view(np.int64))
    _round(y, high)
    codes = np.dtype(f"u{low.itemsize}")
    return np.asarray(low.view(codes) != high.view(codes))
