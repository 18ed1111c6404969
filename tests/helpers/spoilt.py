"""Writes that spoil what they write, for a process that has no torch."""

from __future__ import annotations

from collections.abc import Callable

from wnconvert.storage.staging import Staged

__all__ = ["flipping"]


def flipping(at: int, bits: int) -> Callable[[Staged, bytes | memoryview, int], None]:
    """A write that flips bits of the byte at an offset of the file."""
    write = Staged.write

    def flipped(self: Staged, data: bytes | memoryview, start: int) -> None:
        changed = bytearray(data)
        if start <= at < start + len(changed):
            changed[at - start] ^= bits
        write(self, bytes(changed), start)

    return flipped
