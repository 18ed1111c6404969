"""Files that are opened when they are read, a few of which stay open.

A process may open about a thousand files, and a checkpoint may lie in ten times as many.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from wnconvert.tensors.files import Identity, ReadableFile, changed_while_read

__all__ = ["MOST_OPEN", "KeptFiles"]


#: How many files of a checkpoint are open at a time. Two checkpoints, a reader that is not ours and an output
#: go into the 64 descriptors that the smallest systems allow.
MOST_OPEN = 16

_Name = TypeVar("_Name")


class KeptFiles(Generic[_Name]):
    """Files by their names, opened by ``opener`` when they are read; close them all at the end."""

    def __init__(self, opener: Callable[[_Name], ReadableFile], most: int = MOST_OPEN) -> None:
        self._opener = opener
        self._most = most
        self._lock = threading.Lock()
        self._open: OrderedDict[_Name, ReadableFile] = OrderedDict()  # that which was read last is the last
        self._readers: dict[_Name, int] = {}
        self._identities: dict[_Name, Identity | None] = {}

    def file(self, name: _Name) -> ReadableFile:
        """A file that is opened when it is read."""
        return _KeptFile(self, name)

    def close(self) -> None:
        """Close all files."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    @contextmanager
    def opened(self, name: _Name) -> Iterator[ReadableFile]:
        """The file itself, which stays open in this block. Raises ``FormatError`` where it is another now."""
        with self._lock:
            file = self._open.get(name) or self._opened_again(name)
            self._open[name] = file
            self._open.move_to_end(name)
            self._readers[name] = self._readers.get(name, 0) + 1
            self._close_some()
        try:
            yield file
        finally:
            with self._lock:
                self._readers[name] -= 1
                if not self._readers[name]:
                    del self._readers[name]

    def _opened_again(self, name: _Name) -> ReadableFile:
        file = self._opener(name)
        if self._identities.setdefault(name, file.identity) != file.identity:
            file.close()
            raise changed_while_read(str(name), "it was written to, or another one took its place")
        return file

    def _close_some(self) -> None:
        """Close the files that were not read for the longest time, but those that are being read."""
        if len(self._open) > self._most:
            idle = [name for name in self._open if name not in self._readers]
            for name in idle[: len(self._open) - self._most]:
                self._open.pop(name).close()


class _KeptFile(Generic[_Name]):
    """One of the files."""

    def __init__(self, files: KeptFiles[_Name], name: _Name) -> None:
        self._files = files
        self._name = name

    @property
    def path(self) -> Path | None:
        """Its path on this machine, or None."""
        with self._files.opened(self._name) as file:
            return file.path

    @property
    def identity(self) -> Identity | None:
        """What it was when it was opened first; None for what nobody else can change."""
        with self._files.opened(self._name) as file:
            return file.identity

    @property
    def size(self) -> int:
        """The number of its bytes, as it is now."""
        with self._files.opened(self._name) as file:
            return file.size

    def read(self, at: int, size: int, /) -> bytes:
        """All of ``size`` bytes, beginning at byte ``at``."""
        with self._files.opened(self._name) as file:
            return file.read(at, size)

    def read_into(self, at: int, buffer: memoryview, /) -> None:
        """Fill a buffer with the bytes that begin at byte ``at``."""
        with self._files.opened(self._name) as file:
            file.read_into(at, buffer)

    def close(self) -> None:
        """Let go of it: it is closed with the others."""
