"""ONNX graphs for tests, and an independent reader and writer of them on top of the onnx package.

``model_of`` gives the model that our reader would give (its records are numbered, its tensors lie in made-up
places), ``applied`` does with numpy what a writer would do with edits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
)

from wnconvert import weightnorm
from wnconvert.onnx_model import Attribute, Constant, Edits, Function, Graph, Model, Node, Port
from wnconvert.tensors import DTYPES, ByteRange, StoredTensor, TensorInfo, contiguous_strides

__all__ = ["Read", "applied", "model_of", "read", "run"]

_DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
    TensorProto.BOOL: "bool",
    TensorProto.UINT8: "uint8",
    TensorProto.INT8: "int8",
    TensorProto.FLOAT8E4M3FN: "float8_e4m3fn",
}
_CODES = {name: code for code, name in _DTYPES.items()}


@dataclass
class Read:
    """A model as we see it, with what a writer needs to find its way back: records and numbers."""

    model: Model
    records: dict[int, tuple[Any, int]] = field(default_factory=dict)  # a repeated field and the place in it
    arrays: dict[int, np.ndarray[Any, Any]] = field(default_factory=dict)
    scopes: dict[str, Any] = field(default_factory=dict)


class _Reader:
    def __init__(self) -> None:
        self.at = 0
        self.records: dict[int, tuple[Any, int]] = {}
        self.arrays: dict[int, np.ndarray[Any, Any]] = {}
        self.scopes: dict[str, Any] = {}

    def record(self, container: Any, place: int) -> ByteRange:
        self.at += 16
        self.records[self.at] = (container, place)
        return ByteRange(self.at, 16)

    def tensor(self, proto: TensorProto, record: ByteRange) -> Constant:
        if proto.data_type not in _DTYPES or (
            proto.data_type in {TensorProto.FLOAT16, TensorProto.BFLOAT16} and proto.int32_data
        ):
            return Constant(proto.name, None, None, record)
        dtype, shape = DTYPES[_DTYPES[proto.data_type]], tuple(proto.dims)
        array = numpy_helper.to_array(proto)
        where = ByteRange(10**12 + record.start * 10**6, array.nbytes)
        self.arrays[where.start] = array
        info = TensorInfo(proto.name, dtype, shape)
        few = math.prod(shape) <= 64 and not dtype.is_float8
        values = tuple(array.astype(np.float64 if dtype.foldable else np.int64).reshape(-1).tolist())
        stored = StoredTensor(info, where, 0, contiguous_strides(shape))
        return Constant(proto.name, stored, values if few else None, record)

    def ports(self, container: Any) -> tuple[Port, ...]:
        return tuple(Port(port.name, self.record(container, at)) for at, port in enumerate(container))

    def graph(self, proto: GraphProto, path: str, record: ByteRange) -> Graph:
        self.scopes[path] = proto
        return Graph(
            path=path,
            inputs=self.ports(proto.input),
            outputs=tuple(port.name for port in proto.output),
            nodes=self.nodes(proto.node, path),
            constants=tuple(
                self.tensor(tensor, self.record(proto.initializer, at))
                for at, tensor in enumerate(proto.initializer)
            ),
            values=self.ports(proto.value_info),
            record=record,
        )

    def function(self, proto: FunctionProto, record: ByteRange) -> Function:
        path = f"function {proto.domain}.{proto.name}.{proto.overload}"
        self.scopes[path] = proto
        return Function(
            path=path,
            domain=proto.domain,
            name=proto.name,
            overload=proto.overload,
            inputs=tuple(proto.input),
            outputs=tuple(proto.output),
            nodes=self.nodes(proto.node, path),
            values=self.ports(proto.value_info),
            record=record,
        )

    def nodes(self, container: Any, path: str) -> tuple[Node, ...]:
        return tuple(self.node(node, path, self.record(container, at)) for at, node in enumerate(container))

    def node(self, proto: NodeProto, path: str, record: ByteRange) -> Node:
        attributes = {}
        for attribute in proto.attribute:
            graphs = [attribute.g] if attribute.type == AttributeProto.GRAPH else list(attribute.graphs)
            inner = tuple(
                self.graph(graph, f"{path}/{record.start}.{attribute.name}{at or ''}", record)
                for at, graph in enumerate(graphs)
            )
            value: Any = None
            if attribute.type == AttributeProto.TENSOR:
                value = self.tensor(attribute.t, record)
            elif not graphs and not attribute.ref_attr_name:
                value = helper.get_attribute_value(attribute)
                value = tuple(value) if isinstance(value, list) else value
            attributes[attribute.name] = Attribute(attribute.name, value, inner, attribute.ref_attr_name)
        return Node(
            name=proto.name,
            op=proto.op_type,
            domain=proto.domain,
            overload=proto.overload,
            inputs=tuple(proto.input),
            outputs=tuple(proto.output),
            attributes=attributes,
            record=record,
        )


def read(proto: ModelProto) -> Read:
    reader = _Reader()
    graph = reader.graph(proto.graph, "", ByteRange(0, 1))
    functions = tuple(
        reader.function(function, reader.record(proto.functions, at))
        for at, function in enumerate(proto.functions)
    )
    opsets = {opset.domain: opset.version for opset in proto.opset_import}
    model = Model(proto.ir_version, opsets, graph, functions)
    return Read(model, reader.records, reader.arrays, reader.scopes)


def model_of(proto: ModelProto) -> Model:
    """The model as our own reader would read it."""
    return read(proto).model


def applied(proto: ModelProto, edits: Edits) -> ModelProto:
    """A copy of a model with edits made."""
    made = ModelProto()
    made.CopyFrom(proto)
    source = read(made)
    elements = {start: container[at] for start, (container, at) in source.records.items()}
    for start, inputs in edits.inputs.items():
        del elements[start].input[:]
        elements[start].input.extend(inputs)
    for start, name in edits.renamed.items():
        elements[start].name = name
    for path, inputs in edits.formals.items():
        del source.scopes[path].input[:]
        source.scopes[path].input.extend(inputs)
    for start in sorted(edits.dropped, key=lambda start: source.records[start][1], reverse=True):
        container, at = source.records[start]
        del container[at]
    for tensor in edits.tensors:
        array = weightnorm.fold(
            _strided(source, tensor.v), _strided(source, tensor.g), tensor.dim, dtype=tensor.dtype.numpy()
        )
        stored = helper.make_tensor(
            tensor.name, _CODES[tensor.dtype.name], array.shape, array.tobytes(), raw=True
        )
        scope = source.scopes[tensor.path]
        if isinstance(scope, GraphProto):
            scope.initializer.append(stored)
        else:
            scope.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=stored))
    return made


def _strided(source: Read, tensor: StoredTensor) -> np.ndarray[Any, Any]:
    flat = source.arrays[tensor.storage.start].reshape(-1)
    strides = tuple(stride * flat.itemsize for stride in tensor.strides)
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.info.shape, strides).copy()


def run(proto: ModelProto, feeds: Mapping[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """What a model computes in onnxruntime, without its optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, dict(feeds)))
