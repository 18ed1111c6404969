"""Names of files, globs and folders become sources, each with its place below their common root."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePath

from wnconvert.errors import ArgumentError, InputError
from wnconvert.storage.files import Name, kind_of, listing_of, located, open_file
from wnconvert.storage.folder.links import is_link
from wnconvert.storage.folder.weights import has_weights
from wnconvert.storage.recognition import HEAD, METADATA, container_in
from wnconvert.storage.stores.standard import STANDARD
from wnconvert.storage.stores.store import Address, PathKind
from wnconvert.tensors.containers import Container

__all__ = ["FleetSource", "absolute", "is_glob", "natural", "sources_of"]


_MAGIC = re.compile(r"[*?\[]")
_ANY_DEPTH = "**"
_SUFFIXES = (".pt2", *{suffix for container in Container for suffix in container.facts.suffixes})
#: Names of checkpoints without a suffix of letters, such as g_02500000 and model-v1.5; their content decides.
_BARE = re.compile(r"[^.]+(?:\.\d+)*")
#: What makes a folder one checkpoint, beside weights that are called as the hub calls them.
_OF_FOLDERS = frozenset((METADATA, "model_index.json"))


@dataclass(frozen=True, slots=True)
class FleetSource:
    """A checkpoint, and the folders between the common root of all sources and it."""

    path: PurePath
    place: tuple[str, ...] = ()


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
    text = os.fspath(name)
    return _MAGIC.search(text) is not None and kind_of(located(name)) is None


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
    found: dict[PurePath, PurePath] = {}
    for name in names:
        root, paths = _found(name, recursive=recursive, out=None if out is None else absolute(out))
        roots.append(absolute(root))
        for path in paths:
            found.setdefault(absolute(path), path)
    common = _common([root.parts for root in roots])
    made = [FleetSource(path, whole.parent.parts[len(common) :]) for whole, path in found.items()]
    return tuple(sorted(made, key=lambda source: natural(str(source.path))))


def _found(name: Name, *, recursive: bool, out: PurePath | None) -> tuple[PurePath, list[PurePath]]:
    """The folder that a name begins in, and what it means there."""
    if name == STANDARD:
        raise ArgumentError("- is stdin, which is one file", fix="name files, or - alone")
    path = located(name)
    if is_glob(name):
        root, parts = _literal(path)
        paths = [*_matching(root, parts)]
        if not paths:
            raise InputError("no file has such a name", where=str(path), fix="check the pattern")
    elif recursive and kind_of(path) is PathKind.FOLDER:
        root, paths = path, [path]
    else:
        return path.parent, [path]
    if recursive:
        paths = [below for each in paths for below in _checkpoints(each)]
    paths = [each for each in paths if out is None or not absolute(each).is_relative_to(out)]
    if not paths:
        raise InputError("no checkpoint in it", where=str(path), fix="check the name")
    return root, paths


def _literal(path: PurePath) -> tuple[PurePath, list[str]]:
    """The part of a pattern before its first wildcard, and the rest."""
    count = next(at for at, part in enumerate(path.parts) if _MAGIC.search(part))
    parts = list(path.parts[count:])
    return type(path)(*path.parts[:count]), [*parts, "*"] if parts[-1] == _ANY_DEPTH else parts


def _matching(folder: PurePath, parts: Sequence[str]) -> Iterator[PurePath]:
    """What matches a pattern below a folder; names that begin with a dot only where the pattern does."""
    head, *rest = parts
    if head == _ANY_DEPTH:
        yield from _matching(folder, rest)
        for below in _folders(folder):
            yield from _matching(below, parts)
    elif not _MAGIC.search(head):
        yield from _further(folder / head, rest)
    else:
        for name in _names(folder):
            if fnmatchcase(name, head) and (head.startswith(".") or not name.startswith(".")):
                yield from _further(folder / name, rest)


def _further(path: PurePath, rest: Sequence[str]) -> Iterator[PurePath]:
    if rest:
        yield from _matching(path, rest)
    elif kind_of(path) is not None:
        yield path


def _checkpoints(path: PurePath) -> Iterator[PurePath]:
    """The checkpoints in a folder, at any depth; anything else is one by its name."""
    if kind_of(path) is not PathKind.FOLDER:
        yield path
        return
    names = _names(path)
    if has_weights(path) or not _OF_FOLDERS.isdisjoint(names):
        yield path
        return
    yield from (path / name for name in names if not name.startswith(".") and _is_checkpoint(path / name))
    for below in _folders(path):
        yield from _checkpoints(below)


def _is_checkpoint(path: PurePath) -> bool:
    """Whether a file is one by its name, or has none to tell by and the content of one."""
    if kind_of(path) is not PathKind.FILE:
        return False
    if path.name.lower().endswith(_SUFFIXES):
        return True
    if not _BARE.fullmatch(path.name):
        return False
    try:
        with closing(open_file(path)) as file:
            return container_in(file.read(0, min(HEAD, file.size))) is not None
    except InputError:
        return False


def _folders(folder: PurePath) -> list[PurePath]:
    """The folders in one; not those that links lead to, which may lead round."""
    paths = [folder / name for name in _names(folder) if not name.startswith(".")]
    return [path for path in paths if kind_of(path) is PathKind.FOLDER and not is_link(path)]


def _names(folder: PurePath) -> list[str]:
    if kind_of(folder) is not PathKind.FOLDER:
        return []
    try:
        return listing_of(folder)
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
