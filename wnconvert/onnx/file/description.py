"""What an ONNX model says of itself: who made it, versions, texts, and its metadata."""

from __future__ import annotations

from collections.abc import Iterator

from wnconvert.onnx.file.wire import BYTES, Message, Wire, WireField
from wnconvert.tensors.files import ReadableFile

__all__ = ["described"]


# The fields of ModelProto and GraphProto that tell something, by their numbers, as onnx.proto calls them.
_TEXTS = {2: "producer_name", 3: "producer_version", 4: "domain", 6: "doc_string"}
_NUMBERS = {1: "ir_version", 5: "model_version"}
_OPSET, _GRAPH, _METADATA = 8, 7, 14
_GRAPH_TEXTS = {2: "graph.name", 10: "graph.doc_string"}
_GRAPH_METADATA = 16


def described(file: ReadableFile) -> dict[str, str]:
    """The texts and versions of a model by their names, then its own metadata, as they stand in the file."""
    wire = Wire(file)
    found = _Described(wire)
    for record in wire.records(Message(0, wire.size)):
        if record.number in _NUMBERS:
            found.facts[_NUMBERS[record.number]] = str(wire.whole(record))
        elif record.number in _TEXTS:
            found.facts[_TEXTS[record.number]] = wire.text(record)
        elif record.number == _OPSET:
            domain, version = found.pair(record)
            found.facts[f"opset_import[{domain or 'ai.onnx'}]"] = version
        elif record.number == _METADATA:
            found.own(record)
        elif record.number == _GRAPH:
            found.graph(record)
    return {**{key: value for key, value in found.facts.items() if value}, **found.metadata}


class _Described:
    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.facts: dict[str, str] = {}
        self.metadata: dict[str, str] = {}

    def pair(self, record: WireField) -> tuple[str, str]:
        """The two fields of a small message: a key and a value, or a domain and a version."""
        parts = dict(self._parts(record))
        return parts.get(1, ""), parts.get(2, "")

    def _parts(self, record: WireField) -> Iterator[tuple[int, str]]:
        for item in self.wire.records(record):
            if item.number in (1, 2):
                is_text = item.wire == BYTES
                yield item.number, self.wire.text(item) if is_text else str(self.wire.whole(item))

    def own(self, record: WireField, before: str = "") -> None:
        """An entry of the metadata."""
        key, value = self.pair(record)
        self.metadata[f"{before}{key}"] = value

    def graph(self, record: WireField) -> None:
        """The texts of the graph."""
        for item in self.wire.records(record):
            if item.number in _GRAPH_TEXTS:
                self.facts[_GRAPH_TEXTS[item.number]] = self.wire.text(item)
            elif item.number == _GRAPH_METADATA:
                self.own(item, "graph.")
