"""A model and its edits to the bytes of a new ONNX file: all records without an edit are copied.

A record that holds an edit is written anew around its other records, so that lengths fit; a file without
edits comes out byte for byte. Tensors in data files go into one new data file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import field
from typing import TypeAlias

from wnconvert.errors import OutputError
from wnconvert.frozen import dataclass
from wnconvert.onnx.file.edited import EditedPlaces
from wnconvert.onnx.file.fields import (
    ENTRY,
    FUNCTION_NODE,
    GRAPH_TENSOR,
    INSIDE,
    PLACE,
    TENSOR_NAME,
    external_entries,
    external_key,
)
from wnconvert.onnx.file.model import GraphEdits, NewTensor
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.file.tensors import CODES, EXTERNAL
from wnconvert.onnx.file.wire import Message, Wire, WireField, bytes_record, int_record, length_head
from wnconvert.plan.layout import Blob, CopyBytes, Layout, Work
from wnconvert.tensors.files import ReadableFile
from wnconvert.tensors.tree import ByteRange

__all__ = ["ModelWriter", "onnx_layouts"]

#: protobuf cannot hold more.
_MOST_BYTES = (1 << 31) - 1
_ALIGNED, _ALIGNED_LARGE, _LARGE = 64, 4096, 1 << 20
_ATTRIBUTE_TENSOR = 4  # AttributeProto.AttributeType
#: The first IR version in which an initializer need not be an input too.
_STORED_ALONE = 4


@dataclass(frozen=True, slots=True)
class _Made:
    """Bytes that work makes."""

    size: int
    work: Work


_Part: TypeAlias = bytes | ByteRange | _Made


def onnx_layouts(
    file: ReadableFile, opened: OnnxFile, edits: GraphEdits, data_name: str
) -> tuple[Layout, Layout | None]:
    """The bytes of the new model, and of its data file ``data_name`` where tensors of it lie outside.

    ``file`` is the model that was ``opened``.

    Raises ``OutputError`` where the model would be larger than protobuf allows.
    """
    writer = ModelWriter(Wire(file), opened, edits, data_name)
    parts = writer.message("model", Message(0, opened.size))
    model = _layout(parts)
    if model.size > _MOST_BYTES:
        raise OutputError(
            f"it would have {model.size} bytes, and an ONNX file has at most {_MOST_BYTES}",
            fix="give the source external data: onnx.save(…, save_as_external_data=True)",
        )
    return model, writer.data.layout() if writer.data.blobs else None


@dataclass(slots=True)
class _Data:
    """The new data file."""

    size: int = 0
    blobs: list[Blob] = field(default_factory=list)
    copied: dict[ByteRange, int] = field(default_factory=dict)

    def place(self, size: int, work: Work) -> int:
        """Where the bytes that ``work`` makes will stand."""
        if isinstance(work, CopyBytes) and work.source in self.copied:
            return self.copied[work.source]
        aligned = _ALIGNED_LARGE if size > _LARGE else _ALIGNED
        start = -(-self.size // aligned) * aligned
        self.blobs.append(Blob(start, size, work))
        self.size = start + size
        if isinstance(work, CopyBytes):
            self.copied[work.source] = start
        return start

    def layout(self) -> Layout:
        return Layout(self.size, (), tuple(self.blobs))


class ModelWriter:
    """The records of a model as they will be: those of the source, and around each edit new ones."""

    def __init__(self, wire: Wire, opened: OnnxFile, edits: GraphEdits, data_name: str) -> None:
        self.wire = wire
        self.opened = opened
        self.edited = EditedPlaces(opened, edits)
        self.data_name = data_name
        self.data = _Data()

    def record(self, kind: str, record: WireField) -> list[_Part]:
        """A record as it will be, with its tag."""
        if not self.edited.touch(record):
            return [record.range]
        if kind == "node" and (other := self.edited.nodes.get(record.start)) is not None:
            return [bytes_record(record.number, other)]
        parts = self.tensor(record) if kind == "tensor" else self.message(kind, record)
        return [length_head(record.number, _size(parts)), *parts]

    def message(self, kind: str, message: WireField | Message) -> list[_Part]:
        """The content of a message as it will be."""
        inside = INSIDE[kind]
        start = message.start if isinstance(message, WireField) else -1
        names = self.edited.names_of(kind, start)
        parts: list[_Part] = []
        place: int | None = 0 if kind == "graph" else None  # where new records go among the parts
        for record in self.wire.records(message):
            if record.start in self.edited.dropped or record.number in names:
                continue
            if kind == "function" and record.number == FUNCTION_NODE and place is None:
                place = len(parts)
            child = inside.get(record.number)
            parts += [record.range] if child is None else self.record(child, record)
            if kind == "graph" and record.number <= GRAPH_TENSOR:
                place = len(parts)
        place = len(parts) if place is None else place
        added = [
            self.added(kind, tensor) for tensor in self.edited.new.get(start, ())
        ]  # in data files behind others
        parts[place:place] = [part for each in added for part in each]
        if start == self.opened.model.graph.record.start and self.opened.model.ir_version < _STORED_ALONE:
            parts += [_input(tensor) for tensor in self.edited.new.get(start, ())]
        # Their place in a message is free; others write them first, or behind the name.
        parts[:0] = [bytes_record(number, name.encode()) for number in names for name in names[number]]
        return parts

    # -- tensors

    def tensor(self, record: WireField) -> list[_Part]:
        """The content of a tensor that has another name, or lies in the new data file."""
        name = self.edited.renamed.get(record.start)
        data = self.edited.externals.get(record.start)
        parts: list[_Part] = []
        for item in self.wire.records(record):
            if name is not None and item.number == TENSOR_NAME:
                continue
            if data is not None and item.number == ENTRY and external_key(self.wire, item) in PLACE:
                continue
            parts.append(item.range)
        if name is not None:
            parts.append(bytes_record(8, name.encode()))
        if data is not None:
            parts.append(self.external(data.size, CopyBytes(data)))
        return parts

    def external(self, size: int, work: Work) -> bytes:
        """The entries that tell where a tensor lies in the new data file."""
        start = self.data.place(size, work)
        return external_entries(self.data_name, start, size)

    def added(self, kind: str, tensor: NewTensor) -> list[_Part]:
        """A new tensor: an initializer of a graph, or a Constant node of a function."""
        content = self.stored(tensor)
        if kind == "graph":
            return [length_head(GRAPH_TENSOR, _size(content)), *content]
        attribute: list[_Part] = [bytes_record(1, b"value"), length_head(5, _size(content)), *content]
        attribute.append(int_record(20, _ATTRIBUTE_TENSOR))
        node: list[_Part] = [bytes_record(2, tensor.name.encode()), bytes_record(4, b"Constant")]
        node += [length_head(5, _size(attribute)), *attribute]
        return [length_head(FUNCTION_NODE, _size(node)), *node]

    def stored(self, tensor: NewTensor) -> list[_Part]:
        """The content of a TensorProto: where its original lay outside, so does it."""
        size = (math.prod(tensor.shape) * tensor.dtype.bits + 7) // 8
        head = b"".join(int_record(1, length) for length in tensor.shape)
        head += int_record(2, CODES[tensor.dtype.name]) + bytes_record(8, tensor.name.encode())
        if tensor.is_external:
            return [head, self.external(size, tensor.work), int_record(14, EXTERNAL)]
        return [head, length_head(9, size), _Made(size, tensor.work)]


def _input(tensor: NewTensor) -> bytes:
    """A ValueInfoProto among the inputs, which names a tensor with its type and shape."""
    shape = b"".join(bytes_record(1, int_record(1, size)) for size in tensor.shape)
    kind = int_record(1, CODES[tensor.dtype.name]) + bytes_record(2, shape)
    return bytes_record(11, bytes_record(1, tensor.name.encode()) + bytes_record(2, bytes_record(1, kind)))


def _size(parts: Iterable[_Part]) -> int:
    return sum(len(part) if isinstance(part, bytes) else part.size for part in parts)


def _layout(parts: Sequence[_Part]) -> Layout:
    pieces: list[tuple[int, bytes]] = []
    blobs: list[Blob] = []
    at = 0
    for part in _merged(parts):
        if isinstance(part, bytes):
            pieces.append((at, part))
            at += len(part)
            continue
        work = CopyBytes(part) if isinstance(part, ByteRange) else part.work
        blobs.append(Blob(at, part.size, work))
        at += part.size
    return Layout(at, tuple(pieces), tuple(blobs))


def _merged(parts: Iterable[_Part]) -> Iterator[_Part]:
    """Runs that lie end to end in the source as one, and literal bytes as one."""
    last: _Part | None = None
    for part in parts:
        if isinstance(part, bytes) and isinstance(last, bytes):
            last += part
        elif isinstance(part, ByteRange) and isinstance(last, ByteRange) and last.end == part.start:
            last = ByteRange(last.start, last.size + part.size)
        else:
            if last is not None:
                yield last
            last = part
    if last is not None:
        yield last
