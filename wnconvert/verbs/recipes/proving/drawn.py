"""Numbers for a proof: weights, statistics and affines that let no fold hide."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from wnconvert.layers.recipes import RecipeFold

__all__ = ["draw"]


#: One channel in so many has a variance near eps, where the eps shows.
_NEAR_EPS = 4


def draw(module: nn.Module, folds: Iterable[RecipeFold], seed: int) -> None:
    """Draw all parameters of a float64 module anew, and the statistics of the norms of ``folds``.

    Gains have both signs. Variances go down to eps, those of rows of weights too; the gains of norms are as
    small, so that values neither grow nor vanish from layer to layer.
    """
    folds = list(folds)
    stream = torch.Generator().manual_seed(seed)
    tensors = dict(module.named_buffers(remove_duplicate=False))
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for parameter in {id(each): each for each in parameters.values()}.values():
        if parameter.is_floating_point():
            parameter.copy_(_numbers(parameter, stream))
    for fold in folds:
        weight = parameters.get(fold.weight)
        if fold.kind in ("standardize", "unit") and weight is not None:
            _shrink_rows(weight, fold, stream)
    for name, eps in [(fold.norm, fold.eps) for fold in folds if fold.norm and fold.eps is not None]:
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


def _shrink_rows(weight: Tensor, fold: RecipeFold, stream: torch.Generator) -> None:
    """Make one in so many rows of a weight so small that its deviation, or its norm, is about eps."""
    eps = max(fold.eps or 0.0, 1e-30)
    inside = fold.kind == "standardize" and fold.eps_at != "std"
    small = math.sqrt(eps / fold.fan) if inside else eps
    sizes = [1] * weight.ndim
    sizes[fold.dim] = weight.shape[fold.dim]
    rows = weight.movedim(fold.dim, 0).flatten(1)
    size = (rows.norm(dim=1) if fold.kind == "unit" else rows.std(1, correction=0)).reshape(sizes)
    near = torch.rand(sizes, generator=stream, dtype=torch.float64) < 1 / _NEAR_EPS
    near[(slice(0, 1),) * weight.ndim] = True
    wide = torch.exp(torch.rand(sizes, generator=stream, dtype=torch.float64) * 3 - 1)
    weight.mul_(torch.where(near, small * wide / size.clamp_min(1e-300), 1.0))


def _signed(like: Tensor, stream: torch.Generator) -> Tensor:
    size = 0.5 + torch.rand(like.shape, generator=stream, dtype=torch.float64)
    sign = torch.randint(0, 2, like.shape, generator=stream) * 2 - 1
    return size * sign


def _numbers(like: Tensor, stream: torch.Generator) -> Tensor:
    """New numbers for a parameter: a weight keeps the size of what it makes, one number nearly itself."""
    if like.ndim > 1:  # in float32, four times as fast: each is a float64 too
        weight = torch.randn(like.shape, generator=stream, dtype=torch.float32)
        return weight.mul_(math.sqrt(1.5 * like.shape[0] / max(like.numel(), 1)))
    normal = torch.randn(like.shape, generator=stream, dtype=torch.float64)
    if like.ndim == 0:
        return like * (1 + 0.1 * normal) + 0.01 * normal
    return 0.3 * normal if bool((like == 0).all()) else _signed(like, stream)
