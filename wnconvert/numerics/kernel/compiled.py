"""The kernel in C, called through ctypes, which releases the interpreter's lock."""

from __future__ import annotations

import ctypes

import numpy as np

from wnconvert.numerics.kernel.interface import Kernel, OpenElements
from wnconvert.numerics.sums import UNIT, Sums
from wnconvert.tensors.blocks import Array, Floats, scratch

__all__ = ["LIBRARY", "compiled_kernel", "source_digest", "take_level"]


#: The library beside this file, made of ``rows.c`` when wnconvert is installed.
LIBRARY = __file__.removesuffix("compiled.py") + "rows.so"
#: Open elements that are given back at once; more are asked for again.
_ROOM = 1024
_FORMATS = {"float32": 0, "float16": 1, "bfloat16": 2}


def compiled_kernel() -> Kernel | None:
    """The kernel, or None where it was not compiled or cannot be loaded."""
    try:
        library = _library()
    except OSError:
        return None

    def sums(values: Array) -> Sums:
        slabs, rows, inner = values.shape
        values = np.ascontiguousarray(values)
        high, low = np.empty(rows), np.empty(rows)
        library.wnconvert_sums(
            _FORMATS[values.dtype.name],
            values.ctypes.data,
            slabs,
            rows,
            inner,
            high.ctypes.data,
            low.ctypes.data,
        )
        return Sums(high, low, np.zeros(rows, np.int32), _error(slabs * inner))

    def products(values: Array, factor: Floats, width: int, dtype: str, out: Array) -> OpenElements:
        values, factor = np.ascontiguousarray(values), np.ascontiguousarray(factor)
        room = _ROOM
        while True:
            places, codes = scratch("places", (room,), np.int64), scratch("codes", (room,), np.uint32)
            found = library.wnconvert_products(
                _FORMATS[values.dtype.name],
                values.ctypes.data,
                *values.shape,
                factor.ctypes.data,
                width,
                _FORMATS[dtype],
                out.ctypes.data,
                places.ctypes.data,
                codes.ctypes.data,
                room,
            )
            if found <= room:
                return OpenElements(places[:found].copy(), codes[:found].copy())
            room = found

    return Kernel("compiled", sums, sums, products)


def _error(terms: int) -> float:
    """The bound on the relative error of the sum of so many squares.

    Σv² is added up on paths of n additions at most. What they lose is at most n·2⁻⁵³ of the sum, and is added
    up with two roundings for each: Higham 2002, 4.3.
    """
    n = 2 * terms + 64
    return 2 * (n * UNIT) ** 2 + UNIT**2


def take_level(level: int) -> None:
    """Use no more of the processor than 0: what every one has, 1: AVX2, 2: AVX-512. For tests."""
    _library().wnconvert_take(level)


def source_digest() -> str:
    """The SHA-256 of the source that the library was made of."""
    digest: bytes = _library().wnconvert_source()
    return digest.decode()


def _library() -> ctypes.CDLL:
    """The library with the types of its functions. Raises ``OSError`` where it is not there."""
    library = ctypes.CDLL(LIBRARY)
    place, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_ssize_t
    sums, products = library.wnconvert_sums, library.wnconvert_products
    sums.argtypes, sums.restype = (number, place, size, size, size, place, place), None
    products.argtypes = (
        *(number, place, size, size, size),
        *(place, ctypes.c_int64, number, place),
        *(place, place, size),
    )
    products.restype = size
    library.wnconvert_take.argtypes, library.wnconvert_take.restype = (number,), None
    library.wnconvert_source.argtypes, library.wnconvert_source.restype = (), ctypes.c_char_p
    return library
