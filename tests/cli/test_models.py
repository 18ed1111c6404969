"""``fold --model``: the model of a checkpoint tells what folds, and is the judge of what comes out."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.tool import Ended, run_here

INPUT = "--input", "input=float32[1,3,T]"
CODE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(2)
    nn.init.uniform_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.001, 0.01)
    return nn.Sequential(nn.Conv1d(3, 2, 5), norm, nn.ReLU()).eval()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    code = tmp_path / "models.py"
    code.write_text(CODE)
    torch.save(runpy.run_path(str(code))["build"]().state_dict(), tmp_path / "net.pt")
    return tmp_path


def fold(folder: Path, *options: str) -> Ended:
    return run_here(
        "fold", "net.pt", "--model", f"{folder / 'models.py'}:build", *INPUT, *options, folder=folder
    )


def test_the_model_tells_the_norms_and_proves_the_output(folder: Path) -> None:
    ended = fold(folder, "--json")
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    (layer,) = result["layers"]
    assert (layer["name"], layer["norm"], layer["grade"], layer["unproven"]) == (
        "0.weight",
        "1",
        "recipe",
        False,
    )
    assert (result["proof"]["samples"], result["proof"]["layers"]) == (4, 1)
    assert list(torch.load(folder / "net.folded.pt")) == ["0.weight", "0.bias"]


def test_the_output_is_proven_on_the_users_own_inputs_too(folder: Path) -> None:
    np.savez(folder / "own.npz", input=np.ones((1, 3, 21), np.float32))
    np.savez(folder / "other.npz", x=np.ones((1, 3, 21), np.float32))
    wrong = fold(folder, "--inputs", "other.npz")
    assert wrong.returncode == 2
    assert "no input is called x" in wrong.stderr
    assert not (folder / "net.folded.pt").exists()
    ended = fold(folder, "--inputs", "own.npz", "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["proof"]["samples"] == 5
    alone = run_here("fold", "net.pt", "--inputs", "own.npz", folder=folder)
    assert "--inputs is of a model" in alone.stderr


@pytest.mark.parametrize("said", ["by-names", "1=0"])
def test_what_names_or_the_user_tell_is_proven_by_the_model(folder: Path, said: str) -> None:
    ended = fold(folder, "--norm", said, "--eps", "1e-5", "--json")
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    (layer,) = result["layers"]
    assert layer["grade"] == ("names" if said == "by-names" else "said")
    assert not layer["unproven"], "a proof leaves no doubt"
    assert result["proof"]["layers"] == 1


@pytest.mark.parametrize("said", ["by-names", "1=0"])
def test_another_eps_than_that_of_the_model_is_not_proven_and_nothing_is_written(
    folder: Path, said: str
) -> None:
    before = sorted(folder.iterdir())
    ended = fold(folder, "--norm", said, "--eps", "1e-3")
    assert ended.returncode == 2
    assert "0.weight" in ended.stderr
    assert sorted(each for each in folder.iterdir() if each.name != "__pycache__") == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--input", "input=float32[1,3,T]"), "--input is of a model"),
        (("--model", "models:build"), "needs its inputs"),
        (("--model", "models:build", *INPUT, "-o", "s3://bucket/out.pt"), "no store shows an upload"),
        (
            ("--model", "models:build", *INPUT, "-o", "s3://bucket/out", "--as-folder"),
            "no store shows an upload",
        ),
    ],
    ids=["inputs alone", "model alone", "into a store", "a folder into a store"],
)
def test_what_cannot_be_proven_is_refused_before_anything_is_written(
    folder: Path, options: tuple[str, ...], says: str
) -> None:
    ended = run_here("fold", "net.pt", *options, folder=folder)
    assert ended.returncode == 2
    assert says in ended.stderr
    assert not (folder / "net.folded.pt").exists()
