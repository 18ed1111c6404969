"""The C library's heap: what is free in it goes back to the system, so that a process holds what it uses.

Only a process that the tool runs in alone is changed: in another program the heap is that program's.
"""

from __future__ import annotations

import sys

__all__ = ["give_back", "keep_large_apart"]


# Of glibc's <malloc.h>: from which size on a piece is mapped by itself, and how much may be free at the end.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Tables of many names are larger, blocks of numbers smaller: these are used again at once.
_LARGE = 4 << 20


class _Process:
    """This process, and whether the tool runs in it alone."""

    is_ours = False


_PROCESS = _Process()


def keep_large_apart() -> None:
    """Have what is large go back to the system as soon as it is free, where the C library can do that.

    Else it keeps what is as large as anything that was free before, up to 32 MiB, and a run on many tensors
    held half as much again. To be called where the tool runs alone.
    """
    _PROCESS.is_ours = True
    _call("mallopt", _MMAP_THRESHOLD, _LARGE)
    _call("mallopt", _TRIM_THRESHOLD, 2 * _LARGE)


def give_back() -> None:
    """Give all that is free back to the system, where the tool runs alone and the C library can do that."""
    if _PROCESS.is_ours:
        _call("malloc_trim", 0)


def _call(name: str, *numbers: int) -> None:
    """Call a function that glibc has, and others do not."""
    if sys.platform != "linux":
        return
    import ctypes  # which `--help` need not wait for

    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*numbers)
