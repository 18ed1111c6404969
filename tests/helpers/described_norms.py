"""The normalizations that people ask for, each in a small module, as papers and classes have it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from tests.helpers.normed_models import scrambled

__all__ = ["FOLDED", "IMAGE", "STAYS", "CosineLinear", "StandardizedConv2d", "SwitchNorm2d"]


#: What each of the modules takes.
IMAGE = "input=float32[2,3,9,8]"


class StandardizedConv2d(nn.Conv2d):
    """Weight standardization: the unbiased deviation of each filter, with 1e-5 added to it."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        mean = weight.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
        weight = weight - mean
        std = weight.view(weight.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
        weight = weight / std.expand_as(weight)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class SwitchNorm2d(nn.Module):
    """A mixture of instance, layer and batch statistics, which is one in eval, too."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.mean_weight = nn.Parameter(torch.ones(3))
        self.var_weight = nn.Parameter(torch.ones(3))
        self.register_buffer("running_mean", torch.zeros(1, channels, 1))
        self.register_buffer("running_var", torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        mean_in, var_in = flat.mean(-1, keepdim=True), flat.var(-1, keepdim=True)
        mean_ln = mean_in.mean(1, keepdim=True)
        var_ln = (var_in + mean_in**2).mean(1, keepdim=True) - mean_ln**2
        of_mean, of_var = self.mean_weight.softmax(0), self.var_weight.softmax(0)
        mean = of_mean[0] * mean_in + of_mean[1] * mean_ln + of_mean[2] * self.running_mean
        var = of_var[0] * var_in + of_var[1] * var_ln + of_var[2] * self.running_var
        return ((flat - mean) / (var + self.eps).sqrt()).view_as(x) * self.weight + self.bias


class CosineLinear(nn.Linear):
    """Cosine normalization: the cosine of the angle between the input and each row of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(functional.normalize(x, dim=1), functional.normalize(self.weight, dim=1))


def behind(norm: nn.Module) -> nn.Module:
    return scrambled(nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 2, 1)))


def folded(conv: nn.Module) -> nn.Module:
    return scrambled(nn.Sequential(conv, nn.ReLU(), nn.Conv2d(4, 2, 1)))


#: The modules whose normalization has an exact fold, and the kinds of ``--kinds`` or of a recipe that it is.
FOLDED: Mapping[str, tuple[Callable[[], nn.Module], str]] = {
    "batch norm": (lambda: behind(nn.BatchNorm2d(4)), "norm behind"),
    "instance norm with running statistics": (
        lambda: behind(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
        "norm behind",
    ),
    "weight standardization": (lambda: folded(StandardizedConv2d(3, 4, 3)), "standardize"),
    "weight norm": (lambda: folded(parametrizations.weight_norm(nn.Conv2d(3, 4, 3))), "weight"),
    "spectral norm": (lambda: folded(parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))), "spectral"),
}

#: The modules whose normalization depends on the data.
STAYS: Mapping[str, Callable[[], nn.Module]] = {
    "instance norm": lambda: behind(nn.InstanceNorm2d(4, affine=True)),
    "group norm": lambda: behind(nn.GroupNorm(2, 4)),
    "layer norm": lambda: behind(nn.LayerNorm([4, 7, 6])),
    "switchable norm": lambda: behind(SwitchNorm2d(4)),
    "cosine normalization": lambda: scrambled(nn.Sequential(nn.Flatten(), CosineLinear(216, 4))),
}
