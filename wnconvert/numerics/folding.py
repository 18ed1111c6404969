"""The fold: w = g·v/‖v‖, block by block, each value rounded once.

A contiguous v is seen as a box of A slabs, D rows and B inner elements, where D is the axis that is not
summed over (for the whole tensor, one row), so there are D norms. Boxes are processed block by block, so a
tensor never has to be in memory as a whole.

float32, float16 and bfloat16 results are the values *nearest* to the exact quotient, ties to even.
The float64 evaluation has a known bound on its error. If both ends of that interval round to the same value,
this is the result (Ziv's test); else (about one element in 2²³) it is decided with integers:
w < m  ⇔  (g·v)² < m²·Σv².  float64 results are within 4 ulp.

Sources: Salimans and Kingma 2016 (arXiv:1602.07868); ``torch._weight_norm``; Ziv 1991, "Fast evaluation
of elementary mathematical functions with correctly rounded last bit".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from wnconvert.errors import LayerError
from wnconvert.numerics.norms import RowSource, round_norms
from wnconvert.numerics.rounding import FLOAT_FORMATS, DTypeLike, name_of, round_both, round_short
from wnconvert.numerics.rows import RowReport, rows_where
from wnconvert.numerics.sums import UNIT, Sums, accurate_sums, fast_sums
from wnconvert.tensors.blocks import BLOCK_BYTES, Array, Block, Floats, Read, reader_of, scratch
from wnconvert.tensors.dtypes import dtype_named
from wnconvert.tensors.tree import Dim, rows_of

__all__ = ["Folding", "fold_array", "fold_with_report"]


class Folding:
    """A fold in progress: ``blocks`` gives w piece by piece, then ``report`` describes the odd rows.

    ``read(block)`` gives v's elements as an array of ``block.shape`` that may be reused by the next call.
    ``g`` has one element for each row, in any shape. v is read once if rows are contiguous and fit a block,
    else twice. Every row is computed: zero rows of v give zeros; NaN and infinities follow IEEE 754.

    Raises ``LayerError`` if a dtype cannot be folded or g has another number of elements.

    >>> v = np.array([[3.0, 4.0]])
    >>> folding = Folding(lambda block: v[None], (1, 2), 0, np.array([10.0]), "float64", "float64")
    >>> [(block.start, w.tolist()) for block, w in folding.blocks()], folding.report().kept.count
    ([(0, [[[6.0, 8.0]]])], 0)
    """

    def __init__(  # noqa: PLR0917 -- the tensor, its magnitudes, the result's dtype
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
        self.source = source = RowSource(read, shape, dim, name_of(v_dtype), limit)
        self.out = out = name_of(out_dtype)
        with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN here
            self.g = np.asarray(g).reshape(-1).astype(np.float64)
        self.g_name = name_of(g.dtype)
        self.form = FLOAT_FORMATS[out]
        self.fast = "float64" not in (source.dtype, self.g_name, out)
        # v itself may be the result only in v's own dtype.
        self.may_keep = out == source.dtype and dtype_named(self.g_name).holds(dtype_named(source.dtype))
        largest = float(self.form.value(self.form.inf - 1))
        self.large = np.isfinite(self.g) & (np.abs(self.g) >= largest * 0.99)
        self.zero, self.nonfinite, self.overflow, self.kept = (np.zeros(len(self.g), bool) for _ in range(4))

    def blocks(self) -> Iterator[tuple[Block, Array]]:
        """Each of ``blocks(shape, dim, …)`` with its w, which is valid until this thread folds again."""
        source = self.source
        whole: tuple[Sums, Floats, NDArray[np.int32]] | None = None
        # errstate is never set around a yield: the caller keeps its own handling of errors.
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
        """The odd rows of the blocks so far."""
        zero_with_g = self.zero & (self.g != 0)
        kinds = (self.zero, zero_with_g, self.nonfinite, self.overflow, self.kept)
        return RowReport(*(rows_where(flags) for flags in kinds))

    def _scale(self, sums: Sums, rows: slice) -> tuple[Floats, NDArray[np.int32]]:
        """g/‖v‖ of each row as (mantissa, exponent): 1 if w is v, 0 if v is 0. Sets the flags of the rows."""
        g = self.g[rows]
        self.zero[rows] = zero = sums.high == 0
        finite = np.isfinite(g) & np.isfinite(sums.high)
        self.nonfinite[rows] = ~finite
        mantissa, exponent = np.frexp(g)
        mantissa = mantissa / sums.root()
        exponent = np.where(np.isfinite(g), exponent, 0) - sums.exponent
        if self.may_keep:
            norm = round_norms(self.source, sums, rows.start, self.g_name, g)
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
            # 2^±900 times any v but 0 is out of range, as the exact product would be.
            np.multiply(x, np.ldexp(mantissa, np.clip(exponent, -900, 900))[:, None], out=y)
        elif exponent.size == 0 or np.abs(exponent).max() < 1000:
            np.multiply(x, np.ldexp(mantissa, exponent)[:, None], out=y)
        else:
            # First up, as far as the row allows, so that no bit is lost; then down, in two steps.
            np.abs(x, out=y)
            top = np.maximum.reduce(np.maximum.reduce(y, axis=0), axis=1)
            up = np.minimum(1024 - np.frexp(np.where(np.isfinite(top), top, 1.0))[1], 2000)
            down = (
                exponent - up + 1
            )  # with half the mantissa, because the largest element is close to overflow now
            np.multiply(x, np.ldexp(1.0, up // 2)[:, None], out=y)
            for factor in (
                np.ldexp(1.0, up - up // 2),
                mantissa / 2,
                np.ldexp(1.0, np.maximum(down // 2, -1070)),
                np.ldexp(1.0, np.maximum(down - down // 2, -1070)),
            ):
                np.multiply(y, factor[:, None], out=y)

    def _settle(self, block: Block, x: Floats, sums: Sums, low: Array, differ: NDArray[np.bool_]) -> None:
        """Decide exactly the elements whose error interval holds a midpoint."""
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


# -- the verbs


def fold_with_report(
    v: Array, g: Array, dim: Dim, *, dtype: DTypeLike | None = None, limit: int = BLOCK_BYTES
) -> tuple[Array, RowReport]:
    """``fold_array``, with a report on odd rows."""
    out = np.empty(v.size, FLOAT_FORMATS[name_of(dtype or v.dtype)].dtype)
    folding = Folding(reader_of(v), v.shape, dim, g, v.dtype, out.dtype, limit=limit)
    for block, w in folding.blocks():
        out[block.start : block.stop] = w.reshape(-1)
    return out.reshape(v.shape), folding.report()


def fold_array(v: Array, g: Array, dim: Dim, *, dtype: DTypeLike | None = None) -> Array:
    """Compute w = g·v/‖v‖, the norm over all axes but ``dim`` (None: over all), as v's dtype or ``dtype``.

    v may have any shape and layout, and g any shape with one element for each row; float64, float32, float16
    and bfloat16 may be mixed. A row whose g is the rounded norm of v is v, bit for bit. Zero rows of v give
    zeros; ``fold_with_report`` reports those, NaN and infinities.

    Raises ``LayerError`` as ``Folding`` does. Source: ``torch._weight_norm``.

    >>> fold_array(np.array([[3, 4], [0, 2]], np.float32), np.array([10, 3], np.float32), 0)
    array([[6., 8.],
           [0., 3.]], dtype=float32)
    """
    return fold_with_report(v, g, dim, dtype=dtype)[0]
