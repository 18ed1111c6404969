"""The bytes of a checkpoint's tensors, block by block, from any thread.

Contiguous tensors are read with ``preadv`` into a buffer that each thread keeps; other views (transposed,
expanded, channels last) are gathered from a mapping of the file, in C order.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnconvert.blocks import BLOCK_BYTES, Block
from wnconvert.errors import FormatError, InputError
from wnconvert.tensors import ByteRange, StoredTensor

__all__ = ["Source"]

Array = NDArray[Any]


class Source:
    """The opened files of a checkpoint; close it, or use it in a ``with`` statement."""

    def __init__(self, shards: Sequence[Path]) -> None:
        self._shards = tuple(shards)
        self._fds: list[int] = []
        self._maps: dict[int, mmap.mmap] = {}
        self._lock = threading.Lock()
        self._local = threading.local()
        try:
            for path in shards:
                self._fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            self.close()
            raise InputError(f"it cannot be read ({error.strerror})", where=str(error.filename)) from error

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        # A mapping is freed with the last array that looks at it.
        self._maps = {}

    def chunk(self, data: ByteRange) -> memoryview:
        """At most a block of bytes; valid until this thread reads again.

        Raises ``FormatError`` where the file has become shorter since it was opened.
        """
        buffer = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < data.size:
            buffer = self._local.buffer = memoryview(bytearray(max(data.size, BLOCK_BYTES)))
        view = buffer[: data.size]
        done = 0
        try:
            while done < data.size:
                count = os.preadv(self._fds[data.shard], [view[done:]], data.start + done)
                if count == 0:
                    raise FormatError(
                        "it became shorter while it was read", where=str(self._shards[data.shard])
                    )
                done += count
        except OSError as error:
            raise InputError(
                f"it cannot be read ({error.strerror})", where=str(self._shards[data.shard])
            ) from error
        return view

    def reader(self, tensor: StoredTensor) -> Callable[[Block], Array]:
        """A function from a block of a tensor to its elements, an array of the block's shape.

        bfloat16 comes as ml_dtypes' type; dtypes that are not foldable as raw elements (``V`` or unsigned).
        """
        dtype, raw = tensor.info.dtype, np.dtype(f"V{tensor.info.dtype.itemsize}")
        kind = dtype.numpy() if dtype.foldable else raw
        if tensor.is_contiguous:
            start, size, shard = tensor.data.start, dtype.itemsize, tensor.data.shard

            def read(block: Block) -> Array:
                data = self.chunk(
                    ByteRange(start + block.start * size, (block.stop - block.start) * size, shard)
                )
                return np.frombuffer(data, kind).reshape(block.shape)

            return read
        strided = self._strided(tensor, raw)

        def gather(block: Block) -> Array:
            return strided.flat[block.start : block.stop].view(kind).reshape(block.shape)

        return gather

    def whole(self, tensor: StoredTensor) -> Array:
        """All elements of a foldable tensor, in its own shape (for magnitudes, which are small)."""
        shape = tensor.info.shape
        every = Block(0, (1, 1, tensor.info.numel), 0)
        if not tensor.info.numel:
            return np.empty(shape, tensor.info.dtype.numpy())
        return self.reader(tensor)(every).reshape(shape).copy()

    def _strided(self, tensor: StoredTensor, raw: np.dtype[Any]) -> Array:
        shard = tensor.storage.shard
        with self._lock:
            if shard not in self._maps:
                self._maps[shard] = mmap.mmap(self._fds[shard], 0, access=mmap.ACCESS_READ)
        strides = tuple(step * raw.itemsize for step in tensor.strides)
        start = tensor.storage.start + tensor.offset * raw.itemsize
        return np.ndarray(tensor.info.shape, raw, self._maps[shard], start, strides)
