"""Computed weights that may be layers, and the reasons against converting them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from wnconvert.frozen import dataclass
from wnconvert.layers.kinds.table import in_words
from wnconvert.layers.rules import ORIGINAL, Rule
from wnconvert.verbs.modules.finding.chains import Chain, chain_of
from wnconvert.verbs.modules.finding.computed import (
    computed_by_hooks,
    is_on_class,
    parametrizations_of,
    tensor_of,
)
from wnconvert.verbs.modules.finding.values import Reason, reason_against_tensor

__all__ = ["Candidate", "RefusedLive", "candidates", "stacked"]


@dataclass(frozen=True, slots=True)
class RefusedLive:
    """A weight under all of its names, why its layer is refused, and what to do, if not to exclude it.

    ``in_graph`` says that a torch.fx graph computes it.
    """

    names: tuple[str, ...]
    reason: str
    fix: str = ""
    in_graph: bool = False


#: The kinds as they may be stacked, the innermost first; each once at most.
_ORDER = ("prune", "weight", "spectral")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A computed weight, ``param`` of ``module``; ``words`` name its reparameterization.

    ``rule`` is that of the links that there is one for, and None where there is none; ``tensors`` are its
    own, by role, where they are there.
    """

    module: nn.Module
    param: str
    words: str
    chain: Chain = Chain({})
    rule: Rule | None = None
    tensors: Mapping[str, Tensor | None] = field(default_factory=dict)

    @property
    def reason(self) -> Reason | None:
        """The first reason against converting it, whatever kinds are asked for."""
        return next(_reasons_against(self), None)


def candidates(module: nn.Module) -> Iterator[Candidate]:
    """The weights of a module that torch's hooks and parametrizations compute, but for inputs of others."""
    if type(module).__name__ == "WeightNormLinear" and {"weight", "weight_g"} <= module._parameters.keys():
        # PhysicsNeMo's: its own forward computes with both.
        yield Candidate(module, "weight", "weight norm of WeightNormLinear's own forward")
    hooks = computed_by_hooks(module)
    taken = {name for each in hooks for name in each.inputs}
    for param in dict.fromkeys((*(each.target for each in hooks), *parametrizations_of(module))):
        if param not in taken:
            yield _candidate(module, param)


def _candidate(module: nn.Module, param: str) -> Candidate:
    chain = chain_of(module, param)
    original = chain.places[ORIGINAL].tensor
    rule = chain.rule(2 if original is None or is_lazy(original) else original.dim())
    words = in_words(rule.kinds) if chain.is_known else chain.words
    return Candidate(module, param, words, chain, rule if chain.links else None, chain.tensors(rule))


def _reasons_against(candidate: Candidate) -> Iterator[Reason]:
    chain, rule, module, param = candidate.chain, candidate.rule, candidate.module, candidate.param
    assert rule is not None  # noqa: S101 - else it is of no kind that could be asked for
    yield from map(Reason, chain.reasons)
    found = tuple(each.kind for each in rule.operations)
    if not chain.is_known or found != tuple(kind for kind in _ORDER if kind in found):
        yield Reason(f"{stacked(candidate)} are stacked on it")
    for role, value in candidate.tensors.items():
        name = chain.places[role].name
        if value is None:
            yield Reason(f"its {name} is neither a Parameter nor a buffer of the module")
        elif reason := reason_against_tensor(name, value):
            yield reason
    if chain.form == "legacy" and tensor_of(module, param) is not None:
        yield Reason("there is a plain weight of that name too, and only one of them can be right")
    elif chain.form == "legacy" and is_on_class(module, param):
        yield Reason(f"the name {param} is taken by an attribute of its class")
    shapes = {role: tuple(value.shape) for role, value in candidate.tensors.items() if value is not None}
    yield from (Reason(text) for link in chain.links if (text := link.manner.misfit(link.by, shapes)))


def stacked(candidate: Candidate) -> str:
    """All that computes a weight, each with the tensor that it computes, if that is another."""
    made = candidate.chain.made
    return " and ".join(word if target == candidate.param else f"{word} of {target}" for word, target in made)
