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
"Accurate floating-point summation" (the error-free extraction of ``accurate_sums``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from wnconvert.blocks import BLOCK_BYTES, Array, Block, Dim, Floats, Read, blocks, box, scratch
from wnconvert.dims import rows_of
from wnconvert.errors import LayerError, NumbersError
from wnconvert.rounding import FORMATS, DTypeLike, cast, name_of, round_both, round_short
from wnconvert.sums import UNIT, Sums, accurate_sums, exact_sum, fast_sums, merge
from wnconvert.tensors import dtype_named

__all__ = [
    "Folding",
    "RowReport",
    "Rows",
    "direction_blocks",
    "directions",
    "fold",
    "fold_with_report",
    "norm_blocks",
    "norms",
    "reader_of",
    "say_rows",
    "split",
]


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


class _Source:
    """A tensor v behind ``read``: its blocks, its sums, and the exact sum of a row when all else fails."""

    def __init__(self, read: Read, shape: tuple[int, ...], dim: Dim, dtype: str, limit: int) -> None:
        self.read = read
        self.dtype = dtype
        self.itemsize = FORMATS[dtype].dtype.itemsize
        self.cut = (shape, dim, self.itemsize, limit)
        self.count = rows_of(shape, dim) if math.prod(shape) else 0
        outer, _, inner = box(shape, dim)
        self.whole_rows = outer == 1 and inner * self.itemsize <= max(limit, self.itemsize)
        self.exact: dict[int, Fraction] = {}
        self.block: Block | None = None
        self.x: Floats = np.empty((0, 0, 0))

    def blocks(self) -> Iterator[Block]:
        """All blocks, in the order of memory."""
        return blocks(*self.cut)

    def load(self, block: Block) -> Floats:
        """A block as float64 in a scratch array."""
        self.block, self.x = block, scratch("x", block.shape, np.float64)
        np.copyto(self.x, self.read(block))
        return self.x

    def sums(self) -> Sums:
        """Accurate sums of all rows: the first of two passes."""
        count = self.count
        total = Sums(np.zeros(count), np.zeros(count), np.full(count, -1100, np.int32), 0.0)
        for block in self.blocks():
            merge(total, block.rows, accurate_sums(self.load(block)))
        return total

    def ladder(self, row: int, sums: Sums, at: int) -> Iterator[tuple[Fraction, Fraction]]:
        """Ever narrower bounds on Σv² of a row, the last of width 0; ``sums[at]`` is what is known of it."""
        if row not in self.exact:
            if sums.error > 2.0**-60 and self.whole_rows and self.block is not None:
                yield accurate_sums(self.x[:, row - self.block.row : row - self.block.row + 1]).bounds(0)
            else:
                yield sums.bounds(at)
            self.exact[row] = sum((exact_sum(piece) for piece in self._pieces(row)), Fraction(0))
        yield self.exact[row], self.exact[row]

    def _pieces(self, row: int) -> Iterator[Floats]:
        if self.whole_rows and self.block is not None:
            yield self.x[:, row - self.block.row].ravel()
            return
        for block in self.blocks():  # not into the scratch array: that still holds the block at work
            if block.row <= row < block.row + block.shape[1]:
                yield self.read(block)[:, row - block.row].astype(np.float64).ravel()


def _round_norms(source: _Source, sums: Sums, first: int, name: str, wanted: Floats | None = None) -> Floats:
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
        slack = root * (sums.error / 2 + 4 * UNIT)
        ends = (np.ldexp(root + by, sums.exponent) for by in (-slack, slack))
        low, high = (cast(end, name).astype(np.float64) for end in ends)
    plain = ~np.isfinite(root) | (root == 0)
    low[plain] = high[plain] = root[plain]
    unsure = low < high
    if wanted is not None:
        unsure &= (wanted >= low) & (wanted <= high)
    form = FORMATS[name]
    for at in np.flatnonzero(unsure).tolist():
        code = found = int(cast(low[at : at + 1], name).view(form.codes)[0])
        for least, most in source.ladder(first + at, sums, at):
            found = form.nearest_root(least, code)
            if found == form.nearest_root(most, found):
                break
        low[at] = np.array([found], form.codes).view(form.dtype)[0]
    return low


class Folding:
    """A fold at work: ``blocks`` gives w piece by piece, and then ``report`` tells what was odd.

    ``read(block)`` gives v's elements as an array of ``block.shape`` that may be reused by the next call.
    ``g`` has one element a row, in any shape. One pass where rows are contiguous and fit a block, else two.
    All is processed: zero rows of v give zeros, NaN and infinities go their IEEE way.

    Raises ``LayerError`` where a dtype cannot be folded or g has another number of elements.

    >>> v = np.array([[3.0, 4.0]])
    >>> folding = Folding(lambda block: v[None], (1, 2), 0, np.array([10.0]), "float64", "float64")
    >>> [(block.start, w.tolist()) for block, w in folding.blocks()], folding.report().kept.count
    ([(0, [[[6.0, 8.0]]])], 0)
    """

    def __init__(  # noqa: PLR0917 -- the tensor, its magnitudes, what is made of them
        self,
        read: Read,
        shape: tuple[int, ...],
        dim: Dim,
        g: Array,
        v_dtype: DTypeLike,
        out_dtype: DTypeLike,
        *,
        limit: int = BLOCK_BYTES,
    ) -> None:
        if g.size != rows_of(shape, dim):
            raise LayerError(f"g {g.shape} does not fit v {shape} along dim {dim}")
        self.source = source = _Source(read, shape, dim, name_of(v_dtype), limit)
        self.out = out = name_of(out_dtype)
        with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN here
            self.g = np.asarray(g).reshape(-1).astype(np.float64)
        self.g_name = name_of(g.dtype)
        self.form = FORMATS[out]
        self.fast = "float64" not in (source.dtype, self.g_name, out)
        # In another dtype than v's the exact number is asked for, and v is not it.
        self.may_keep = out == source.dtype and dtype_named(self.g_name).holds(dtype_named(source.dtype))
        largest = float(self.form.value(self.form.inf - 1))
        self.large = np.isfinite(self.g) & (np.abs(self.g) >= largest * 0.99)
        self.zero, self.nonfinite, self.overflow, self.kept = (np.zeros(len(self.g), bool) for _ in range(4))

    def blocks(self) -> Iterator[tuple[Block, Array]]:
        """Each of ``blocks(shape, dim, …)`` in order, and its w: valid until this thread folds again."""
        source = self.source
        whole: tuple[Sums, Floats, NDArray[np.int32]] | None = None
        # Never around a yield: what asks for the blocks keeps its own way with errors.
        if source.count and not source.whole_rows:
            with np.errstate(all="ignore"):
                sums = source.sums()
                whole = sums, *self._scale(sums, slice(0, source.count))
        for block in source.blocks():
            with np.errstate(all="ignore"):
                x = source.load(block)
                rows = block.rows
                if whole is None:
                    part = fast_sums(x) if self.fast else accurate_sums(x)
                    scale = self._scale(part, rows)
                else:
                    sums, mantissa, exponent = whole
                    part = Sums(sums.high[rows], sums.low[rows], sums.exponent[rows], sums.error)
                    scale = mantissa[rows], exponent[rows]
                w = self._apply(block, x, part, scale)
            yield block, w

    def report(self) -> RowReport:
        """What was odd about the rows of the blocks so far."""
        zero_with_g = self.zero & (self.g != 0)
        kinds = (self.zero, zero_with_g, self.nonfinite, self.overflow, self.kept)
        return RowReport(*(_rows(flags) for flags in kinds))

    def _scale(self, sums: Sums, rows: slice) -> tuple[Floats, NDArray[np.int32]]:
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

    def _apply(self, block: Block, x: Floats, sums: Sums, scale: tuple[Floats, NDArray[np.int32]]) -> Array:
        """The block's values of w, in a scratch array. ``sums`` and ``scale`` are those of its rows."""
        mantissa, exponent = scale
        # Relative error: half that of the sum, and a rounding each for root, quotient, product and the shift.
        steps = math.ceil(sums.error / 2 / UNIT) + 6
        if self.out != "float64":
            mantissa = np.where(self.kept[block.rows], mantissa, mantissa * (1 - steps * UNIT))
        y = scratch("y", block.shape, np.float64)
        self._multiply(x, mantissa, exponent, y)
        if self.out == "float64":
            low = y
        else:
            low = scratch("low", block.shape, self.form.dtype)
            # Adding to the bits goes outwards by at least as many units of relative size 2⁻⁵³.
            short = low.itemsize == 2 and not self.nonfinite[block.rows].any()
            differ = (round_short if short else round_both)(y, 2 * steps, low)
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

    def _settle(self, block: Block, x: Floats, sums: Sums, low: Array, differ: NDArray[np.bool_]) -> None:
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


def fold_with_report(
    v: Array, g: Array, dim: Dim, *, dtype: DTypeLike | None = None, limit: int = BLOCK_BYTES
) -> tuple[Array, RowReport]:
    """``fold``, and what was odd about its rows."""
    out = np.empty(v.size, FORMATS[name_of(dtype or v.dtype)].dtype)
    folding = Folding(reader_of(v), v.shape, dim, g, v.dtype, out.dtype, limit=limit)
    for block, w in folding.blocks():
        out[block.start : block.stop] = w.reshape(-1)
    return out.reshape(v.shape), folding.report()


def fold(v: Array, g: Array, dim: Dim, *, dtype: DTypeLike | None = None) -> Array:
    """Compute w = g·v/‖v‖, the norm over all axes but ``dim`` (None: over all), as v's dtype or ``dtype``.

    v of any shape and layout; g with one element a row, in any shape; float64, float32, float16 and
    bfloat16 in any mixture. A row whose g is the rounded norm of v is v, bit for bit. Zero rows of v
    give zeros; ``fold_with_report`` tells of those and of NaN and infinities.

    Raises ``LayerError`` as ``Folding`` does. Source: ``torch._weight_norm``.

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

    ``read`` as in ``Folding``, each block once (again only for a norm next to a midpoint). In the
    report: ``zero``, ``nonfinite``, ``overflow``.
    """
    source = _Source(read, shape, dim, name_of(v_dtype), limit)
    name = name_of(g_dtype)
    fast = "float64" not in (source.dtype, name)
    found = np.zeros(rows_of(shape, dim))
    zero, finite = np.zeros(len(found), bool), np.ones(len(found), bool)
    with np.errstate(all="ignore"):
        if source.whole_rows:
            for block in source.blocks():
                x = source.load(block)
                sums = fast_sums(x) if fast else accurate_sums(x)
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
    return norm_blocks(reader_of(v), v.shape, dim, v.dtype, dtype or v.dtype)[0]


def split(w: Array, dim: Dim) -> tuple[Array, Array]:
    """Split w into g and v with fold(v, g, dim) == w bit for bit: g = ‖w‖ of each row, v = w.

    g has w's dtype and rank, of size 1 in all axes but ``dim``; for dim None its shape is (), as in torch.
    A zero row gets g = 0 and a uniform unit direction that carries the zeros' signs.

    Raises ``NumbersError`` for a row with NaN or infinities, or whose norm w's dtype cannot hold.

    >>> g, v = split(np.array([[3, 4], [0, 0]], np.float32), 0)
    >>> g.tolist(), v.tolist()
    ([[5.0], [0.0]], [[3.0, 4.0], [0.7071067690849304, 0.7071067690849304]])
    """
    g, report = norm_blocks(reader_of(w), w.shape, dim, w.dtype, w.dtype)
    for rows, what in (
        (report.nonfinite, "NaN or infinities"),
        (report.overflow, f"a norm that {name_of(w.dtype)} cannot hold"),
    ):
        if rows.count:
            raise NumbersError(f"{what} in {say_rows(rows)}", fix="--exclude the layer")
    shape = () if dim is None else tuple(size if axis == dim else 1 for axis, size in enumerate(w.shape))
    return g.reshape(shape), directions(w, dim)


def directions(w: Array, dim: Dim) -> Array:
    """A direction for each row of w: w itself where no row is zero, else a copy with ±1/√n in such rows.

    >>> directions(np.array([[3, 4], [0, -0.0]], np.float32), 0).tolist()
    [[3.0, 4.0], [0.7071067690849304, -0.7071067690849304]]
    """
    outer, count, inner = box(w.shape, dim)
    if not w.size or not _is_zero(w.reshape(outer, count, inner)).any():
        return w
    pieces = direction_blocks(reader_of(w), w.shape, dim, w.dtype)
    return np.concatenate([piece.reshape(-1) for piece in pieces]).reshape(w.shape)


def direction_blocks(
    read: Read, shape: tuple[int, ...], dim: Dim, dtype: DTypeLike, *, limit: int = BLOCK_BYTES
) -> Iterator[Array]:
    """A direction for each row of w, block by block: w itself; of a zero row ±1/√n, with the zeros' signs.

    ``read`` as in ``Folding``; each block is valid until the next is asked for. Two passes where rows
    are not contiguous or exceed a block: which are zero is known only at their end.
    """
    source = _Source(read, shape, dim, name_of(dtype), limit)
    outer, count, inner = box(shape, dim)
    zero = np.ones(count, bool)
    if not source.whole_rows:
        for block in source.blocks():
            zero[block.rows] &= _is_zero(read(block))
    unit = cast(np.array([1 / math.sqrt(outer * inner or 1)]), dtype)[0]
    for block in source.blocks():
        values = read(block)
        rows = _is_zero(values) if source.whole_rows else zero[block.rows]
        if rows.any():
            values = values.copy()
            values[:, rows] = np.copysign(unit, values[:, rows])
        yield values


def _is_zero(values: Array) -> NDArray[np.bool_]:
    """Of each row of a block, whether it is zero (slabs, rows, inner)."""
    found: NDArray[np.bool_] = ~(values != 0).any(axis=(0, 2))
    return found


def say_rows(rows: Rows) -> str:
    """Rows for a message.

    >>> say_rows(Rows(1, (4,))), say_rows(Rows(12, tuple(range(10))))
    ('row 4', '12 rows (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …)')
    """
    if rows.count == 1:
        return f"row {rows.first[0]}"
    more = ", …" if rows.count > len(rows.first) else ""
    return f"{rows.count} rows ({', '.join(map(str, rows.first))}{more})"


def reader_of(array: Array) -> Read:
    """The blocks of an array in memory."""
    flat = array.reshape(-1)
    return lambda block: flat[block.start : block.stop].reshape(block.shape)
