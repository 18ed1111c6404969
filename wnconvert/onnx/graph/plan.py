"""The plan of folding an ONNX model, with the edits that carry it out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from wnconvert.errors import LayerError
from wnconvert.layers.kinds.others import hints_on
from wnconvert.layers.kinds.table import WORDS, in_words
from wnconvert.layers.rules import NormBehind
from wnconvert.layers.schemes import Selection
from wnconvert.messages import counted, listed, option, told
from wnconvert.onnx.file.model import GraphEdits, Model
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.graph.computed import GraphLayer
from wnconvert.onnx.graph.edits import fold_edits
from wnconvert.onnx.graph.index import ValueId, index_of
from wnconvert.onnx.graph.layers import GraphLayers, find_graph_layers
from wnconvert.onnx.graph.weights import RunWeight, weights_at_run
from wnconvert.plan.plan import Change, ComputedWeight, Plan, PlannedStateDict
from wnconvert.plan.selection.wanted import check_refused, check_selection, idle_excludes
from wnconvert.plan.steps import Bias, Fold, Keep, Step
from wnconvert.tensors.containers import Container
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import StateDict

__all__ = ["OnnxFold", "plan_onnx", "weights_left"]


@dataclass(frozen=True, slots=True)
class OnnxFold:
    """A plan, the layers that it folds, how many are left as they are, and the changes of the model.

    ``stay`` counts norms that do not fold, each of which has a note.
    """

    plan: Plan
    layers: tuple[GraphLayer, ...]
    edits: GraphEdits
    left: int = 0
    stay: int = 0

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


def plan_onnx(opened: OnnxFile, selection: Selection = Selection()) -> OnnxFold:  # noqa: B008 - frozen
    """Plan the folding of every wanted layer of an ONNX model.

    Raises ``LayerError`` if layers are refused, ``ArgumentError`` if the selection matches nothing.
    """
    model, tree = opened.model, opened.tree()
    found = find_graph_layers(model, selection.kinds)
    names = [*(item.layer.name for item in found.layers), *(no.name for no in found.refused)]
    check_selection(selection, names)
    check_refused({"": [no for no in found.refused if selection.wants(no.name)]}, "folded")
    layers = tuple(item for item in found.layers if selection.wants(item.layer.name))
    if layers and opened.has_training:
        raise LayerError(
            "the file has training graphs, which use the weights that folding would remove",
            fix="export the model for inference",
        )
    changed = fold_edits(model, layers)
    made = {tensor.layer for tensor in changed.tensors}
    layers = tuple(
        item for item in layers if item.layer.name in made
    )  # others are removed with the scope that stores them
    planned = tuple(_planned(model, state, layers, changed) for state in tree.state_dicts)
    notes = [*tree.notes, *idle_excludes(selection, names), *_notes(model, changed, layers)]
    stay = found.stay if NormBehind.kind in selection.kinds else ()
    notes += told(((norm.name, norm.reason) for norm in stay), " stays: ", " stay: ")
    hints = tuple(hints_on(found.others, selection.kinds, (item.layer for item in found.layers)))
    unwanted = f"{option('layers')} and {option('exclude')} leave it out"
    left = weights_left(model, found, layers, unwanted)
    notes += ComputedWeight.told(left)
    plan = Plan(
        "fold",
        Container.ONNX,
        planned,
        notes=tuple(notes),
        kinds=selection.kinds,
        hints=hints,
        computed=left,
    )
    return OnnxFold(plan, layers, changed, len(found.layers) - len(layers), len(stay))


def weights_left(
    model: Model, found: GraphLayers, folded: Sequence[GraphLayer], unwanted: str = ""
) -> tuple[ComputedWeight, ...]:
    """The weights that a model computes of stored tensors at every run, once some layers are folded.

    ``found`` are the layers of some kinds, of which some or all are ``folded``, the others for the reason
    ``unwanted``. No tensor is read.
    """
    names: dict[ValueId, str] = {}
    for item in folded:
        for weight in item.weights:
            names |= dict.fromkeys(weight.values, item.layer.name)
        names |= {passed.value: item.layer.name for passed in item.passed}
    at_run = weights_at_run(model, index_of(model), names, found.known)
    return tuple(_left(weight, found, set(names.values()), unwanted) for weight in at_run)


def _left(weight: RunWeight, found: GraphLayers, folded: Collection[str], unwanted: str) -> ComputedWeight:
    """A weight that is left, with the reason."""
    path, _ = weight.value
    layer = found.known.get(weight.layer) if weight.layer is not None else None
    if layer is None or layer.name in folded:
        reason = "no rule knows its arithmetic"
        if weight.flow:
            reason = f"{weight.flow} decides at every run what it is"
        return ComputedWeight(path, weight.name, listed(weight.operators, 4), weight.node, reason)
    kinds, reason, fix = layer.rule.kinds, layer.refused, ""
    if not reason and layer.name in {other.name for other in found.others}:
        reason, fix = "another kind was asked for", f"{option('kinds', ','.join(kinds))} folds it"
    return ComputedWeight(path, layer.name, in_words(kinds), weight.node, reason or unwanted, fix)


def _planned(
    model: Model, state: StateDict, layers: Sequence[GraphLayer], changed: GraphEdits
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


def _notes(model: Model, changed: GraphEdits, layers: Sequence[GraphLayer]) -> Iterator[str]:
    inputs = [port.name for port in model.graph.inputs if port.record.start in changed.dropped]
    if inputs:
        yield f"inputs that only repeated stored tensors go with them: {listed(inputs, 6)}"
    nodes = sum(node.record.start in changed.dropped for scope in model.scopes() for node in scope.nodes)
    if nodes:
        kinds = dict.fromkeys(kind for item in layers for kind in item.layer.rule.kinds)
        what = " and ".join(map(_bare, kinds))
        yield f"left out with the {what}: {counted(nodes, 'node')} that nothing uses any more"


def _bare(kind: str) -> str:
    """A kind in words, without an article."""
    return WORDS[kind].removeprefix("a ")
