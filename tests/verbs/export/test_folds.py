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
from wnconvert import fold_file, fold_state_dict
from wnconvert.errors import InputError, LayerError, VerifyError
from wnconvert.layers.recipes import Recipe, RecipeFold
from wnconvert.verbs.export.folds import check_checkpoint, prove_checkpoint


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


def with_eps_times(recipe: Recipe, factor: float) -> Recipe:
    """The recipe with every eps that it has times a factor."""
    folds = (replace(fold, eps=None if fold.eps is None else fold.eps * factor) for fold in recipe.folds)
    return replace(recipe, folds=tuple(folds))


def small_variances(*, weight_normed: bool = False) -> nn.Module:
    """A layer and a norm whose variances are about its eps, so that all of eps shows."""
    conv = nn.Conv1d(4, 3, 3)
    norm = nn.BatchNorm1d(3)
    model = scrambled(nn.Sequential(parametrizations.weight_norm(conv) if weight_normed else conv, norm))
    assert norm.running_var is not None
    norm.running_var.copy_(torch.tensor([1e-6, 3e-5, 2.0]))
    return model


@pytest.mark.parametrize("keep_norms", [False, True])
@pytest.mark.parametrize("weight_normed", [False, True])
@pytest.mark.parametrize("factor", [0.5, 0.999, 1.001, 2.0])
def test_another_eps_is_told_by_weights_whether_norms_are_kept_or_not(
    factor: float, weight_normed: bool, keep_norms: bool, tmp_path: Path
) -> None:
    model, recipe = small_variances(weight_normed=weight_normed), Recipe((behind("0.weight", "1"),))
    right, wrong = (
        saved(
            fold_state_dict(model.state_dict(), recipe=with_eps_times(recipe, each), keep_norms=keep_norms),
            tmp_path / f"{each}.pt",
        )
        for each in (1.0, factor)
    )
    report = check_checkpoint(right, model, inputs="input=float32[1,4,T]", recipe=recipe)
    assert report
    assert [layer.name for layer in report.layers] == ["0.weight"]
    report = check_checkpoint(wrong, model, inputs="input=float32[1,4,T]", recipe=recipe)
    assert [(layer.name, layer.passed) for layer in report.layers] == [("0.weight", False)]
    assert not report


def test_a_kept_norm_is_judged_by_the_eps_of_the_module_and_not_of_the_recipe(tmp_path: Path) -> None:
    model, recipe = small_variances(), with_eps_times(Recipe((behind("0.weight", "1"),)), 0.5)
    torch.save(dict(model.state_dict()), tmp_path / "net.pt")
    prove = prove_checkpoint(model, inputs="input=float32[1,4,T]", rtol=1.0, atol=100.0)
    with pytest.raises(VerifyError, match=r"0\.weight by"):
        fold_file(tmp_path / "net.pt", tmp_path / "out.pt", recipe=recipe, keep_norms=True, prove=prove)
    assert not (tmp_path / "out.pt").exists()
    right = with_eps_times(recipe, 2.0)
    fold_file(tmp_path / "net.pt", tmp_path / "out.pt", recipe=right, keep_norms=True, prove=prove)
    assert (tmp_path / "out.pt").exists()


@every_normed
def test_what_is_kept_right_is_proven_too(which: str, tmp_path: Path) -> None:
    model, _ = NORMED[which].made()
    recipe = NORMED[which].recipe
    if any(fold.kind in ("standardize", "unit", "equalized") for fold in recipe.folds):
        with pytest.raises(LayerError, match="once more"):
            fold_state_dict(model.state_dict(), recipe=recipe, keep_norms=True)
        return
    state = fold_state_dict(model.state_dict(), recipe=recipe, keep_norms=True)
    report = check_checkpoint(saved(state, tmp_path / "net.pt"), model, recipe=recipe, **NORMED[which].inputs)
    assert report, report
    assert {layer.name for layer in report.layers} == {fold.weight for fold in recipe.folds}


@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_normed", [False, True])
def test_a_file_of_another_dtype_is_near_by_its_rounding_and_that_of_the_model(
    weight_normed: bool, model_dtype: torch.dtype, tmp_path: Path
) -> None:
    model = small_variances(weight_normed=weight_normed).to(model_dtype)
    recipe = Recipe((behind("0.weight", "1"),))
    state = fold_state_dict(model.state_dict(), recipe=recipe, dtype="float16")
    inputs = f"input={model_dtype}[1,4,T]".replace("torch.", "")
    path = saved(state, tmp_path / "net.pt")
    report = check_checkpoint(path, model, inputs=inputs, recipe=recipe, rtol=1.0, atol=1e6)
    assert report, report.layers
    state["0.weight"][1, 0, 0] *= 1.1
    report = check_checkpoint(
        saved(state, tmp_path / "off.pt"), model, inputs=inputs, recipe=recipe, rtol=1.0, atol=1e6
    )
    assert not report
