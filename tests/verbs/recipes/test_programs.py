"""Recipes of exported programs: their graphs are followed as the code of a module is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.helpers.states import same
from wnconvert import ArgumentError, fold_file, fold_module, recipe_of

# torch's own warnings, of its programs and of TorchScript.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Branches(nn.Module):
    """A convolution and a transposed one with norms behind, and a norm that stands behind a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm1d(6, eps=1e-3)
        self.up = nn.ConvTranspose1d(6, 6, 4, 2, 1, groups=3)
        self.norm = nn.BatchNorm1d(6)
        self.behind_sum = nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.norm(self.up(torch.relu(self.bn(self.conv(x)))))
        stays: torch.Tensor = self.behind_sum(made + 1)
        return stays


def program() -> tuple[nn.Module, torch.export.ExportedProgram]:
    torch.manual_seed(5)
    model = Branches()
    for _ in range(3):
        model(torch.randn(4, 3, 8))
    model.eval()
    return model, torch.export.export(model, (torch.randn(2, 3, 8),))


def test_a_program_tells_the_folds_of_the_module_that_was_exported() -> None:
    model, exported = program()
    recipe = recipe_of(exported, inputs="x=float32[2,3,8]")
    assert recipe.folds == recipe_of(model, inputs="x=float32[2,3,8]").folds
    assert [fold.norm for fold in recipe.folds] == ["bn", "norm"]


def test_its_recipe_folds_the_weights_of_the_program_as_it_folds_the_module(tmp_path: Path) -> None:
    model, exported = program()
    torch.export.save(exported, tmp_path / "net.pt2")
    recipe = recipe_of(exported, inputs="x=float32[2,3,8]")
    fold_file(tmp_path / "net.pt2", tmp_path / "net.pt", recipe=recipe, verify=True)
    fold_module(model, recipe=recipe)
    folded, expected = torch.load(tmp_path / "net.pt"), model.state_dict()
    assert list(folded) == list(expected)
    assert all(same(folded[name], expected[name]) for name in expected)


def test_a_scripted_module_has_no_code_that_can_be_followed() -> None:
    model, _ = program()
    with pytest.raises(ArgumentError, match="whose code can be followed"):
        recipe_of(torch.jit.trace(model, torch.randn(2, 3, 8)), inputs="x=float32[2,3,8]")  # type: ignore[no-untyped-call]
