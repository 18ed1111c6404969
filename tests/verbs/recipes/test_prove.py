"""The proof of a recipe: what is right is equal in float64, every mutant is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.verbs.recipes import models
from wnconvert.errors import LayerError
from wnconvert.layers.recipes import RecipeFold
from wnconvert.verbs.models.proof.running import evaluating
from wnconvert.verbs.models.proof.samples import samples_of
from wnconvert.verbs.models.proof.signatures import signature_of
from wnconvert.verbs.recipes.proving.prove import MOST_APART, Proven, prove_recipe
from wnconvert.verbs.recipes.recipe import trace_recipe

IMAGE = "input=float32[2,3,9,8]"


def proven(module: nn.Module, folds: list[RecipeFold], inputs: str = IMAGE) -> Proven:
    signature = signature_of(inputs)
    samples = samples_of(signature, 2)
    with evaluating(module), torch.no_grad():
        return prove_recipe(module, folds, signature, samples)


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4, eps=1e-3),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 4, 3, groups=2),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4, affine=False),
    )


FOLDS = [
    RecipeFold("norm behind", "0.weight", "1", eps=1e-3),
    RecipeFold("norm behind", "3.weight", "4", eps=1e-5, op="conv_transpose", groups=2),
    RecipeFold("norm behind", "5.weight", "6", eps=1e-5),
]


def test_a_right_recipe_is_proven() -> None:
    found = proven(small(), FOLDS)
    assert found.samples == 2
    assert found.apart < MOST_APART


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("factor", [1.001, 0.999, 100.0])
def test_an_eps_that_is_a_little_off_is_refused_by_name(at: int, factor: float) -> None:
    folds = list(FOLDS)
    folds[at] = replace(folds[at], eps=(folds[at].eps or 0) * factor)
    with pytest.raises(LayerError, match=rf"by {folds[at].norm} into {folds[at].weight}"):
        proven(small(), folds)


class Magnified(nn.Module):
    """A model in which rounding grows a million times, as in attention with large logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small()
        self.last = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(torch.sin(1e6 * self.body(x)))
        return found


MAGNIFIED = [
    *(replace(fold, weight=f"body.{fold.weight}", norm=f"body.{fold.norm}") for fold in FOLDS),
    RecipeFold("norm behind", "last.0.weight", "last.1", eps=1e-5),
]


def test_rounding_that_a_model_magnifies_is_no_wrong_fold() -> None:
    assert proven(Magnified(), MAGNIFIED).apart < MOST_APART


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("factor", [1.001, 0.999])
def test_an_eps_that_is_a_little_off_is_refused_where_a_model_magnifies_rounding(
    at: int, factor: float
) -> None:
    folds = list(MAGNIFIED)
    folds[at] = replace(folds[at], eps=(folds[at].eps or 0) * factor)
    with pytest.raises(LayerError, match=rf"by {folds[at].norm} into {folds[at].weight}"):
        proven(Magnified(), folds)


def test_a_swapped_pair_is_refused() -> None:
    folds = [replace(FOLDS[0], norm="6", eps=1e-5), FOLDS[1], replace(FOLDS[2], norm="1", eps=1e-3)]
    with pytest.raises(LayerError, match="the recipe is refused"):
        proven(small(), folds)


@pytest.mark.parametrize(
    "wrong", [replace(FOLDS[1], groups=1), replace(FOLDS[1], groups=4), replace(FOLDS[1], op="conv")]
)
def test_another_axis_is_refused(wrong: RecipeFold) -> None:
    module = nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=2), nn.BatchNorm2d(4))
    if wrong.groups != 2:
        module = nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=1), nn.BatchNorm2d(4))
        wrong = replace(wrong, groups=1, op="conv")
    with pytest.raises(LayerError, match="the recipe is refused"):
        proven(module, [replace(wrong, weight="0.weight", norm="1")], "input=float32[2,4,5,5]")


@pytest.mark.parametrize("module", [models.NormsOfLevels(), models.OutputUsedTwice()])
def test_a_norm_folded_into_a_layer_that_others_use_is_refused(module: nn.Module) -> None:
    norm = "bn.0" if isinstance(module, models.NormsOfLevels) else "bn"
    with pytest.raises(LayerError, match="the recipe is refused"):
        proven(module, [RecipeFold("norm behind", "conv.weight", norm, eps=1e-5)], models.IMAGE)


def test_a_weight_that_two_layers_share_takes_no_norm_of_one() -> None:
    fold = RecipeFold("norm behind", "first.weight", "bn", eps=1e-5)
    assert proven(models.Tied(used=False), [fold], models.IMAGE).apart < MOST_APART
    with pytest.raises(LayerError, match="the recipe is refused"):
        proven(models.Tied(used=True), [fold], models.IMAGE)


STANDARDIZED = RecipeFold("standardize", "weight", std="unbiased", eps_at="std", eps=1e-5)


class ToTheLetter(nn.Conv2d):
    """Weight standardization as its authors wrote it down: the unbiased deviation, and eps added to that."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        weight = self.weight
        mean = weight.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
        weight = weight - mean
        std = weight.view(weight.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
        return functional.conv2d(input, weight / std.expand_as(weight), self.bias)


@pytest.mark.parametrize(
    "wrong",
    [
        replace(STANDARDIZED, std="biased"),
        replace(STANDARDIZED, eps_at="var"),
        replace(STANDARDIZED, eps=1.001e-5),
        replace(STANDARDIZED, dim=1),
        replace(STANDARDIZED, scale=1.001),
    ],
    ids=["biased", "inside", "eps", "dim", "scale"],
)
def test_a_standardization_that_is_a_little_off_is_refused_by_name(wrong: RecipeFold) -> None:
    module = ToTheLetter(3, 6, 3)
    assert proven(module, [STANDARDIZED]).apart < MOST_APART
    with pytest.raises(LayerError, match="by weight: the recipe is refused"):
        proven(module, [wrong])


def test_a_gain_that_has_no_element_a_row_is_refused() -> None:
    module = ToTheLetter(3, 6, 3)
    module.gain = nn.Parameter(torch.ones(6))
    with pytest.raises(LayerError, match="weight has 3 rows along axis 1, and its gain or shift 6"):
        proven(module, [replace(STANDARDIZED, dim=1, gain="gain")])


class ByDtype(nn.Module):
    """Code that takes another way for float64 than for float32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn(self.conv(x))
        return y.float() * 2 if x.dtype == torch.float32 else torch.relu(y)


def test_the_proof_takes_the_way_of_the_modules_own_dtype_and_computes_in_float64() -> None:
    fold = RecipeFold("norm behind", "conv.weight", "bn", eps=1e-5)
    assert proven(ByDtype(), [fold], models.IMAGE).apart < MOST_APART


class Drawing(nn.Module):
    """Dropout and noise in eval mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.bn(self.conv(x)), 0.5, training=True) + torch.randn(())


def test_what_a_forward_draws_is_the_same_unfolded_and_folded() -> None:
    fold = RecipeFold("norm behind", "conv.weight", "bn", eps=1e-5)
    assert proven(Drawing(), [fold], models.IMAGE).apart < MOST_APART
    with pytest.raises(LayerError, match="the recipe is refused"):
        proven(Drawing(), [replace(fold, eps=1.1e-5)], models.IMAGE)


class Complex(nn.Module):
    """A norm behind a complex convolution's real part, and one behind a real convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(2, 3, 1, dtype=torch.complex64), nn.BatchNorm1d(3)
        self.last, self.behind = nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(self.conv(x.to(torch.complex64)).real)
        return cast("Tensor", self.behind(self.last(torch.relu(found))))


def test_a_norm_behind_a_complex_convolution_stays_and_another_is_proven() -> None:
    report = trace_recipe(Complex().eval(), inputs="x=float32[1,2,T]")
    assert [(fold.weight, fold.norm) for fold in report.recipe.folds] == [("last.weight", "behind")]
    assert [left.name for left in report.left] == ["norm"]
