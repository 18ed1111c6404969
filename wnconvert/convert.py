"""The executor: runs a plan's layout, block by block, on several threads, into a staged file.

A blob of the layout (a tensor, a storage) is the unit of parallel work, so sums and checksums run in order
and the output is the same for any number of threads.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wnconvert.atomic import Staged, file_in, free_name, staged, staged_folder
from wnconvert.blocks import BLOCK_BYTES, Array, Block, Read, blocks
from wnconvert.checkpoint import Checkpoint, layout_of
from wnconvert.layout import Blob, CopyBytes, Directions, FoldLayer, Gather, Layout, Norms, Work
from wnconvert.plan import Plan
from wnconvert.policy import Numbers, Problem, raise_problems, split_note, split_problems
from wnconvert.rounding import cast, count_overflow
from wnconvert.sources import Source
from wnconvert.tensors import ByteRange, StoredTensor
from wnconvert.verify import check_structure, verify_output
from wnconvert.weightnorm import Folding, direction_blocks, norm_blocks
from wnconvert.workers import Workers

if TYPE_CHECKING:
    from wnconvert.onnx_plan import OnnxFold

__all__ = ["Result", "convert", "convert_onnx"]

# The disk is at work on one part while the next is folded; all left to the end, 2 GiB took a third longer.
_SYNC_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Result:
    """What a conversion did. ``seconds`` is wall time; ``verified`` says by what the output was read back."""

    plan: Plan
    source: Path
    source_container: str
    output: Path
    bytes_in: int
    bytes_out: int
    seconds: float
    notes: tuple[str, ...]
    verified: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-able data; README documents it."""
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


def convert(
    checkpoint: Checkpoint,
    plan: Plan,
    output: Path,
    *,
    force: bool = False,
    threads: int | None = None,
    numbers: Numbers = Numbers(),  # noqa: B008 - frozen
    verify: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """Run ``plan`` on an opened checkpoint and put the result at ``output``, whole or not at all.

    ``threads`` defaults to the processors at hand, at most 4. ``progress`` is called with the bytes done
    and the bytes in all, never from two threads at once.

    Raises ``NumbersError`` for rows that ``numbers`` does not allow, ``OutputError`` where the output
    cannot be written, ``VerifyError`` where it was read back and is wrong.
    """
    began = time.perf_counter()
    layout = layout_of(checkpoint, plan)
    with (
        staged(output, force=force, size=layout.size) as target,
        Source(checkpoint.shards) as source,
    ):
        notes = _Run(source, target, layout, numbers, Workers(threads, progress)).all()
        check_structure(target.path, plan.container)
        verified, more = verify_output(checkpoint, plan, source, target.path) if verify else ("", ())
    return Result(
        plan=plan,
        source=checkpoint.path,
        source_container=checkpoint.container,
        output=output,
        bytes_in=checkpoint.size,
        bytes_out=layout.size,
        seconds=time.perf_counter() - began,
        notes=(*plan.notes, *notes, *more),
        verified=verified,
    )


def convert_onnx(
    checkpoint: Checkpoint,
    fold: OnnxFold,
    output: Path,
    *,
    force: bool = False,
    threads: int | None = None,
    numbers: Numbers = Numbers(),  # noqa: B008 - frozen
    progress: Callable[[int, int], None] = lambda done, total: None,
    data_name: str = "",
    proven: bool = True,
) -> Result:
    """Fold an opened ONNX model, run the result beside the original, and put it at ``output``.

    Where tensors of the source lie in data files, those of the output lie in one beside it, ``data_name``
    (by default a free name). With ``proven`` False nothing is run; who says so proves it otherwise.

    Raises as ``convert`` does; ``InputError`` where onnx or onnxruntime is not there to check the result.
    """
    from wnconvert.onnx_check import check_fold, check_installed
    from wnconvert.onnx_data import own_data_of, remove_unused
    from wnconvert.onnx_writer import onnx_layouts

    began = time.perf_counter()
    opened = checkpoint.onnx
    assert opened is not None  # noqa: S101 - its plan was made of it
    if proven:
        check_installed()
    data_name = data_name or free_name(output)
    model, data = onnx_layouts(opened, fold.edits, data_name)
    layouts = {output.name: model} if data is None else {data_name: data, output.name: model}
    size = sum(layout.size for layout in layouts.values())
    bytes_in = sum(path.stat().st_size for path in checkpoint.shards)
    old = own_data_of(output) if force else ()
    notes: tuple[str, ...] = fold.plan.notes
    verified = ""
    with (
        staged_folder(output, force=force, size=size) as folder,
        Source(checkpoint.shards) as source,
    ):
        workers = Workers(threads, progress)
        for name, layout in layouts.items():
            with file_in(folder, name, output) as target:
                notes += _Run(source, target, layout, numbers, workers).all()
        check_structure(folder / output.name, "onnx")
        if proven:
            verified, more = check_fold(opened, fold, folder / output.name, numbers)
            notes += more
    in_place = output.resolve() == checkpoint.path.resolve()
    deleted = remove_unused(old, output, () if in_place else checkpoint.shards)
    return Result(
        plan=fold.plan,
        source=checkpoint.path,
        source_container=checkpoint.container,
        output=output,
        bytes_in=bytes_in,
        bytes_out=size,
        seconds=time.perf_counter() - began,
        notes=(*notes, *deleted),
        verified=verified,
    )


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of a blob: what was wrong, or worth a note."""

    problems: tuple[Problem, ...] = ()
    note: str = ""


class _Run:
    """One run of a layout."""

    def __init__(
        self, source: Source, target: Staged, layout: Layout, numbers: Numbers, workers: Workers
    ) -> None:
        self.source = source
        self.target = target
        self.layout = layout
        self.numbers = numbers
        self.workers = workers

    def all(self) -> tuple[str, ...]:
        """Write the whole layout; return the notes of its blobs in order."""
        self.target.resize(self.layout.size)
        for at, piece in self.layout.pieces:
            self.target.write(piece, at)
        blobs = self.layout.blobs
        outcomes = self.workers.each(
            lambda index: self.blob(blobs[index]), {index: blob.effort for index, blob in enumerate(blobs)}
        )
        in_order = [(_where(blob.work), outcomes[index]) for index, blob in enumerate(blobs)]
        raise_problems((where, outcome.problems) for where, outcome in in_order)
        return tuple(f"{where}: {outcome.note}" for where, outcome in in_order if outcome.note)

    def blob(self, blob: Blob) -> _Outcome:
        out = _Sink(self, blob)
        if isinstance(blob.work, CopyBytes):
            outcome = self.copy(out, blob.work.source)
        elif isinstance(blob.work, Gather):
            outcome = self.gather(out, blob.work)
        elif isinstance(blob.work, FoldLayer):
            outcome = self.fold(out, blob.work)
        elif isinstance(blob.work, Norms):
            outcome = self.norms(out, blob.work)
        else:
            outcome = self.directions(out, blob.work)
        out.sync(_SYNC_BYTES // 16)
        for at in blob.crc_at:
            self.target.write(out.crc.to_bytes(4, "little"), at)
        return outcome

    def copy(self, out: _Sink, data: ByteRange) -> _Outcome:
        for at in range(data.start, data.end, BLOCK_BYTES):
            out.put(self.source.chunk(ByteRange(at, min(BLOCK_BYTES, data.end - at), data.shard)))
        return _Outcome()

    def gather(self, out: _Sink, work: Gather) -> _Outcome:
        info = work.tensor.info
        read = self.source.reader(work.tensor)
        overflow = 0
        for block in blocks((info.numel,), None, info.dtype.itemsize):
            values = read(block)
            if work.dtype != info.dtype:
                values, before = cast(values, work.dtype), values
                overflow += count_overflow(before, values)
            out.array(values)
        return _Outcome(self.numbers.cast_problems(overflow, work.dtype))

    def fold(self, out: _Sink, work: FoldLayer) -> _Outcome:
        g, info = self.source.whole(work.g), work.v.info
        folding = Folding(self.reader(work.v), info.shape, work.dim, g, info.dtype, work.dtype)
        for _, w in folding.blocks():
            out.array(w)
        report = folding.report()
        return _Outcome(self.numbers.problems(report), self.numbers.note(report))

    def norms(self, out: _Sink, work: Norms) -> _Outcome:
        info = work.w.info
        g, report = norm_blocks(self.reader(work.w), info.shape, work.dim, info.dtype, work.dtype)
        self.workers.advance(max(info.nbytes - g.nbytes, 0))
        out.array(g)
        return _Outcome(split_problems(report, work.dtype), split_note(report))

    def directions(self, out: _Sink, work: Directions) -> _Outcome:
        info = work.w.info
        for v in direction_blocks(self.reader(work.w), info.shape, work.dim, info.dtype):
            out.array(v)
        return _Outcome()

    def reader(self, tensor: StoredTensor) -> Read:
        """The blocks of a tensor; of two passes the first writes nothing, so failures are looked for here."""
        values = self.source.reader(tensor)

        def read(block: Block) -> Array:
            self.workers.check()
            return values(block)

        return read


class _Sink:
    """Where a blob's bytes go, in order, with their checksum where the container wants one."""

    def __init__(self, run: _Run, blob: Blob) -> None:
        self.run = run
        self.at = self.synced = blob.start
        self.checked = bool(blob.crc_at)
        self.crc = 0

    def array(self, values: Array) -> None:
        """Take the elements of the next block."""
        self.put(values.reshape(-1).view("u1").data)

    def put(self, data: memoryview) -> None:
        self.run.workers.advance(len(data))
        if self.checked:
            self.crc = zlib.crc32(data, self.crc)
        self.run.target.write(data, self.at)
        self.at += len(data)
        self.sync(_SYNC_BYTES)

    def sync(self, least: int) -> None:
        """Begin to put on the disk what has come since the last time, where it is worth a call."""
        if self.at - self.synced >= least:
            self.run.target.begin_sync(self.synced, self.at - self.synced)
            self.synced = self.at


def _where(work: Work) -> str:
    return "" if isinstance(work, CopyBytes) else work.where
