"""An ONNX model as data: graphs, nodes and stored tensors by name, and where their records stand in the file.

A *record* is a protobuf field with its tag: the bytes that a writer keeps, leaves out or replaces. Every
scope (the graph, a subgraph, a function's body) has a path that is its own; the top graph's is ``""``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import TypeAlias

from wnconvert.frozen import dataclass
from wnconvert.layers.rules import ORIGINAL, Rule
from wnconvert.plan.layout import Evaluate, FoldBias, FoldLayer, FoldThrough, Requantized
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import ByteRange, Shape, StoredTensor, TensorInfo

__all__ = [
    "Attribute",
    "Constant",
    "Graph",
    "GraphEdits",
    "GraphScope",
    "Model",
    "NewNode",
    "NewTensor",
    "Node",
    "OnnxFunction",
    "Port",
]


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that is stored in the model: an initializer, or the value of a ``Constant`` node.

    ``tensor`` is None where its elements do not lie end to end as numbers (strings, half precision spelled as
    varints). ``values`` are its elements in C order where they are few (at most 64) and numbers, else None.
    ``info`` is there wherever dtype and shape are known, with ``tensor`` or without. ``held`` are elements of
    one byte each that stand as varints.
    """

    name: str
    tensor: StoredTensor | None
    values: tuple[int | float, ...] | None
    record: ByteRange
    is_external: bool = False
    info: TensorInfo | None = None
    held: StoredTensor | None = None

    @property
    def elements(self) -> StoredTensor | None:
        """Its elements, wherever they stand; None if they can only be told one by one."""
        return self.tensor or self.held


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute of a node: a number, text (bytes), a sequence of numbers, a tensor, or graphs.

    ``reference`` names the attribute of the enclosing function that it stands for.
    """

    name: str
    value: int | float | bytes | tuple[int, ...] | tuple[float, ...] | tuple[bytes, ...] | Constant | None
    graphs: tuple[Graph, ...] = ()
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """A node; an input or output that is left out is ``""``."""

    name: str
    op: str
    domain: str
    overload: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]
    record: ByteRange

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """The bodies of If, Loop and Scan."""
        found = [attribute.graphs for attribute in self.attributes.values() if attribute.graphs]
        return tuple(graph for graphs in found for graph in graphs) if found else ()


@dataclass(frozen=True, slots=True)
class Port:
    """A named place: an input of a graph, or the type of a value (``value_info``).

    ``sizes`` are those that are stated, None for one that is not; None where no shape is.
    """

    name: str
    record: ByteRange
    sizes: tuple[int | None, ...] | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph or subgraph. ``path`` names it for people: ``""``, or ``If_3.then_branch``."""

    path: str
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: tuple[Constant, ...]
    values: tuple[Port, ...]
    record: ByteRange


@dataclass(frozen=True, slots=True)
class OnnxFunction:
    """A function: nodes over formal inputs; a node calls it by ``domain``, ``name`` and ``overload``."""

    path: str
    domain: str
    name: str
    overload: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    values: tuple[Port, ...]
    record: ByteRange


GraphScope: TypeAlias = Graph | OnnxFunction


@dataclass(frozen=True, slots=True)
class Model:
    """A whole model. ``opsets`` maps a domain (``""`` is ONNX's own) to its version."""

    ir_version: int
    opsets: Mapping[str, int]
    graph: Graph
    functions: tuple[OnnxFunction, ...]

    def scopes(self) -> Iterator[GraphScope]:
        """Every scope: the graph, then functions, each before the subgraphs in it."""
        waiting: list[GraphScope] = [*reversed(self.functions), self.graph]
        while waiting:
            scope = waiting.pop()
            yield scope
            waiting += [graph for node in reversed(scope.nodes) for graph in reversed(node.graphs)]


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to be stored in the scope at ``path``, and the work that makes it of stored tensors.

    Of a weight, the original is a view in the shape of w (its strides may be those of a transposed tensor),
    whose axes the rule names. ``layer`` is the name for people.
    """

    path: str
    name: str
    layer: str
    shape: Shape
    work: FoldLayer | FoldThrough | Requantized | FoldBias | Evaluate

    @property
    def rule(self) -> Rule:
        """How its layer is computed; no operation where no rule knows that."""
        return Rule(()) if isinstance(self.work, Evaluate) else self.work.rule

    @property
    def parts(self) -> tuple[tuple[str, StoredTensor], ...]:
        """The stored tensors of its layer, by their roles."""
        return self.work.parts

    @property
    def dtype(self) -> DType:
        """Its dtype."""
        return self.work.dtype

    @property
    def original(self) -> StoredTensor:
        """The elements that the rule starts from."""
        return dict(self.parts)[ORIGINAL]

    @property
    def is_external(self) -> bool:
        """Whether it goes into a data file: where its original lies in one, or one of its parts."""
        if isinstance(self.work, Evaluate):
            return any(part.storage.shard for _, part in self.parts)
        return bool(self.original.storage.shard)


@dataclass(frozen=True, slots=True)
class NewNode:
    """A node of the ONNX domain in the place of another, with ``attributes`` that are whole numbers."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class GraphEdits:
    """The changes that a writer makes; everything that is not named here keeps its bytes.

    ``dropped`` holds the starts of records to leave out (nodes, initializers, value infos, graph inputs);
    ``renamed`` new names of initializers by the start of their record; ``inputs`` the new inputs of nodes by
    the start of theirs, ``outputs`` their new outputs; ``nodes`` the nodes in the place of others, by the
    start of these; ``formals`` the new formal inputs of functions by path. A new tensor becomes an
    initializer of its graph, or a ``Constant`` node at the head of its function.
    """

    tensors: tuple[NewTensor, ...] = ()
    dropped: frozenset[int] = frozenset()
    renamed: Mapping[int, str] = field(default_factory=dict)
    inputs: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    outputs: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    nodes: Mapping[int, NewNode] = field(default_factory=dict)
    formals: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
