"""Bytes of a large file that are read once, past the page cache where the system can do that.

What was written past the page cache is not in it, and to put it there takes more of a processor's time than
all else that is done with its bytes.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wnconvert.errors import InputError
from wnconvert.storage.stores.system import READING, read_into
from wnconvert.storage.stores.windows import PAGE
from wnconvert.tensors.blocks import scratch
from wnconvert.tensors.files import became_shorter
from wnconvert.tensors.tree import ByteRange

__all__ = ["uncached_reader"]


#: What is read at once: disks take longer for less.
_WINDOW_BYTES = 2 << 20

#: What a thread has read last.
_local = threading.local()


def uncached_reader(path: Path, data: ByteRange) -> Callable[[int, int], memoryview]:
    """A function from a place in some bytes of a file, and a size, to so many of them.

    They are valid until this thread reads on; more that follow are read with them, so that pieces of one
    size are read once. Raises ``InputError`` where the file cannot be read, ``FormatError`` where it ends too
    early.
    """

    def read(at: int, size: int) -> memoryview:
        start = data.start + at
        reader, first, window = getattr(_local, "held", (None, 0, memoryview(b"")))
        if reader is not read or not first <= start <= start + size <= first + len(window):
            count = max(_WINDOW_BYTES // size, 1) * size
            first = start // PAGE * PAGE
            window = _read(path, first, min(start + count, data.end) - first)
            _local.held = read, first, window
        return window[start - first :][:size]

    return read


def _read(path: Path, at: int, size: int) -> memoryview:
    """Bytes that begin at a page of a file, in memory that this thread uses again."""
    room = -(-size // PAGE) * PAGE
    memory = scratch("uncached", (max(room, _WINDOW_BYTES + PAGE) + PAGE,), np.uint8)
    window = memory[-memory.ctypes.data % PAGE :].data  # direct reads ask for pages in memory, too
    done = _read_directly(path, at, window[:room])
    try:
        file = os.open(path, READING) if done < size else -1
        try:
            while done < size:
                count = read_into(file, window[done:size], at + done)
                if not count:
                    raise became_shorter(str(path))
                done += count
        finally:
            if file >= 0:
                os.close(file)
    except OSError as error:
        raise InputError(f"it cannot be read ({error.strerror})", where=str(path)) from error
    return window[:size]


def _read_directly(path: Path, at: int, window: memoryview) -> int:
    """Read whole pages past the page cache; how many bytes: 0 where that cannot be done."""
    with contextlib.suppress(OSError):
        if hasattr(os, "O_DIRECT"):
            file = os.open(path, READING | os.O_DIRECT)
            try:
                return read_into(file, window, at)
            finally:
                os.close(file)
    return 0
