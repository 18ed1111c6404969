"""A model without the elements of its large tensors, for what checks names, nodes and shapes.

In an outline these tensors are external data, as ONNX has it: a location, an offset and a length. So a
runtime can map them from the file in which they lie. All else has the bytes of the file.

Source of the format: https://onnx.ai/onnx/repo-docs/ExternalData.html
"""

from __future__ import annotations

from collections.abc import Iterator

from wnconvert.onnx.file.fields import GRAPH_TENSOR, external_entries
from wnconvert.onnx.file.model import Constant
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.file.tensors import EXTERNAL
from wnconvert.onnx.file.wire import Message, Wire, WireField, bytes_record, int_record, length_head
from wnconvert.tensors.files import ReadableFile

__all__ = ["NOWHERE", "outline_of"]


#: A location that onnx's checker takes for memory: it looks for no file.
NOWHERE = "#elements"
#: Bytes of a tensor that is left out. A model of 2 GiB has fewer of them than a process may map.
_LARGE = 1 << 16
_GRAPH = 7
_DATA_LOCATION = 14


def outline_of(file: ReadableFile, opened: OnnxFile, location: str) -> bytes:
    """The model in ``file``, which was ``opened``, whose large initializers lie at ``location``.

    Their offsets are those in the file. Initializers in data files, and tensors in nodes, stay what they are.
    """
    large = {
        constant.record.start: constant
        for constant in opened.model.graph.constants
        if constant.tensor is not None and not constant.is_external and constant.tensor.data.size >= _LARGE
    }
    wire = Wire(file)
    parts: list[bytes] = []
    for record in wire.records(Message(0, opened.size)):
        if record.number != _GRAPH:
            parts.append(_whole(wire, record))
            continue
        inside = list(_graph(wire, record, large, location))
        parts += [length_head(_GRAPH, sum(map(len, inside))), *inside]
    return b"".join(parts)


def _graph(wire: Wire, graph: WireField, large: dict[int, Constant], location: str) -> Iterator[bytes]:
    for record in wire.records(graph):
        constant = large.get(record.start)
        if constant is None or constant.tensor is None:
            yield _whole(wire, record)
            continue
        data = constant.tensor.data
        kept = b"".join(_whole(wire, item) for item in wire.records(record) if item.body != data.start)
        where = external_entries(location, data.start, data.size) + int_record(_DATA_LOCATION, EXTERNAL)
        yield bytes_record(GRAPH_TENSOR, kept + where)


def _whole(wire: Wire, record: WireField) -> bytes:
    return wire.span(record.start, record.end - record.start)
