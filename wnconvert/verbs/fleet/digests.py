"""What a checkpoint was when it was begun, and the SHA-256 of what was written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePath

from wnconvert.storage.files import kind_of, listing_of, located, open_file, status_of
from wnconvert.storage.stores.store import PathKind

__all__ = ["Stamp", "is_there", "sha256_of", "size_of", "stamp_of"]


_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a file was, or all files of a folder: its bytes, when it last changed, its tag in a store.

    A store tells no time that could be relied on, and a disk no tag. The tag of a folder is a digest of those
    of its files.
    """

    size: int = 0
    mtime_ns: int = 0
    tag: str = ""


def stamp_of(path: PurePath) -> Stamp:
    """What a file or folder is now; the stamp of nothing for what cannot be looked at.

    >>> from pathlib import Path
    >>> stamp_of(Path("fixtures/plain.pt")).size, stamp_of(Path("not there"))
    (3453, Stamp(size=0, mtime_ns=0, tag=''))
    """
    try:
        found = [(file, status_of(file)) for file in _files(path)]
    except OSError:  # the verb itself says what is wrong
        return Stamp()
    identities = [(file, status.identity) for file, status in found if status.identity]
    tags = [(str(file), identity.tag) for file, identity in identities if identity.tag]
    tag = tags[0][1] if len(tags) == 1 else hashlib.sha256(repr(tags).encode()).hexdigest() if tags else ""
    latest = max((identity.mtime_ns for _, identity in identities), default=0)
    return Stamp(sum(status.size for _, status in found), latest, tag)


def is_there(name: str) -> bool:
    """Whether anything lies at a name, a link to nothing too."""
    return kind_of(path := located(name)) is not None or (isinstance(path, Path) and path.is_symlink())


def size_of(path: PurePath) -> int:
    """The bytes of a file, or of all in a folder; 0 where nothing is."""
    return stamp_of(path).size


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
