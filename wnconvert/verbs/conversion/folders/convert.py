"""A planned folder written: weights, other files, and the list of them, whole or not at all."""

from __future__ import annotations

import contextlib
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath

from wnconvert.numerics.rows import RowPolicy
from wnconvert.plan.layout import Blob, CopyBytes, Layout
from wnconvert.storage.checkpoint import Checkpoint
from wnconvert.storage.files import (
    check_as_seen,
    common_mode,
    reopened,
    seen_in,
    status_of,
)
from wnconvert.storage.folder.beside import OtherFiles
from wnconvert.storage.sources import Source
from wnconvert.storage.staged_folder import replaced_folder, sync_all
from wnconvert.storage.staging import Staged, file_in, translated
from wnconvert.storage.workers import Workers
from wnconvert.tensors.tree import ByteRange
from wnconvert.verbs.conversion.convert import Result, conversion_result
from wnconvert.verbs.conversion.executor import Outcome, execute, notes_of, outcomes
from wnconvert.verbs.conversion.folders.parts import FolderPart, FolderPlan
from wnconvert.verbs.conversion.folders.shards import ShardJob, hand_out
from wnconvert.verbs.conversion.verify.output import bytes_to_verify, verify_copies, verify_output
from wnconvert.verbs.conversion.verify.structure import check_folder_structure
from wnconvert.verbs.shared.options import RunOptions

__all__ = ["convert_folder"]


def convert_folder(
    checkpoint: Checkpoint,
    planned: FolderPlan,
    output: Path,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
) -> Result:
    """Write the folder that is ``planned`` at ``output``, with all that lies beside its weights.

    The old folder is replaced whole. Options and errors as for ``convert``.
    """
    began = time.perf_counter()
    parts, beside = planned.parts, planned.beside
    layouts = planned.layouts()
    weights = {path: layout for _, of_part in layouts for path, layout in of_part.items()}
    listing = planned.manifest_of(weights)
    root = checkpoint.root or output
    copied = sum(file.size for file in beside.files)
    size = copied + sum(layout.size for layout in (*weights.values(), *listing.values()))
    workers = Workers(options.threads, options.progress)
    workers.expect(copied + sum(blob.effort for layout in weights.values() for blob in layout.blobs))
    if options.verify:
        workers.expect(copied + sum(bytes_to_verify(part.checkpoint, part.plan) for part in parts))
    made: list[Outcome] = []
    readers: dict[str, None] = {}
    more: tuple[str, ...] = ()
    file_mode = common_mode(checkpoint.shards)
    folder_mode = status_of(root).mode if checkpoint.root else _as_of_folder(file_mode)
    check = partial(check_as_seen, seen_in((beside.seen(root), checkpoint.seen)))
    with replaced_folder(output, force=options.force, size=size, mode=folder_mode, check=check) as folder:
        with _errors_of(output):
            _make_folders(folder, beside)
        new_file = partial(file_in, folder, target=output, mode=file_mode)
        handed: Mapping[str, Sequence[Outcome]] = {}
        if options.executor is not None:
            jobs = _shard_jobs(layouts, output, file_mode, options)
            handed = hand_out(jobs, folder, options.executor, lambda job: workers.advance(job.effort))
        for part, of_part in layouts:
            made += _written(part, of_part, handed, new_file, numbers=options.numbers, workers=workers)
        notes = notes_of(made)
        with _errors_of(output):
            _copy(root, beside, folder, output, workers)
        for part in parts:
            check_folder_structure(folder / part.below, part.plan)
        if options.verify:
            for part in parts:
                reader, on_part = _verified(part, folder, workers)
                readers[reader] = None
                more += on_part
            verify_copies(root, folder, {file.path: file.size for file in beside.files}, workers)
        with _errors_of(output):
            sync_all(folder)  # over a network the time of a change is when it arrives
        proof = options.prove(folder, planned.plan) if options.prove else None
        _write_texts(listing, new_file)  # last: what is changed after it is not ours
    return conversion_result(
        checkpoint,
        planned.plan,
        output,
        began,
        bytes_in=sum(part.checkpoint.size for part in parts) + copied,
        bytes_out=size,
        notes=(*notes, *more),
        verified=" and ".join(readers),
        proof=proof,
    )


def _shard_jobs(
    layouts: Iterable[tuple[FolderPart, Mapping[str, Layout]]],
    output: Path,
    mode: int | None,
    options: RunOptions,
) -> list[ShardJob]:
    """The files with tensors, each as a job of its own."""
    return [
        ShardJob(
            path,
            layout,
            part.checkpoint.sources,
            part.checkpoint.seen,
            output,
            mode,
            options.numbers,
            options.threads,
        )
        for part, of_part in layouts
        for path, layout in of_part.items()
        if layout.blobs
    ]


def _written(
    part: FolderPart,
    layouts: Mapping[str, Layout],
    handed: Mapping[str, Sequence[Outcome]],
    open_in: Callable[[str], contextlib.AbstractContextManager[Staged]],
    *,
    numbers: RowPolicy,
    workers: Workers,
) -> Iterator[Outcome]:
    """Write the files of a part but for those ``handed`` out; yields what came of the tensors of all."""
    with Source(part.checkpoint.sources, opener=part.checkpoint.reopen) as source:
        for name, layout in layouts.items():
            if name in handed:
                made = handed[name]
            else:
                with open_in(name) as target:
                    made = outcomes(source, target, layout, numbers, workers)
            for outcome in made:
                where = f"{part.below}: {outcome.where}" if part.below else outcome.where
                yield replace(outcome, where=where)


def _write_texts(
    layouts: Mapping[str, Layout], open_in: Callable[[str], contextlib.AbstractContextManager[Staged]]
) -> None:
    """Write files without tensors."""
    for name, layout in layouts.items():
        with open_in(name) as target:
            for at, piece in layout.pieces:
                target.write(piece, at)


def _as_of_folder(mode: int | None) -> int | None:
    """The mode of a folder for those who may read a file: they may enter it."""
    return None if mode is None else mode | (mode & 0o444) >> 2


@contextlib.contextmanager
def _errors_of(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise translated(error, output) from error


def _verified(part: FolderPart, folder: Path, workers: Workers) -> tuple[str, tuple[str, ...]]:
    """Read the weights of a part back; returns the name of the reader, and notes."""
    with Source(part.checkpoint.sources, opener=part.checkpoint.reopen) as source:
        return verify_output(part.checkpoint, part.contents, source, folder / part.opened_by, workers)


def _make_folders(folder: Path, beside: OtherFiles) -> None:
    """Make the folders and the links of the source, each folder with its mode from the start."""
    for path, mode in beside.folders:
        (folder / path).mkdir(mode | stat.S_IRWXU)  # it must be possible to fill it, and to delete it again
    for path, text in beside.links:
        (folder / path).symlink_to(text)


def _copy(root: PurePath, beside: OtherFiles, folder: Path, output: Path, workers: Workers) -> None:
    """Copy the other files of the folder with the same executor."""
    opener = partial(reopened, seen=beside.seen(root))
    for file in beside.files:
        blobs = (Blob(0, file.size, CopyBytes(ByteRange(0, file.size))),) if file.size else ()
        with (
            Source((root / file.path,), opener=opener) as source,
            file_in(folder, file.path, output, file.mode) as target,
        ):
            execute(source, target, Layout(file.size, (), blobs), RowPolicy(), workers)
