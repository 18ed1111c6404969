"""The second way to choose the layers to split: those of another checkpoint (``--like``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from wnconvert.errors import ArgumentError, LayerError
from wnconvert.layers.schemes import Layer, Refused, Selection, spellings
from wnconvert.messages import counted, listed, option
from wnconvert.plan.names.prefixes import prefixes_apart
from wnconvert.plan.names.renaming import Renaming
from wnconvert.plan.names.trees import renamed_state, weights_of
from wnconvert.plan.names.wrappers import seen_through
from wnconvert.plan.order import as_in
from wnconvert.plan.record.history import origins, renamed_record
from wnconvert.plan.record.origins import Origin
from wnconvert.plan.selection.wanted import check_selection, find_layers, looks_like_layers
from wnconvert.plan.split.candidates import Candidates, SplitRequest, as_recorded
from wnconvert.tensors.tree import StateDict, Tree

__all__ = ["NamedAlike", "as_like", "as_named_in"]


@dataclass(frozen=True, slots=True)
class _Reference:
    """A state dict of ``--like``: its keys as they stand unfolded, and its wanted layers.

    ``names`` are all weights that look like layers, wanted or not; ``plain`` are its tensors.
    """

    path: str
    keys: Sequence[str]
    layers: Sequence[Layer]
    names: Sequence[str]
    plain: frozenset[str]
    refused: Sequence[Refused]


def _reference(like: Tree, state: StateDict, selection: Selection) -> _Reference:
    """The layers of a state dict of ``--like``: those that its keys show, and those that its record shows."""
    found = find_layers(state, selection)
    folded = as_recorded(state, origins(like.record, state.path, "fold"), selection, None)
    return _Reference(
        state.path,
        folded.order,
        (*found.layers, *folded.layers.values()),
        (*looks_like_layers(found), *folded.names),
        frozenset(state.tensors),
        (*found.refused, *folded.refused),
    )


@dataclass(frozen=True, slots=True)
class NamedAlike:
    """The reference with the names that its layers have in the file, and notes on what was seen through."""

    tree: Tree
    notes: tuple[str, ...]


def as_named_in(like: Tree, chosen: Sequence[StateDict], renaming: Renaming) -> NamedAlike:
    """The reference under the names of the ``chosen`` state dicts, which ``renaming`` gave them.

    Its own names may be these, or those from before; and either side may have wrappers around its modules.
    """
    names = {name for state in chosen for name in weights_of(state).values()}
    seen = _through_wrappers(like, names)
    if not renaming:
        return seen
    states = (renamed_state(state, renaming) for state in like.state_dicts)
    record = renamed_record(like.record, {state.path: renaming for state in like.state_dicts})
    renamed = _through_wrappers(replace(like, state_dicts=tuple(states), record=record), names)
    return max(seen, renamed, key=lambda item: len(names & _names_of(item.tree)))


def _names_of(like: Tree) -> set[str]:
    layers = {origin.layer.name for state in like.state_dicts for origin in _folds(like, state)}
    return layers | {name for state in like.state_dicts for name in weights_of(state).values()}


def _folds(like: Tree, state: StateDict) -> Iterator[Origin]:
    return chain.from_iterable(origins(like.record, state.path, "fold"))


def _through_wrappers(like: Tree, names: set[str]) -> NamedAlike:
    seen = {state.path: seen_through(weights_of(state).values(), names) for state in like.state_dicts}
    states = tuple(
        renamed_state(state, seen[state.path]) if seen[state.path] else state for state in like.state_dicts
    )
    record = renamed_record(like.record, seen)
    notes = chain.from_iterable(item.notes(option("like")) for item in seen.values())
    return NamedAlike(replace(like, state_dicts=states, record=record), tuple(dict.fromkeys(notes)))


def as_like(
    chosen: Sequence[StateDict], like: Tree, selection: Selection, to: str | None
) -> dict[str, SplitRequest]:
    """Request the layers of another checkpoint, in its order."""
    references = [_reference(like, state, selection) for state in like.state_dicts]
    check_selection(selection, [name for item in references for name in item.names])
    if not any(item.names for item in references):
        raise ArgumentError(
            f"{option('like')} has no weight-normalized layers to go by",
            fix="name a checkpoint that is not folded, or that wnconvert fold wrote",
        )
    wishes = {}
    followed = set()
    for state in chosen:
        item = _counterpart(state, references, alone=len(chosen) == 1)
        if item is None:
            continue
        followed.add(item.path)
        if item.refused:
            no = item.refused[0]
            raise LayerError(f"layer {no.name} of {option('like')} cannot be used: {no.reason}", fix=no.fix)
        there = Candidates(state, selection)
        _check_lacking(there, item.layers)
        for layer in item.layers:
            there.want(layer, f"unlike in {option('like')},")
        wishes[state.path] = there.wish(_order_as_in(item, there), to, names=item.names)
    idle = [item.path or "." for item in references if item.layers and item.path not in followed]
    if idle and wishes:
        first = next(iter(wishes))
        note = f"{option('like')} has layers in {listed(idle, 4)} too, without a counterpart here"
        wishes[first] = replace(wishes[first], notes=(*wishes[first].notes, note))
    if not wishes:
        every = dict.fromkeys(name for item in references for name in item.names)
        raise ArgumentError(
            f"no state dict of it has all the layers of {option('like')} ({listed(every, 3)})",
            fix=f"{option('like')} names a checkpoint of the same model; {_only_path()} names the state dict",
        )
    return wishes


def _order_as_in(reference: _Reference, there: Candidates) -> list[str]:
    """The keys with the pairs where the reference has them."""
    order = there.order()
    here = set(order)
    instead: dict[str, tuple[str, ...]] = {}  # of a half that is not here: what stands for its layer
    for name in reference.names:
        halves = spellings(name)
        instead |= dict.fromkeys(halves, tuple(key for key in (name, *halves) if key in here))
    as_here = [key for name in reference.keys for key in ([name] if name in here else instead.get(name, ()))]
    moved = [half.name for layer in there.layers.values() for half in layer.halves]
    return as_in(order, moved, list(dict.fromkeys(as_here)))


def _check_lacking(there: Candidates, layers: Sequence[Layer]) -> None:
    """Raise ``LayerError`` where the reference has layers whose weights are not there."""
    names = {entry.name for entry in there.state.entries} | set(there.split)
    lacking = [layer.name for layer in layers if layer.name not in names]
    if not lacking:
        return
    where = there.state.path
    if len(lacking) == len(layers):
        what = f"none of the layers of {option('like')} is in it: {listed(lacking)}"
        apart = prefixes_apart({layer.name for layer in layers}, names, least=len(layers))
        raise LayerError(what, where=where, fix=apart.fix if apart else _same_model())
    raise LayerError(
        f"it lacks {counted(len(lacking), 'layer')} of {option('like')}",
        items=[(name, "") for name in lacking],
        where=where,
        fix=f"{option('exclude')} leaves a layer out; {_only_path()} names the state dict that is meant",
    )


def _same_model() -> str:
    return f"{option('like')} names a checkpoint of the same model, with the same names"


def _only_path() -> str:
    return option("only", metavar="PATH")


def _counterpart(state: StateDict, references: Sequence[_Reference], *, alone: bool) -> _Reference | None:
    """The state dict of the reference that a state dict should be like, if there is one.

    It is the one at the same path, else one whose layers it has all (unless these are plain in the one at
    the same path), else the only one there is.
    """
    with_layers = [item for item in references if item.names]
    for item in with_layers:
        if item.path == state.path:
            return item
    mine = {layer.name for layer in find_layers(state, Selection()).layers} | set(state.tensors)
    plain = {name for item in references if item.path == state.path for name in item.plain}
    for item in with_layers:
        wanted = {*(layer.name for layer in item.layers), *(no.name for no in item.refused)}
        if mine >= wanted and (alone or plain.isdisjoint(wanted)):
            return item
    return with_layers[0] if alone and len(with_layers) == 1 else None
