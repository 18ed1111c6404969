"""wnconvert recipe as a user runs it: what it writes, says and refuses; and what fold makes of its file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.cli.test_files import VARIABLES
from tests.helpers.runner import listing
from tests.helpers.tool import Ended, run_here
from wnconvert import fold_module, read_recipe
from wnconvert.layers.recipes import RecipeFold

NET = '''
import torch
from torch import nn


class WSConv2d(nn.Conv2d):
    """Standardized to the letter of its document: the unbiased deviation, and eps added to that."""

    def forward(self, x):
        weight = self.weight
        mean = weight.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
        weight = weight - mean
        std = weight.view(weight.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
        weight = weight / std.expand_as(weight)
        return torch.nn.functional.conv2d(x, weight, self.bias, self.stride, self.padding)


def make(features=8):
    torch.manual_seed(1)
    return nn.Sequential(
        WSConv2d(3, features, 3, padding=1), nn.BatchNorm2d(features, eps=1e-3), nn.ReLU(),
        WSConv2d(features, 4, 3), nn.ReLU(), nn.BatchNorm2d(4),
    )


class Random(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) if torch.rand(()) < 0.5 else super().forward(x).relu()


def random():
    return nn.Sequential(Random(3, 4, 3), nn.BatchNorm2d(4))


def broken():
    raise RuntimeError("no weights here")
'''
INPUT = ("--input", "input=float32[2,3,9,8]")
STANDARDIZED = ("standardize", "unbiased", "std", 1e-5)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def run(here: Path, *arguments: str | Path) -> Ended:
    return run_here("recipe", *arguments, folder=here, variables=VARIABLES)


def test_a_recipe_is_written_and_what_folds_and_what_stays_is_said(here: Path) -> None:
    done = run(here, "net.py:make", *INPUT, "-o", "net.toml")
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines()[2:4]] == [
        ["standardize", "conv", "2"],
        ["norm", "behind", "conv", "1"],
    ]
    assert [line.split(maxsplit=1) for line in done.stdout.splitlines()[7:8]] == [
        ["5", "behind an activation"]
    ]
    assert "net.toml: 3 folds, 1 left; proven in float64, 4 samples, " in done.stdout.splitlines()[-1]
    assert [line.split()[0] for line in done.stderr.splitlines()[::2]] == ["build", "trace", "prove"]
    recipe = read_recipe(here / "net.toml")
    assert recipe.made_by == "net.py:make, traced"
    assert recipe.proven.startswith("float64, 4 samples, ")
    *standardized, norm = recipe.folds
    assert [(fold.kind, fold.std, fold.eps_at, fold.eps) for fold in standardized] == [STANDARDIZED] * 2
    assert norm == RecipeFold("norm behind", "0.weight", "1", eps=1e-3)


def test_without_a_file_the_recipe_itself_is_the_output(here: Path) -> None:
    assert run(here, "net.py:make", *INPUT, "-o", "net.toml").returncode == 0
    done = run(here, "net.py:make", *INPUT)
    assert (done.returncode, done.stdout) == (0, (here / "net.toml").read_text())


def test_json_has_the_recipe_and_what_stays_and_a_dry_run_writes_nothing(here: Path) -> None:
    before = listing(here)
    done = run(here, "net.py:make", *INPUT, "-o", "net.toml", "--json", "--dry-run", "--samples", "2")
    report = json.loads(done.stdout)
    assert (done.returncode, report["samples"]) == (0, 2)
    assert [fold["weight"] for fold in report["recipe"]["folds"]] == ["0.weight", "3.weight", "0.weight"]
    assert report["left"] == [{"name": "5", "reason": "behind an activation"}]
    assert {name for name in listing(here).keys() - before.keys() if "__pycache__" not in name} == set()


def test_a_recipe_is_proven_on_the_users_own_inputs_too(here: Path) -> None:
    np.savez(here / "own.npz", input=np.full((2, 3, 9, 8), 2, np.float32))
    done = run(here, "net.py:make", *INPUT, "--inputs", "own.npz", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == 5
    np.savez(here / "other.npz", input=np.ones((2, 3, 9, 7), np.float32))
    wrong = run(here, "net.py:broken", *INPUT, "--inputs", "other.npz")
    assert wrong.returncode == 2
    assert "input is float32[2,3,9,7], and the input is float32[2,3,9,8]" in wrong.stderr


def test_arguments_reach_the_factory(here: Path) -> None:
    done = run(here, "net.py:make", *INPUT, "-o", "net.toml", "--kwargs", '{"features": 5}', "--silent")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    other = run_here("fold", _checkpoint(here), "--recipe", "net.toml", folder=here, variables=VARIABLES)
    assert other.returncode == 2
    assert "the shapes of its tensors are not those of the model that the recipe is of" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("net.py:make",), "needs its inputs"),
        (("net.py:other", *INPUT), "other"),
        (("nothing.py:make", *INPUT), "nothing.py"),
        (("net.py:broken", *INPUT), "no weights here"),
        (("net.py:make", "--input", "input=float32[2,4,9,8]"), r"the model fails on input\[2, 4, 9, 8\]"),
        (("net.py:make", "--input", "x=float32[2,3,9,8]"), "the model has no input 'x'"),
        (("net.py:make", "--input", "input=float31[2,3,9,8]"), "float31"),
        (("net.py:make", *INPUT, "--samples", "0"), "samples"),
        (("net.py:make", *INPUT, "--kwargs", "{"), "JSON"),
        (("net.py:random", *INPUT, "--samples", "40"), "the model takes another way at each run"),
    ],
)
def test_what_cannot_be_told_is_2_and_nothing_is_written(
    here: Path, arguments: tuple[str, ...], says: str
) -> None:
    done = run(here, *arguments, "-o", "net.toml")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert re.search(says, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert not (here / "net.toml").exists()


def test_a_file_that_is_there_is_replaced_with_force_alone(here: Path) -> None:
    (here / "net.toml").write_text("mine")
    done = run(here, "net.py:make", *INPUT, "-o", "net.toml")
    assert (done.returncode, (here / "net.toml").read_text()) == (2, "mine")
    assert "--force" in done.stderr
    assert run(here, "net.py:make", *INPUT, "-o", "net.toml", "--force").returncode == 0
    assert len(read_recipe(here / "net.toml").folds) == 3


def _checkpoint(here: Path) -> Path:
    """A checkpoint of the network, its statistics and affines drawn."""
    torch.save(_network(here).state_dict(), here / "net.pt")
    return here / "net.pt"


def _network(here: Path) -> nn.Sequential:
    names: dict[str, object] = {}
    exec((here / "net.py").read_text(), names)  # noqa: S102 - the text above
    net: nn.Sequential = names["make"]()  # type: ignore[operator]
    stream = torch.Generator().manual_seed(4)
    for value in net.state_dict().values():
        if value.ndim == 1:
            value.copy_(torch.rand(value.shape, generator=stream) + 0.1)
    return net.eval()


def test_a_standardized_checkpoint_folds_by_its_recipe_as_the_live_module_does(here: Path) -> None:
    net = _network(here)
    _checkpoint(here)
    assert run(here, "net.py:make", *INPUT, "-o", "net.toml").returncode == 0
    done = run_here(
        *("fold", "net.pt", "--recipe", "net.toml", "-o", "net.folded.pt"), folder=here, variables=VARIABLES
    )
    assert done.returncode == 0, done.stderr
    made = torch.load(here / "net.folded.pt")
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3),
        nn.ReLU(),
        nn.BatchNorm2d(4),
    ).eval()
    plain.load_state_dict(made)
    x = torch.randn(2, 3, 9, 8)
    torch.testing.assert_close(plain(x), net(x), rtol=1e-4, atol=1e-5)
    fold_module(net, recipe=read_recipe(here / "net.toml"))
    live = net.state_dict()
    assert list(live) == list(made)
    assert all(torch.equal(live[name], made[name]) for name in made)
    torch.testing.assert_close(plain(x), net(x), rtol=0, atol=0)
