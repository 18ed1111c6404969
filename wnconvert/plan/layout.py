"""The bytes of an output file before they exist: what stands where, and how each run is made.

The writers of containers make a :class:`Layout` from a plan; the executor fills it. Sizes are all known,
so headers are written first and the work of one blob never waits for that of another.

Two works are equal where they make the same bytes; ``where``, which names what is made for the user, does
not count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import ByteRange, StoredTensor

__all__ = ["Blob", "CopyBytes", "Directions", "FoldLayer", "Gather", "Layout", "Norms", "Work"]


@dataclass(frozen=True, slots=True)
class CopyBytes:
    """The bytes of the source as they are."""

    source: ByteRange


@dataclass(frozen=True, slots=True)
class Gather:
    """The elements of ``tensor`` in C order, cast to ``dtype`` in one rounding where that differs."""

    tensor: StoredTensor
    dtype: DType
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class FoldLayer:
    """w = g·v/‖v‖ in ``dtype``."""

    g: StoredTensor
    v: StoredTensor
    dim: int | None
    dtype: DType
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Norms:
    """g = ‖w‖ of each row, correctly rounded to ``dtype``."""

    w: StoredTensor
    dim: int | None
    dtype: DType
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Directions:
    """v = w in its own dtype; zero rows become unit directions."""

    w: StoredTensor
    dim: int | None
    where: str = field(default="", compare=False)


Work: TypeAlias = CopyBytes | Gather | FoldLayer | Norms | Directions


@dataclass(frozen=True, slots=True)
class Blob:
    """``size`` bytes at ``start`` of the output. Their CRC-32 is written at each offset of ``crc_at``."""

    start: int
    size: int
    work: Work
    crc_at: tuple[int, ...] = ()

    @property
    def effort(self) -> int:
        """About the bytes that must be read or written for it, whichever is more."""
        return max(self.size, self.work.w.info.nbytes) if isinstance(self.work, Norms) else self.size


@dataclass(frozen=True, slots=True)
class Layout:
    """A whole output file: ``size`` bytes, made of literal ``pieces`` (offset, bytes) and ``blobs``."""

    size: int
    pieces: tuple[tuple[int, bytes], ...]
    blobs: tuple[Blob, ...]
