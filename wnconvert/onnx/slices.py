"""Cuts the arithmetic of one value out of an ONNX model, as a small model whose inputs are its large tensors.

The nodes are those of the file, unchanged except for names inside functions, so onnxruntime computes exactly
the value that the model computes. Fed with some rows of its tensors, it computes those rows of the value.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from wnconvert.errors import FormatError
from wnconvert.frozen import dataclass
from wnconvert.onnx.file.model import Constant, Node, OnnxFunction
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.file.tensors import CODES
from wnconvert.onnx.file.wire import Message, Wire
from wnconvert.onnx.graph.index import Index, ValueId, index_of
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.files import GET_AGAIN, ReadableFile
from wnconvert.tensors.tree import ByteRange

__all__ = ["Resize", "Slice", "Slices", "UnreachableError", "as_they_are"]


#: Bytes of whole numbers that are an input of a slice; fewer, which may be axes and shapes, are stored in it.
_LARGE = 1024

#: From the whole numbers that a slice stores (shapes, mostly) to those that it shall store.
Resize = Callable[[Sequence[int]], Sequence[int]]


def as_they_are(numbers: Sequence[int]) -> Sequence[int]:
    """The shapes of the model itself."""
    return numbers


class UnreachableError(Exception):
    """A value that cannot be cut out: it depends on inputs, or in a way that is not supported here."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A model of one value, as bytes, and the tensors that it is to be fed with, by its names for them.

    Its names say nothing, so that the same arithmetic of another layer is the same model. ``given`` is that
    of a value that is to be fed too.
    """

    model: bytes
    fed: dict[str, Constant]
    given: str = ""


class Slices:
    """Cuts values out of one model, whose ``files`` are its shards; this needs the onnx package."""

    def __init__(self, opened: OnnxFile, files: Sequence[ReadableFile]) -> None:
        self.opened = opened
        self.files = files
        self.wire = Wire(files[0])
        self.index: Index = index_of(opened.model)
        self._reading = threading.Lock()

    def cut(
        self,
        value: ValueId,
        calls: tuple[int, ...],
        dtype: DType,
        resize: Resize = as_they_are,
        given: ValueId | None = None,
    ) -> Slice:
        """A model with one output: a value of ``dtype``, within some function calls (outermost first).

        Another value, of the same dtype, may be ``given``: an input of the model, of any shape.

        Several threads may ask for one. Raises ``UnreachableError`` if it cannot be cut out, ``FormatError``
        where one of its nodes is damaged.
        """
        from google.protobuf.message import EncodeError
        from onnx import ModelProto, helper

        cut = _Cut(self, resize)
        if given is not None:
            cut.names[given, ()] = given[1]
        try:
            with self._reading:
                name = cut.value(value, calls)
        except RecursionError as error:  # hundreds of nodes in a row, or nodes in a ring
            raise UnreachableError(value[1]) from error
        with self._reading:
            functions = cut.functions()
        named = cut.renamed()
        output = helper.make_tensor_value_info(named[name], CODES[dtype.name], None)
        inputs = [
            helper.make_tensor_value_info(named[name], CODES[info.dtype.name], [None] * len(info.shape))
            for name, constant in cut.fed.items()
            if (info := constant.info) is not None
        ]
        if given is not None:
            inputs.append(helper.make_tensor_value_info(named[given[1]], CODES[dtype.name], None))
        graph = helper.make_graph(cut.nodes, "value", inputs, [output], cut.tensors)
        opsets = [helper.make_opsetid(*item) for item in self.opened.model.opsets.items()]
        made: ModelProto = helper.make_model(
            graph,
            opset_imports=opsets,
            functions=functions,
            ir_version=max(self.opened.model.ir_version, 4),  # before, each tensor must be an input too
        )
        fed = {named[name]: constant for name, constant in cut.fed.items()}
        try:
            return Slice(made.SerializeToString(), fed, named[given[1]] if given is not None else "")
        except (EncodeError, ValueError) as error:  # past 2 GiB
            raise UnreachableError(value[1]) from error

    def content(self, record: ByteRange) -> bytes:
        """The content of a record of the model's file."""
        found = next(self.wire.records(Message(record.start, record.end)))
        return self.bytes(ByteRange(found.body, found.end - found.body))

    def bytes(self, data: ByteRange) -> bytes:
        """Bytes of any file of the model."""
        return self.files[data.shard].read(data.start, data.size)

    def message(self, kind: Any, record: ByteRange) -> Any:
        """A record of the model's file as a message of onnx. Raises ``FormatError`` where it is damaged."""
        from google.protobuf.message import DecodeError

        try:
            return kind.FromString(self.content(record))
        except DecodeError as error:
            what = f"the record at byte {record.start} holds a message that protobuf cannot read"
            raise FormatError(f"it is damaged: {what}", fix=GET_AGAIN) from error


class _Cut:
    def __init__(self, slices: Slices, resize: Resize) -> None:
        self.slices = slices
        self.resize = resize
        self.index = slices.index
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.fed: dict[str, Constant] = {}
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
        maker = self.index.makers.get(value)
        constant = self.index.constants.get(value)
        stored = constant or _stored_in(maker)
        if stored is not None and _is_fed(stored):
            made = self.names[value, calls] = f"call {len(self.names)}/{name}" if in_function else name
            self.fed[made] = stored
        elif constant is not None:
            made = self.names[value, calls] = name
            self.tensors.append(self.tensor(constant, name))
        elif maker is not None:
            made = self.node(value, maker, calls, in_function=in_function)
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
        made = self.slices.message(NodeProto, node.record)
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
        """Store external data and other sizes in the node, and put in the attributes of the call."""
        from onnx import NodeProto

        for attribute in made.attribute:
            stored = node.attributes[attribute.name].value
            if isinstance(stored, Constant) and (stored.is_external or stored.values is not None):
                attribute.t.CopyFrom(self.tensor(stored, attribute.t.name))
            if node.op == "Constant" and attribute.ints:
                attribute.ints[:] = self.resize(attribute.ints)
            if attribute.ref_attr_name:
                if not calls:
                    raise UnreachableError(attribute.ref_attr_name)
                _, caller = self.caller(path, calls)
                given = self.slices.message(NodeProto, caller.record).attribute
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
        from onnx import TensorProto, helper

        made = self.slices.message(TensorProto, constant.record)
        if constant.is_external:
            made.raw_data = self.slices.bytes(self.slices.opened.externals[constant.record.start])
            made.ClearField("external_data")
            made.ClearField("data_location")
        if made.data_type == CODES["int64"] and constant.values is not None:
            numbers = [int(number) for number in constant.values]
            if (resized := list(self.resize(numbers))) != numbers:
                made = helper.make_tensor(name, CODES["int64"], list(made.dims), resized)
        made.name = name
        return made

    def renamed(self) -> dict[str, str]:
        """Name all values by their places, where no body of a node uses them; the new names by the old."""
        old = dict.fromkeys(self.names.values())
        old |= dict.fromkeys(name for node in self.nodes for name in (*node.input, *node.output) if name)
        attributes = [attribute for node in self.nodes for attribute in node.attribute]
        if any(attribute.HasField("g") or attribute.graphs for attribute in attributes):
            return {name: name for name in old}
        new = {name: f"value {at}" for at, name in enumerate(old)} | {"": ""}
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [new[name] for name in names]
            _without(node, "name", "doc_string", "metadata_props")
        for attribute in attributes:
            if attribute.HasField("t"):  # else it would be there from now on
                _without(attribute.t, "name", "doc_string")
        for tensor in self.tensors:
            tensor.name = new[tensor.name]
            _without(tensor, "doc_string")
        return new

    def functions(self) -> list[Any]:
        from onnx import FunctionProto

        if not self.calls_functions:
            return []
        functions = self.slices.opened.model.functions
        return [self.slices.message(FunctionProto, item.record) for item in functions]


def _without(message: Any, *fields: str) -> None:
    """Leave out fields of a message."""
    for name in fields:
        message.ClearField(name)


def _stored_in(node: Node | None) -> Constant | None:
    """The tensor that a Constant node is; None for other nodes."""
    value = node.attributes["value"].value if node and "value" in node.attributes else None
    return value if node and node.op == "Constant" and isinstance(value, Constant) else None


def _is_fed(constant: Constant) -> bool:
    """Whether a tensor is an input of a slice: floats, or a large one, that lie end to end as whole bytes."""
    info = constant.info
    if constant.tensor is None or info is None or info.numel == 1:
        return False
    return info.dtype.foldable or (info.nbytes > _LARGE and info.dtype.name in _WHOLE)


_WHOLE = {name for name in CODES if name.startswith(("int", "uint", "bool"))}
