"""Each normalization that people ask for, from a model to its folded file and export; or why not."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tests.helpers.described_norms import FOLDED, IMAGE, STAYS
from wnconvert import check_onnx, export_onnx, fold_file, fold_module, inspect_file
from wnconvert.errors import LayerError
from wnconvert.layers.recipes import Recipe
from wnconvert.verbs.recipes.recipe import recipe_of

KINDS = "all"
#: What ``inspect`` calls each of those that stay, if its keys show it.
SHOWN = {
    "instance norm": "affine norm",
    "group norm": "affine norm",
    "switchable norm": "switchable norm",
}


def plain(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """The network without its normalization, with the folded tensors loaded strictly."""
    (first,) = (each for each in module.modules() if isinstance(each, nn.Conv2d) and each.in_channels == 3)
    parts: list[nn.Module] = []
    for each in module.children():
        if each is first:
            parts.append(nn.Conv2d(3, 4, 3))
        else:
            is_norm = isinstance(each, (nn.BatchNorm2d, nn.InstanceNorm2d))
            parts.append(nn.Identity() if is_norm else copy.deepcopy(each))
    made = nn.Sequential(*parts).eval()
    made.load_state_dict(state)
    return made


def recipe_for(name: str, module: nn.Module) -> Recipe | None:
    """The recipe of a module; None of a normalization that keys show."""
    return None if FOLDED[name][1] in ("weight", "spectral") else recipe_of(module, inputs=IMAGE)


def saved(module: nn.Module, folder: Path) -> Path:
    torch.save(module.state_dict(), folder / "net.pt")
    return folder / "net.pt"


@pytest.mark.parametrize("name", FOLDED)
def test_what_has_an_exact_fold_goes_through_recipe_and_fold(name: str, tmp_path: Path) -> None:
    build, kind = FOLDED[name]
    module = build()
    recipe = recipe_for(name, module)
    if recipe is not None:
        assert [fold.kind for fold in recipe.folds] == [kind]
    result = fold_file(saved(module, tmp_path), tmp_path / "out.pt", kinds=KINDS, recipe=recipe)
    assert len(result.plan.layers) == 1
    x = torch.randn(2, 3, 9, 8)
    with torch.no_grad():
        folded = plain(module, torch.load(tmp_path / "out.pt"))
        torch.testing.assert_close(folded(x), module(x))


@pytest.mark.parametrize("name", FOLDED)
def test_what_has_an_exact_fold_is_folded_in_a_live_module(name: str) -> None:
    module = FOLDED[name][0]()
    recipe = recipe_for(name, module)
    x = torch.randn(2, 3, 9, 8)
    with torch.no_grad():
        before = module(x)
        fold_module(module, kinds=KINDS, recipe=recipe)
        torch.testing.assert_close(module(x), before)
    assert not any(isinstance(each, (nn.BatchNorm2d, nn.InstanceNorm2d)) for each in module.modules())
    assert not any(parametrize.is_parametrized(each) for each in module.modules())


@pytest.mark.parametrize("name", [*FOLDED, *STAYS])
def test_each_is_exported_and_proven_equal(name: str, tmp_path: Path) -> None:
    module = (FOLDED[name][0] if name in FOLDED else STAYS[name])()
    path = tmp_path / "net.onnx"
    assert export_onnx(module, path, inputs=IMAGE)
    assert check_onnx(path, module, inputs=IMAGE)


@pytest.mark.parametrize("name", STAYS)
def test_what_depends_on_the_data_has_no_fold_and_the_reason_is_said(name: str, tmp_path: Path) -> None:
    module = STAYS[name]()
    path = saved(module, tmp_path)
    result = fold_file(path, tmp_path / "out.pt", kinds=KINDS)
    assert (result.output, result.plan.layers) == (None, [])
    if name in SHOWN:
        found = inspect_file(path)
        assert [(kind.kind, kind.folds) for kind in found.kinds] == [(SHOWN[name], "no")]
    with pytest.raises(LayerError):
        fold_file(path, tmp_path / "out.pt", norm="1=0:conv", eps=1e-5)
    assert [each.name for each in tmp_path.iterdir()] == ["net.pt"]


def test_weight_standardization_to_the_letter_is_folded_as_it_is_said(tmp_path: Path) -> None:
    module = FOLDED["weight standardization"][0]()
    said: dict[str, Any] = {"standardize": "0.weight", "std": "unbiased", "eps_at": "std", "eps": 1e-5}
    fold_file(saved(module, tmp_path), tmp_path / "out.pt", **said)
    x = torch.randn(2, 3, 9, 8)
    with torch.no_grad():
        right = plain(module, torch.load(tmp_path / "out.pt"))(x)
        torch.testing.assert_close(right, module(x))
        for other in ({"std": "biased"}, {"eps": 1e-1}):
            fold_file(tmp_path / "net.pt", tmp_path / "out.pt", **said | other, force=True)
            wrong = plain(module, torch.load(tmp_path / "out.pt"))(x)
            assert (wrong - module(x)).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["batch norm", "instance norm with running statistics"])
def test_names_tell_what_the_recipe_does(name: str, tmp_path: Path) -> None:
    module = FOLDED[name][0]()
    path = saved(module, tmp_path)
    fold_file(path, tmp_path / "names.pt", norm="by-names", eps=1e-5)
    fold_file(path, tmp_path / "recipe.pt", recipe=recipe_of(module, inputs=IMAGE))
    named, traced = (torch.load(tmp_path / f"{each}.pt") for each in ("names", "recipe"))
    assert list(named) == list(traced)
    assert all(torch.equal(named[key], traced[key]) for key in traced)
