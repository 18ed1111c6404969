"""Numbers for a proof: weights, statistics and affines that let no fold hide."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["draw"]


#: One channel in so many has a variance near eps, where the eps shows.
_NEAR_EPS = 4


def draw(module: nn.Module, norms: Iterable[tuple[str, float]], seed: int) -> None:
    """Draw all parameters of a float64 module anew, and the statistics of ``norms``, each with its eps.

    Gains have both signs, and variances go down to eps, with gains that are as small, so that values neither
    grow nor vanish from layer to layer.
    """
    stream = torch.Generator().manual_seed(seed)
    tensors = dict(module.named_buffers(remove_duplicate=False))
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for parameter in {id(each): each for each in parameters.values()}.values():
        if parameter.is_floating_point():
            parameter.copy_(_numbers(parameter, stream))
    for name, eps in norms:
        mean, variance = (tensors.get(f"{name}.running_{which}") for which in ("mean", "var"))
        gamma = parameters.get(f"{name}.weight", tensors.get(f"{name}.weight"))
        beta = parameters.get(f"{name}.bias", tensors.get(f"{name}.bias"))
        if mean is None or variance is None:
            continue
        near = torch.rand(variance.shape, generator=stream, dtype=torch.float64) < 1 / _NEAR_EPS
        low = math.log(max(eps, 1e-12))
        wide = torch.exp(low + torch.rand(variance.shape, generator=stream, dtype=torch.float64) * 4)
        usual = 0.5 + 1.5 * torch.rand(variance.shape, generator=stream, dtype=torch.float64)
        variance.copy_(torch.where(near, wide, usual) if gamma is not None else usual)
        mean.copy_(torch.randn(mean.shape, generator=stream, dtype=torch.float64) * 0.3)
        if gamma is not None:
            gamma.copy_(_signed(gamma, stream) * torch.sqrt(variance + eps))
        if beta is not None:
            beta.copy_(torch.randn(beta.shape, generator=stream, dtype=torch.float64) * 0.3)


def _signed(like: Tensor, stream: torch.Generator) -> Tensor:
    size = 0.5 + torch.rand(like.shape, generator=stream, dtype=torch.float64)
    sign = torch.randint(0, 2, like.shape, generator=stream) * 2 - 1
    return size * sign


def _numbers(like: Tensor, stream: torch.Generator) -> Tensor:
    """New numbers for a parameter: a weight keeps the size of what it makes, one number nearly itself."""
    normal = torch.randn(like.shape, generator=stream, dtype=torch.float64)
    if like.ndim == 0:
        return like * (1 + 0.1 * normal) + 0.01 * normal
    if like.ndim == 1:
        return 0.3 * normal if bool((like == 0).all()) else _signed(like, stream)
    return normal * math.sqrt(1.5 * like.shape[0] / max(like.numel(), 1))
