"""Links inside a folder, and the cache of the hub.

Nobody vouches for the content of a folder, so nothing in it may lead out of it. A link is followed where it
stays in the folder, and from a snapshot of the hub's own cache to that cache's blobs.
"""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import PurePath

from wnconvert.errors import FormatError, InputError
from wnconvert.messages import listed
from wnconvert.storage.files import kind_of, listing_of, open_file, real_of
from wnconvert.storage.stores.store import PathKind

__all__ = [
    "ENTRY",
    "cache_of",
    "check_inside",
    "entry_notes",
    "is_entry",
    "is_link",
    "link_text",
    "snapshot_in",
]


#: How the hub's cache begins the name of the folder of a model.
ENTRY = "models--"
#: The name of a commit is 40 letters; what is longer is not one.
_LONGEST = 100


def check_inside(root: PurePath, path: str, *, cached: bool = True) -> None:
    """Raise ``FormatError`` where a path in a folder leads out of it through links.

    A file (``cached``) may lie among the blobs of the hub's cache, where the folder is a snapshot.
    """
    real, inside = real_of(root / path), real_of(root)
    if real.is_relative_to(inside):
        return
    cache = cache_of(inside)
    if cached and cache is not None and real.is_relative_to(cache / "blobs"):
        return
    raise FormatError(
        f"{path} is a link that leaves the folder, to {real}",
        fix="put the file itself there, if you trust it",
    )


def cache_of(folder: PurePath) -> PurePath | None:
    """The entry of the hub's cache that a folder is, or is a snapshot of, or lies in one; else None.

    >>> cache_of(PurePath("runs/snapshots/epoch_3")) is None  # runs/blobs is not there
    True
    """
    if is_entry(folder):
        return folder
    for at in (folder, *folder.parents):
        if at.parent.name == "snapshots" and kind_of(at.parent.parent / "blobs") is PathKind.FOLDER:
            return at.parent.parent
    return None


def is_entry(folder: PurePath) -> bool:
    """Whether a folder is all that the hub's cache has of a model: ``models--a--b``."""
    return folder.name.startswith(ENTRY) and kind_of(folder / "snapshots") is PathKind.FOLDER


def snapshot_in(entry: PurePath, revision: str = "main") -> PurePath:
    """The snapshot that a branch of a model in the hub's cache means; the only one, where none is named so.

    Raises ``InputError`` where that is not told, or is not there.
    """
    every = entry / "snapshots"
    there = [name for name in listing_of(every) if kind_of(every / name) is PathKind.FOLDER]
    try:
        with closing(open_file(entry / "refs" / revision)) as file:
            commit = file.read(0, min(file.size, _LONGEST)).decode("ascii", errors="replace").strip()
    except (OSError, InputError):
        commit = there[0] if len(there) == 1 else ""
    if commit in there:
        return entry / "snapshots" / commit
    fix = f"name one of them: {entry / 'snapshots' / there[0]}" if there else "download it again"
    raise InputError(
        f"an entry of the hub's cache whose refs/{revision} names none of its snapshots "
        f"({listed(there, 3) or 'there are none'})",
        fix=fix,
    )


def entry_notes(folder: PurePath) -> tuple[str, ...]:
    """A note on which snapshot is read, where a folder is an entry of the hub's cache."""
    if not is_entry(folder):
        return ()
    return (f"it is an entry of the hub's cache, and its snapshot {snapshot_in(folder).name} is read",)


def is_link(path: PurePath) -> bool:
    """Whether a path is itself a link."""
    return real_of(path) != real_of(path.parent) / path.name


def link_text(root: PurePath, link: PurePath) -> str:
    """The relative path that a link inside a folder gets, so that it holds wherever the folder lies."""
    return os.path.relpath(real_of(root / link), real_of((root / link).parent))
