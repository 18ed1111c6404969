"""The fields of ONNX messages that a rewrite looks at, by protobuf number."""

from __future__ import annotations

from wnconvert.onnx.file.wire import Wire, WireField, bytes_record

__all__ = [
    "ENTRY",
    "FUNCTION_INPUT",
    "FUNCTION_NODE",
    "GRAPH_INPUT",
    "GRAPH_NAME",
    "GRAPH_OUTPUT",
    "GRAPH_TENSOR",
    "INSIDE",
    "MODEL_GRAPH",
    "NODE_ATTRIBUTE",
    "NODE_INPUT",
    "NODE_NAME",
    "NODE_OP",
    "NODE_OUTPUT",
    "PLACE",
    "TENSOR_NAME",
    "external_entries",
    "external_key",
]


#: Messages by the fields in which tensors, nodes and graphs stand: what a rewrite goes down into.
INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OP, NODE_ATTRIBUTE = 1, 2, 3, 4, 5
FUNCTION_INPUT, FUNCTION_NODE = 4, 7
GRAPH_NAME, GRAPH_TENSOR, GRAPH_INPUT, GRAPH_OUTPUT = 2, 5, 11, 12
MODEL_GRAPH = 7
TENSOR_NAME, ENTRY = 8, 13
PLACE = ("location", "offset", "length")


def external_key(wire: Wire, record: WireField) -> str:
    """The key of an entry of external data."""
    keys = [wire.text(item) for item in wire.records(record) if item.number == 1]
    return keys[-1] if keys else ""


def external_entries(location: str, start: int, size: int) -> bytes:
    """The entries of a TensorProto that say where its bytes lie."""
    entries = zip(PLACE, (location, str(start), str(size)), strict=True)
    return b"".join(
        bytes_record(ENTRY, bytes_record(1, key.encode()) + bytes_record(2, value.encode()))
        for key, value in entries
    )
