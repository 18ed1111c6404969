"""The class that a folder's ``config.json`` names: of transformers (``architectures``) or of diffusers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path, PurePath
from typing import Any

from wnconvert.errors import InputError
from wnconvert.frozen import dataclass
from wnconvert.messages import listed, printable
from wnconvert.storage.files import kind_of, open_file
from wnconvert.storage.folder.components import find_components
from wnconvert.storage.stores.store import PathKind

__all__ = ["CONFIG", "NamedClass", "class_of_folder", "named_class"]


CONFIG = "config.json"
_LARGEST = 8 << 20


@dataclass(frozen=True, slots=True)
class NamedClass:
    """A class by its name, the library that has it, and the config."""

    library: str
    name: str
    config: Mapping[str, Any]


def named_class(folder: PurePath) -> NamedClass | None:
    """The class that the config of a folder names; None where there is no config, or none is named.

    Raises ``InputError`` for a config that is not a JSON object.
    """
    path = folder / CONFIG
    if kind_of(path) is not PathKind.FILE:
        return None
    fix = "download it again"
    with closing(open_file(path)) as file:
        if file.size > _LARGEST:
            raise InputError(f"longer than {_LARGEST >> 20} MiB", where=str(path), fix=fix)
        text = file.read(0, file.size)
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError("not JSON", where=str(path), fix=fix) from error
    if not isinstance(config, dict):
        raise InputError(f"a JSON {type(config).__name__}, not an object", where=str(path), fix=fix)
    if isinstance(name := config.get("_class_name"), str):
        return NamedClass("diffusers", name, config)
    match config.get("architectures"):
        case [str(name), *_]:
            return NamedClass("transformers", name, config)
    return None


def class_of_folder(root: Path) -> NamedClass:
    """The class that the config of a folder on this disk names.

    Raises ``InputError`` for what is no folder or no checkpoint of one model, and where no class is named.
    """
    where = printable(str(root))
    if root.is_file():
        raise InputError("a file, which does not say what class loads it", where=where, fix="give its folder")
    if not root.is_dir():
        raise InputError("no such folder", where=where, fix="check the path")
    named = named_class(root)
    if named is None:
        if components := find_components(root):
            names = listed((printable(str(root / name)) for name in components), 8)
            raise InputError("a pipeline of several models", where=where, fix=f"name one of them: {names}")
        there = (root / CONFIG).exists()
        said = f"its {CONFIG} names no class" if there else f"there is no {CONFIG} that names a class"
        raise InputError(
            said,
            where=where,
            fix="give a folder as save_pretrained writes it: architectures or _class_name name the class",
        )
    return named
