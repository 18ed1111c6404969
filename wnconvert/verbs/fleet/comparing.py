"""Two folders of checkpoints compared file by file."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

from wnconvert.errors import InputError, WnconvertError
from wnconvert.frozen import dataclass
from wnconvert.messages import counted, printable, short_repr
from wnconvert.shown import Paged
from wnconvert.storage.files import Name, kind_of, located
from wnconvert.storage.stores.store import PathKind
from wnconvert.tensors.containers import Container
from wnconvert.verbs.comparison.compare import compare_files
from wnconvert.verbs.comparison.result import Comparison
from wnconvert.verbs.fleet.sources import absolute, sources_of

__all__ = ["FileComparison", "FolderComparison", "compare_folders", "holds_several"]


_SUFFIXES = sorted({suffix for kind in Container for suffix in kind.facts.suffixes}, key=len, reverse=True)
#: What verbs put into the names of their outputs.
_OF_OUTPUTS = re.compile(r"(?:\.(?:folded|split|parametrize|legacy))+$")


@dataclass(frozen=True, slots=True)
class FileComparison:
    """Two files, by their places below the two folders, and what came of comparing them, or the error."""

    a: str
    b: str
    found: Comparison | None = None
    error: WnconvertError | None = None

    def __bool__(self) -> bool:
        return bool(self.found)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON-able data; docs/json.md documents it."""
        error = self.error
        return {
            "a": self.a,
            "b": self.b,
            "equal": bool(self),
            "comparison": self.found.to_dict() if self.found is not None else None,
            "error": None if error is None else {"what": error.what, "where": error.where, "fix": error.fix},
        }


@dataclass(frozen=True, slots=True, repr=False)
class FolderComparison(Paged):
    """Two folders compared; true if every file has its equal in the other. Places are below the folders."""

    a: str
    b: str
    files: tuple[FileComparison, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]

    def __bool__(self) -> bool:
        return all(self.files) and not (self.only_in_a or self.only_in_b)

    def __repr__(self) -> str:
        return short_repr(
            f"FolderComparison: {self.a} and {self.b} {'are equal' if self else 'differ'}",
            [*(item.a for item in self.files if not item), *self.only_in_a, *self.only_in_b],
            f"{counted(len(self.files), 'file')} compared, {sum(map(bool, self.files))} equal",
        )

    @property
    def exit_code(self) -> int:
        """The exit code: 2 where a file could not be compared, else 1 where one differs, else 0."""
        return 2 if any(item.error for item in self.files) else 0 if self else 1

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON-able data; docs/json.md documents it."""
        return {
            "schema": 1,
            "a": self.a,
            "b": self.b,
            "equal": bool(self),
            "files": [item.to_dict() for item in self.files],
            "only_in_a": list(self.only_in_a),
            "only_in_b": list(self.only_in_b),
        }


def compare_folders(a: Name, b: Name, **options: Any) -> FolderComparison:
    """Compare the checkpoints in two folders, at any depth, file by file: those of equal places and names.

    ``.folded``, ``.split`` and the forms in names of outputs, and suffixes, may differ, where one file of
    each folder is meant. Options as for ``compare_files``; what it raises on two files is the error of these.

    Raises ``InputError`` for a folder that cannot be read, or has no checkpoint.

    >>> compare_folders("fixtures/sharded", "fixtures/sharded")
    FolderComparison: fixtures/sharded and fixtures/sharded are equal
      1 file compared, 1 equal
    """
    left, right = _places(a), _places(b)
    pairs = _paired(left, right)
    found = tuple(_compared(*pair, left, right, options) for pair in pairs)
    taken = {place for pair in pairs for place in (("a", pair[0]), ("b", pair[1]))}
    return FolderComparison(
        os.fspath(a),
        os.fspath(b),
        found,
        tuple(place for place in left if ("a", place) not in taken),
        tuple(place for place in right if ("b", place) not in taken),
    )


def holds_several(*names: Name) -> bool:
    """Whether all of these are folders, and one of them holds more than one checkpoint.

    >>> holds_several("fixtures", "fixtures"), holds_several("fixtures/sharded", "fixtures/sharded")
    (True, False)
    """
    paths = [located(name) for name in names]
    if any(kind_of(path) is not PathKind.FOLDER for path in paths):
        return False
    return any(len(_sources(path)) > 1 for path in paths)


def _places(folder: Name) -> dict[str, PurePath]:
    """The checkpoints in a folder, by their places in it, in natural order."""
    root = absolute(located(folder))
    return {absolute(path).relative_to(root).as_posix(): path for path in _sources(located(folder))}


def _sources(folder: PurePath) -> list[PurePath]:
    return [source.path for source in sources_of([folder], recursive=True)]


def _paired(a: Iterable[str], b: Iterable[str]) -> list[tuple[str, str]]:
    """The places that belong together: those that are the same, then those that are but for their endings.

    >>> _paired(["x/g.pt", "d.pt", "e.pt"], ["d.pt", "e.folded.pt", "e.folded.safetensors", "x/g.folded.npz"])
    [('x/g.pt', 'x/g.folded.npz'), ('d.pt', 'd.pt')]
    """
    left, right = list(a), list(b)
    same = {*left} & {*right}
    rest = [[place for place in places if place not in same] for places in (left, right)]
    counts = [Counter(map(_core, places)) for places in rest]
    other = {_core(place): place for place in rest[1]}

    def partners() -> Iterator[tuple[str, str]]:
        for place in left:
            core = _core(place)
            if place in same:
                yield place, place
            elif counts[0][core] == counts[1][core] == 1:
                yield place, other[core]

    return list(partners())


def _core(place: str) -> str:
    """A place without what verbs put into its name, and without its suffix."""
    suffix = next((suffix for suffix in _SUFFIXES if place.endswith(suffix)), "")
    return _OF_OUTPUTS.sub("", place.removesuffix(suffix))


def _compared(
    a: str,
    b: str,
    left: Mapping[str, PurePath],
    right: Mapping[str, PurePath],
    options: Mapping[str, Any],
) -> FileComparison:
    if all(place.endswith(Container.ONNX.facts.suffixes) for place in (a, b)):
        words = " ".join(shlex.quote(printable(os.fspath(path))) for path in (left[a], right[b]))
        fix = f"wnconvert compare {words}"
        return FileComparison(a, b, error=InputError("two ONNX models are compared by themselves", fix=fix))
    try:
        return FileComparison(a, b, compare_files(left[a], right[b], **options))
    except WnconvertError as error:
        return FileComparison(a, b, error=error)
