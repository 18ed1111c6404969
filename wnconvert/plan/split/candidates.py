"""The layers to split in one state dict: which weights, in which form, and where the pairs stand.

``as_recorded`` is the first of three ways to choose them: the file's own record of a fold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from wnconvert.errors import LayerError
from wnconvert.frozen import dataclass
from wnconvert.layers.conventions import CONVENTIONS
from wnconvert.layers.dims import dim_of, g_shape
from wnconvert.layers.evidence import EMPTY, EMPTY_FIX
from wnconvert.layers.schemes import Layer, Refused, Selection, in_form, spellings
from wnconvert.messages import listed, option
from wnconvert.plan.order import restored
from wnconvert.plan.record.origins import Origin, origin_of
from wnconvert.plan.selection.scope import in_torch_order
from wnconvert.plan.selection.wanted import find_layers, name_conflicts
from wnconvert.tensors.tree import StateDict, StoredTensor

__all__ = ["Candidates", "SplitRequest", "as_recorded"]


@dataclass(frozen=True, slots=True)
class SplitRequest:
    """The layers to split in one state dict.

    ``layers`` holds them by weight, as they will be; ``order`` is the order of keys with the pairs in their
    places. ``already`` counts layers that are split, and ``names`` are the names that the globs can mean.
    ``left`` is the new record of layers that stay folded.
    """

    layers: Mapping[str, Layer]
    order: Sequence[str]
    already: int
    names: Sequence[str]
    refused: tuple[Refused, ...] = ()
    notes: tuple[str, ...] = ()
    left: Sequence[Origin] = ()


# -- a request in the making


class Candidates:
    """A state dict, and the layers that are requested in it so far."""

    def __init__(self, state: StateDict, selection: Selection) -> None:
        self.state = state
        self.selection = selection
        found = find_layers(state, Selection())
        self.split = {layer.name: layer.form for layer in found.layers}
        self.halves = {half.name for layer in found.layers for half in layer.halves}
        self.parts = {
            *found.halves,
            *(half for no in found.refused for half in spellings(no.name)),
        }
        self.layers: dict[str, Layer] = {}
        self.refused: list[Refused] = []
        self.already: list[str] = []

    def count(self, name: str) -> None:
        """Count a layer that is split already, if it is wanted."""
        if self.selection.wants(name):
            self.already.append(name)

    def want(self, layer: Layer, who: str = "") -> None:
        """Request this layer. Its plain weight must exist with this shape; ``who`` begins the message."""
        name = layer.name
        if name in self.split:
            self.count(name)
            return
        if not self.selection.wants(name):
            return
        stored = self.state.tensors.get(name)
        reason = self._reason_against(layer, stored, who)
        if reason or stored is None:
            remedy = ""
            if stored is not None and not stored.info.numel:
                remedy = EMPTY_FIX
            elif stored is not None and _is_no_axis(layer):
                remedy = f"{option('dim', 0)} to {len(layer.v.shape) - 1}, or none"
            self.refused.append(Refused(name, reason, remedy))
            return
        dtype = stored.info.dtype
        # Only where g holds every value of the weight's dtype is the fold of the split the weight again.
        finer = dtype == layer.v.dtype and layer.g.dtype.foldable and layer.g.dtype.holds(dtype)
        g, v = layer.g.shape, layer.v.shape
        # Of torch's, a vector that fits several axes would be read along the first of them.
        convention = CONVENTIONS[layer.form]
        is_clear = layer.g.numel == 1 or not convention.is_torchs or dim_of(g, v).dim == layer.dim
        shape = g if is_clear else g_shape(v, layer.dim)
        self.layers[name] = layer.with_halves(
            replace(layer.g, dtype=layer.g.dtype if finer else dtype, shape=shape),
            replace(layer.v, dtype=dtype),
        )

    def _reason_against(self, layer: Layer, stored: StoredTensor | None, who: str) -> str:
        if stored is None:
            is_other = any(entry.name == layer.name for entry in self.state.entries)
            reason = "it is not a plain tensor" if is_other else "it is not there"
        elif not stored.info.dtype.foldable:
            reason = f"it is {stored.info.dtype}, which has no norm"
        elif stored.info.shape != layer.v.shape:
            reason = f"it is {stored.info.shape}, not {layer.v.shape}"
        elif not stored.info.numel:
            reason = f"it is {EMPTY}"
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

    def _conflicts(self) -> Iterable[Refused]:
        """The refusals of layers that need a key which is there; v may have that of its own weight."""
        layers = self.layers.values()
        freed = [layer.name for layer in layers if layer.v.name == layer.name]
        return name_conflicts(self.state, layers, freed)

    def wish(self, order: Sequence[str], to: str | None, *, names: Sequence[str]) -> SplitRequest:
        """The finished request; a pair that gets another form than its own goes where torch registers it."""
        refused = {no.name: no for no in (*self.refused, *self._conflicts())}
        other = [layer for layer in self.layers.values() if to not in (None, layer.form)]
        if to is not None and other:
            made = {layer.name: in_form(layer, to) for layer in other}
            after = {name: layer for name, layer in made.items() if layer is not None}
            refused |= {
                name: Refused(name, f"{to} spells no layer of its name and shapes")
                for name in made.keys() - after.keys()
            }
            new = {
                old.name: half.name
                for layer in other
                if layer.name in after
                for old, half in zip(layer.halves, after[layer.name].halves, strict=True)
            }
            order = in_torch_order([new.get(name, name) for name in order], after.values())
            self.layers |= after
        refused |= {no.name: no for no in self._conflicts()}
        differ = [name for name in self.already if to not in (None, self.split[name])]
        note = f"{listed(differ, 3)} split already in the other form: wnconvert migrate {option('to')} {to}"
        return SplitRequest(
            self.layers, order, len(self.already), names, tuple(refused.values()), (note,) if differ else ()
        )


def _is_no_axis(layer: Layer) -> bool:
    rank = len(layer.v.shape)
    return layer.dim is not None and rank > 0 and not -rank <= layer.dim < rank


# -- by the record of a fold


def as_recorded(
    state: StateDict, steps: Sequence[Sequence[Origin]], selection: Selection, to: str | None
) -> SplitRequest:
    """Request the layers that earlier folds recorded, with the names, shapes and places that they had."""
    there = Candidates(state, selection)
    known = {origin.layer.name: origin.layer for step in steps for origin in step}
    for layer in known.values():
        there.want(layer, "the record says that it was folded, but")
    order, left = _unfolded(state, steps, there.layers)
    return replace(there.wish(order, to, names=list(known)), left=left if len(steps) > 1 else ())


def _unfolded(
    state: StateDict, steps: Sequence[Sequence[Origin]], layers: Mapping[str, Layer]
) -> tuple[list[str], Sequence[Origin]]:
    """The keys as they stood before these steps, with pairs for ``layers`` only; the record of others.

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
            if origin.layer.name in there
            and there.isdisjoint({half.name for half in origin.layer.halves} - {origin.layer.name})
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
    left = [origin_of(layer, place) for layer in stays.values()] if layers else []
    return list(dict.fromkeys(weight_of.get(name, name) for name in order)), left
