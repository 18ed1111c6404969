"""ONNX files: the model in, as names, nodes and where records and tensors lie; nothing large is read.

Source of the format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import PurePath

from wnconvert.errors import FormatError
from wnconvert.frozen import dataclass
from wnconvert.messages import printable
from wnconvert.onnx.file.model import Attribute, Constant, Graph, GraphScope, Model, Node, OnnxFunction, Port
from wnconvert.onnx.file.provenance import NO_PROVENANCE, Provenance, provenance_in
from wnconvert.onnx.file.tensors import Tensors, stated_sizes
from wnconvert.onnx.file.wire import BYTES, VARINT, Message, Wire, WireField
from wnconvert.tensors.files import GET_AGAIN, ReadableFile
from wnconvert.tensors.tree import ByteRange, Entry, StateDict, StoredTensor, Tree, repeated

__all__ = ["OnnxFile", "looks_like_onnx", "open_onnx", "stored_in"]


#: Nodes, attributes, tensors and names in all; the largest models have some hundred thousand.
_MOST_THINGS = 4_000_000
_DEEPEST = 24  # protobuf's own limit is 100 messages, and a subgraph takes three
#: Numbers of an attribute that are read; lists of more are data (of trees, of tables).
_MOST_NUMBERS = 4096
_MOST_BYTES = 64 << 10

# Fields of ModelProto and their wire types: by these a file is known.
_MODEL = {1: VARINT, 2: BYTES, 3: BYTES, 4: BYTES, 5: VARINT, 6: BYTES, 7: BYTES, 8: BYTES}
_MODEL |= {14: BYTES, 20: BYTES, 25: BYTES, 26: BYTES}
_GRAPH = 7


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """An opened ONNX file: its model, and its files (the model is shard 0, data files follow).

    ``externals`` has the bytes of each tensor in a data file by the start of its record. ``has_training``
    where it holds training graphs too, which use weights by name; ``provenance`` is wnconvert's own record.
    """

    path: PurePath
    size: int
    model: Model
    shards: tuple[PurePath, ...]
    externals: Mapping[int, ByteRange]
    version: str
    has_training: bool = False
    provenance: Provenance = NO_PROVENANCE

    def tree(self) -> Tree:
        """Every scope that stores tensors as a state dict at the scope's path."""
        states = (StateDict(scope.path, tuple(_entries(scope))) for scope in self.model.scopes())
        return Tree(tuple(state for state in states if state.entries or not state.path))


def stored_in(scope: GraphScope) -> Iterator[Constant]:
    """The tensors that a scope stores, by their values' names: initializers, then those of Constant nodes."""
    if isinstance(scope, Graph):
        yield from scope.constants
    for node in scope.nodes:
        value = node.attributes["value"].value if "value" in node.attributes else None
        if node.op == "Constant" and isinstance(value, Constant) and node.outputs:
            yield Constant(
                node.outputs[0], _named(value, node.outputs[0]), value.values, node.record, value.is_external
            )


def looks_like_onnx(file: ReadableFile) -> bool:
    """Whether a file is an ONNX model, as far as its outermost records tell; one that is cut short is one."""
    seen: set[int] = set()
    wire = Wire(file)
    try:
        for record in wire.records(Message(0, wire.size)):
            if _MODEL.get(record.number) != record.wire:
                return False
            seen.add(record.number)
    except FormatError:
        # A graph reaches nearly to the end, so that is where a file is cut.
        return 1 in seen and bool(seen & {2, 3, 8, _GRAPH})
    return _GRAPH in seen


def open_onnx(file: ReadableFile, path: PurePath, open_beside: Callable[[str], ReadableFile]) -> OnnxFile:
    """Read the structure of an ONNX file, which is called ``path``.

    ``open_beside`` opens a data file by its path in the model's folder, more than once perhaps; it raises
    ``FileNotFoundError`` for one that is not there. Its files are closed here.

    Raises ``FormatError`` for a file that contradicts the format, ``InputError`` for data files that are not
    there or must not be read.
    """
    try:
        with closing(Tensors(wire := Wire(file), open_beside)) as tensors:
            return _Reader(wire, path, tensors).file()
    except RecursionError as error:  # nested as deep as no model is
        raise FormatError("its graphs are nested too deep", fix="do not trust it") from error


class _Reader:
    def __init__(self, wire: Wire, path: PurePath, tensors: Tensors) -> None:
        self.wire = wire
        self.path = path
        self.tensors = tensors
        self.things = 0
        self.paths: set[str] = set()
        self.given: Counter[str] = Counter()

    def file(self) -> OnnxFile:
        wire = self.wire
        top: dict[int, list[WireField]] = {}
        for record in wire.records(Message(0, wire.size)):
            if _MODEL.get(record.number, record.wire) != record.wire:
                raise wire.damaged(record.start, f"field {record.number} has the wrong wire type")
            self.count()
            top.setdefault(record.number, []).append(record)
        if len(top.get(_GRAPH, ())) != 1:
            raise FormatError(
                f"it has {len(top.get(_GRAPH, ()))} graphs, and an ONNX model has one", fix=GET_AGAIN
            )
        opsets = dict(self.opset(record) for record in top.get(8, ()))
        ir_version = wire.whole(top[1][-1]) if 1 in top else 0
        producer = " ".join(wire.text(top[number][-1]) for number in (2, 3) if number in top).strip()
        graph = self.graph(top[_GRAPH][0], "", 0)
        functions = tuple(self.function(record) for record in top.get(25, ()))
        for record in top.get(20, ()):
            for item in wire.records(record):
                if item.number in (1, 2):  # its graphs, for the data files that they name
                    self.graph(item, "training", 0)
        return OnnxFile(
            path=self.path,
            size=wire.size,
            model=Model(ir_version, opsets, graph, functions),
            shards=(self.path, *(self.path.parent / location for location in self.tensors.locations)),
            externals=self.tensors.externals,
            version=_version(ir_version, opsets, producer),
            has_training=20 in top,
            provenance=provenance_in(wire, top.get(14, ())),
        )

    def count(self, more: int = 1) -> None:
        self.things += more
        if self.things > _MOST_THINGS:
            raise FormatError(
                f"it has more than {_MOST_THINGS} nodes, tensors and names",
                fix="no model needs that: do not trust it",
            )

    def opset(self, record: WireField) -> tuple[str, int]:
        domain, version = "", 0
        for item in self.wire.records(record):
            if item.number == 1:
                domain = self.wire.text(item)
            elif item.number == 2:
                version = self.wire.whole(item)
        return ("" if domain == "ai.onnx" else domain), version

    def message(self, record: WireField) -> Iterator[WireField]:
        """The records of a message inside the model."""
        if record.wire != BYTES:
            raise self.wire.damaged(
                record.start, f"field {record.number} holds a number where a message belongs"
            )
        for item in self.wire.records(record):
            self.count()
            yield item

    def graph(self, record: WireField, path: str, depth: int) -> Graph:
        if depth > _DEEPEST:
            raise FormatError("its graphs are nested too deep", fix="do not trust it")
        path = self.unique(path)
        inputs, outputs, values = [], [], []
        nodes: list[Node] = []
        constants: list[Constant] = []
        for item in self.message(record):
            if item.number == 1:
                nodes.append(self.node(item, path, len(nodes), depth))
            elif item.number == 5:
                constants.append(self.tensors.constant(item))
            elif item.number == 11:
                inputs.append(self.port(item))
            elif item.number == 12:
                outputs.append(self.port(item).name)
            elif item.number == 13:
                values.append(self.port(item))
            elif item.number == 15:
                self.sparse(item)
        self.check_names(path, constants)
        return Graph(
            path,
            tuple(inputs),
            tuple(outputs),
            tuple(nodes),
            tuple(constants),
            tuple(values),
            record.range,
        )

    def check_names(self, path: str, constants: Sequence[Constant]) -> None:
        twice = repeated(constant.name for constant in constants)
        if twice is not None:
            where = f" of {printable(path)}" if path else ""
            raise FormatError(
                f"two initializers{where} are called {printable(twice)!r}", fix="export it again"
            )

    def unique(self, path: str) -> str:
        chosen = path
        while chosen in self.paths:
            self.given[path] += 1
            chosen = f"{path}#{self.given[path] + 1}"
        self.paths.add(chosen)
        return chosen

    def port(self, record: WireField) -> Port:
        items = list(self.message(record))
        names = [item for item in items if item.number == 1]
        sizes = stated_sizes(self.wire, (item for item in items if item.number == 2))
        return Port(self.wire.text(names[-1]) if names else "", record.range, sizes)

    def sparse(self, record: WireField) -> None:
        """Read a sparse tensor, only for the data files that it names."""
        for item in self.message(record):
            if item.number in (1, 2):
                self.tensors.constant(item)

    def node(self, record: WireField, path: str, index: int, depth: int) -> Node:
        texts = {3: "", 4: "", 7: "", 8: ""}
        inputs, outputs, attributes = [], [], []
        for item in self.message(record):
            if item.number == 1:
                inputs.append(self.wire.text(item))
            elif item.number == 2:
                outputs.append(self.wire.text(item))
            elif item.number in texts:
                texts[item.number] = self.wire.text(item)
            elif item.number == 5:
                attributes.append(item)
        name, op, domain, overload = texts.values()
        inside = ".".join(filter(None, (path, name or f"{op}_{index}")))
        found = [self.attribute(item, inside, depth) for item in attributes]
        by_name = {attribute.name: attribute for attribute in found}
        if len(by_name) < len(found):
            raise self.wire.damaged(record.start, f"node {printable(inside)} has an attribute twice")
        return Node(name, op, domain, overload, tuple(inputs), tuple(outputs), by_name, record.range)

    def attribute(self, record: WireField, inside: str, depth: int) -> Attribute:
        read = _AttributeReader(self.wire)
        tensors: list[WireField] = []
        graphs: list[WireField] = []
        for item in self.message(record):
            if item.number in (5, 10):
                tensors.append(item)
            elif item.number in (6, 11):
                graphs.append(item)
            elif item.number in (22, 23):
                self.sparse(item)
            else:
                read.take(item)
        constants = [self.tensors.constant(item) for item in tensors]
        if any(item.number == 5 for item in tensors[1:]) or any(item.number == 6 for item in graphs[1:]):
            raise self.wire.damaged(record.start, "an attribute has two values")
        many = len(graphs) > 1
        made = tuple(
            self.graph(item, f"{inside}.{read.name}{at if many else ''}", depth + 1)
            for at, item in enumerate(graphs)
        )
        is_tensor = read.type in (0, _TENSOR) and bool(tensors) and tensors[0].number == 5
        one = constants[0] if is_tensor else None
        return Attribute(read.name, read.value() if one is None else one, made, read.reference)

    def function(self, record: WireField) -> OnnxFunction:
        texts = {1: "", 10: "", 13: ""}
        inputs: list[str] = []
        outputs: list[str] = []
        nodes: list[WireField] = []
        attributes: list[WireField] = []
        values = []
        for item in self.message(record):
            if item.number in texts:
                texts[item.number] = self.wire.text(item)
            elif item.number == 4:
                inputs.append(self.wire.text(item))
            elif item.number == 5:
                outputs.append(self.wire.text(item))
            elif item.number == 7:
                nodes.append(item)
            elif item.number == 11:
                attributes.append(item)
            elif item.number == 12:
                values.append(self.port(item))
        name, domain, overload = texts.values()
        path = self.unique(".".join(filter(None, (domain, name, overload))) or "function")
        for item in attributes:  # defaults, for the data files that they name
            self.attribute(item, path, 0)
        return OnnxFunction(
            path,
            domain,
            name,
            overload,
            tuple(inputs),
            tuple(outputs),
            tuple(self.node(item, path, at, 0) for at, item in enumerate(nodes)),
            tuple(values),
            record.range,
        )


#: AttributeProto.type of a tensor, and of other kinds to the field that they tell of.
_TENSOR = 4
_FIELDS = {1: 2, 2: 3, 3: 4, 6: 7, 7: 8, 8: 9}

_Value = int | float | bytes | tuple[int, ...] | tuple[float, ...] | tuple[bytes, ...] | None


class _AttributeReader:
    """The plain values of an attribute: a number, text, or a list of them."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.name = self.reference = ""
        self.type = 0
        self.single: dict[int, int | float | bytes | None] = {}
        self.floats: list[float] = []
        self.ints: list[int] = []
        self.texts: list[bytes] = []
        self.lists: set[int] = set()
        self.too_long = False

    def take(self, item: WireField) -> None:
        wire = self.wire
        if item.number == 1:
            self.name = wire.text(item)
        elif item.number == 21:
            self.reference = wire.text(item)
        elif item.number == 20:
            self.type = wire.whole(item)
        elif item.number == 2:
            self.single[2] = next(iter(wire.floats(item)), 0.0)
        elif item.number == 3:
            self.single[3] = wire.whole(item)
        elif item.number == 4:
            self.single[4] = wire.content(item) if item.end - item.body <= _MOST_BYTES else None
        elif item.number in (7, 8, 9):
            self.lists.add(item.number)
            self.take_list(item)

    def take_list(self, item: WireField) -> None:
        have = len(self.floats) + len(self.ints) + len(self.texts)
        self.too_long = self.too_long or have >= _MOST_NUMBERS or item.end - item.body > _MOST_BYTES
        if self.too_long:
            return
        if item.number == 7:
            self.floats += self.wire.floats(item)
        elif item.number == 8:
            self.ints += self.wire.wholes(item)
        else:
            self.texts.append(self.wire.content(item))

    def value(self) -> _Value:
        there = _FIELDS.get(self.type) if self.type else next(iter((*self.single, *self.lists)), None)
        if self.too_long or there is None or self.reference:
            return None
        lists: Mapping[int, Callable[[], _Value]] = {
            7: lambda: tuple(self.floats),
            8: lambda: tuple(self.ints),
            9: lambda: tuple(self.texts),
        }
        if there in lists:
            return lists[there]()
        # Where a number is 0 and a text empty, proto3's writers leave them out.
        return self.single.get(there, {2: 0.0, 3: 0}.get(there, b""))


def _entries(scope: GraphScope) -> Iterable[Entry]:
    """The tensors of a scope under names that are keys: a name that stands twice is invalid anyway."""
    found: dict[str, Entry] = {}
    for constant in stored_in(scope):
        found.setdefault(constant.name, Entry(constant.name, constant.tensor, constant.tensor is None))
    return found.values()


def _named(constant: Constant, name: str) -> StoredTensor | None:
    stored = constant.tensor
    return None if stored is None else replace(stored, info=replace(stored.info, name=name))


def _version(ir_version: int, opsets: Mapping[str, int], producer: str) -> str:
    """The versions in a file, as a line for people."""
    own = [f"opset {opsets['']}"] if "" in opsets else []
    others = [f"{printable(domain)} {version}" for domain, version in opsets.items() if domain]
    by = [f"by {printable(producer)}"] if producer else []
    return ", ".join([f"IR {ir_version}", *own, *others, *by])
