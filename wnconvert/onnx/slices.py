"""Cuts the arithmetic of one value out of an ONNX model, as a small model without inputs.

The nodes are those of the file, unchanged except for names inside functions, so onnxruntime computes exactly
the value that the model computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wnconvert.errors import FormatError
from wnconvert.onnx.file.model import Constant, Node, OnnxFunction
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.file.tensors import CODES
from wnconvert.onnx.file.wire import Message, Wire
from wnconvert.onnx.graph.index import Index, ValueId, index_of
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.files import ReadableFile
from wnconvert.tensors.tree import ByteRange

__all__ = ["Slices", "UnreachableError"]


class UnreachableError(Exception):
    """A value that cannot be cut out: it depends on inputs, or in a way that is not supported here."""


class Slices:
    """Cuts values out of one model, whose ``files`` are its shards; this needs the onnx package."""

    def __init__(self, opened: OnnxFile, files: Sequence[ReadableFile]) -> None:
        self.opened = opened
        self.files = files
        self.wire = Wire(files[0])
        self.index: Index = index_of(opened.model)

    def model(self, value: ValueId, calls: tuple[int, ...], dtype: DType) -> bytes:
        """A model with one output: a value of ``dtype``, within some function calls (outermost first).

        Raises ``UnreachableError`` if it cannot be cut out.
        """
        from onnx import ModelProto, helper

        cut = _Cut(self)
        try:
            name = cut.value(value, calls)
        except RecursionError as error:  # hundreds of nodes in a row, or nodes in a ring
            raise UnreachableError(value[1]) from error
        output = helper.make_tensor_value_info(name, CODES[dtype.name], None)
        graph = helper.make_graph(cut.nodes, "value", [], [output], cut.tensors)
        opsets = [helper.make_opsetid(*item) for item in self.opened.model.opsets.items()]
        made: ModelProto = helper.make_model(
            graph,
            opset_imports=opsets,
            functions=cut.functions(),
            ir_version=max(self.opened.model.ir_version, 4),  # before, each tensor must be an input too
        )
        content: bytes = made.SerializeToString()
        return content

    def parsed(self, kind: Any, record: ByteRange) -> Any:
        """The message in a record of the model's file. Raises ``FormatError`` where there is none."""
        from google.protobuf.message import DecodeError

        try:
            return kind.FromString(self.content(record))
        except DecodeError as error:
            what = f"a {kind.DESCRIPTOR.name} in it is not one that the onnx package reads ({error})"
            raise FormatError(what, fix="export the model again") from error

    def content(self, record: ByteRange) -> bytes:
        """The content of a record of the model's file."""
        found = next(self.wire.records(Message(record.start, record.end)))
        return self.bytes(ByteRange(found.body, found.end - found.body))

    def bytes(self, data: ByteRange) -> bytes:
        """Bytes of any file of the model."""
        return self.files[data.shard].read(data.start, data.size)


class _Cut:
    def __init__(self, slices: Slices) -> None:
        self.slices = slices
        self.index = slices.index
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.names: dict[tuple[ValueId, tuple[int, ...]], str] = {}
        self.calls_functions = False

    def value(self, value: ValueId, calls: tuple[int, ...]) -> str:
        """The name of a value in the cut; the nodes and tensors that make it are added."""
        path, name = value
        in_function = isinstance(self.index.scopes[self.index.roots[path]], OnnxFunction)
        calls = calls if in_function else ()
        known = self.names.get((value, calls))
        if known is not None:
            return known
        if value in self.index.constants:
            made = self.names[value, calls] = name
            self.tensors.append(self.tensor(self.index.constants[value], name))
        elif value in self.index.makers:
            made = self.node(value, self.index.makers[value], calls, in_function=in_function)
        else:
            made = self.names[value, calls] = self.formal(value, calls)
        return made

    def used(self, path: str, name: str, calls: tuple[int, ...]) -> str:
        value = self.index.resolve(path, name)
        if value is None:
            raise UnreachableError(name)
        return self.value(value, calls)

    def node(self, value: ValueId, node: Node, calls: tuple[int, ...], *, in_function: bool) -> str:
        from onnx import NodeProto

        path = value[0]
        if in_function and node.graphs:
            raise UnreachableError(node.name)
        inputs = [self.used(path, name, calls) if name else "" for name in node.inputs]
        for used in self.captured(node):
            self.value(used, calls)
        made = self.slices.parsed(NodeProto, node.record)
        prefix = f"call {len(self.names)}/" if in_function else ""
        for output in filter(None, node.outputs):
            self.names[(path, output), calls] = prefix + output
        del made.input[:], made.output[:]
        made.input.extend(inputs)
        made.output.extend(prefix + output if output else "" for output in node.outputs)
        self.attributes(node, made, path, calls)
        self.calls_functions |= self.index.called(node) is not None
        self.nodes.append(made)
        return self.names[value, calls]

    def captured(self, node: Node) -> set[ValueId]:
        """The outer values that the subgraphs of a node use."""
        found: set[ValueId] = set()
        inside: set[str] = set()
        waiting = list(node.graphs)
        while waiting:
            graph = waiting.pop()
            inside.add(graph.path)
            for each in graph.nodes:
                waiting += each.graphs
                names = [self.index.resolve(graph.path, name) for name in each.inputs if name]
                found |= {value for value in names if value is not None}
            names = [self.index.resolve(graph.path, name) for name in graph.outputs]
            found |= {value for value in names if value is not None}
        return {value for value in found if value[0] not in inside}

    def attributes(self, node: Node, made: Any, path: str, calls: tuple[int, ...]) -> None:
        """Store external data in the node, and replace references by the attributes of the call."""
        from onnx import NodeProto

        for attribute in made.attribute:
            stored = node.attributes[attribute.name].value
            if isinstance(stored, Constant) and stored.is_external:
                attribute.t.CopyFrom(self.tensor(stored, attribute.t.name))
            if attribute.ref_attr_name:
                if not calls:
                    raise UnreachableError(attribute.ref_attr_name)
                _, caller = self.caller(path, calls)
                given = self.slices.parsed(NodeProto, caller.record).attribute
                name, wanted = attribute.name, attribute.ref_attr_name
                values = [item for item in given if item.name == wanted and not item.ref_attr_name]
                if not values:
                    raise UnreachableError(wanted)
                attribute.CopyFrom(values[0])
                attribute.name = name

    def formal(self, value: ValueId, calls: tuple[int, ...]) -> str:
        """The name of a function's input, as the innermost call passes it."""
        path, name = value
        function = self.index.scopes[path]
        if not isinstance(function, OnnxFunction) or not calls:
            raise UnreachableError(name)
        caller_path, caller = self.caller(path, calls)
        position = function.inputs.index(name) if name in function.inputs else len(caller.inputs)
        if position >= len(caller.inputs) or not caller.inputs[position]:
            raise UnreachableError(name)
        return self.used(caller_path, caller.inputs[position], calls[:-1])

    def caller(self, path: str, calls: tuple[int, ...]) -> tuple[str, Node]:
        for caller_path, node in self.index.calls.get(self.index.roots[path], ()):
            if node.record.start == calls[-1]:
                return caller_path, node
        raise UnreachableError(path)

    def tensor(self, constant: Constant, name: str) -> Any:
        from onnx import TensorProto

        made = self.slices.parsed(TensorProto, constant.record)
        if constant.is_external:
            made.raw_data = self.slices.bytes(self.slices.opened.externals[constant.record.start])
            made.ClearField("external_data")
            made.ClearField("data_location")
        made.name = name
        return made

    def functions(self) -> list[Any]:
        from onnx import FunctionProto

        if not self.calls_functions:
            return []
        functions = self.slices.opened.model.functions
        return [self.slices.parsed(FunctionProto, item.record) for item in functions]
