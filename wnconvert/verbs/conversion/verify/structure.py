"""The structure of an output, read by another library and by our own readers before every rename."""

from __future__ import annotations

from pathlib import Path

from wnconvert.errors import VerifyError, WnconvertError
from wnconvert.messages import REPORT_BUG
from wnconvert.plan.plan import Plan
from wnconvert.storage.checkpoint import Checkpoint, open_checkpoint
from wnconvert.tensors.containers import Container
from wnconvert.verbs.conversion.verify.readers import OTHER_READERS

__all__ = ["check_folder_structure", "check_structure"]


def check_structure(path: Path, container: Container) -> Checkpoint:
    """Have another library read the structure of a new file, and our reader its tree.

    Returns the file as our reader opened it. Raises ``VerifyError`` where either refuses it.
    """
    try:
        other = OTHER_READERS.get(container)
        if other is not None and other.check is not None:
            other.check(path)
        return open_checkpoint(path)
    except WnconvertError as error:
        raise VerifyError(
            f"the output cannot be read back ({error.what}); nothing is kept", fix=REPORT_BUG
        ) from error


def check_folder_structure(folder: Path, plan: Plan) -> None:
    """``check_structure`` for every file of weights of a new folder, and a check of its index."""
    for shard in plan.shards:
        check_structure(folder / shard.name, plan.container)
    try:
        if plan.index:
            open_checkpoint(folder / plan.index)
    except WnconvertError as error:
        raise VerifyError(
            f"the output cannot be read back ({error.what}); nothing is kept", fix=REPORT_BUG
        ) from error
