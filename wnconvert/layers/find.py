"""The layers among the names of a state dict.

A layer is recognised by its whole group of keys, by its shapes and by what stands beside it, never by a lone
suffix: ``weight_v`` alone is spectral norm, ``emb_g.weight`` is a speaker embedding, ``b_g`` beside ``b_v``,
``b_i`` and ``b_f`` is a bias of a gate.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from wnconvert.errors import LayerError
from wnconvert.layers.dims import dim_of
from wnconvert.layers.evidence import (
    EMPTY,
    EMPTY_FIX,
    NOT_FLOAT,
    Module,
    PassedOver,
    is_bias,
    weakness_of,
)
from wnconvert.layers.kinds.foreign import NO_WRAPPED, wrapped_layers
from wnconvert.layers.kinds.others import FoundOthers, other_layers
from wnconvert.layers.matching import Keyed, Matched, matched
from wnconvert.layers.rules import Norm
from wnconvert.layers.schemes import SCHEMES, Layer, Refused, Scheme, Selection, owner_of
from wnconvert.messages import option
from wnconvert.tensors.tree import StateDict, TensorInfo

if TYPE_CHECKING:
    from wnconvert.layers.telling.neighbours import LeftNorm

__all__ = ["FoundPairs", "find_pairs", "pairs_in"]


@dataclass(frozen=True, slots=True)
class FoundPairs:
    """The layers that names and shapes show in a state dict.

    ``layers`` are those of the kinds that are asked for, pairs in order of their first halves; ``others``
    those of other kinds; ``refused``; ``unwanted``, layers that the selection leaves alone; ``halves``, keys
    whose other half is not there; ``passed``, pairs that have the names of a layer and too little else, and
    that the selection does not name in full. ``misfit`` says why the selection's recipe is not one of this
    state dict; ``is_foreign`` if nothing that it names is there. ``left`` are norms that names do not tell.
    """

    layers: tuple[Layer, ...]
    refused: tuple[Refused, ...]
    unwanted: tuple[str, ...]
    halves: tuple[str, ...]
    passed: tuple[PassedOver, ...] = ()
    others: tuple[Layer, ...] = ()
    misfit: str = ""
    is_foreign: bool = False
    left: tuple[LeftNorm, ...] = ()


def pairs_in(
    state: StateDict,
    selection: Selection = Selection(),  # noqa: B008 - frozen
) -> FoundPairs:
    """Find the layers of a state dict, by its tensors and by the modules that it names."""
    infos = (tensor.info for tensor in state.tensors.values())
    if selection.asked is None:
        return find_pairs(infos, selection, state.parametrized)
    from wnconvert.layers.telling.resolved import resolved  # which few selections ask for

    told = resolved(state, selection.asked)
    found = find_pairs(infos, replace(selection, recipe=told.recipe), state.parametrized)
    doubtful = (Refused(name, why, fix) for name, why, fix in told.doubtful if selection.wants(name))
    return replace(found, refused=(*found.refused, *doubtful), left=told.left)


def find_pairs(
    infos: Iterable[TensorInfo],
    selection: Selection = Selection(),  # noqa: B008 - frozen
    parametrized: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> FoundPairs:
    """Find the layers among the tensors of one state dict: of weight norm, unless other kinds are asked for.

    ``parametrized`` as in ``StateDict``.

    >>> from wnconvert.tensors.dtypes import dtype_named
    >>> f32 = dtype_named("float32")
    >>> g, v = TensorInfo("conv.weight_g", f32, (8, 1, 1)), TensorInfo("conv.weight_v", f32, (8, 4, 3))
    >>> found = find_pairs([g, v])
    >>> [(layer.name, layer.form, layer.dim) for layer in found.layers]
    [('conv.weight', 'legacy', 0)]
    """
    there = _There(infos, parametrized)
    others = other_layers(there.names.values(), selection, parametrized)
    pairs = _with_wrapped(_pairs(there, selection, others), there, selection)
    if Norm.kind not in selection.kinds:
        left = (*pairs.layers, *others.left)
        found = FoundPairs(others.layers, others.refused, others.unwanted, (), others=left)
    else:
        found = _with_others(pairs, others)
    if selection.recipe is None:
        return found
    known = Keyed(
        there.names,
        {layer.name: layer for layer in found.layers},
        {layer.name: layer for layer in found.others},
        frozenset(item.name for item in found.refused),
    )
    return _with_told(found, matched(selection.recipe, known, selection))


def _with_told(found: FoundPairs, told: Matched) -> FoundPairs:
    """What keys show, and what a recipe tells of it and beside it."""
    layers = {layer.name: layer for layer in (*found.layers, *told.layers)}
    for item in told.refused:
        layers.pop(item.name, None)
    return replace(
        found,
        layers=tuple(layers.values()),
        refused=(*found.refused, *told.refused),
        unwanted=tuple(dict.fromkeys((*found.unwanted, *told.unwanted))),
        misfit=told.misfit,
        is_foreign=told.is_foreign,
    )


def _with_others(pairs: FoundPairs, others: FoundOthers) -> FoundPairs:
    """Pairs, and layers of other kinds that are asked for too."""
    refused = {item.name: item for item in (*pairs.refused, *others.refused)}
    return replace(
        pairs,
        layers=(*pairs.layers, *others.layers),
        refused=tuple(refused.values()),
        unwanted=tuple(dict.fromkeys((*pairs.unwanted, *others.unwanted))),
        others=others.left,
    )


def _with_wrapped(pairs: FoundPairs, there: _There, selection: Selection) -> FoundPairs:
    """Pairs, and those of other frameworks' wrappers."""
    wrapped = wrapped_layers(there.names, selection)
    if wrapped is NO_WRAPPED:
        return pairs
    return replace(
        pairs,
        layers=(*pairs.layers, *wrapped.layers),
        refused=(*pairs.refused, *wrapped.refused),
        unwanted=(*pairs.unwanted, *wrapped.unwanted),
        halves=(*pairs.halves, *wrapped.halves),
        passed=(*pairs.passed, *wrapped.passed),
    )


def _pairs(there: _There, selection: Selection, others: FoundOthers) -> FoundPairs:
    """The pairs, but for those that are a part of ``others``."""
    layers: list[Layer] = []
    refused: list[Refused] = []
    unwanted: list[str] = []
    halves: list[str] = []
    passed: list[PassedOver] = []
    alone = _Others.of(others)
    for group in filter(alone.leaves, there.groups.values()):
        g, v = group.g, group.v
        if g is None or v is None:
            halves += _lonely_half(group, there)
        elif _is_nobodys(group, g, v, there):
            continue
        elif other := next((half for half in (g, v) if not _is_number(half)), None):
            if selection.wants(group.weight) and _fits(group, g, v, there):
                why = f"{other.name} is {other.dtype}, not a float"
                passed.append(PassedOver(group.weight, g.name, v.name, NOT_FLOAT, why))
        elif not selection.wants(group.weight):
            unwanted.append(group.weight)
        elif (weakness := there.weakness(group)) and not selection.names(group.weight):
            passed.append(PassedOver(group.weight, g.name, v.name, *weakness))
        elif reason := _reason_against(group, there) or alone.reason_against(group):
            if any(other.name == group.weight for other in refused):
                continue  # there in both forms: reported once
            remedy = EMPTY_FIX if reason == EMPTY else alone.remedy(group)
            refused.append(Refused(group.weight, reason, remedy))
        else:
            convention = group.scheme.convention_of(g, v)
            try:
                fit = dim_of(g.shape, v.shape, selection.dim, axes=convention.axes)
            except LayerError as error:
                refused.append(Refused(group.weight, error.what, error.fix))
            else:
                layer = Layer.of_pair(group.weight, convention.form, fit.dim, g, v, selection.eps)
                layers.append(replace(layer, note=fit.note))
    return FoundPairs(tuple(layers), tuple(refused), tuple(unwanted), tuple(halves), tuple(passed))


@dataclass(slots=True)
class _Group:
    """The keys of one weight in one scheme, as far as they are there."""

    scheme: Scheme
    weight: str
    g: TensorInfo | None = None
    v: TensorInfo | None = None
    beside: TensorInfo | None = None
    weakness: tuple[str, str] | None = None  # where a weight of its module is normalized

    @property
    def is_whole(self) -> bool:
        """Whether both halves are there."""
        return self.g is not None and self.v is not None

    @property
    def param(self) -> str:
        """The name of the weight in its module."""
        return self.weight.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class _Others:
    """Layers of other kinds by their weights: those that are asked for, and the rest."""

    asked: Mapping[str, Layer]
    left: Mapping[str, Layer]

    @classmethod
    def of(cls, others: FoundOthers) -> _Others:
        """Those that were found."""
        return cls(*({layer.name: layer for layer in layers} for layers in (others.layers, others.left)))

    def leaves(self, group: _Group) -> bool:
        """Whether a group is no part of a layer of several kinds, nor a half of it that stands alone."""
        if not (self.asked or self.left):
            return True
        mine = (self.asked.get(group.weight), None if group.is_whole else self.left.get(group.weight))
        halves = {half.name for half in (group.g, group.v) if half is not None}
        return not any(layer and halves <= {part.name for part in layer.tensors} for layer in mine)

    def reason_against(self, group: _Group) -> str:
        """Why a pair must not be converted beside a layer of another kind, or nothing."""
        is_there = group.weight in self.asked
        return "it is there twice, as weight norm alone and as another kind" if is_there else ""

    def remedy(self, group: _Group) -> str:
        """What converts a pair that is a part of a layer of several kinds, or nothing."""
        layer = self.left.get(group.weight)
        return f"fold {option('kinds', ','.join(layer.rule.kinds))} takes the whole stack" if layer else ""


#: Modules of more tensors are looked through once; others, which may be very many, when they are asked for.
_FEW = 16


class _There:
    """The tensors of a state dict: by name, by module, and in groups."""

    def __init__(self, infos: Iterable[TensorInfo], parametrized: Mapping[str, tuple[str, ...]]) -> None:
        self.parametrized = parametrized
        self.names = {info.name: info for info in infos}
        self.owned: dict[str, list[TensorInfo]] = {}
        self.groups: dict[tuple[str, str], _Group] = {}
        for info in self.names.values():
            self.owned.setdefault(owner_of(info.name), []).append(info)
            for scheme in SCHEMES:
                if scheme.may_have(info.name):
                    self._take(scheme, info)
        self.large = {owner: Module(infos, owner) for owner, infos in self.owned.items() if len(infos) > _FEW}
        for group in self.groups.values():
            group.weakness = self._weakness(group, has_layer=True)
        self.normalized = {
            owner_of(group.weight)
            for group in self.groups.values()
            if group.is_whole and group.weakness is None and not is_bias(group.param)
        }

    def _take(self, scheme: Scheme, info: TensorInfo) -> None:
        for part in ("g", "v", "beside"):
            pattern: re.Pattern[str] = getattr(scheme, part)
            if match := pattern.fullmatch(info.name):
                weight = match["owner"] + match["param"]
                group = self.groups.get((scheme.form, weight))
                if group is None:
                    group = self.groups[scheme.form, weight] = _Group(scheme, weight)
                if getattr(group, part) is None:
                    setattr(group, part, info)

    def stacked_on(self, group: _Group) -> str:
        """A parametrization of a weight beside the one of weight norm; it may have no tensors."""
        if group.scheme.form != "parametrize":
            return ""
        owner = owner_of(group.weight)
        others = (number for number in self.parametrized.get(group.weight, ()) if number != "0")
        return next((f"{owner}parametrizations.{group.param}.{number}" for number in others), "")

    def module_of(self, group: _Group) -> Module:
        """The tensors of the module that has the weight."""
        owner = owner_of(group.weight)
        return self.large.get(owner) or Module(self.owned.get(owner, ()), owner)

    def is_of_family(self, group: _Group, info: TensorInfo) -> bool:
        """Whether a tensor is one of several of the family of a weight, and no part of spectral norm."""
        owner = owner_of(group.weight)
        return info.name[len(owner) :] in self.module_of(group).family_of(group.param)

    def weakness(self, group: _Group) -> tuple[str, str] | None:
        """What speaks against a whole group; see ``weakness_of``."""
        is_beside = owner_of(group.weight) in self.normalized
        return group.weakness if is_beside else self._weakness(group, has_layer=False)

    def _weakness(self, group: _Group, *, has_layer: bool) -> tuple[str, str] | None:
        if group.g is None or group.v is None:
            return None
        return weakness_of(
            group.scheme, group.param, group.g, group.v, self.module_of(group), has_layer=has_layer
        )


def _is_number(info: TensorInfo) -> bool:
    return info.dtype.foldable or info.dtype.is_float8 or info.dtype.name.startswith("complex")


def _fits(group: _Group, g: TensorInfo, v: TensorInfo, there: _There) -> bool:
    """Whether all but the dtypes of a pair shows a layer: other integers x_g and x_v are nobody's."""
    if not group.scheme.is_torchs or there.weakness(group) is not None:
        return False
    try:
        dim_of(g.shape, v.shape)
    except LayerError:
        return False
    return True


def _is_nobodys(group: _Group, g: TensorInfo, v: TensorInfo, there: _There) -> bool:
    """Whether a plain weight has a ``weight_g`` beside it that is not its magnitude, or not its own."""
    if group.scheme.is_torchs:
        return False
    in_torchs = (there.groups.get((scheme.form, group.weight)) for scheme in SCHEMES if scheme.is_torchs)
    is_magnitude = len(v.shape) > 1 and g.shape == (v.shape[0],) + (1,) * (len(v.shape) - 1)
    return not is_magnitude or any(other is not None and other.is_whole for other in in_torchs)


def _reason_against(group: _Group, there: _There) -> str:
    """Why a complete pair must not be converted, or nothing."""
    if group.beside and not there.is_of_family(group, group.beside):
        return f"{group.beside.name} beside it shows another reparameterization stacked on weight norm"
    if stacked := there.stacked_on(group):
        return f"{stacked} shows another parametrization stacked on weight norm"
    if group.scheme.is_torchs and group.weight in there.names:
        return "the plain weight of that name is there too, and only one of them can be right"
    for scheme in SCHEMES:
        other = there.groups.get((scheme.form, group.weight))
        if other is not None and other is not group and other.is_whole:
            return f"it is there twice, in the {group.scheme.form} and in the {scheme.form} form"
    for info in (group.g, group.v):
        if info is not None and not info.dtype.foldable:
            scale = " without its scale" if info.dtype.is_float8 else ""
            return f"{info.name} is {info.dtype}, which cannot be folded{scale}"
    return "" if all(half is None or half.numel for half in (group.g, group.v)) else EMPTY


def _lonely_half(group: _Group, there: _There) -> list[str]:
    """The key of a half whose partner seems to have been renamed.

    A lone v shows nothing: spectral norm has one (with u), attention has ``bias_v``; nor does a vector
    called ``x_g``, nor one of a family. A tensor with the shape of a magnitude, or the name of a
    parametrization, counts.
    """
    half = group.g or group.v
    if half is None or not group.scheme.is_torchs or group.weight in there.names or not half.dtype.foldable:
        return []
    if group.scheme.form == "parametrize":
        return [half.name]
    if there.module_of(group).family_of(group.param):
        return []
    if half is group.g:
        long_axes = [size for size in half.shape if size != 1]
        return [half.name] if len(half.shape) > 1 and len(long_axes) <= 1 else []
    return [half.name] if group.weight.endswith("weight") and len(half.shape) > 1 and not group.beside else []
