"""Everything in a folder beside its weights: what is copied, and what is left out."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path, PurePath

from wnconvert.errors import InputError
from wnconvert.storage.folder.links import check_inside, link_text
from wnconvert.storage.folder.weights import Folder
from wnconvert.storage.folder.written import MANIFEST

__all__ = ["File", "OtherFiles", "find_beside", "find_others"]


#: These describe the folder as it was: version control, which holds all weights once more, and the notes of
#: the hub's client on its downloads.
_OWN = (".git", ".cache")


@dataclass(frozen=True, slots=True)
class File:
    """A file beside the weights: its path in the folder, its size, its mode."""

    path: str
    size: int
    mode: int


@dataclass(frozen=True, slots=True)
class OtherFiles:
    """Everything in a folder beside its weights: what is copied, and what is left out.

    ``folders`` (path and mode) come before what is in them; ``links`` are links to folders, each with
    the text that the new link gets.
    """

    files: tuple[File, ...] = ()
    folders: tuple[tuple[str, int], ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()


def find_beside(folder: Folder) -> OtherFiles:
    """Everything in a folder, at any depth, beside its weights.

    Raises ``FormatError`` for links that leave the folder, and ``InputError`` for anything but files.
    """
    return find_others(folder.root, {"": folder.weights}, folder.others)


def find_others(root: Path, weights: Mapping[str, Set[str]], unread: Iterable[str] = ()) -> OtherFiles:
    """Everything in a folder but these weights: names of files, by the folder in it where they lie.

    ``unread`` are further weights, which are left out. Raises as ``find_beside`` does.
    """
    files: list[File] = []
    folders: list[tuple[str, int]] = []
    links: list[tuple[str, str]] = []
    for path, below, names in os.walk(root, onerror=_raise):
        inner = Path(path).relative_to(root)
        if inner == Path():
            below[:] = [name for name in below if name not in _OWN]
            names[:] = [name for name in names if name not in {*_OWN, MANIFEST}]
        taken = weights.get("" if inner == Path() else str(inner), frozenset())
        for name in sorted(below):
            if Path(path, name).is_symlink():
                check_inside(root, str(inner / name), cached=False)
                links.append((str(inner / name), link_text(root, inner / name)))
            else:
                folders.append((str(inner / name), stat.S_IMODE(Path(path, name).stat().st_mode)))
        files += [_file(root, inner / name) for name in sorted(names) if name not in taken]
    own = (name for name in _OWN if os.path.lexists(root / name))
    return OtherFiles(tuple(files), tuple(folders), tuple(links), (*sorted(unread), *own))


def _raise(error: OSError) -> None:
    raise error


def _file(root: Path, path: PurePath) -> File:
    check_inside(root, str(path))
    try:
        status = (root / path).stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", fix="move it away") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a regular file, and cannot be copied", fix="move it away")
    return File(str(path), status.st_size, stat.S_IMODE(status.st_mode))
