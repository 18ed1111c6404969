"""An ONNX model of many nodes cut into models of a few, which are run one behind the other.

onnxruntime loads a graph in a time that grows with the square of the nodes that could run at once, as all
can that hang on constants alone: it keeps them in a list, and goes through that for each. A graph in segments
is loaded in a time that grows with its size. Each node is in one segment, with the bytes of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from wnconvert.frozen import dataclass
from wnconvert.onnx.file.fields import GRAPH_INPUT, GRAPH_NAME, GRAPH_OUTPUT, MODEL_GRAPH
from wnconvert.onnx.file.model import Model, Node, OnnxFunction
from wnconvert.onnx.file.outline import outlined
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.file.wire import Message, Wire, bytes_record
from wnconvert.onnx.graph.index import function_key
from wnconvert.tensors.files import ReadableFile
from wnconvert.tensors.tree import ByteRange

__all__ = ["Segment", "segments_of", "with_inputs"]


#: The fields of a model that every segment has: its ir_version and opsets.
_OF_ALL = {1, 8}


@dataclass(frozen=True, slots=True)
class Segment:
    """A model of some nodes, by its bytes.

    What it ``takes`` from segments before it are inputs that it lacks: their types are known when those are
    loaded, and ``with_inputs`` adds them.
    """

    model: bytes
    takes: tuple[str, ...]


def with_inputs(model: bytes, types: Mapping[str, bytes]) -> bytes:
    """A model with more inputs, by their names and types (as TypeProto).

    A message that stands twice is one message with all that stands in both: so protobuf reads it.
    """
    ports = (bytes_record(1, name.encode()) + bytes_record(2, kind) for name, kind in types.items())
    return model + bytes_record(MODEL_GRAPH, (bytes_record(GRAPH_INPUT, port) for port in ports))


def segments_of(file: ReadableFile, opened: OnnxFile, location: str, size: int) -> tuple[Segment, ...]:
    """The model in ``file``, which was ``opened``, in segments of ``size`` nodes; () if it cannot be cut.

    That is so where nodes stand before what they use, or an output of the model is none of a node. The first
    segment has all inputs of the model. Large initializers lie at ``location``, as in an outline.
    """
    cut = _Cut(file, opened, location, size)
    return tuple(cut.segments()) if cut.is_possible() else ()


class _Cut:
    """A cut of a graph: the segment that makes each value, and the last one that uses it."""

    def __init__(self, file: ReadableFile, opened: OnnxFile, location: str, size: int) -> None:
        graph = opened.model.graph
        self.model: Model = opened.model
        self.wire = Wire(file)
        self.location = location
        self.groups = [graph.nodes[at : at + size] for at in range(0, len(graph.nodes), size)]
        self.constants = {constant.name: constant for constant in graph.constants}
        self.inputs = {port.name: port for port in graph.inputs}
        self.types = {port.name: port for port in graph.values}
        self.made: dict[str, int] = {}
        self.last = {name: at for at, nodes in enumerate(self.groups) for name in _used(nodes)}
        self.last |= dict.fromkeys(graph.outputs, len(self.groups))
        parts = self.wire.records(Message(0, opened.size))
        self.of_all = b"".join([self.bytes(part.range) for part in parts if part.number in _OF_ALL])

    def is_possible(self) -> bool:
        """Whether every node stands behind what it uses, and the outputs of the model are those of nodes."""
        known = {"", *self.constants, *self.inputs}
        for at, nodes in enumerate(self.groups):
            for node in nodes:
                outputs = set(filter(None, node.outputs))
                if not known.issuperset(node.inputs) or known & outputs:
                    return False
                known |= outputs
                self.made |= dict.fromkeys(outputs, at)
        return self.made.keys() >= set(self.model.graph.outputs)

    def segments(self) -> Iterator[Segment]:
        """The segments that make something that is used."""
        given = [name for name in self.inputs if name not in self.constants]
        for at, nodes in enumerate(self.groups):
            outputs = [name for node in nodes for name in node.outputs if self.last.get(name, at) > at]
            if outputs:
                yield self.segment(at, nodes, given, outputs)
                given = []

    def segment(
        self, at: int, nodes: Sequence[Node], given: Iterable[str], outputs: Iterable[str]
    ) -> Segment:
        used = list(_used(nodes))
        inputs = dict.fromkeys((*given, *(name for name in used if name in self.inputs)))
        made = (name for node in nodes for name in node.outputs)
        graph = [
            *(self.bytes(node.record) for node in nodes),
            bytes_record(GRAPH_NAME, b"segment"),
            *(
                outlined(self.wire, self.constants[name], self.location)
                for name in used
                if name in self.constants
            ),
            *(self.bytes(self.inputs[name].record) for name in inputs),
            *(bytes_record(GRAPH_OUTPUT, bytes_record(1, name.encode())) for name in outputs),
            *(self.bytes(self.types[name].record) for name in made if name in self.types),
        ]
        functions = [self.bytes(function.record) for function in _called(self.model, nodes)]
        model = b"".join((self.of_all, bytes_record(MODEL_GRAPH, graph), *functions))
        return Segment(model, tuple(name for name in used if self.made.get(name, at) < at))

    def bytes(self, record: ByteRange) -> bytes:
        return self.wire.span(record.start, record.size)


def _used(nodes: Iterable[Node]) -> Iterable[str]:
    """The names that nodes use, each once; those of their subgraphs too."""
    return dict.fromkeys(name for node in nodes for name in _names(node))


def _names(node: Node) -> Iterator[str]:
    yield from node.inputs
    for graph in node.graphs:
        yield from graph.outputs
        yield from _used(graph.nodes)


def _called(model: Model, nodes: Iterable[Node]) -> Iterable[OnnxFunction]:
    """The functions that nodes call, or that such functions call."""
    functions = {function_key(each.domain, each.name, each.overload): each for each in model.functions}
    found: dict[str, OnnxFunction] = {}
    waiting = list(nodes) if functions else []
    while waiting:
        node = waiting.pop()
        waiting += [inner for graph in node.graphs for inner in graph.nodes]
        function = functions.get(function_key(node.domain, node.op, node.overload))
        if function is not None and function.path not in found:
            found[function.path] = function
            waiting += function.nodes
    return found.values()
