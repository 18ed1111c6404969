"""Small models, each with one thing that a recipe must see."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGE = "x=float32[2,3,9,8]"
SIGNAL = "x=float32[2,4,11]"


class SharedHead(nn.Module):
    """One convolution and one norm on five levels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.bn(self.conv(x * level)) for level in range(1, 6)]


class NormsOfLevels(nn.Module):
    """One convolution on two levels, and a norm for each: EfficientDet's head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [bn(self.conv(x * level)) for level, bn in enumerate(self.bn)]


class OutputUsedTwice(nn.Module):
    """The output of the convolution goes past the norm too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return self.bn(y) + y


class OutputReturned(nn.Module):
    """The output of the convolution is returned beside that of the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return y, self.bn(y)


class WrittenInPlace(nn.Module):
    """A view of the convolution's output is written to before the norm reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        y[:, 0].relu_()
        return self.bn(y)


class Behind(nn.Module):
    """A norm behind something that is no layer."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(6 if what == "cat" else 3)

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        if self.what == "cat":
            return self.bn(torch.cat((y, x), 1))
        return self.bn(
            {"add": lambda: y + x, "relu": y.relu, "pool": lambda: functional.max_pool2d(y, 2)}[self.what]()
        )


class LinearThroughView(nn.Module):
    """A linear layer on a sequence, then a norm on all its rows at once: levit."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(11, 5, bias=False), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x)
        return self.bn(y.flatten(0, 1)).reshape_as(y)


class MixedByView(nn.Module):
    """The view between layer and norm puts other channels where the norm looks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return self.bn(y.reshape(y.shape[0], 2, 4, *y.shape[2:]).transpose(1, 2).reshape_as(y))


class NormAct(nn.BatchNorm2d):
    """A norm with an activation inside, as timm has it."""

    def forward(self, input: Tensor) -> Any:  # noqa: A002 - torch's name
        return functional.silu(super().forward(input))


class Conditional(nn.Module):
    """γ and β come from an input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False)
        self.affine = nn.Linear(4, 6)

    def forward(self, x: Tensor, c: Tensor) -> Any:
        gamma, beta = self.affine(c)[0].chunk(2)
        mean, variance = self.bn.running_mean, self.bn.running_var
        return functional.batch_norm(self.conv(x), mean, variance, gamma, beta, False, 0.1, 1e-5)


class Functional(nn.Module):
    """torch's function on the parameters of a module that is never called."""

    def __init__(self, *, weight: bool = True) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=weight)

    def forward(self, x: Tensor) -> Any:
        bn = self.bn
        return functional.batch_norm(
            self.conv(x), bn.running_mean, bn.running_var, bn.weight, bn.bias, False, 0.1, 0.003
        )


class InTraining(nn.Module):
    """Its norm uses the batch, whatever mode the module is in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Any:
        bn = self.bn
        return functional.batch_norm(
            self.conv(x), bn.running_mean, bn.running_var, bn.weight, bn.bias, True, 0.0
        )


class Tied(nn.Module):
    """Two convolutions, one weight."""

    def __init__(self, *, used: bool) -> None:
        super().__init__()
        self.used = used
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.second.weight = self.first.weight
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Any:
        y = self.bn(self.first(x))
        return self.second(y) if self.used else y


class NoPlaceForBias(nn.Module):
    """A weight of its own, and code that takes no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bn = nn.Parameter(torch.ones(4, 3, 1, 1)), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Any:
        return self.bn(functional.conv2d(x, self.weight))


class Conv1D(nn.Module):
    """GPT-2's linear layer: the weight is (in, out)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(inputs, outputs)), nn.Parameter(torch.ones(outputs))

    def forward(self, x: Tensor) -> Any:
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)


class PartOfChannels(nn.Module):
    """A norm that sees some channels of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Any:
        return self.bn(self.conv(x)[:, :4])


class BiasUnused(nn.Module):
    """A convolution whose bias nobody adds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Any:
        return self.bn(functional.conv2d(x, self.conv.weight))


class BiasOfRows(nn.Module):
    """A bias for each row of the batch, as positions have it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(2, 3))
        self.bn = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Any:
        return self.bn(torch.addmm(self.bias, x, self.weight))


class OtherDtype(nn.Module):
    """A convolution that rounds what its norm reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Any:
        return self.bn(self.conv(x).to(torch.bfloat16).float())


class PartOfPicture(nn.Module):
    """A norm that sees all channels of its layer, and a part of each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Any:
        return self.bn(self.conv(x)[:, :, 1:])
