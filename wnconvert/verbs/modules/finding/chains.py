"""How a weight is computed, from the outside inward: hooks and parametrizations, one upon the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from wnconvert.frozen import dataclass
from wnconvert.layers.rules import ORIGINAL, Rule
from wnconvert.verbs.modules.finding.computed import (
    HELD,
    HookComputed,
    computed_by_hooks,
    parametrizations_of,
    tensor_of,
)
from wnconvert.verbs.modules.finding.manners import PARAMETRIZATIONS, Manner, words_of

__all__ = ["Chain", "Link", "Place", "chain_of"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor is: ``name`` in a module. A state dict has it as ``key``, behind the weight's owner."""

    home: nn.Module
    name: str
    key: str

    @property
    def tensor(self) -> Tensor | None:
        """The Parameter or buffer there."""
        return tensor_of(self.home, self.name)

    @property
    def is_fleeting(self) -> bool:
        """Whether it is a buffer that is not saved in a state dict."""
        return self.name in self.home._non_persistent_buffers_set


@dataclass(frozen=True, slots=True)
class Link:
    """A hook or a parametrization that computes ``target`` of ``home`` in a manner."""

    manner: Manner
    by: Any
    home: nn.Module
    target: str

    @property
    def is_hook(self) -> bool:
        """Whether it is a hook of ``home``."""
        return not isinstance(self.by, nn.Module)


@dataclass(frozen=True, slots=True)
class Chain:
    """All that computes a weight, the innermost first, and the places of what it is computed of, by role.

    ``made`` are the links in words with their targets, those that are in no table too. ``reasons`` speak
    against taking the links for what they are.
    """

    places: Mapping[str, Place]
    links: tuple[Link, ...] = ()
    made: tuple[tuple[str, str], ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """All that computes the weight, in words."""
        return " and ".join(word for word, _ in self.made)

    @property
    def is_known(self) -> bool:
        """Whether there is a rule for all that computes the weight."""
        return len(self.links) == len(self.made)

    @property
    def form(self) -> str:
        """The form of the outermost link."""
        return "legacy" if self.links[-1].is_hook else "parametrize"

    def rule(self, rank: int) -> Rule:
        """The rule of its links, for a weight of so many axes."""
        return Rule(tuple(link.manner.operation(link.by, rank) for link in self.links))

    def tensors(self, rule: Rule) -> dict[str, Tensor | None]:
        """The tensors of its rule, by role."""
        return {role: self.places[role].tensor for role in rule.roles if role in self.places}

    def below(self, home: nn.Module) -> list[str]:
        """The names of its tensors in a module itself."""
        return [place.name for place in self.places.values() if place.home is home]


def chain_of(home: nn.Module, name: str, prefix: str = "") -> Chain:
    """How ``name`` of a module is computed; ``prefix`` is that of the module, from the weight's owner on."""
    hooks = [each for each in computed_by_hooks(home) if each.target == name]
    made_by = parametrizations_of(home).get(name)
    if hooks:
        chain = _hooked(home, hooks[0], prefix)
        others = [(each.kind, name) for each in hooks[1:]]
        if made_by is not None:
            others += [(words_of(part), name) for part in _members(made_by).values()]
        return replace(chain, made=(*chain.made, *others))
    if made_by is not None:
        return _parametrized(home, name, made_by, prefix)
    return Chain({ORIGINAL: Place(home, name, prefix + name)})


def _hooked(home: nn.Module, outer: HookComputed, prefix: str) -> Chain:
    manner, target = outer.manner, outer.target
    inner = chain_of(home, outer.start, prefix)
    beside = {
        role: Place(home, target + suffix, prefix + target + suffix) for role, suffix in manner.beside.items()
    }
    return Chain(
        {**inner.places, **beside},
        (*inner.links, Link(manner, outer.hook, home, target)),
        (*inner.made, (manner.words, target), *_computed(beside)),
        (*inner.reasons, *filter(None, (manner.reason_against(outer.hook),))),
    )


def _parametrized(home: nn.Module, name: str, made_by: ParametrizationList, prefix: str) -> Chain:
    prefix = f"{prefix}{HELD}.{name}."
    members = _members(made_by)
    manners = {key: _manner_of(part) for key, part in members.items()}
    first = next((manner for manner in manners.values() if manner), None)
    inner = chain_of(made_by, first.start if first else "original", prefix)
    places, links, made = dict(inner.places), list(inner.links), list(inner.made)
    reasons = [*inner.reasons, *_reasons_against(home, name, made_by, members)]
    for key, part in members.items():
        manner = manners[key]
        made.append((words_of(part), name))
        if manner is None:
            continue
        beside = {role: Place(made_by, at, prefix + at) for role, at in manner.beside.items()}
        made += _computed(beside)
        places |= beside | {role: Place(part, at, f"{prefix}{key}.{at}") for role, at in manner.own.items()}
        links.append(Link(manner, part, home, name))
        if reason := manner.reason_against(part):
            reasons.append(reason)
    return Chain(places, tuple(links), tuple(made), tuple(reasons))


def _members(made_by: ParametrizationList) -> dict[str, nn.Module]:
    """The parametrizations: the numbered children; an original that is parametrized is a child too."""
    return {key: part for key, part in made_by._modules.items() if key.isdecimal() and part is not None}


def _manner_of(part: nn.Module) -> Manner | None:
    return next((manner for manner in PARAMETRIZATIONS if isinstance(part, manner.cls)), None)


def _computed(places: Mapping[str, Place]) -> Iterator[tuple[str, str]]:
    """What computes tensors that no rule has computed."""
    for place in places.values():
        yield from chain_of(place.home, place.name).made


def _reasons_against(
    home: nn.Module, name: str, made_by: ParametrizationList, members: Mapping[str, nn.Module]
) -> Iterator[str]:
    known = {id(each.hook) for each in computed_by_hooks(made_by)}
    hooks = [
        hook
        for each in (made_by, *members.values())
        for hook in (*each._forward_pre_hooks.values(), *each._forward_hooks.values())
    ]
    if any(id(hook) not in known for hook in hooks):
        yield "hooks on its parametrization change what it computes"
    if name not in vars(type(home)):
        yield f"{type(home).__name__} is not the class that torch made for its parametrizations"
