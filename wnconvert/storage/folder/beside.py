"""Everything in a folder beside its weights: what is copied, and what is left out."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Set
from dataclasses import field
from pathlib import PurePath

from wnconvert.errors import InputError
from wnconvert.frozen import dataclass
from wnconvert.storage.files import Seen, kind_of, listing_of, status_of
from wnconvert.storage.folder.links import check_inside, is_link, link_text
from wnconvert.storage.folder.weights import Folder
from wnconvert.storage.folder.written import MANIFEST
from wnconvert.storage.stores.store import PathKind
from wnconvert.tensors.files import Identity

__all__ = ["File", "OtherFiles", "find_beside", "find_others"]


#: These describe the folder as it was: version control, which holds all weights once more, and the notes of
#: the hub's client on its downloads.
_OWN = (".git", ".cache")

#: The modes that copies get of what has none, in a store that is not a disk.
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755


@dataclass(frozen=True, slots=True)
class File:
    """A file beside the weights: its path in the folder, its size, its mode, and which file it was."""

    path: str
    size: int
    mode: int
    identity: Identity | None = field(default=None, compare=False)


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

    def seen(self, root: PurePath) -> Seen:
        """What the files were, which lie in the folder ``root``."""
        return {root / file.path: file.identity for file in self.files}


def find_beside(folder: Folder) -> OtherFiles:
    """Everything in a folder, at any depth, beside its weights.

    Raises ``FormatError`` for links that leave the folder, and ``InputError`` for anything but files.
    """
    return find_others(folder.root, {"": folder.weights}, folder.others)


def find_others(root: PurePath, weights: Mapping[str, Set[str]], unread: Iterable[str] = ()) -> OtherFiles:
    """Everything in a folder but these weights: names of files, by the folder in it where they lie.

    ``unread`` are further weights, which are left out. Raises as ``find_beside`` does.
    """
    files: list[File] = []
    folders: list[tuple[str, int]] = []
    links: list[tuple[str, str]] = []
    for path in _below(root, {*_OWN, MANIFEST}):
        if kind_of(root / path) is not PathKind.FOLDER:
            if path.name not in weights.get(_name_of(path.parent), frozenset()):
                files.append(_file(root, path))
        elif is_link(root / path):
            check_inside(root, str(path), cached=False)
            links.append((str(path), link_text(root, path)))
        else:
            folders.append((str(path), status_of(root / path).mode or _FOLDER_MODE))
    own = [name for name in _OWN if name in listing_of(root)]
    return OtherFiles(tuple(files), tuple(folders), tuple(links), (*sorted(unread), *own))


def _below(root: PurePath, without: Container[str] = ()) -> Iterator[PurePath]:
    """The paths of all that lies in a folder, then in those in it; links to folders are not followed."""
    names = [name for name in listing_of(root) if name not in without]
    yield from map(PurePath, names)
    for name in names:
        if kind_of(root / name) is PathKind.FOLDER and not is_link(root / name):
            yield from (PurePath(name) / path for path in _below(root / name))


def _name_of(folder: PurePath) -> str:
    return "" if folder == PurePath() else str(folder)


def _file(root: PurePath, path: PurePath) -> File:
    check_inside(root, str(path))
    try:
        status = status_of(root / path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", fix="move it away") from error
    if status.kind is not PathKind.FILE:
        raise InputError(f"{path} is not a regular file, and cannot be copied", fix="move it away")
    mode = _FILE_MODE if status.mode is None else status.mode
    return File(str(path), status.size, mode, status.identity)
