"""The second way to choose the layers to split: those of another checkpoint (``--like``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from wnconvert.errors import ArgumentError, LayerError
from wnconvert.layers.schemes import Layer, Refused, Selection, spellings
from wnconvert.messages import counted, listed, option
from wnconvert.plan.order import as_in
from wnconvert.plan.record import origins
from wnconvert.plan.selection.wanted import check_selection, find_layers, looks_like_layers
from wnconvert.plan.split.candidates import Candidates, SplitRequest, as_recorded
from wnconvert.tensors.tree import StateDict, Tree

__all__ = ["as_like"]


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
        raise LayerError(what, where=where, fix=_prefix_hint(layers, names) or _same_model())
    raise LayerError(
        f"it lacks {counted(len(lacking), 'layer')} of {option('like')}",
        items=[(name, "") for name in lacking],
        where=where,
        fix=f"{option('exclude')} leaves a layer out; {_only_path()} names the state dict that is meant",
    )


# A name may be made to have very many, and very long ones.
_PREFIXES = 8
_LONGEST_PREFIX = 200


def _same_model() -> str:
    return f"{option('like')} names a checkpoint of the same model, with the same names"


def _only_path() -> str:
    return option("only", metavar="PATH")


def _prefix_hint(layers: Sequence[Layer], names: set[str]) -> str:
    """The fix if all names of the reference and of the file differ by one prefix; empty otherwise."""
    weights = [layer.name for layer in layers]
    first = weights[0]
    longer = islice((first.removesuffix(name) for name in names if first.endswith(f".{name}")), _PREFIXES)
    shorter = islice((name.removesuffix(first) for name in names if name.endswith(f".{first}")), _PREFIXES)
    taken_off = next(
        (it for it in longer if all(each.startswith(it) and each[len(it) :] in names for each in weights)), ""
    )
    put_before = next((it for it in shorter if all(it + each in names for each in weights)), "")
    if not 0 < len(taken_off + put_before) <= _LONGEST_PREFIX:
        return ""
    said = f"the names differ by the prefix {taken_off or put_before!r}"
    dims = {layer.dim for layer in layers}
    if len(dims) > 1:
        return f"{said}: rename the keys of one of them"
    (dim,) = dims
    names_here = (put_before + each.removeprefix(taken_off) for each in weights[:3])
    globs = " ".join(option("layers", glob=name) for name in names_here)
    globs += " …" if len(weights) > 3 else ""
    return f"{said}: say it by {globs} {option('dim', dim)} {option('to', layers[0].form)}"


def _counterpart(state: StateDict, references: Sequence[_Reference], *, alone: bool) -> _Reference | None:
    """The state dict of the reference that a state dict should be like, if there is one.

    It is the one at the same path, else one whose layers it has all (unless these are plain in the one at
    the same path), else the only one there is.
    """
    with_layers = [item for item in references if item.names]
    mine = {layer.name for layer in find_layers(state, Selection()).layers} | set(state.tensors)
    plain = {name for item in references if item.path == state.path for name in item.plain}
    for item in with_layers:
        if item.path == state.path:
            return item
    for item in with_layers:
        wanted = {*(layer.name for layer in item.layers), *(no.name for no in item.refused)}
        if mine >= wanted and (alone or plain.isdisjoint(wanted)):
            return item
    return with_layers[0] if alone and len(with_layers) == 1 else None
