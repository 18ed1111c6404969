"""What is wanted of a split: which weights, along which dim, in which form, and where the pairs stand.

Said by the file's own record of a fold, by another checkpoint, or by globs and a dim; never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from wnconvert.dims import AUTO, dim_of
from wnconvert.errors import ArgumentError, LayerError
from wnconvert.order import as_in, restored
from wnconvert.provenance import Origin, origin_data, origins
from wnconvert.schemes import FORMS, Layer, Refused, Selection, in_form, owner_of, spelled
from wnconvert.scope import check_selection, find_layers, looks_like_layers, placed, taken
from wnconvert.tensors import StateDict, StoredTensor, TensorInfo, Tree
from wnconvert.words import counted, listed

__all__ = ["Wish", "wishes_for"]

_THREE_WAYS = (
    "--like REF takes layers, dims and form of another checkpoint; --layers GLOB --dim N (0 is torch's own "
    "default, none the whole tensor) names the weights; a file that wnconvert fold wrote says it itself"
)
_AXES = (
    "--dim 0 (a norm for each leading row, torch's own default), --dim none (one of the whole tensor), or "
    "another axis"
)


@dataclass(frozen=True, slots=True)
class Wish:
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


def wishes_for(
    tree: Tree, chosen: Sequence[StateDict], selection: Selection, like: Tree | None, to: str | None
) -> dict[str, Wish]:
    """By path, what is wanted of each of the chosen state dicts that something is wanted of."""
    if like is not None:
        if selection.dim != AUTO:
            raise ArgumentError("--like says every dim itself", fix="leave --dim out, or --like")
        return _as_like(chosen, like, selection, to)
    if selection.dim != AUTO:
        if not selection.layers:
            raise ArgumentError("--dim alone says no layers", fix="--layers GLOB beside it")
        return _as_globs_say(tree, chosen, selection, to)
    steps = {state.path: origins(tree.record, state.path, "fold") for state in chosen}
    if not any(steps.values()):
        if selection.layers:
            raise ArgumentError("--layers names weights, but not the axis of their norms", fix=_AXES)
        what = "nothing says which weights to split: there is no record of a fold"
        split = sum(len(find_layers(state, Selection()).layers) for state in chosen)
        there_are = f" ({counted(split, 'layer')} split already)" if split else ""
        raise ArgumentError(what + there_are, fix=_THREE_WAYS)
    wishes = {state.path: _as_recorded(state, steps[state.path], selection, to) for state in chosen}
    check_selection(selection, [name for wish in wishes.values() for name in wish.names])
    return wishes


# -- as the record says


def _as_recorded(
    state: StateDict, steps: Sequence[Sequence[Origin]], selection: Selection, to: str | None
) -> Wish:
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


@dataclass(frozen=True, slots=True)
class _Reference:
    """A state dict of ``--like``: its keys as they stand unfolded, and its layers that are wanted.

    ``names`` is all that looks like a layer, wanted or not; ``plain`` its tensors.
    """

    path: str
    keys: Sequence[str]
    layers: Sequence[Layer]
    names: Sequence[str]
    plain: frozenset[str]
    refused: Sequence[Refused]


def _reference(like: Tree, state: StateDict, selection: Selection) -> _Reference:
    """What a state dict of ``--like`` has by its keys, and where it was folded by its record."""
    found = find_layers(state, selection)
    folded = _as_recorded(state, origins(like.record, state.path, "fold"), selection, None)
    return _Reference(
        state.path,
        folded.order,
        (*found.layers, *folded.layers.values()),
        (*looks_like_layers(found), *folded.names),
        frozenset(state.tensors),
        (*found.refused, *folded.refused),
    )


def _as_like(
    chosen: Sequence[StateDict], like: Tree, selection: Selection, to: str | None
) -> dict[str, Wish]:
    """The layers of another checkpoint, in its order."""
    references = [_reference(like, state, selection) for state in like.state_dicts]
    check_selection(selection, [name for item in references for name in item.names])
    if not any(item.names for item in references):
        raise ArgumentError(
            "--like has no weight-normalized layers to go by",
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
            raise LayerError(f"of --like, {no.name} is no layer to go by: {no.reason}", fix=no.fix)
        there = _There(state, selection)
        _check_lacking(there, item.layers)
        for layer in item.layers:
            there.want(layer, "unlike in --like,")
        wishes[state.path] = there.wish(_order_as_in(item, there), to, names=item.names)
    idle = [item.path or "." for item in references if item.layers and item.path not in followed]
    if idle and wishes:
        first = next(iter(wishes))
        note = f"--like has layers in {listed(idle, 4)} too, without a counterpart here"
        wishes[first] = replace(wishes[first], notes=(*wishes[first].notes, note))
    if not wishes:
        every = dict.fromkeys(name for item in references for name in item.names)
        raise ArgumentError(
            f"no state dict of it has all the layers of --like ({listed(every, 3)})",
            fix="--like names a checkpoint of the same model; --only PATH says which state dict is meant",
        )
    return wishes


def _order_as_in(reference: _Reference, there: _There) -> list[str]:
    """The keys with the pairs where the reference has them."""
    order = there.order()
    here = set(order)
    instead: dict[str, tuple[str, ...]] = {}  # of a half that is not here: what stands for its layer
    for name in reference.names:
        halves = [half for form in FORMS for half in spelled(form, name) or ()]
        instead |= dict.fromkeys(halves, tuple(key for key in (name, *halves) if key in here))
    as_here = [key for name in reference.keys for key in ([name] if name in here else instead.get(name, ()))]
    moved = [half.name for layer in there.layers.values() for half in layer.halves]
    return as_in(order, moved, list(dict.fromkeys(as_here)))


def _check_lacking(there: _There, layers: Sequence[Layer]) -> None:
    """Raise ``LayerError`` where the reference has layers whose weights are not there, naming them all."""
    names = {entry.name for entry in there.state.entries} | set(there.split)
    lacking = [layer.name for layer in layers if layer.name not in names]
    if not lacking:
        return
    where = there.state.path
    if len(lacking) == len(layers):
        what = f"none of the layers of --like is in it: {listed(lacking)}"
        raise LayerError(what, where=where, fix=_prefix_hint(layers, names) or _SAME_MODEL)
    raise LayerError(
        f"it lacks {counted(len(lacking), 'layer')} of --like:" + "".join(f"\n  {name}" for name in lacking),
        where=where,
        fix="--exclude leaves a layer out; --only PATH names the state dict that is meant",
    )


# A name may be made to have very many, and very long ones.
_PREFIXES = 8
_LONGEST_PREFIX = 200

_SAME_MODEL = "--like names a checkpoint of the same model, with the same names"


def _prefix_hint(layers: Sequence[Layer], names: set[str]) -> str:
    """What to do where all names of the reference and of the file differ by one prefix, or nothing."""
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
    globs = " ".join(f"--layers '{put_before}{each.removeprefix(taken_off)}'" for each in weights[:3])
    globs += " …" if len(weights) > 3 else ""
    return f"{said}: say it by {globs} --dim {'none' if dim is None else dim} --to {layers[0].form}"


def _counterpart(state: StateDict, references: Sequence[_Reference], *, alone: bool) -> _Reference | None:
    """The state dict of the reference that a state dict is to be like, if there is one.

    The one at the same path, else one whose layers it has all (unless these are plain in the one at the
    same path); where there is no choice, the one there is.
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


# -- as globs say


def _as_globs_say(
    tree: Tree, chosen: Sequence[StateDict], selection: Selection, to: str | None
) -> dict[str, Wish]:
    """Every float tensor that is named; of those that a wildcard catches, what looks like a weight."""
    form = to or "parametrize"
    wishes: dict[str, Wish] = {}
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
        wish = there.wish(order, form, names=[*plain, *there.split])
        said = _dims_of_record(tree, state, there.layers)
        wishes[state.path] = replace(wish, notes=(*wish.notes, *said))
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
        wishes[first] = replace(wishes[first], notes=(*wishes[first].notes, note))
    return wishes


def _dims_of_record(tree: Tree, state: StateDict, layers: Mapping[str, Layer]) -> Iterable[str]:
    """A note on each layer that was folded along another dim than it is to be split."""
    steps = origins(tree.record, state.path, "fold")
    folded = {origin.layer.name: origin.layer for step in steps for origin in step}
    for name, layer in layers.items():
        was = folded.get(name, layer)
        if was.dim != layer.dim and not was.rows == layer.rows == 1:
            dims = ("none" if dim is None else str(dim) for dim in (was.dim, layer.dim))
            yield "{}: the record says that it was folded along dim {}; it is split along {}".format(
                name, *dims
            )


def _layer_along(info: TensorInfo, dim: int | str | None, form: str) -> Layer:
    """The pair that ``torch.nn.utils.weight_norm(module, name, dim)`` makes of a weight."""
    rank = len(info.shape)
    axis = None if dim == -1 or not isinstance(dim, int) else dim
    if axis is not None and -rank <= axis < rank:
        axis %= rank
    shape = _g_shape(info.shape, axis)
    g, v = spelled(form, info.name) or ("", "")
    return Layer(info.name, form, axis, replace(info, name=g, shape=shape), replace(info, name=v))


def _g_shape(shape: tuple[int, ...], dim: int | None) -> tuple[int, ...]:
    """The shape that torch gives to g; ``()`` where there is no such axis, which is refused."""
    if dim is None or dim >= len(shape):
        return ()
    return tuple(size if axis == dim else 1 for axis, size in enumerate(shape))


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
        self.split = {layer.name: layer.form for layer in found.layers}
        self.halves = {half.name for layer in found.layers for half in layer.halves}
        self.parts = {
            *found.halves,
            *(half for no in found.refused for form in FORMS for half in spelled(form, no.name) or ()),
        }
        self.layers: dict[str, Layer] = {}
        self.refused: list[Refused] = []
        self.already: list[str] = []

    def count(self, name: str) -> None:
        """Count a layer that is split already, if it is wanted."""
        if self.selection.wants(name):
            self.already.append(name)

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
            fix = f"--exclude '{name}' leaves it as it is"
            if stored is not None and _is_no_axis(layer):
                fix = f"--dim 0 to {len(layer.v.shape) - 1}, or none; {fix}"
            self.refused.append(Refused(name, reason, fix))
            return
        dtype = stored.info.dtype
        # Only where g holds every value of the weight's dtype is the fold of the split the weight again.
        finer = dtype == layer.v.dtype and layer.g.dtype.foldable and layer.g.dtype.holds(dtype)
        g, v = layer.g.shape, layer.v.shape
        # A plain vector that fits several axes would be read along the first of them.
        is_clear = layer.g.numel == 1 or dim_of(g, v).dim == layer.dim
        shape = g if is_clear else _g_shape(v, layer.dim)
        self.layers[name] = replace(
            layer,
            g=replace(layer.g, dtype=layer.g.dtype if finer else dtype, shape=shape),
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
        elif _is_no_axis(layer):
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

    def wish(self, order: Sequence[str], to: str | None, *, names: Sequence[str]) -> Wish:
        """The layers and the order of keys; a pair in another form than was said goes to torch's place."""
        refused = {no.name: no for no in (*self.refused, *taken(self.state, self.layers.values()))}
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
        refused |= {no.name: no for no in taken(self.state, self.layers.values())}
        differ = [name for name in self.already if to not in (None, self.split[name])]
        note = f"{listed(differ, 3)} split already in the other form: wnconvert migrate --to {to}"
        return Wish(
            self.layers, order, len(self.already), names, tuple(refused.values()), (note,) if differ else ()
        )


def _is_no_axis(layer: Layer) -> bool:
    rank = len(layer.v.shape)
    return layer.dim is not None and rank > 0 and not -rank <= layer.dim < rank
