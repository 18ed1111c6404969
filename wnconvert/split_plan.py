"""The plan of ``split``: plain weights become pairs.

Which ones is said by the file itself, by another checkpoint, or by globs and a dim; it is never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wnconvert.dims import AUTO, dim_of
from wnconvert.errors import ArgumentError, LayerError
from wnconvert.order import as_in, restored
from wnconvert.plan import Change, Direction, Dropped, Keep, Magnitude, Plan, PlannedStateDict, Step
from wnconvert.provenance import Origin, origin_data, origins, recorded, without_layers
from wnconvert.schemes import FORMS, Found, Layer, Refused, Selection, in_form, owner_of, spelled
from wnconvert.scope import (
    check_refused,
    check_selection,
    choose,
    find_layers,
    idle_excludes,
    kept_as_is,
    looks_like_layers,
    optimizers_left_out,
    placed,
    refuse_modules,
    scope_of,
    taken,
    tie_notes,
)
from wnconvert.tensors import StateDict, StoredTensor, TensorInfo, Tree
from wnconvert.words import counted, listed

__all__ = ["plan_split"]

_WHY_NO_OPTIMIZER = (
    "optimizer state is by position, and splitting changes the positions; --keep-optimizer keeps it"
)
_THREE_WAYS = (
    "--like REF takes layers, dims and form of another checkpoint; --layers GLOB --dim N (0 is torch's own "
    "default, none the whole tensor) names the weights; a file that wnconvert fold wrote says it itself"
)


def plan_split(
    tree: Tree,
    container: str,
    *,
    to: str | None = None,
    like: Tree | None = None,
    selection: Selection = Selection(),  # noqa: B008 - frozen
    only: str | None = None,
    keep_optimizer: bool = False,
) -> Plan:
    """Plan the splitting of plain weights of ``tree`` into g and v, into a file of ``container``.

    Which, along which dim and in which form is read from ``like`` (another checkpoint), else from the
    selection's globs and dim, else from what folds recorded in the file; never guessed. ``to`` is the form,
    None for that of the record or of ``like``, else parametrize.

    Raises as ``plan_fold`` does; ``LayerError`` also for layers of ``like`` or of the record that are not
    there or have another shape, and for whole pickled modules.
    """
    chosen = choose(tree, only)
    wishes = _wishes(tree, chosen, selection, like, to)
    busy = (path for path, wish in wishes.items() if wish.layers or wish.refused or wish.already)
    scope = scope_of(tree, container, chosen, only, busy)
    mine = {state.path: wishes[state.path] for state in scope.states if state.path in wishes}
    check_refused({path: wish.refused for path, wish in mine.items()}, "split")
    changed = [state for state in scope.states if state.path in mine and mine[state.path].layers]
    if container == "torch":
        refuse_modules(changed, "split", "split_module")
    planned = tuple(_split(state, mine.get(state.path)) for state in scope.states)
    optimizers: tuple[Dropped, ...] = ()
    if changed and scope.only is None and not keep_optimizer:
        optimizers = optimizers_left_out(tree, _WHY_NO_OPTIMIZER)
    kept = {state.path: "" if container == "safetensors" else state.path for state in scope.states}
    left = {path: wish.left for path, wish in mine.items()}
    gone = {
        item.path: [
            *(change.name for change in item.changes),
            *(data["name"] for data in left.get(item.path, ())),
        ]
        for item in planned
    }
    names = [name for wish in wishes.values() for name in wish.names]
    return Plan(
        "split",
        container,
        planned,
        only=scope.only,
        dropped=(*optimizers, *scope.dropped),
        already=sum(wish.already for wish in mine.values()),
        record=recorded(without_layers(tree.record, "fold", gone), kept, "fold", left),
        notes=(
            *tree.notes,
            *idle_excludes(selection, names),
            *(note for wish in mine.values() for note in wish.notes),
            *(
                note
                for state, item in zip(scope.states, planned, strict=True)
                for note in _untied(state, item)
            ),
            *(tie_notes(scope.states[0], planned[0]) if container == "safetensors" else ()),
        ),
    )


@dataclass(frozen=True, slots=True)
class _Wish:
    """What is wanted of one state dict.

    ``layers`` by weight, as they will be; ``order`` the keys with the pairs in their places; ``already``
    counts layers that are split; ``names`` is all that the globs could mean; ``left`` what the record is
    to say anew of layers that stay folded.
    """

    layers: Mapping[str, Layer]
    order: Sequence[str]
    already: int
    names: Sequence[str]
    refused: tuple[Refused, ...] = ()
    notes: tuple[str, ...] = ()
    left: Sequence[Mapping[str, Any]] = ()


def _wishes(
    tree: Tree, chosen: Sequence[StateDict], selection: Selection, like: Tree | None, to: str | None
) -> dict[str, _Wish]:
    """By path, what is wanted of each of the chosen state dicts that something is wanted of."""
    if like is not None:
        if selection.dim != AUTO:
            raise ArgumentError("--like says every dim itself", fix="leave --dim out, or --like")
        return _as_like(chosen, like, selection, to)
    if selection.dim != AUTO:
        if not selection.layers:
            raise ArgumentError("--dim alone says no layers", fix="--layers GLOB beside it")
        return _as_globs_say(chosen, selection, to)
    steps = {state.path: origins(tree.record, state.path, "fold") for state in chosen}
    if not any(steps.values()):
        if selection.layers:
            raise ArgumentError("--layers names weights, but not the axis of their norms", fix=_AXES)
        what = "nothing says which weights to split: there is no record of a fold"
        raise ArgumentError(what, fix=_THREE_WAYS)
    wishes = {state.path: _as_recorded(state, steps[state.path], selection, to) for state in chosen}
    check_selection(selection, [name for wish in wishes.values() for name in wish.names])
    return wishes


_AXES = "--dim 0 (a norm for each leading row, torch's own default), --dim none (one of the whole tensor), …"


# -- as the record says


def _as_recorded(
    state: StateDict, steps: Sequence[Sequence[Origin]], selection: Selection, to: str | None
) -> _Wish:
    """The layers that folds of this file recorded, with the names, shapes and places that they had."""
    there = _There(state, selection)
    known = {origin.layer.name: origin.layer for step in steps for origin in step}
    for layer in known.values():
        there.want(layer, "the record says that it was folded, but")
    order, left = _unfolded(state, steps, there.layers)
    return replace(there.wish(order, to, names=list(known)), left=left if len(steps) > 1 else ())


def _unfolded(
    state: StateDict, steps: Sequence[Sequence[Origin]], layers: Mapping[str, Layer]
) -> tuple[list[str], Sequence[Mapping[str, Any]]]:
    """The keys as they stood before these steps, but that only ``layers`` become pairs; the others' record.

    The last step is undone first, and wholly: its places are those among all keys before it. Then each
    layer that stays folded goes where one fold of all that stay would put it, and as that would record it.
    """
    order = [entry.name for entry in state.entries]
    there = set(order)
    stays: dict[str, Layer] = {}
    for step in reversed(steps):
        undone = {
            origin.layer.name: origin
            for origin in step
            if origin.layer.name in there and there.isdisjoint(half.name for half in origin.layer.halves)
        }
        if not undone:
            continue
        places: dict[str, int] = {}
        for name, origin in undone.items():
            places |= zip((half.name for half in origin.layer.halves), origin.places, strict=True)
            if name not in layers:
                stays[name] = origin.layer
        order = restored([*(name for name in order if name not in undone), *places], places)
        there = there - undone.keys() | places.keys()
    place = {name: at for at, name in enumerate(order)}
    weight_of = {half.name: name for name, layer in stays.items() for half in layer.halves}
    left = [origin_data(layer, place) for layer in stays.values()] if layers else []
    return list(dict.fromkeys(weight_of.get(name, name) for name in order)), left


# -- as another checkpoint has it


def _as_like(
    chosen: Sequence[StateDict], like: Tree, selection: Selection, to: str | None
) -> dict[str, _Wish]:
    """The layers of another checkpoint, in its order."""
    found = {state.path: find_layers(state, selection) for state in like.state_dicts}
    check_selection(selection, [name for item in found.values() for name in looks_like_layers(item)])
    if not any(looks_like_layers(item) for item in found.values()):
        raise ArgumentError(
            "--like has no weight-normalized layers to go by", fix="name a checkpoint that is not folded"
        )
    wishes = {}
    for state in chosen:
        reference = _counterpart(state, like.state_dicts, found, alone=len(chosen) == 1)
        if reference is None:
            continue
        item = found[reference.path]
        if item.refused:
            no = item.refused[0]
            raise LayerError(f"of --like, {no.name} is no layer to go by: {no.reason}", fix=no.fix)
        there = _There(state, selection)
        _check_lacking(state, there, item.layers)
        for layer in item.layers:
            there.want(layer, "unlike in --like,")
        names = looks_like_layers(item)
        wishes[state.path] = there.wish(_order_as_in(reference, names, there), to, names=names)
    if not wishes:
        every = dict.fromkeys(name for item in found.values() for name in looks_like_layers(item))
        raise ArgumentError(
            f"no state dict of it has all the layers of --like ({listed(every, 3)})",
            fix="--like names a checkpoint of the same model; --only PATH says which state dict is meant",
        )
    return wishes


def _order_as_in(reference: StateDict, weights: Iterable[str], there: _There) -> list[str]:
    """The keys with the pairs where the reference has them, whose layers have these ``weights``."""
    order = there.order()
    here = set(order)
    instead: dict[str, tuple[str, ...]] = {}  # of a half that is not here: what stands for its layer
    for name in weights:
        halves = [half for form in FORMS for half in spelled(form, name) or ()]
        instead |= dict.fromkeys(halves, tuple(key for key in (name, *halves) if key in here))
    keys = (entry.name for entry in reference.entries)
    as_here = [key for name in keys for key in ([name] if name in here else instead.get(name, ()))]
    moved = [half.name for layer in there.layers.values() for half in layer.halves]
    return as_in(order, moved, list(dict.fromkeys(as_here)))


def _check_lacking(state: StateDict, there: _There, layers: Sequence[Layer]) -> None:
    """Raise ``LayerError`` where the reference has layers whose weights are not there, naming them all."""
    names = {entry.name for entry in state.entries} | set(there.split)
    lacking = [layer.name for layer in layers if layer.name not in names]
    if not lacking:
        return
    if len(lacking) == len(layers):
        raise LayerError(
            f"none of the {len(layers)} layers of --like is in it ({listed(lacking, 3)})",
            where=state.path,
            fix="--like names a checkpoint of the same model, with the same names",
        )
    raise LayerError(
        f"it lacks {counted(len(lacking), 'layer')} of --like:" + "".join(f"\n  {name}" for name in lacking),
        where=state.path,
        fix="--exclude leaves a layer out; --only PATH names the state dict that is meant",
    )


def _counterpart(
    state: StateDict, references: Sequence[StateDict], found: Mapping[str, Found], *, alone: bool
) -> StateDict | None:
    """The state dict of the reference that a state dict is to be like, if there is one.

    The one at the same path, else one whose layers it has all (unless these are plain in the one at the
    same path); where there is no choice, the one there is.
    """
    of_layers = {other.path: other for other in references if looks_like_layers(found[other.path])}
    if state.path in of_layers:
        return of_layers[state.path]
    mine = {layer.name for layer in find_layers(state, Selection()).layers} | set(state.tensors)
    plain = {name for other in references if other.path == state.path for name in other.tensors}
    for path, other in of_layers.items():
        names = looks_like_layers(found[path])
        if mine.issuperset(names) and (alone or plain.isdisjoint(names)):
            return other
    return next(iter(of_layers.values())) if alone and len(of_layers) == 1 else None


# -- as globs say


def _as_globs_say(chosen: Sequence[StateDict], selection: Selection, to: str | None) -> dict[str, _Wish]:
    """Every float tensor that is named; of those that a wildcard catches, what looks like a weight."""
    form = to or "parametrize"
    wishes: dict[str, _Wish] = {}
    passed: dict[str, list[str]] = {}
    for state in chosen:
        there = _There(state, selection)
        plain = [name for name in state.tensors if name not in there.halves]
        for name in there.split:
            there.count(name)
        for name in filter(selection.wants, plain):
            info = state.tensors[name].info
            why = "" if name in selection.layers else _no_weight(info, there)
            if why:
                passed.setdefault(why, []).append(name)
            else:
                there.want(_layer_along(info, selection.dim, form))
        order = placed(there.order(), there.layers.values())
        wishes[state.path] = there.wish(order, form, names=[*plain, *there.split])
    check_selection(selection, [name for wish in wishes.values() for name in wish.names], "weight")
    said = "; ".join(f"{why}: {listed(dict.fromkeys(names), 4)}" for why, names in passed.items())
    if passed and not any(wish.layers or wish.refused or wish.already for wish in wishes.values()):
        raise ArgumentError(
            f"--layers catches nothing that looks like a weight ({said})",
            fix="a name without wildcards is split whatever it looks like",
        )
    if passed:
        note = f"--layers catches what does not look like a weight, and is left as it is ({said})"
        first = next(iter(wishes))
        wishes[first] = replace(wishes[first], notes=(note,))
    return wishes


def _layer_along(info: TensorInfo, dim: int | str | None, form: str) -> Layer:
    """The pair that ``torch.nn.utils.weight_norm(module, name, dim)`` makes of a weight."""
    rank = len(info.shape)
    axis: int | None
    shape: tuple[int, ...]
    if dim == -1 or not isinstance(dim, int):
        axis, shape = None, ()
    elif -rank <= dim < rank:
        axis = dim % rank
        shape = tuple(size if at == axis else 1 for at, size in enumerate(info.shape))
    else:
        axis, shape = dim, ()  # refused, with the shape
    g, v = spelled(form, info.name) or ("", "")
    return Layer(info.name, form, axis, replace(info, name=g, shape=shape), replace(info, name=v))


# Keys of spectral norm, prune and other parametrizations, whose plain weight is computed from them.
_COMPUTED = re.compile(r".*(?:_orig|_mask)|(?:.*\.)?parametrizations\..*", re.DOTALL)
_EMBEDDING = re.compile(r"emb|codebook|lookup|(?:^|[._])w[tp]e[._]", re.IGNORECASE)


def _no_weight(info: TensorInfo, there: _There) -> str:
    """Why a tensor that a wildcard catches does not look like a weight to normalize, or nothing."""
    if info.name in there.parts:
        return "half of a pair"
    if not info.dtype.foldable:
        return str(info.dtype)
    if len(info.shape) < 2:
        return f"{len(info.shape)}-D"
    if _COMPUTED.fullmatch(info.name):
        return "a part of another reparameterization"
    owner = owner_of(info.name)
    is_linear = f"{owner}bias" in there.state.tensors
    return "like an embedding" if len(info.shape) == 2 and _EMBEDDING.search(owner) and not is_linear else ""


# -- what all three ask of a state dict


class _There:
    """A state dict, and the layers that are wanted in it as far as they fit."""

    def __init__(self, state: StateDict, selection: Selection) -> None:
        self.state = state
        self.selection = selection
        found = find_layers(state, Selection())
        self.split = [layer.name for layer in found.layers]
        self.halves = {half.name for layer in found.layers for half in layer.halves}
        self.parts = {
            *found.halves,
            *(half for no in found.refused for form in FORMS for half in spelled(form, no.name) or ()),
        }
        self.layers: dict[str, Layer] = {}
        self.refused: list[Refused] = []
        self.already = 0

    def count(self, name: str) -> None:
        """Count a layer that is split already, if it is wanted."""
        self.already += self.selection.wants(name)

    def want(self, layer: Layer, who: str = "") -> None:
        """Ask for a layer like this one, as ``who`` says: its weight must be there, plain, of that shape."""
        name = layer.name
        if name in self.split:
            self.count(name)
            return
        if not self.selection.wants(name):
            return
        stored = self.state.tensors.get(name)
        reason = self._reason_against(layer, stored, who)
        if reason or stored is None:
            self.refused.append(Refused(name, reason, f"--exclude '{name}' leaves it as it is"))
            return
        dtype = stored.info.dtype
        # Only where g holds every value of the weight's dtype is the fold of the split the weight again.
        finer = dtype == layer.v.dtype and layer.g.dtype.foldable and layer.g.dtype.holds(dtype)
        self.layers[name] = replace(
            layer,
            g=replace(layer.g, dtype=layer.g.dtype if finer else dtype),
            v=replace(layer.v, dtype=dtype),
            note="",
        )

    def _reason_against(self, layer: Layer, stored: StoredTensor | None, who: str) -> str:
        if stored is None:
            is_other = any(entry.name == layer.name for entry in self.state.entries)
            reason = "it is no plain tensor" if is_other else "it is not there"
        elif not stored.info.dtype.foldable:
            reason = f"it is {stored.info.dtype}, which has no norm"
        elif stored.info.shape != layer.v.shape:
            reason = f"it is {stored.info.shape}, not {layer.v.shape}"
        elif not layer.v.shape:
            reason = "it is a single number"
        elif layer.dim is not None and not -len(layer.v.shape) <= layer.dim < len(layer.v.shape):
            reason = f"it is {layer.v.shape}, and has no axis {layer.dim}"
        else:
            try:
                dim_of(layer.g.shape, layer.v.shape, layer.dim)
            except LayerError as error:
                return error.what
            return ""
        return f"{who} {reason}".strip()

    def order(self) -> list[str]:
        """The keys, with each pair in the place of its weight."""
        return [
            name
            for entry in self.state.entries
            for name in (
                (self.layers[entry.name].g.name, self.layers[entry.name].v.name)
                if entry.name in self.layers
                else (entry.name,)
            )
        ]

    def wish(self, order: Sequence[str], to: str | None, *, names: Sequence[str]) -> _Wish:
        """The layers and the order of keys; a pair in another form than was said goes to torch's place."""
        other = [layer for layer in self.layers.values() if to not in (None, layer.form)]
        if to is not None and other:
            after = {layer.name: in_form(layer, to) for layer in other}
            new = {
                old.name: half.name
                for layer in other
                for old, half in zip(layer.halves, after[layer.name].halves, strict=True)
            }
            order = placed([new.get(name, name) for name in order], after.values())
            self.layers |= after
        refused = (*self.refused, *taken(self.state, self.layers.values()))
        return _Wish(self.layers, order, self.already, names, refused)


def _split(state: StateDict, wish: _Wish | None) -> PlannedStateDict:
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


def _untied(state: StateDict, planned: PlannedStateDict) -> Iterable[str]:
    """Weights that shared memory with a name that stays plain: v is a tensor of its own."""
    tensors = state.tensors
    kept: dict[object, str] = {}
    for step in planned.steps:
        if isinstance(step, Keep) and step.source in tensors and tensors[step.source].info.numel:
            kept.setdefault(tensors[step.source].view, step.source)
    for change in planned.changes:
        if other := kept.get(tensors[change.name].view):
            yield f"{other} shared memory with {change.name}, which is split: two tensors now"
