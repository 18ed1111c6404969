"""Computed weights that may be layers, and the reasons against converting them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.weight_norm import WeightNorm

from wnconvert.errors import LayerError
from wnconvert.layers.dims import dim_of
from wnconvert.verbs.modules.finding.computed import (
    computed_by_hooks,
    is_on_class,
    parametrizations_of,
    tensor_of,
)
from wnconvert.verbs.modules.finding.values import Reason, reason_against_tensor

__all__ = ["Candidate", "RefusedLive", "candidates", "reasons_against"]


@dataclass(frozen=True, slots=True)
class RefusedLive:
    """A weight under all of its names, why its layer is refused, and what to do, if not to exclude it.

    ``in_graph`` says that a torch.fx graph computes it.
    """

    names: tuple[str, ...]
    reason: str
    fix: str = ""
    in_graph: bool = False


@dataclass(slots=True)
class Candidate:
    """A computed weight; ``kind`` names its reparameterization if that is not weight norm."""

    form: str
    param: str
    kind: str = ""
    dim: int = -1
    g: Tensor | None = None
    v: Tensor | None = None
    halves: tuple[str, str] = ("", "")
    reason: str = ""
    hook: Any = None


def candidates(module: nn.Module) -> Iterator[Candidate]:
    """The weights of a module that torch's hooks and parametrizations compute."""
    for computed in computed_by_hooks(module):
        if computed.kind != "weight norm":
            yield Candidate("legacy", computed.target, kind=computed.kind)
            continue
        g, v = computed.inputs
        yield Candidate(
            "legacy",
            computed.target,
            dim=computed.hook.dim,
            g=tensor_of(module, g),
            v=tensor_of(module, v),
            halves=(g, v),
            reason=_own_way(computed.hook, WeightNorm, "compute_weight"),
            hook=computed.hook,
        )
    if type(module).__name__ == "WeightNormLinear" and {"weight", "weight_g"} <= module._parameters.keys():
        # PhysicsNeMo's: its own forward computes with both.
        yield Candidate("physicsnemo", "weight", kind="weight norm of WeightNormLinear's own forward")
    for param, made_by in parametrizations_of(module).items():
        # The numbered children are the parametrizations; an original that is parametrized is a child too.
        parts = [part for key, part in made_by._modules.items() if key.isdecimal() and part is not None]
        norms = [part for part in parts if isinstance(part, _WeightNorm)]
        kinds = [_kind_of(part) for part in parts]
        if not norms:
            yield Candidate("parametrize", param, kind=" and ".join(kinds))
            continue
        reason = _own_way(norms[0], _WeightNorm, "forward")
        if len(parts) > 1:
            reason = f"{' and '.join(kinds)} are stacked on it"
        elif any(each._forward_pre_hooks or each._forward_hooks for each in (made_by, parts[0])):
            reason = "hooks on its parametrization change what it computes"
        elif param not in vars(type(module)):
            reason = f"{type(module).__name__} is not the class that torch made for its parametrizations"
        yield Candidate(
            "parametrize",
            param,
            dim=norms[0].dim,
            g=tensor_of(made_by, "original0"),
            v=tensor_of(made_by, "original1"),
            halves=("original0", "original1"),
            reason=reason,
        )


def _own_way(part: object, base: type, method: str) -> str:
    if getattr(type(part), method) is getattr(base, method):
        return ""
    return f"{type(part).__name__} computes it in a way of its own"


def _kind_of(part: nn.Module) -> str:
    if isinstance(part, _WeightNorm):
        return "weight norm"
    return "spectral norm" if isinstance(part, _SpectralNorm) else type(part).__name__.lstrip("_")


def reasons_against(candidate: Candidate, module: nn.Module) -> Iterator[Reason]:
    """The reasons against converting a layer."""
    if candidate.reason:
        yield Reason(candidate.reason)
    if stacked := _stacked(candidate, module):
        yield Reason(f"{stacked} is stacked on weight norm")
    g, v = candidate.g, candidate.v
    for half, value in zip(candidate.halves, (g, v), strict=True):
        if value is None:
            yield Reason(f"its {half} is neither a Parameter nor a buffer of the module")
        elif reason := reason_against_tensor(half, value):
            yield reason
    if candidate.form == "legacy" and tensor_of(module, candidate.param) is not None:
        yield Reason("there is a plain weight of that name too, and only one of them can be right")
    elif candidate.form == "legacy" and is_on_class(module, candidate.param):
        yield Reason(f"the name {candidate.param} is taken by an attribute of its class")
    if g is not None and v is not None:
        shapes = tuple(g.shape), tuple(v.shape)
        try:
            dim_of(*shapes, candidate.dim)
        except LayerError:
            stated = "over the whole tensor" if candidate.dim == -1 else f"along its dim {candidate.dim}"
            yield Reason(f"g {shapes[0]} does not fit v {shapes[1]} {stated}")


def _stacked(candidate: Candidate, module: nn.Module) -> str:
    """Another reparameterization of a weight or its halves, in words, or ``""``."""
    if isinstance(module, ParametrizationList):
        return "another parametrization"
    for other in computed_by_hooks(module):
        meets = other.target == candidate.param or candidate.param in other.inputs
        if candidate.form == "legacy":
            meets = meets or other.target in candidate.halves
        if meets and other.hook is not candidate.hook:
            return f"{other.kind} of {other.target}"
    for param, made_by in parametrizations_of(module).items():
        if candidate.form == "legacy" and param in (*candidate.halves, candidate.param):
            return f"{' and '.join(map(_kind_of, made_by))} of {param}"
    return ""
