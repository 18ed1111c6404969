"""A recipe carried out on float64 tensors by plain torch: the definitions, as the proof needs them.

Apart from ``numerics``, so that an error in either shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from wnconvert.errors import LayerError
from wnconvert.frozen import dataclass
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
    if fold.has_norm:
        return _before(fold, layer, tensor)
    return Folded(_computed(fold, layer.weight, tensor), layer.bias)


def _computed(fold: RecipeFold, weight: Tensor, tensor: Callable[[str], Tensor | None]) -> Tensor:
    """A weight as its class computes it of the stored one, by rows."""
    if fold.kind == "equalized":
        return weight * fold.scale
    rows = weight.movedim(fold.dim, 0).flatten(1)
    if fold.kind == "unit":
        made = torch.nn.functional.normalize(rows, eps=fold.eps or 0.0) * fold.scale
    else:
        made = _standardized(fold, rows) * fold.scale
        owner = fold.weight[: fold.weight.rfind(".") + 1]
        gain, shift = (tensor(owner + name) if name else None for name in (fold.gain, fold.shift))
        for each in (gain, shift):
            if each is not None and each.numel() != len(rows):
                has = f"{fold.weight} has {len(rows)} rows along axis {fold.dim}"
                what = f"{has}, and its gain or shift {each.numel()}: the recipe is refused"
                raise LayerError(what, fix="another dim in the recipe")
        made = made if gain is None else made * gain.reshape(-1, 1)
        made = made if shift is None else made + shift.reshape(-1, 1)
    shape = weight.movedim(fold.dim, 0).shape
    return made.reshape(shape).movedim(0, fold.dim)


def _standardized(fold: RecipeFold, rows: Tensor) -> Tensor:
    variance = rows.var(1, correction=int(fold.std == "unbiased"), keepdim=True)
    off, eps = rows - rows.mean(1, keepdim=True), fold.eps or 0.0
    if fold.eps_at == "std":
        return off / (variance.sqrt() + eps)
    if fold.eps_at == "max":
        return off / (variance * fold.fan).clamp_min(eps).sqrt()
    return off / torch.sqrt(variance + eps)


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


def _before(fold: RecipeFold, layer: Folded, tensor: Callable[[str], Tensor | None]) -> Folded:
    factor, shift = _line(fold, tensor) if fold.kind == "norm before" else _affine(fold, tensor)
    weight, groups = layer.weight, fold.groups
    outputs, inputs = weight.shape[:2]
    if fold.op == "linear_transposed":
        made, added = weight * factor[:, None], None if shift is None else shift @ weight
    else:
        cut = weight.reshape(groups, outputs // groups, inputs, -1)
        made = (cut * factor.reshape(groups, 1, inputs, 1)).reshape(weight.shape)
        moved = None if shift is None else (cut * shift.reshape(groups, 1, inputs, 1)).sum((2, 3))
        added = None if moved is None else moved.reshape(-1)
    if added is None:
        return Folded(made, layer.bias)
    return Folded(made, added if layer.bias is None else layer.bias + added)


def _affine(fold: RecipeFold, tensor: Callable[[str], Tensor | None]) -> tuple[Tensor, Tensor | None]:
    gamma = tensor(f"{fold.norm}.weight")
    assert gamma is not None  # noqa: S101 - held before
    return gamma, tensor(f"{fold.norm}.bias")


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
