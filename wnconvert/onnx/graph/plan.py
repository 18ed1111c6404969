"""The plan of folding an ONNX model, with the edits that carry it out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wnconvert.errors import LayerError
from wnconvert.layers.kinds.formulas import formula_notes
from wnconvert.layers.kinds.others import hints_on
from wnconvert.layers.kinds.table import WORDS
from wnconvert.layers.rules import NormBehind
from wnconvert.layers.schemes import Selection
from wnconvert.messages import counted, listed, option, told
from wnconvert.onnx.file.model import GraphEdits, Model
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.graph.computed import GraphLayer
from wnconvert.onnx.graph.edits import fold_edits
from wnconvert.onnx.graph.layers import find_graph_layers
from wnconvert.plan.plan import Change, Plan, PlannedStateDict
from wnconvert.plan.selection.wanted import check_refused, check_selection, idle_excludes
from wnconvert.plan.steps import Bias, Fold, Keep, Step
from wnconvert.tensors.containers import Container
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import StateDict

__all__ = ["OnnxFold", "plan_onnx"]


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
        return f"no {' or '.join(map(_bare, self.plan.kinds))} is left in the graph"


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
    formulas = formula_notes(item.layer for item in layers)
    notes = [*tree.notes, *idle_excludes(selection, names), *_notes(model, changed, layers), *formulas]
    stay = found.stay if NormBehind.kind in selection.kinds else ()
    notes += told(((norm.name, norm.reason) for norm in stay), " stays: ", " stay: ")
    hints = tuple(hints_on(found.others, selection.kinds, (item.layer for item in found.layers)))
    plan = Plan("fold", Container.ONNX, planned, notes=tuple(notes), kinds=selection.kinds, hints=hints)
    return OnnxFold(plan, layers, changed, len(found.layers) - len(layers), len(stay))


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
