"""Weight standardization as it occurs, each to the letter of its formula, in torch: a weight to a weight.

No class of others is copied. ``VARIANTS`` has beside each what it is in the words of ``layers.rules``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from wnconvert.layers.rules import Standardize

Parts = Mapping[str, Tensor]
_RELU = 1.7139588594436646


@dataclass(frozen=True)
class Variant:
    """A formula, what it is, and the roles of its tensors; ``fan`` says whether the size of a row counts."""

    made: Callable[[Tensor, Parts], Tensor]
    operation: Callable[[int], Standardize]


def _column(weight: Tensor, parts: Parts, role: str) -> Tensor:
    return parts[role].reshape(-1, *[1] * (weight.ndim - 1))


def _with_std_and_eps_outside(weight: Tensor, _parts: Parts) -> Tensor:
    """The deviation is that of ``Tensor.std``, which is unbiased; eps is added to it."""
    mean = weight.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
    weight = weight - mean
    return weight / (weight.view(len(weight), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5)


def _with_batch_norm(eps: float) -> Callable[[Tensor, Parts], Tensor]:
    """The rows go through a batch norm in training mode, as channels."""

    def made(weight: Tensor, _parts: Parts) -> Tensor:
        rows = functional.batch_norm(
            weight.reshape(1, len(weight), -1), None, None, training=True, momentum=0.0, eps=eps
        )
        return rows.reshape_as(weight)

    return made


def _with_var_mean(eps: float) -> Callable[[Tensor, Parts], Tensor]:
    """``torch.var_mean``, biased, and eps inside of the root."""

    def made(weight: Tensor, _parts: Parts) -> Tensor:
        var, mean = torch.var_mean(weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        return (weight - mean) / torch.sqrt(var + eps)

    return made


def _with_affine(weight: Tensor, parts: Parts) -> Tensor:
    """An unbiased variance, eps inside of the root, then γ and β of each row."""
    flat = weight.view(len(weight), -1)
    mean, std = flat.mean(dim=1), torch.sqrt(flat.var(dim=1) + 1e-5)
    rows = (weight - mean.view(-1, 1, 1, 1)) / std.view(-1, 1, 1, 1)
    return _column(weight, parts, "gain") * rows + _column(weight, parts, "shift")


def _scaled(weight: Tensor, parts: Parts) -> Tensor:
    """A batch norm of the rows with gain·γ/√fan as its weight."""
    scale = _RELU * weight[0].numel() ** -0.5
    rows = functional.batch_norm(
        weight.reshape(1, len(weight), -1),
        None,
        None,
        weight=(parts["gain"] * scale).reshape(-1),
        training=True,
        momentum=0.0,
        eps=1e-5,
    )
    return rows.reshape_as(weight)


def _at_most(weight: Tensor, parts: Parts) -> Tensor:
    """The root is that of the larger of fan·variance and eps."""
    fan = weight[0].numel()
    mean, var = (
        weight.mean(dim=[1, 2, 3], keepdim=True),
        weight.var(dim=[1, 2, 3], keepdim=True, unbiased=False),
    )
    scale = torch.rsqrt(torch.maximum(var * fan, torch.tensor(1e-4, dtype=weight.dtype)))
    scale = scale * _column(weight, parts, "gain")
    return weight * scale - mean * scale


VARIANTS: dict[str, Variant] = {
    "unbiased deviation, eps outside": Variant(
        _with_std_and_eps_outside, lambda _: Standardize(0, "unbiased", "std", 1e-5)
    ),
    "batch norm of rows, 1e-6": Variant(
        _with_batch_norm(1e-6), lambda _: Standardize(0, "biased", "var", 1e-6)
    ),
    "batch norm of rows, 1e-8": Variant(
        _with_batch_norm(1e-8), lambda _: Standardize(0, "biased", "var", 1e-8)
    ),
    "var_mean, 1e-10": Variant(_with_var_mean(1e-10), lambda _: Standardize(0, "biased", "var", 1e-10)),
    "var_mean, 1e-5": Variant(_with_var_mean(1e-5), lambda _: Standardize(0, "biased", "var", 1e-5)),
    "var_mean, 1e-3": Variant(_with_var_mean(1e-3), lambda _: Standardize(0, "biased", "var", 1e-3)),
    "unbiased variance, affine": Variant(
        _with_affine, lambda _: Standardize(0, "unbiased", "var", 1e-5, gain=True, shift=True)
    ),
    "scaled by gain, fan and an activation": Variant(
        _scaled,
        lambda fan: Standardize(0, "biased", "var", 1e-5, scale=_RELU / math.sqrt(fan), gain=True),
    ),
    "the larger of fan·variance and eps": Variant(
        _at_most, lambda fan: Standardize(0, "biased", "max", 1e-4, fan=fan, gain=True)
    ),
}
