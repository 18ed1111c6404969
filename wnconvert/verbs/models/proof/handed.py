"""The weights that a model's layers are handed in a forward, whatever computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from wnconvert.layers.rules import AffineBefore, NormBefore, NormBehind, Rule
from wnconvert.verbs.modules.folding.layers import by_channel

__all__ = ["HandedProof", "LayerCall", "handed_in", "handed_proof"]


#: torch's functions that a layer calls with its weight, each with the place of the weight and its name.
_FUNCTIONS: Mapping[str, tuple[int, str]] = MappingProxyType(
    {
        **{f"conv{rank}d": (1, "weight") for rank in (1, 2, 3)},
        **{f"conv_transpose{rank}d": (1, "weight") for rank in (1, 2, 3)},
        "linear": (1, "weight"),
        "addmm": (2, "mat2"),
    }
)
#: How far torch's own rounding of a weight may be from it, as a part of the largest in its channel.
_NEAR = {torch.float16: 1e-2, torch.bfloat16: 5e-2}


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
    name: str, rule: Rule, before: Tensor, after: Tensor, norm: Mapping[str, Tensor]
) -> HandedProof:
    """Compare the weight that a folded layer is handed with that of the layer before, times its norm.

    ``norm`` are the tensors of the norm by their roles. Plain float64 arithmetic of torch, which shares
    nothing with the fold's.
    """
    with torch.no_grad():
        expected = before.double()
        operation = rule.neighbour
        if operation is not None:
            expected = expected * by_channel(_factors(operation, norm), operation, tuple(before.shape))
        axis = 0 if operation is None else operation.dim
        apart = _by_axis((after.double() - expected).abs(), axis)
        size = _by_axis(expected.abs(), axis)
        ratios = (apart / size.clamp_min(torch.finfo(torch.float32).tiny)).cpu().numpy()
    distance = float(ratios.max(initial=0.0))
    return HandedProof(name, distance, bool(distance <= _NEAR.get(after.dtype, 1e-4)))


def _by_axis(values: Tensor, axis: int) -> Tensor:
    """The largest element along each place of an axis."""
    return values.movedim(axis, 0).flatten(1).amax(1)


def _factors(operation: NormBehind | NormBefore | AffineBefore, norm: Mapping[str, Tensor]) -> Tensor:
    like = norm["gamma"] if "gamma" in norm else norm["variance"]
    gamma = norm["gamma"].double() if "gamma" in operation.roles else torch.ones_like(like).double()
    if isinstance(operation, AffineBefore):
        return gamma.reshape(-1)
    return (gamma / torch.sqrt(norm["variance"].double() + operation.eps)).reshape(-1)
