"""Weights that a class computes are told by numbers, each formula by its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from wnconvert.layers.recipes import RecipeFold
from wnconvert.verbs.recipes.recipe import trace_recipe

INPUT = "input=float32[2,3,9,8]"


class Computed(nn.Conv2d):
    """A convolution that makes its weight by a function of itself."""

    def __init__(self, made: Callable[[Computed], Tensor]) -> None:
        super().__init__(3, 6, 3, bias=False)
        self.made = made
        self.gain = nn.Parameter(torch.ones(6, 1, 1, 1))
        self.register_buffer("weight_beta", torch.zeros(6, 1, 1, 1))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        return functional.conv2d(input, self.made(self), None, self.stride)


def centred(layer: Computed) -> Tensor:
    weight = layer.weight
    return weight - weight.mean((1, 2, 3), keepdim=True)


def variance(layer: Computed, correction: int) -> Tensor:
    return layer.weight.var((1, 2, 3), correction=correction, keepdim=True)


def by_batch_norm(layer: Computed) -> Tensor:
    """As timm computes it, with a gain and a scale."""
    rows = layer.weight.reshape(1, 6, -1)
    gain = (layer.gain * 0.3299831645537222).view(-1)
    made = functional.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0, eps=1e-6)
    return made.reshape_as(layer.weight)


FORMULAS: dict[str, tuple[Callable[[Computed], Tensor], RecipeFold]] = {
    "biased, eps inside": (
        lambda layer: centred(layer) / torch.sqrt(variance(layer, 0) + 1e-8),
        RecipeFold("standardize", "0.weight", eps=1e-8),
    ),
    "unbiased, eps outside": (
        lambda layer: centred(layer) / (variance(layer, 1).sqrt() + 1e-5),
        RecipeFold("standardize", "0.weight", std="unbiased", eps_at="std", eps=1e-5),
    ),
    "unbiased, eps inside, with gain and shift": (
        lambda layer: (
            layer.gain * centred(layer) / torch.sqrt(variance(layer, 1) + 1e-5)
            + layer.get_buffer("weight_beta")
        ),
        RecipeFold("standardize", "0.weight", std="unbiased", eps=1e-5, gain="gain", shift="weight_beta"),
    ),
    "by a batch norm, with gain and scale": (
        by_batch_norm,
        RecipeFold("standardize", "0.weight", eps=1e-6, scale=0.3299831645537222, gain="gain"),
    ),
    "the greater of variance and eps": (
        lambda layer: centred(layer) * torch.rsqrt((variance(layer, 0) * 27).clamp_min(1e-4)) * layer.gain,
        RecipeFold("standardize", "0.weight", eps_at="max", eps=1e-4, fan=27, gain="gain"),
    ),
    "unit rows": (
        lambda layer: functional.normalize(layer.weight.flatten(1)).view_as(layer.weight),
        RecipeFold("unit", "0.weight", eps=1e-12),
    ),
    "one factor": (lambda layer: layer.weight * 0.25, RecipeFold("equalized", "0.weight", scale=0.25)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_is_told_and_proven_and_a_norm_folds_behind_it(name: str) -> None:
    made, fold = FORMULAS[name]
    report = trace_recipe(nn.Sequential(Computed(made), nn.BatchNorm2d(6)), inputs=INPUT, samples=2)
    norm = RecipeFold("norm behind", "0.weight", "1", eps=1e-5)
    assert report.recipe.folds == (fold, norm)


@pytest.mark.parametrize(
    "made",
    [
        lambda layer: centred(layer) * variance(layer, 0).sqrt(),  # one public class multiplies
        lambda layer: layer.weight / (layer.weight.abs().amax((1, 2, 3), keepdim=True) + 1e-5),
        lambda layer: torch.tanh(layer.weight),
        lambda layer: layer.weight * 0.0,
        lambda layer: layer.weight / (layer.weight.square().sum((1, 2, 3), keepdim=True).sqrt() + 1e-4),
    ],
)
def test_a_weight_that_no_row_explains_stays_and_is_said(made: Callable[[Computed], Tensor]) -> None:
    report = trace_recipe(nn.Sequential(Computed(made)), inputs=INPUT, samples=1)
    assert not report.recipe.folds
    assert [(each.name, each.reason) for each in report.left] == [
        ("0.weight", "it is computed as no fold does")
    ]


class ByDtype(nn.Conv2d):
    """Denoising diffusion's: another eps where the input is not float32."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        eps = 1e-5 if input.dtype == torch.float32 else 1e-3
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        variance = self.weight.var((1, 2, 3), correction=0, keepdim=True)
        return functional.conv2d(input, (self.weight - mean) * (variance + eps).rsqrt(), self.bias)


def test_the_eps_is_that_of_the_dtype_of_the_inputs() -> None:
    (fold,) = trace_recipe(ByDtype(3, 6, 3), inputs=INPUT, samples=1).recipe.folds
    assert fold == RecipeFold("standardize", "weight", eps=1e-5)


class Centred(nn.Module):
    """Weight standardization as a parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        off = weight - weight.mean((1, 2, 3), keepdim=True)
        return off / torch.sqrt(weight.var((1, 2, 3), correction=0, keepdim=True) + 1e-5)


class Itself(nn.Module):
    """A parametrization that computes nothing."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.view_as(weight)


@pytest.mark.parametrize("made", [Centred(), Itself()])
def test_a_weight_of_a_parametrization_stays_with_its_norm_and_the_reason_is_said(made: nn.Module) -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4))
    parametrize.register_parametrization(module[0], "weight", made)
    report = trace_recipe(module, inputs=INPUT, samples=1)
    assert [fold.norm for fold in report.recipe.folds] == ["3"]
    left = {each.name: each.reason for each in report.left}
    computed = {"0.parametrizations.weight.original"} if isinstance(made, Centred) else set()
    assert left.keys() == {"1"} | computed
    assert all("remove_parametrizations" in reason for reason in left.values())
    parametrize.remove_parametrizations(module[0], "weight")
    assert [fold.norm for fold in trace_recipe(module, inputs=INPUT, samples=1).recipe.folds] == ["1", "3"]
