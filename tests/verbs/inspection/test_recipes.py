"""What inspect forecasts of a fold by a recipe."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.golden import FIXTURES
from tests.helpers.tool import run_here
from wnconvert import ArgumentError, inspect_file, inspect_state_dict

RECIPE = FIXTURES / "normed.toml"


def test_the_forecast_is_that_of_a_fold_by_the_recipe() -> None:
    found = inspect_file(FIXTURES / "normed.pt", recipe=RECIPE)
    assert found.fold == "would make 5 plain weights, and fold 4 norms into them"
    assert inspect_file(FIXTURES / "normed.pt").fold == "nothing to fold"


def test_a_state_dict_that_it_does_not_fit_is_told() -> None:
    found = inspect_state_dict({"a.weight": torch.ones(2, 2)}, recipe=RECIPE)
    assert found.fold.startswith("would refuse: the recipe does not fit: it does not have stem.conv.weight")


def test_a_graph_takes_none() -> None:
    with pytest.raises(ArgumentError, match="--recipe tells what the keys of a checkpoint do not"):
        inspect_file(FIXTURES / "tcn.onnx", recipe=RECIPE)


def test_the_command_takes_it() -> None:
    done = run_here("inspect", FIXTURES / "normed.pt", "--recipe", RECIPE)
    assert "would make 5 plain weights, and fold 4 norms into them" in done.stdout
