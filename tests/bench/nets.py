"""Networks as people write them, of torch alone: a ResNet-50, and a TCN of weight norm and batch norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

__all__ = ["ResNet50", "Tcn", "pairs_of", "resnet50"]


class Bottleneck(nn.Module):
    """Three convolutions with batch norms, and what goes past them."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape (batch, inputs, height, width)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        found: Tensor = self.relu(self.bn3(self.conv3(out)) + self.downsample(x))
        return found


class ResNet50(nn.Module):
    """The network of He et al. (arXiv:1512.03385), by the names of torchvision: 53 batch norms, 25.6 M."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = 64
        for number, (width, count) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
            blocks = [Bottleneck(inputs, width, 1 if number == 1 else 2)]
            inputs = 4 * width
            blocks += [Bottleneck(inputs, width, 1) for _ in range(count - 1)]
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape (batch, 3, height, width)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
        found: Tensor = self.fc(self.avgpool(x).flatten(1))
        return found


def resnet50() -> ResNet50:
    """A ResNet-50 of random weights and statistics."""
    torch.manual_seed(0)
    model = ResNet50()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.3, 2)  # type: ignore[union-attr]
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.5, 0.5)
    return model.eval()


def pairs_of(model: nn.Module) -> list[tuple[str, str]]:
    """The convolutions of a ResNet with the batch norms behind them, which are built one after the other."""
    named = [
        (name, each) for name, each in model.named_modules() if isinstance(each, (nn.Conv2d, nn.BatchNorm2d))
    ]
    convs, norms = named[::2], named[1::2]
    return [(conv, norm) for (conv, _), (norm, _) in zip(convs, norms, strict=True)]


class Tcn(nn.Module):
    """Dilated causal convolutions (Bai et al., arXiv:1803.01271), each with weight norm *and* batch norm."""

    def __init__(self, channels: int = 64, levels: int = 6) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for level in range(levels):
            conv = nn.Conv1d(channels if level else 16, channels, 3, dilation=2**level)
            pad = nn.ConstantPad1d((2 * 2**level, 0), 0.0)
            layers += [pad, weight_norm(conv), nn.BatchNorm1d(channels), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape (batch, 16, time); returns (batch, 10)."""
        found: Tensor = self.head(self.body(x)[..., -1])
        return found
