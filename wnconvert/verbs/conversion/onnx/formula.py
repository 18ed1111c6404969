"""g·v/‖v‖ of one layer in float64, read in blocks, by another way than that of a fold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from wnconvert.numerics.rounding import FLOAT_FORMATS
from wnconvert.storage.sources import Source
from wnconvert.tensors.blocks import Array, Block, blocks
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import StoredTensor, rows_of

__all__ = ["Formula"]


@dataclass(frozen=True)
class Formula:
    """The weight of g and v: ``dim`` is an axis of v, and g has an element for each row along it.

    It has numbers wherever the weight has: each row is divided by its largest element before it is squared.
    """

    source: Source
    g: StoredTensor
    v: StoredTensor
    dim: int | None

    def at(self, block: Block) -> Array:
        """The elements of a block of v."""
        top, scale = (each[block.rows].reshape(1, -1, 1) for each in (self._tops, self._scale))
        with np.errstate(all="ignore"):
            made: Array = self._read(block) / top * scale
        return made

    def strays(self, dtype: DType) -> Array:
        """Which rows take sums, squares, products or quotients that ``dtype`` cannot hold in full."""
        form = FLOAT_FORMATS[dtype.name]
        largest, least = float(form.value(form.inf - 1)), float(form.value(1 << form.digits - 1))
        g, top, norms = np.abs(self._magnitudes), self._tops, self._norms
        count = self.v.info.numel // max(norms.size, 1)
        with np.errstate(all="ignore"):
            steps = [norms**2, norms**2 / count, top**2, g * top, g / norms]
            out = [(step > largest) | ((step < least) & (g > 0)) for step in steps]
        strays: Array = np.logical_or.reduce(out)
        return strays

    def _read(self, block: Block) -> Array:
        found: Array = self.source.reader(self.v)(block).astype(np.float64)
        return found

    def _blocks(self) -> Iterator[Block]:
        return blocks(self.v.info.shape, self.dim, self.v.info.dtype.itemsize)

    @cached_property
    def _magnitudes(self) -> Array:
        return self.source.whole(self.g).astype(np.float64).reshape(-1)

    @cached_property
    def _tops(self) -> Array:
        """The largest magnitude of every row."""
        tops = np.zeros(rows_of(self.v.info.shape, self.dim))
        for block in self._blocks():
            tops[block.rows] = np.maximum(tops[block.rows], np.abs(self._read(block)).max(axis=(0, 2)))
        return tops

    @cached_property
    def _parts(self) -> Array:
        """The norm of every row, as a part of its largest magnitude."""
        squares = np.zeros_like(self._tops)
        for block in self._blocks():
            with np.errstate(all="ignore"):
                scaled = self._read(block) / self._tops[block.rows].reshape(1, -1, 1)
            squares[block.rows] += np.square(scaled).sum(axis=(0, 2))
        return np.sqrt(squares)

    @cached_property
    def _norms(self) -> Array:
        with np.errstate(all="ignore"):
            norms: Array = self._tops * self._parts
        return norms

    @cached_property
    def _scale(self) -> Array:
        with np.errstate(all="ignore"):
            scale: Array = self._magnitudes / self._parts
        return scale
