"""The kernel in C, called through ctypes, which releases the interpreter's lock."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from wnconvert.numerics.kernel.dots import Pairs, along_rows
from wnconvert.numerics.kernel.interface import Centres, Kernel, OpenElements
from wnconvert.numerics.kernel.library import library
from wnconvert.numerics.kernel.plain import kept_by, largest, selected
from wnconvert.numerics.rounding import FLOAT_FORMATS, cast
from wnconvert.numerics.sums import UNIT, Sums
from wnconvert.tensors.blocks import Array, Floats, scratch

__all__ = ["compiled_kernel"]


#: Open elements that are given back at once; more are asked for again.
_ROOM = 4096
#: Sums that long rows are added up in, side by side: ``LANES`` in ``elements.h``.
_LANES = 32
#: Elements that are worked on at a time, and slabs that are added side by side: as in ``sums.c``.
_RUN, _NARROW = 512, 256
_FORMATS = {"float32": 0, "float16": 1, "bfloat16": 2}
#: The same by the classes of numpy's elements: names take longer to be looked up, and the hash of a dtype
#: that numpy does not own changes where a file is unpickled that another release of ml_dtypes wrote.
_CODES = {FLOAT_FORMATS[name].dtype.type: code for name, code in _FORMATS.items()}


def compiled_kernel() -> Kernel:
    """The kernel. Raises ``OSError`` where it is not there."""
    made = _Compiled(library())
    ways = made.sums, made.sums, made.moments, made.products, made.centred, made.cast, made.dots, made.dots
    return Kernel("compiled", *ways, made.kept, made.select, made.largest)


class _Compiled:
    """What the library does, as ``Kernel`` has it."""

    def __init__(self, found: ctypes.CDLL) -> None:
        self.found = found

    def sums(self, values: Array) -> Sums:
        slabs, rows, inner = values.shape
        values, high, low = _plain(values), np.empty(rows), np.empty(rows)
        self.found.wnconvert_sums(*_block(values), high.ctypes.data, low.ctypes.data)
        return Sums(high, low, np.zeros(rows, np.int32), _error(slabs * inner))

    def moments(self, values: Array) -> tuple[Sums, Pairs]:
        slabs, rows, inner = values.shape
        sums, values, high, low = self.sums(values), _plain(values), np.empty(rows), np.empty(rows)
        squares = sums.high.ctypes.data
        self.found.wnconvert_totals(*_block(values), squares, high.ctypes.data, low.ctypes.data)
        # Magnitudes add up to √(n·Σv²) at most.
        size = np.sqrt(sums.high * (slabs * inner)) * 1.01
        lost = 8 * (slabs * inner + 64) * (_longest(slabs, rows, inner) + 64) * UNIT**2
        return sums, Pairs(high, low, size * lost)

    def products(self, values: Array, factor: Floats, width: int, dtype: str, out: Array) -> OpenElements:
        return self._made(values, None, factor, width, dtype, out)

    def centred(  # noqa: PLR0917 -- as ``Kernel.centred``
        self, values: Array, centres: Centres, factor: Floats, width: int, dtype: str, out: Array
    ) -> OpenElements:
        return self._made(values, Centres(*map(_plain, centres)), factor, width, dtype, out)

    def _made(  # noqa: PLR0917 -- as ``Kernel.centred``
        self, values: Array, centres: Centres | None, factor: Floats, width: int, dtype: str, out: Array
    ) -> OpenElements:
        values, factor = _plain(values), _plain(factor)
        of_rows = [each.ctypes.data for each in centres] if centres else [None] * 3
        room = _ROOM
        while True:
            places, codes = scratch("places", (room,), np.int64), scratch("codes", (room,), np.uint32)
            count = self.found.wnconvert_products(
                *_block(values),
                *of_rows,
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

    def cast(self, values: Array, dtype: str) -> Array:
        if values.dtype.name not in _FORMATS or dtype not in _FORMATS:
            return cast(values, dtype)
        values, out = _plain(values), np.empty(values.shape, FLOAT_FORMATS[dtype].dtype)
        is_finite = self.found.wnconvert_cast(*_run(values), _FORMATS[dtype], out.ctypes.data)
        return out if is_finite else cast(values, dtype)

    def dots(self, values: Array, factors: Floats, top: float, found: Pairs) -> None:
        slabs, rows, inner = values.shape
        along = along_rows(values, factors)
        values, factors = _plain(values), _plain(factors)
        high, low = np.zeros(len(found.high)), np.zeros(len(found.high))
        add = self.found.wnconvert_row_dots if along else self.found.wnconvert_column_dots
        add(*_block(values), factors.ctypes.data, high.ctypes.data, low.ctypes.data)
        size = top * float(np.add.reduce(np.abs(factors), axis=None)) * 1.01
        lanes = _LANES if inner >= _LANES else 1
        found.add(high, low, size * _error(slabs * inner // lanes + slabs if along else rows))

    def kept(self, mask: Array) -> NDArray[np.bool_] | None:
        if mask.dtype.name not in _FORMATS:
            return kept_by(mask)
        mask, found = _plain(mask), scratch("kept", mask.shape, np.bool_)
        return found if self.found.wnconvert_kept(*_run(mask), found.ctypes.data) else None

    def select(self, values: Array, kept: NDArray[np.bool_]) -> Array:
        if values.dtype.name not in _FORMATS:
            return selected(values, kept)
        values, out = _plain(values), scratch("masked", values.shape, values.dtype)
        self.found.wnconvert_select(*_run(values), kept.ctypes.data, out.ctypes.data)
        return out

    def largest(self, values: Array) -> int:
        if values.dtype.name not in _FORMATS:
            return largest(values)
        values = _plain(values)
        return int(self.found.wnconvert_largest(*_run(values)))


def _plain(array: Array) -> Array:
    """An array as the library reads it: contiguous, in the order of bytes of this machine."""
    if array.flags.c_contiguous and array.dtype.isnative:
        return array
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _block(values: Array) -> tuple[int, ...]:
    """A block as the library's functions take it."""
    return _CODES[values.dtype.type], values.ctypes.data, *values.shape


def _run(values: Array) -> tuple[int, ...]:
    """Values of any shape, as the library's functions take them."""
    return _CODES[values.dtype.type], values.ctypes.data, values.size


def _longest(slabs: int, rows: int, inner: int) -> int:
    """The number of additions, one after the other, in a sum of ``wnconvert_totals``, at most.

    Each loses 4·2⁻⁵³ of the sum of magnitudes at most, and what is lost is added up on as long a path.
    """
    if slabs > 1 and rows * inner <= _NARROW:
        return slabs * rows * inner // (_RUN // 2) + _RUN
    if inner >= _LANES or rows == 1:
        return slabs * (inner // _RUN + 2) + _RUN // _LANES + 8
    return slabs * inner


def _error(terms: int) -> float:
    """The bound on the error of the sum of so many products, relative to the sum of their magnitudes.

    They are added up on paths of n additions at most. What they lose is at most n·2⁻⁵³ of the sum, and is
    added up with two roundings for each: Higham 2002, 4.3.
    """
    n = 2 * terms + 64
    return 2 * (n * UNIT) ** 2 + UNIT**2
