"""Small projects as texts, taken to another form in memory."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from wnconvert.source.code import Code, code_of_file
from wnconvert.source.migration import Migrated, migrated
from wnconvert.source.names import CodeForm
from wnconvert.source.project import ModulePlace, Project
from wnconvert.source.scopes import parsed

__all__ = ["migrate_files", "migrate_text"]


def migrate_files(files: Mapping[str, str], form: CodeForm | None = None) -> dict[str, tuple[str, Migrated]]:
    """The files of a project, by their paths, after the rules, and what these found."""
    places = {_place(path): path for path in files}
    codes = {place: code_of_file(textwrap.dedent(files[path]).encode()) for place, path in places.items()}
    modules = {place: parsed(code) for place, code in codes.items()}
    packages = frozenset(place[:count] for place in places for count in range(len(place)))
    project = Project(packages, frozenset(places), modules.get)
    found = migrated(modules, project, form or CodeForm())
    return {path: (_text(codes[place], found[place]), found[place]) for place, path in places.items()}


def _place(path: str) -> ModulePlace:
    parts = tuple(path.removesuffix(".py").split("/"))
    return parts[:-1] if parts[-1] == "__init__" else parts


def _text(code: Code, found: Migrated) -> str:
    text = code.rewritten(found.edits).decode()
    parsed(code_of_file(text.encode()))  # it is still Python
    return text


def migrate_text(text: str, form: CodeForm | None = None) -> tuple[str, Migrated]:
    """One file after the rules, and what these found."""
    return migrate_files({"a.py": text}, form)["a.py"]
