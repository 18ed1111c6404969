"""All files of a run written, or none: each beside its place first, then all put there, or undone."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from wnconvert.errors import InputError
from wnconvert.frozen import dataclass
from wnconvert.storage.staging import staged

__all__ = ["Rewrite", "write_all"]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """The bytes of a file as it was read, and as it will be."""

    old: bytes
    new: bytes


def write_all(rewrites: Mapping[Path, Rewrite]) -> None:
    """Put new bytes in the place of old ones.

    Raises ``OutputError``, or ``InputError`` for a file that changed.
    """
    try:
        with contextlib.ExitStack() as stack:
            for path, rewrite in rewrites.items():
                _check_as_read(path, rewrite)
                file = stack.enter_context(staged(path, force=True, size=len(rewrite.new)))
                file.write(rewrite.new, 0)
            for path, rewrite in rewrites.items():  # once more, when all lie beside their places
                _check_as_read(path, rewrite)
    except BaseException:
        for path, rewrite in rewrites.items():
            _undo(path, rewrite)
        raise


def _check_as_read(path: Path, rewrite: Rewrite) -> None:
    if path.read_bytes() != rewrite.old:
        raise InputError("it was changed while it was read", where=str(path), fix="run it again")


def _undo(path: Path, rewrite: Rewrite) -> None:
    with contextlib.suppress(Exception):  # the first error is the one to report
        if path.read_bytes() == rewrite.new:
            with staged(path, force=True, size=len(rewrite.old)) as file:
                file.write(rewrite.old, 0)
