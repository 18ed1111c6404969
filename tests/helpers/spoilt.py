"""Writes that spoil what they write, for a process that has no torch."""

from __future__ import annotations

import pytest

from wnconvert.storage import staging
from wnconvert.storage.stores import filling
from wnconvert.storage.stores.system import write_at

__all__ = ["spoil"]


def spoil(patch: pytest.MonkeyPatch, at: int, bits: int) -> None:
    """Have every write flip bits of the byte at an offset of its file."""

    def flipped(descriptor: int, data: memoryview, start: int) -> int:
        changed = bytearray(data)
        if start <= at < start + len(changed):
            changed[at - start] ^= bits
        return write_at(descriptor, memoryview(changed), start)

    patch.setattr(staging, "write_at", flipped)
    patch.setattr(filling, "write_at", flipped)
    patch.setattr(filling, "open_direct", lambda *_: None)  # a copy in memory is at no page's beginning
    patch.setattr(filling.Filling, "receive", lambda *_: 0)
