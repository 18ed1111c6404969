"""The limits of what is read and written: one table, which readers and writers both ask.

They are the formats' own. Where a format has none, the number keeps a claim in a damaged or hostile file from
being believed, and lies far beyond what real files have.
"""

from __future__ import annotations

__all__ = ["INDEX", "MESSAGEPACK", "PICKLE", "RECORD", "SAFETENSORS_HEADER", "ZIP_DIRECTORY", "megabytes"]


#: The bytes of a safetensors header: ``MAX_HEADER_SIZE`` of the safetensors library.
SAFETENSORS_HEADER = 100_000_000

#: The bytes of a pickle. One of a million tensors takes 130 MB.
PICKLE = 1 << 30

#: The bytes of a MessagePack file beside its arrays. One of a million arrays takes 100 MB.
MESSAGEPACK = 1 << 28

#: The bytes of a zip archive's directory. One of a million storages takes 90 MB.
ZIP_DIRECTORY = 1 << 30

#: The bytes of a small record in an archive, wnconvert's own among them: what fits a safetensors header.
RECORD = SAFETENSORS_HEADER

#: The bytes of the index of a checkpoint in several files. One of a million tensors takes 80 MB.
INDEX = 1 << 30


def megabytes(size: int) -> str:
    """A limit in words.

    >>> megabytes(SAFETENSORS_HEADER)
    '100 MB'
    """
    return f"{size / 1e6:.0f} MB"
