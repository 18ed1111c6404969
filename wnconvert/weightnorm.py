"""The math: w = g·v/‖v‖ and its inverse, block by block, each value rounded once. No names, no files.

A contiguous v is seen as a box of A slabs, D rows and B inner elements, D being the axis that is not
summed over (the whole tensor is one row), so there are D norms. Everything here takes and gives such
boxes, so a tensor never has to be in memory as a whole.

float32, float16 and bfloat16 results are the *nearest* values of the exact quotient, ties to even.
The float64 evaluation comes with a bound on its error; where both ends of that interval round alike
the result is settled (Ziv's test), else (about one element in 2²³) it is decided with integers:
w < m  ⇔  (g·v)² < m²·Σv².  float64 results are within 4 ulp.

Sources: Salimans and Kingma 2016 (arXiv:1602.07868); ``torch._weight_norm``; Ziv 1991, "Fast evaluation
of elementary mathematical functions with correctly rounded last bit"; Rump, Ogita and Oishi 2008,
"Accurate floating-point summation" (the error-free extraction of ``_accurate_sums``).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from wnconvert.dims import rows_of
from wnconvert.errors import LayerError, NumbersError
from wnconvert.tensors import DType, dtype_named

__all__ = [
    "BLOCK_BYTES",
    "Block",
    "RowReport",
    "Rows",
    "blocks",
    "cast",
    "count_overflow",
    "fill_directions",
    "fold",
    "fold_blocks",
    "fold_with_report",
    "norm_blocks",
    "norms",
    "split",
]

#: Bytes of a block: its float64 scratch stays in a shared cache; smaller ones cost two threads the GIL.
BLOCK_BYTES = 1 << 20

Array = NDArray[Any]
Floats = NDArray[np.float64]
Dim = int | None
DTypeLike = DType | np.dtype[Any] | str

_U = 2.0**-53


# --- blocks ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Block:
    """A contiguous run of a tensor's elements in C order: ``shape`` = (slabs, rows, inner elements).

    ``start`` is its first element, ``row`` its first row.
    """

    start: int
    shape: tuple[int, int, int]
    row: int

    @property
    def stop(self) -> int:
        """The element after the last one."""
        return self.start + math.prod(self.shape)

    @property
    def rows(self) -> slice:
        """The rows of the block among all rows."""
        return slice(self.row, self.row + self.shape[1])


def blocks(shape: tuple[int, ...], dim: Dim, itemsize: int, limit: int = BLOCK_BYTES) -> Iterator[Block]:
    """Cut a tensor into blocks of at most ``limit`` bytes (at least one element), in the order of memory.

    Whole slabs where they fit, else rows of one slab, else pieces of one row. The cut depends on the
    arguments only, so sums do not depend on threads or on where the tensor lies.

    >>> [block.shape for block in blocks((6, 4, 2), 0, itemsize=4, limit=64)]
    [(1, 2, 8), (1, 2, 8), (1, 2, 8)]
    """
    outer, rows, inner = _box(shape, dim)
    most = max(limit // itemsize, 1)
    if outer * rows * inner == 0:
        return
    if rows * inner <= most:
        step = most // (rows * inner)
        for slab in range(0, outer, step):
            yield Block(slab * rows * inner, (min(step, outer - slab), rows, inner), 0)
        return
    for slab in range(outer):
        start = slab * rows * inner
        if inner <= most:
            step = most // inner
            for row in range(0, rows, step):
                yield Block(start + row * inner, (1, min(step, rows - row), inner), row)
            continue
        for row in range(rows):
            for piece in range(0, inner, most):
                yield Block(start + row * inner + piece, (1, 1, min(most, inner - piece)), row)


def _box(shape: tuple[int, ...], dim: Dim) -> tuple[int, int, int]:
    if dim is None:
        return 1, 1, math.prod(shape)
    return math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])


# --- what was odd ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rows:
    """How many rows, and the first ten of them."""

    count: int = 0
    first: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RowReport:
    """What was odd, by kind of row; whether it is an error is for the caller to say.

    ``zero``: rows of v without a nonzero element; ``zero_with_g``: those whose g is not 0;
    ``nonfinite``: rows with a NaN or an infinity in v or g; ``overflow``: finite rows whose result has an
    infinity; ``kept``: rows whose g is the rounded norm, so that w is v.
    """

    zero: Rows = Rows()
    zero_with_g: Rows = Rows()
    nonfinite: Rows = Rows()
    overflow: Rows = Rows()
    kept: Rows = Rows()


def _rows(flags: NDArray[np.bool_]) -> Rows:
    if not flags.any():
        return Rows()
    found = np.flatnonzero(flags)
    return Rows(len(found), tuple(found[:10].tolist()))


# --- formats and casts -------------------------------------------------------------------------------


class _Format(NamedTuple):
    """A float format as codes: the magnitudes' bit patterns, which count upwards with the values."""

    dtype: np.dtype[Any]
    codes: np.dtype[Any]
    inf: int
    beyond: Fraction  # where the next value after the largest would be

    def value(self, code: int) -> Fraction:
        if code >= self.inf:
            return self.beyond
        return Fraction(float(np.array(code, self.codes).view(self.dtype)[()]))

    def nearest_root(self, square: Fraction, code: int) -> int:
        """The code of the value nearest to √square, ties to even, given one at most as large."""
        while code < self.inf:
            middle = (self.value(code) + self.value(code + 1)) / 2
            if square < middle**2 or (square == middle**2 and code % 2 == 0):
                break
            code += 1
        return code


_FORMATS = {
    "float64": _Format(np.dtype(np.float64), np.dtype(np.uint64), 0x7FF << 52, Fraction(2) ** 1024),
    "float32": _Format(np.dtype(np.float32), np.dtype(np.uint32), 0xFF << 23, Fraction(2) ** 128),
    "float16": _Format(np.dtype(np.float16), np.dtype(np.uint16), 0x1F << 10, Fraction(2) ** 16),
    "bfloat16": _Format(np.dtype(ml_dtypes.bfloat16), np.dtype(np.uint16), 0xFF << 7, Fraction(2) ** 128),
}


def _name(dtype: DTypeLike) -> str:
    name = dtype if isinstance(dtype, str) else dtype.name
    if name not in _FORMATS:
        raise LayerError(f"{name} cannot be folded", fix="--exclude the layer")
    return name


def cast(array: Array, dtype: DTypeLike) -> Array:
    """Cast between the four foldable dtypes with one rounding, to nearest even; any shape.

    float64 to bfloat16 goes through float32 in ml_dtypes and in torch, and so rounds twice.

    >>> x = np.array(1 + 2.0**-8 + 2.0**-40)
    >>> float(x.astype(ml_dtypes.bfloat16)), float(cast(x, "bfloat16"))
    (1.0, 1.0078125)
    """
    to = _FORMATS[_name(dtype)].dtype
    out = np.empty(array.shape, to)
    with np.errstate(all="ignore"):
        _round(array, out)
    return out


def count_overflow(before: Array, after: Array) -> int:
    """Number of finite elements of ``before`` that a cast made infinite in ``after``."""
    return int(np.count_nonzero(np.isinf(after) & np.isfinite(before)))


def _round(x: Array, out: Array) -> None:
    if x.dtype != np.float64 or out.dtype != ml_dtypes.bfloat16:
        np.copyto(out, x, casting="unsafe")
        return
    # Where float32 gives a tie between two bfloat16, it may have rounded to that tie: step off it, to the
    # side of x. Bit patterns order magnitudes, so this is right for both signs.
    single = _scratch("round", x.shape, np.float32)
    np.copyto(single, x, casting="unsafe")
    bits = single.view(np.uint32)
    ties = (bits & 0xFFFF) == 0x8000
    if ties.any():
        away = np.abs(x[ties]) - np.abs(single[ties].astype(np.float64))
        bits[ties] += np.sign(away).astype(np.int32).view(np.uint32)
    np.copyto(out, single, casting="unsafe")


def _round_both(y: Floats, steps: int, low: Array) -> NDArray[np.bool_]:
    """Round y into ``low``, and tell where y's bits + ``steps`` round to another value. ``y`` is spoilt."""
    high = _scratch("high", y.shape, low.dtype)
    _round(y, low)
    np.add(y.view(np.int64), steps, out=y.view(np.int64))
    _round(y, high)
    codes = np.dtype(f"u{low.itemsize}")
    return np.asarray(low.view(codes) != high.view(codes))


def _round_short(y: Floats, steps: int, low: Array) -> NDArray[np.bool_]:
    """``_round_both`` for 16-bit formats and no NaN, without their slow casts.

    All their midpoints are float32, and the interval is far narrower than float32's spacing: if it holds
    a midpoint, its lower end rounds to that as float32. Any other float32 is rounded further in its bits,
    half up. Only midpoints, and float16's subnormals and overflows, go the long way.
    """
    single, spare = _scratch("single", y.shape, np.float32), _scratch("spare", y.shape, np.uint32)
    np.copyto(single, y, casting="unsafe")
    bits = single.view(np.uint32)
    dropped = 13 if low.dtype == np.float16 else 16
    np.bitwise_and(bits, (1 << dropped) - 1, out=spare)
    doubt = np.asarray(spare == 1 << (dropped - 1))
    if low.dtype == np.float16:
        magnitude = np.bitwise_and(bits, 0x7FFFFFFF, out=_scratch("magnitude", y.shape, np.uint32))
        zero = magnitude == 0  # below 2⁻¹⁵⁰: no doubt, or pruned layers would be slow
        np.subtract(magnitude, 0x38800000, out=spare)  # 2⁻¹⁴, the smallest normal number
        doubt |= (spare >= 0x477FF000 - 0x38800000) & ~zero  # 65520, the first that overflows
        np.subtract(magnitude, 0x38000000 - 0x1000, out=spare)  # the exponents' biases, 127 and 15
        np.right_shift(spare, 13, out=spare)
        np.copyto(spare, 0, where=zero)
        np.right_shift(bits, 16, out=bits)
        np.bitwise_and(bits, 0x8000, out=bits)
        np.bitwise_or(bits, spare, out=bits)
    else:
        np.add(bits, 0x8000, out=bits)
        np.right_shift(bits, 16, out=bits)
    np.copyto(low.view(np.uint16), bits, casting="unsafe")
    if doubt.any():
        found = np.empty(np.count_nonzero(doubt), low.dtype)
        differ = _round_both(y[doubt], steps, found)
        low[doubt] = found
        doubt[doubt] = differ
    return doubt


_local = threading.local()


def _scratch(use: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """An array that lives until this thread asks for the same ``use`` again."""
    size = math.prod(shape)
    dtype = np.dtype(dtype)
    pool: dict[tuple[str, np.dtype[Any]], Array] = _local.__dict__.setdefault("pool", {})
    have = pool.get((use, dtype))
    if have is None or have.size < size:
        have = pool[use, dtype] = np.empty(size, dtype)
    return have[:size].reshape(shape)


# --- sums of squares ---------------------------------------------------------------------------------


@dataclass(slots=True)
class _Sums:
    """Σv² of each row as (high + low)·4^exponent, with a bound on the relative error.

    Rows with NaN or infinities have it in ``high``.
    """

    high: Floats
    low: Floats
    exponent: NDArray[np.int32]
    error: float

    def root(self) -> Floats:
        """√(high + low), within 1 ulp, without the exponent."""
        return np.sqrt(self.high)

    def bounds(self, at: int) -> tuple[Fraction, Fraction]:
        total = Fraction(float(self.high[at])) + Fraction(float(self.low[at]))
        total *= Fraction(4) ** int(self.exponent[at])
        return total * (1 - Fraction(self.error)), total * (1 + Fraction(self.error))


def _adds(slabs: int, inner: int) -> float:
    """Longest chain of additions in ``_row_sum``: its relative error for positive terms is at most this·2⁻⁵³.

    numpy sums a contiguous axis pairwise: runs of at most 128 in 8 accumulators (15 additions, 3 to
    combine, 7 left over), then a binary tree; one more per 8,192, should it ever be buffered. Slabs are
    added four at a time: at most 7 additions a level, ⌈log₄⌉ levels.
    """
    return 32 + math.log2(inner) + inner / 8192 + 7 * math.ceil(math.log(slabs, 4) + 1)


def _row_sum(x: Array) -> Floats:
    """Sums over the first and last axis, in a tree. ``x`` is spoilt."""
    slabs, rows, inner = x.shape
    flat = x.reshape(slabs, rows * inner)
    while slabs > 1:
        step = max(slabs // 4, 1)
        whole = slabs // step * step
        sums = flat[:step]
        for at in range(step, whole, step):
            sums += flat[at : at + step]
        if whole < slabs:
            sums[: slabs - whole] += flat[whole:slabs]
        slabs = step
    if inner == 1:
        return np.array(flat[0], np.float64)
    return np.asarray(np.add.reduce(flat[0].reshape(rows, inner), axis=1), np.float64)


def _fast_sums(x: Floats) -> _Sums:
    """Σv² of values of at most 24 bits: squares are exact and in range, only the additions round."""
    squares = _scratch("squares", x.shape, np.float64)
    np.multiply(x, x, out=squares)
    high = _row_sum(squares)
    zeros = np.zeros(len(high))
    return _Sums(high, zeros, zeros.astype(np.int32), _adds(x.shape[0], x.shape[2]) * _U)


def _accurate_sums(x: Floats) -> _Sums:
    """Σv² of any values to about 70 bits.

    Each row is scaled by a power of two to a largest element in [½, 1). Squares p = h² + (v-h)(v+h), h the
    upper 26 bits of v, so that h² is exact. With a power of two s >= 2N for N terms, (p+s)-s is p
    to a multiple of s·2⁻⁵²: those parts add up exactly, in any order, and the rest is below s·2⁻⁵³.
    """
    slabs, _, inner = x.shape
    terms = slabs * inner
    p, h, q = (_scratch(use, x.shape, np.float64) for use in ("squares", "upper", "extract"))
    np.abs(x, out=p)
    top = np.maximum.reduce(np.maximum.reduce(p, axis=0), axis=1)
    exponent = np.frexp(top)[1]
    half = exponent // 2  # 2^1074 is no float64, but two factors make it
    np.multiply(x, np.ldexp(1.0, -half)[:, None], out=p)
    np.multiply(p, np.ldexp(1.0, half - exponent)[:, None], out=p)
    np.bitwise_and(p.view(np.int64), np.int64(-(1 << 27)), out=h.view(np.int64))
    np.subtract(p, h, out=q)
    np.add(p, h, out=p)
    np.multiply(q, p, out=q)
    low = _row_sum(q)
    np.multiply(h, h, out=p)
    extractor = 2.0 ** (math.ceil(math.log2(terms)) + 1)
    np.add(p, extractor, out=q)
    np.subtract(q, extractor, out=q)
    np.subtract(p, q, out=p)
    high = _row_sum(q)
    low += _row_sum(p)
    # The rest is N terms below 2⁻⁵³·s with s <= 4N, against a sum of at least 1/4; the lower products are at
    # most 2⁻²⁵ of the sum, each within 2 roundings.
    error = _adds(slabs, inner) * (terms**2 * 2.0**-102 + 2.0**-76)
    finite = np.isfinite(top)
    zero = top == 0
    high, low = np.where(finite, high, top), np.where(finite, low, 0.0)
    sums = _Sums(high, low, np.where(zero, -1100, exponent), error)
    _normalize(sums)
    return sums


def _normalize(sums: _Sums) -> None:
    high = sums.high + sums.low
    low = sums.low - (high - sums.high)
    sums.high, sums.low = high, np.where(np.isfinite(high), low, 0.0)


def _merge(into: _Sums, rows: slice, part: _Sums) -> None:
    """Add the sums of a block to those of all rows."""
    exponent = np.maximum(into.exponent[rows], part.exponent)
    old, new = 2 * (into.exponent[rows] - exponent), 2 * (part.exponent - exponent)
    a, b = np.ldexp(into.high[rows], old), np.ldexp(part.high, new)
    high = a + b
    back = high - a
    rest = (a - (high - back)) + (b - back)
    rest = rest + np.ldexp(into.low[rows], old) + np.ldexp(part.low, new)
    total = _Sums(high, np.where(np.isfinite(high), rest, 0.0), exponent, 0.0)
    _normalize(total)
    into.high[rows], into.low[rows], into.exponent[rows] = total.high, total.low, total.exponent
    into.error = max(into.error, part.error) + 2.0**-100


def _exact_sum(x: Floats) -> Fraction:
    """Σv² of a finite 1-D row exactly: limbs of 18 bits, their products added up per exponent."""
    total = 0
    low = -1074
    for at in range(0, len(x), 1 << 16):  # 2¹⁶ products below 2³⁶ add up exactly in float64
        mantissa, exponent = np.frexp(np.abs(x[at : at + (1 << 16)]))
        digits = np.ldexp(mantissa, 53).astype(np.int64)
        place = exponent - low
        limbs = (digits & 0x3FFFF, (digits >> 18) & 0x3FFFF, digits >> 36)
        for i in range(3):
            for j in range(3):
                counts = np.bincount(place, weights=(limbs[i] * limbs[j]).astype(np.float64))
                for power in np.flatnonzero(counts).tolist():
                    total += int(counts[power]) << (2 * power + 18 * (i + j))
    return total * Fraction(4) ** (low - 53)


# --- one tensor --------------------------------------------------------------------------------------

Read = Callable[[Block], Array]
Write = Callable[[Block, Array], object]


class _Source:
    """A tensor v behind ``read``: its blocks, its sums, and the exact sum of a row when all else fails."""

    def __init__(self, read: Read, shape: tuple[int, ...], dim: Dim, dtype: str, limit: int) -> None:
        self.read = read
        self.dtype = dtype
        self.itemsize = _FORMATS[dtype].dtype.itemsize
        self.cut = (shape, dim, self.itemsize, limit)
        self.count = rows_of(shape, dim) if math.prod(shape) else 0
        outer, _, inner = _box(shape, dim)
        self.whole_rows = outer == 1 and inner * self.itemsize <= max(limit, self.itemsize)
        self.exact: dict[int, Fraction] = {}
        self.block: Block | None = None
        self.x: Floats = np.empty((0, 0, 0))

    def load(self) -> Iterator[tuple[Block, Floats]]:
        """Each block as float64 in a scratch array."""
        for block in blocks(*self.cut):
            self.x = _scratch("x", block.shape, np.float64)
            np.copyto(self.x, self.read(block))
            self.block = block
            yield block, self.x

    def sums(self) -> _Sums:
        """Accurate sums of all rows: the first of two passes."""
        count = self.count
        total = _Sums(np.zeros(count), np.zeros(count), np.full(count, -1100, np.int32), 0.0)
        for block, x in self.load():
            _merge(total, block.rows, _accurate_sums(x))
        return total

    def ladder(self, row: int, sums: _Sums, at: int) -> Iterator[tuple[Fraction, Fraction]]:
        """Ever narrower bounds on Σv² of a row, the last of width 0; ``sums[at]`` is what is known of it."""
        if row not in self.exact:
            if sums.error > 2.0**-60 and self.whole_rows and self.block is not None:
                yield _accurate_sums(self.x[:, row - self.block.row : row - self.block.row + 1]).bounds(0)
            else:
                yield sums.bounds(at)
            self.exact[row] = sum((_exact_sum(piece) for piece in self._pieces(row)), Fraction(0))
        yield self.exact[row], self.exact[row]

    def _pieces(self, row: int) -> Iterator[Floats]:
        if self.whole_rows and self.block is not None:
            yield self.x[:, row - self.block.row].ravel()
            return
        for block in blocks(*self.cut):  # not into the scratch array: that still holds the block at work
            if block.row <= row < block.row + block.shape[1]:
                yield self.read(block)[:, row - block.row].astype(np.float64).ravel()


def _round_norms(source: _Source, sums: _Sums, first: int, name: str, wanted: Floats | None = None) -> Floats:
    """‖v‖ of the rows from ``first`` on, correctly rounded to dtype ``name``, as float64.

    Where ``wanted`` is given, rows whose norm cannot be that are left within a few ulp.
    """
    root = sums.root()
    if name == "float64":
        # One Newton step gives the part of the root behind its last bit: (S - root²) / 2·root.
        upper = (root.view(np.int64) & np.int64(-(1 << 27))).view(np.float64)
        lower = root - upper
        rest = ((sums.high - upper * upper) - 2 * (upper * lower)) - lower * lower + sums.low
        rest = np.where(root > 0, rest / (2 * root), 0.0)
        slack = root * (sums.error / 2 + 2.0**-98)
        low, high = (np.ldexp(root + (rest + by), sums.exponent) for by in (-slack, slack))
        low = np.where(low < 2.0**-1020, np.nextafter(low, 0), low)  # ldexp rounded a subnormal
        high = np.where(high < 2.0**-1020, np.nextafter(high, np.inf), high)
    else:
        slack = root * (sums.error / 2 + 4 * _U)
        ends = (np.ldexp(root + by, sums.exponent) for by in (-slack, slack))
        low, high = (cast(end, name).astype(np.float64) for end in ends)
    plain = ~np.isfinite(root) | (root == 0)
    low[plain] = high[plain] = root[plain]
    unsure = low < high
    if wanted is not None:
        unsure &= (wanted >= low) & (wanted <= high)
    form = _FORMATS[name]
    for at in np.flatnonzero(unsure).tolist():
        code = found = int(cast(low[at : at + 1], name).view(form.codes)[0])
        for least, most in source.ladder(first + at, sums, at):
            found = form.nearest_root(least, code)
            if found == form.nearest_root(most, found):
                break
        low[at] = np.array([found], form.codes).view(form.dtype)[0]
    return low


class _Fold:
    """One fold at work: the rows' scales, and their application to blocks."""

    def __init__(self, source: _Source, g: Array, out: str) -> None:
        self.source = source
        self.g = np.asarray(g).reshape(-1).astype(np.float64)
        self.g_name = _name(g.dtype)
        self.form = _FORMATS[out]
        self.out = out
        self.fast = "float64" not in (source.dtype, self.g_name, out)
        self.may_keep = dtype_named(self.g_name).holds(dtype_named(source.dtype))
        limit = float(self.form.value(self.form.inf - 1))
        self.large = np.isfinite(self.g) & (np.abs(self.g) >= limit * 0.99)
        self.zero, self.nonfinite, self.overflow, self.kept = (np.zeros(len(self.g), bool) for _ in range(4))

    def report(self) -> RowReport:
        zero_with_g = self.zero & (self.g != 0)
        kinds = (self.zero, zero_with_g, self.nonfinite, self.overflow, self.kept)
        return RowReport(*(_rows(flags) for flags in kinds))

    def scale(self, sums: _Sums, rows: slice) -> tuple[Floats, NDArray[np.int32]]:
        """g/‖v‖ of each row as (mantissa, exponent); 1 where the row is v, 0 where v is 0. Sets the flags."""
        g = self.g[rows]
        self.zero[rows] = zero = sums.high == 0
        finite = np.isfinite(g) & np.isfinite(sums.high)
        self.nonfinite[rows] = ~finite
        mantissa, exponent = np.frexp(g)
        mantissa = mantissa / sums.root()
        exponent = np.where(np.isfinite(g), exponent, 0) - sums.exponent
        if self.may_keep:
            norm = _round_norms(self.source, sums, rows.start, self.g_name, g)
            self.kept[rows] = kept = (norm == g) & finite & ~zero
            mantissa[kept], exponent[kept] = 1, 0
        mantissa[zero], exponent[zero] = 0, 0
        return mantissa, exponent

    def apply(self, block: Block, x: Floats, sums: _Sums, scale: tuple[Floats, NDArray[np.int32]]) -> Array:
        """The block's values of w, in a scratch array. ``sums`` and ``scale`` are those of its rows."""
        mantissa, exponent = scale
        # Relative error: half that of the sum, and a rounding each for root, quotient, product and the shift.
        steps = math.ceil(sums.error / 2 / _U) + 6
        if self.out != "float64":
            mantissa = np.where(self.kept[block.rows], mantissa, mantissa * (1 - steps * _U))
        y = _scratch("y", block.shape, np.float64)
        self._multiply(x, mantissa, exponent, y)
        if self.out == "float64":
            low = y
        else:
            low = _scratch("low", block.shape, self.form.dtype)
            # Adding to the bits goes outwards by at least as many units of relative size 2⁻⁵³.
            short = low.itemsize == 2 and not self.nonfinite[block.rows].any()
            differ = (_round_short if short else _round_both)(y, 2 * steps, low)
            if differ.any():
                self._settle(block, x, sums, low, differ)
        large = self.large[block.rows]
        if large.any():
            large = large & ~self.nonfinite[block.rows]
            large[large] = ~np.isfinite(low[:, large]).all(axis=(0, 2))
            self.overflow[block.rows] |= large
        return low

    def _multiply(self, x: Floats, mantissa: Floats, exponent: NDArray[np.int32], y: Floats) -> None:
        if self.source.dtype != "float64" and self.out != "float64":
            # 2^±900 times any v but 0 is as far out of range as what it stands for.
            np.multiply(x, np.ldexp(mantissa, np.clip(exponent, -900, 900))[:, None], out=y)
        elif exponent.size == 0 or np.abs(exponent).max() < 1000:
            np.multiply(x, np.ldexp(mantissa, exponent)[:, None], out=y)
        else:
            # Up first, as far as the row allows, so that no bit is lost; then down, in halves.
            np.abs(x, out=y)
            top = np.maximum.reduce(np.maximum.reduce(y, axis=0), axis=1)
            up = np.minimum(1024 - np.frexp(np.where(np.isfinite(top), top, 1.0))[1], 2000)
            down = exponent - up + 1  # with half the mantissa: the largest element is at the brink now
            np.multiply(x, np.ldexp(1.0, up // 2)[:, None], out=y)
            for factor in (
                np.ldexp(1.0, up - up // 2),
                mantissa / 2,
                np.ldexp(1.0, np.maximum(down // 2, -1070)),
                np.ldexp(1.0, np.maximum(down - down // 2, -1070)),
            ):
                np.multiply(y, factor[:, None], out=y)

    def _settle(self, block: Block, x: Floats, sums: _Sums, low: Array, differ: NDArray[np.bool_]) -> None:
        """Decide the elements whose error interval holds a midpoint."""
        rows = block.rows
        differ &= ~(self.kept[rows] | self.nonfinite[rows] | self.zero[rows])[:, None]
        codes = low.view(self.form.codes)
        sign = 1 << (8 * self.form.codes.itemsize - 1)
        known: dict[tuple[int, float], int] = {}
        for slab, at, inner in np.argwhere(differ).tolist():
            code = int(codes[slab, at, inner])
            value = abs(float(x[slab, at, inner]))
            key = at, value
            if key not in known:
                found = 0
                square = (Fraction(value) * Fraction(float(self.g[rows.start + at]))) ** 2
                for least, most in self.source.ladder(rows.start + at, sums, at):
                    found = self.form.nearest_root(square / most, code % sign)
                    if found == self.form.nearest_root(square / least, found):
                        break
                known[key] = found
            codes[slab, at, inner] = known[key] | (code & sign)


# --- the verbs ---------------------------------------------------------------------------------------


def fold_blocks(  # noqa: PLR0917 -- source, target, then what they hold: the executor's one call
    read: Read,
    write: Write,
    shape: tuple[int, ...],
    dim: Dim,
    g: Array,
    v_dtype: DTypeLike,
    out_dtype: DTypeLike,
    *,
    limit: int = BLOCK_BYTES,
) -> RowReport:
    """Fold a tensor block by block: ``write(block, w)`` for each of ``blocks(shape, dim, …)``, in order.

    ``read(block)`` gives v's elements as an array of ``block.shape`` that may be reused by the next call;
    so is the array that ``write`` gets. ``g`` has one element a row, in any shape. One pass where rows are
    contiguous and fit a block, else two. All is processed: zero rows of v give zeros, NaN and
    infinities go their IEEE way, and the report tells.

    Raises ``LayerError`` where a dtype cannot be folded or g has another number of elements.

    >>> v, out = np.array([[3.0, 4.0]]), np.empty((1, 2))
    >>> fold_blocks(lambda b: v[None], lambda b, w: out.__setitem__(..., w[0]), (1, 2), 0,
    ...             np.array([10.0]), "float64", "float64").kept.count
    0
    >>> out
    array([[6., 8.]])
    """
    if g.size != rows_of(shape, dim):
        raise LayerError(f"g {g.shape} does not fit v {shape} along dim {dim}")
    source = _Source(read, shape, dim, _name(v_dtype), limit)
    work = _Fold(source, g, _name(out_dtype))
    with np.errstate(all="ignore"):
        if source.whole_rows:
            for block, x in source.load():
                sums = _fast_sums(x) if work.fast else _accurate_sums(x)
                write(block, work.apply(block, x, sums, work.scale(sums, block.rows)))
        elif source.count:
            sums = source.sums()
            mantissa, exponent = work.scale(sums, slice(0, source.count))
            for block, x in source.load():
                rows = block.rows
                part = _Sums(sums.high[rows], sums.low[rows], sums.exponent[rows], sums.error)
                write(block, work.apply(block, x, part, (mantissa[rows], exponent[rows])))
    return work.report()


def fold_with_report(
    v: Array, g: Array, dim: Dim, *, dtype: DTypeLike | None = None, limit: int = BLOCK_BYTES
) -> tuple[Array, RowReport]:
    """``fold``, and what was odd about its rows."""
    flat = v.reshape(-1)
    out = np.empty(v.size, _FORMATS[_name(dtype or v.dtype)].dtype)

    def write(block: Block, w: Array) -> None:
        out[block.start : block.stop] = w.reshape(-1)

    report = fold_blocks(_reader(flat), write, v.shape, dim, g, v.dtype, out.dtype, limit=limit)
    return out.reshape(v.shape), report


def fold(v: Array, g: Array, dim: Dim, *, dtype: DTypeLike | None = None) -> Array:
    """Compute w = g·v/‖v‖, the norm over all axes but ``dim`` (None: over all), as v's dtype or ``dtype``.

    v of any shape and layout; g with one element a row, in any shape; float64, float32, float16 and
    bfloat16 in any mixture. A row whose g is the rounded norm of v is v, bit for bit. Zero rows of v
    give zeros; ``fold_with_report`` tells of those and of NaN and infinities.

    Raises ``LayerError`` as ``fold_blocks`` does. Source: ``torch._weight_norm``.

    >>> fold(np.array([[3, 4], [0, 2]], np.float32), np.array([10, 3], np.float32), 0)
    array([[6., 8.],
           [0., 3.]], dtype=float32)
    """
    return fold_with_report(v, g, dim, dtype=dtype)[0]


def norm_blocks(
    read: Read,
    shape: tuple[int, ...],
    dim: Dim,
    v_dtype: DTypeLike,
    g_dtype: DTypeLike,
    *,
    limit: int = BLOCK_BYTES,
) -> tuple[Array, RowReport]:
    """The norms of a tensor's rows, correctly rounded to ``g_dtype``: shape (D,), and what was odd.

    ``read`` as in ``fold_blocks``, each block once (again only for a norm next to a midpoint). In the
    report: ``zero``, ``nonfinite``, ``overflow``.
    """
    source = _Source(read, shape, dim, _name(v_dtype), limit)
    name = _name(g_dtype)
    fast = "float64" not in (source.dtype, name)
    found = np.zeros(rows_of(shape, dim))
    zero, finite = np.zeros(len(found), bool), np.ones(len(found), bool)
    with np.errstate(all="ignore"):
        if source.whole_rows:
            for block, x in source.load():
                sums = _fast_sums(x) if fast else _accurate_sums(x)
                found[block.rows] = _round_norms(source, sums, block.row, name)
                zero[block.rows], finite[block.rows] = sums.high == 0, np.isfinite(sums.high)
        elif source.count:
            sums = source.sums()
            found[:] = _round_norms(source, sums, 0, name)
            zero[:], finite[:] = sums.high == 0, np.isfinite(sums.high)
    overflow = _rows(finite & np.isinf(found))
    return cast(found, name), RowReport(zero=_rows(zero), nonfinite=_rows(~finite), overflow=overflow)


def norms(v: Array, dim: Dim, dtype: DTypeLike | None = None) -> Array:
    """The norms of v's rows, correctly rounded to v's dtype or ``dtype``: shape (D,), or (1,) for dim None.

    >>> norms(np.array([[3, 4], [0, 2]], np.float32), 0)
    array([5., 2.], dtype=float32)
    """
    return norm_blocks(_reader(v.reshape(-1)), v.shape, dim, v.dtype, dtype or v.dtype)[0]


def split(w: Array, dim: Dim) -> tuple[Array, Array]:
    """Split w into g and v with fold(v, g, dim) == w bit for bit: g = ‖w‖ of each row, v = w.

    g has w's dtype and rank, of size 1 in all axes but ``dim``; for dim None its shape is (), as in torch.
    A zero row gets g = 0 and a uniform unit direction that carries the zeros' signs.

    Raises ``NumbersError`` for a row with NaN or infinities, or whose norm w's dtype cannot hold.

    >>> g, v = split(np.array([[3, 4], [0, 0]], np.float32), 0)
    >>> g.tolist(), v.tolist()
    ([[5.0], [0.0]], [[3.0, 4.0], [0.7071067690849304, 0.7071067690849304]])
    """
    g, report = norm_blocks(_reader(w.reshape(-1)), w.shape, dim, w.dtype, w.dtype)
    for rows, what in (
        (report.nonfinite, "NaN or infinities"),
        (report.overflow, f"a norm that {_name(w.dtype)} cannot hold"),
    ):
        if rows.count:
            raise NumbersError(f"{what} in {say_rows(rows)}", fix="--exclude the layer")
    v = w
    if not g.all() and w.size:
        outer, count, inner = _box(w.shape, dim)
        v = w.copy()
        filled = v.reshape(outer, count, inner)
        fill_directions(filled, g == 0, outer * inner)
        v = filled.reshape(w.shape)
    shape = () if dim is None else tuple(size if axis == dim else 1 for axis, size in enumerate(w.shape))
    return g.reshape(shape), v


def fill_directions(values: Array, zero: Array, length: int) -> None:
    """Give zero rows of a block a direction in place: ±1/√length, with the zeros' signs.

    ``values`` (slabs, rows, inner), ``zero`` a flag a row, ``length`` the elements of a whole row.
    """
    unit = cast(np.array([1 / math.sqrt(length)]), values.dtype)[0]
    values[:, zero] = np.copysign(unit, values[:, zero])


def say_rows(rows: Rows) -> str:
    """Rows for a message.

    >>> say_rows(Rows(1, (4,))), say_rows(Rows(12, tuple(range(10))))
    ('row 4', '12 rows (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …)')
    """
    if rows.count == 1:
        return f"row {rows.first[0]}"
    more = ", …" if rows.count > len(rows.first) else ""
    return f"{rows.count} rows ({', '.join(map(str, rows.first))}{more})"


def _reader(flat: Array) -> Read:
    return lambda block: flat[block.start : block.stop].reshape(block.shape)
