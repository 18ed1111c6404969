"""The plan of ``fold``: every wanted layer becomes a plain weight."""

from __future__ import annotations

from collections.abc import Sequence

from wnconvert.layers.schemes import Layer, Selection
from wnconvert.plan.plan import Change, LeftOut, Plan, PlannedStateDict
from wnconvert.plan.record import origin_data, recorded
from wnconvert.plan.scope import choose, optimizers_left_out, scope_of, tie_notes
from wnconvert.plan.steps import Fold, Keep, Step
from wnconvert.plan.wanted import (
    check_refused,
    check_selection,
    find_layers,
    idle_excludes,
    looks_like_layers,
    notes_on,
)
from wnconvert.tensors.containers import Container
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import Entry, StateDict, Tree

__all__ = ["plan_fold"]


_WHY_NO_OPTIMIZER = (
    "optimizer state is by position, and folding changes the positions; --keep-optimizer keeps it"
)


def plan_fold(
    tree: Tree,
    container: Container,
    *,
    selection: Selection = Selection(),  # noqa: B008 - frozen
    only: str | None = None,
    dtype: DType | None = None,
    keep_optimizer: bool = False,
) -> Plan:
    """Plan the folding of every wanted layer of ``tree`` into a file of ``container``.

    A file of torch's takes all state dicts and siblings, one of safetensors a single state dict.
    Raises ``LayerError`` where layers are refused and ``ArgumentError`` where ``only`` or the selection
    names nothing, or a safetensors file would have to hold several state dicts.
    """
    chosen = choose(tree, only)
    found = {state.path: find_layers(state, selection) for state in chosen}
    names = [name for item in found.values() for name in looks_like_layers(item)]
    check_selection(selection, names)
    busy = (path for path, item in found.items() if item.layers or item.refused)
    scope = scope_of(tree, container, chosen, only, busy)
    check_refused({state.path: found[state.path].refused for state in scope.states}, "folded")
    planned = tuple(_fold(state, found[state.path].layers, dtype) for state in scope.states)
    optimizers: tuple[LeftOut, ...] = ()
    if scope.only is None and any(item.changes for item in planned) and not keep_optimizer:
        optimizers = optimizers_left_out(tree, _WHY_NO_OPTIMIZER)
    kept = {state.path: "" if container is Container.SAFETENSORS else state.path for state in scope.states}
    return Plan(
        "fold",
        container,
        planned,
        only=scope.only,
        dropped=(*optimizers, *scope.dropped),
        record=recorded(
            tree.record,
            kept,
            "fold",
            {state.path: _origins(state, item) for state, item in zip(scope.states, planned, strict=True)},
        ),
        notes=(
            *tree.notes,
            *idle_excludes(selection, names),
            *(note for state in scope.states for note in notes_on(found[state.path])),
            *(tie_notes(scope.states[0], planned[0]) if container is Container.SAFETENSORS else ()),
        ),
    )


def _fold(state: StateDict, layers: Sequence[Layer], dtype: DType | None) -> PlannedStateDict:
    """Every key in its place; w stands where the first half of its pair stood."""
    half_of = {half.name: layer for layer in layers for half in (layer.g, layer.v)}
    steps: dict[str, Step] = {}
    for entry in state.entries:
        layer = half_of.get(entry.name)
        if layer is None:
            is_tensor = entry.tensor is not None
            steps[entry.name] = Keep(entry.name, entry.name, _cast(entry, dtype), is_tensor)
        elif layer.name not in steps:
            steps[layer.name] = Fold(layer, dtype or layer.v.dtype)
    folds = (step for step in steps.values() if isinstance(step, Fold))
    changes = tuple(Change(fold.layer, None, fold.dtype) for fold in folds)
    return PlannedStateDict(state.path, tuple(steps.values()), changes)


def _cast(entry: Entry, dtype: DType | None) -> DType | None:
    if dtype is None or entry.tensor is None or not entry.tensor.info.dtype.foldable:
        return None
    return dtype if dtype != entry.tensor.info.dtype else None


def _origins(state: StateDict, planned: PlannedStateDict) -> list[dict[str, object]]:
    """What ``split`` needs to give each pair its names, shapes and places back."""
    place = {entry.name: index for index, entry in enumerate(state.entries)}
    return [origin_data(change.layer, place) for change in planned.changes]
