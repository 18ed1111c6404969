"""``fold --model --keep-norms``: a recipe that is given must be what the model tells."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.helpers.tool import run_here

INPUT = "input=float32[2,3,8,8]"
MODEL = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(MODEL)
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict(), tmp_path / "net.pt")
    assert (
        run_here("recipe", "net.py:make", "--input", INPUT, "-o", "net.toml", folder=tmp_path).returncode == 0
    )
    return tmp_path


@pytest.mark.parametrize(("eps", "code"), [("1e-05", 0), ("1.01e-05", 2)])
def test_a_recipe_of_norms_that_are_kept_must_be_what_the_model_tells(
    eps: str, code: int, folder: Path
) -> None:
    recipe = (folder / "net.toml").read_text()
    assert "eps = 1e-05" in recipe
    (folder / "net.toml").write_text(recipe.replace("eps = 1e-05", f"eps = {eps}"))
    asked = ("--model", "net.py:make", "--input", INPUT, "--recipe", "net.toml", "--keep-norms")
    ended = run_here("fold", "net.pt", *asked, "-o", "out.pt", folder=folder)
    assert ended.returncode == code
    assert (folder / "out.pt").exists() == (code == 0)
    assert ("of 1 the model tells another fold or none" in ended.stderr) == (code == 2)
