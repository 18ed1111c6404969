"""A recipe carried out on float64 tensors by plain torch: the definitions, as the proof needs them.

Apart from ``numerics``, so that an error in either shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from wnconvert.layers.recipes import Op, RecipeFold

__all__ = ["Folded", "apply_fold", "neutral"]


@dataclass(frozen=True, slots=True)
class Folded:
    """A weight as its layer stores it, and its bias."""

    weight: Tensor
    bias: Tensor | None


def apply_fold(fold: RecipeFold, layer: Folded, tensor: Callable[[str], Tensor | None]) -> Folded:
    """Apply one fold to a layer; ``tensor`` gives the tensors of the model by their names, or None."""
    if fold.kind == "norm behind":
        return _behind(fold, layer, tensor)
    raise NotImplementedError(fold.kind)


def _per_channel(factor: Tensor, weight: Tensor, op: Op, groups: int) -> Tensor:
    """A weight times a factor for each output channel."""
    if op == "conv_transpose":
        inputs, outputs, *kernel = weight.shape
        cut = weight.reshape(groups, inputs // groups, outputs, *kernel)
        return (cut * factor.reshape(groups, 1, outputs, *[1] * len(kernel))).reshape(weight.shape)
    if op == "linear_transposed":
        return weight * factor
    return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))


def _behind(fold: RecipeFold, layer: Folded, tensor: Callable[[str], Tensor | None]) -> Folded:
    factor, shift = _line(fold, tensor)
    weight = _per_channel(factor, layer.weight, fold.op, fold.groups)
    return Folded(weight, shift if layer.bias is None else layer.bias * factor + shift)


def _line(fold: RecipeFold, tensor: Callable[[str], Tensor | None]) -> tuple[Tensor, Tensor]:
    """A norm with running statistics as x·factor + shift, by channels."""
    mean, variance = tensor(f"{fold.norm}.running_mean"), tensor(f"{fold.norm}.running_var")
    gamma, beta = tensor(f"{fold.norm}.weight"), tensor(f"{fold.norm}.bias")
    assert mean is not None and variance is not None and fold.eps is not None  # noqa: S101, PT018 - held before
    factor = torch.rsqrt(variance + fold.eps)
    factor = factor if gamma is None else factor * gamma
    shift = -mean * factor
    return factor, shift if beta is None else shift + beta


def neutral(fold: RecipeFold) -> Mapping[str, float]:
    """The numbers with which the norm of a fold changes nothing, by the names of its tensors."""
    names = {"weight": 1.0, "bias": 0.0}
    if fold.kind.startswith("norm") and fold.eps is not None:
        names |= {"running_mean": 0.0, "running_var": 1.0 - fold.eps}
    return {f"{fold.norm}.{name}": value for name, value in names.items()}
