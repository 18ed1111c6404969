"""The files of a folder that a conversion wrote: a list in it, so that nobody else's file is ever replaced.

The list is ``.wnconvert.json``, written last: ``{"schema": 1, "files": {path: size, …}}``, and of a link its
text in place of the size. What it does not name, what has another size, and what was changed after it was
written is not ours.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from wnconvert.errors import InputError
from wnconvert.storage.files import open_file

__all__ = ["MANIFEST", "foreign_in", "manifest", "paths_in"]


MANIFEST = ".wnconvert.json"

#: A list of 100,000 files takes a few MB.
_MOST = 32 << 20


def manifest(files: Mapping[str, int | str]) -> bytes:
    """The list of the files of a folder with their sizes, and of its links with their texts.

    >>> manifest({"model.safetensors": 1024, "again": "voices"})
    b'{"schema": 1, "files": {"again": "voices", "model.safetensors": 1024}}'
    """
    return json.dumps({"schema": 1, "files": dict(sorted(files.items()))}).encode()


def paths_in(root: Path) -> list[str]:
    """The paths of all files and links in a folder, at any depth, in order."""
    return sorted(str(path.relative_to(root)) for path in _files(root))


def foreign_in(root: Path) -> list[str]:
    """The paths in a folder that no conversion wrote, or that were changed since, in order."""
    listing = root / MANIFEST
    listed = _read(listing)
    written = listing.stat().st_mtime_ns if listed else 0
    return sorted(
        str(path.relative_to(root))
        for path in _files(root)
        if path != listing and not _is_as_written(path, listed.get(str(path.relative_to(root))), written)
    )


def _files(root: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(root):
        yield from (Path(folder, name) for name in names)
        yield from (path for name in below if (path := Path(folder, name)).is_symlink())


def _read(path: Path) -> Mapping[str, Any]:
    """The files that a list names; nothing where there is no list, or none that makes sense."""
    try:
        if path.is_symlink() or not path.is_file():
            return {}
        with closing(open_file(path)) as file:
            data = json.loads(file.read(0, min(file.size, _MOST)))
    except (OSError, InputError, ValueError, RecursionError):
        return {}
    files = data.get("files") if isinstance(data, dict) else None
    return files if isinstance(files, dict) else {}


def _is_as_written(path: Path, listed: object, written: int) -> bool:
    """Whether a file is still what was listed; later than ``written``, in nanoseconds, it was changed."""
    if path.is_symlink():
        return listed == os.fspath(path.readlink())
    status = path.stat()
    return listed == status.st_size and status.st_mtime_ns <= written
