"""The executor: runs a plan's layout, block by block, on several threads, into a staged file.

A blob of the layout (a tensor, a storage) is the unit of parallel work, so sums and checksums run in order
and the output is the same for any number of threads.
"""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wnconvert.atomic import Staged, staged
from wnconvert.blocks import BLOCK_BYTES, Array, Block, blocks
from wnconvert.checkpoint import Checkpoint, layout_of
from wnconvert.layout import Blob, CopyBytes, FoldLayer, Gather, Layout
from wnconvert.plan import Plan, describe_layer
from wnconvert.policy import Numbers, Problem, raise_problems
from wnconvert.rounding import cast, count_overflow
from wnconvert.sources import Source
from wnconvert.tensors import ByteRange
from wnconvert.verify import check_structure, verify_output
from wnconvert.weightnorm import fold_blocks

__all__ = ["Result", "convert"]


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
        notes = _Run(source, target, layout, numbers, progress).all(threads or _processors())
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


def _processors() -> int:
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 4)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of a blob: its checksum, and what was wrong or worth a note."""

    crc: int
    problems: tuple[Problem, ...] = ()
    note: str = ""


class _Cancelled(Exception):  # noqa: N818 - no error: another thread has one
    """Another thread failed, or the user interrupted."""


class _Run:
    """One run of a layout; its methods ``copy``, ``gather`` and ``fold`` are called from several threads."""

    def __init__(
        self,
        source: Source,
        target: Staged,
        layout: Layout,
        numbers: Numbers,
        progress: Callable[[int, int], None],
    ) -> None:
        self.source = source
        self.target = target
        self.layout = layout
        self.numbers = numbers
        self.progress = progress
        self.total = sum(blob.size for blob in layout.blobs)
        self.done = 0
        self.lock = threading.Lock()
        self.cancelled = threading.Event()

    def all(self, threads: int) -> tuple[str, ...]:
        """Write the whole layout; return the notes of its blobs in order."""
        os.ftruncate(self.target.fd, self.layout.size)
        for at, piece in self.layout.pieces:
            self.target.write(piece, at)
        # The largest first, so that no thread is left with a large one at the end.
        order = sorted(self.layout.blobs, key=lambda blob: -blob.size)
        outcomes: dict[Blob, _Outcome] = {}
        with ThreadPoolExecutor(max(threads, 1)) as pool:
            try:
                futures = {pool.submit(self.blob, blob): blob for blob in order}
                _raise_first(futures)
                outcomes = {blob: future.result() for future, blob in futures.items()}
            except BaseException:
                self.cancelled.set()
                pool.shutdown(cancel_futures=True)
                raise
        for blob, outcome in outcomes.items():
            for at in blob.crc_at:
                self.target.write(outcome.crc.to_bytes(4, "little"), at)
        in_order = [(blob.work, outcomes[blob]) for blob in self.layout.blobs]
        raise_problems((_where(work), outcome.problems) for work, outcome in in_order)
        return tuple(f"{_where(work)}: {outcome.note}" for work, outcome in in_order if outcome.note)

    def blob(self, blob: Blob) -> _Outcome:
        work = blob.work
        if isinstance(work, CopyBytes):
            return self.copy(blob.start, work.source)
        if isinstance(work, Gather):
            return self.gather(blob.start, work)
        return self.fold(blob.start, work)

    def copy(self, start: int, data: ByteRange) -> _Outcome:
        out = _Sink(self, start, 1)
        for at in range(0, data.size, BLOCK_BYTES):
            out.put(
                self.source.chunk(ByteRange(data.start + at, min(BLOCK_BYTES, data.size - at), data.shard))
            )
        return _Outcome(out.crc)

    def gather(self, start: int, work: Gather) -> _Outcome:
        info = work.tensor.info
        out = _Sink(self, start, work.dtype.itemsize)
        read = self.source.reader(work.tensor)
        overflow = 0
        for block in blocks((info.numel,), None, info.dtype.itemsize):
            values = read(block)
            if work.dtype != info.dtype:
                values, before = cast(values, work.dtype), values
                overflow += count_overflow(before, values)
            out.array(block, values)
        return _Outcome(out.crc, self.numbers.cast_problems(overflow, work.dtype))

    def fold(self, start: int, work: FoldLayer) -> _Outcome:
        out = _Sink(self, start, work.dtype.itemsize)
        info = work.v.info
        g = self.source.whole(work.g)
        read = self.source.reader(work.v)
        report = fold_blocks(read, out.array, info.shape, work.dim, g, info.dtype, work.dtype)
        return _Outcome(out.crc, self.numbers.problems(report), self.numbers.note(report))

    def advance(self, count: int) -> None:
        if self.cancelled.is_set():
            raise _Cancelled
        with self.lock:
            self.done += count
            self.progress(self.done, self.total)


class _Sink:
    """Where a blob's bytes go, in order, with their checksum."""

    def __init__(self, run: _Run, start: int, itemsize: int) -> None:
        self.run = run
        self.start = start
        self.itemsize = itemsize
        self.done = 0
        self.crc = 0

    def array(self, block: Block, values: Array) -> None:
        """Take the elements of the next block."""
        self.put(values.reshape(-1).view("u1").data)

    def put(self, data: memoryview) -> None:
        self.run.advance(len(data))
        self.crc = zlib.crc32(data, self.crc)
        self.run.target.write(data, self.start + self.done)
        self.done += len(data)


def _raise_first(futures: Mapping[Future[_Outcome], Blob]) -> None:
    """Wait for all; where one fails, raise its error rather than those of the threads it stopped."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    errors = [error for future in done if (error := future.exception()) and not isinstance(error, _Cancelled)]
    if errors:
        raise errors[0]


def _where(work: CopyBytes | Gather | FoldLayer) -> str:
    return "" if isinstance(work, CopyBytes) else work.where
