"""The executor: runs a layout, block by block, on several threads, into a staged file.

A blob of the layout (a tensor, a storage) is the unit of parallel work, so sums and checksums run in order
and the output is the same for any number of threads. ``make_tensor`` has one function for each kind of work,
which also makes tensors in memory.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Protocol

import numpy as np

from wnconvert.errors import LayerError
from wnconvert.messages import told
from wnconvert.numerics.folding import Folding
from wnconvert.numerics.kernel.choice import cast_block
from wnconvert.numerics.norms import norm_blocks
from wnconvert.numerics.rounding import FLOAT_FORMATS, count_overflow
from wnconvert.numerics.rows import Problem, RowPolicy, raise_problems, split_note, split_problems
from wnconvert.numerics.rules.parts import RulePart
from wnconvert.numerics.splitting import direction_blocks
from wnconvert.plan.layout import (
    Blob,
    Checked,
    CopyBytes,
    Directions,
    Filled,
    FoldBias,
    FoldLayer,
    Gather,
    Layout,
    Norms,
    Parts,
    Work,
)
from wnconvert.storage.sources import Source
from wnconvert.storage.stores.filling import Fill, Fillable, Stretch
from wnconvert.storage.stores.windows import WINDOW_BYTES
from wnconvert.storage.workers import Workers
from wnconvert.tensors.blocks import BLOCK_BYTES, Array, Block, Elements, Read, blocks, scratch
from wnconvert.tensors.tree import ByteRange, StoredTensor

__all__ = ["Outcome", "Sink", "execute", "folding_of", "make_tensor", "notes_of", "outcome_of", "outcomes"]


# Of fewer bytes these are done before another thread has begun; what is evaluated may take any time.
_SMALL_BYTES, _QUICK = 32 << 10, (CopyBytes, Gather, Filled, FoldLayer, Norms, Directions)
# Between two such pieces that the system copies, progress is told, and another thread's failure noticed.
_SENT_BYTES = 32 << 20
_U4 = struct.Struct("<I")


def execute(
    source: Source, target: Fillable, layout: Layout, numbers: RowPolicy, workers: Workers
) -> tuple[str, ...]:
    """Write a whole layout; returns notes, in the order of its blobs.

    Raises ``NumbersError`` for rows that ``numbers`` does not allow, all of them at once.
    """
    return notes_of(outcomes(source, target, layout, numbers, workers))


def outcomes(
    source: Source, target: Fillable, layout: Layout, numbers: RowPolicy, workers: Workers
) -> list[Outcome]:
    """Write a whole layout; returns the outcomes of its blobs, in their order."""
    return _Run(source, target, layout, numbers, workers).all()


def notes_of(every: Sequence[Outcome]) -> tuple[str, ...]:
    """The notes of these outcomes. Raises one ``NumbersError`` for all problems."""
    raise_problems((outcome.where, outcome.problems) for outcome in every)
    return tuple(told((outcome.where, outcome.note) for outcome in every if outcome.note))


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a blob: its problems, or a note, and the layer or tensor that it is about.

    ``parts`` are the outcomes of a blob that is about several.
    """

    problems: tuple[Problem, ...] = ()
    note: str = ""
    where: str = ""
    parts: tuple[Outcome, ...] = ()

    def about(self, where: str) -> Outcome:
        """The outcome of the layer or tensor of this name; most say nothing, and are one object."""
        return Outcome(self.problems, self.note, where) if self.problems or self.note else _NOTHING


_NOTHING = Outcome()


class _Run:
    """One run of a layout."""

    def __init__(
        self, source: Source, target: Fillable, layout: Layout, numbers: RowPolicy, workers: Workers
    ) -> None:
        self.source = source
        self.target = target
        self.layout = layout
        self.tail = bytearray(layout.tail)
        self.numbers = numbers
        self.workers = workers

    def all(self) -> list[Outcome]:
        """Write the whole layout; returns the outcomes of its blobs, in order."""
        blobs = self.layout.blobs
        efforts = {index: blob.effort for index, blob in enumerate(blobs)}
        with self.target.filling(self.layout.size, self.workers.threads) as file:
            for at, piece in self.layout.pieces:
                file.write(piece, at)
            in_order = self.target.in_order or self.source.is_far
            order = sorted(efforts, key=lambda index: blobs[index].start) if in_order else None
            small = (index for index, effort in efforts.items() if effort < _SMALL_BYTES)
            quick = [index for index in small if isinstance(blobs[index].work, _QUICK)]
            made = self.workers.each(lambda index: self.blob(file, blobs[index]), efforts, order, quick)
            file.write(memoryview(self.tail), self.layout.size - len(self.tail))
        return [
            outcome
            for index, blob in enumerate(blobs)
            for outcome in made[index].parts or (made[index].about(blob.work.where),)
        ]

    def blob(self, file: Fill, blob: Blob) -> Outcome:
        if isinstance(blob.work, CopyBytes) and blob.checked is None:
            blob = self.sent(file, blob, blob.work.source)
        out = _Sink(self.workers, file.stretch(blob.start, blob.size), blob)
        if isinstance(blob.work, CopyBytes):
            outcome = self.copy(out, blob.work.source)
        elif isinstance(blob.work, Parts):
            outcome = self.parts(out, blob.work, blob.start + blob.size)
        else:
            outcome = make_tensor(blob.work, self, out, self.numbers)
        out.stretch.close()
        if blob.checked is not None:
            self.checksum(file, blob.start, blob.checked, out.crc)
        return outcome

    def checksum(self, file: Fill, start: int, checked: Checked, crc: int) -> None:
        """Write the head of a blob, whose checksum is known now; the tail gets it too."""
        head = bytearray(checked.head)
        _U4.pack_into(head, checked.in_head, crc)
        _U4.pack_into(self.tail, checked.in_tail, crc)
        file.write(memoryview(head), start - len(head))

    def sent(self, file: Fill, blob: Blob, data: ByteRange) -> Blob:
        """Have the system copy bytes, as far as it can; returns what is left of the blob."""
        done = 0
        while done < data.size:
            size = min(_SENT_BYTES, data.size - done)
            count = file.receive(self.source.files[data.shard], data.start + done, size, blob.start + done)
            if not count:
                break
            self.workers.advance(count)
            done += count
        if not done:
            return blob
        rest = ByteRange(data.start + done, data.size - done, data.shard)
        return Blob(blob.start + done, blob.size - done, CopyBytes(rest))

    def copy(self, out: _Sink, data: ByteRange) -> Outcome:
        at = data.start
        while at < data.end:
            room = out.stretch.room(min(BLOCK_BYTES, data.end - at))
            self.source.fill(room, at, data.shard)
            out.count(room)
            out.stretch.filled(len(room))
            at += len(room)
        return _NOTHING

    def parts(self, out: _Sink, work: Parts, end: int) -> Outcome:
        made = []
        for part in work.parts:
            if isinstance(part, bytes):
                out.put(memoryview(part))
                continue
            sink = _Text(out) if part.as_text else out
            outcome = make_tensor(part.work, self, sink, self.numbers)
            made.append(outcome.about(part.work.where))
            if isinstance(sink, _Text):
                sink.put()
        out.put(memoryview(bytes(end - out.stretch.at)))
        return Outcome(parts=tuple(made))

    def reader(self, tensor: StoredTensor) -> Read:
        """Reads a tensor by blocks; stops if another thread failed, which a first pass would not notice."""
        values = self.source.reader(tensor)

        def read(block: Block) -> Array:
            self.workers.check()
            return values(block)

        return read

    def whole(self, tensor: StoredTensor) -> Array:
        """All elements of a small tensor."""
        return self.source.whole(tensor)


class _Sink:
    """Writes a blob's bytes, in order, and computes their checksum if the container has one."""

    def __init__(self, workers: Workers, stretch: Stretch, blob: Blob) -> None:
        self.workers = workers
        self.stretch = stretch
        checked = blob.checked
        self.checked = checked is not None
        self.crc = zlib.crc32(checked.head[-checked.counted :]) if checked and checked.counted else 0
        self.in_place = False

    def room(self, block: Block, dtype: np.dtype[Any]) -> Array:
        # Wider elements than those read may be too many; where they lie across words, a copy is faster.
        size = (block.stop - block.start) * dtype.itemsize
        self.in_place = size <= WINDOW_BYTES and not self.stretch.at % dtype.alignment
        if not self.in_place:
            return scratch("made", block.shape, dtype)
        return np.frombuffer(self.stretch.room(size), dtype).reshape(block.shape)

    def made(self, values: Array) -> None:
        if not self.in_place:
            self.array(values)
            return
        self.count(_bytes_of(values))
        self.stretch.filled(values.nbytes)

    def array(self, values: Array) -> None:
        """Take the elements of the next block."""
        self.put(_bytes_of(values))

    def passed(self, count: int) -> None:
        """Count bytes as done that were read and are not written."""
        self.workers.advance(count)

    def put(self, data: memoryview) -> None:
        self.count(data)
        self.stretch.put(data)

    def count(self, data: memoryview) -> None:
        """Count the next bytes as done, into the checksum too."""
        self.workers.advance(len(data))
        if self.checked:
            self.crc = zlib.crc32(data, self.crc)


def _bytes_of(values: Array) -> memoryview:
    return values.reshape(-1).view("u1").data


class _Text:
    """Takes the elements of an array that becomes a text of a pickle, whose length comes before it."""

    def __init__(self, out: _Sink) -> None:
        self.out = out
        self.content = bytearray()

    def room(self, block: Block, dtype: np.dtype[Any]) -> Array:
        return np.empty(block.shape, dtype)

    def made(self, values: Array) -> None:
        self.array(values)

    def array(self, values: Array) -> None:
        """Take the elements of the next block."""
        self.content += values.tobytes()

    def passed(self, count: int) -> None:
        """Count bytes as done that were read and are not written."""
        self.out.passed(count)

    def put(self) -> None:
        """Write the text (BINUNICODE)."""
        text = self.content.decode("latin-1").encode()
        self.out.put(memoryview(b"X" + _U4.pack(len(text)) + text))


# -- the kinds of work


class Sink(Protocol):
    """Takes the elements of a new tensor: what lies in memory by ``array``, or made in its own ``room``."""

    def room(self, block: Block, dtype: np.dtype[Any]) -> Array:
        """Where to make the elements of the next block."""

    def made(self, values: Array) -> None:
        """Take the elements that were made in ``room``."""

    def array(self, values: Array) -> None:
        """Take the elements of the next block."""

    def passed(self, count: int) -> None:
        """Count bytes as done that were read and are not written."""


@singledispatch
def make_tensor(work: Work, source: Elements, out: Sink, numbers: RowPolicy) -> Outcome:
    """Make a tensor from the elements of others, block by block, into ``out``."""
    raise NotImplementedError(type(work))


@make_tensor.register
def _gather(work: Gather, source: Elements, out: Sink, numbers: RowPolicy) -> Outcome:
    info = work.tensor.info
    read = source.reader(work.tensor)
    overflow = 0
    for block in blocks((info.numel,), None, info.dtype.itemsize):
        values = read(block)
        if work.dtype != info.dtype:
            values, before = cast_block(values, work.dtype.name), values
            overflow += count_overflow(before, values)
        out.array(values)
    return Outcome(numbers.cast_problems(overflow, work.dtype))


def _parts_of(parts: Sequence[tuple[str, StoredTensor]], source: Elements) -> dict[str, RulePart]:
    return {
        role: RulePart(source.reader(tensor), tensor.info.shape, tensor.info.dtype) for role, tensor in parts
    }


@contextmanager
def folding_of(work: FoldLayer, source: Elements) -> Iterator[Folding]:
    """The fold of a layer; errors that are raised inside name it."""
    try:
        yield Folding(work.rule, _parts_of(work.parts, source), work.dtype)
    except LayerError as error:  # u and v may be too large, or a mask of other numbers
        error.where = error.where or work.where
        raise


def outcome_of(folding: Folding, work: FoldLayer, numbers: RowPolicy) -> Outcome:
    """What a fold that is done has to tell."""
    report = folding.report()
    return Outcome(numbers.making(work.dtype.name).problems(report), numbers.note(report))


@make_tensor.register
def _fold(work: FoldLayer, source: Elements, out: Sink, numbers: RowPolicy) -> Outcome:
    with folding_of(work, source) as folding:
        for _, w in folding.blocks(lambda block: out.room(block, folding.form.dtype)):
            out.made(w)
    return outcome_of(folding, work, numbers)


@make_tensor.register
def _bias(work: FoldBias, source: Elements, out: Sink, numbers: RowPolicy) -> Outcome:
    from wnconvert.numerics.rules.neighbours import fold_bias  # of norms behind and before layers

    bias, report = fold_bias(work.rule, _parts_of(work.parts, source), work.dtype)
    out.array(bias)
    notes = filter(None, (numbers.note(report), _note_on_batches(work.batches, source)))
    return Outcome(numbers.making(work.dtype.name).problems(report), "; ".join(notes))


def _note_on_batches(batches: StoredTensor | None, source: Elements) -> str:
    """A note on a norm that has seen no batch, or nothing."""
    if batches is None or batches.info.numel != 1 or batches.info.dtype.bits % 8:
        return ""
    (seen,) = source.reader(batches)(Block(0, (1, 1, 1), 0)).reshape(-1)
    return "" if seen else "the norm has seen no batch (num_batches_tracked is 0), so it was never trained"


@make_tensor.register
def _filled(work: Filled, _source: Elements, out: Sink, _numbers: RowPolicy) -> Outcome:
    out.array(np.full(work.size, work.value, FLOAT_FORMATS[work.dtype.name].dtype))
    return Outcome()


@make_tensor.register
def _norms(work: Norms, source: Elements, out: Sink, _numbers: RowPolicy) -> Outcome:
    info = work.w.info
    divisors = None
    if work.guard:
        from wnconvert.numerics.rules.computed.guarded import GuardedNorm  # of frameworks that have an eps

        divisors = GuardedNorm(work.guard)
    read = source.reader(work.w)
    g, report = norm_blocks(read, info.shape, work.dim, info.dtype, work.dtype, divisors=divisors)
    out.passed(max(info.nbytes - g.nbytes, 0))
    out.array(g)
    return Outcome(split_problems(report, work.dtype), split_note(report))


@make_tensor.register
def _directions(work: Directions, source: Elements, out: Sink, _numbers: RowPolicy) -> Outcome:
    info = work.w.info
    for v in direction_blocks(source.reader(work.w), info.shape, work.dim, info.dtype):
        out.array(v)
    return Outcome()
