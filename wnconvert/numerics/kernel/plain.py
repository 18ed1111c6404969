"""The kernel in numpy: sums, masks, and products rounded once, in few passes over pieces of a block.

A product is computed in float64 as the upper end y of an interval that holds the exact value, ``width``
units in the last place of y wide. If no midpoint between two values of the result's format lies in it, y
rounds as the exact value does (Ziv's test). Whether one does is seen in the bits that rounding drops,
without rounding twice:

* float32 drops 29 bits of a float64, so the last 28 are zero in every midpoint; in those between subnormal
  numbers, too, where more is dropped. A midpoint M with y - width <= M <= y shows as last 28 bits that are
  at most ``width``.
* The midpoints of bfloat16 are float32 values, and the interval is far narrower than their spacing: a y
  whose interval holds M rounds to M as float32. So only a float32 that is a midpoint needs a look at y
  itself; all others are rounded further in their bits. float16 is worked on times 2**-112, where its
  exponents, its subnormals too, are float32's.

Source: Ziv 1991, "Fast evaluation of elementary mathematical functions with correctly rounded last bit".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wnconvert.numerics.kernel.dots import Dots, Pairs, extracted, of_pieces, rough
from wnconvert.numerics.kernel.interface import Centres, Kernel, OpenElements
from wnconvert.numerics.rounding import FLOAT_FORMATS, cast
from wnconvert.numerics.sums import Sums, Totals, Way, careful_sums, fast_sums
from wnconvert.tensors.blocks import Array, Floats, scratch, shares

__all__ = [
    "NUMPY_KERNEL",
    "keeps_subnormals",
    "kept_by",
    "largest",
    "loaded",
    "moments",
    "power_of",
    "round_short",
    "selected",
]


#: float16 values are loaded, and made, times 2**-112: float32's bias of exponents less float16's.
_HALF = 112
_SIGN = np.uint32(1 << 31)
#: Σv² of float16 rows that may have an infinity, which is loaded as 2¹⁶.
_HALF_INFINITE = 2.0**32
_FIELDS = np.int32(-(1 << 31) | 0x0FFFE000)  # sign, exponent and significand of a float16, shifted


_NOTHING = OpenElements(np.empty(0, np.intp), np.empty(0, np.uint32))


def power_of(dtype: str) -> int:
    """The p for which a finite value of a dtype is loaded, or made, as value·2⁻ᵖ."""
    return _HALF if dtype == "float16" else 0


#: A number that float32 has among its subnormal ones.
_LEAST = 2.0**-140


def keeps_subnormals() -> bool:
    """Whether this thread computes with float32's subnormals: a program may have them taken for 0."""
    return float(np.float32(_LEAST)) == _LEAST


def loaded(values: Array, power: int) -> Floats:
    """Values as float64, in a scratch array; with a power of two, times 2**-power, which float16 has.

    That is faster, but takes NaN and infinities for finite values.
    """
    x = scratch("x", values.shape, np.float64)
    if not power:
        np.copyto(x, values)
        return x
    bits = scratch("bits", values.shape, np.int32)
    np.copyto(bits, values.view(np.int16))
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, _FIELDS, out=bits)
    np.copyto(x, bits.view(np.float32))
    return x


def _sums(values: Array) -> Sums:
    return _block_sums(values, fast_sums)


def _careful_sums(values: Array) -> Sums:
    return _block_sums(values, careful_sums)


def _block_sums(values: Array, way: Way) -> Sums:
    """The sums of the rows of a block, in pieces, each in that way."""
    power = power_of(values.dtype.name) if keeps_subnormals() else 0
    sums = _sums_of_pieces(values, power, way)
    if power:
        sums.high *= 4.0**power
        sums.low *= 4.0**power
        if np.maximum.reduce(sums.high) >= _HALF_INFINITE and not np.isfinite(values).all():
            return _sums_of_pieces(values, 0, way)
    return sums


def moments(values: Array, sums: Sums) -> tuple[Sums, Pairs]:
    """Σv of the rows of a block, beside the sums of their squares."""
    totals = Pairs.zeros(values.shape[1])
    code = largest(values)
    form = FLOAT_FORMATS[values.dtype.name]
    if code >= form.inf:
        values = np.where(np.isfinite(values), values, values.dtype.type(0))
        code = largest(values)
    top = float(form.value(code))
    for piece, ones, at in of_pieces(values, np.ones((values.shape[0], 1, values.shape[2]))):
        extracted(loaded(piece, 0), ones, top, totals.at(at))
    return sums, totals


def _moments(values: Array) -> tuple[Sums, Pairs]:
    return moments(values, _careful_sums(values))


def _sums_of_pieces(values: Array, power: int, way: Way) -> Sums:
    flat, slabs, inner = values.reshape(-1), values.shape[0], values.shape[2]
    totals = Totals(values.shape[1])
    for run, shape, rows in shares(values.shape):
        sums = way(loaded(flat[run].reshape(shape), power))
        take = totals.put if shape[0] == slabs and shape[2] == inner else totals.add
        take(rows, sums)
    return totals.sums()


def _products(values: Array, factor: Floats, width: int, dtype: str, out: Array) -> OpenElements:
    """The products of a block, in pieces."""
    flat, made, power = values.reshape(-1), out.reshape(-1), power_of(values.dtype.name)
    factor = factor * 2.0 ** (power - power_of(dtype))
    found: list[OpenElements] = []
    for run, shape, rows in shares(values.shape):
        x = loaded(flat[run].reshape(shape), power)
        places, codes = _products_of_piece(x, factor[rows], width, dtype, made[run].reshape(shape))
        if places.size:
            found.append(OpenElements(places + run.start, codes))
    return _all_of(found)


def _centred(  # noqa: PLR0917 -- as ``Kernel.centred``
    values: Array, centres: Centres, factor: Floats, width: int, dtype: str, out: Array
) -> OpenElements:
    """The products of what is left of a block without its centres, in pieces."""
    flat, made = values.reshape(-1), out.reshape(-1)
    factor = factor * 2.0 ** -power_of(dtype)
    found: list[OpenElements] = []
    for run, shape, rows in shares(values.shape):
        x = loaded(flat[run].reshape(shape), 0)
        centre, rest, least = (each[rows, None] for each in centres)
        np.subtract(x, centre, out=x)
        np.subtract(x, rest, out=x)
        near = np.abs(x) < least
        x[near] = 0.0
        places, codes = _products_of_piece(x, factor[rows], width, dtype, made[run].reshape(shape))
        if near.any():
            zeros = np.flatnonzero(near)
            places = np.concatenate([places, zeros])
            codes = np.concatenate([codes, np.zeros(len(zeros), codes.dtype)])
        if places.size:
            found.append(OpenElements(places + run.start, codes))
    return _all_of(found)


def _all_of(found: list[OpenElements]) -> OpenElements:
    """The open elements of all pieces."""
    if not found:
        return _NOTHING
    return OpenElements(
        *(np.concatenate([getattr(each, name) for each in found]) for name in OpenElements._fields)
    )


def _products_of_piece(x: Floats, factor: Floats, width: int, dtype: str, out: Array) -> OpenElements:
    """Round x·factor, by row, into ``out``; both with the powers of two of ``loaded`` and ``power_of``."""
    y = scratch("y", x.shape, np.float64)
    np.multiply(x, factor[:, None], out=y)
    if dtype != "float32":
        return round_short(y, width, dtype, out)
    np.copyto(out, y, casting="unsafe")
    rest = y.view(np.uint64)
    np.left_shift(rest, 36, out=rest)
    limit = np.uint64(width << 36)
    if np.minimum.reduce(rest, axis=None) > limit:
        return _NOTHING
    at = np.flatnonzero((rest <= limit) & (x != 0))
    return _look_again(at, x, factor, width)


def _look_again(at: NDArray[np.intp], x: Floats, factor: Floats, width: int) -> OpenElements:
    """Those of some elements that are open, by both ends of their intervals as float32."""
    _, rows, inner = x.shape
    upper = x.reshape(-1)[at] * factor[at // inner % rows]
    lower = (upper.view(np.int64) - width).view(np.float64)
    codes = cast(lower, "float32").view(np.uint32)
    differ = (codes != cast(upper, "float32").view(np.uint32)) & (upper != 0)
    return OpenElements(at[differ], codes[differ] & ~_SIGN)


def round_short(y: Floats, width: int, dtype: str, out: Array) -> OpenElements:
    """Round y, times 2**-``power_of``(dtype), to 16 bits: half up, then look again at midpoints."""
    single, rest = scratch("single", y.shape, np.float32), scratch("rest", y.shape, np.uint32)
    np.copyto(single, y, casting="unsafe")
    bits = single.view(np.uint32)
    dropped = 13 if dtype == "float16" else 16
    np.left_shift(bits, 32 - dropped, out=rest)
    at, middles = np.empty(0, np.intp), np.empty(0)
    if np.minimum.reduce(rest.view(np.int32), axis=None) == -(1 << 31):
        at = np.flatnonzero(rest == _SIGN)
        middles = single.reshape(-1)[at].astype(np.float64)
    if dtype == "float16":  # its sign would stand three bits too far left
        np.right_shift(np.bitwise_and(bits, _SIGN, out=rest), 16, out=rest)
    np.add(bits, np.uint32(1 << (dropped - 1)), out=bits)
    np.right_shift(bits, dropped, out=bits)
    if dtype == "float16":
        np.bitwise_or(bits, rest, out=bits)
    codes = out.view(np.uint16)
    np.copyto(codes, bits, casting="unsafe")
    if not at.size:
        return _NOTHING
    above = y.reshape(-1)[at].view(np.int64) - middles.view(np.int64)
    codes.reshape(-1)[at[above < 0]] -= np.uint16(1)
    found = at[(above >= 0) & (above <= width)]
    return OpenElements(found, (codes.reshape(-1)[found] & np.uint16(0x7FFF)) - np.uint16(1))


def _dots(values: Array, factors: Floats, top: float, found: Pairs) -> None:
    _dots_of_pieces(values, factors, top, found, rough)


def _careful_dots(values: Array, factors: Floats, top: float, found: Pairs) -> None:
    _dots_of_pieces(values, factors, top, found, extracted)


def _dots_of_pieces(values: Array, factors: Floats, top: float, found: Pairs, way: Dots) -> None:
    """The dots of a block, in pieces, each in that way."""
    power = power_of(values.dtype.name) if keeps_subnormals() else 0
    for piece, its, at in of_pieces(values, factors):
        way(loaded(piece, power), its * 2.0**power, top * 2.0**-power, found.at(at))


def kept_by(mask: Array) -> NDArray[np.bool_] | None:
    """Where a mask of any dtype is 1, in a scratch array; None if it holds anything but +0 and 1."""
    kept = scratch("kept", mask.shape, np.bool_)
    codes = mask.view(f"u{mask.dtype.itemsize}")
    np.equal(codes, np.ones(1, mask.dtype).view(codes.dtype)[0], out=kept)
    ones, zeros = int(np.count_nonzero(kept)), codes.size - int(np.count_nonzero(codes))
    return kept if ones + zeros == codes.size else None


def selected(values: Array, kept: NDArray[np.bool_]) -> Array:
    """Values of any dtype where ``kept``, else zeros of their signs, or NaN for what is not finite."""
    form = FLOAT_FORMATS[values.dtype.name]
    out = scratch("masked", values.shape, form.dtype)
    codes, made = values.view(form.codes), out.view(form.codes)
    sign = form.codes.type(1 << (8 * form.codes.itemsize - 1))
    np.copyto(made.view(f"i{form.codes.itemsize}"), np.negative(kept.view(np.int8)))
    np.bitwise_or(made, sign, out=made)
    np.bitwise_and(made, codes, out=made)
    if largest(values) >= form.inf:
        out[~np.isfinite(values) & ~kept] = np.nan
    return out


def largest(values: Array) -> int:
    """The code of the largest magnitude, of any dtype."""
    form = FLOAT_FORMATS[values.dtype.name]
    if not values.size:
        return 0
    if values.dtype.itemsize == 2:
        codes = scratch("codes", values.shape, form.codes)
        np.bitwise_and(values.view(form.codes), np.uint16(0x7FFF), out=codes)
        return int(np.maximum.reduce(codes, axis=None))
    top = np.maximum(np.maximum.reduce(values, axis=None), -np.minimum.reduce(values, axis=None))
    return form.inf if np.isnan(top) else int(np.array(abs(top), form.dtype).view(form.codes))


#: The kernel in numpy.
NUMPY_KERNEL = Kernel(
    "numpy",
    _sums,
    _careful_sums,
    _moments,
    _products,
    _centred,
    cast,
    _dots,
    _careful_dots,
    kept_by,
    selected,
    largest,
)
