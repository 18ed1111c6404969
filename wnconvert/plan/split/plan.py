"""The plan of ``split``: plain weights become pairs.

The file's own record, another checkpoint, or globs and a dim choose them; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from wnconvert.errors import ArgumentError
from wnconvert.layers.conventions import CONVENTIONS, norm_of
from wnconvert.layers.dims import AUTO
from wnconvert.layers.find import FoundPairs
from wnconvert.layers.kinds.table import in_words
from wnconvert.layers.schemes import Layer, Refused, Selection
from wnconvert.messages import counted, few, listed, option
from wnconvert.plan.names.renaming import Renaming
from wnconvert.plan.plan import Change, Plan, PlannedStateDict
from wnconvert.plan.record.history import Record, gone, origins, without_layers
from wnconvert.plan.selection.again import found_in_output, needs_naming
from wnconvert.plan.selection.draft import Draft
from wnconvert.plan.selection.scope import choose, elements_of, kept_as_is, scope_of
from wnconvert.plan.selection.wanted import check_selection, find_layers, optimizer_is_stale
from wnconvert.plan.split.by_globs import as_globs_say
from wnconvert.plan.split.by_reference import as_like, as_named_in
from wnconvert.plan.split.candidates import SplitRequest, as_recorded
from wnconvert.plan.steps import Direction, Keep, Magnitude, Step
from wnconvert.tensors.containers import Container
from wnconvert.tensors.tree import Dim, StateDict, Tree

__all__ = ["plan_split", "wishes_for"]


def plan_split(
    tree: Tree,
    container: Container,
    *,
    to: str | None = None,
    like: Tree | None = None,
    renaming: Renaming = Renaming(),  # noqa: B008 - frozen
    selection: Selection = Selection(),  # noqa: B008 - frozen
    only: str | None = None,
    keep_optimizer: bool = False,
) -> Plan:
    """Plan the splitting of plain weights of ``tree`` into g and v, into a file of ``container``.

    The weights, their dims and their form come from ``like`` (another checkpoint), else from the selection's
    globs and dim, else from the record of earlier folds; nothing is guessed. ``to`` is the form, or None for
    that of the record or of ``like``, else parametrize. ``renaming`` gave ``tree`` its names; ``like`` may
    have them, or those from before.

    Raises as ``plan_fold`` does; ``LayerError`` also for layers of ``like`` or of the record that are not
    there or have another shape, and for whole pickled modules.
    """
    chosen = choose(tree, only)
    seen = as_named_in(like, chosen, renaming) if like is not None else None
    wishes = wishes_for(tree, chosen, selection, seen.tree if seen else None, to)
    names = [name for wish in wishes.values() for name in wish.names]
    busy = (path for path, wish in wishes.items() if wish.layers or wish.refused or wish.already)
    scope = scope_of(tree, container, chosen, only, busy)
    draft = Draft("split", tree, container, selection, scope, names)
    mine = {state.path: wishes[state.path] for state in draft.states if state.path in wishes}
    draft.check_refused({path: wish.refused for path, wish in mine.items()})
    draft.refuse_modules(path for path, wish in mine.items() if wish.layers)
    planned = tuple(_split(state, mine.get(state.path)) for state in draft.states)
    both = list(zip(draft.states, planned, strict=True))
    again = {state.path: _found_again(state, item) for state, item in both}
    draft.check_refused({item.path: tuple(_not_found(item, again[item.path])) for item in planned})
    more = few(note for state, item in both for note in _untied(state, item))
    for state, item in both:
        more += (*needs_naming(state, item), *_needs_dim(item, again[item.path]))
    more += [note for item in planned for note in _needs_eps(item)]
    return draft.plan(
        planned,
        record=_record(draft, planned, mine),
        optimizers=()
        if keep_optimizer
        else draft.without_optimizers(planned, optimizer_is_stale("splitting")),
        already=sum(wish.already for wish in mine.values()),
        notes=[
            *(seen.notes if seen else ()),
            *(note for wish in mine.values() for note in wish.notes),
            *more,
        ],
    )


def _needs_eps(planned: PlannedStateDict) -> Iterable[str]:
    """Notes on layers whose g belongs to another eps than a fold takes by itself: no file says it."""
    made: dict[float, list[str]] = {}
    for change in planned.changes:
        layer = change.after
        if layer is not None and layer.guard != norm_of(layer.form, layer.dim).guard:
            made.setdefault(layer.guard.eps if layer.guard else 0.0, []).append(layer.name)
    for eps, names in made.items():
        yield f"g of {listed(names, 3)} belongs to an eps of {eps:g}: fold {option('eps', eps)}"


def _record(
    draft: Draft, planned: Iterable[PlannedStateDict], wishes: Mapping[str, SplitRequest]
) -> tuple[Mapping[str, Any], ...]:
    """The record without the folds that this split undoes; those that stay are recorded anew."""
    left = {path: wish.left for path, wish in wishes.items()}
    gone = {
        item.path: [
            *(change.name for change in item.changes),
            *(origin.layer.name for origin in left.get(item.path, ())),
        ]
        for item in planned
    }
    return draft.recorded(without_layers(draft.tree.record, "fold", gone), "fold", left)


def _split(state: StateDict, wish: SplitRequest | None) -> PlannedStateDict:
    """The steps of one state dict."""
    if wish is None:
        return kept_as_is(state)
    tensors = state.tensors
    made: dict[str, Step] = {}
    for layer in wish.layers.values():
        made[layer.g.name], made[layer.v.name] = Magnitude(layer), Direction(layer)
    kept = {entry.name for entry in state.entries}  # others are left out of it
    steps = (
        made.get(name, Keep(name, name, is_tensor=name in tensors))
        for name in wish.order
        if name in made or name in kept
    )
    changes = (Change(None, layer, layer.v.dtype) for layer in wish.layers.values())
    return PlannedStateDict(state.path, tuple(steps), tuple(changes))


def _found_again(state: StateDict, planned: PlannedStateDict) -> FoundPairs:
    """The layers that a fold of the output would find, if it names those that are made."""
    names = frozenset(change.name for change in planned.changes)
    return found_in_output(state, planned, Selection(named=names)) if names else FoundPairs((), (), (), ())


def _not_found(planned: PlannedStateDict, found: FoundPairs) -> Iterable[Refused]:
    """The refusals of layers that a fold of the output would not find again, because of other keys."""
    layers = {change.name: change.layer for change in planned.changes}
    again = {layer.name: layer for layer in found.layers}
    reasons = {no.name: no.reason for no in found.refused}
    for name, layer in layers.items():
        if name not in again:
            reason = reasons.get(name, "no layer has such a name")
        elif _is_read_otherwise(layer, again[name]) and CONVENTIONS[layer.form].is_torchs:
            reason = f"its g {layer.g.shape} would be read along dim {again[name].dim}, not {layer.dim}"
        else:
            continue
        yield Refused(name, f"a fold would not find it again: {reason}")


def _is_read_otherwise(layer: Layer, again: Layer) -> bool:
    """Whether a layer's g would be read along another dim than its own."""
    return again.dim != layer.dim and layer.g.numel != 1


def _needs_dim(planned: PlannedStateDict, found: FoundPairs) -> Iterable[str]:
    """A note on each dim of layers that are found again along another one, since their g is a vector."""
    layers = {change.name: change.layer for change in planned.changes}
    dims: dict[Dim, list[str]] = {}
    for again in found.layers:
        if again.name in layers and _is_read_otherwise(layers[again.name], again):
            dims.setdefault(layers[again.name].dim, []).append(again.name)
    for dim, names in dims.items():
        yield f"{listed(names, 3)}: the next fold needs {option('dim', dim)}, which a vector does not show"


def _untied(state: StateDict, planned: PlannedStateDict) -> Iterable[str]:
    """Notes on weights that shared memory with a name that stays plain: v is a tensor of its own."""
    tensors = state.tensors
    kept: dict[object, str] = {}
    for step in planned.steps:
        stored = None if step.kept is None else tensors.get(step.kept)
        if stored is not None and stored.info.numel:
            kept.setdefault(elements_of(stored), str(step.kept))
    for change in planned.changes:
        if other := kept.get(elements_of(tensors[change.name])):
            yield f"{other} shared memory with {change.name}, which is split: two tensors now"


def _three_ways() -> str:
    like, globs, dim = (
        option("like", metavar="REF"),
        option("layers", metavar="GLOB"),
        option("dim", metavar="N"),
    )
    return (
        f"{like} takes layers, dims and form of another checkpoint; {globs} {dim} (0 is torch's own default, "
        "none the whole tensor) names the weights; a file that wnconvert fold wrote says it itself (but .npz)"
    )


def _axes() -> str:
    return (
        f"{option('dim', 0)} (a norm for each leading row, torch's own default), {option('dim', None)} "
        "(one of the whole tensor), or another axis"
    )


def wishes_for(
    tree: Tree, chosen: Sequence[StateDict], selection: Selection, like: Tree | None, to: str | None
) -> dict[str, SplitRequest]:
    """The requests for the chosen state dicts, by path; one without layers to split may be missing."""
    if like is not None:
        if selection.dim != AUTO:
            raise ArgumentError(
                f"{option('like')} says every dim itself",
                fix=f"leave {option('dim')} out, or {option('like')}",
            )
        return as_like(chosen, like, selection, to)
    if selection.dim != AUTO:
        if not selection.layers:
            raise ArgumentError(
                f"{option('dim')} alone names no layers", fix=f"{option('layers', metavar='GLOB')} beside it"
            )
        return as_globs_say(tree, chosen, selection, to)
    steps = {state.path: origins(tree.record, state.path, "fold") for state in chosen}
    lost = {state.path: tuple(_lost(tree.record, state)) for state in chosen}
    if not any(steps.values()):
        if said := [note for of_path in lost.values() for note in of_path]:
            raise ArgumentError("; ".join(said), fix=_three_ways())
        if selection.layers:
            raise ArgumentError(
                f"{option('layers')} names weights, but not the axis of their norms", fix=_axes()
            )
        what = "nothing says which weights to split: there is no record of a fold"
        split = sum(len(find_layers(state, Selection()).layers) for state in chosen)
        there_are = f" ({counted(split, 'layer')} split already)" if split else ""
        raise ArgumentError(what + there_are, fix=_three_ways())
    wishes = {state.path: as_recorded(state, steps[state.path], selection, to) for state in chosen}
    wishes = {path: replace(wish, notes=(*wish.notes, *lost[path])) for path, wish in wishes.items()}
    check_selection(selection, [name for wish in wishes.values() for name in wish.names])
    return wishes


def _lost(record: Record, state: StateDict) -> Iterable[str]:
    """A sentence on the weights that folds made of other layers than pairs."""
    names: dict[tuple[str, ...], list[str]] = {}
    for name, kinds in gone(record, state.path).items():
        if name in state.tensors:
            names.setdefault(kinds, []).append(name)
    for kinds, alike in names.items():
        what = f"{listed(alike, 10)} {'was' if len(alike) == 1 else 'were'} folded of {in_words(kinds)}"
        yield f"{what}, which cannot be given back: what it was computed of is gone"
