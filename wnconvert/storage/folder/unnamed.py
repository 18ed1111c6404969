"""Folders in which nothing is called as weights: the checkpoints in them, or what they are instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import PurePath

from wnconvert.errors import InputError
from wnconvert.messages import counted, listed
from wnconvert.storage.files import kind_of, listing_of, open_file
from wnconvert.storage.folder.links import ENTRY
from wnconvert.storage.recognition import HEAD, container_in
from wnconvert.storage.stores.store import PathKind
from wnconvert.tensors.containers import Container

__all__ = ["checkpoints_in", "no_weights"]


_SUFFIXES = {suffix for found in Container if found is not Container.ONNX for suffix in found.facts.suffixes}
#: Names of checkpoints; one without letters in its suffix (g_02500000, model-v1.5) may be one too.
_CHECKPOINT = re.compile(rf".*(?:{'|'.join(map(re.escape, _SUFFIXES))})|[^.]+(?:\.\d+)*", re.IGNORECASE)
_LOOKED_FOR = "model.safetensors, pytorch_model.bin, *.safetensors.index.json, *.bin.index.json"
#: What else is named where there is no checkpoint.
_LIKE_ONE = (*_SUFFIXES, ".onnx")


def checkpoints_in(root: PurePath, names: Iterable[str]) -> list[str]:
    """The files in a folder that are checkpoints by name and content; ONNX models do not count.

    Nor do arrays (.npz) beside another checkpoint: they are statistics or data of its model.
    """
    found = [name for name in names if _CHECKPOINT.fullmatch(name) and _holds_tensors(root / name)]
    others = [name for name in found if not name.lower().endswith(Container.NPZ.facts.suffixes)]
    return others or found


def _holds_tensors(path: PurePath) -> bool:
    try:
        with closing(open_file(path)) as file:
            return container_in(file.read(0, min(HEAD, file.size))) is not None
    except (OSError, InputError):  # a pipe, a link to nothing
        return False


def no_weights(
    root: PurePath, names: Iterable[str], there: Sequence[str], has_weights: Callable[[PurePath], bool]
) -> InputError:
    """The error for a folder without weights, or with several checkpoints ``there``: what it is, in words."""
    if there:
        return InputError(
            f"a folder of {len(there)} checkpoints ({listed(there, 3)}), which are not converted all at once",
            fix=f"name one of them: {root / there[0]}",
        )
    below = [root / name for name in listing_of(root) if kind_of(root / name) is PathKind.FOLDER]
    for noun, found in (
        ("model", [path for path in below if path.name.startswith(ENTRY)]),
        ("folder", [path for path in below if has_weights(path)]),
    ):
        if found:
            what = "the cache of the hub" if noun == "model" else "a folder without weights of its own"
            return InputError(
                f"{what}, with {counted(len(found), noun)} in it: {listed((path.name for path in found), 3)}",
                fix=f"name one of them: {found[0]}",
            )
    like = [name for name in names if name.endswith(_LIKE_ONE)]
    beside = f", but {listed(like, 3)}" if like else ""
    return InputError(f"a folder with none of {_LOOKED_FOR} in it{beside}", fix="name the file in it")
