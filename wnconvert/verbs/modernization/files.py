"""The Python files and notebooks of a project: found by their suffixes, read only if they hold certain words.

Links are not followed, and neither are folders that tools made or that hold other people's code, unless they
are included or named.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wnconvert.errors import ArgumentError, InputError
from wnconvert.source.code import Code, code_of_file, code_of_notebook
from wnconvert.source.project import ModulePlace
from wnconvert.source.scopes import Parsed, parsed

__all__ = ["CodeFiles", "files_of"]


#: Folders that are passed over: those of tools, and those of installed or vendored code.
_SKIPPED = (
    *("build", "dist", "site-packages", "node_modules", "__pycache__", "venv", "env", "*.egg-info"),
    *("third_party", "thirdparty", "vendor", "_vendor"),
)
_SUFFIXES = (".py", ".pyi", ".ipynb")


@dataclass(eq=False)
class CodeFiles:
    """The files of a project by their places; each is read and parsed once, when it is asked for."""

    paths: dict[ModulePlace, Path]
    codes: dict[ModulePlace, Code] = field(default_factory=dict)
    faults: dict[ModulePlace, SyntaxError] = field(default_factory=dict)
    _parsed: dict[ModulePlace, Parsed | None] = field(default_factory=dict)
    _raw: dict[ModulePlace, bytes] = field(default_factory=dict)

    @property
    def packages(self) -> frozenset[ModulePlace]:
        """The folders that are packages, and all folders between: a package may lack its ``__init__.py``."""
        folders = {place[:count] for place in self.paths for count in range(len(place))}
        return frozenset(folders)

    @property
    def held(self) -> frozenset[ModulePlace]:
        """The files that were found to hold the words."""
        return frozenset(self._raw)

    def holding(self, words: re.Pattern[bytes]) -> list[ModulePlace]:
        """The files that hold some words: found by their bytes, before any is parsed."""
        found = []
        for place, path in self.paths.items():
            raw = _read(path)
            if words.search(raw):
                self._raw[place] = raw
                found.append(place)
        return found

    def parsed(self, place: ModulePlace) -> Parsed | None:
        """A module; None if there is no such file, or it does not parse."""
        if place not in self._parsed:
            self._parsed[place] = self._parse(place)
        return self._parsed[place]

    def _parse(self, place: ModulePlace) -> Parsed | None:
        path = self.paths.get(place)
        if path is None:
            return None
        raw = self._raw[place] if place in self._raw else _read(path)
        try:
            code = code_of_notebook(raw) if path.suffix == ".ipynb" else code_of_file(raw)
            found = parsed(code)
        except (SyntaxError, RecursionError, ValueError) as error:  # ValueError: a null byte
            self.faults[place] = error if isinstance(error, SyntaxError) else SyntaxError(str(error))
            return None
        self.codes[place] = code
        return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"it cannot be read ({error.strerror})", where=str(path), fix="look at your rights"
        ) from error


def files_of(sources: Sequence[Path], include: Sequence[str] = ()) -> CodeFiles:
    """The files of some folders and files; ``include`` are globs of folders that are not passed over.

    Raises ``InputError`` for a source that is not there, or is no Python file, notebook or folder.
    """
    if not sources:
        raise ArgumentError("no files to look at", fix="name a file or folder")
    found: dict[Path, None] = {}
    for source in sources:
        if source.is_dir():
            found |= dict.fromkeys(_below(source, include))
        elif not source.exists():
            raise InputError("no such file or folder", where=str(source), fix="check the path")
        elif source.suffix not in _SUFFIXES:
            fix = "name a .py file, a notebook or a folder"
            raise InputError("neither Python code nor a notebook", where=str(source), fix=fix)
        else:
            found[source] = None
    root = Path(os.path.commonpath([_whole(path.parent) for path in found] or ["."]))
    return CodeFiles({_place(path, root): path for path in found})


def _place(path: Path, root: Path) -> ModulePlace:
    """The place of a module; a notebook's has its suffix, since nobody imports it."""
    parts = Path(_whole(path)).relative_to(root).parts
    if path.suffix != ".py":
        return parts
    return parts[:-1] if path.name == "__init__.py" else (*parts[:-1], path.stem)


def _whole(path: Path) -> str:
    """A path from the root on; links in it stay."""
    return os.path.normpath(path.absolute())


def _below(folder: Path, include: Sequence[str]) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if _is_taken(name, Path(where), include))
        for name in sorted(names):
            path = Path(where) / name
            if path.suffix in _SUFFIXES and path.is_file() and not path.is_symlink():
                yield path


def _is_taken(name: str, where: Path, include: Sequence[str]) -> bool:
    if (where / name).is_symlink():
        return False
    skipped = name.startswith(".") or any(fnmatch.fnmatch(name, glob) for glob in _SKIPPED)
    return not skipped or any(fnmatch.fnmatch(name, glob) for glob in include)
