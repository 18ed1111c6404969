"""Which norms fold into the layer before them, and which stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from tests.verbs.recipes import models
from tests.verbs.recipes.models import IMAGE, SIGNAL
from wnconvert.layers.recipes import RecipeFold
from wnconvert.verbs.recipes.recipe import recipe_of, trace_recipe

#: Transposed convolutions on a signal, by their groups: with (in, out).
GROUPED = [(1, 4, 6), (2, 4, 6), (4, 4, 8)]


def folds_of(module: nn.Module, inputs: Any = IMAGE) -> tuple[RecipeFold, ...]:
    return recipe_of(module, inputs=inputs, samples=2).folds


def left_of(module: nn.Module, inputs: Any = IMAGE) -> dict[str, str]:
    report = trace_recipe(module, inputs=inputs, samples=2)
    assert not report.recipe.folds
    return {each.name: each.reason for each in report.left}


@pytest.mark.parametrize(
    ("module", "inputs", "fold"),
    [
        (
            nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, groups=1), nn.BatchNorm2d(4, eps=1e-3)),
            "input=float32[2,3,9,8]",
            RecipeFold("norm behind", "0.weight", "1", eps=1e-3),
        ),
        (
            nn.Sequential(nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.SyncBatchNorm(8)),
            "input=float32[2,4,9,8]",
            RecipeFold("norm behind", "0.weight", "1", eps=1e-5),
        ),
        (
            nn.Sequential(nn.Conv3d(1, 2, 2, dilation=2), nn.BatchNorm3d(2, affine=False)),
            "input=float32[2,1,5,5,6]",
            RecipeFold("norm behind", "0.weight", "1", eps=1e-5),
        ),
        pytest.param(
            nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, eps=0.0)),
            "input=float32[4,5]",
            RecipeFold("norm behind", "0.weight", "1", op="linear", eps=0.0),
            marks=pytest.mark.skipif(
                Version(torch.__version__) < Version("2.13"), reason="torch runs no such norm before 2.13"
            ),
        ),
        (
            models.LinearThroughView(),
            SIGNAL,
            RecipeFold("norm behind", "linear.weight", "bn", op="linear", eps=1e-5),
        ),
        (
            nn.Sequential(models.Conv1D(5, 3), nn.BatchNorm1d(3)),
            "input=float32[4,5]",
            RecipeFold("norm behind", "0.weight", "1", op="linear_transposed", eps=1e-5),
        ),
        (
            nn.Sequential(models.Conv1D(4, 4), nn.BatchNorm1d(4)),
            "input=float32[4,4]",
            RecipeFold("norm behind", "0.weight", "1", op="linear_transposed", eps=1e-5),
        ),
        (models.Functional(), IMAGE, RecipeFold("norm behind", "conv.weight", "bn", eps=0.003)),
        (models.Functional(weight=False), IMAGE, RecipeFold("norm behind", "conv.weight", "bn", eps=0.003)),
        (
            nn.Sequential(nn.Conv2d(3, 4, 1), models.NormAct(4), nn.Dropout()),
            "input=float32[2,3,9,8]",
            RecipeFold("norm behind", "0.weight", "1", eps=1e-5),
        ),
        (
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
            "input=float32[2,3,9,8]",
            RecipeFold("norm behind", "0.weight", "1", eps=1e-5),
        ),
    ],
)
def test_a_norm_folds_into_the_layer_before_it(module: nn.Module, inputs: str, fold: RecipeFold) -> None:
    assert folds_of(module, inputs) == (fold,)


@pytest.mark.parametrize(("groups", "inputs", "outputs"), GROUPED)
def test_a_norm_folds_into_a_transposed_convolution_with_groups(
    groups: int, inputs: int, outputs: int
) -> None:
    module = nn.Sequential(
        nn.ConvTranspose1d(inputs, outputs, 3, groups=groups, bias=False), nn.BatchNorm1d(outputs)
    )
    (fold,) = folds_of(module, f"input=float32[2,{inputs},7]")
    assert (fold.op, fold.groups) == ("conv_transpose", groups)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [weight_norm, parametrizations.weight_norm, nn.utils.spectral_norm])
def test_a_norm_folds_into_a_layer_with_another_normalization_by_its_plain_name(
    norm: Callable[[nn.Module], nn.Module],
) -> None:
    module = nn.Sequential(norm(nn.Conv1d(4, 5, 3)), nn.BatchNorm1d(5))
    assert folds_of(module, "input=float32[2,4,9]") == (RecipeFold("norm behind", "0.weight", "1", eps=1e-5),)


@pytest.mark.parametrize(
    ("module", "inputs", "name", "reason"),
    [
        (models.SharedHead(), IMAGE, "bn", "used 5 times"),
        (models.NormsOfLevels(), IMAGE, "bn.0", "conv.weight is used 2 times"),
        (models.OutputUsedTwice(), IMAGE, "bn", "the output of its layer is used elsewhere too"),
        (models.OutputReturned(), IMAGE, "bn", "the output of its layer is used elsewhere too"),
        (models.WrittenInPlace(), IMAGE, "bn", "behind an activation"),
        (models.Behind("add"), IMAGE, "bn", "behind an addition"),
        (models.Behind("cat"), IMAGE, "bn", "behind a concatenation"),
        (models.Behind("relu"), IMAGE, "bn", "behind an activation"),
        (models.Behind("pool"), IMAGE, "bn", "behind a pooling"),
        (models.MixedByView(), IMAGE, "bn", "its channels are not those of its layer"),
        (
            models.Conditional(),
            [IMAGE, "c=float32[1,4]"],
            "bn",
            "its weight comes from an input",
        ),
        (models.InTraining(), IMAGE, "bn", "it uses the batch"),
        (
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
            "input=float32[2,3,9,8]",
            "1",
            "it uses the batch",
        ),
        (models.Tied(used=True), IMAGE, "bn", "first.weight is tied to second.weight"),
        (models.Tied(used=False), IMAGE, "bn", "first.weight is tied to second.weight"),
        (models.NoPlaceForBias(), IMAGE, "bn", "its layer has no place for a bias"),
        (models.PartOfChannels(), IMAGE, "bn", "its channels are not those of its layer"),
        (models.BiasUnused(), IMAGE, "bn", "its layer has a bias that it does not add"),
        (models.BiasOfRows(), "x=float32[2,4]", "bn", "the bias of its layer is not one number a channel"),
        (models.OtherDtype(), IMAGE, "bn", "behind a change of dtype"),
        (nn.Sequential(nn.BatchNorm2d(3)), "input=float32[2,3,9,8]", "0", "it stands before all layers"),
    ],
)
def test_a_norm_stays_with_a_reason(module: nn.Module, inputs: Any, name: str, reason: str) -> None:
    assert left_of(module, inputs)[name] == reason


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_norm_folds_in_a_module_of_any_dtype(dtype: str) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(getattr(torch, dtype))
    (fold,) = folds_of(module, f"input={dtype}[2,3,9,8]")
    assert fold == RecipeFold("norm behind", "0.weight", "1", eps=1e-5)


def test_a_norm_folds_that_sees_a_part_of_the_picture_and_all_channels() -> None:
    (fold,) = folds_of(models.PartOfPicture(), IMAGE)
    assert fold == RecipeFold("norm behind", "conv.weight", "bn", eps=1e-5)


def test_a_module_is_left_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    recipe_of(module, inputs="input=float32[2,3,9,8]")
    assert module.training
    assert module[1].training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_sizes_of_inputs_may_vary() -> None:
    module = nn.Sequential(nn.Conv1d(4, 5, 3), nn.BatchNorm1d(5))
    report = trace_recipe(module, inputs="input=float32[B,4,T]", ranges=["T=3..20", "B=1..3"])
    assert len(report.recipe.folds) == 1
    assert report.samples == 4


class AtSomeSizes(nn.Module):
    """Long signals go another way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv1d(4, 5, 3), nn.BatchNorm1d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return torch.relu(self.bn(y)) if x.shape[-1] < 10 else self.bn(torch.relu(y))


def test_what_folds_at_some_sizes_only_stays() -> None:
    report = trace_recipe(AtSomeSizes(), inputs="x=float32[2,4,T]", ranges=["T=3..20"])
    assert not report.recipe.folds
    assert [each.name for each in report.left] == ["bn"]
