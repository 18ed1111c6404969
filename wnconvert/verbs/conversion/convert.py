"""A plan run on an opened checkpoint: laid out, executed into staged files, checked, put in place."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from wnconvert.errors import FormatError
from wnconvert.messages import counted, short_repr
from wnconvert.numerics.rows import RowPolicy
from wnconvert.plan.layout import Blob, CopyBytes, Layout
from wnconvert.plan.plan import Plan, PlannedLayer
from wnconvert.storage.checkpoint import Checkpoint, layout_of
from wnconvert.storage.files import common_mode, status_of
from wnconvert.storage.index import write_index
from wnconvert.storage.shards import index_metadata, part_of, total_size
from wnconvert.storage.sources import Source
from wnconvert.storage.staged_folder import replaced_folder
from wnconvert.storage.staging import file_in, staged, translated
from wnconvert.storage.stores.system import set_mode
from wnconvert.storage.workers import Workers
from wnconvert.tensors.tree import ByteRange
from wnconvert.verbs.conversion.executor import Outcome, execute, notes_of, outcomes
from wnconvert.verbs.conversion.verify import (
    bytes_to_verify,
    check_folder_structure,
    check_structure,
    verify_copies,
    verify_output,
)
from wnconvert.verbs.options import RunOptions

if TYPE_CHECKING:
    from wnconvert.storage.folder import OtherFiles

__all__ = ["Result", "conversion_result", "convert", "convert_folder"]


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """The result of a conversion. ``seconds`` is wall time; ``verified`` names the reader that checked it."""

    plan: Plan
    source: PurePath
    source_container: str
    output: Path
    bytes_in: int
    bytes_out: int
    seconds: float
    notes: tuple[str, ...]
    verified: str = ""

    @property
    def layers(self) -> list[PlannedLayer]:
        """Every layer that was changed."""
        return self.plan.layers

    def __repr__(self) -> str:
        done = {"fold": "folded", "migrate": "migrated"}.get(self.plan.verb, self.plan.verb)
        return short_repr(
            f"Result: {counted(len(self.layers), 'layer')} {done}, {self.source} -> {self.output}",
            [layer.name for layer in self.layers],
            f"{self.bytes_in:,} bytes in, {self.bytes_out:,} out, in {self.seconds:.2f} s",
            f"checked by {self.verified}" if self.verified else "",
            counted(len(self.notes), "note") if self.notes else "",
        )

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-able data; docs/json.md documents it."""
        return {
            **self.plan.to_dict(),
            "source": os.fspath(self.source),
            "source_container": self.source_container,
            "output": os.fspath(self.output),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "seconds": round(self.seconds, 3),
            "verified": self.verified or None,
            "notes": list(self.notes),
        }


def conversion_result(
    checkpoint: Checkpoint,
    plan: Plan,
    output: Path,
    began: float,
    *,
    bytes_in: int | None = None,
    bytes_out: int,
    notes: Iterable[str],
    verified: str = "",
) -> Result:
    """The result of a conversion that started at ``began``; ``notes`` are those of the run.

    ``bytes_in`` is the size of the checkpoint unless more was read.
    """
    return Result(
        plan=plan,
        source=checkpoint.path,
        source_container=str(checkpoint.container),
        output=output,
        bytes_in=checkpoint.size if bytes_in is None else bytes_in,
        bytes_out=bytes_out,
        seconds=time.perf_counter() - began,
        notes=(*plan.notes, *notes),
        verified=verified,
    )


def convert(
    checkpoint: Checkpoint,
    plan: Plan,
    output: Path,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
) -> Result:
    """Run ``plan`` on an opened checkpoint and put the result at ``output``, whole or not at all.

    Raises ``NumbersError`` for rows that ``options.numbers`` does not allow, ``OutputError`` where the output
    cannot be written, ``VerifyError`` where it was read back and is wrong.
    """
    began = time.perf_counter()
    layout = layout_of(checkpoint, plan)
    with (
        staged(output, force=options.force, size=layout.size, mode=common_mode(checkpoint.shards)) as target,
        Source(checkpoint.sources) as source,
    ):
        workers = Workers(options.threads, options.progress)
        if options.verify:
            workers.expect(sum(blob.effort for blob in layout.blobs) + bytes_to_verify(checkpoint, plan))
        notes = execute(source, target, layout, options.numbers, workers)
        check_structure(target.path, plan.container)
        verified = ""
        more: tuple[str, ...] = ()
        if options.verify:
            verified, more = verify_output(checkpoint, plan, source, target.path, workers.advance)
    return conversion_result(
        checkpoint, plan, output, began, bytes_out=layout.size, notes=(*notes, *more), verified=verified
    )


def convert_folder(
    checkpoint: Checkpoint,
    plan: Plan,
    beside: OtherFiles,
    output: Path,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
) -> Result:
    """Run ``plan``, which is in shards, and put them at ``output``, a folder, with all that lies ``beside``.

    The old folder is replaced whole. Options and errors as for ``convert``.
    """
    began = time.perf_counter()
    layouts = _layouts(checkpoint, plan)
    root = checkpoint.folder.root if checkpoint.folder else output
    size = sum(layout.size for layout in layouts.values()) + sum(file.size for file in beside.files)
    work = sum(blob.effort for layout in layouts.values() for blob in layout.blobs)
    copied = sum(file.size for file in beside.files)
    workers = Workers(options.threads, options.progress)
    workers.expect(work + copied)
    if options.verify:
        workers.expect(bytes_to_verify(checkpoint, plan) + copied)
    mode = common_mode(checkpoint.shards)
    folder_mode = status_of(root).mode if checkpoint.folder else None
    made: list[Outcome] = []
    verified = ""
    more: tuple[str, ...] = ()
    with (
        replaced_folder(output, force=options.force, size=size, mode=folder_mode) as folder,
        Source(checkpoint.sources) as source,
    ):
        for name, layout in layouts.items():
            with file_in(folder, name, output, mode) as target:
                made += outcomes(source, target, layout, options.numbers, workers)
        notes = notes_of(made)
        _copy(root, beside, folder, output, workers)
        check_folder_structure(folder, plan)
        if options.verify:
            verified, more = verify_output(checkpoint, plan, source, folder, workers.advance)
            verify_copies(root, folder, (file.path for file in beside.files), workers.advance)
    return conversion_result(
        checkpoint,
        plan,
        output,
        began,
        bytes_in=checkpoint.size + copied,
        bytes_out=size,
        notes=(*notes, *more),
        verified=verified,
    )


def _layouts(checkpoint: Checkpoint, plan: Plan) -> dict[str, Layout]:
    """The layouts of all shards, by name, and of their index."""
    if len(plan.shards) == 1:
        return {plan.shards[0].name: layout_of(checkpoint, part_of(plan, plan.shards[0]))}
    plain = replace(checkpoint, torch=None)  # the tensors alone: what else a pickle has cannot be in two
    layouts = {shard.name: layout_of(plain, part_of(plan, shard)) for shard in plan.shards}
    weight_map = {name: shard.name for shard in plan.shards for name in shard.tensors}
    before = checkpoint.folder.index.metadata if checkpoint.folder and checkpoint.folder.index else {}
    metadata = index_metadata(plan, checkpoint.tree, before)
    text = write_index(weight_map, total_size(plan), metadata)
    return {**layouts, plan.index: Layout(len(text), ((0, text),), ())}


def _copy(root: PurePath, beside: OtherFiles, folder: Path, output: Path, workers: Workers) -> None:
    """Copy the other files of the folder with the same executor, each with its mode from the start."""
    try:
        for path, _ in beside.folders:
            (folder / path).mkdir()
        for path, text in beside.links:
            (folder / path).symlink_to(text)
        for file in beside.files:
            blobs = (Blob(0, file.size, CopyBytes(ByteRange(0, file.size))),) if file.size else ()
            with Source((root / file.path,)) as source, file_in(folder, file.path, output) as target:
                set_mode(target.fd, file.mode)
                execute(source, target, Layout(file.size, (), blobs), RowPolicy(), workers)
                if source.size() != file.size:
                    raise FormatError("it became longer while it was read", where=str(root / file.path))
        for path, mode in reversed(beside.folders):
            (folder / path).chmod(mode | stat.S_IRWXU)  # it must be possible to delete it again
    except OSError as error:
        raise translated(error, output) from error
