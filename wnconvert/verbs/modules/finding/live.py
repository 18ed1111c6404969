"""The layers of a live ``nn.Module``, found by the code that computes them, not by keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from wnconvert.frozen import dataclass
from wnconvert.layers.rules import ORIGINAL
from wnconvert.layers.schemes import Layer
from wnconvert.messages import option
from wnconvert.verbs.modules.finding.candidates import Candidate, RefusedLive, candidates, stacked
from wnconvert.verbs.modules.finding.chains import Chain
from wnconvert.verbs.modules.finding.compiled import compiled_layers
from wnconvert.verbs.modules.finding.values import Reason, info_of
from wnconvert.verbs.modules.finding.walk import modules_with_names
from wnconvert.verbs.modules.finding.wrappers import IN_FSDP, held_by_fsdp

__all__ = ["Live", "LiveFound", "find_live"]


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """A layer of a module: attribute ``param`` of ``module``, computed by a chain from ``tensors``.

    ``names`` are all names of the weight, because a shared module has several; ``layer`` has the first.
    """

    layer: Layer
    names: tuple[str, ...]
    module: nn.Module
    param: str
    chain: Chain
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, candidate: Candidate, name: str, names: tuple[str, ...]) -> Live:
        """The layer of a candidate that nothing speaks against, by one of its names."""
        rule, chain = candidate.rule, candidate.chain
        assert rule is not None  # noqa: S101 - what has none is never wanted
        tensors = {role: value for role, value in candidate.tensors.items() if value is not None}
        owner = name[: len(name) - len(candidate.param)]
        infos = {role: info_of(owner + chain.places[role].key, value) for role, value in tensors.items()}
        parts = {role: info for role, info in infos.items() if info is not None}
        layer = Layer(name, chain.form, rule, parts)
        return cls(layer, names, candidate.module, candidate.param, chain, tensors)

    @property
    def original(self) -> Tensor:
        """The tensor that the chain starts from, as which the weight is made; weight norm's v."""
        return self.tensors[ORIGINAL]

    @property
    def key(self) -> tuple[object, ...]:
        """What is equal for layers that are computed of the same objects in the same manner."""
        return (self.layer.rule, *((role, id(value)) for role, value in self.tensors.items()))

    def named(self, name: str) -> Live:
        """The same layer under another of its names."""
        if name == self.layer.name:
            return self
        owner, was = (text[: len(text) - len(self.param)] for text in (name, self.layer.name))
        parts = {
            role: replace(info, name=owner + info.name[len(was) :]) for role, info in self.layer.parts.items()
        }
        return replace(self, layer=replace(self.layer, name=name, parts=parts))

    def again(self) -> Live:
        """The same layer as its module computes it now."""
        found = (each for each in candidates(self.module) if each.param == self.param)
        return Live.of(next(found), self.layer.name, self.names)


@dataclass(frozen=True, slots=True)
class LiveFound:
    """The layers of a module in the order of its modules, the refused layers, and other computed weights.

    ``others`` are weights under another reparameterization, each with the name of that.
    """

    layers: tuple[Live, ...]
    refused: tuple[RefusedLive, ...]
    others: Mapping[tuple[str, ...], str]

    @property
    def names(self) -> list[str]:
        """Every name of every layer, also of refused ones."""
        names = [*(item.names for item in self.layers), *(item.names for item in self.refused)]
        return [name for of_one in names for name in of_one]


def find_live(root: object, kinds: Collection[str] = ("weight",)) -> LiveFound:
    """Find the layers of these kinds in a module and all modules below it, by torch's hooks and classes.

    Raises ``ArgumentError`` if ``root`` is not an ``nn.Module``. Source: ``torch.nn.utils.weight_norm`` (a
    ``WeightNorm`` forward pre hook), ``torch.nn.utils.parametrizations.weight_norm`` (a ``_WeightNorm``).

    >>> from torch.nn.utils.parametrizations import weight_norm
    >>> (live,) = find_live(nn.Sequential(weight_norm(nn.Linear(3, 2)))).layers
    >>> live.layer.name, live.layer.form, live.layer.dim
    ('0.weight', 'parametrize', 0)
    """
    modules = modules_with_names(root)
    sharded = held_by_fsdp(module for module, _ in modules)
    layers: list[Live] = []
    refused: list[RefusedLive] = []
    others: dict[tuple[str, ...], str] = {}
    for module, prefixes in modules:
        for candidate in () if _is_computed_elsewhere(module, root) else candidates(module):
            names = tuple(prefix + candidate.param for prefix in prefixes)
            if candidate.rule is None or set(kinds).isdisjoint(candidate.rule.kinds):
                others[names] = candidate.words
            elif id(module) in sharded:
                refused.append(RefusedLive(names, *IN_FSDP))
            elif reason := candidate.reason or _reason_against_kinds(candidate, kinds):
                refused.append(RefusedLive(names, reason.text, reason.fix))
            else:
                layers.append(Live.of(candidate, names[0], names))
    found = LiveFound(tuple(layers), tuple(refused), others)
    known = set(found.names)
    compiled = (item for item in compiled_layers(modules, kinds) if known.isdisjoint(item.names))
    return replace(found, refused=(*found.refused, *compiled))


def _is_computed_elsewhere(module: nn.Module, root: object) -> bool:
    """Whether what is computed in a module is part of what its owner computes, or code that is compiled."""
    inner = isinstance(module, ParametrizationList) and module is not root
    return inner or isinstance(module, torch.jit.ScriptModule)


def _reason_against_kinds(candidate: Candidate, kinds: Collection[str]) -> Reason | None:
    """Why a layer is not of these kinds alone; None if it is."""
    rule = candidate.rule
    if rule is None or set(rule.kinds) <= set(kinds):
        return None
    together = option("kinds", ",".join(rule.kinds))
    return Reason(f"{stacked(candidate)} are stacked on it, and only {together} folds them, as one")
