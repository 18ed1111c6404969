"""Checkpoints compared as a recipe would fold them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.golden import FIXTURES
from tests.helpers.tool import run_here
from wnconvert import (
    ArgumentError,
    compare_files,
    compare_state_dicts,
    fold_file,
    fold_state_dict,
    read_recipe,
)

SOURCE, RECIPE = FIXTURES / "normed.pt", FIXTURES / "normed.toml"


def state() -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = torch.load(SOURCE, weights_only=True)
    return made


def test_a_checkpoint_and_its_fold_are_equal_by_the_recipe(tmp_path: Path) -> None:
    fold_file(SOURCE, tmp_path / "out.safetensors", recipe=RECIPE)
    found = compare_files(SOURCE, tmp_path / "out.safetensors", recipe=RECIPE)
    assert found
    assert (found.layers, found.compared, found.identical) == (5, 12, 12)
    assert not found.only_in_a
    assert not found.only_in_b
    why = "out.safetensors: . is compared as it is, since the recipe does not fit: it does not have"
    assert any(why in note for note in found.notes)


def test_without_the_recipe_they_differ(tmp_path: Path) -> None:
    fold_file(SOURCE, tmp_path / "out.safetensors", recipe=RECIPE)
    assert not compare_files(SOURCE, tmp_path / "out.safetensors")


@pytest.mark.parametrize("name", ["stem.conv.weight", "stem.conv.bias", "head.norm.weight", "head.norm.bias"])
def test_a_number_that_is_off_is_seen(name: str) -> None:
    folded = fold_state_dict(state(), recipe=RECIPE)
    folded[name] = folded[name].clone()
    folded[name].view(-1)[0] += 1e-3
    found = compare_state_dicts(state(), folded, recipe=RECIPE)
    assert [item.name for item in found.differing] == [name]


def test_two_sources_are_compared_as_they_would_be_folded() -> None:
    """The factor 2 may stand in the gain of the norm or in its weight: folded they are the same."""
    other = state()
    other["stem.conv.weight"] = other["stem.conv.weight"] * 2
    other["stem.bn.running_mean"] = other["stem.bn.running_mean"] * 2
    other["stem.bn.running_var"] = other["stem.bn.running_var"] * 4 + 3e-5  # eps, too
    assert not compare_state_dicts(state(), other)
    assert compare_state_dicts(state(), other, recipe=read_recipe(RECIPE), rtol=1e-5)


def test_a_recipe_of_neither_side_is_refused() -> None:
    with pytest.raises(ArgumentError, match="the recipe fits neither side"):
        compare_state_dicts({"a": torch.ones(2)}, {"a": torch.ones(2)}, recipe=RECIPE)


def test_the_command_takes_a_recipe(tmp_path: Path) -> None:
    fold_file(SOURCE, tmp_path / "out.pt", recipe=RECIPE)
    assert run_here("compare", SOURCE, tmp_path / "out.pt", "--recipe", RECIPE).returncode == 0
    assert run_here("compare", SOURCE, tmp_path / "out.pt").returncode == 1
