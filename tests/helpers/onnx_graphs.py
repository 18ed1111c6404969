"""ONNX graphs for tests, and an independent reader and writer of them on top of the onnx package.

``model_of`` gives the model that our reader would give (its records are numbered, its tensors lie in made-up
places), ``applied`` does with numpy what a writer would do with edits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from wnconvert.layers import rules
from wnconvert.onnx.file.model import (
    Attribute,
    Constant,
    Graph,
    GraphEdits,
    Model,
    NewTensor,
    Node,
    OnnxFunction,
    Port,
)
from wnconvert.onnx.graph.edits import fold_edits
from wnconvert.onnx.graph.layers import GraphLayers, find_graph_layers
from wnconvert.plan.layout import FoldBias
from wnconvert.tensors.dtypes import DTYPES
from wnconvert.tensors.tree import ByteRange, StoredTensor, TensorInfo, contiguous_strides

__all__ = [
    "COMBINED",
    "NORMS",
    "Build",
    "Read",
    "applied",
    "elements_of",
    "folded",
    "kind_of",
    "looping",
    "model_of",
    "read",
    "run",
    "stored_as",
]

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


def kind_of(dtype: int) -> np.dtype[Any]:
    """numpy's dtype for one of onnx's, bfloat16 too, for which onnx has none before 1.19."""
    return DTYPES[_DTYPES[dtype]].numpy()


def stored_as(values: np.ndarray[Any, Any], name: str, dtype: int) -> TensorProto:
    """A stored tensor of such a dtype."""
    raw = np.ascontiguousarray(values, kind_of(dtype)).tobytes()
    return helper.make_tensor(name, dtype, values.shape, raw, raw=True)


def elements_of(proto: TensorProto) -> np.ndarray[Any, Any]:
    """What is stored; onnx itself reads no bytes of a bfloat16 before 1.19."""
    if proto.data_type == TensorProto.BFLOAT16 and proto.raw_data:
        return np.frombuffer(proto.raw_data, kind_of(proto.data_type)).reshape(tuple(proto.dims))
    return numpy_helper.to_array(proto)


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
        if proto.data_type not in _DTYPES:
            return Constant(proto.name, None, None, record)
        dtype, shape = DTYPES[_DTYPES[proto.data_type]], tuple(proto.dims)
        if proto.int32_data and dtype.foldable:
            return Constant(proto.name, None, None, record, info=TensorInfo(proto.name, dtype, shape))
        array = elements_of(proto)
        where = ByteRange(10**12 + record.start * 10**6, array.nbytes)
        self.arrays[where.start] = array
        info = TensorInfo(proto.name, dtype, shape)
        few = math.prod(shape) <= 64 and not dtype.is_float8
        values = tuple(array.astype(np.float64 if dtype.foldable else np.int64).reshape(-1).tolist())
        stored = StoredTensor(info, where, 0, contiguous_strides(shape))
        return Constant(proto.name, stored, values if few else None, record, info=info)

    def ports(self, container: Any) -> tuple[Port, ...]:
        return tuple(
            Port(port.name, self.record(container, at), _sizes(port)) for at, port in enumerate(container)
        )

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

    def function(self, proto: FunctionProto, record: ByteRange) -> OnnxFunction:
        path = f"function {proto.domain}.{proto.name}.{proto.overload}"
        self.scopes[path] = proto
        return OnnxFunction(
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


def _sizes(port: ValueInfoProto) -> tuple[int | None, ...] | None:
    kind = port.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return tuple(size.dim_value if size.HasField("dim_value") else None for size in kind.shape.dim)


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


def folded(proto: ModelProto, kinds: Collection[str] = ("weight",)) -> tuple[GraphLayers, ModelProto]:
    """What is found in a model, and the model with all of it folded."""
    model = model_of(proto)
    found = find_graph_layers(model, kinds)
    return found, applied(proto, fold_edits(model, found.layers))


def applied(proto: ModelProto, edits: GraphEdits) -> ModelProto:
    """A copy of a model with edits made."""
    made = ModelProto()
    made.CopyFrom(proto)
    source = read(made)
    elements = {start: container[at] for start, (container, at) in source.records.items()}
    for start, inputs in edits.inputs.items():
        del elements[start].input[:]
        elements[start].input.extend(inputs)
    for start, outputs in edits.outputs.items():
        del elements[start].output[:]
        elements[start].output.extend(outputs)
    for start, node in edits.nodes.items():
        elements[start].CopyFrom(helper.make_node(node.op, node.inputs, node.outputs, node.name))
    for start, name in edits.renamed.items():
        elements[start].name = name
    for path, inputs in edits.formals.items():
        del source.scopes[path].input[:]
        source.scopes[path].input.extend(inputs)
    for start in sorted(edits.dropped, key=lambda start: source.records[start][1], reverse=True):
        container, at = source.records[start]
        del container[at]
    for tensor in edits.tensors:
        made_of = _bias if isinstance(tensor.work, FoldBias) else _weight
        array = made_of(source, tensor).reshape(tensor.shape)
        stored = helper.make_tensor(
            tensor.name, _CODES[tensor.dtype.name], array.shape, array.tobytes(), raw=True
        )
        scope = source.scopes[tensor.path]
        if isinstance(scope, GraphProto):
            scope.initializer.append(stored)
        else:
            scope.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=stored))
    return made


def _weight(source: Read, tensor: NewTensor) -> np.ndarray[Any, Any]:
    """What a new tensor is, in float64 and rounded."""
    parts = {role: _strided(source, part).astype(np.float64) for role, part in tensor.parts}
    w = parts["original"]
    for operation in tensor.rule.operations:
        match operation:
            case rules.Mask():
                w = w * parts["mask"]
            case rules.Norm(dim=dim):
                g = parts["g"].reshape([-1 if axis == dim else 1 for axis in range(w.ndim)])
                w = g * w / _norms_of(operation, w)
            case rules.Unit():
                w = float(operation.scale) * w / _norms_of(operation, w)
            case rules.Spectral(dim=int(dim)):
                matrix = np.moveaxis(w, dim, 0).reshape(w.shape[dim], -1)
                w = w / (parts["u"].reshape(-1) @ matrix @ parts["v"].reshape(-1))
            case rules.Standardize():
                w = _standardized(operation, w, parts)
            case rules.NormBehind(dim=dim, groups=groups):
                w = w * _spread(_factors(operation, parts), w.shape, dim, groups)
            case _:
                raise NotImplementedError(operation)
    return w.astype(tensor.dtype.numpy())


def _norms_of(how: rules.Norm | rules.Unit, w: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What rows are divided by."""
    others = tuple(axis for axis in range(w.ndim) if axis != how.dim)
    squares = np.square(w).sum(others, keepdims=True)
    if how.guard is None:
        return np.asarray(np.sqrt(squares))
    share, eps = float(how.guard.share), how.guard.eps
    made = {
        "max": lambda: np.maximum(np.sqrt(squares) * share, eps),
        "max of squares": lambda: np.sqrt(np.maximum(squares * share, eps)),
        "norm": lambda: np.sqrt(squares) * share + eps,
        "squares": lambda: np.sqrt(squares * share + eps),
    }
    return np.asarray(made[how.guard.at]())


def _standardized(
    how: rules.Standardize, w: np.ndarray[Any, Any], parts: Mapping[str, np.ndarray[Any, Any]]
) -> np.ndarray[Any, Any]:
    """Rows without their means, divided by their deviations."""
    others = tuple(axis for axis in range(w.ndim) if axis != how.dim)
    variance = w.var(others, ddof=how.std == "unbiased", keepdims=True)
    root = {
        "var": lambda: np.sqrt(variance + how.eps),
        "std": lambda: np.sqrt(variance) + how.eps,
        "max": lambda: np.sqrt(np.maximum(variance * how.fan, how.eps)),
    }
    gain, shift = (
        parts[role].reshape([-1 if axis == how.dim else 1 for axis in range(w.ndim)])
        if role in parts
        else start
        for role, start in (("gain", 1), ("shift", 0))
    )
    return np.asarray((w - w.mean(others, keepdims=True)) * gain * how.scale / root[how.eps_at]() + shift)


def _bias(source: Read, tensor: NewTensor) -> np.ndarray[Any, Any]:
    """What a new bias is, in float64 and rounded."""
    parts = {role: _strided(source, part).astype(np.float64) for role, part in tensor.parts}
    norm = tensor.rule.operations[-1]
    assert isinstance(norm, rules.NormBehind)
    made = (parts.get("bias", 0) - parts["mean"]) * _factors(norm, parts) + parts.get("beta", 0)
    return np.asarray(made, tensor.dtype.numpy())


def _factors(norm: rules.NormBehind, parts: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return np.asarray(parts.get("gamma", 1) / np.sqrt(parts["variance"] + norm.eps))


def _spread(
    factors: np.ndarray[Any, Any], shape: Sequence[int], dim: int, groups: int
) -> np.ndarray[Any, Any]:
    """A factor for each channel, as it broadcasts with a weight."""
    if dim == 0:
        return factors.reshape(-1, *(1 for _ in shape[1:]))
    rows = np.repeat(factors.reshape(groups, shape[1]), shape[0] // groups, axis=0)
    return rows.reshape(*shape[:2], *(1 for _ in shape[2:]))


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


Floats: TypeAlias = np.ndarray[Any, Any]


class Build:
    """A graph, a node at a time: every method gives the name of the value that it makes."""

    def __init__(self, opset: int = 17, prefix: str = "t") -> None:
        self.opset = opset
        self.prefix = prefix
        self.nodes: list[NodeProto] = []
        self.stored: list[TensorProto] = []
        self.functions: list[FunctionProto] = []

    def op(self, op: str, *inputs: str, name: str = "", domain: str = "", **attributes: Any) -> str:
        made = name or f"{self.prefix}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [made], domain=domain, **attributes))
        return made

    def tensor(self, name: str, values: Floats) -> str:
        self.stored.append(numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name))
        return name

    def number(self, value: float, dtype: type = np.float32) -> str:
        return self.op("Constant", value=numpy_helper.from_array(np.array(value, dtype)))

    def ints(self, *values: int) -> str:
        return self.op("Constant", value=numpy_helper.from_array(np.array(values, np.int64)))

    def reduce(self, op: str, x: str, axes: Sequence[int] | None, *, keepdims: int = 1) -> str:
        """A reduction as the opset spells it."""
        if axes is None:
            return self.op(op, x, keepdims=keepdims)
        if self.opset >= (13 if op == "ReduceSum" else 18):
            return self.op(op, x, self.ints(*axes), keepdims=keepdims)
        return self.op(op, x, axes=list(axes), keepdims=keepdims)

    def unsqueeze(self, x: str, axes: Sequence[int]) -> str:
        if self.opset >= 13:
            return self.op("Unsqueeze", x, self.ints(*axes))
        return self.op("Unsqueeze", x, axes=list(axes))

    def graph(self, outputs: Sequence[str], inputs: Mapping[str, Sequence[int | None]] = {}) -> GraphProto:
        """What was built, as a graph of float32 inputs and outputs (of the first input's rank, any sizes)."""
        rank = len(next(iter(inputs.values()))) if inputs else None
        any_size = None if rank is None else [None] * rank
        return helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info(name, 1, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, 1, any_size) for name in outputs],
            self.stored,
        )

    def model(
        self, outputs: Sequence[str], inputs: Mapping[str, Sequence[int]], ir_version: int = 8
    ) -> ModelProto:
        domains = {function.domain: 1 for function in self.functions}
        opsets = [
            helper.make_opsetid("", self.opset),
            *(helper.make_opsetid(*item) for item in domains.items()),
        ]
        made = helper.make_model(
            self.graph(outputs, inputs), opset_imports=opsets, functions=self.functions, ir_version=ir_version
        )
        onnx.checker.check_model(made)
        return made


def _kept(shape: Sequence[int], dim: int | None) -> list[int]:
    return [size if axis == dim else 1 for axis, size in enumerate(shape)]


def _others(shape: Sequence[int], dim: int | None) -> list[int]:
    return [axis for axis in range(len(shape)) if axis != dim]


def _rows_first(b: Build, v: str, shape: Sequence[int], dim: int | None) -> str:
    """How torch's norm_except_dim spelled it: rows first, then flat."""
    order = [dim or 0, *(axis for axis in range(len(shape)) if axis != (dim or 0))]
    moved = v if dim in {0, None} else b.op("Transpose", v, perm=order)
    flat = b.op("Reshape", moved, b.ints(1 if dim is None else shape[dim], -1))
    rows = b.reduce("ReduceL2", flat, [1], keepdims=0)
    return b.op("Reshape", rows, b.ints(*_kept(shape, dim)))


def _squared(how: Callable[[Build, str], str], root: Callable[[Build, str], str]) -> Norm:
    return lambda b, v, shape, dim: root(b, b.reduce("ReduceSum", how(b, v), _others(shape, dim)))


def _in_two(b: Build, v: str, shape: Sequence[int], dim: int | None) -> str:
    norm = v
    for axis in _others(shape, dim):
        norm = b.reduce("ReduceL2", norm, [axis])
    return norm


def _cast_about(b: Build, v: str, shape: Sequence[int], dim: int | None) -> str:
    wide = b.op("Cast", b.op("Identity", v), to=TensorProto.DOUBLE)
    return b.op("Cast", b.reduce("ReduceL2", wide, _others(shape, dim)), to=TensorProto.FLOAT)


def _expanded(b: Build, v: str, shape: Sequence[int], dim: int | None) -> str:
    norm = b.reduce("ReduceL2", v, _others(shape, dim))
    return b.op("Expand", norm, b.op("Shape", v))


def _by_shape(b: Build, v: str, shape: Sequence[int], dim: int | None) -> str:
    """The shape of the norm put together from that of v, as tracing does it."""
    parts = [b.ints(1) if axis != dim else "" for axis in range(len(shape))]
    if dim is not None:
        size = b.op("Gather", b.op("Shape", v), b.number(dim, np.int64), axis=0)
        parts[dim] = b.unsqueeze(size, [0])
    norm = b.reduce("ReduceL2", v, _others(shape, dim), keepdims=0)
    return b.op("Reshape", norm, b.op("Concat", *parts, axis=0))


def _sqrt(b: Build, x: str) -> str:
    return b.op("Sqrt", x)


Norm: TypeAlias = Callable[[Build, str, Sequence[int], "int | None"], str]

#: Spellings of ‖v‖ over all axes but one, in a shape that broadcasts with v.
NORMS: dict[str, Norm] = {
    "ReduceL2": lambda b, v, shape, dim: b.reduce("ReduceL2", v, _others(shape, dim)),
    "negative axes": lambda b, v, shape, dim: b.reduce(
        "ReduceL2", v, [axis - len(shape) for axis in _others(shape, dim)]
    ),
    "ReduceSumSquare": lambda b, v, shape, dim: _sqrt(b, b.reduce("ReduceSumSquare", v, _others(shape, dim))),
    "Pow 2, Sqrt": _squared(lambda b, v: b.op("Pow", v, b.number(2)), _sqrt),
    "v·v, Pow 0.5": _squared(lambda b, v: b.op("Mul", v, v), lambda b, x: b.op("Pow", x, b.number(0.5))),
    "Abs, Pow 2": _squared(lambda b, v: b.op("Pow", b.op("Abs", v), b.number(2)), _sqrt),
    "rows first": _rows_first,
    "no kept dims": lambda b, v, shape, dim: b.unsqueeze(
        b.reduce("ReduceL2", v, _others(shape, dim), keepdims=0), _others(shape, dim)
    ),
    "axis by axis": _in_two,
    "Cast to double": _cast_about,
    "Expand": _expanded,
    "by Shape": _by_shape,
}

Combine: TypeAlias = Callable[[Build, str, str, str], str]

#: Spellings of g·v/n.
COMBINED: dict[str, Combine] = {
    "g(v/n)": lambda b, g, v, n: b.op("Mul", g, b.op("Div", v, n)),
    "v(g/n)": lambda b, g, v, n: b.op("Mul", v, b.op("Div", g, n)),
    "gv/n": lambda b, g, v, n: b.op("Div", b.op("Mul", g, v), n),
    "(1/n)vg": lambda b, g, v, n: b.op("Mul", b.op("Mul", b.op("Div", b.number(1), n), v), g),
    "g·v·Reciprocal": lambda b, g, v, n: b.op("Mul", b.op("Mul", v, b.op("Reciprocal", n)), g),
    "v/(n/g)": lambda b, g, v, n: b.op("Div", v, b.op("Div", n, g)),
}


def looping(turns: int) -> ModelProto:
    """A layer of weight norm beside a loop of so many turns, each of which multiplies two matrices."""
    b = Build(17)
    g, v = (
        b.tensor("a.weight_g", np.full((4, 1), 2, np.float32)),
        b.tensor("a.weight_v", np.eye(4, dtype="f")),
    )
    w = COMBINED["g(v/n)"](b, g, v, NORMS["ReduceL2"](b, v, (4, 4), 0))
    nodes = [
        helper.make_node("Identity", ["go"], ["goes"]),
        helper.make_node("MatMul", ["state", "state"], ["next"]),
    ]
    ins: list[Any] = [("turn", 7, []), ("go", 9, []), ("state", 1, None)]
    outs: list[Any] = [("goes", 9, []), ("next", 1, None)]
    body = helper.make_graph(
        nodes,
        "body",
        [helper.make_tensor_value_info(*each) for each in ins],
        [helper.make_tensor_value_info(*each) for each in outs],
    )
    counted = b.tensor("turns", np.array(turns, np.int64)), b.tensor("begins", np.array(True))
    last = b.op("Loop", *counted, b.tensor("first", np.eye(16, dtype="f")), body=body)
    b.op("Add", b.op("MatMul", "x", w), b.op("ReduceSum", last, keepdims=0), name="y")
    return b.model(["y"], {"x": (2, 4)})
