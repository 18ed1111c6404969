"""What a folder may take the place of: nothing, or a folder that holds only what a conversion wrote."""

from __future__ import annotations

import os
from pathlib import Path

from wnconvert.errors import OutputError
from wnconvert.messages import counted, listed
from wnconvert.storage.checkpoint import Checkpoint
from wnconvert.storage.files import located, real_of
from wnconvert.storage.folder.beside import OtherFiles
from wnconvert.storage.folder.written import MANIFEST, foreign_in, paths_in
from wnconvert.verbs.conversion.targets import StrPath, check_apart

__all__ = ["check_in_place", "check_replaced", "what_goes"]


#: How many files a message lists.
_MOST = 10


def check_replaced(checkpoint: Checkpoint, output: Path, *, force: bool, like: StrPath | None) -> None:
    """Raise ``OutputError`` if the folder at ``output`` may not be replaced, or not without ``force``.

    ``like`` is a reference that was read too.
    """
    check_apart(checkpoint, output)
    _check_unused(output, like)
    if not output.is_dir() or not any(output.iterdir()):
        return
    if foreign := foreign_in(output):
        raise OutputError(
            f"it would be replaced whole, and it holds what no conversion wrote: {listed(foreign, _MOST)}",
            fix=f"choose another -o, such as {output / 'NAME'}; or move these away",
        )
    if not force:
        raise OutputError("it exists", fix=f"choose another -o; --force replaces it: {what_goes(output)}")


def check_in_place(output: Path, beside: OtherFiles, like: StrPath | None) -> None:
    """Raise ``OutputError`` if a folder that its own conversion replaces would lose more than weights."""
    _check_unused(output, like)
    if beside.left_out:
        raise OutputError(
            f"in place it would lose {listed(beside.left_out, _MOST)}", fix="choose an -o beside it"
        )


def what_goes(output: Path) -> str:
    """What is deleted where the folder at ``output`` is replaced, in words; empty where there is nothing."""
    paths = [path for path in paths_in(output) if path != MANIFEST] if output.is_dir() else []
    return f"{counted(len(paths), 'file')} will go, {listed(paths, _MOST)}" if paths else ""


def _check_unused(output: Path, like: StrPath | None) -> None:
    for what, path in (
        ("--like", like),
        ("the folder that you are in", os.curdir),
        ("your home", os.environ.get("HOME")),
    ):
        if path is not None and _lies_in(path, output):
            raise OutputError(f"{what} lies in it, and it would be replaced whole", fix="choose another -o")
    if (output / ".git").exists():
        raise OutputError("it is a git repository, and would be replaced whole", fix="choose another -o")


def _lies_in(path: StrPath, folder: Path) -> bool:
    try:
        return real_of(located(path)).is_relative_to(real_of(folder))
    except FileNotFoundError:  # the folder that one is in was deleted
        return False
