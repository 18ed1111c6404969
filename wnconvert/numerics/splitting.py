"""The split: g = ‖w‖ of each row and v = w, so that a fold gives w again, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from wnconvert.errors import NumbersError
from wnconvert.messages import option
from wnconvert.numerics.kernel.choice import block_sums
from wnconvert.numerics.norms import RowSource, norm_blocks
from wnconvert.numerics.rounding import DTypeLike, cast, ieee, name_of
from wnconvert.numerics.rows import say_rows
from wnconvert.tensors.blocks import BLOCK_BYTES, Array, Read, box, reader_of
from wnconvert.tensors.tree import Dim

__all__ = ["direction_blocks", "directions", "split_array"]


def split_array(w: Array, dim: Dim) -> tuple[Array, Array]:
    """Split w into g = ‖w‖ of each row and v = w, so that fold(v, g, dim) == w bit for bit.

    g has w's dtype and rank, of size 1 in all axes but ``dim``; for dim None its shape is (), as in torch.
    A zero row gets g = 0 and a uniform unit direction with the signs of its zeros.

    Raises ``NumbersError`` for a row with NaN or infinities, or with a norm that w's dtype cannot hold.

    >>> g, v = split_array(np.array([[3, 4], [0, 0]], np.float32), 0)
    >>> g.tolist(), v.tolist()
    ([[5.0], [0.0]], [[3.0, 4.0], [0.7071067690849304, 0.7071067690849304]])
    """
    g, report = norm_blocks(reader_of(w), w.shape, dim, w.dtype, w.dtype)
    for rows, what in (
        (report.nonfinite, "NaN or infinities"),
        (report.overflow, f"a norm that {name_of(w.dtype)} cannot hold"),
    ):
        if rows.count:
            raise NumbersError(f"{what} in {say_rows(rows)}", fix=f"{option('exclude')} leaves it as it is")
    shape = () if dim is None else tuple(size if axis == dim else 1 for axis, size in enumerate(w.shape))
    return g.reshape(shape), directions(w, dim)


def directions(w: Array, dim: Dim) -> Array:
    """A direction for each row of w: w itself if no row is zero, else a copy with ±1/√n in the zero rows.

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
    """A direction for each row of w, block by block: the row itself, or ±1/√n with the signs of a zero row.

    ``read`` as in ``Folding``; each block is valid until the next one is requested. Rows that are not
    contiguous or exceed a block need two passes: only at their end is it known whether they are zero.
    """
    source = RowSource(read, shape, dim, name_of(dtype), limit, block_sums)
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
    """For each row of a block (slabs, rows, inner), whether it is zero."""
    with ieee():
        found: NDArray[np.bool_] = ~(values != 0).any(axis=(0, 2))
    return found
