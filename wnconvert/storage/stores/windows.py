"""Windows: pieces of memory that threads of their own write to a file while others are filled."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PAGE", "WINDOW_BYTES", "Window", "Windows"]


#: Bytes of a window, beside a page for what was left of the one before. Three being written keep a disk as
#: busy as larger ones do, and take less memory.
WINDOW_BYTES = 1 << 20
_WRITERS = 3
#: What direct writes begin and end at: no disk asks for more.
PAGE = 4 << 10

#: The bytes of a window; in memory they begin at a page, as direct writes ask for.
Window = NDArray[np.uint8]


class Windows:
    """Windows that go round: taken empty, filled, given to be written, and free again.

    ``write(data, at)`` writes; at most ``most`` windows are filled at a time. An error of ``write`` is raised
    by every call that follows it, and nothing more is written.
    """

    def __init__(self, write: Callable[[memoryview, int], None], most: int) -> None:
        self._write = write
        self._unmade = most + _WRITERS
        self._free: SimpleQueue[Window] = SimpleQueue()
        self._full: SimpleQueue[tuple[Window, int, int, int] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._error: BaseException | None = None

    def take(self) -> Window:
        """An empty window, as soon as there is one."""
        self._check()
        with self._lock:
            make = self._unmade > 0 and self._free.empty()
            self._unmade -= make
        if not make:
            return self._free.get()
        memory: Any = mmap.mmap(-1, WINDOW_BYTES + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return np.frombuffer(memory, np.uint8)

    def give(self, window: Window, start: int, stop: int, at: int) -> None:
        """Have bytes ``start`` to ``stop`` of a window written, at byte ``at`` of the file."""
        self._check()
        if self._started():
            self._full.put((window, start, stop, at))
        else:
            self._work_off(window, start, stop, at)

    def finish(self) -> None:
        """Wait until all that was given is written."""
        for _ in self._threads:
            self._full.put(None)
        try:
            self._join()
        except BaseException:  # Ctrl-C while waiting: the file is not closed under a thread
            self._join()
            raise
        self._check()

    def _join(self) -> None:
        for thread in self._threads:
            with contextlib.suppress(RuntimeError):  # its start was interrupted: it finds nothing to write
                thread.join()

    def abandon(self, error: BaseException) -> None:
        """Wait until nothing is written any more; what was not yet, is not."""
        self._error = self._error or error
        with contextlib.suppress(type(self._error)):
            self.finish()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _started(self) -> bool:
        """Whether there are threads that write; they start with the first window that is given."""
        with self._lock:
            if not self._threads:
                for _ in range(_WRITERS):
                    thread = threading.Thread(target=self._run)
                    self._threads.append(thread)  # before: Ctrl-C may come while it starts
                    try:
                        thread.start()
                    except RuntimeError:  # the system has no more threads: fewer
                        self._threads.remove(thread)
                        break
            return bool(self._threads)

    def _run(self) -> None:
        while (job := self._full.get()) is not None:
            self._work_off(*job)

    def _work_off(self, window: Window, start: int, stop: int, at: int) -> None:
        try:
            if self._error is None:
                self._write(window.data[start:stop], at)
        except BaseException as error:  # noqa: BLE001 - raised by the next call
            self._error = self._error or error
        self._free.put(window)
