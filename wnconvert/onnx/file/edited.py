"""The places of edits in the file of a model: the writer makes them anew, and the check lets them differ."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

from wnconvert.onnx.file.model import GraphEdits, NewTensor
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.file.wire import Message, WireField
from wnconvert.tensors.tree import ByteRange

__all__ = ["EditedPlaces"]


class EditedPlaces:
    """The edits of an opened model by the starts of the records that they change.

    ``new`` are the tensors that are added to a scope, ``formals`` the inputs that a function gets,
    ``externals`` the bytes of tensors whose data file is another one now.
    """

    def __init__(self, opened: OnnxFile, edits: GraphEdits) -> None:
        scopes = {scope.path: scope for scope in opened.model.scopes()}
        self.dropped = edits.dropped
        self.renamed = edits.renamed
        self.inputs = edits.inputs
        self.externals: Mapping[int, ByteRange] = opened.externals
        self.new: dict[int, list[NewTensor]] = {}
        for tensor in edits.tensors:
            self.new.setdefault(scopes[tensor.path].record.start, []).append(tensor)
        self.formals = {scopes[path].record.start: names for path, names in edits.formals.items()}
        places = {*edits.dropped, *edits.renamed, *edits.inputs, *self.new, *self.formals}
        self._places = sorted(places | opened.externals.keys())

    def touch(self, record: WireField | Message) -> bool:
        """Whether an edit lies in a record."""
        at = bisect_left(self._places, record.start)
        return at < len(self._places) and self._places[at] < record.end

    def inputs_of(self, kind: str, start: int) -> tuple[str, ...] | None:
        """The inputs that the node or function at a place gets; None where they stay."""
        return {"node": self.inputs, "function": self.formals}.get(kind, {}).get(start)
