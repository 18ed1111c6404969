"""The bytes of a checkpoint's tensors, block by block, from any thread.

Contiguous tensors are read into a buffer that each thread keeps; other views (transposed, expanded, channels
last) are gathered from short spans of the file.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import PurePath
from types import TracebackType
from typing import Any

import numpy as np

from wnconvert.storage.files import open_file
from wnconvert.storage.stores.kept import MOST_OPEN, KeptFiles
from wnconvert.tensors.blocks import BLOCK_BYTES, Array, Block, Read
from wnconvert.tensors.files import FarFile, ReadableFile
from wnconvert.tensors.tree import ByteRange, StoredTensor
from wnconvert.tensors.views.assembled import FileView
from wnconvert.tensors.views.quantization import ViewedTensor

__all__ = ["Source"]


# A view that is not contiguous is put in C order in tiles, made of spans of the file: a column of a
# transposed matrix is read in runs as long as the tile is high, or with its neighbours where they are close.
_TILE_BYTES = 8 << 20
_SPAN_BYTES = 64 << 10


class Source:
    """The opened files of a checkpoint; close it, or use it in a ``with`` statement.

    ``on_read`` is called with the number of bytes of every reading, from any thread. ``opener`` opens each
    of the ``shards``, at once if they are few, else when it is read; views are opened over those before them,
    that of a ``ViewedTensor`` when it is read.
    """

    def __init__(
        self,
        shards: Sequence[PurePath | FileView],
        on_read: Callable[[int], None] = lambda count: None,
        opener: Callable[[PurePath], ReadableFile] = open_file,
    ) -> None:
        self._on_read = on_read
        self._local = threading.local()
        self.files: list[ReadableFile] = []
        self._viewed: dict[FileView, int] = {}
        self._opening = threading.Lock()
        self._kept = KeptFiles(opener)
        is_few = sum(not isinstance(shard, FileView) for shard in shards) <= MOST_OPEN
        open_one = opener if is_few else self._kept.file
        try:
            for shard in shards:
                self.files.append(shard.over(self.files) if isinstance(shard, FileView) else open_one(shard))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for file in reversed(self.files):
            file.close()
        self._kept.close()
        self.files = []

    def size(self, shard: int = 0) -> int:
        """The bytes of an opened file, as it is now."""
        return self.files[shard].size

    def chunk(self, data: ByteRange) -> memoryview:
        """At most a block of bytes; valid until this thread reads again.

        Raises ``FormatError`` where the file has become shorter since it was opened.
        """
        buffer = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < data.size:
            buffer = self._local.buffer = memoryview(bytearray(max(data.size, BLOCK_BYTES)))
        view = buffer[: data.size]
        self.fill(view, data.start, data.shard)
        return view

    def fill(self, buffer: memoryview, at: int, shard: int = 0) -> None:
        """Fill a buffer with the bytes of a file that begin at byte ``at``.

        Raises ``FormatError`` as ``chunk`` does.
        """
        self.files[shard].read_into(at, buffer)
        self._on_read(len(buffer))

    @property
    def is_far(self) -> bool:
        """Whether bytes are fetched from far away, and ahead."""
        return any(isinstance(file, FarFile) for file in self.files)

    def soon(self, tensors: Iterable[StoredTensor]) -> None:
        """Fetch tensors that are read soon, where a file is far: in as few journeys as can be."""
        ranges: dict[int, list[ByteRange]] = {}
        for tensor in tensors:
            if not isinstance(tensor, ViewedTensor):  # what a view is made of is read by itself
                ranges.setdefault(tensor.data.shard, []).append(tensor.data)
        for shard, of_file in ranges.items():
            file = self.files[shard]
            if isinstance(file, FarFile):
                file.soon(of_file)

    def reader(self, tensor: StoredTensor) -> Read:
        """A function from a block of a tensor to its elements, an array of the block's shape.

        bfloat16 comes as ml_dtypes' type, dtypes that are not foldable as raw elements. The array
        is valid until this thread reads again; each thread needs a function of its own.
        """
        dtype = tensor.info.dtype
        kind = dtype.elements()
        if isinstance(tensor, ViewedTensor):
            tensor = self._placed(tensor)
        if not tensor.is_contiguous:
            return _Gathered(self, tensor, kind)
        its, size = tensor.data, dtype.itemsize
        start, shard = its.start, its.shard

        def read(block: Block) -> Array:
            data = self.chunk(ByteRange(start + block.start * size, (block.stop - block.start) * size, shard))
            return np.frombuffer(data, kind).reshape(block.shape)

        return read

    def _placed(self, tensor: ViewedTensor) -> StoredTensor:
        """The tensor, with the number of its view among the files."""
        with self._opening:
            if tensor.made not in self._viewed:
                self._viewed[tensor.made] = len(self.files)
                self.files.append(tensor.made.over(self.files))
            shard = self._viewed[tensor.made]
        return replace(tensor, storage=replace(tensor.storage, shard=shard))

    def whole(self, tensor: StoredTensor) -> Array:
        """All elements of a foldable tensor, in its own shape (for magnitudes, which are small)."""
        shape = tensor.info.shape
        every = Block(0, (1, 1, tensor.info.numel), 0)
        if not tensor.info.numel:
            return np.empty(shape, tensor.info.dtype.numpy())
        return self.reader(tensor)(every).reshape(shape).copy()


class _Gathered:
    """The elements of a view in C order, through a tile of them that is kept for the next block."""

    def __init__(self, source: Source, tensor: StoredTensor, kind: np.dtype[Any]) -> None:
        self.source = source
        self.tensor = tensor
        self.kind = kind
        self.strides = tuple(step * kind.itemsize for step in tensor.strides)
        self.first = 0
        self.tile: Array = np.empty(0, kind)

    def __call__(self, block: Block) -> Array:
        out = np.empty(block.stop - block.start, self.kind)
        at = block.start
        while at < block.stop:
            if not self.first <= at < self.first + self.tile.size:
                self.load(at)
            piece = self.tile[at - self.first : block.stop - self.first]
            out[at - block.start :][: piece.size] = piece
            at += piece.size
        return out.reshape(block.shape)

    def load(self, at: int) -> None:
        """Make the tile hold element ``at``: all that lies behind some elements of one axis."""
        shape = self.tensor.info.shape
        most = _TILE_BYTES // self.kind.itemsize
        axis = next(axis for axis in range(len(shape)) if math.prod(shape[axis + 1 :]) <= most)
        behind = math.prod(shape[axis + 1 :])
        index = np.unravel_index(at - at % behind, shape)[: axis + 1]
        offset = sum(int(place) * step for place, step in zip(index, self.strides, strict=False))
        self.first = at - at % behind
        self.tile = np.empty(0, self.kind)  # never two
        tile = np.empty((min(most // behind, shape[axis] - int(index[axis])), *shape[axis + 1 :]), self.kind)
        start = self.tensor.storage.start + self.tensor.offset * self.kind.itemsize + offset
        strides = self.strides[axis:]
        # An axis that runs backwards is read forwards, and put the other way round.
        start += sum((size - 1) * step for size, step in zip(tile.shape, strides, strict=True) if step < 0)
        turned = tile[tuple(slice(None, None, -1 if step < 0 else 1) for step in strides)]
        self.gather(turned, start, tuple(map(abs, strides)))
        self.tile = tile.reshape(-1)

    def gather(self, out: Array, start: int, strides: tuple[int, ...]) -> None:
        """Fill ``out`` with the view that begins at a byte of the file, one short span after another."""
        reach = [(size - 1) * step for size, step in zip(out.shape, strides, strict=True)]
        span = sum(reach) + self.kind.itemsize
        if span <= _SPAN_BYTES:
            data = self.source.chunk(ByteRange(start, span, self.tensor.storage.shard))
            out[...] = np.ndarray(out.shape, self.kind, data, 0, strides)
            return
        longest = max(reach)
        axis = reach.index(longest)
        count = max((_SPAN_BYTES - (span - longest)) // strides[axis], 1)
        for first in range(0, out.shape[axis], count):
            part = (*[slice(None)] * axis, slice(first, first + count))
            self.gather(out[part], start + first * strides[axis], strides)
