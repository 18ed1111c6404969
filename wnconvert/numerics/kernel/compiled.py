"""The kernel in C, called through ctypes, which releases the interpreter's lock."""

from __future__ import annotations

import numpy as np

from wnconvert.numerics.kernel.interface import Kernel, OpenElements
from wnconvert.numerics.kernel.library import library
from wnconvert.numerics.rounding import FLOAT_FORMATS, cast
from wnconvert.numerics.sums import UNIT, Sums
from wnconvert.tensors.blocks import Array, Floats, scratch

__all__ = ["compiled_kernel"]


#: Open elements that are given back at once; more are asked for again.
_ROOM = 1024
_FORMATS = {"float32": 0, "float16": 1, "bfloat16": 2}


def compiled_kernel() -> Kernel:
    """The kernel. Raises ``OSError`` where it is not there."""
    found = library()

    def sums(values: Array) -> Sums:
        slabs, rows, inner = values.shape
        values, high, low = _plain(values), np.empty(rows), np.empty(rows)
        found.wnconvert_sums(*_block(values), high.ctypes.data, low.ctypes.data)
        return Sums(high, low, np.zeros(rows, np.int32), _error(slabs * inner))

    def products(values: Array, factor: Floats, width: int, dtype: str, out: Array) -> OpenElements:
        values, factor = _plain(values), _plain(factor)
        room = _ROOM
        while True:
            places, codes = scratch("places", (room,), np.int64), scratch("codes", (room,), np.uint32)
            count = found.wnconvert_products(
                *_block(values),
                factor.ctypes.data,
                width,
                _FORMATS[dtype],
                out.ctypes.data,
                places.ctypes.data,
                codes.ctypes.data,
                room,
            )
            if count <= room:
                return OpenElements(places[:count].copy(), codes[:count].copy())
            room = count

    def cast_narrow(values: Array, dtype: str) -> Array:
        if values.dtype.name not in _FORMATS or dtype not in _FORMATS:
            return cast(values, dtype)
        values, out = _plain(values), np.empty(values.shape, FLOAT_FORMATS[dtype].dtype)
        of = _FORMATS[values.dtype.name], values.ctypes.data, values.size
        return out if found.wnconvert_cast(*of, _FORMATS[dtype], out.ctypes.data) else cast(values, dtype)

    return Kernel("compiled", sums, sums, products, cast_narrow)


def _plain(array: Array) -> Array:
    """An array as the library reads it: contiguous, in the order of bytes of this machine."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _block(values: Array) -> tuple[int, ...]:
    """A block as the library's functions take it."""
    return _FORMATS[values.dtype.name], values.ctypes.data, *values.shape


def _error(terms: int) -> float:
    """The bound on the relative error of the sum of so many squares.

    Σv² is added up on paths of n additions at most. What they lose is at most n·2⁻⁵³ of the sum, and is added
    up with two roundings for each: Higham 2002, 4.3.
    """
    n = 2 * terms + 64
    return 2 * (n * UNIT) ** 2 + UNIT**2
