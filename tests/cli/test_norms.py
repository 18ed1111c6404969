"""wnconvert fold --model and check of checkpoints with norms, as a user runs them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.cli.test_files import VARIABLES
from tests.helpers.tool import Ended, run_here
from wnconvert import fold_module, recipe_of
from wnconvert.layers.recipes import Recipe

CODE = """
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

def net(width=6):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, bias=False),
        nn.BatchNorm2d(width, eps=1e-3),
        nn.ReLU(),
        weight_norm(nn.Conv2d(width, 4, 3, padding=1)),
        nn.BatchNorm2d(4, eps=1e-3),
        nn.ReLU(),
        nn.BatchNorm2d(4),
    )

def plain(width=6):
    return nn.Sequential(nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width, eps=1e-3), nn.ReLU())

def other():
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU())
"""
INPUT = ("--input", "input=float32[2,3,H,W]", "--range", "H=8..24", "--range", "W=8..24")
BY_NAMES = ("--norm", "by-names", "--eps")
RECIPE = """schema = 1
made_by = "hand"

[[fold]]
kind = "norm behind"
weight = "0.weight"
norm = "1"
op = "conv"
eps = EPS
"""


def run(folder: Path, *arguments: str | Path) -> Ended:
    return run_here(*arguments, folder=folder, variables=VARIABLES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the code of models, checkpoints of two of them, and two recipes of one."""
    (tmp_path / "net.py").write_text(CODE)
    for which in ("net", "plain"):
        for seed in (1, 2):
            torch.save(drawn(made(tmp_path, which), seed).state_dict(), tmp_path / f"{which}{seed}.pt")
    for name, eps in (("right", "1e-3"), ("wrong", "1e-1")):
        (tmp_path / f"{name}.toml").write_text(RECIPE.replace("EPS", eps))
    return tmp_path


def made(folder: Path, which: str) -> Any:
    spec = importlib.util.spec_from_file_location("net_of_test", folder / "net.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, which)()


def drawn(model: nn.Module, seed: int) -> nn.Module:
    source = torch.Generator().manual_seed(seed)
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_floating_point():
            value.data.uniform_(0.05 if name.endswith("var") else -1, 1, generator=source)
    return model.eval()


def loaded(folder: Path, which: str, name: str) -> nn.Module:
    model: nn.Module = made(folder, which)
    model.load_state_dict(torch.load(folder / name))
    return model.eval()


def the_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != "__pycache__"}


# -- fold --model


def test_a_model_tells_where_norms_go_and_proves_the_file(folder: Path) -> None:
    done = run(folder, "fold", "net1.pt", "-o", "out.pt", "--model", "net.py:net", *INPUT, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["proof"]["samples"] >= 2
    assert [(row["name"], row["norm"], row["unproven"]) for row in told["layers"]] == [
        ("0.weight", "1", False),
        ("3.weight", "4", False),
    ]
    model = loaded(folder, "net", "net1.pt")
    recipe = recipe_of(model, inputs=INPUT[1], ranges=[INPUT[3], INPUT[5]])
    assert [fold.norm for fold in recipe.folds] == ["1", "4"]
    fold_module(model, recipe=recipe)
    out = torch.load(folder / "out.pt")
    assert the_same(dict(model.state_dict()), dict(out))
    assert "6.running_var" in out, "a norm behind an activation stays"


def test_a_recipe_beside_a_model_is_taken_and_proven(folder: Path) -> None:
    done = run(
        folder,
        *("fold", "plain1.pt", "-o", "out.pt", "--recipe", "right.toml", "--model", "net.py:plain", *INPUT),
    )
    assert done.returncode == 0, done.stderr
    assert set(torch.load(folder / "out.pt")) == {"0.weight", "0.bias"}


def test_norms_told_by_names_are_proven_by_a_model_and_unproven_without(folder: Path) -> None:
    with_model = ("--model", "net.py:plain", *INPUT)
    for out, more, unproven in (("a.pt", with_model, False), ("b.pt", (), True)):
        done = run(folder, "fold", "plain1.pt", "-o", out, *BY_NAMES, "1e-3", *more, "--json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert [row["unproven"] for row in told["layers"]] == [unproven]
        assert ("unproven" in done.stderr + str(told["notes"])) is unproven
        assert (told["proof"] is None) is unproven
    assert the_same(torch.load(folder / "a.pt"), torch.load(folder / "b.pt"))


@pytest.mark.parametrize(
    "told", [("--recipe", "wrong.toml"), (*BY_NAMES, "1e-1"), ("--norm", "1=0", "--eps", "1e-1")]
)
def test_an_eps_that_is_not_the_model_s_is_written_nowhere(folder: Path, told: tuple[str, ...]) -> None:
    before = files(folder)
    done = run(folder, "fold", "plain1.pt", "-o", "out.pt", *told, "--model", "net.py:plain", *INPUT)
    assert done.returncode == 2, done.stderr
    assert "computes something else than the norm of the recipe, with eps 0.1" in done.stderr
    assert files(folder) == before


def test_what_is_not_equal_by_the_tolerance_is_1_and_leaves_what_stands_there(folder: Path) -> None:
    told = ("--model", "net.py:net", *INPUT, "--rtol", "0", "--atol", "0")
    before = files(folder)
    done = run(folder, "fold", "net1.pt", "-o", "out.pt", *told)
    assert done.returncode == 1, done.stderr
    assert "the outputs are not those of" in done.stderr
    assert files(folder) == before
    (folder / "out.pt").write_bytes(b"mine")
    assert run(folder, "fold", "net1.pt", "-o", "out.pt", *told, "--force").returncode == 1
    assert (folder / "out.pt").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("net1.pt", "--model", "net.py:net"), "the model is run, and needs its inputs"),
        (("net1.pt", *INPUT), "--input is of a model"),
        (("net1.pt", "net2.pt", "--model", "net.py:net", *INPUT), "--model is that of one checkpoint"),
        (("net1.pt", "--model", "net.py:net", *INPUT, "--eps", "1e-3"), "--eps have no place beside it"),
        (("net1.pt", "--model", "net.py:nett", *INPUT), "did you mean net"),
        (("net1.pt", "--model", "net.py:other", *INPUT), "missing"),
        (("net1.pt", "--model", "net.py:net", "--kwargs", '{"width": 7}', *INPUT), "shape"),
        (("plain1.pt", "--model", "net.py:plain", "--input", "input=float32[2,4,8,8]"), "4 channels"),
        (("plain1.pt", "--recipe", "none.toml", "--model", "net.py:plain", *INPUT), "none.toml"),
    ],
)
def test_what_does_not_fit_is_2_and_writes_nothing(
    folder: Path, arguments: tuple[str, ...], says: str
) -> None:
    before = files(folder)
    done = run(folder, "fold", *arguments, "-o", "out.pt")
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert files(folder) == before


# -- check


@pytest.fixture
def folded(folder: Path) -> Path:
    """The folder, with both checkpoints folded, and one folded by a wrong recipe."""
    for source, out, told in (
        ("plain1.pt", "out1.pt", "right.toml"),
        ("plain2.pt", "out2.pt", "right.toml"),
        ("plain1.pt", "bad.pt", "wrong.toml"),
    ):
        done = run(folder, "fold", source, "-o", out, "--recipe", told)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("told", [(), ("--recipe", "right.toml")])
def test_check_proves_a_folded_checkpoint_with_the_unfolded_one(folded: Path, told: tuple[str, ...]) -> None:
    before = files(folded)
    done = run(folded, "check", "out1.pt", "net.py:plain", "--weights", "plain1.pt", *INPUT, *told)
    assert done.returncode == 0, done.stderr
    assert "equal to Sequential" in done.stdout
    assert files(folded) == before


@pytest.mark.parametrize("file", ["out2.pt", "bad.pt"])
def test_check_of_other_weights_or_a_wrong_eps_is_1(folded: Path, file: str) -> None:
    before = files(folded)
    done = run(folded, "check", file, "net.py:plain", "--weights", "plain1.pt", *INPUT, "--json")
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["equal"] is False
    assert files(folded) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("net1.pt", "net.py:plain", "--weights", "plain1.pt"), "net1.pt: the weights"),
        (("out1.pt", "net.py:net", "--weights", "net1.pt"), "missing"),
        (("out1.pt", "net.py:plain", "--weights", "net1.pt"), "net1.pt: the weights"),
        (("none.pt", "net.py:plain", "--weights", "plain1.pt"), "none.pt"),
    ],
)
def test_check_of_what_does_not_fit_is_2(folded: Path, arguments: tuple[str, ...], says: str) -> None:
    before = files(folded)
    done = run(folded, "check", *arguments, *INPUT)
    assert done.returncode == 2, done.stdout
    assert says in done.stderr
    assert files(folded) == before


def test_recipes_of_the_tests_are_what_a_forward_tells(folder: Path) -> None:
    model = loaded(folder, "plain", "plain1.pt")
    told: Recipe = recipe_of(model, inputs=INPUT[1], ranges=[INPUT[3], INPUT[5]])
    assert [(fold.weight, fold.norm, fold.eps) for fold in told.folds] == [("0.weight", "1", 1e-3)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--norm", "n=c", "--eps", "1e-5"), "--norm does not fit: n has no running statistics"),
        (
            ("--standardize", "x.*", "--std", "biased", "--eps-at", "var", "--eps", "1e-5"),
            "--standardize does not fit: it does not have x.*",
        ),
    ],
)
def test_what_does_not_fit_is_called_as_the_user_gave_it(
    options: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    torch.save({"c.weight": torch.ones(3, 2, 1), "n.weight": torch.ones(3)}, tmp_path / "net.pt")
    ended = run_here("fold", "net.pt", *options, folder=tmp_path)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "recipe" not in ended.stderr
