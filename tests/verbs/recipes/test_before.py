"""Norms that fold into what follows them, whole or their affine alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wnconvert.layers.recipes import RecipeFold
from wnconvert.verbs.recipes.recipe import trace_recipe


class Into(nn.Module):
    """A norm, and several layers that read it."""

    def __init__(self, norm: nn.Module, *layers: nn.Module, residual: bool = False) -> None:
        super().__init__()
        self.norm, self.layers, self.residual = norm, nn.ModuleList(layers), residual

    def forward(self, x: Tensor) -> Any:
        y = self.norm(x)
        made = [layer(y) for layer in self.layers]
        return (made, y + x) if self.residual else made


class Frozen(nn.Module):
    """torchvision's frozen batch norm."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, variance = (each.reshape(1, -1, 1, 1) for each in self.buffers())
        scale = weight * (variance + self.eps).rsqrt()
        return x * scale + (bias - mean * scale)


@pytest.mark.parametrize(
    ("module", "inputs", "folds"),
    [
        (
            Into(nn.LayerNorm(5), nn.Linear(5, 3), nn.Linear(5, 2, bias=False)),
            "x=float32[2,4,5]",
            [
                RecipeFold("affine before", "layers.0.weight", "norm", op="linear"),
                RecipeFold("affine before", "layers.1.weight", "norm", op="linear"),
            ],
        ),
        (
            Into(nn.RMSNorm(5), nn.Linear(5, 5, bias=False)),
            "x=float32[2,4,5]",
            [RecipeFold("affine before", "layers.0.weight", "norm", op="linear")],
        ),
        (
            Into(nn.GroupNorm(2, 4), nn.Conv2d(4, 6, 3, groups=2)),
            "x=float32[2,4,7,7]",
            [RecipeFold("affine before", "layers.0.weight", "norm", groups=2)],
        ),
        (
            Into(nn.InstanceNorm2d(4, affine=True), nn.Conv2d(4, 6, 3)),
            "x=float32[2,4,7,7]",
            [RecipeFold("affine before", "layers.0.weight", "norm")],
        ),
        (
            Into(nn.BatchNorm2d(4, eps=1e-3), nn.Conv2d(4, 6, 3, groups=2)),
            "x=float32[2,4,7,7]",
            [RecipeFold("norm before", "layers.0.weight", "norm", groups=2, eps=1e-3)],
        ),
        (
            Into(nn.BatchNorm1d(4), nn.Linear(4, 6)),
            "x=float32[3,4]",
            [RecipeFold("norm before", "layers.0.weight", "norm", op="linear", eps=1e-5)],
        ),
        (
            nn.Sequential(nn.Conv2d(3, 4, 1), Frozen(4, 0.0)),
            "input=float32[2,3,7,7]",
            [RecipeFold("norm behind", "0.weight", "1", eps=0.0)],
        ),
        (
            nn.Sequential(nn.Conv2d(3, 4, 1), Frozen(4, 1e-5)),
            "input=float32[2,3,7,7]",
            [RecipeFold("norm behind", "0.weight", "1", eps=1e-5)],
        ),
    ],
)
def test_a_norm_folds_into_what_follows_it(module: nn.Module, inputs: str, folds: list[RecipeFold]) -> None:
    assert list(trace_recipe(module, inputs=inputs, samples=2).recipe.folds) == folds


@pytest.mark.parametrize(
    ("module", "inputs", "reason"),
    [
        (
            Into(nn.LayerNorm(5), nn.Linear(5, 3), residual=True),
            "x=float32[2,4,5]",
            "its output goes into an addition",
        ),
        (Into(nn.LayerNorm(5), nn.GELU()), "x=float32[2,4,5]", "its output goes into an activation"),
        (
            Into(nn.GroupNorm(2, 4), nn.Conv2d(4, 6, 3, padding=1)),
            "x=float32[2,4,7,7]",
            "its layer pads with zeros, which the norm does not see",
        ),
        (
            Into(nn.GroupNorm(2, 4), nn.ConvTranspose2d(4, 6, 3)),
            "x=float32[2,4,7,7]",
            "before a transposed convolution",
        ),
        (
            Into(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1)),
            "x=float32[2,4,7,7]",
            "it stands before all layers",
        ),
        (
            Into(nn.GroupNorm(2, 4), nn.Sequential(nn.Flatten(), nn.Linear(36, 2))),
            "x=float32[2,4,3,3]",
            "its channels are not those of its layer",
        ),
    ],
)
def test_a_norm_before_something_else_stays(module: nn.Module, inputs: str, reason: str) -> None:
    report = trace_recipe(module, inputs=inputs, samples=1)
    assert not report.recipe.folds
    assert [(each.name, each.reason) for each in report.left] == [("norm", reason)]


class Scaled(nn.Module):
    """A product with a weight of the model itself, which has no module of its own that could be named."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.linear = nn.Parameter(torch.ones(5)), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.linear(x * self.weight)
        return made


def test_an_affine_of_the_model_itself_is_no_norm() -> None:
    report = trace_recipe(Scaled(), inputs="x=float32[2,5]", samples=1)
    assert not report.recipe.folds
