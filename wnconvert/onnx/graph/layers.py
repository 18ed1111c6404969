"""The values of an ONNX model that are weight norm, g·v/‖v‖ of stored tensors, however it is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from wnconvert.layers.schemes import SCHEMES, Layer, Refused
from wnconvert.onnx.file.model import Constant, Graph, Model, OnnxFunction
from wnconvert.onnx.graph.index import Index, ValueId, index_of, unique_name
from wnconvert.onnx.graph.monomials import SQUARES, VALUE, Factor, Monomial
from wnconvert.onnx.graph.rules import KnownValue
from wnconvert.onnx.graph.values import Leaf, SeenValue, values_of
from wnconvert.onnx.graph.views import View, bases_of, calls_of, trees_of
from wnconvert.tensors.tree import TensorInfo

__all__ = ["FunctionWeight", "GraphLayers", "NormLayer", "Weight", "find_graph_layers"]


_INLINE = "inline the model's functions first (onnx.inliner.inline_local_functions)"


@dataclass(frozen=True, slots=True)
class Weight:
    """A layout in which a weight will be stored, and the values of the model that it replaces."""

    view: View
    values: tuple[ValueId, ...]


@dataclass(frozen=True, slots=True)
class FunctionWeight:
    """A weight that a function computes from its inputs: in the call ``calls``, its ``value`` is ``view``."""

    function: str
    value: ValueId
    calls: tuple[int, ...]
    view: View


@dataclass(frozen=True, slots=True)
class NormLayer:
    """A layer of an ONNX model: g and v, the ``path`` of the scope that stores v, and where w is computed."""

    layer: Layer
    path: str
    g: Constant
    v: Constant
    weights: tuple[Weight, ...]
    passed: tuple[FunctionWeight, ...] = ()


@dataclass(frozen=True, slots=True)
class GraphLayers:
    """The layers of a model in the order of their arithmetic, and those that cannot be folded."""

    layers: tuple[NormLayer, ...]
    refused: tuple[Refused, ...]


def find_graph_layers(model: Model) -> GraphLayers:
    """Find the weight norm in a model by names and shapes alone: no tensor is read.

    A value is weight norm if it is g¹·v¹·(Σv²)^(-1/2) over v's own elements, the sum over all axes
    but one or over all, with one element of g for each norm.
    """
    index = index_of(model)
    leaves, seen = values_of(model, index)
    groups: dict[_Key, list[_Sighting]] = {}
    for value in seen:
        if (sighting := _sighting(value, leaves)) is not None:
            groups.setdefault(sighting.key, []).append(sighting)
    drafts = [_draft(model, index, key, groups, leaves) for key in groups]
    kept = [draft for draft in drafts if draft.weights or draft.passed or draft.reason]
    _judge_functions(index, kept)
    taken: set[str] = set()
    layers: list[NormLayer] = []
    refused: list[Refused] = []
    for draft in kept:
        name = unique_name(_name_of(draft.v.value[1]), taken)
        if draft.reason:
            refused.append(Refused(name, draft.reason, draft.remedy))
        else:
            layers.append(_layer(name, draft))
    return GraphLayers(tuple(layers), tuple(refused))


#: g and v (numbers of leaves), and v's axis.
_Key = tuple[int, int, int | None]


@dataclass(frozen=True, slots=True)
class _Sighting:
    """A value that is weight norm."""

    key: _Key
    seen: SeenValue
    view: View


@dataclass(slots=True)
class _Draft:
    """A layer in the making; ``reason`` if it is refused, ``remedy`` for what helps."""

    g: Leaf
    v: Leaf
    dim: int | None
    weights: tuple[Weight, ...] = ()
    passed: tuple[FunctionWeight, ...] = ()
    reason: str = ""
    remedy: str = ""

    def refuse(self, reason: str, remedy: str = "") -> None:
        if not self.reason:
            self.reason, self.remedy = reason, remedy


def _sighting(seen: SeenValue, leaves: Sequence[Leaf]) -> _Sighting | None:
    """A value as weight norm; None if it is not, or if no strides describe its layout."""
    monomial = seen.value.monomial
    if monomial is None:
        return None
    squares = [factor for factor, exponent in monomial.factors if factor.kind == SQUARES]
    if len(squares) != 1 or dict(monomial.factors)[squares[0]] * 2 != -1:
        return None
    number = squares[0].tensor
    for v, exponent in monomial.factors:
        if v.kind == VALUE and v.tensor == number and exponent == 1:
            g = _magnitude(monomial, v, squares[0], leaves)
            view = _view(monomial, v, squares[0], seen.value, leaves) if g is not None else None
            if g is not None and view is not None:
                key = (g.tensor, number, _dim(g, squares[0], leaves))
                return _Sighting(key, seen, view)
    return None


def _magnitude(monomial: Monomial, v: Factor, squares: Factor, leaves: Sequence[Leaf]) -> Factor | None:
    """The factor that is g: the only one beside v and its norm, not counting tensors of ones."""
    rest = [(factor, exponent) for factor, exponent in monomial.factors if factor not in {v, squares}]
    units = [factor for factor, _ in rest if _is_ones(leaves[factor.tensor])]
    others = [(factor, exponent) for factor, exponent in rest if factor not in units]
    if len(others) > 1 or any(factor.tensor == v.tensor for factor, _ in others):
        return None
    kept = [axis for axis, atom in enumerate(squares.axes) if atom >= 0]
    if len(kept) > 1 or any(squares.axes[axis] != v.axes[axis] for axis in kept):
        return None
    wanted = [v.axes[axis] for axis in kept]
    fitting = [
        factor
        for factor, exponent in others or rest
        if exponent == 1 and factor.kind == VALUE and [atom for atom in factor.axes if atom >= 0] == wanted
    ]
    # A tensor of ones may be a factor beside g, or g itself: g is the one with most axes.
    return max(fitting, key=lambda factor: len(factor.axes), default=None)


def _is_ones(tensor: Leaf) -> bool:
    values = tensor.constant.values
    return values is not None and all(value == 1 for value in values)


def _dim(g: Factor, squares: Factor, leaves: Sequence[Leaf]) -> int | None:
    """The axis of v that g belongs to, as ``wnconvert.layers.dims`` reads it from the shapes."""
    kept = [axis for axis, atom in enumerate(squares.axes) if atom >= 0]
    if kept:
        return kept[0]
    shape = leaves[squares.tensor].info.shape
    return 0 if shape[:1] == (1,) and len(g.axes) == len(shape) else None


def _view(
    monomial: Monomial, v: Factor, squares: Factor, value: KnownValue, leaves: Sequence[Leaf]
) -> View | None:
    """The layout of v's elements in the value; None if no strides describe it, or if dim is not one axis."""
    stored = leaves[v.tensor].stored
    axis_of = {atom: axis for axis, atom in enumerate(v.axes) if atom >= 0}
    if len(axis_of) != sum(map(len, monomial.dims)):
        return None
    norms = next((atom for atom in squares.axes if atom >= 0), None)
    shape, strides, dim, at = monomial.shape, [0] * len(monomial.dims), None, 0
    for place, atoms in enumerate(monomial.dims):
        axes = [axis_of[atom] for atom in range(at, at + len(atoms))]
        if norms is not None and at <= norms < at + len(atoms):
            if len(atoms) != 1:
                return None
            dim = place
        at += len(atoms)
        for outer, inner in pairwise(axes):
            if stored.strides[outer] != stored.strides[inner] * stored.info.shape[inner]:
                return None
        strides[place] = stored.strides[axes[-1]] if axes else 0
    for place in reversed(range(len(shape))):
        if shape[place] == 1:  # any stride is right; this is torch's choice
            behind = place + 1
            strides[place] = strides[behind] * shape[behind] if behind < len(shape) else 1
    info = TensorInfo(stored.info.name, stored.info.dtype, shape)
    return View(replace(stored, info=info, strides=tuple(strides)), dim, value.dtype)


def _draft(
    model: Model,
    index: Index,
    key: _Key,
    groups: Mapping[_Key, Sequence[_Sighting]],
    leaves: Sequence[Leaf],
) -> _Draft:
    """The layer of one g and v: the layouts of its weight to store, and the values that they replace."""
    g, v, dim = leaves[key[0]], leaves[key[1]], key[2]
    draft = _Draft(g, v, dim)
    home = index.roots[v.value[0]]
    in_function = isinstance(index.scopes[home], OnnxFunction)
    # 1·v/‖v‖ has the form of weight norm, but may be a step on the way to g·v/‖v‖.
    steps = _places_of(groups, key) if _is_ones(g) else set()
    stacks: dict[tuple[str, tuple[int, ...]], list[_Sighting]] = {}
    for sighting in groups[key]:
        root = index.roots[sighting.seen.place[0]]
        if in_function and root == home and sighting.seen.calls:
            continue  # a tensor that a function stores is the same in every call
        if root == home and v.value[0] not in index.around(sighting.seen.place[0]):
            continue  # an output of a branch of If: tensors of the branch are not visible there
        stacks.setdefault((root, sighting.seen.calls), []).append(sighting)
    local: dict[View, list[ValueId]] = {}
    passed: list[FunctionWeight] = []
    for (root, calls), sightings in stacks.items():
        values = {sighting.seen.place: sighting.view for sighting in sightings}
        given = [sighting.seen.place for sighting in sightings if sighting.seen.is_formal]
        trees = trees_of(index, values, given, steps)
        for tree in trees:
            if tree.output:
                draft.refuse(*_output(index, tree.root))
        for view, stands_for in bases_of(trees, values).items():
            if root == home:
                local.setdefault(view, []).extend(stands_for)
            elif in_function:
                name = index.scopes[home]
                draft.refuse(
                    f"it is stored in a function and used outside of it ({_describe(name)})", _INLINE
                )
            else:
                passed += [FunctionWeight(root, value, calls, view) for value in stands_for]
    draft.weights = tuple(Weight(view, tuple(values)) for view, values in local.items())
    draft.passed = tuple(passed)
    if draft.weights or draft.passed:
        _judge_tensors(model, index, draft)
    return draft


def _places_of(groups: Mapping[_Key, Sequence[_Sighting]], key: _Key) -> set[ValueId]:
    """The values where the same v is the direction of another layer."""
    others = (group for other, group in groups.items() if other[1] == key[1] and other != key)
    return {sighting.seen.place for group in others for sighting in group}


def _describe(scope: Graph | OnnxFunction) -> str:
    return f"function {scope.name}" if isinstance(scope, OnnxFunction) else scope.path or "the graph"


def _output(index: Index, value: ValueId) -> tuple[str, str]:
    """Why a weight that is an output is refused, and what to do."""
    scope = index.scopes[value[0]]
    if isinstance(scope, OnnxFunction):
        return f"{_describe(scope)} both uses and returns it", _INLINE
    return (
        f"the computed weight is itself an output, {value[1]}, of {_describe(scope)}",
        "take it out of the outputs",
    )


def _judge_tensors(model: Model, index: Index, draft: _Draft) -> None:
    """Refuse a layer whose tensors have a dtype that cannot be folded, or that a caller may replace."""
    for tensor in (draft.g, draft.v):
        name, dtype = tensor.value[1], tensor.info.dtype
        if not tensor.info.numel:
            draft.refuse(f"{name} has no elements")
        elif not dtype.foldable:
            scale = " without its scale" if dtype.is_float8 else ""
            draft.refuse(f"{name} is {dtype}, which cannot be folded{scale}")
        elif tensor.constant.tensor is None:
            draft.refuse(
                f"the elements of {name} are not stored end to end",
                "save the model again with raw_data (onnx.numpy_helper.from_array), or ",
            )
        path = tensor.value[0]
        if (model.ir_version >= 4 or path) and tensor.value in index.inputs:
            draft.refuse(
                f"{name} is an input of {_describe(index.scopes[path])} too, so a caller may replace it",
                "export again with keep_initializers_as_inputs=False, or take it out of the inputs "
                "(python -m onnxruntime.tools.remove_initializer_from_input), or ",
            )


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
                    draft.refuse(f"{_describe(scope)} computes it in some of its calls only", _INLINE)


def _layer(name: str, draft: _Draft) -> NormLayer:
    g, v = (replace(tensor.info, name=tensor.value[1]) for tensor in (draft.g, draft.v))
    layer = Layer.of_pair(name, "onnx", draft.dim, g, v)
    return NormLayer(layer, draft.v.value[0], draft.g.constant, draft.v.constant, draft.weights, draft.passed)


def _name_of(v: str) -> str:
    """The name of a weight, from the name of its v if that follows a known convention.

    >>> _name_of("dec.conv.weight_v"), _name_of("kernel")
    ('dec.conv.weight', 'kernel.folded')
    """
    for scheme in SCHEMES:
        if scheme.is_torchs and (match := scheme.v.fullmatch(v)):
            return match["owner"] + match["param"]
    return f"{v}.folded"
