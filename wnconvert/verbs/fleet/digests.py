"""What a checkpoint was when it was begun."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePath

from wnconvert.frozen import dataclass
from wnconvert.storage.files import kind_of, located, status_of
from wnconvert.verbs.shared.digests import files_below

__all__ = ["Stamp", "is_there", "size_of", "stamp_of"]


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
        found = [(file, status_of(file)) for file in files_below(path)]
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
