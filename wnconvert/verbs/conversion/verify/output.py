"""Every tensor of an output, read back with a reader that is not ours and held against the source."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path, PurePath

from wnconvert.errors import VerifyError
from wnconvert.messages import REPORT_BUG
from wnconvert.plan.plan import Plan, PlannedStateDict
from wnconvert.plan.steps import Step
from wnconvert.storage.checkpoint import Checkpoint, open_checkpoint
from wnconvert.storage.files import open_file
from wnconvert.storage.sources import Source
from wnconvert.storage.workers import Workers
from wnconvert.subnormals import subnormals
from wnconvert.tensors.blocks import BLOCK_BYTES
from wnconvert.tensors.containers import Container
from wnconvert.tensors.tree import StoredTensor, TensorInfo
from wnconvert.verbs.conversion.verify.readers import (
    OTHER_READERS,
    is_read_uncached,
    own_reader,
    reading_ahead,
)
from wnconvert.verbs.conversion.verify.steps import Both, check_step

__all__ = ["bytes_to_verify", "verify_copies", "verify_output"]


#: Threads beside those that compute, so that the disk is not waited for by all of them.
_BESIDE = 2


def verify_copies(before: PurePath, after: PurePath, sizes: Mapping[str, int], workers: Workers) -> None:
    """Compare files that were copied from one folder to another with their sources, given their sizes.

    Raises ``VerifyError``, and ``InputError`` for one that is gone.
    """
    names = list(sizes)
    workers.each(
        lambda at: _check_copy(names[at], before / names[at], after / names[at], workers),
        dict(enumerate(sizes.values())),
    )


def _check_copy(name: str, before: PurePath, after: PurePath, workers: Workers) -> None:
    with closing(open_file(before)) as old, closing(open_file(after)) as new:
        size = old.size
        same = new.size == size
        for at in range(0, size if same else 0, BLOCK_BYTES):
            count = min(BLOCK_BYTES, size - at)
            same = same and new.read(at, count) == old.read(at, count)
            workers.advance(count)
    if not same:
        raise VerifyError(
            f"the copy of {name} differs from it; nothing is kept",
            fix=f"if nobody changed it meanwhile, {REPORT_BUG}",
        )


def bytes_to_verify(checkpoint: Checkpoint, plan: Plan) -> int:
    """The bytes of the output that ``verify_output`` compares with the source."""
    before = checkpoint.tree.tensors
    return sum(
        step.made_of(before[planned.path]).info.nbytes
        for planned in plan.state_dicts
        for step in planned.tensors
    )


def verify_output(
    checkpoint: Checkpoint, plan: Plan, source: Source, path: PurePath, workers: Workers
) -> tuple[str, tuple[str, ...]]:
    """Read the output, a file or folder, back and compute every layer again; the reader's name, and notes.

    In a store it is read by our own reader: those of others open files of this machine.

    Without torch, or where the pickle names classes of others, a torch file is read by ``zipfile``'s test
    of every checksum and by our own reader. Raises ``VerifyError`` for a tensor that is wrong.
    """
    opened = open_checkpoint(path)
    order = [name for shard in plan.shards for name in shard.tensors]
    jobs: list[tuple[int, Callable[[], None]]] = []
    with Source(opened.sources) as written, contextlib.ExitStack() as stack:
        found = opened.tree.tensors
        own = own_reader(found, written)
        readers = OTHER_READERS[plan.container]
        if isinstance(path, Path):
            reader, by, notes = stack.enter_context(readers.open(checkpoint, opened.shards, own))
        else:
            reader, by, notes = own, "wnconvert's own reader", ()
        for planned in plan.state_dicts:
            before = checkpoint.tree.tensors[planned.path]
            after = found[planned.path if plan.container.facts.holds_trees else ""]
            _check_names(before, planned, list(after), order)
            ahead = partial(_ahead, opened, after, plan.container)
            both = Both(before, source, partial(reader, planned.path), ahead, workers.advance)
            for step in planned.tensors:
                made = step.made_of(before).info
                _check_info(made, after[step.name].info)
                jobs.append((made.nbytes, partial(_check_step, step, both)))
        sizes = {job: size for job, (size, _) in enumerate(jobs)}
        workers.each(lambda job: jobs[job][1](), sizes, beside=_BESIDE)
    return by, notes


def _check_step(step: Step, both: Both) -> None:
    with subnormals():
        check_step(step, both)


def _ahead(
    opened: Checkpoint, tensors: Mapping[str, StoredTensor], container: Container, name: str
) -> Callable[[int], None]:
    """``reading_ahead`` of a tensor of the output."""
    data = tensors[name].data
    is_cached = not is_read_uncached(container, data.size)
    if is_cached and data.shard < len(opened.shards) and isinstance(path := opened.shards[data.shard], Path):
        return reading_ahead(path, data)
    return lambda at: None  # a view of several, or of a store, which fetches ahead by itself


def _check_names(
    before: Mapping[str, StoredTensor], planned: PlannedStateDict, names: list[str], order: list[str]
) -> None:
    """Every tensor of the source went somewhere, every layer is whole, and all names are as planned.

    ``order`` is that of the names in several files.
    """
    used = {source for step in planned.tensors for source in step.sources}
    used |= {part.name for change in planned.changes if change.before for part in change.before.unread}
    halves = {half.name for change in planned.changes if change.after for half in change.after.tensors}
    steps = [step.name for step in planned.tensors]
    if (
        names != (order or steps)
        or sorted(names) != sorted(steps)
        or not halves <= set(names)
        or set(before) - used
    ):
        raise VerifyError("the output has other names than planned; nothing is kept", fix=REPORT_BUG)


def _check_info(made: TensorInfo, found: TensorInfo) -> None:
    if (made.dtype, made.shape) != (found.dtype, found.shape):
        raise VerifyError(
            f"{made.name} was read back with another dtype or shape; nothing is kept", fix=REPORT_BUG
        )
