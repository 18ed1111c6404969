"""Names of files, globs and folders become sources, each with its place below their common root."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import TypeAlias

from wnconvert.errors import ArgumentError, InputError
from wnconvert.frozen import dataclass
from wnconvert.storage.files import Name, entries_of, kind_of, located, open_file
from wnconvert.storage.folder.links import is_link
from wnconvert.storage.folder.weights import named_as_weights
from wnconvert.storage.recognition import HEAD, METADATA, container_in
from wnconvert.storage.stores.standard import STANDARD
from wnconvert.storage.stores.store import Address, PathKind
from wnconvert.tensors.containers import Container

__all__ = ["FleetSource", "absolute", "is_glob", "natural", "sources_of"]


_MAGIC = re.compile(r"[*?\[]")
_ANY_DEPTH = "**"
_SUFFIXES = (".pt2", *{suffix for container in Container for suffix in container.facts.suffixes})
#: Names of checkpoints without a suffix of letters, such as g_02500000 and model-v1.5, and of what verbs make
#: of them, such as g_02500000.folded; their content decides.
_BARE = re.compile(r"[^.]+(?:\.\d+)*(?:\.(?:folded|split|parametrize|legacy))*")
#: What makes a folder one checkpoint, beside weights that are called as the hub calls them.
_OF_FOLDERS = frozenset((METADATA, "model_index.json"))


_Entries: TypeAlias = list[tuple[str, PathKind | None]]
_Entry: TypeAlias = tuple[PurePath, PathKind | None]


@dataclass(frozen=True, slots=True)
class FleetSource:
    """A checkpoint, a file or a folder, and the folders between the common root of all sources and it."""

    path: PurePath
    place: tuple[str, ...] = ()
    is_folder: bool = False


def natural(text: str) -> tuple[tuple[int, str], ...]:
    """A key by which names are sorted as people count.

    >>> sorted(["step_10000.pt", "step_2000.pt"], key=natural)
    ['step_2000.pt', 'step_10000.pt']
    """
    parts = re.split(r"(\d+)", text)
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in parts)


def is_glob(name: Name) -> bool:
    """Whether a name is a pattern, and not that of a file which is there.

    >>> is_glob("runs/**/*.pt"), is_glob("fixtures/gan.pt")
    (True, False)
    """
    return _is_pattern(name, kind_of(located(name)))


def _is_pattern(name: Name, kind: PathKind | None) -> bool:
    """Whether a name is a pattern, given what is there under it."""
    return kind is None and _MAGIC.search(os.fspath(name)) is not None


def absolute(path: PurePath) -> PurePath:
    """A path that means the same from every folder, links not followed."""
    return path if isinstance(path, Address) else type(path)(os.path.abspath(path))  # noqa: PTH100


def sources_of(
    names: Iterable[Name], *, recursive: bool = False, out: PurePath | None = None
) -> tuple[FleetSource, ...]:
    """The sources that names mean, each once, in natural order; no checkpoint is opened.

    A name with wildcards is a pattern: ``**`` stands for folders at any depth. With ``recursive`` a folder
    means the checkpoints in it, at any depth; one that is a checkpoint itself (its weights are called as the
    hub calls them) is one source. Nothing below ``out`` is found so. Raises ``InputError`` where nothing is.

    >>> [source.path.name for source in sources_of(["fixtures/step_*.safetensors"])]
    ['step_1000.safetensors', 'step_2000.safetensors', 'step_3000.safetensors']
    """
    roots: list[PurePath] = []
    found: dict[PurePath, _Entry] = {}
    for name in names:
        root, entries = _found(name, recursive=recursive, out=None if out is None else absolute(out))
        roots.append(absolute(root))
        for entry in entries:
            found.setdefault(absolute(entry[0]), entry)
    common = _common([root.parts for root in roots])
    made = [
        FleetSource(path, whole.parent.parts[len(common) :], is_folder=kind is PathKind.FOLDER)
        for whole, (path, kind) in found.items()
    ]
    return tuple(sorted(made, key=lambda source: natural(str(source.path))))


def _found(name: Name, *, recursive: bool, out: PurePath | None) -> tuple[PurePath, list[_Entry]]:
    """The folder that a name begins in, and what it means there."""
    if name == STANDARD:
        raise ArgumentError("- is stdin, which is one file", fix="name files, or - alone")
    path = located(name)
    kind = _kind(path)
    if _is_pattern(name, kind):
        root, parts = _literal(path)
        entries = [*_matching(root, parts)]
        if not entries:
            raise InputError("no file has such a name", where=str(path), fix="check the pattern")
    elif recursive and kind is PathKind.FOLDER:
        root, entries = path, [(path, kind)]
    else:
        return path.parent, [(path, kind)]
    if recursive:
        entries = [below for each in entries for below in _checkpoints(*each)]
    entries = [each for each in entries if out is None or not absolute(each[0]).is_relative_to(out)]
    if not entries:
        raise InputError("no checkpoint in it", where=str(path), fix="check the name")
    return root, entries


def _kind(path: PurePath) -> PathKind | None:
    """What a name is; of one that its store refuses the verb says why."""
    try:
        return kind_of(path)
    except InputError:
        return None


def _literal(path: PurePath) -> tuple[PurePath, list[str]]:
    """The part of a pattern before its first wildcard, and the rest."""
    count = next(at for at, part in enumerate(path.parts) if _MAGIC.search(part))
    parts = list(path.parts[count:])
    return type(path)(*path.parts[:count]), [*parts, "*"] if parts[-1] == _ANY_DEPTH else parts


def _matching(folder: PurePath, parts: Sequence[str]) -> Iterator[_Entry]:
    """What matches a pattern below a folder; names that begin with a dot only where the pattern does."""
    head, *rest = parts
    if head == _ANY_DEPTH:
        entries = _entries(folder)
        yield from _matching(folder, rest)
        for below in _folders(folder, entries):
            yield from _matching(below, parts)
    elif not _MAGIC.search(head):
        path = folder / head
        if rest:
            yield from _matching(path, rest)
        elif (kind := kind_of(path)) is not None:
            yield path, kind
    else:
        for name, kind in _entries(folder):
            if fnmatchcase(name, head) and (head.startswith(".") or not name.startswith(".")):
                if rest and kind is PathKind.FOLDER:
                    yield from _matching(folder / name, rest)
                elif not rest and kind is not None:
                    yield folder / name, kind


def _checkpoints(path: PurePath, kind: PathKind | None) -> Iterator[_Entry]:
    """The checkpoints in a folder, at any depth; anything else is one by its name."""
    if kind is not PathKind.FOLDER:
        yield path, kind
        return
    entries = _entries(path)
    names = [name for name, _ in entries]
    if named_as_weights(names) or not _OF_FOLDERS.isdisjoint(names):
        yield path, kind
        return
    files = [path / name for name, kind in entries if kind is PathKind.FILE and not name.startswith(".")]
    yield from ((file, PathKind.FILE) for file in files if _is_checkpoint(file))
    for below in _folders(path, entries):
        yield from _checkpoints(below, PathKind.FOLDER)


def _is_checkpoint(path: PurePath) -> bool:
    """Whether a file is one by its name, or has none to tell by and the content of one."""
    if path.name.lower().endswith(_SUFFIXES):
        return True
    if not _BARE.fullmatch(path.name):
        return False
    try:
        with closing(open_file(path)) as file:
            return container_in(file.read(0, min(HEAD, file.size))) is not None
    except InputError:
        return False


def _folders(folder: PurePath, entries: _Entries) -> list[PurePath]:
    """The folders in one; not those that links lead to, which may lead round."""
    kinds = ((folder / name, kind) for name, kind in entries if not name.startswith("."))
    return [path for path, kind in kinds if kind is PathKind.FOLDER and not is_link(path)]


def _entries(folder: PurePath) -> _Entries:
    """What is in a folder; nothing where there is none."""
    try:
        return entries_of(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(
            f"it cannot be read ({error.strerror})", where=str(folder), fix="check your rights"
        ) from error


def _common(every: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The parts with which all begin."""
    first = min(every, default=())
    last = max(every, default=())
    same = 0
    while same < min(len(first), len(last)) and first[same] == last[same]:
        same += 1
    return first[:same]
