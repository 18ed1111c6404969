"""From the wanted layers to the changes of an ONNX model: pure functions of names and records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from wnconvert.errors import LayerError
from wnconvert.frozen import dataclass
from wnconvert.layers.rules import ORIGINAL
from wnconvert.messages import listed
from wnconvert.onnx.file.model import GraphEdits, Model, NewNode, NewTensor, Node, OnnxFunction, Port
from wnconvert.onnx.graph.computed import GraphLayer
from wnconvert.onnx.graph.index import Index, Removal, ValueId, index_of, removal, unique_name
from wnconvert.onnx.graph.names import CODES_SUFFIX
from wnconvert.onnx.graph.views import View, calls_of
from wnconvert.onnx.graph.weights import EvaluatedWeight
from wnconvert.plan.layout import FoldBias, FoldLayer, Requantized
from wnconvert.tensors.views.quantization import Quantization

__all__ = ["fold_edits", "renamed"]


#: A tensor to store: the number of its layer, and its layout; or a weight that is evaluated.
_Key = tuple[int, View] | EvaluatedWeight


def fold_edits(
    model: Model, layers: Sequence[GraphLayer], evaluated: Sequence[EvaluatedWeight] = ()
) -> GraphEdits:
    """The changes that fold ``layers``, some or all of those that ``find_graph_layers`` found in ``model``.

    Weights that are ``evaluated`` are stored too.

    Each weight becomes one tensor in the scope of its original, and nodes that used the computed weight use
    that. Nodes and tensors that nothing uses any more are removed, with the layers that are stored in them. A
    function that computed weights from its inputs gets the weights as inputs. Where a norm is folded into a
    layer, that layer gets another bias, and makes what the norm made.

    Raises ``LayerError`` if a function computes several weights of which only some are wanted.
    """
    index = index_of(model)
    surgery = _Surgery(index, layers, evaluated)
    gone = removal(index, surgery.replaced, surgery.released())
    surgery.name_tensors(gone)
    return GraphEdits(
        tensors=tuple(surgery.tensors(gone)),
        dropped=frozenset(gone.records.union(surgery.dropped())),
        inputs=surgery.inputs(gone),
        outputs={
            norm.last.record.start: _other(norm.last.outputs, norm.norm.inputs[0], norm.norm.outputs[0])
            for norm in surgery.norms.values()
            if norm.bias is not None
        },
        nodes={
            **{
                norm.norm.record.start: NewNode(
                    norm.norm.name, "Add", (norm.norm.inputs[0], surgery.biases[number]), norm.norm.outputs
                )
                for number, norm in surgery.norms.items()
                if norm.bias is None
            },
            **surgery.dequantizing(),
        },
        formals=surgery.formals(gone),
    )


def _other(names: Iterable[str], old: str, new: str) -> tuple[str, ...]:
    """The names with one of them another."""
    return tuple(new if name == old else name for name in names)


@dataclass(frozen=True, slots=True)
class _Formal:
    """A weight that becomes an input of a function: each of its calls passes one tensor."""

    function: str
    tensors: frozenset[tuple[tuple[int, ...], tuple[int, View]]]


@dataclass(slots=True)
class _Coded:
    """A weight that is stored as codes: their scheme, and the node that made the weight, in its scope.

    ``scale`` and ``zero`` are the names of these; ``""``: none.
    """

    how: Quantization
    path: str
    maker: Node
    scale: str = ""
    zero: str = ""

    @property
    def attributes(self) -> tuple[tuple[str, int], ...]:
        """Those of the node that makes numbers of the codes."""
        if self.how.axis is None:
            return ()
        block = (("block_size", self.how.block),) if self.how.block else ()
        return (("axis", self.how.axis), *block)

    def tensors(self, path: str, name: str, layer: str, fold: FoldLayer) -> Iterator[NewTensor]:
        """Zero, scale and codes, which are called ``name``."""
        shape = dict(fold.parts)[ORIGINAL].info.shape
        beside = self.how.scale.info.shape if self.how.axis is None else self.how.scale_shape(shape)
        if self.zero:
            yield NewTensor(path, self.zero, layer, beside, Requantized(fold, self.how, "zero"))
        yield NewTensor(path, self.scale, layer, beside, Requantized(fold, self.how, "scale"))
        yield NewTensor(path, name, layer, shape, Requantized(fold, self.how, "codes"))


class _Surgery:
    """The replacement of each computed weight: a tensor, or an input of a function."""

    def __init__(
        self, index: Index, layers: Sequence[GraphLayer], evaluated: Sequence[EvaluatedWeight]
    ) -> None:
        self.index = index
        self.layers = layers
        self.names: dict[_Key, str] = dict.fromkeys(evaluated, "")
        self.replaced: dict[ValueId, _Key | _Formal] = {each.made: each for each in evaluated}
        self.added: dict[str, list[_Formal]] = {}
        self.handed: dict[int, list[_Key | _Formal]] = {}
        self.formal_names: dict[_Formal, str] = {}
        self.norms = {number: each.behind for number, each in enumerate(layers) if each.behind is not None}
        self.biases: dict[int, str] = {}
        self.coded: dict[_Key, _Coded] = {}
        passed: dict[tuple[str, ValueId], dict[tuple[int, ...], tuple[int, View]]] = {}
        for number, layer in enumerate(layers):
            for weight in layer.weights:
                self.names[number, weight.view] = ""
                if weight.codes is not None:
                    (value,) = weight.values
                    self.coded[number, weight.view] = _Coded(weight.codes, value[0], index.makers[value])
                    continue
                self.replaced.update(dict.fromkeys(weight.values, (number, weight.view)))
            for one in layer.passed:
                self.names[number, one.view] = ""
                passed.setdefault((one.function, one.value), {})[one.calls] = (number, one.view)
        for (function, value), tensors in passed.items():
            if calls_of(index, function) != tensors.keys():
                scope = index.scopes[function]
                name = scope.name if isinstance(scope, OnnxFunction) else function
                some = listed(sorted({layers[number].layer.name for number, _ in tensors.values()}))
                raise LayerError(
                    f"function {name} computes {some} and other weights, which can only be folded together",
                    fix="fold all layers, or inline the model's functions first "
                    "(onnx.inliner.inline_local_functions)",
                )
            self.replaced[value] = self._give(_Formal(function, frozenset(tensors.items())))

    def _give(self, formal: _Formal) -> _Formal:
        """Add a weight to the inputs of a function, and pass it in every call (through calling functions)."""
        if formal in self.added.setdefault(formal.function, []):
            return formal
        self.added[formal.function].append(formal)
        for path, node in self.index.calls[formal.function]:
            start, root = node.record.start, self.index.roots[path]
            here = {calls[:-1]: key for calls, key in formal.tensors if calls[-1] == start}
            hand: _Key | _Formal
            if isinstance(self.index.scopes[root], OnnxFunction):
                hand = self._give(_Formal(root, frozenset(here.items())))
            else:
                hand = here[()]
            self.handed.setdefault(start, []).append(hand)
        return formal

    def name_tensors(self, gone: Removal) -> None:
        """Choose names for the new tensors and formals, different from all that stay in the model."""
        left = self.index.names()
        left.subtract(name for _, name in gone.values)
        taken = {name for name, count in left.items() if count > 0}
        for key in self.names:
            name = key.name if isinstance(key, EvaluatedWeight) else self.layers[key[0]].layer.name
            if (coded := self.coded.get(key)) is not None:
                coded.scale = unique_name(f"{name}_scale", taken)
                coded.zero = unique_name(f"{name}_zero_point", taken) if coded.how.zero is not None else ""
                name += CODES_SUFFIX
            self.names[key] = unique_name(name, taken)
        for formals in self.added.values():
            for formal in formals:
                number = min(number for _, (number, _) in formal.tensors)
                name = self.layers[number].layer.name if len(formal.tensors) == 1 else "weight"
                self.formal_names[formal] = unique_name(name, taken)

        for number in self.norms:
            self.biases[number] = unique_name(self.layers[number].layer.bias, taken)

    def tensors(self, gone: Removal) -> Iterator[NewTensor]:
        """The tensors to store: weights, each with the bias of a layer that takes a norm."""
        for key, name in self.names.items():
            if isinstance(key, EvaluatedWeight):
                yield NewTensor(key.made[0], name, key.name, key.shape, key.work)
                continue
            number, view = key
            item = self.layers[number]
            if item.path in gone.scopes:
                continue
            layer, shape = item.layer, view.original.info.shape
            where = f"layer {layer.name}"
            if (coded := self.coded.get((number, view))) is not None:
                yield from coded.tensors(
                    item.path, name, layer.name, FoldLayer(view.rule, view.parts, view.dtype, where)
                )
                continue
            yield NewTensor(item.path, name, layer.name, shape, view.work(where))
            if (norm := self.norms.get(number)) is not None:
                bias = FoldBias(view.rule, view.parts, view.dtype, f"the bias of layer {layer.name}")
                shape = (*layer.bias_shape, *(1,) * norm.ones)
                yield NewTensor(item.path, self.biases[number], layer.name, shape, bias)

    def released(self) -> Iterator[tuple[str, str]]:
        """What norms and biases used, and what made weights: a scope, and the name of a value."""
        for coded in self.coded.values():
            yield from ((coded.path, name) for name in coded.maker.inputs)
        for norm in self.norms.values():
            yield from ((norm.path, name) for name in norm.norm.inputs[1:])
            if norm.bias is not None and norm.bias.value is not None:
                yield norm.path, norm.bias.value[1]

    def dropped(self) -> Iterator[int]:
        """The records of norms that go, and of the types of what came before them."""
        for norm in self.norms.values():
            if norm.bias is not None:
                yield norm.norm.record.start
                types = self.index.types.get((norm.path, norm.norm.inputs[0]), ())
                yield from (port.record.start for port in types)

    def dequantizing(self) -> dict[int, NewNode]:
        """The nodes that make numbers of codes, each in the place of the last that computed the weight."""
        return {
            coded.maker.record.start: NewNode(
                coded.maker.name,
                "DequantizeLinear",
                tuple(filter(None, (self.names[key], coded.scale, coded.zero))),
                coded.maker.outputs,
                coded.attributes,
            )
            for key, coded in self.coded.items()
        }

    def _name(self, source: _Key | _Formal) -> str:
        return self.formal_names[source] if isinstance(source, _Formal) else self.names[source]

    def inputs(self, gone: Removal) -> dict[int, tuple[str, ...]]:
        """The new inputs of the nodes whose inputs change."""
        touched: dict[int, tuple[str, Node]] = {}
        for value in self.replaced:
            for path, node in self.index.users.get(value, ()):
                touched[node.record.start] = (path, node)
        for function in {*self.added, *gone.formals}:
            for path, node in self.index.calls.get(function, ()):
                touched[node.record.start] = (path, node)
        for norm in self.norms.values():
            if norm.bias is not None:
                touched[norm.bias.node.record.start] = (norm.path, norm.bias.node)
        biases = {
            norm.bias.node.record.start: (norm.bias.slot, self.biases[number])
            for number, norm in self.norms.items()
            if norm.bias is not None
        }
        return {
            start: _with_bias(self._inputs(path, node, gone), *biases.get(start, (0, "")))
            for start, (path, node) in touched.items()
            if start not in gone.nodes
        }

    def _inputs(self, path: str, node: Node, gone: Removal) -> tuple[str, ...]:
        function = self.index.called(node)
        fewer = gone.formals.get(function.path, set()) if function is not None else set()
        names: list[str] = []
        for position, name in enumerate(node.inputs):
            if position in fewer:
                continue
            value = self.index.resolve(path, name) if name else None
            source = self.replaced.get(value) if value is not None else None
            names.append(self._name(source) if source is not None else name)
        more = self.handed.get(node.record.start, [])
        if more and function is not None:  # inputs that are left out at the end count too
            names += [""] * (len(function.inputs) - len(fewer) - len(names))
        return (*names, *(self._name(source) for source in more))

    def formals(self, gone: Removal) -> dict[str, tuple[str, ...]]:
        """The new formal inputs of the functions whose inputs change."""
        changed: dict[str, tuple[str, ...]] = {}
        for path in {*self.added, *gone.formals}:
            function = self.index.scopes[path]
            if not isinstance(function, OnnxFunction) or function.record.start in gone.records:
                continue
            fewer = gone.formals.get(path, set())
            kept = [name for position, name in enumerate(function.inputs) if position not in fewer]
            changed[path] = (*kept, *(self.formal_names[formal] for formal in self.added.get(path, ())))
        return changed


def _with_bias(names: tuple[str, ...], slot: int, bias: str) -> tuple[str, ...]:
    """The inputs of a node with another bias, if there is one."""
    if not bias:
        return names
    return (*names[:slot], *("",) * (slot - len(names)), bias, *names[slot + 1 :])


def renamed(model: Model, edits: GraphEdits, names: Mapping[str, str]) -> GraphEdits:
    """The edits, with initializers of the top graph renamed as well: old name to new name.

    Old names are those of the model's own initializers or of new tensors. Nodes that use them, also in
    subgraphs, use the new names.

    Raises ``LayerError`` for an old name that no such initializer has, or that is an input or output of the
    graph, and for a new name that is taken.
    """
    index = index_of(model)
    names = {old: new for old, new in names.items() if old != new}
    added = {tensor.name for tensor in edits.tensors if not tensor.path}
    stays = {
        name: constant
        for (path, name), constant in index.constants.items()
        if not path and constant.record.start not in edits.dropped
    }
    _check_names(index, edits, names, stays.keys() | added)
    inputs = dict(edits.inputs)
    for path, scope in index.scopes.items():
        if index.roots[path]:
            continue  # a function does not see initializers
        for node in scope.nodes:
            old = inputs.get(node.record.start, node.inputs)
            if node.record.start not in edits.dropped and not names.keys().isdisjoint(old):
                new = tuple(
                    names[name]
                    if name in names and (name in added or index.resolve(path, name) == ("", name))
                    else name
                    for name in old
                )
                inputs[node.record.start] = new
    typed = {port.record.start for port in index.scopes[""].values if port.name in names}
    return replace(
        edits,
        tensors=tuple(
            replace(tensor, name=names.get(tensor.name, tensor.name)) if not tensor.path else tensor
            for tensor in edits.tensors
        ),
        dropped=edits.dropped | typed,
        renamed={
            **edits.renamed,
            **{stays[old].record.start: new for old, new in names.items() if old in stays},
        },
        inputs=inputs,
        nodes={
            start: replace(node, inputs=tuple(names.get(name, name) for name in node.inputs))
            for start, node in edits.nodes.items()
        },
    )


def _check_names(index: Index, edits: GraphEdits, names: Mapping[str, str], known: set[str]) -> None:
    fix = "give every initializer a name of its own"
    ports = _ports(index)
    for old in names:
        if old not in known:
            raise LayerError(f"no initializer of the graph is called {old}", fix=fix)
        if ("", old) in index.outputs or old in ports:
            raise LayerError(f"{old} is an input or output of the graph and keeps its name", fix=fix)
    taken = _left(index, edits) - names.keys() | {tensor.name for tensor in edits.tensors} - names.keys()
    for new, count in Counter(names.values()).items():
        if new in taken or count > 1 or not new:
            raise LayerError(f"{new or 'the empty name'} is taken by another value", fix=fix)


def _ports(index: Index) -> set[str]:
    graph = index.scopes[""]
    return {port.name for port in graph.inputs if isinstance(port, Port)}


def _left(index: Index, edits: GraphEdits) -> set[str]:
    """The names of the values that remain after the edits."""
    made = {name for (_, name), node in index.makers.items() if node.record.start not in edits.dropped}
    stored = {name for (_, name), one in index.constants.items() if one.record.start not in edits.dropped}
    formals = {name for names in edits.formals.values() for name in names}
    return made | stored | formals | {name for _, name in index.formals}
