"""Models of the shapes that people train with spectral norm and prune, of any width, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

from tests.helpers.live_kinds import pruned, pruned_original, spectral
from tests.helpers.live_models import norm

Make = Callable[[Any], Any]


class ScaleDiscriminator(nn.Module):
    """The first scale of HiFi-GAN's discriminator: eight layers of spectral norm."""

    def __init__(self, make: Make, width: int = 8) -> None:
        super().__init__()
        sizes = [(1, 1, 15, 1, 1), (1, 1, 41, 2, 4), (1, 2, 41, 2, 16), (2, 4, 41, 4, 16), (4, 8, 41, 4, 16)]
        sizes += [(8, 8, 41, 1, 16), (8, 8, 5, 1, 1)]
        made = []
        for at, (inputs, outputs, kernel, stride, groups) in enumerate(sizes):
            inside = inputs * width if at else 1
            options: Any = {"stride": stride, "groups": min(groups, inside), "padding": (kernel - 1) // 2}
            made.append(make(nn.Conv1d(inside, outputs * width, kernel, **options)))
        self.convs = nn.ModuleList(made)
        self.conv_post = make(nn.Conv1d(8 * width, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        for each in self.convs:
            x = functional.leaky_relu(each(x), 0.1)
        y: Tensor = self.conv_post(x)
        return y.flatten(1)


class Decoder(nn.Module):
    """An SN-GAN-like network with transposed convolutions, one of them square."""

    def __init__(self, make: Make, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            make(nn.Conv2d(3, width, 3, padding=1)),
            nn.LeakyReLU(0.1),
            make(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)),
            nn.LeakyReLU(0.1),
            make(nn.ConvTranspose2d(2 * width, 2 * width, 4, stride=2, padding=1)),
            nn.LeakyReLU(0.1),
            make(nn.ConvTranspose2d(2 * width, width, 3, padding=1)),
        )
        self.last = make(nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.layers(x).mean((2, 3)))
        return y


class ConditionalNorm(nn.Module):
    """BigGAN's batch norm, of stored statistics, with a scale and an offset that a condition makes."""

    def __init__(self, make: Make, size: int, condition: int) -> None:
        super().__init__()
        self.register_buffer("running_means", torch.zeros(size))
        self.register_buffer("running_vars", torch.ones(size))
        self.scale = make(nn.Linear(condition, size, bias=False))
        self.offset = make(nn.Linear(condition, size, bias=False))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        mean, variance = (self.get_buffer(name)[:, None, None] for name in ("running_means", "running_vars"))
        deviation = (variance + 1e-4).sqrt()
        scale = 1 + self.scale(condition)[..., None, None]
        y: Tensor = (x - mean) / deviation * scale + self.offset(condition)[..., None, None]
        return y


class Block(nn.Module):
    def __init__(self, make: Make, inside: int, outside: int, condition: int, grows: bool) -> None:
        super().__init__()
        middle, self.grows, self.outside = inside // 4, grows, outside
        sizes = [(inside, middle, 1), (middle, middle, 3), (middle, middle, 3), (middle, outside, 1)]
        self.norms = nn.ModuleList(ConditionalNorm(make, size, condition) for size, _, _ in sizes)
        self.convs = nn.ModuleList(make(nn.Conv2d(a, b, k, padding=k // 2)) for a, b, k in sizes)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y = x
        for at, (its_norm, its_conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            y = its_norm(y, condition).relu()
            if at == 1 and self.grows:
                y = functional.interpolate(y, scale_factor=2.0)
            y = its_conv(y)
        x = x[:, : self.outside]
        return y + (functional.interpolate(x, scale_factor=2.0) if self.grows else x)


class Attention(nn.Module):
    def __init__(self, make: Make, width: int) -> None:
        super().__init__()
        self.theta, self.phi = (make(nn.Conv2d(width, width // 8, 1, bias=False)) for _ in range(2))
        self.g = make(nn.Conv2d(width, width // 2, 1, bias=False))
        self.out = make(nn.Conv2d(width // 2, width, 1, bias=False))
        self.gamma = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        theta, phi, g = self.theta(x).flatten(2), self.phi(x).flatten(2), self.g(x)
        weights = (theta.transpose(1, 2) @ phi).softmax(-1)
        y: Tensor = x + self.gamma * self.out((g.flatten(2) @ weights.transpose(1, 2)).view_as(g))
        return y


class BigGan(nn.Module):
    """A generator of BigGAN-deep's shape: 126 layers of spectral norm with an eps of 1e-4."""

    SIZES = ((0, 16, 16), (1, 16, 16), (0, 16, 16), (1, 16, 8), (0, 8, 8), (1, 8, 4), (0, 4, 4), (1, 4, 2))
    LAST = ((0, 2, 2), (1, 2, 1))

    def __init__(self, make: Make, width: int = 4) -> None:
        super().__init__()
        self.width = width
        self.gen_z = make(nn.Linear(16, 16 * 16 * width))
        blocks = [
            Block(make, a * width, b * width, 16, bool(grows)) for grows, a, b in self.SIZES + self.LAST
        ]
        self.before, self.after = nn.ModuleList(blocks[:8]), nn.ModuleList(blocks[8:])
        self.attention = Attention(make, 2 * width)
        self.to_rgb = make(nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, condition: Tensor) -> Tensor:
        z = self.gen_z(condition).view(-1, 16 * self.width, 4, 4)
        for block in self.before:
            z = block(z, condition)
        z = self.attention(z)
        for block in self.after:
            z = block(z, condition)
        y: Tensor = self.to_rgb(z.relu()).tanh()
        return y


class Speaker(nn.Module):
    """An LSTM of which the recurrent weight has spectral norm."""

    def __init__(self, make: Make, width: int = 8) -> None:
        super().__init__()
        self.rnn = make(nn.LSTM(width, width, batch_first=True))
        self.last = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.rnn(x)[0])
        return y


class Vocoder(nn.Module):
    """HiFi-GAN's generator in small: transposed convolutions and residual blocks."""

    def __init__(self, make: Make, width: int = 8) -> None:
        super().__init__()
        self.conv_pre = make(nn.Conv1d(10, width, 7, padding=3))
        self.up = make(nn.ConvTranspose1d(width, width, 4, stride=2, padding=1))
        self.blocks = nn.ModuleList(
            make(nn.Conv1d(width, width, 3, dilation=d, padding=d)) for d in (1, 3, 5)
        )
        self.conv_post = make(nn.Conv1d(width, 1, 7, padding=3))

    def forward(self, mel: Tensor) -> Tensor:
        x = self.up(functional.leaky_relu(self.conv_pre(mel), 0.1))
        for block in self.blocks:
            x = x + block(functional.leaky_relu(x, 0.1))
        y: Tensor = self.conv_post(functional.leaky_relu(x, 0.1)).tanh()
        return y


def recurrent(form: str) -> Make:
    return lambda module: spectral(module, form, "weight_hh_l0")


@dataclass(frozen=True)
class KindRow:
    """A model by a class, what makes its layers, its input, the number of its layers and their kind."""

    cls: Callable[..., nn.Module]
    make: Make
    shape: tuple[int, ...]
    layers: int
    kind: str

    def model(self, width: int = 8) -> tuple[nn.Module, Tensor]:
        """The model in eval mode, with u and v of some forwards in training mode, and an input."""
        torch.manual_seed(11)
        model, x = self.cls(self.make, width), self.input(width)
        with torch.no_grad():
            for _ in range(5):
                model(x)
            model.eval()
            for _ in range(2):
                model(x)
        return model, x

    def plain(self, width: int = 8) -> nn.Module:
        """The model as its class is without any of it."""
        return self.cls(lambda module: module, width).eval()

    def input(self, width: int = 8) -> Tensor:
        """An input; a size of 0 is the width."""
        torch.manual_seed(12)
        return torch.randn([size or width for size in self.shape])


def in_float64(model: nn.Module) -> nn.Module:
    """A model in float64, with its cached weights: of stacked hooks, the innermost came last."""
    model.double()
    for module in model.modules():
        for hook in reversed(module._forward_pre_hooks.values()):
            hook(module, None)
    return model


def _half(module: Any) -> Any:
    """Structured and unstructured pruning, one upon the other."""
    _prune: Any = prune
    _prune.ln_structured(module, "weight", 0.2, 2, 0)
    return pruned(module)


KIND_ROWS: dict[str, KindRow] = {
    "HiFi-GAN's scale discriminator, legacy": KindRow(
        ScaleDiscriminator, spectral, (2, 1, 512), 8, "spectral"
    ),
    "HiFi-GAN's scale discriminator, parametrize": KindRow(
        ScaleDiscriminator, lambda module: spectral(module, "parametrize"), (2, 1, 512), 8, "spectral"
    ),
    "SN-GAN, legacy": KindRow(Decoder, spectral, (2, 3, 16, 16), 5, "spectral"),
    "SN-GAN, parametrize": KindRow(
        Decoder, lambda module: spectral(module, "parametrize"), (2, 3, 16, 16), 5, "spectral"
    ),
    "BigGAN-deep's generator": KindRow(
        BigGan, lambda module: spectral(module, eps=1e-4), (1, 16), 126, "spectral"
    ),
    "LSTM, legacy": KindRow(Speaker, recurrent("legacy"), (2, 7, 0), 1, "spectral"),
    "LSTM, parametrize": KindRow(Speaker, recurrent("parametrize"), (2, 7, 0), 1, "spectral"),
    "pruned HiFi-GAN": KindRow(Vocoder, _half, (2, 10, 20), 6, "prune"),
    "pruned HiFi-GAN with weight norm, legacy": KindRow(
        Vocoder, lambda module: pruned(norm(module, "legacy"), "weight_v"), (2, 10, 20), 6, "prune+weight"
    ),
    "pruned HiFi-GAN with weight norm, parametrize": KindRow(
        Vocoder, lambda module: pruned_original(norm(module), "original1"), (2, 10, 20), 6, "prune+weight"
    ),
    "pruned spectral discriminator": KindRow(
        ScaleDiscriminator,
        lambda module: pruned(spectral(module), "weight_orig"),
        (2, 1, 512),
        8,
        "prune+spectral",
    ),
    "spectral norm of weight norm": KindRow(
        ScaleDiscriminator,
        lambda module: spectral(norm(module), "parametrize"),
        (2, 1, 512),
        8,
        "weight+spectral",
    ),
}
