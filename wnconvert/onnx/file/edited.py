"""The places of edits in the file of a model: the writer makes them anew, and the check lets them differ."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

from wnconvert.onnx.file.fields import (
    FUNCTION_INPUT,
    NODE_ATTRIBUTE,
    NODE_INPUT,
    NODE_NAME,
    NODE_OP,
    NODE_OUTPUT,
)
from wnconvert.onnx.file.model import GraphEdits, NewNode, NewTensor
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.file.wire import Message, WireField, bytes_record, int_record
from wnconvert.tensors.tree import ByteRange

__all__ = ["EditedPlaces"]

_WHOLE_NUMBER = 2  # AttributeProto.AttributeType


class EditedPlaces:
    """The edits of an opened model by the starts of the records that they change.

    ``nodes`` are the contents of records in the place of nodes, ``new`` the tensors that are added to a
    scope, ``formals`` the inputs that a function gets, ``externals`` the bytes of tensors whose data file is
    another one now.
    """

    def __init__(self, opened: OnnxFile, edits: GraphEdits) -> None:
        scopes = {scope.path: scope for scope in opened.model.scopes()}
        self.dropped = edits.dropped
        self.renamed = edits.renamed
        self.inputs = edits.inputs
        self.outputs = edits.outputs
        self.nodes = {start: _content(node) for start, node in edits.nodes.items()}
        self.externals: Mapping[int, ByteRange] = opened.externals
        self.new: dict[int, list[NewTensor]] = {}
        for tensor in edits.tensors:
            self.new.setdefault(scopes[tensor.path].record.start, []).append(tensor)
        self.formals = {scopes[path].record.start: names for path, names in edits.formals.items()}
        places = {
            *edits.dropped,
            *edits.renamed,
            *edits.inputs,
            *edits.outputs,
            *self.nodes,
            *self.new,
            *self.formals,
        }
        self._places = sorted(places | opened.externals.keys())

    def touch(self, record: WireField | Message) -> bool:
        """Whether an edit lies in a record."""
        at = bisect_left(self._places, record.start)
        return at < len(self._places) and self._places[at] < record.end

    def names_of(self, kind: str, start: int) -> dict[int, tuple[str, ...]]:
        """The inputs and outputs that the node or function at a place gets, by their fields."""
        if kind == "function":
            every = {FUNCTION_INPUT: self.formals.get(start)}
        elif kind == "node":
            every = {NODE_INPUT: self.inputs.get(start), NODE_OUTPUT: self.outputs.get(start)}
        else:
            every = {}
        return {number: names for number, names in every.items() if names is not None}


def _content(node: NewNode) -> bytes:
    """The content of a NodeProto."""
    texts = (
        *((NODE_INPUT, name) for name in node.inputs),
        *((NODE_OUTPUT, name) for name in node.outputs),
        (NODE_NAME, node.name),
        (NODE_OP, node.op),
    )
    return b"".join(
        (
            *(bytes_record(number, text.encode()) for number, text in texts),
            *(bytes_record(NODE_ATTRIBUTE, _attribute(*each)) for each in node.attributes),
        )
    )


def _attribute(name: str, number: int) -> bytes:
    """The content of an AttributeProto that is a whole number."""
    return bytes_record(1, name.encode()) + int_record(3, number) + int_record(20, _WHOLE_NUMBER)
