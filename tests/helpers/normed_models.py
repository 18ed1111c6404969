"""Live models with norms beside their layers, each with the recipe that says where the norms go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from wnconvert.layers.recipes import Op, Recipe, RecipeFold

__all__ = ["NORMED", "NormAct", "Normed", "behind", "every_normed", "scrambled"]


def behind(weight: str, norm: str, op: Op = "conv", eps: float = 1e-5, groups: int = 1) -> RecipeFold:
    """A norm behind a layer."""
    return RecipeFold("norm behind", weight, norm, op=op, eps=eps, groups=groups)


def scrambled(model: nn.Module, seed: int = 3) -> nn.Module:
    """A model in eval mode whose statistics, affines and biases are drawn: negative γ, small variances."""
    source = torch.Generator().manual_seed(seed)
    for module in model.modules():
        held = {**module._parameters, **module._buffers}
        mean, variance = held.get("running_mean"), held.get("running_var")
        if mean is not None and variance is not None:
            mean.normal_(generator=source)
            variance.copy_(10 ** torch.empty_like(variance).uniform_(-3, 1, generator=source))
        for name in ("weight", "bias"):
            value = held.get(name)
            if isinstance(value, nn.Parameter) and value.dim() == 1:
                value.data.normal_(generator=source)
    return model.eval()


class Residual(nn.Module):
    """A block of a ResNet, with a norm on its short cut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.down(x))


class NormAct(nn.BatchNorm2d):
    """A norm with an activation inside it, as timm's BatchNormAct2d."""

    def __init__(self, size: int, eps: float, act: nn.Module) -> None:
        super().__init__(size, eps)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.drop(super().forward(x)))
        return out


class LinearNorm(nn.Module):
    """A linear layer and a norm behind a view, as LeViT's."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.c = nn.Linear(inputs, outputs, bias=False)
        self.bn = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(x)
        out: Tensor = self.bn(x.flatten(0, 1)).reshape_as(x)
        return out


class Upsampling(nn.Module):
    """Transposed convolutions in groups, with biases, and norms without an affine."""

    def __init__(self) -> None:
        super().__init__()
        self.up1 = nn.ConvTranspose2d(6, 6, 4, 2, 1, groups=2)
        self.n1 = nn.BatchNorm2d(6, affine=False)
        self.up2 = nn.ConvTranspose2d(6, 3, 3)
        self.n2 = nn.InstanceNorm2d(3, affine=True, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.n2(self.up2(torch.relu(self.n1(self.up1(x)))))
        return out


class Standardized(nn.Conv2d):
    """Big Transfer's convolution: rows of zero mean and unit variance."""

    eps = 1e-8

    def standardized(self) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        variance = self.weight.var((1, 2, 3), keepdim=True, unbiased=False)
        return (self.weight - mean) / torch.sqrt(variance + self.eps)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._conv_forward(x, self.standardized(), self.bias)
        return out


class StandardizedSame(Standardized):
    """The same, with padding by the size of the input, as TensorFlow's."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for axis in (1, 0):
            size, kernel, stride = x.shape[2 + axis], self.kernel_size[axis], self.stride[axis]
            pad = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [pad // 2, pad - pad // 2]
        out: Tensor = self._conv_forward(functional.pad(x, pads), self.standardized(), self.bias)
        return out


class UnbiasedOutside(nn.Conv2d):
    """The unbiased deviation, and eps outside the root."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / (w.flatten(1).std(1).view(-1, 1, 1, 1) + 1e-5)
        out: Tensor = self._conv_forward(x, w, self.bias)
        return out


class Scaled(nn.Conv2d):
    """Scaled standardization with a gain, of networks without norms."""

    def __init__(self, inputs: int, outputs: int, size: int, **options: Any) -> None:
        super().__init__(inputs, outputs, size, **options)
        self.gain = nn.Parameter(torch.randn(self.out_channels, 1, 1, 1))
        self.scale = 1.7139588594436646 * self.weight[0].numel() ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        variance = w.square().mean((1, 2, 3), keepdim=True)
        w = w * self.gain * self.scale / torch.sqrt(variance + 1e-5)
        out: Tensor = self._conv_forward(x, w, self.bias)
        return out


class Equal(nn.Module):
    """An equalized linear layer, no subclass of torch's."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * 0.3, self.bias)


class UnitRows(nn.Linear):
    """A linear layer with rows of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, functional.normalize(self.weight), self.bias)


def standardized(weight: str, eps: float = 1e-8, **options: Any) -> RecipeFold:
    """A standardized weight."""
    return RecipeFold("standardize", weight, eps=eps, **options)


class Temporal(nn.Module):
    """A block of a temporal network: weight norm, and batch norm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv1d(5, 8, 3, dilation=2))
        self.norm = nn.BatchNorm1d(8)
        self.up = parametrizations.weight_norm(nn.ConvTranspose1d(8, 6, 4, 2, groups=2))
        self.norm2 = nn.BatchNorm1d(6, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm2(self.up(torch.relu(self.norm(self.conv(x)))))
        return out


@dataclass(frozen=True)
class Normed:
    """A model, its recipe, the shape of an input, and the same with letters for the sizes that may change."""

    make: Callable[[], nn.Module]
    recipe: Recipe
    shape: tuple[int, ...]
    letters: str

    @property
    def inputs(self) -> dict[str, Any]:
        """The arguments that say what its inputs are."""
        ranges = {
            f"{letter}=8..24"
            for letter in "HW"
            if f"{letter}," in self.letters or f"{letter}]" in self.letters
        }
        return {"inputs": self.letters, "ranges": sorted(ranges)}

    def made(self) -> tuple[Any, Tensor]:
        """The model, the same each time, and an input."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(1)
            return scrambled(self.make()), torch.randn(self.shape)


NORMED = {
    "resnet": Normed(
        lambda: nn.Sequential(Residual(3, 8), Residual(8, 8, 2)),
        Recipe(
            tuple(
                behind(f"{at}.{conv}.weight", f"{at}.{norm}")
                for at in (0, 1)
                for conv, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("down.0", "down.1"))
            )
        ),
        (16, 3, 9, 9),
        "input=float32[2,3,H,W]",
    ),
    "mobilenet": Normed(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            NormAct(8, 1e-3, nn.Hardswish()),
            nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False),
            NormAct(8, 1e-3, nn.PReLU(8)),
        ),
        Recipe((behind("0.weight", "1", eps=1e-3), behind("2.weight", "3", eps=1e-3))),
        (16, 3, 9, 9),
        "input=float32[2,3,H,W]",
    ),
    "levit": Normed(
        lambda: nn.Sequential(LinearNorm(6, 8), nn.Hardswish(), LinearNorm(8, 4)),
        Recipe((behind("0.c.weight", "0.bn", "linear"), behind("2.c.weight", "2.bn", "linear"))),
        (64, 5, 6),
        "input=float32[2,H,6]",
    ),
    "upsampling": Normed(
        Upsampling,
        Recipe(
            (
                behind("up1.weight", "n1", "conv_transpose", groups=2),
                behind("up2.weight", "n2", "conv_transpose"),
            )
        ),
        (16, 6, 5, 5),
        "x=float32[2,6,H,W]",
    ),
}

NORMED |= {
    "temporal": Normed(
        Temporal,
        Recipe(
            (
                behind("conv.weight", "norm"),
                behind("up.weight", "norm2", "conv_transpose", eps=1e-3, groups=2),
            )
        ),
        (16, 5, 20),
        "x=float32[2,5,W]",
    ),
    "bit": Normed(
        lambda: nn.Sequential(
            StandardizedSame(3, 6, 7, stride=2, bias=False),
            nn.GroupNorm(2, 6),
            nn.ReLU(),
            Standardized(6, 8, 3, padding=1, stride=2, groups=2),
        ),
        Recipe((standardized("0.weight"), standardized("3.weight"))),
        (16, 3, 13, 13),
        "input=float32[2,3,H,W]",
    ),
    "document": Normed(
        lambda: nn.Sequential(UnbiasedOutside(3, 6, 3, padding="same", padding_mode="reflect")),
        Recipe((standardized("0.weight", 1e-5, std="unbiased", eps_at="std"),)),
        (16, 3, 9, 9),
        "input=float32[2,3,H,W]",
    ),
    "nf": Normed(
        lambda: nn.Sequential(Scaled(3, 6, 3, padding=1), nn.ReLU(), Scaled(6, 8, 3, groups=2)),
        Recipe(
            (
                standardized("0.weight", 1e-5, gain="gain", scale=1.7139588594436646 * 27**-0.5),
                standardized("2.weight", 1e-5, gain="gain", scale=1.7139588594436646 * 27**-0.5),
            )
        ),
        (16, 3, 9, 9),
        "input=float32[2,3,H,W]",
    ),
    "heads": Normed(
        lambda: nn.Sequential(Equal(5, 6), nn.ReLU(), UnitRows(6, 4)),
        Recipe((RecipeFold("equalized", "0.weight", scale=0.3), RecipeFold("unit", "2.weight", eps=1e-12))),
        (64, 5),
        "input=float32[H,5]",
    ),
}

every_normed = pytest.mark.parametrize("which", NORMED)
