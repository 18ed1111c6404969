"""The plan of ``fold``: every wanted layer becomes a plain weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from wnconvert.errors import ArgumentError
from wnconvert.layers.find import FoundPairs
from wnconvert.layers.rules import Rule, Stored
from wnconvert.layers.schemes import FORMS, Layer, Selection, is_pair
from wnconvert.messages import option
from wnconvert.plan.norms import NormSteps, refused_to_keep, steps_beside
from wnconvert.plan.plan import Change, Plan, PlannedStateDict
from wnconvert.plan.record.origins import Origin, origin_of
from wnconvert.plan.selection.draft import FoundDraft
from wnconvert.plan.selection.wanted import check_eps, optimizer_is_stale
from wnconvert.plan.steps import Fold, Keep, Step
from wnconvert.tensors.containers import Container
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import Entry, StateDict, Tree

__all__ = ["plan_fold"]


def plan_fold(
    tree: Tree,
    container: Container,
    *,
    selection: Selection = Selection(),  # noqa: B008 - frozen
    only: str | None = None,
    dtype: DType | None = None,
    keep_norms: bool = False,
    keep_optimizer: bool = False,
    known: Mapping[str, FoundPairs] | None = None,
) -> Plan:
    """Plan the folding of every wanted layer of ``tree`` into a file of ``container``.

    ``keep_norms`` keeps the keys of norms that are folded into layers, with numbers that do nothing.
    ``known`` are its layers by path, where this selection found them before.
    A file of torch's takes all state dicts and siblings, one of safetensors a single state dict.
    Raises ``LayerError`` where layers are refused and ``ArgumentError`` where ``only`` or the selection
    names nothing, or a safetensors file would have to hold several state dicts.
    """
    if keep_norms and selection.recipe is None and selection.asked is None:
        keep = option("keep_norms", True)
        fix = option("recipe", metavar="FILE")
        raise ArgumentError(f"{keep} is about norms that are folded, and nothing tells of any", fix=fix)
    draft = FoundDraft.of("fold", tree, container, selection, only, known=known)
    draft.check_refused(draft.refused)
    draft.check_fits()
    check_eps(draft.found.values(), selection)
    draft.refuse_modules(
        state.path
        for state in draft.states
        if not all(_is_torchs(layer, state) for layer in draft.found[state.path].layers)
    )
    found = {state.path: draft.found[state.path].layers for state in draft.states}
    if keep_norms:
        draft.check_refused({path: tuple(refused_to_keep(layers, dtype)) for path, layers in found.items()})
    planned = tuple(
        _fold(state, found[state.path], steps_beside(found[state.path], dtype, keep_norms=keep_norms), dtype)
        for state in draft.states
    )
    origins = {state.path: _origins(state, item) for state, item in zip(draft.states, planned, strict=True)}
    gone = {item.path: [change.layer for change in item.changes] for item in planned}
    plan = draft.plan(
        planned,
        record=draft.recorded(tree.record, "fold", origins, gone),
        optimizers=() if keep_optimizer else draft.without_optimizers(planned, optimizer_is_stale("folding")),
        notes=draft.found_notes(),
    )
    return replace(
        plan,
        kinds=selection.kinds,
        unwanted=0 if selection.recipe is None else sum(len(each.unwanted) for each in draft.found.values()),
        hints=tuple(draft.hints()),
        left=tuple(draft.left_norms()),
    )


def _is_torchs(layer: Layer, state: StateDict) -> bool:
    """Whether a pickled module has hooks of torch's for it, which can be left out."""
    is_known = is_pair(layer) or layer.name in state.dims
    return layer.form in FORMS and layer.grade == "keys" and is_known


def _fold(
    state: StateDict, layers: Sequence[Layer], beside: NormSteps, dtype: DType | None
) -> PlannedStateDict:
    """Every key in its place; a weight stands where the first tensor of its layer stood."""
    layer_of = {part.name: layer for layer in layers for part in layer.of_weight}
    steps: dict[str, Step] = {}
    changes: list[Change] = []
    for entry in state.entries:
        layer = layer_of.get(entry.name)
        if entry.name in beside.gone:
            continue
        if entry.name in beside.steps:
            steps[entry.name] = beside.steps[entry.name]
        elif layer is None:
            is_tensor = entry.tensor is not None
            steps[entry.name] = Keep(entry.name, entry.name, _cast(entry, dtype), is_tensor)
        elif layer.name not in steps:
            folded = dtype or layer.original.dtype
            steps[layer.name] = Fold(layer, folded) if layer.rule != _STORED else _kept(layer, dtype)
            changes.append(Change(layer, None, folded))
            if layer.name in beside.new:
                steps[layer.bias] = beside.new[layer.name]
    return PlannedStateDict(state.path, tuple(steps.values()), tuple(changes))


_STORED = Rule((Stored(),))


def _kept(layer: Layer, dtype: DType | None) -> Keep:
    """The weight that is stored already."""
    return Keep(layer.name, layer.name, dtype if dtype != layer.original.dtype else None)


def _cast(entry: Entry, dtype: DType | None) -> DType | None:
    if dtype is None or entry.tensor is None or not entry.tensor.info.dtype.foldable:
        return None
    return dtype if dtype != entry.tensor.info.dtype else None


def _origins(state: StateDict, planned: PlannedStateDict) -> list[Origin]:
    """The names, shapes and places of each pair, which ``split`` needs to restore it."""
    place = {entry.name: index for index, entry in enumerate(state.entries)}
    return [origin_of(change.layer, place) for change in planned.changes if is_pair(change.layer)]
