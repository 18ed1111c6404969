"""A model without the elements of its large tensors, for what checks names, nodes and shapes.

In an outline these tensors are external data, as ONNX has it: a location, an offset and a length. So a
runtime can map them from the file in which they lie. All else has the bytes of the file.

Source of the format: https://onnx.ai/onnx/repo-docs/ExternalData.html
"""

from __future__ import annotations

from wnconvert.onnx.file.fields import GRAPH_TENSOR, MODEL_GRAPH, external_entries
from wnconvert.onnx.file.model import Constant
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.file.tensors import EXTERNAL
from wnconvert.onnx.file.wire import Message, Wire, WireField, bytes_record, int_record, length_head
from wnconvert.tensors.files import ReadableFile

__all__ = ["NOWHERE", "outline_of", "outlined"]


#: A location that onnx's checker takes for memory: it looks for no file.
NOWHERE = "#elements"
#: Bytes of a tensor that is left out. A model of 2 GiB has fewer of them than a process may map.
_LARGE = 1 << 16
_DATA_LOCATION = 14


def outline_of(file: ReadableFile, opened: OnnxFile, location: str) -> bytes:
    """The model in ``file``, which was ``opened``, whose large initializers lie at ``location``.

    Their offsets are those in the file. Initializers in data files, and tensors in nodes, stay what they are.
    """
    constants = {constant.record.start: constant for constant in opened.model.graph.constants}
    wire = Wire(file)
    parts: list[bytes] = []
    for record in wire.records(Message(0, opened.size)):
        if record.number != MODEL_GRAPH:
            parts.append(_whole(wire, record))
            continue
        inside = [
            outlined(wire, constants[item.start], location) if item.start in constants else _whole(wire, item)
            for item in wire.records(record)
        ]
        parts += [length_head(MODEL_GRAPH, sum(map(len, inside))), *inside]
    return b"".join(parts)


def outlined(wire: Wire, constant: Constant, location: str) -> bytes:
    """The record of an initializer, without its elements if it is large."""
    (record,) = wire.records(Message(constant.record.start, constant.record.end))
    tensor = constant.tensor
    if tensor is None or constant.is_external or tensor.data.size < _LARGE:
        return _whole(wire, record)
    kept = b"".join(_whole(wire, item) for item in wire.records(record) if item.body != tensor.data.start)
    where = external_entries(location, tensor.data.start, tensor.data.size)
    return bytes_record(GRAPH_TENSOR, kept + where + int_record(_DATA_LOCATION, EXTERNAL))


def _whole(wire: Wire, record: WireField) -> bytes:
    return wire.span(record.start, record.end - record.start)
