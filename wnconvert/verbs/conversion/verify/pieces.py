"""Tensors cut into pieces of about a block that any reader can pick: ours by a run, others by an index."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np

from wnconvert.tensors.blocks import BLOCK_BYTES, Block, box
from wnconvert.tensors.tree import Dim, StoredTensor

__all__ = ["Group", "Piece", "groups", "pieces_of"]


#: An index that picks a piece of a tensor: places on leading axes, then a slice of the next one.
Piece: TypeAlias = tuple[int | slice, ...]
#: Pieces, each also as a run of elements, that hold some rows whole.
Group: TypeAlias = list[tuple[Block, Piece]]


def pieces_of(tensor: StoredTensor, dim: Dim = None) -> Iterator[tuple[Block, Piece]]:
    """Cut a tensor along its axes: each piece as a run of elements in the box of ``dim``, and as an index."""
    shape = tensor.info.shape or (1,)
    if not tensor.info.numel:
        return
    dtype = tensor.info.dtype
    # As many numbers of 16 bits as of 32: they are widened to be checked.
    most = BLOCK_BYTES // (max(dtype.itemsize, 4) if dtype.foldable else dtype.itemsize)
    behind = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    axis = next(axis for axis, count in enumerate(behind) if count <= most)
    step = most // behind[axis]
    start = 0
    for leading in np.ndindex(shape[:axis]):
        for first in range(0, shape[axis], step):
            last = min(first + step, shape[axis])
            within, row = _part_of_box(shape, dim, leading, slice(first, last))
            yield Block(start, within, row), (*leading, slice(first, last))
            start += (last - first) * behind[axis]


def _part_of_box(
    shape: tuple[int, ...], dim: Dim, leading: tuple[int, ...], part: slice
) -> tuple[tuple[int, int, int], int]:
    """A piece as slabs, rows and inner elements, and its first row."""
    axis, count = len(leading), part.stop - part.start
    behind = math.prod(shape[axis + 1 :])
    if dim is None or axis > dim:
        return (1, 1, count * behind), 0 if dim is None else leading[dim]
    _, rows, inner = box(shape, dim)
    if axis == dim:
        return (1, count, inner), part.start
    return (count * math.prod(shape[axis + 1 : dim]), rows, inner), 0


def groups(tensor: StoredTensor, dim: Dim) -> Iterator[Group]:
    """The pieces of a tensor in groups that hold rows whole: each alone if it does, else all together."""
    outer, _, inner = box(tensor.info.shape, dim)
    together: Group = []
    for block, piece in pieces_of(tensor, dim):
        if outer == 1 and block.shape[2] == inner:
            yield [(block, piece)]
        else:
            together.append((block, piece))
    if together:
        yield together
