"""Folded checkpoints proven with their model: outputs at several sizes, and the weight of every layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.helpers.live_models import portrait
from tests.helpers.normed_models import NORMED, behind, every_normed, scrambled
from wnconvert import fold_state_dict
from wnconvert.errors import InputError, LayerError
from wnconvert.layers.recipes import Recipe, RecipeFold
from wnconvert.verbs.export.folds import check_checkpoint


def saved(state: Any, path: Path) -> Path:
    torch.save(dict(state), path)
    return path


@every_normed
def test_a_folded_checkpoint_is_proven_with_the_model_that_it_was_folded_for(
    which: str, tmp_path: Path
) -> None:
    model, _ = NORMED[which].made()
    before, recipe = portrait(model), NORMED[which].recipe
    path = saved(fold_state_dict(model.state_dict(), recipe=recipe), tmp_path / "net.pt")
    report = check_checkpoint(path, model, recipe=recipe, **NORMED[which].inputs)
    assert report, report.proof
    assert len(report.proof.samples) == 4
    assert {layer.name for layer in report.layers} == {fold.weight for fold in recipe.folds}
    assert max(layer.distance for layer in report.layers) < 1e-6
    assert portrait(model) == before


def mutated(fold: RecipeFold) -> RecipeFold:
    if fold.kind in ("unit", "equalized"):
        return replace(fold, scale=fold.scale * 1.01)
    return replace(fold, eps=0.01)


@every_normed
def test_a_file_of_other_numbers_is_not_proven(which: str, tmp_path: Path) -> None:
    model, _ = NORMED[which].made()
    recipe = NORMED[which].recipe
    wrong = replace(recipe, folds=tuple(map(mutated, recipe.folds)))
    path = saved(fold_state_dict(model.state_dict(), recipe=wrong), tmp_path / "net.pt")
    report = check_checkpoint(path, model, recipe=recipe, **NORMED[which].inputs)
    assert not report
    assert not all(layer.passed for layer in report.layers)


def test_a_layer_that_outputs_do_not_show_is_told_by_its_weight(tmp_path: Path) -> None:
    norm = nn.BatchNorm1d(3)
    model = scrambled(nn.Sequential(nn.Conv1d(2, 3, 1), norm, nn.Conv1d(3, 2, 1)))
    norm.weight.data[0] = 1e-20
    recipe = Recipe((behind("0.weight", "1"),))
    state = fold_state_dict(model.state_dict(), recipe=recipe)
    assert check_checkpoint(
        saved(state, tmp_path / "a.pt"), model, inputs="input=float32[1,2,T]", recipe=recipe
    )
    state["0.weight"][0] *= 1.5
    report = check_checkpoint(
        saved(state, tmp_path / "b.pt"), model, inputs="input=float32[1,2,T]", recipe=recipe
    )
    assert report.proof
    assert not report
    assert [(layer.name, layer.passed) for layer in report.layers] == [("0.weight", False)]


def test_what_keys_prove_needs_no_recipe_and_a_file_that_keeps_its_norms_neither(tmp_path: Path) -> None:
    model = scrambled(nn.Sequential(parametrizations.weight_norm(nn.Conv1d(2, 3, 1)), nn.BatchNorm1d(3)))
    path = saved(fold_state_dict(model.state_dict()), tmp_path / "net.pt")
    report = check_checkpoint(path, model, inputs="input=float32[1,2,T]")
    assert report
    assert [layer.name for layer in report.layers] == ["0.weight"]
    assert check_checkpoint(
        path, model, inputs="input=float32[1,2,T]", recipe=Recipe((behind("0.weight", "1"),))
    )


def test_a_file_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    model = scrambled(nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3)))
    recipe = Recipe((behind("0.weight", "1"),))
    path = saved(fold_state_dict(model.state_dict(), recipe=recipe), tmp_path / "net.pt")
    with pytest.raises(InputError, match=r"missing: 1\.running_mean"):
        check_checkpoint(path, model, inputs="input=float32[1,2,T]")
    with pytest.raises(LayerError, match="does not fit the module"):
        check_checkpoint(
            path, model, inputs="input=float32[1,2,T]", recipe=Recipe((behind("0.weight", "norm"),))
        )
