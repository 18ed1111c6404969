"""The plan of folding an ONNX model, with the edits that carry it out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

from wnconvert.errors import LayerError
from wnconvert.frozen import dataclass
from wnconvert.layers.kinds.formulas import formula_notes
from wnconvert.layers.kinds.others import hints_on
from wnconvert.layers.kinds.table import WORDS, in_words
from wnconvert.layers.rules import ORIGINAL, Norm, NormBehind
from wnconvert.layers.schemes import Selection
from wnconvert.messages import counted, listed, option, printable, told
from wnconvert.onnx.file.model import GraphEdits, Model, OnnxFunction
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.graph.computed import INLINE, GraphLayer
from wnconvert.onnx.graph.edits import fold_edits
from wnconvert.onnx.graph.index import Index, ValueId, index_of, removal
from wnconvert.onnx.graph.layers import GraphLayers, KnownLayer, find_graph_layers, quotient_at
from wnconvert.onnx.graph.views import NoCodesError, codes_in
from wnconvert.onnx.graph.weights import EVALUATED, EvaluatedWeight, RunWeight, weights_at_run
from wnconvert.plan.layout import FoldLayer
from wnconvert.plan.plan import Change, ComputedWeight, Plan, PlannedConstant, PlannedStateDict
from wnconvert.plan.selection.wanted import check_refused, check_selection, idle_excludes
from wnconvert.plan.steps import Bias, EvaluateConstant, Fold, Keep, Step
from wnconvert.tensors.containers import Container
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import StateDict
from wnconvert.tensors.views.dequantized import Dequantized
from wnconvert.tensors.views.quantization import ViewedTensor

__all__ = ["Evaluation", "OnnxFold", "plan_onnx", "weights_computed", "weights_left"]


_NO_RULE = "no rule knows its arithmetic"
_CONSTANTS = f"fold with {option('constants', True)} evaluates it in float64"
_OTHER_KIND = "another kind was asked for"


@dataclass(frozen=True, slots=True)
class OnnxFold:
    """A plan, the layers that it folds, how many are left as they are, and the changes of the model.

    ``stay`` counts norms that do not fold, each of which has a note; ``evaluated`` are weights of no rule.
    """

    plan: Plan
    layers: tuple[GraphLayer, ...]
    edits: GraphEdits
    left: int = 0
    stay: int = 0
    evaluated: tuple[EvaluatedWeight, ...] = ()

    @property
    def makes_weights(self) -> bool:
        """Whether it stores a weight that the model computes: of a layer, or of no rule."""
        return bool(self.layers or self.evaluated)

    @property
    def why_nothing(self) -> str:
        """Why it folds nothing, in words."""
        if self.left:
            globs = f"{option('layers')} and {option('exclude')}"
            return f"{globs} leave out {counted(self.left, 'layer')}, all that there are"
        if self.stay:
            return f"the graph has {counted(self.stay, 'norm')} that {'stays' if self.stay == 1 else 'stay'}"
        known = " that wnconvert knows" if self.plan.computed else ""
        return f"no {' or '.join(map(_bare, self.plan.kinds))}{known} is left in the graph"


#: Plans the evaluation of a weight, or says why it is not evaluated.
Evaluation: TypeAlias = Callable[[RunWeight], EvaluatedWeight | str]


def plan_onnx(
    opened: OnnxFile,
    selection: Selection = Selection(),  # noqa: B008 - frozen
    evaluation: Evaluation | None = None,
    *,
    constants: bool = False,
    requantize: bool = False,
) -> OnnxFold:
    """Plan the folding of every wanted layer of an ONNX model.

    Where there is an ``evaluation``, quotients of stored tensors are evaluated if weight norm was asked for,
    since v over its stored norm is one; with ``constants`` all that no rule knows. With ``requantize`` a
    weight whose original is stored as codes becomes codes by the same scheme. Raises ``LayerError`` if layers
    are refused, ``ArgumentError`` if the selection matches nothing.
    """
    model, tree = opened.model, opened.tree()
    found = find_graph_layers(model, selection.kinds)
    layers = tuple(item for item in found.layers if selection.wants(item.layer.name))
    index = index_of(model)
    at_run = _at_run(model, index, found, layers)
    names = [*(item.layer.name for item in found.layers), *(no.name for no in found.refused)]
    chosen = _Chosen(model, index, found, selection, evaluation, constants=constants)
    names += [weight.name for weight in at_run if chosen.may_be_evaluated(weight)]
    check_selection(selection, names)
    check_refused({"": [no for no in found.refused if selection.wants(no.name)]}, "folded")
    evaluated, left = chosen.among(at_run, {item.layer.name for item in layers})
    if (layers or evaluated) and opened.has_training:
        raise LayerError(
            "the file has training graphs, which use the weights that folding would remove",
            fix="export the model for inference",
        )
    layers, said = _in_codes(model, chosen.beside(layers, evaluated), requantize=requantize)
    changed = fold_edits(model, layers, evaluated)
    made = {tensor.layer for tensor in changed.tensors}
    layers = tuple(
        item for item in layers if item.layer.name in made
    )  # others are removed with the scope that stores them
    planned = tuple(_planned(model, state, layers, changed, evaluated) for state in tree.state_dicts)
    formulas = formula_notes(item.layer for item in layers)
    more = (*_notes(model, changed, layers, evaluated), *formulas, *said)
    notes = [*tree.notes, *idle_excludes(selection, names), *more]
    stay = found.stay if NormBehind.kind in selection.kinds else ()
    notes += told(((norm.name, norm.reason) for norm in stay), " stays: ", " stay: ")
    hints = tuple(hints_on(found.others, selection.kinds, (item.layer for item in found.layers)))
    plan = Plan(
        "fold",
        Container.ONNX,
        planned,
        notes=(*notes, *ComputedWeight.told(left)),
        kinds=selection.kinds,
        hints=hints,
        computed=left,
        constants=tuple(map(_constant, evaluated)),
    )
    unfolded = sum(not selection.wants(item.layer.name) for item in found.layers)
    return OnnxFold(plan, layers, changed, unfolded, len(stay), evaluated)


def weights_left(model: Model, found: GraphLayers) -> tuple[ComputedWeight, ...]:
    """The weights that a model computes of stored tensors at every run, once all layers are folded.

    ``found`` are the layers of some kinds. No tensor is read.
    """
    index = index_of(model)
    chosen = _Chosen(model, index, found, Selection(), None)
    at_run = _at_run(model, index, found, found.layers)
    return chosen.among(at_run, {item.layer.name for item in found.layers})[1]


def weights_computed(model: Model, found: GraphLayers) -> tuple[ComputedWeight, ...]:
    """The same of a model as it is, of which no layer is folded."""
    index = index_of(model)
    chosen = _Chosen(model, index, found, Selection(), None, "nothing folded it yet")
    return chosen.among(_at_run(model, index, found, ()), ())[1]


def _at_run(
    model: Model, index: Index, found: GraphLayers, folded: Sequence[GraphLayer]
) -> tuple[RunWeight, ...]:
    """The weights that a model computes at every run once some of the layers are ``folded``."""
    names: dict[ValueId, str] = {}
    for item in folded:
        for weight in item.weights:
            names |= dict.fromkeys(weight.values, item.layer.name)
        names |= {passed.value: item.layer.name for passed in item.passed}
    return weights_at_run(model, index, names, found.known)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Which of the weights that are computed at every run are evaluated, and why the others are left.

    ``unwanted`` says why a layer of a kind that was asked for is not folded.
    """

    model: Model
    index: Index
    found: GraphLayers
    selection: Selection
    evaluation: Evaluation | None
    unwanted: str = ""
    constants: bool = False

    def may_be_evaluated(self, weight: RunWeight) -> bool:
        """Whether a weight of no rule is evaluated if that can be done."""
        by_itself = Norm.kind in self.selection.kinds and self.is_quotient(weight)
        return self.evaluation is not None and (self.constants or by_itself)

    def is_quotient(self, weight: RunWeight) -> bool:
        """Whether a weight is a quotient of stored tensors, or of one and the norms of another."""
        return weight.is_quotient or self.over_norms(weight) is not None

    def over_norms(self, weight: RunWeight) -> EvaluatedWeight | None:
        """A weight that is a stored tensor over the norms of another's rows; None if it is none."""
        view = quotient_at(self.model, self.index, self.found.symbols, weight.made)
        if view is None:
            return None
        work = view.work(f"weight {weight.name}")
        assert isinstance(work, FoldLayer)  # noqa: S101 - nothing is rounded to codes on its way
        return EvaluatedWeight(weight.name, weight.made, weight.operators, view.original.info.shape, work)

    def among(
        self, at_run: Sequence[RunWeight], folded: Collection[str]
    ) -> tuple[tuple[EvaluatedWeight, ...], tuple[ComputedWeight, ...]]:
        """The weights that are evaluated, each once, and those that are left beside ``folded`` layers."""
        evaluated: dict[ValueId, EvaluatedWeight] = {}
        left: list[ComputedWeight] = []
        for weight in at_run:
            layer = self.found.known.get(weight.layer) if weight.layer is not None else None
            if layer is not None and layer.name not in folded:
                left.append(self.left_layer(weight, layer))
            elif weight.made not in evaluated:
                made = self.evaluated(weight)
                if isinstance(made, EvaluatedWeight):
                    evaluated[weight.made] = made
                else:
                    left.append(made)
        return tuple(evaluated.values()), tuple(left)

    def left_layer(self, weight: RunWeight, layer: KnownLayer) -> ComputedWeight:
        """A layer that a rule knows, with the reason why it is not folded."""
        kinds, reason, fix = layer.rule.kinds, layer.refused, ""
        if not reason and layer.name in {other.name for other in self.found.others}:
            reason, fix = _OTHER_KIND, f"{option('kinds', ','.join(kinds))} folds it"
        globs = f"{option('layers')} and {option('exclude')} leave it out"
        reason = reason or self.unwanted or globs
        return ComputedWeight(weight.value[0], layer.name, in_words(kinds), weight.node, reason, fix)

    def evaluated(self, weight: RunWeight) -> EvaluatedWeight | ComputedWeight:
        """A weight that no rule knows, evaluated; or why it is not."""
        reason, fix = self.obstacle(weight), ""
        if not reason and not self.may_be_evaluated(weight):
            reason, fix = self.unasked(weight)
        elif not reason and not self.selection.wants(weight.name):
            reason = f"{option('layers')} and {option('exclude')} leave it out"
        elif not reason and self.evaluation is not None:
            made = self.over_norms(weight) or self.evaluation(weight)
            if isinstance(made, EvaluatedWeight) and (self.constants or made.is_exact):
                return made
            if isinstance(made, EvaluatedWeight):
                reason, fix = _NO_RULE, _CONSTANTS
            else:
                reason = f"{_NO_RULE}, and {made}"
        what = listed(weight.operators, 4)
        return ComputedWeight(weight.value[0], weight.name, what, weight.node, reason, fix)

    def unasked(self, weight: RunWeight) -> tuple[str, str]:
        """Why a weight that could be evaluated is not, and what does it."""
        if not self.is_quotient(weight):
            return _NO_RULE, _CONSTANTS
        if Norm.kind not in self.selection.kinds:
            return _OTHER_KIND, f"{option('kinds', Norm.kind)} folds it"
        return "nothing folded it yet", "fold stores it: it is a quotient of stored tensors"

    def obstacle(self, weight: RunWeight) -> str:
        """Why a weight can be folded in no way; nothing if it may be evaluated."""
        if weight.flow:
            return f"{weight.flow} decides at every run what it is"
        strange = [op for op in weight.operators if op not in EVALUATED]
        if strange and self.over_norms(weight) is None:
            return f"{_NO_RULE}, and {strange[0]} is not evaluated"
        if isinstance(self.index.scopes[self.index.roots[weight.made[0]]], OnnxFunction):
            return f"{_NO_RULE}, and a function computes it ({INLINE})"
        if weight.made in self.index.outputs:
            return f"it is itself an output, {printable(weight.made[1])}"
        return ""

    def beside(
        self, layers: Sequence[GraphLayer], evaluated: Sequence[EvaluatedWeight]
    ) -> tuple[GraphLayer, ...]:
        """The layers that something still uses beside what is evaluated."""
        gone = removal(self.index, [each.made for each in evaluated]).nodes

        def is_used(value: ValueId) -> bool:
            return any(node.record.start not in gone for _, node in self.index.users.get(value, ()))

        return tuple(
            item
            for item in layers
            if item.passed or any(is_used(value) for weight in item.weights for value in weight.values)
        )


def _constant(weight: EvaluatedWeight) -> PlannedConstant:
    path, _ = weight.made
    dtype = str(weight.work.dtype)
    return PlannedConstant(path, weight.name, weight.operators, weight.shape, dtype, weight.is_exact)


def _in_codes(
    model: Model, layers: tuple[GraphLayer, ...], *, requantize: bool
) -> tuple[tuple[GraphLayer, ...], list[str]]:
    """Layers of which those with a v in codes become codes, if that is asked for; notes on what does not."""
    index = index_of(model)
    made, left, grown = list(layers), [], 0
    for at, layer in enumerate(layers):
        original = layer.parts[ORIGINAL].tensor
        of = original.made if isinstance(original, ViewedTensor) else None
        if (
            original is None
            or not isinstance(of, Dequantized)
            or any(each.view.steps for each in layer.weights)
        ):
            continue
        try:
            made[at] = _as_codes(model, index, layer, of) if requantize else layer
        except NoCodesError as error:
            left.append((layer.layer.name, str(error)))
        grown += 0 if requantize else original.info.nbytes - of.codes.info.nbytes
    notes = told(left, " is stored as numbers: ", " are stored as numbers: ")
    if grown:
        what = f"weights whose v is stored in codes become numbers, which take {grown:,} bytes more"
        notes.append(f"{what}; {option('requantize', True)} stores codes again")
    return tuple(made), notes


def _as_codes(model: Model, index: Index, layer: GraphLayer, of: Dequantized) -> GraphLayer:
    """A layer that is stored by the scheme of its v. Raises ``NoCodesError``."""
    used = [value for weight in layer.weights for value in weight.values]
    in_function = isinstance(index.scopes[index.roots[layer.path]], OnnxFunction)
    if layer.passed or in_function or len(used) != 1 or used[0] not in index.makers:
        raise NoCodesError("its weight is used in several places, or by a function")
    if layer.behind is not None:
        raise NoCodesError("a norm is folded into it")
    weight = layer.weights[0]
    return replace(
        layer, weights=(replace(weight, codes=codes_in(weight.view, of, model.opsets.get("", 0))),)
    )


def _planned(
    model: Model,
    state: StateDict,
    layers: Sequence[GraphLayer],
    changed: GraphEdits,
    evaluated: Sequence[EvaluatedWeight],
) -> PlannedStateDict:
    """The plan of a scope: the tensors that stay, and each new weight in the place of its original."""
    dtypes: dict[str, DType] = {tensor.layer: tensor.dtype for tensor in changed.tensors}
    here = [item.layer for item in layers if item.path == state.path]
    after: dict[str, list[Step]] = {}
    for layer in here:
        made = after.setdefault(layer.original.name, [])
        made.append(Fold(layer, dtypes[layer.name]))
        if layer.bias:
            made.append(Bias(layer, dtypes[layer.name]))
    gone = set(_gone(model, state.path, changed))
    steps: list[Step] = []
    for entry in state.entries:
        if entry.name not in gone:
            steps.append(Keep(entry.name, entry.name, is_tensor=entry.tensor is not None))
        steps += after.get(entry.name, ())
    here_too = (weight for weight in evaluated if weight.made[0] == state.path)
    steps += (EvaluateConstant(weight.name, weight.shape, weight.work) for weight in here_too)
    changes = tuple(Change(layer, None, dtypes[layer.name]) for layer in here)
    return PlannedStateDict(state.path, tuple(steps), changes)


def _gone(model: Model, path: str, changed: GraphEdits) -> Iterator[str]:
    """The names of stored tensors of a scope that nothing uses any more."""
    scope = next(scope for scope in model.scopes() if scope.path == path)
    for constant in getattr(scope, "constants", ()):
        if constant.record.start in changed.dropped:
            yield constant.name
    for node in scope.nodes:
        if node.record.start in changed.dropped:
            yield from node.outputs


def _notes(
    model: Model,
    changed: GraphEdits,
    layers: Sequence[GraphLayer],
    evaluated: Sequence[EvaluatedWeight],
) -> Iterator[str]:
    inputs = [port.name for port in model.graph.inputs if port.record.start in changed.dropped]
    if inputs:
        yield f"inputs that only repeated stored tensors go with them: {listed(inputs, 6)}"
    nodes = sum(node.record.start in changed.dropped for scope in model.scopes() for node in scope.nodes)
    if nodes:
        kinds = dict.fromkeys(kind for item in layers for kind in item.layer.rule.kinds)
        what = " and ".join([*map(_bare, kinds), *(["weights that are evaluated"] if evaluated else [])])
        yield f"left out with the {what}: {counted(nodes, 'node')} that nothing uses any more"


def _bare(kind: str) -> str:
    """A kind in words, without an article."""
    return WORDS[kind].removeprefix("a ")
