"""The proof runs on smaller images where the model does the same there, and at its own size where not."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from wnconvert.layers.recipes import RecipeFold
from wnconvert.verbs.recipes.proving.prove import prove_recipe
from wnconvert.verbs.recipes.recipe import trace_recipe


class BySize(nn.Module):
    """Another norm for large images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.small, self.large = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.large(y) if x.shape[-1] > 100 else self.small(y)  # type: ignore[no-any-return]


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def for_one_size(side: int) -> nn.Module:
    return nn.Sequential(convolutional(), nn.AvgPool2d(side - 2), nn.Flatten(), nn.Linear(4, 2))


def proven_at(module: nn.Module, inputs: list[str]) -> tuple[tuple[int | str, ...], ...]:
    """The shapes of the inputs that the proof takes."""
    with mock.patch("wnconvert.verbs.recipes.recipe.prove_recipe", wraps=prove_recipe) as proof:
        trace_recipe(module, inputs=inputs, ranges=["H=70..90"] if "H" in inputs[0] else [], samples=1)
    return tuple(spec.shape for spec in proof.call_args.args[2].inputs)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("[1,3,224,224]", (1, 3, 64, 64)),
        ("[2,3,300,400]", (2, 3, 48, 64)),
        ("[1,3,480,640]", (1, 3, 64, 64)),
        ("[1,3,40,50]", (1, 3, 40, 50)),
        ("[1,3,H,224]", (1, 3, "H", 64)),
    ],
)
def test_images_are_smaller_and_letters_and_small_images_stay(
    given: str, taken: tuple[int | str, ...]
) -> None:
    assert proven_at(convolutional(), [f"input=float32{given}"]) == (taken,)


def test_a_model_that_takes_128_alone_below_its_size_is_proven_there() -> None:
    def refuses_64(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert given[0].shape[-1] >= 100

    module = convolutional()
    module.register_forward_pre_hook(refuses_64)
    assert proven_at(module, ["input=float32[1,3,224,224]"]) == ((1, 3, 128, 128),)


def test_a_model_that_takes_one_size_is_proven_at_that() -> None:
    assert proven_at(for_one_size(160), ["input=float32[1,3,160,160]"]) == ((1, 3, 160, 160),)


def test_a_model_that_goes_another_way_at_smaller_sizes_is_proven_where_it_goes_its_own() -> None:
    assert proven_at(BySize(), ["x=float32[1,3,128,128]"]) == ((1, 3, 128, 128),)
    (fold,) = trace_recipe(BySize(), inputs="x=float32[1,3,128,128]", samples=1).recipe.folds
    assert fold == RecipeFold("norm behind", "conv.weight", "large", eps=1e-5)


def test_what_runs_at_smaller_sizes_leave_behind_is_forgotten() -> None:
    module = convolutional()
    module.register_buffer("seen", torch.zeros(()))

    def count(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        module.get_buffer("seen").add_(given[0].shape[-1])

    module.register_forward_pre_hook(count)
    proven_at(module, ["input=float32[1,3,224,224]"])
    assert not module.get_buffer("seen")
