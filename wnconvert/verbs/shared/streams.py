"""The process's own stdout and stderr, to which libraries in C write past Python."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

__all__ = ["redirected"]


@contextlib.contextmanager
def redirected(descriptor: int, target: int) -> Iterator[None]:
    """Inside, writes to a file descriptor go where ``target`` leads; a closed descriptor stays closed."""
    try:
        kept = os.dup(descriptor)
    except OSError:  # it is closed
        kept = -1
    try:
        if kept >= 0:
            with contextlib.suppress(OSError):  # the target is closed
                os.dup2(target, descriptor)
        yield
    finally:
        if kept >= 0:
            os.dup2(kept, descriptor)
            os.close(kept)
