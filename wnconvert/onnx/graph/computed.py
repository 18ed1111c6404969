"""The values of an ONNX model that are weights of a rule, such as g·v/‖v‖, however they are computed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from wnconvert.frozen import dataclass
from wnconvert.layers.rules import ORIGINAL, G, Mask, Norm, Rule, Unit
from wnconvert.layers.schemes import Layer, Refused
from wnconvert.onnx.arithmetic.known import HALF_DTYPES
from wnconvert.onnx.arithmetic.meaning import Meaning, meaning_of
from wnconvert.onnx.arithmetic.products.monomials import VALUE, Factor, Monomial
from wnconvert.onnx.arithmetic.rowwise import RowValue
from wnconvert.onnx.arithmetic.staged import Roundings
from wnconvert.onnx.arithmetic.standardized import standardization_of
from wnconvert.onnx.file.model import Constant, Graph, Model, OnnxFunction
from wnconvert.onnx.graph.index import Index, ValueId, may_be_replaced, removal, unique_name
from wnconvert.onnx.graph.names import has_name_of, weight_name
from wnconvert.onnx.graph.neighbours import Behind
from wnconvert.onnx.graph.values import Leaf, SeenValue, Symbols
from wnconvert.onnx.graph.views import View, bases_of, calls_of, trees_of, weight_view
from wnconvert.tensors.tree import Shape
from wnconvert.tensors.views.quantization import Quantization

__all__ = ["INLINE", "Computed", "FunctionWeight", "GraphLayer", "Weight", "computed_layers", "why_unfit"]


#: What makes a graph of calls of functions.
INLINE = "inline the model's functions first (onnx.inliner.inline_local_functions)"


@dataclass(frozen=True, slots=True)
class Weight:
    """A layout in which a weight will be stored, and the values of the model that it replaces.

    ``codes`` is the scheme by which it is stored as codes; None: as numbers.
    """

    view: View
    values: tuple[ValueId, ...]
    codes: Quantization | None = None


@dataclass(frozen=True, slots=True)
class FunctionWeight:
    """A weight that a function computes from its inputs: in the call ``calls``, its ``value`` is ``view``."""

    function: str
    value: ValueId
    calls: tuple[int, ...]
    view: View


@dataclass(frozen=True, slots=True)
class GraphLayer:
    """A layer of an ONNX model: its tensors by role, the ``path`` of its original's scope, its weights.

    ``behind`` is the norm that is folded into it, or None.
    """

    layer: Layer
    path: str
    parts: Mapping[str, Constant]
    weights: tuple[Weight, ...]
    passed: tuple[FunctionWeight, ...] = ()
    behind: Behind | None = None


@dataclass(frozen=True, slots=True)
class Computed:
    """The layers whose weights are computed, in the order of their arithmetic, and those that are refused.

    ``others`` are the layers that need another kind than those that were asked for. Each of ``refused`` has
    the stored tensor that it starts from, and its rule.
    """

    layers: tuple[GraphLayer, ...]
    refused: tuple[tuple[ValueId, Rule, Refused], ...]
    others: tuple[GraphLayer, ...] = ()


def computed_layers(model: Model, index: Index, symbols: Symbols, kinds: Collection[str]) -> Computed:
    """Find the layers of some kinds whose weights are computed, by names and shapes alone.

    A value is such a layer's weight if it is what the rule makes of stored tensors: for weight norm
    g¹·v¹·(Σv²)^(-1/2) over v's own elements, the sum over all axes but one or over all, with one element of g
    for each norm. A weight in a weight of which all kinds are asked for is no layer of its own.
    """
    leaves = symbols.leaves
    shapes = [leaf.info.shape for leaf in leaves]
    every: _Groups = {}
    for value in symbols.seen:
        if (sighting := _sighting(value, leaves, shapes)) is not None:
            every.setdefault(sighting.key, []).append(sighting)
    wanted = {key: group for key, group in every.items() if set(key.rule.kinds) <= set(kinds)}
    drafts = _named(_drafts(model, index, wanted, leaves))
    refused = (
        (draft.original.value, draft.key.rule, Refused(name, draft.reason, draft.remedy))
        for name, draft in drafts
        if draft.reason
    )
    layers = (_layer(name, draft) for name, draft in drafts if not draft.reason)
    others = _named(_drafts(model, index, every, leaves) if len(wanted) < len(every) else ())
    left = (_layer(name, draft) for name, draft in others if draft.key not in wanted)
    return Computed(tuple(layers), tuple(refused), tuple(left))


@dataclass(frozen=True, slots=True)
class _Sighting:
    """A value that is a weight."""

    key: Meaning
    seen: SeenValue
    view: View


#: The values that are weights, those of each meaning together.
_Groups: TypeAlias = dict[Meaning, list[_Sighting]]


@dataclass(slots=True)
class _Draft:
    """A layer in the making; ``reason`` if it is refused, ``remedy`` for what helps."""

    key: Meaning
    tensors: Mapping[str, Leaf]
    weights: tuple[Weight, ...] = ()
    passed: tuple[FunctionWeight, ...] = ()
    reason: str = ""
    remedy: str = ""

    @property
    def original(self) -> Leaf:
        """The tensor that the rule starts from."""
        return self.tensors[ORIGINAL]

    def refuse(self, reason: str, remedy: str = "") -> None:
        if not self.reason:
            self.reason, self.remedy = reason, remedy


def _sighting(seen: SeenValue, leaves: Sequence[Leaf], shapes: Sequence[Shape]) -> _Sighting | None:
    """A value as a weight; None if it is none, or if no strides describe its layout."""
    monomial, rows = seen.value.monomial, seen.value.rows
    if seen.value.coarse and seen.value.dtype.name not in HALF_DTYPES:
        return None  # digits that float16 has lost do not come back
    if seen.value.staged is not None:
        return _rounded(seen, seen.value.staged, leaves, shapes)
    if monomial is None or len(monomial.factors) < 2:
        return _standardized(seen, rows, leaves) if rows is not None else None
    found = _meaning(monomial, leaves, shapes)
    if found is None:
        return None
    meaning, original = found
    parts = {role: leaves[number].stored for role, number in meaning.tensors}
    view = weight_view(monomial.dims, original, meaning.rule, parts, seen.value.dtype)
    return _Sighting(meaning, seen, view) if view is not None else None


def _meaning(
    monomial: Monomial, leaves: Sequence[Leaf], shapes: Sequence[Shape]
) -> tuple[Meaning, Factor] | None:
    return meaning_of(monomial, shapes, lambda number, rule: has_name_of(leaves[number].value[1], rule))


def _rounded(
    seen: SeenValue, staged: Roundings, leaves: Sequence[Leaf], shapes: Sequence[Shape]
) -> _Sighting | None:
    """A value that is rounded on its way as a weight: what dequantizes its codes is a use of them."""
    found = None if staged.is_dequantized else _meaning(staged.of, leaves, shapes)
    if found is None:
        return None
    meaning, original = found
    parts = {role: leaves[number].stored for role, number in meaning.tensors}
    view = weight_view(staged.of.dims, original, meaning.rule, parts, staged.dtype)
    if view is None:
        return None
    if staged.factors:  # the norm is divided by first, and g comes after a rounding
        *inner, norm = view.rule.operations
        late = {dict(meaning.tensors).get(G)}
        if not isinstance(norm, Norm) or set(staged.factors) != late:
            return None
        rule = Rule((*inner, Unit(norm.dim)))
        view = replace(view, rule=rule, parts=tuple(part for part in view.parts if part[0] != G))
    return _Sighting(meaning, seen, replace(view, steps=staged.steps))


def _standardized(seen: SeenValue, rows: RowValue, leaves: Sequence[Leaf]) -> _Sighting | None:
    """A value as a standardized weight."""
    shape = leaves[rows.whole].info.shape if rows.whole >= 0 else ()
    meaning = standardization_of(rows)
    if meaning is None or sum(map(len, rows.dims)) != sum(size != 1 for size in shape):
        return None
    places = {label[1]: at for at, label in enumerate(label for dim in rows.dims for label in dim)}
    axes = tuple((places[axis],) if size != 1 else () for axis, size in enumerate(shape))
    parts = {role: leaves[number].stored for role, number in meaning.tensors}
    dims = tuple(tuple(size for *_, size in dim) for dim in rows.dims)
    view = weight_view(dims, Factor(rows.whole, VALUE, axes), meaning.rule, parts, seen.value.dtype)
    return _Sighting(meaning, seen, view) if view is not None else None


def _drafts(model: Model, index: Index, groups: _Groups, leaves: Sequence[Leaf]) -> Sequence[_Draft]:
    """The layers of these groups that something uses, or that are refused."""
    users: dict[int, list[Meaning]] = {}
    for key in groups:
        for number in key.numbers:
            users.setdefault(number, []).append(key)
    beside = {key: [other for other in users[key.original] if other != key] for key in groups}
    drafts = [
        _draft(
            model,
            index,
            _Draft(key, {role: leaves[number] for role, number in key.tensors}),
            group,
            [groups[other] for other in beside[key]],
        )
        for key, group in groups.items()
    ]
    kept = [draft for draft in drafts if draft.weights or draft.passed or draft.reason]
    _judge_functions(index, kept)
    return [draft for draft in kept if not (draft.reason and _is_any_product(draft))]


def _is_any_product(draft: _Draft) -> bool:
    """Whether it is a product of two tensors without the names of a masked weight: it may be anything."""
    rule = draft.key.rule
    return rule.operations == (Mask(),) and not has_name_of(draft.original.value[1], rule)


def _named(drafts: Iterable[_Draft]) -> Sequence[tuple[str, _Draft]]:
    """Layers with the names of their weights, each another."""
    taken: set[str] = set()
    return [
        (unique_name(weight_name(draft.original.value[1], draft.key.rule), taken), draft) for draft in drafts
    ]


def _draft(
    model: Model,
    index: Index,
    draft: _Draft,
    group: Sequence[_Sighting],
    others: Sequence[Sequence[_Sighting]],
) -> _Draft:
    """The layer of one meaning: the layouts of its weight to store, and the values that they replace.

    ``group`` are the values that are its weight, ``others`` those that are other weights of its original.
    """
    stored_in = draft.original.value[0]
    home = index.roots[stored_in]
    in_function = isinstance(index.scopes[home], OnnxFunction)
    gone = _gone_with_others(index, others, group)
    stacks: dict[tuple[str, tuple[int, ...]], list[_Sighting]] = {}
    for sighting in group:
        root = index.roots[sighting.seen.place[0]]
        if in_function and root == home and sighting.seen.calls:
            continue  # a tensor that a function stores is the same in every call
        if root == home and stored_in not in index.around(sighting.seen.place[0]):
            continue  # an output of a branch of If: tensors of the branch are not visible there
        stacks.setdefault((root, sighting.seen.calls), []).append(sighting)
    local: dict[View, list[ValueId]] = {}
    passed: list[FunctionWeight] = []
    for (root, calls), sightings in stacks.items():
        values = {sighting.seen.place: sighting.view for sighting in sightings}
        given = [sighting.seen.place for sighting in sightings if sighting.seen.is_formal]
        trees = trees_of(index, values, given, gone)
        for tree in trees:
            if tree.output:
                draft.refuse(*_output(index, tree.root))
        for view, stands_for in bases_of(trees, values).items():
            if root == home:
                local.setdefault(view, []).extend(stands_for)
            elif in_function:
                name = index.scopes[home]
                draft.refuse(f"it is stored in a function and used outside of it ({_describe(name)})", INLINE)
            else:
                passed += [FunctionWeight(root, value, calls, view) for value in stands_for]
    draft.weights = tuple(Weight(view, tuple(values)) for view, values in local.items())
    draft.passed = tuple(passed)
    if draft.weights or draft.passed:
        _judge_tensors(model, index, draft)
    return draft


def _gone_with_others(
    index: Index, others: Iterable[Sequence[_Sighting]], own: Sequence[_Sighting]
) -> Collection[int]:
    """The nodes that nothing uses once the other weights of the same original are stored.

    1·v/‖v‖ has the form of weight norm, but may be a step on the way to g·v/‖v‖, as w·mask is on the way to
    what is made of a masked weight.
    """
    places = set().union(*map(_places, others))
    return removal(index, places - _places(own)).nodes if places else ()


def _places(group: Iterable[_Sighting]) -> set[ValueId]:
    return {sighting.seen.place for sighting in group}


def _describe(scope: Graph | OnnxFunction) -> str:
    return f"function {scope.name}" if isinstance(scope, OnnxFunction) else scope.path or "the graph"


def _output(index: Index, value: ValueId) -> tuple[str, str]:
    """Why a weight that is an output is refused, and what to do."""
    scope = index.scopes[value[0]]
    if isinstance(scope, OnnxFunction):
        return f"{_describe(scope)} both uses and returns it", INLINE
    return (
        f"the computed weight is itself an output, {value[1]}, of {_describe(scope)}",
        "take it out of the outputs",
    )


def _judge_tensors(model: Model, index: Index, draft: _Draft) -> None:
    """Refuse a layer whose tensors have a dtype that cannot be folded, or that a caller may replace."""
    for tensor in draft.tensors.values():
        if (why := why_unfit(model, index, tensor)) is not None:
            draft.refuse(*why)


def why_unfit(model: Model, index: Index, tensor: Leaf) -> tuple[str, str] | None:
    """Why nothing can be folded of a stored tensor, and what to do; None if it can."""
    (path, name), dtype = tensor.value, tensor.info.dtype
    if not tensor.info.numel:
        return f"{name} has no elements", ""
    if not dtype.foldable:
        scale = " without its scale" if dtype.is_float8 else ""
        return f"{name} is {dtype}, which cannot be folded{scale}", ""
    if tensor.constant.tensor is None:
        return (
            f"the elements of {name} are not stored end to end",
            "save the model again with raw_data (onnx.numpy_helper.from_array), or ",
        )
    given = [
        each for each in (tensor.value, *tensor.beside) if may_be_replaced(index, model.ir_version, each)
    ]
    if given:
        remedy = (
            "export again with keep_initializers_as_inputs=False, or take it out of the inputs "
            "(python -m onnxruntime.tools.remove_initializer_from_input), or "
        )
        where = _describe(index.scopes[path])
        return f"{given[0][1]} is an input of {where} too, so a caller may replace it", remedy
    return None


def _judge_functions(index: Index, drafts: Sequence[_Draft]) -> None:
    """Refuse layers that a function computes in some of its calls but not in all."""
    while True:
        ways: dict[tuple[str, ValueId], set[tuple[int, ...]]] = {}
        for draft in drafts:
            if not draft.reason:
                for passed in draft.passed:
                    ways.setdefault((passed.function, passed.value), set()).add(passed.calls)
        wrong = {key for key, calls in ways.items() if calls_of(index, key[0]) != calls}
        if not wrong:
            return
        for draft in drafts:
            for passed in draft.passed:
                if not draft.reason and (passed.function, passed.value) in wrong:
                    scope = index.scopes[passed.function]
                    draft.refuse(f"{_describe(scope)} computes it in some of its calls only", INLINE)


def _layer(name: str, draft: _Draft) -> GraphLayer:
    infos = {role: replace(tensor.info, name=tensor.value[1]) for role, tensor in draft.tensors.items()}
    constants = {role: tensor.constant for role, tensor in draft.tensors.items()}
    layer = Layer(name, "onnx", draft.key.rule, infos)
    return GraphLayer(layer, draft.original.value[0], constants, draft.weights, draft.passed)
