"""Weight-normalized layers of a live ``nn.Module``, found by the code that computes them, not by keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from wnconvert.layers.dims import dim_of
from wnconvert.layers.schemes import Layer
from wnconvert.verbs.modules.finding.candidates import (
    Candidate,
    RefusedLive,
    candidates,
    reasons_against,
)
from wnconvert.verbs.modules.finding.compiled import compiled_layers
from wnconvert.verbs.modules.finding.values import layer_of
from wnconvert.verbs.modules.finding.walk import modules_with_names
from wnconvert.verbs.modules.finding.wrappers import IN_FSDP, held_by_fsdp

__all__ = ["Live", "LiveFound", "find_live"]


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """A weight-normalized layer of a module: attribute ``param`` of ``module``, computed from g and v.

    ``names`` are all names of the weight, because a shared module has several; ``layer`` has the first.
    ``stated`` is dim as torch stores it: -1 stands for the whole tensor.
    """

    layer: Layer
    names: tuple[str, ...]
    module: nn.Module
    param: str
    g: Tensor
    v: Tensor
    stated: int

    def named(self, name: str) -> Live:
        """The same layer under another of its names."""
        return replace(self, layer=layer_of(name, self.layer.form, self.layer.dim, self.g, self.v))

    def in_form(self, form: str) -> Live:
        """The same layer with its names in another form."""
        return replace(self, layer=layer_of(self.layer.name, form, self.layer.dim, self.g, self.v))


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


def find_live(root: object) -> LiveFound:
    """Find the layers of torch's two weight norms in a module and all modules below it.

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
        for candidate in () if isinstance(module, torch.jit.ScriptModule) else candidates(module):
            names = tuple(prefix + candidate.param for prefix in prefixes)
            if candidate.kind:
                others[names] = candidate.kind
            elif id(module) in sharded:
                refused.append(RefusedLive(names, *IN_FSDP))
            elif reason := next(reasons_against(candidate, module), None):
                refused.append(RefusedLive(names, reason.text, reason.fix))
            else:
                layers.append(_live(module, names, candidate))
    found = LiveFound(tuple(layers), tuple(refused), others)
    known = set(found.names)
    compiled = (item for item in compiled_layers(modules) if known.isdisjoint(item.names))
    return replace(found, refused=(*found.refused, *compiled))


def _live(module: nn.Module, names: tuple[str, ...], candidate: Candidate) -> Live:
    g, v = candidate.g, candidate.v
    assert g is not None  # noqa: S101 - or there is a reason against it
    assert v is not None  # noqa: S101
    dim = dim_of(tuple(g.shape), tuple(v.shape), candidate.dim).dim
    layer = layer_of(names[0], candidate.form, dim, g, v)
    return Live(layer, names, module, candidate.param, g, v, candidate.dim)
