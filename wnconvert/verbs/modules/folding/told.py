"""The layers of a live module that a recipe tells, upon whatever computes their weights already."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from wnconvert.errors import LayerError
from wnconvert.layers.kinds.table import ALL
from wnconvert.layers.matching import Keyed, matched
from wnconvert.layers.recipes import Recipe
from wnconvert.layers.rules import BIAS, ORIGINAL
from wnconvert.layers.schemes import Layer, Selection
from wnconvert.messages import listed, printable
from wnconvert.verbs.modules.finding.candidates import RefusedLive
from wnconvert.verbs.modules.finding.chains import Chain
from wnconvert.verbs.modules.finding.live import Live, LiveFound, find_live
from wnconvert.verbs.modules.finding.values import Reason, info_of, reason_against_tensor
from wnconvert.verbs.modules.finding.wrappers import IN_FSDP, held_by_fsdp
from wnconvert.verbs.modules.folding.places import Places

__all__ = ["with_recipe"]


_ANOTHER = "the recipe is of another model, or of another part of it: recipe_of(module, …) tells its own"


def with_recipe(root: object, found: LiveFound, selection: Selection, places: Places) -> LiveFound:
    """What is found in a module, with the layers that the selection's recipe tells in place of theirs.

    Nothing is computed or run here. Layers that the module holds in a way in which the fold would change more
    than the recipe says are among the refused. Raises ``LayerError`` where the recipe is not one of the
    module.
    """
    recipe = selection.recipe
    if recipe is None:
        return found
    asked = {name: live for live in found.layers for name in live.names}
    foreign = dict(_computed_by_others(recipe, root, found, selection))
    if foreign:
        refused = (RefusedLive((name,), f"{words} is on it") for name, words in foreign.items())
        return LiveFound(found.layers, (*found.refused, *refused), found.others)
    told = matched(recipe, _known(root, found, places), selection)
    if told.misfit:
        raise LayerError(f"the recipe does not fit the module: {told.misfit}", fix=_ANOTHER)
    layers = {live.layer.name: live for live in found.layers}
    reasons = {item.name: Reason(item.reason, item.remedy) for item in told.refused}
    sharded = held_by_fsdp(places.modules.values())
    for layer in told.layers:
        base = asked.get(layer.name)
        live = _live(layer, base, places)
        if reason := next(_reasons_against(live, places, sharded), None):
            reasons[layer.name] = reason
        layers[layer.name if base is None else base.layer.name] = live
    left = (live for live in layers.values() if live.layer.name not in reasons)
    refused = (RefusedLive((name,), reason.text, reason.fix) for name, reason in reasons.items())
    named = {layer.name for layer in told.layers}
    others = {names: words for names, words in found.others.items() if named.isdisjoint(names)}
    return LiveFound(tuple(left), (*found.refused, *refused), others)


def _computed_by_others(
    recipe: Recipe, root: object, found: LiveFound, selection: Selection
) -> Iterator[tuple[str, str]]:
    """The weights of a recipe's folds that something computes which no kind is for, with its name."""
    words = {name: kind for names, kind in found.others.items() for name in names}
    known = {name for live in find_live(root, ALL).layers for name in live.names} if words else set()
    for fold in recipe.folds:
        if fold.weight in words and fold.weight not in known and selection.wants(fold.weight):
            yield fold.weight, words[fold.weight]


def _known(root: object, found: LiveFound, places: Places) -> Keyed:
    """What the module shows without a recipe."""
    values = {name: place.tensor for name, place in places.tensors.items()}
    infos = {name: info_of(name, value) for name, value in values.items() if value is not None}
    asked = {name: live.named(name).layer for live in found.layers for name in live.names}
    every = {name: live.named(name).layer for live in find_live(root, ALL).layers for name in live.names}
    return Keyed(
        {name: info for name, info in infos.items() if info is not None},
        asked,
        {name: layer for name, layer in every.items() if name not in asked},
        frozenset(name for item in found.refused for name in item.names),
    )


def _live(layer: Layer, base: Live | None, places: Places) -> Live:
    """The live layer, with the tensors of the norm beside it."""
    tensors: dict[str, Tensor] = dict(base.tensors) if base else {}
    for role, info in layer.parts.items():
        if role not in tensors and (value := places.tensor(info.name)) is not None:
            tensors[role] = value
    if base is not None:
        return Live(layer, base.names, base.module, base.param, base.chain, tensors)
    place = places.tensors[layer.name]
    return Live(layer, (layer.name,), place.home, place.name, Chain({ORIGINAL: place}), tensors)


# -- what speaks against


def _reasons_against(live: Live, places: Places, sharded: Collection[int]) -> Iterator[Reason]:
    layer = live.layer
    norm = places.modules.get(layer.norm) if layer.norm else None
    for each in filter(None, (live.module, norm)):
        if isinstance(each, torch.jit.ScriptModule):
            yield Reason("TorchScript runs it, and its code cannot be changed", "fold before scripting")
        if id(each) in sharded:
            yield Reason(*IN_FSDP)
        if len(every := places.names[id(each)]) > 1:
            names = listed(map(printable, every))
            yield Reason(f"one module has the names {names}, and a norm goes into one use")
    shared = ("gamma", "beta") if layer.rule.kinds[-1:] == ("affine",) else ()
    for role, value in live.tensors.items():
        name = layer.parts[role].name
        if reason := reason_against_tensor(name, value):
            yield reason
        elif (others := places.others(name)) and role not in shared:
            yield Reason(f"{name} is tied to {listed(map(printable, others))}, and one number cannot be two")
    owner, last = places.owner(layer.bias)
    if layer.bias and BIAS not in layer.parts and (owner is None or last not in owner._parameters):
        yield Reason(f"its class has no {printable(layer.bias)} that could take what the norm adds")
