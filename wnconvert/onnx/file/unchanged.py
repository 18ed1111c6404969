"""A written ONNX model compared with its source: all records but the edited ones must be the same."""

from __future__ import annotations

from collections.abc import Callable

from wnconvert.errors import VerifyError
from wnconvert.frozen import dataclass
from wnconvert.messages import REPORT_BUG
from wnconvert.onnx.file.edited import EditedPlaces
from wnconvert.onnx.file.fields import (
    ENTRY,
    FUNCTION_NODE,
    GRAPH_TENSOR,
    INSIDE,
    PLACE,
    TENSOR_NAME,
    external_key,
)
from wnconvert.onnx.file.model import GraphEdits
from wnconvert.onnx.file.provenance import is_provenance
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.file.wire import Message, Wire, WireField
from wnconvert.tensors.blocks import BLOCK_BYTES
from wnconvert.tensors.files import ReadableFile

__all__ = ["check_unchanged"]


def check_unchanged(before: ReadableFile, opened: OnnxFile, edits: GraphEdits, after: ReadableFile) -> None:
    """Compare a written model with its source, ``before``: all but the edits must be there, in its order.

    Raises ``VerifyError`` where a record has changed. Tensors in data files are not read.
    """
    old, new = Wire(before), Wire(after)
    compared = _Compared(old, EditedPlaces(opened, edits), new)
    compared.message("model", Message(0, opened.size), Message(0, new.size))


@dataclass(frozen=True, slots=True)
class _Compared:
    """The source and the written model, walked side by side."""

    before: Wire
    edited: EditedPlaces
    after: Wire

    def message(self, kind: str, old: WireField | Message, new: WireField | Message) -> None:
        """Compare the content of a message that holds an edit."""
        inside = INSIDE.get(kind, {})
        start = old.start if isinstance(old, WireField) else -1
        edited = self.edited_fields(kind, start)
        expected = [
            record
            for record in self.before.records(old)
            if record.start not in self.edited.dropped and not edited(self.before, record)
        ]
        added = {tensor.name for tensor in self.edited.new.get(start, ())}
        found = [
            record
            for record in self.after.records(new)
            if not edited(self.after, record) and not (added and self.name(kind, record) in added)
        ]
        if len(found) != len(expected):
            raise self.differs(old.start)
        for record, other in zip(expected, found, strict=True):
            if (record.number, record.wire) != (other.number, other.wire):
                raise self.differs(record.start)
            child = inside.get(record.number)
            if child == "node" and record.start in self.edited.nodes:
                self.node(record, other)
            elif child is not None and self.edited.touch(record):
                self.message(child, record, other)
            elif not self.equal(record, other):
                raise self.differs(record.start)
        for number, wanted in self.edited.names_of(kind, start).items():
            records = (record for record in self.after.records(new) if record.number == number)
            if tuple(map(self.after.text, records)) != wanted:
                raise self.differs(old.start)

    def edited_fields(self, kind: str, start: int) -> Callable[[Wire, WireField], bool]:
        """A test for the records of a message that an edit replaces: names, inputs, places of tensors."""
        if kind == "tensor":
            external, renamed = start in self.edited.externals, start in self.edited.renamed
            return lambda wire, record: (
                (renamed and record.number == TENSOR_NAME)
                or (external and record.number == ENTRY and external_key(wire, record) in PLACE)
            )
        if kind == "model":  # wnconvert's own record is written behind what is proven
            return is_provenance
        names = self.edited.names_of(kind, start)
        return lambda wire, record: record.number in names

    def node(self, old: WireField, new: WireField) -> None:
        """Compare a node that stands in the place of another with what it shall be."""
        if self.after.span(new.body, new.end - new.body) != self.edited.nodes[old.start]:
            raise self.differs(old.start)

    def name(self, kind: str, record: WireField) -> str:
        """The name of an initializer, of an input that repeats it, or of the value of a Constant node."""
        fields = {"graph": {GRAPH_TENSOR: TENSOR_NAME, 11: 1}, "function": {FUNCTION_NODE: 2}}
        number = fields.get(kind, {}).get(record.number)
        if number is None:
            return ""
        names = [self.after.text(item) for item in self.after.records(record) if item.number == number]
        return names[-1] if names else ""

    def equal(self, old: WireField, new: WireField) -> bool:
        """Whether two records have the same bytes, read in blocks."""
        size = old.end - old.start
        return size == new.end - new.start and all(
            self.before.span(old.start + at, min(BLOCK_BYTES, size - at))
            == self.after.span(new.start + at, min(BLOCK_BYTES, size - at))
            for at in range(0, size, BLOCK_BYTES)
        )

    def differs(self, at: int) -> VerifyError:
        what = f"the output differs from the source at byte {at}, where nothing was to change"
        return VerifyError(f"{what}; nothing is kept", fix=REPORT_BUG)
