"""The layers of a live module that a recipe tells, upon whatever computes their weights already."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from wnconvert.layers.recipes import Recipe, RecipeFold
from wnconvert.layers.rules import (
    BIAS,
    ORIGINAL,
    AffineBefore,
    Equalized,
    NormBefore,
    NormBehind,
    Operation,
    Rule,
    Standardize,
    Unit,
)
from wnconvert.layers.schemes import Layer
from wnconvert.messages import listed, option
from wnconvert.tensors.tree import Shape
from wnconvert.verbs.modules.finding.candidates import RefusedLive
from wnconvert.verbs.modules.finding.chains import Chain
from wnconvert.verbs.modules.finding.live import Live, LiveFound
from wnconvert.verbs.modules.finding.values import Reason, info_of, reason_against_tensor
from wnconvert.verbs.modules.finding.wrappers import IN_FSDP, held_by_fsdp
from wnconvert.verbs.modules.folding.places import Places

__all__ = ["with_recipe"]


#: The form of a weight that nothing but its class or a norm beside it computes.
_PLAIN = "plain"
#: The tensors of a norm by their roles.
_NORM = {"variance": "running_var", "gamma": "weight", "mean": "running_mean", "beta": "bias"}
#: What a recipe's file is of.
_ANOTHER = "the recipe is of another model: trace this one, recipe_of(module, inputs=[…])"


def with_recipe(found: LiveFound, recipe: Recipe | None, places: Places) -> LiveFound:
    """What is found in a module, with the layers that a recipe tells in place of what they stand on.

    Nothing is computed or run here. What the recipe names and the module does not have, or has in a way that
    the fold would change more than the recipe says, is among the refused.
    """
    if recipe is None:
        return found
    there = _There(found, recipe, places, held_by_fsdp(places.modules.values()))
    layers = {live.layer.name: live for live in found.layers}
    refused = list(found.refused)
    for name, folds in there.groups().items():
        made = there.told(name, folds)
        if isinstance(made, Live):
            layers[made.layer.name] = made
        elif made is not None:
            refused.append(RefusedLive((name,), made.text, made.fix))
    taken = {name for item in refused for name in item.names}
    others = {names: words for names, words in found.others.items() if taken.isdisjoint(names)}
    left = (live for live in layers.values() if taken.isdisjoint(live.names))
    return LiveFound(tuple(left), tuple(refused), others)


@dataclass(frozen=True, slots=True)
class _There:
    """What a recipe is matched against."""

    found: LiveFound
    recipe: Recipe
    places: Places
    sharded: Collection[int]

    def groups(self) -> Mapping[str, list[RecipeFold]]:
        """The folds of each weight, the innermost first."""
        groups: dict[str, list[RecipeFold]] = {}
        weights = [*self.places.tensors, *self.found.names, *(n for ns in self.found.others for n in ns)]
        for fold in self.recipe.folds:
            named = [fold.weight]
            if not fold.norm and fold.weight not in weights:
                named = [name for name in weights if fnmatchcase(name, fold.weight)] or named
            for name in dict.fromkeys(named):
                groups.setdefault(name, []).append(fold)
        return {name: sorted(folds, key=lambda fold: bool(fold.norm)) for name, folds in groups.items()}

    def told(self, name: str, folds: Sequence[RecipeFold]) -> Live | Reason | None:
        """The layer of a weight, or why it is refused; None if it is refused already."""
        if any(name in item.names for item in self.found.refused):
            return None
        base = next((live for live in self.found.layers if name in live.names), None)
        place = self.places.tensors.get(name)
        if base is None and place is None:
            return self._not_there(name)
        last = folds[-1]
        module, param = (base.module, base.param) if base else self.places.owner(name)
        if module is None:
            return Reason(f"the module has no {name}", _ANOTHER)
        chain = base.chain if base else Chain({ORIGINAL: self.places.tensors[name]})
        names = {role: info.name for role, info in base.layer.parts.items()} if base else {ORIGINAL: name}
        names |= self._beside(name, folds)
        tensors = {
            role: value for role, part in names.items() if (value := self.places.tensor(part)) is not None
        }
        if reason := next(self._reasons_against(folds, names, tensors, module), None):
            return reason
        operations = (*(base.layer.rule.operations if base else ()), *map(_operation, folds))
        operations = tuple(_as_it_is(each, tensors) for each in operations)
        infos = {role: info_of(names[role], value) for role, value in tensors.items()}
        rule = Rule(operations)
        layer = Layer(
            name,
            base.layer.form if base else _PLAIN,
            rule,
            {role: info for role, info in infos.items() if info is not None},
            norm=last.norm,
            bias=last.bias_name if rule.neighbour and rule.neighbour.offsets else "",
            grade=_grade(self.recipe),
        )
        if reason := self._misfit(layer, last):
            return reason
        return Live(layer, (name,), module, param, chain, tensors)

    def _not_there(self, name: str) -> Reason:
        """Why there is no such weight."""
        for names, words in self.found.others.items():
            if name in names:
                return Reason(
                    f"{words} is on it, and the recipe folds into what that computes", option("kinds", "all")
                )
        return Reason(f"the module has no {name}", _ANOTHER)

    def _beside(self, name: str, folds: Sequence[RecipeFold]) -> dict[str, str]:
        """The names of the tensors that the folds of a weight read beside it, by role, if they are there."""
        owner, last = name[: name.rfind(".") + 1], folds[-1]
        found: dict[str, str] = {}
        for fold in folds:
            found |= {
                role: owner + part for role, part in (("gain", fold.gain), ("shift", fold.shift)) if part
            }
        if last.norm:
            roles = ("gamma", "beta") if last.kind == "affine before" else tuple(_NORM)
            found |= {role: f"{last.norm}.{_NORM[role]}" for role in roles}
            found[BIAS] = last.bias_name
        return found

    def _reasons_against(
        self,
        folds: Sequence[RecipeFold],
        names: Mapping[str, str],
        tensors: Mapping[str, Tensor],
        module: nn.Module,
    ) -> Iterator[Reason]:
        last = folds[-1]
        norm = self.places.modules.get(last.norm) if last.norm else None
        if last.norm and norm is None:
            yield Reason(f"the module has no {last.norm}", _ANOTHER)
        if sum(bool(fold.norm) for fold in folds) > 1:
            yield Reason(
                f"the recipe folds several norms into it: {listed(fold.norm for fold in folds if fold.norm)}"
            )
        users = [fold.weight for fold in self.recipe.folds if norm and fold.norm == last.norm]
        if last.kind == "norm behind" and len(users) > 1:
            yield Reason(
                f"the recipe folds {last.norm} into {listed(users)}, and one norm stands behind one layer"
            )
        for each in filter(None, (module, norm)):
            if isinstance(each, torch.jit.ScriptModule):
                yield Reason(
                    f"{self.places.names[id(each)][0] or 'it'} is TorchScript, whose code cannot be changed",
                    "fold the module that was scripted",
                )
            if id(each) in self.sharded:
                yield Reason(*IN_FSDP)
            if len(every := self.places.names[id(each)]) > 1:
                yield Reason(f"one module has the names {listed(every)}, and a norm goes into one use")
        for role, value in tensors.items():
            if reason := reason_against_tensor(names[role], value):
                yield reason
            elif others := self.places.others(names[role]):
                yield Reason(f"{names[role]} is tied to {listed(others)}, and one number cannot be two")
        roles = {role for fold in folds for role in _needed(fold)}
        missing = [names[role] for role in roles if role not in tensors]
        if missing:
            yield Reason(f"the module has no {listed(sorted(missing))}", _ANOTHER)

    def _misfit(self, layer: Layer, fold: RecipeFold) -> Reason | None:
        """Why tensors do not fit, or why the module cannot hold a bias; None if all is well."""
        neighbour, shape = layer.rule.neighbour, layer.original.shape
        if neighbour is None:
            return None
        if len(shape) <= neighbour.dim or shape[0] % neighbour.groups:
            return Reason(
                f"its shape {shape} has no channels along axis {neighbour.dim} in {neighbour.groups} groups",
                _ANOTHER,
            )
        fitting: dict[str, Shape] = {
            role: (neighbour.norms(shape),) for role in (*neighbour.roles, *neighbour.offsets)
        }
        fitting[BIAS] = layer.bias_shape
        for role, part in layer.parts.items():
            if role in fitting and part.shape != fitting[role]:
                return Reason(
                    f"{part.name} {part.shape} does not fit the weight {shape}: {fitting[role]} does",
                    _ANOTHER,
                )
        owner, last = self.places.owner(fold.bias_name)
        if layer.bias and BIAS not in layer.parts and (owner is None or last not in owner._parameters):
            return Reason(f"its class has no {fold.bias_name}, which would take what the norm adds")
        return None


def _grade(recipe: Recipe) -> str:
    return recipe.made_by if recipe.made_by in ("said", "names") else "recipe"


def _needed(fold: RecipeFold) -> tuple[str, ...]:
    """The roles without which a fold cannot be."""
    if fold.kind in ("norm behind", "norm before"):
        return ("variance", "mean")
    if fold.kind == "affine before":
        return ("gamma",)
    return tuple(role for role, part in (("gain", fold.gain), ("shift", fold.shift)) if part)


def _operation(fold: RecipeFold) -> Operation:
    """The operation of a fold."""
    eps = fold.eps or 0.0
    if fold.kind == "norm behind":
        behind = fold.op in ("conv", "linear")
        return NormBehind(0 if behind else 1, eps, fold.groups if fold.op == "conv_transpose" else 1)
    if fold.kind in ("norm before", "affine before"):
        dim, groups = (
            (1, fold.groups if fold.op == "conv" else 1) if fold.op in ("conv", "linear") else (0, 1)
        )
        return NormBefore(dim, eps, groups) if fold.kind == "norm before" else AffineBefore(dim, groups)
    if fold.kind == "standardize":
        has = {"gain": bool(fold.gain), "shift": bool(fold.shift)}
        return Standardize(fold.dim, fold.std, fold.eps_at, eps, fold.scale, fold.fan, **has)
    return Unit(fold.dim, eps, fold.scale) if fold.kind == "unit" else Equalized(fold.scale)


def _as_it_is(operation: Operation, tensors: Mapping[str, Tensor]) -> Operation:
    """An operation of a norm that has γ and β only as far as the module has them."""
    if isinstance(operation, (NormBehind, NormBefore)):
        return replace(operation, gain="gamma" in tensors, shift="beta" in tensors)
    if isinstance(operation, AffineBefore):
        return replace(operation, shift="beta" in tensors)
    return operation
