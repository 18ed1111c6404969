"""The weights that a model's layers are handed in a forward, whatever computes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from wnconvert.frozen import dataclass
from wnconvert.layers.rules import (
    AffineBefore,
    Equalized,
    Mask,
    Norm,
    NormBefore,
    NormBehind,
    Rule,
    Stored,
    Unit,
    UnitVector,
)
from wnconvert.verbs.modules.folding.layers import by_channel

__all__ = ["Beside", "HandedProof", "LayerCall", "handed_in", "handed_proof"]


#: torch's functions that a layer calls with its weight, each with the place of the weight and its name.
_FUNCTIONS: Mapping[str, tuple[int, str]] = MappingProxyType(
    {
        **{f"conv{rank}d": (1, "weight") for rank in (1, 2, 3)},
        **{f"conv_transpose{rank}d": (1, "weight") for rank in (1, 2, 3)},
        "linear": (1, "weight"),
        "addmm": (2, "mat2"),
    }
)
#: How far torch's own rounding of a weight may be from it, as a part of the largest in its channel: where a
#: sum cancels (the mean of a standardization, a σ), nothing tighter holds for all weights.
_NEAR: Mapping[torch.dtype, float] = MappingProxyType({torch.float16: 1e-2, torch.bfloat16: 5e-2})
_NEAR_ELSE = 1e-4
#: What rounds each element once or not at all, and what divides by a norm, whose squares do not cancel.
_EXACT = (Mask, Stored, Equalized)
_OF_NORMS = (Norm, Unit, UnitVector)


@dataclass(frozen=True, slots=True, eq=False)
class LayerCall:
    """One call of a layer's function: the name of the function, and the weight."""

    function: str
    weight: Tensor


@dataclass(frozen=True, slots=True)
class HandedProof:
    """How far the weight that a layer is handed is from what it should be.

    ``distance`` is the largest difference, as a part of the largest element of its channel.
    """

    name: str
    distance: float
    passed: bool


@dataclass(frozen=True, slots=True, eq=False)
class Beside:
    """A norm that stays beside its layer: what it does, and its tensors by their roles, unfolded and folded.

    The eps of ``operation`` is that which the module adds.
    """

    operation: NormBehind | NormBefore
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]


class _Recording(TorchFunctionMode):
    """Notes each weight as a layer is handed it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[LayerCall] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, given = getattr(func, "__name__", ""), kwargs or {}
        place, keyword = _FUNCTIONS.get(name, (0, ""))
        weight = given.get(keyword, args[place] if len(args) > place else None) if keyword else None
        if isinstance(weight, Tensor):
            self.calls.append(LayerCall(name, weight.detach()))
        return func(*args, **given)


def handed_in(run: Callable[[], object]) -> list[LayerCall]:
    """The weights that are handed to layers while ``run`` runs, in order.

    >>> layer = torch.nn.Linear(2, 1)
    >>> [(each.function, each.weight.shape) for each in handed_in(lambda: layer(torch.ones(1, 2)))]
    [('linear', torch.Size([1, 2]))]
    """
    recording = _Recording()
    with recording:
        run()
    return recording.calls


def handed_proof(
    name: str,
    rule: Rule,
    before: Tensor,
    after: Tensor,
    norm: Mapping[str, Tensor],
    *,
    beside: Beside | None = None,
    stored: torch.dtype | None = None,
) -> HandedProof:
    """Compare the weight that a folded layer is handed with that of the layer before, times its norm.

    ``norm`` are the tensors of the norm by their roles. Of a norm that is kept there is ``beside`` instead,
    and what layer and norm multiply together is compared. ``stored`` is the dtype that the folded weight was
    rounded to. Plain float64 arithmetic of torch, which shares nothing with the fold's.
    """
    with torch.no_grad():
        expected, found = before.double(), after.double()
        operation = rule.neighbour
        if beside is not None:
            operation = beside.operation
            found = found * by_channel(_factors(operation, beside.after), operation, tuple(after.shape))
            norm = beside.before
        if operation is not None:
            expected = expected * by_channel(_factors(operation, norm), operation, tuple(before.shape))
        axis = 0 if operation is None else operation.dim
        apart = (found - expected).abs()
        largest = expected.abs().movedim(axis, 0).flatten(1).amax(1)
        largest = largest.reshape([-1 if each == axis else 1 for each in range(expected.dim())])
        ratios = apart / largest.clamp_min(torch.finfo(torch.float32).tiny)
        allowed = _allowed(rule, before, {stored or after.dtype, after.dtype}, expected.abs(), largest)
        passed = bool((apart <= allowed).all())
    return HandedProof(name, float(ratios.cpu().numpy().max(initial=0.0)), passed)


def _allowed(
    rule: Rule, before: Tensor, dtypes: Collection[torch.dtype], size: Tensor, largest: Tensor
) -> Tensor:
    """How far each element may be from the one expected, whose size is given.

    A fold is rounded once to each of ``dtypes``, the file's and that of the model which loads it, by half an
    ulp, which is at most half an eps of the element; a kept norm's neutral variance adds as much again, and
    2 eps leave room for that. Beneath the smallest normal number the half ulp is of a subnormal. So much for
    what is stored. What the unfolded model computes has the rounding of its own dtype: a constant factor one
    eps; a norm of n numbers about √n, as its squares do not cancel, and some for the division. What may
    cancel, as a mean or a σ does, is near as a part of the largest in its channel alone.
    """
    own = torch.finfo(before.dtype)
    near = _NEAR.get(before.dtype, _NEAR_ELSE)
    beneath = [each for each in rule.operations if each is not rule.neighbour]
    roundings = [torch.finfo(dtype) for dtype in dtypes]
    allowed = sum(each.tiny * each.eps for each in roundings) + size * sum(2 * each.eps for each in roundings)
    if any(not isinstance(each, (*_EXACT, *_OF_NORMS)) for each in beneath):
        return allowed + near * largest
    if any(isinstance(each, _OF_NORMS) for each in beneath):
        allowed += min((64 + math.sqrt(before.numel())) * own.eps, near) * size
    elif beneath:
        allowed += 2 * own.eps * size
    return allowed


def _factors(operation: NormBehind | NormBefore | AffineBefore, norm: Mapping[str, Tensor]) -> Tensor:
    like = norm["gamma"] if "gamma" in norm else norm["variance"]
    gamma = norm["gamma"].double() if "gamma" in operation.roles else torch.ones_like(like).double()
    if isinstance(operation, AffineBefore):
        return gamma.reshape(-1)
    return (gamma / torch.sqrt(norm["variance"].double() + operation.eps)).reshape(-1)
