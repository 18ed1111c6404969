"""The layers of an ONNX model: weights that are computed, and norms that fold into the layer before them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from wnconvert.layers.rules import BIAS, ORIGINAL, NormBehind, Rule
from wnconvert.layers.schemes import Layer, Refused, owner_of
from wnconvert.onnx.arithmetic.known import HALF_DTYPES
from wnconvert.onnx.arithmetic.meaning import quotient_of
from wnconvert.onnx.file.model import Model, Node
from wnconvert.onnx.graph.computed import GraphLayer, Weight, computed_layers, why_unfit
from wnconvert.onnx.graph.index import Index, ValueId, index_of, unique_name
from wnconvert.onnx.graph.neighbours import Behind, Stays, StaysError, norms_behind
from wnconvert.onnx.graph.values import Leaf, Symbols, symbolic_values
from wnconvert.onnx.graph.views import View, weight_view
from wnconvert.tensors.tree import Shape, StoredTensor, TensorInfo, contiguous_strides

__all__ = ["GraphLayers", "KnownLayer", "find_graph_layers", "quotient_at"]


#: The most nodes between a number and a vector of it.
_MOST_STEPS = 4


@dataclass(frozen=True, slots=True)
class KnownLayer:
    """A layer that a stored tensor shows, folded or not; ``refused`` says why it must not be."""

    name: str
    rule: Rule
    refused: str = ""


@dataclass(frozen=True, slots=True)
class GraphLayers:
    """The layers of a model in the order of their arithmetic, and those that cannot be folded.

    ``others`` are the layers that need another kind than those that were asked for, ``stay`` the norms with
    running statistics that fold into no layer. ``known`` are all of these layers by the stored tensors that
    they start from, ``symbols`` what the model computes of its stored tensors.
    """

    layers: tuple[GraphLayer, ...]
    refused: tuple[Refused, ...]
    others: tuple[Layer, ...] = ()
    stay: tuple[Stays, ...] = ()
    known: Mapping[ValueId, KnownLayer] = field(default_factory=dict)
    symbols: Symbols = field(default=Symbols((), (), {}), compare=False, repr=False)


def find_graph_layers(model: Model, kinds: Collection[str] = ("weight",)) -> GraphLayers:
    """Find the layers of some kinds in a model by names and shapes alone: no tensor is read.

    A norm with running statistics is folded with the weight of the layer before it, however that is computed.
    """
    index = index_of(model)
    symbols = symbolic_values(model, index)
    computed = computed_layers(model, index, symbols, kinds)
    layers, others, stay = list(computed.layers), list(computed.others), []
    every = (*layers, *others)
    makers = {value: item for item in every for weight in item.weights for value in weight.values}
    folds = _Folds(model, index, symbols, {item.layer.name for item in every})
    places = {id(item): (home, at) for home in (layers, others) for at, item in enumerate(home)}
    for norm in norms_behind(model, index, symbols):
        if isinstance(norm, Stays):
            stay.append(norm)
            continue
        before = makers.get(norm.weight)
        try:
            made = folds.into(before, norm)
        except StaysError as error:
            stay.append(Stays(norm.name, str(error)))
            continue
        home = layers if set(made.layer.rule.kinds) <= set(kinds) else others
        there, at = places.get(id(before), (layers, -1))
        if at >= 0 and there is home:
            home[at] = made
        else:
            home.append(made)
    left = tuple(item.layer for item in others)
    known = {
        (item.path, item.parts[ORIGINAL].name): KnownLayer(item.layer.name, item.layer.rule)
        for item in (*others, *layers)  # what folds counts
    }
    known |= {start: KnownLayer(no.name, rule, no.reason) for start, rule, no in computed.refused}
    refused = tuple(no for *_, no in computed.refused)
    return GraphLayers(tuple(layers), refused, left, tuple(stay), known, symbols)


def quotient_at(model: Model, index: Index, symbols: Symbols, value: ValueId) -> View | None:
    """A value that is a stored tensor over the norms of another's rows, as a layout of that tensor.

    None if it is something else, or of tensors that a caller may replace or that cannot be read.
    """
    known = symbols.known.get(value)
    if known is None or known.monomial is None or (known.coarse and known.dtype.name not in HALF_DTYPES):
        return None
    found = quotient_of(known.monomial, lambda number: symbols.leaves[number].info.shape)
    if found is None:
        return None
    meaning, original = found
    leaves = {role: symbols.leaves[number] for role, number in meaning.tensors}
    if any(why_unfit(model, index, leaf) is not None for leaf in leaves.values()):
        return None
    parts = {role: leaf.stored for role, leaf in leaves.items()}
    return weight_view(known.monomial.dims, original, meaning.rule, parts, known.dtype)


@dataclass(frozen=True, slots=True)
class _Folds:
    """The folds of norms into the layers before them; ``taken`` are the names of other layers."""

    model: Model
    index: Index
    symbols: Symbols
    taken: set[str]

    def into(self, before: GraphLayer | None, norm: Behind) -> GraphLayer:
        """The layer with a norm behind it; its weight is that of ``before``, or a stored tensor.

        Raises ``StaysError`` where they do not fit each other.
        """
        computed = before or self.plain(norm.weight)
        if computed.passed or [weight.values for weight in computed.weights] != [(norm.weight,)]:
            raise StaysError("the weight of the layer before it is used elsewhere too")
        if not self.is_alone(norm.weight):
            raise StaysError("the weight of the layer before it is used elsewhere too")
        view = computed.weights[0].view
        shape = view.original.info.shape
        if len(shape) <= norm.dim or (norm.groups > 1 and shape[0] % norm.groups):
            raise StaysError("it does not fit the weight of the layer before it")
        behind = self.operation(norm, shape[norm.dim] * norm.groups)
        leaves = self.tensors(norm, behind)
        parts = {role: leaf.stored.shaped((leaf.info.numel,)) for role, leaf in leaves.items()}
        turned = Rule((*view.rule.operations, behind))
        own = replace(behind, dim=_axis_of(view.original, computed.layer.original.shape, norm.dim))
        layer = replace(
            computed.layer,
            rule=Rule((*computed.layer.rule.operations, own)),
            parts={**computed.layer.parts, **{role: _info(leaf) for role, leaf in leaves.items()}},
            norm=norm.name,
            bias=leaves[BIAS].value[1] if BIAS in leaves else f"{owner_of(computed.layer.name)}bias",
        )
        constants = {**computed.parts, **{role: leaf.constant for role, leaf in leaves.items()}}
        weight = Weight(View(turned, (*view.parts, *parts.items()), view.dtype), (norm.weight,))
        return GraphLayer(layer, computed.path, constants, (weight,), behind=norm)

    def plain(self, value: ValueId) -> GraphLayer:
        """A stored weight as a layer that nothing is done with yet."""
        found, known = self.symbols.stored(value), self.symbols.known.get(value)
        if found is None or known is None or known.monomial is None:
            raise StaysError("the weight of the layer before it is computed in a way that is not known")
        factor, leaf = found
        self.check(leaf)
        parts = {ORIGINAL: leaf.stored}
        view = weight_view(known.monomial.dims, factor, Rule(()), parts, known.dtype)
        if view is None:
            raise StaysError("the weight of the layer before it lies in another order")
        (path, name), weight = leaf.value, Weight(view, (value,))
        layer = Layer(unique_name(name, self.taken), "onnx", view.rule, {ORIGINAL: _info(leaf)})
        return GraphLayer(layer, path, {ORIGINAL: leaf.constant}, (weight,))

    def check(self, leaf: Leaf) -> None:
        """Raise ``StaysError`` for a tensor of which nothing can be folded."""
        if (why := why_unfit(self.model, self.index, leaf)) is not None:
            raise StaysError(why[0])

    def is_alone(self, value: ValueId) -> bool:
        """Whether one node alone uses a weight, and what it is a view of."""
        while len(self.uses(value)) == 1 and value not in self.index.outputs:
            maker = self.index.makers.get(value)
            found = self.symbols.stored(value)
            source = self.index.resolve(value[0], maker.inputs[0]) if maker and maker.inputs else None
            if source is None or found is None:
                return True
            value = source
        return False

    def uses(self, value: ValueId) -> list[Node]:
        """The nodes that use the numbers of a value, not its shape alone."""
        return [node for _, node in self.index.users.get(value, ()) if node.op != "Shape" or node.domain]

    def is_all(self, value: ValueId, number: int) -> bool:
        """Whether all elements of a value are one number, whatever its dtype and shape are at run time."""
        for _ in range(_MOST_STEPS):
            known, maker = self.symbols.known.get(value), self.index.makers.get(value)
            if known is not None and known.numbers is not None:
                return bool(np.all(known.numbers == number))
            if maker is None or maker.op not in {"Cast", "CastLike", "Expand", "Identity"} or maker.domain:
                break
            source = self.index.resolve(value[0], maker.inputs[0]) if maker.inputs else None
            value = source or value
        return False

    def operation(self, norm: Behind, channels: int) -> NormBehind:
        """What the norm does with so many channels: numbers that are all 1, or all 0, do nothing."""
        does = {
            role: self.symbols.stored(norm.constants[role]) is not None
            or not self.is_all(norm.constants[role], nothing)
            for role, nothing in (("gamma", 1), ("beta", 0))
        }
        for value in norm.constants.values():
            known = self.symbols.known.get(value)
            if known is not None and known.shape != (channels,):
                raise StaysError("it does not fit the weight of the layer before it")
        return NormBehind(norm.dim, norm.eps, norm.groups, gain=does["gamma"], shift=does["beta"])

    def tensors(self, norm: Behind, behind: NormBehind) -> dict[str, Leaf]:
        """The stored tensors of a norm and of the bias before it, by their roles."""
        values = {role: norm.constants[role] for role in (*behind.roles, *behind.offsets)}
        if norm.bias is not None and norm.bias.value is not None:
            values[BIAS] = norm.bias.value
        leaves: dict[str, Leaf] = {}
        for role, value in values.items():
            found, known = self.symbols.stored(value), self.symbols.known.get(value)
            if role == BIAS and found is None and self.is_all(value, 0):
                continue
            whose = "the bias of the layer before it" if role == BIAS else f"its {role}"
            if found is None or known is None:
                raise StaysError(f"{whose} is not a stored tensor")
            leaf = leaves[role] = found[1]
            self.check(leaf)
            count = self.symbols.known[norm.constants["variance"]].shape[0]
            if leaf.info.numel != count or known.shape[-1:] != (count,):
                raise StaysError(f"{whose} has another number of channels")
        return leaves


def _info(leaf: Leaf) -> TensorInfo:
    return replace(leaf.info, name=leaf.value[1])


def _axis_of(laid: StoredTensor, shape: Shape, axis: int) -> int:
    """The axis of the tensor of this shape, stored end to end, that is an axis of a layout of it."""
    size, stride = laid.info.shape[axis], laid.strides[axis]
    for place, each in enumerate(zip(shape, contiguous_strides(shape), strict=True)):
        if each == (size, stride) or (size == 1 and each[0] == 1):
            return place
    raise StaysError("the outputs of the layer before it are not an axis of its weight")
