"""The maker and the users of each value of an ONNX model, over subgraphs and functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from wnconvert.onnx.file.model import Constant, Graph, GraphScope, Model, Node, OnnxFunction, Port

__all__ = [
    "Index",
    "Removal",
    "ValueId",
    "function_key",
    "in_dependency_order",
    "index_of",
    "may_be_replaced",
    "removal",
    "unique_name",
]


#: A value: the path of the scope that defines it, and its name.
ValueId: TypeAlias = tuple[str, str]


def function_key(domain: str, name: str, overload: str) -> tuple[str, str, str]:
    """The key by which a node finds the function that it calls."""
    return ("" if domain == "ai.onnx" else domain, name, overload)


def unique_name(name: str, taken: set[str]) -> str:
    """A name that is not taken yet, and is from now on: the given one, or one with a number.

    >>> taken = {"weight"}
    >>> unique_name("weight", taken), unique_name("weight", taken)
    ('weight_2', 'weight_3')
    """
    chosen, number = name, 1
    while chosen in taken:
        number += 1
        chosen = f"{name}_{number}"
    taken.add(chosen)
    return chosen


@dataclass(slots=True)
class Index:
    """The names of a model, resolved.

    ``parents`` has the scope around each subgraph; ``roots`` the graph or function that contains a scope;
    ``users`` the nodes that use a value (one entry for each use), with the path of their scope; ``calls``
    the nodes that call a function, by the function's path. ``inputs`` are the inputs of graphs, ``types``
    the types that are stated of other values. ``formals`` are the inputs of functions, and those inputs of
    graphs that have no stored tensor as a default.
    """

    scopes: dict[str, GraphScope] = field(default_factory=dict)
    parents: dict[str, str | None] = field(default_factory=dict)
    roots: dict[str, str] = field(default_factory=dict)
    functions: dict[tuple[str, str, str], OnnxFunction] = field(default_factory=dict)
    constants: dict[ValueId, Constant] = field(default_factory=dict)
    formals: set[ValueId] = field(default_factory=set)
    makers: dict[ValueId, Node] = field(default_factory=dict)
    users: dict[ValueId, list[tuple[str, Node]]] = field(default_factory=dict)
    inputs: dict[ValueId, Port] = field(default_factory=dict)
    types: dict[ValueId, list[Port]] = field(default_factory=dict)
    outputs: set[ValueId] = field(default_factory=set)
    calls: dict[str, list[tuple[str, Node]]] = field(default_factory=dict)

    def resolve(self, path: str, name: str) -> ValueId | None:
        """The value with a name as seen from a scope: its own, or one of a scope around it."""
        for at in self.around(path):
            here = (at, name)
            if here in self.makers or here in self.constants or here in self.formals:
                return here
        return None

    def around(self, path: str) -> Iterator[str]:
        """A scope, the scope around it, and so on: all whose values it sees."""
        at: str | None = path
        while at is not None:
            yield at
            at = self.parents[at]

    def called(self, node: Node) -> OnnxFunction | None:
        """The function that a node calls; None for an operator."""
        return self.functions.get(function_key(node.domain, node.op, node.overload))

    def names(self) -> Counter[str]:
        """Every name of a value, with the number of scopes that define it."""
        return Counter(name for _, name in {*self.makers, *self.constants, *self.formals})


def index_of(model: Model) -> Index:
    """The index of a model."""
    index = Index()
    for function in model.functions:
        key = function_key(function.domain, function.name, function.overload)
        index.functions.setdefault(key, function)
    for scope in model.scopes():
        _define(index, scope)
    for path, scope in index.scopes.items():
        for node in scope.nodes:
            for name in filter(None, node.inputs):
                if (value := index.resolve(path, name)) is not None:
                    index.users.setdefault(value, []).append((path, node))
            if (function_called := index.called(node)) is not None:
                index.calls.setdefault(function_called.path, []).append((path, node))
        for name in scope.outputs:
            if (value := index.resolve(path, name)) is not None:
                index.outputs.add(value)
    return index


def _define(index: Index, scope: GraphScope) -> None:
    path = scope.path
    index.scopes[path] = scope
    index.parents.setdefault(path, None)
    index.roots.setdefault(path, path)
    if isinstance(scope, Graph):
        for constant in scope.constants:
            index.constants[path, constant.name] = constant
        ports = {(path, port.name): port for port in scope.inputs}
        index.inputs |= ports
        index.formals |= ports.keys() - index.constants.keys()
    else:
        index.formals |= {(path, name) for name in scope.inputs}
    for port in scope.values:
        index.types.setdefault((path, port.name), []).append(port)
    for node in scope.nodes:
        for name in filter(None, node.outputs):
            index.makers[path, name] = node
        for graph in node.graphs:
            index.parents[graph.path] = path
            index.roots[graph.path] = index.roots[path]


def may_be_replaced(index: Index, ir_version: int, value: ValueId) -> bool:
    """Whether a stored tensor is an input too, so that a caller may give another; old models name all so."""
    return (ir_version >= 4 or bool(value[0])) and value in index.inputs


def in_dependency_order(nodes: Sequence[Node]) -> Sequence[Node]:
    """Nodes of one scope, each after the makers of its inputs; unchanged if they are in such an order.

    onnxruntime accepts any order, and converters to float16 put their casts at the end. Of nodes that wait
    for each other, the first in the file comes first.
    """
    makers = {name: at for at, node in enumerate(nodes) for name in node.outputs if name}
    before = [[makers[name] for name in _used(node) if name in makers] for node in nodes]
    if all(maker < at for at, used in enumerate(before) for maker in used):
        return nodes
    order: list[int] = []
    begun: set[int] = set()
    for first in range(len(nodes)):
        waiting = [first]
        while waiting:
            at = waiting[-1]
            begun.add(at)
            more = [maker for maker in before[at] if maker not in begun]
            before[at] = []
            waiting += reversed(more)
            if not more:
                waiting.pop()
                order.append(at)
    return [nodes[at] for at in dict.fromkeys(order)]


def _used(node: Node) -> Iterator[str]:
    """The names that a node and its subgraphs use."""
    yield from node.inputs
    waiting = list(node.graphs)
    while waiting:
        graph = waiting.pop()
        yield from graph.outputs
        for inner in graph.nodes:
            yield from inner.inputs
            waiting += inner.graphs


@dataclass(slots=True)
class Removal:
    """Everything to remove because nothing uses it any more.

    ``records`` are the starts of records that a writer leaves out; ``nodes`` the starts of removed nodes,
    also in their subgraphs; ``scopes`` the paths of these subgraphs and of removed functions; ``formals`` the
    positions of removed inputs, by the path of their function.
    """

    records: set[int] = field(default_factory=set)
    nodes: set[int] = field(default_factory=set)
    values: set[ValueId] = field(default_factory=set)
    scopes: set[str] = field(default_factory=set)
    formals: dict[str, set[int]] = field(default_factory=dict)


def removal(index: Index, replaced: Collection[ValueId], released: Iterable[tuple[str, str]] = ()) -> Removal:
    """Everything that becomes unused once some values are replaced, transitively.

    Each of ``released``, a name as seen from a scope, has one use less.

    Whatever was unused before stays, as do outputs of graphs and functions. A function that nothing calls
    any more is removed.
    """
    return _Removing(index).run(replaced, released)


class _Removing:
    """A removal under way; ``counts`` and ``calls`` are those that differ from the index by now."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.counts: dict[ValueId, int] = {}
        self.calls: dict[str, int] = {}
        self.gone = Removal()
        self.waiting: list[ValueId] = []

    def run(self, replaced: Collection[ValueId], released: Iterable[tuple[str, str]]) -> Removal:
        for value in replaced:
            self.counts[value] = 0
        for path, name in released:
            self._release(path, name)
        self.waiting += sorted(replaced, reverse=True)
        while self.waiting:
            self._unused(self.waiting.pop())
        for value in self.gone.values:
            self.gone.records.update(port.record.start for port in self.index.types.get(value, ()))
            if not value[0] and value in self.index.inputs:  # before IR 4 initializers are inputs too
                self.gone.records.add(self.index.inputs[value].record.start)
        return self.gone

    def _uses(self, value: ValueId) -> int:
        """How many uses of a value are left."""
        changed = self.counts.get(value)
        return len(self.index.users.get(value, ())) if changed is None else changed

    def _unused(self, value: ValueId) -> None:
        index = self.index
        if self._uses(value) or value in index.outputs or value in self.gone.values:
            return
        if value in index.constants:
            self.gone.values.add(value)
            self.gone.records.add(index.constants[value].record.start)
        elif value in index.makers:
            node, path = index.makers[value], value[0]
            made = [(path, name) for name in node.outputs if name]
            if not any(self._uses(other) or other in index.outputs for other in made):
                self.gone.values.update(made)
                self.gone.records.add(node.record.start)
                self._drop(path, node)
        elif isinstance(function := index.scopes[value[0]], OnnxFunction):
            self.gone.values.add(value)
            position = function.inputs.index(value[1])
            self.gone.formals.setdefault(function.path, set()).add(position)
            for path, node in index.calls.get(function.path, ()):
                if node.record.start not in self.gone.nodes and position < len(node.inputs):
                    self._release(path, node.inputs[position])

    def _drop(self, path: str, node: Node) -> None:
        """Remove a node, and release all that it and its subgraphs use and call."""
        if node.record.start in self.gone.nodes:
            return
        function = self.index.called(node)
        fewer = self.gone.formals.get(function.path, set()) if function is not None else set()
        for position, name in enumerate(node.inputs):
            if position not in fewer:  # else it was released with the formal
                self._release(path, name)
        self.gone.nodes.add(node.record.start)
        if function is not None:
            left = self.calls.get(function.path, len(self.index.calls[function.path])) - 1
            self.calls[function.path] = left
            if not left:
                self.gone.records.add(function.record.start)
                self._drop_inside(function)
        for graph in node.graphs:
            self._drop_inside(graph)

    def _drop_inside(self, scope: GraphScope) -> None:
        self.gone.scopes.add(scope.path)
        for node in scope.nodes:
            self._drop(scope.path, node)

    def _release(self, path: str, name: str) -> None:
        value = self.index.resolve(path, name) if name else None
        if value is None or not (left := self._uses(value)):
            return
        self.counts[value] = left - 1
        if left == 1 and value[0] not in self.gone.scopes:
            self.waiting.append(value)
