"""The classes of torch's whose objects compute a weight: of what, and by which operation, a row each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import (
    SpectralNorm,
    SpectralNormLoadStateDictPreHook,
    SpectralNormStateDictHook,
)
from torch.nn.utils.weight_norm import WeightNorm

from wnconvert.errors import LayerError
from wnconvert.frozen import dataclass
from wnconvert.layers.dims import dim_of
from wnconvert.layers.rules import ORIGINAL, G, Mask, Norm, Operation, Spectral, UnitVector
from wnconvert.tensors.tree import Shape

__all__ = ["HOOKS", "PARAMETRIZATIONS", "Manner", "words_of"]


@dataclass(frozen=True, slots=True)
class Manner:
    """One class; its subclasses compute alike if they have its ``methods``.

    ``words`` name it. ``start`` is the tensor that it starts from, ``beside`` are those that stand beside
    that one, by their roles, and ``own`` those that a parametrization holds itself. A hook's are what comes
    behind the name of the weight, which is its attribute ``target``; ``helpers`` are classes of hooks that
    torch puts beside it, with it as ``fn``. ``operation`` is made of the object and the number of the
    weight's axes; ``misfit`` says, given the shapes of its tensors, why these do not fit.
    """

    words: str
    cls: type
    methods: tuple[str, ...]
    operation: Callable[[Any, int], Operation]
    misfit: Callable[[Any, Mapping[str, Shape]], str]
    start: str
    beside: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    own: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    target: str = "name"
    helpers: tuple[type, ...] = ()

    def reason_against(self, by: object) -> str:
        """Why an object of the class does not compute as the class does, or ``""``."""
        cls = type(by)
        if all(getattr(cls, method) is getattr(self.cls, method) for method in self.methods):
            return ""
        return f"{cls.__name__} computes it in a way of its own"


def _norm(by: Any, rank: int) -> Operation:
    whole = by.dim is None or by.dim == -1 or not rank
    return Norm(None if whole else by.dim % rank)


def _norm_misfit(by: Any, shapes: Mapping[str, Shape]) -> str:
    g, v = shapes[G], shapes[ORIGINAL]
    stated = "over the whole tensor" if by.dim == -1 else f"along its dim {by.dim}"
    try:
        dim_of(g, v, by.dim)
    except LayerError:
        return f"g {g} does not fit v {v} {stated}"
    return ""


def _spectral(by: Any, _rank: int) -> Operation:
    return Spectral(by.dim)


def _unit_or_spectral(by: Any, rank: int) -> Operation:
    return UnitVector(by.eps) if rank == 1 else Spectral(by.dim)


def _spectral_misfit(by: Any, shapes: Mapping[str, Shape]) -> str:
    weight = shapes[ORIGINAL]
    if "u" not in shapes:  # of a vector
        return ""
    if not 0 <= by.dim < len(weight):
        return f"its shape {weight} has no axis {by.dim}"
    rows = weight[by.dim]
    if (shapes["u"], shapes["v"]) == ((rows,), (math.prod(weight) // rows,)):
        return ""
    return f"u {shapes['u']} and v {shapes['v']} do not fit the weight {weight} along its dim {by.dim}"


def _mask(_by: Any, _rank: int) -> Operation:
    return Mask()


def _mask_misfit(_by: Any, shapes: Mapping[str, Shape]) -> str:
    if shapes["mask"] == shapes[ORIGINAL]:
        return ""
    return f"its mask {shapes['mask']} does not fit the weight {shapes[ORIGINAL]}"


#: Forward pre hooks of a module.
HOOKS = (
    Manner("weight norm", WeightNorm, ("compute_weight", "__call__"), _norm, _norm_misfit, "_v", {G: "_g"}),
    Manner(
        "spectral norm",
        SpectralNorm,
        ("compute_weight", "__call__", "reshape_weight_to_matrix"),
        _spectral,
        _spectral_misfit,
        "_orig",
        {"u": "_u", "v": "_v"},
        helpers=(SpectralNormStateDictHook, SpectralNormLoadStateDictPreHook),
    ),
    Manner(
        "prune",
        BasePruningMethod,
        ("apply_mask", "__call__"),
        _mask,
        _mask_misfit,
        "_orig",
        {"mask": "_mask"},
        target="_tensor_name",
    ),
)

#: Members of a ``ParametrizationList``.
PARAMETRIZATIONS = (
    Manner("weight norm", _WeightNorm, ("forward",), _norm, _norm_misfit, "original1", {G: "original0"}),
    Manner(
        "spectral norm",
        _SpectralNorm,
        ("forward", "_reshape_weight_to_matrix"),
        _unit_or_spectral,
        _spectral_misfit,
        "original",
        own={"u": "_u", "v": "_v"},
    ),
)


def words_of(part: nn.Module) -> str:
    """A parametrization in words: that of the table, or its class."""
    known = (manner.words for manner in PARAMETRIZATIONS if isinstance(part, manner.cls))
    return next(known, type(part).__name__.lstrip("_"))
