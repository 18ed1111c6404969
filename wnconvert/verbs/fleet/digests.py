"""What a checkpoint was when it was begun, and the SHA-256 of what was written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path, PurePath

from wnconvert.storage.files import kind_of, listing_of, located, open_file, status_of
from wnconvert.storage.stores.store import PathKind

__all__ = ["changed_at", "is_there", "sha256_of", "size_of"]


_BLOCK = 1 << 20


def changed_at(path: PurePath) -> tuple[int, int]:
    """The bytes of a file, or of all in a folder, and when it last changed in nanoseconds; zeros for nothing.

    >>> from pathlib import Path
    >>> changed_at(Path("fixtures/plain.pt"))[0], changed_at(Path("not there"))
    (3453, (0, 0))
    """
    size = latest = 0
    try:
        for file in _files(path):
            status = status_of(file)
            size += status.size
            latest = max(latest, status.identity.mtime_ns if status.identity else 0)
    except OSError:  # the verb itself says what is wrong
        return 0, 0
    return size, latest


def is_there(name: str) -> bool:
    """Whether anything lies at a name, a link to nothing too."""
    return kind_of(path := located(name)) is not None or (isinstance(path, Path) and path.is_symlink())


def size_of(path: PurePath) -> int:
    """The bytes of a file, or of all in a folder; 0 where nothing is."""
    return changed_at(path)[0]


def sha256_of(path: PurePath) -> str:
    """The SHA-256 of a file; of a folder, that of the list which ``sha256sum`` prints of its files.

    Raises ``OSError`` or ``InputError`` where it cannot be read.

    >>> from pathlib import Path
    >>> sha256_of(Path("not there"))
    Traceback (most recent call last):
    wnconvert.errors.InputError: not there: it cannot be read (No such file or directory)
    """
    if kind_of(path) is not PathKind.FOLDER:
        return _of_file(path)
    lines = (f"{_of_file(file)}  {file.relative_to(path).as_posix()}\n" for file in _files(path))
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _of_file(path: PurePath) -> str:
    found = hashlib.sha256()
    with closing(open_file(path)) as file:
        buffer = memoryview(bytearray(_BLOCK))
        for at in range(0, file.size, _BLOCK):
            part = buffer[: min(_BLOCK, file.size - at)]
            file.read_into(at, part)
            found.update(part)
    return found.hexdigest()


def _files(path: PurePath) -> Iterator[PurePath]:
    """A file itself, or all files in a folder, at any depth, sorted by their paths."""
    if kind_of(path) is not PathKind.FOLDER:
        yield path
        return
    for name in listing_of(path):
        yield from _files(path / name)
