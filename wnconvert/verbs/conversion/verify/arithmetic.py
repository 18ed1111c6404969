"""Numbers of an output against w = g·v/‖v‖ in plain floating point, with a bound on its error.

It shares nothing with ``numerics``. float64 is enough for the narrower dtypes: a wrong number passes only if
it is one of the two around a quotient that is as near to the midpoint of both as that bound, a thousandth of
a unit or less. Where float64 is in it, extended precision is used, if the platform has it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnconvert.tensors.blocks import Array, scratch
from wnconvert.tensors.dtypes import DType

__all__ = [
    "Reals",
    "are_cast",
    "are_norms",
    "are_quotients",
    "are_sums",
    "are_units",
    "are_values",
    "codes",
    "real_for",
    "squares",
    "widened",
]


#: Numbers in the dtype in which others are checked: float64, or extended precision.
Reals = NDArray[Any]

#: How many units in the last place a float64 of the output may be off; one of another dtype is the nearest.
_MOST_ULPS = 4


def real_for(*dtypes: DType) -> np.dtype[Any]:
    """The dtype in which numbers of these dtypes are checked."""
    return np.dtype(np.longdouble if any(dtype.name == "float64" for dtype in dtypes) else np.float64)


def widened(values: Array, real: np.dtype[Any]) -> Reals:
    """Numbers in the dtype in which they are checked, in a scratch array."""
    wide = scratch("checked", values.shape, real)
    np.copyto(wide, values)
    return wide


def squares(x: Reals) -> Reals:
    """The sum of squares of each row of a block (slabs, rows, inner)."""
    slabs, rows, inner = x.shape
    if slabs == 1:
        return np.asarray(np.einsum("ri,ri->r", x[0], x[0]))
    width = rows * inner
    every = np.multiply(x, x, out=scratch("squares checked", x.shape, x.dtype)).reshape(slabs, width)
    # Short slabs are added side by side: numpy is slow with short vectors.
    count = max(min(1024 // width, slabs), 1)
    whole = slabs // count * count
    sums = every[:whole].reshape(-1, count * width).sum(axis=0).reshape(count, width).sum(axis=0)
    sums += every[whole:].sum(axis=0)
    return np.asarray(sums.reshape(rows, inner).sum(axis=1))


def are_quotients(found: Array, v: Array, g: Array, norms: Reals, *, x: Reals, adds: int) -> bool:
    """Whether a block of the output is g·v/‖v‖; ``g`` and ``norms`` are those of its rows.

    ``x`` is v widened, and is overwritten; ``adds`` is the number of additions in a sum of squares. A row
    whose g is its rounded norm may be v itself.
    """
    scale = np.where(norms == 0, 0, g.astype(x.dtype) / norms)
    may_be_v = v.dtype == g.dtype == found.dtype
    if may_be_v:
        scale[(norms.astype(g.dtype) == g) & (norms != 0)] = 1
    _multiply_rows(x, scale)
    at = _places(_doubt(found, x, _MOST_ULPS - 1))
    if not at.size:
        return True
    found, given, row = found.reshape(-1)[at], v.reshape(-1)[at], at // v.shape[2] % v.shape[1]
    quotients = given.astype(x.dtype) / norms[row] * g[row].astype(x.dtype)
    zero = norms[row] == 0
    quotients[zero] = given[zero].astype(x.dtype) * 0
    units = _MOST_ULPS if found.dtype == np.float64 else 0.5
    right = _are_near(found, quotients, _error(norms, adds), units)
    if may_be_v:
        right |= _are_near(g, norms, _error(norms, adds))[row] & (codes(found) == codes(given))
    return bool(right.all())


def are_values(found: Array, x: Reals, error: float, off: Reals | float = 0.0) -> bool:
    """Whether numbers of the output are ``x``, each rounded once.

    ``x`` is known to a relative ``error``, and is ``off`` by that much beside.
    """
    at = _places(_doubt(found, x, _MOST_ULPS - 1))
    if not at.size:
        return True
    units = _MOST_ULPS if found.dtype == np.float64 else 0.5
    these, exact, slack = (
        each.reshape(-1)[at] for each in (found, x, np.broadcast_to(np.asarray(off, x.dtype), x.shape))
    )
    low, high, found = exact - slack, exact + slack, these.astype(x.dtype)
    between = (found >= low) & (found <= high)
    for end in (low, high):
        between |= _are_near(these, end, error, units)
    return bool((_are_near(these, exact, error, units) | (between & (slack > 0))).all())


def are_sums(found: Array, x: Reals, off: Reals) -> bool:
    """Whether numbers of the output are ``x``, each known to be no further ``off``, and rounded once."""
    units = _MOST_ULPS if found.dtype == np.float64 else 0.5
    return bool(_are_within(found, x, off, units).all())


def are_cast(found: Array, values: Array) -> bool:
    """Whether numbers of the output are those of the source, each rounded once."""
    x = widened(values, np.dtype(np.float64))
    at = _places(_doubt(found, x, 0))
    return not at.size or bool(_are_near(found.reshape(-1)[at], x.reshape(-1)[at], 0).all())


def are_norms(g: Array, norms: Reals, adds: int) -> bool:
    """Whether each g is the number next to its norm; ``adds`` as in ``are_quotients``."""
    return bool(_are_near(g, norms, _error(norms, adds)).all())


def are_units(found: Array, zeros: Array, unit: Any) -> NDArray[np.bool_]:
    """Which numbers are the next to a ``unit`` with the sign of a zero."""
    exact = np.copysign(unit, zeros.astype(type(unit)))
    units = _MOST_ULPS if found.dtype == np.float64 else 0.5
    return _are_near(found, exact, 4 * float(np.finfo(type(unit)).eps), units)


def _error(norms: Reals, adds: int) -> float:
    """A bound on the relative error of a norm, and of a quotient by it."""
    return float((adds / 2 + 6) * np.finfo(norms.dtype).eps)


def _multiply_rows(x: Reals, scale: Reals) -> None:
    slabs, rows, inner = x.shape
    if slabs == 1:
        np.multiply(x[0], scale[:, None], out=x[0])
    else:
        wide = x.reshape(slabs, rows * inner)
        np.multiply(wide, np.repeat(scale, inner), out=wide)


# -- numbers, and those beside them


def _doubt(found: Array, x: Reals, most: int) -> NDArray[np.bool_]:
    """Where numbers of the output may be other than ``x`` rounded: elsewhere they are sure to be right.

    float64 may be ``most`` units off. Sixteen bits are compared as float32, in which all midpoints between
    them are numbers: less than half a unit off is right, and at a midpoint is doubt.
    """
    if found.dtype == np.float64:
        off = x.astype(np.float64).view(np.int64) - found.view(np.int64) + most
        return np.asarray(off.view(np.uint64) > 2 * most)
    single = scratch("rounded", x.shape, np.float32)
    np.copyto(single, x, casting="unsafe")
    bits = single.view(np.int32)
    if found.dtype == np.float32:
        return np.asarray(bits != found.view(np.int32))
    half = 1 << (12 if found.dtype == np.float16 else 15)
    np.subtract(bits, _in_float32(found).view(np.int32), out=bits)
    np.add(bits, half - 1, out=bits)
    return np.asarray(bits.view(np.uint32) > 2 * half - 2)


def _places(doubt: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Where there is doubt: nearly always nowhere, which is seen in a fifth of the time."""
    return np.flatnonzero(doubt) if doubt.any() else np.empty(0, np.intp)


def _in_float32(values: Array) -> NDArray[np.float32]:
    """Numbers of 16 bits as float32."""
    if values.dtype == np.float16:
        return np.asarray(_halves().take(values.view(np.uint16)))
    single = scratch("wide", values.shape, np.float32)
    np.copyto(single, values)
    return single


@cache
def _halves() -> NDArray[np.float32]:
    """Every float16 by its code: numpy converts one at a time, and a look-up is faster."""
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def codes(values: Array) -> Array:
    """The bits of numbers, as unsigned integers."""
    return np.asarray(np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}"))


def _are_near(found: Array, exact: Reals, error: float, units: float = 0.5) -> NDArray[np.bool_]:
    """Whether numbers are at most so many units off from the exact ones, known to a relative ``error``.

    A unit is the step to the next number on that side. What lies in the middle is rounded to even, NaN is
    NaN, and what is past the largest number is infinite.
    """
    size = np.abs(exact)
    return _are_within(found, exact, np.where(np.isinf(size), 0, size * error), units)


def _are_within(found: Array, exact: Reals, off: Reals, units: float) -> NDArray[np.bool_]:
    """The same of numbers that are known to be no further ``off``."""
    bits, infinite = codes(found), int(codes(np.full(1, np.inf, found.dtype))[0])
    sign = 1 << (8 * found.dtype.itemsize - 1)
    size = bits & bits.dtype.type(sign - 1)
    at, above, below = (
        _values(code, infinite, found.dtype, exact.dtype)
        for code in (size, size + 1, np.maximum(size, 1) - 1)
    )
    low, high = at - (at - below) * units, np.where(size == infinite, np.inf, at + (above - at) * units)
    magnitude = np.abs(exact)
    near = (magnitude + off >= low) & (magnitude - off <= high)
    near &= (size <= infinite) & (((bits >= sign) == np.signbit(exact)) | ((magnitude <= off) & (off > 0)))
    near &= (off > 0) | (size % 2 == 0) | ((magnitude != low) & (magnitude != high))
    return np.where(np.isnan(exact), size > infinite, near)


def _values(sizes: Array, infinite: int, dtype: np.dtype[Any], real: np.dtype[Any]) -> Reals:
    """The magnitudes with these codes; for that of infinity, the number that would come next."""
    values: Reals = np.minimum(sizes, sizes.dtype.type(infinite - 1)).view(dtype).astype(real)
    last, before = (np.array([infinite - by], sizes.dtype).view(dtype).astype(real)[0] for by in (1, 2))
    values[sizes >= infinite] = last + (last - before)
    return values
