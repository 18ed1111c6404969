"""Data files of ONNX models that are replaced: deleted where they were ours and nobody needs them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from wnconvert.checkpoint import open_checkpoint
from wnconvert.errors import WnconvertError
from wnconvert.onnx_file import looks_like_onnx

__all__ = ["own_data_of", "remove_unused"]


def own_data_of(target: Path) -> tuple[Path, ...]:
    """The data files of the ONNX model at ``target`` that are called as wnconvert calls them.

    Nothing where there is no such model, or the target is a link.
    """
    if target.is_symlink():
        return ()
    name = re.compile(re.escape(target.name) + r"(?:\.\d+)?\.data")
    return tuple(
        path for path in _data_of(target) or () if path.parent == target.parent and name.fullmatch(path.name)
    )


def remove_unused(files: Iterable[Path], target: Path, needed: Iterable[Path]) -> Iterator[str]:
    """Delete data files that the model at ``target`` used before, unless another model needs them; notes.

    Others are the models of the same folder, whatever they are called, and ``needed``. Where one of them
    cannot be read, all stay.
    """
    old = tuple(files)
    if not old:
        return
    used = {path.resolve() for path in needed if path != target}
    for model in target.parent.iterdir():
        data = _data_of(model) if model not in old and _is_model(model) else ()
        if data is None:
            used |= {path.resolve() for path in old}
        else:
            used |= {path.resolve() for path in data}
    for path in old:
        if path.resolve() in used:
            continue
        try:
            path.unlink(missing_ok=True)
        except OSError:
            continue
        yield f"{path.name}, the data of the model that was replaced, is deleted"


def _is_model(path: Path) -> bool:
    if path.suffix == ".onnx":
        return True
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return looks_like_onnx(file, path.stat().st_size)
    except OSError:
        return False


def _data_of(model: Path) -> tuple[Path, ...] | None:
    """The data files of an ONNX model; None where it cannot be read."""
    if not model.is_file():
        return ()
    try:
        return open_checkpoint(model).shards[1:]
    except WnconvertError:
        return None
