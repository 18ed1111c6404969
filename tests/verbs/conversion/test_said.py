"""Norms folded by names and as the user says, against the modules; what is missing is named."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tool import run_here
from wnconvert import fold_file, fold_state_dict
from wnconvert.errors import ArgumentError, LayerError

EPS = 1e-3


def scrambled(module: nn.Module) -> nn.Module:
    """The module with statistics and affines as after training, in eval."""
    torch.manual_seed(0)
    for each in module.modules():
        if isinstance(each, (nn.BatchNorm2d, nn.InstanceNorm2d)):
            with torch.no_grad():
                each.weight.normal_()
                each.bias.normal_()
            assert each.running_mean is not None
            assert each.running_var is not None
            each.running_mean.normal_()
            each.running_var.uniform_(0.1, 3)
    return module.eval()


def network(norm: type[nn.Module] = nn.BatchNorm2d, **options: Any) -> nn.Module:
    """Two norms that names tell, and one behind an activation that they do not."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 4, 3, bias=False),
        bn1=norm(4, eps=EPS, **options),
        conv2=nn.Conv2d(4, 4, 3, groups=2),
        bn2=norm(4, eps=EPS, **options),
        relu=nn.ReLU(),
        bn3=norm(4, eps=EPS, **options),
    )
    return scrambled(nn.Sequential(parts))


def folded_module(module: nn.Module, state: dict[str, Tensor], *norms: str) -> nn.Module:
    """The module with its norms gone, and a bias in each layer, loaded strictly."""
    made = copy.deepcopy(module)
    for name in norms:
        setattr(made, name, nn.Identity())
    for layer in made.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros(layer.out_channels))
    made.load_state_dict(state)
    return made


def apart(module: nn.Module, folded: nn.Module) -> float:
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        return float((module(x) - folded(x)).abs().max())


@pytest.mark.parametrize(
    ("norm", "options"),
    [(nn.BatchNorm2d, {}), (nn.InstanceNorm2d, {"affine": True, "track_running_stats": True})],
    ids=["batch norm", "instance norm with running statistics"],
)
def test_a_file_folded_by_names_computes_what_the_module_does(
    tmp_path: Path, norm: type[nn.Module], options: dict[str, Any]
) -> None:
    module = network(norm, **options)
    torch.save(module.state_dict(), tmp_path / "net.pt")
    result = fold_file(tmp_path / "net.pt", tmp_path / "out.pt", norm="by-names", eps=EPS)
    state = torch.load(tmp_path / "out.pt")
    assert apart(module, folded_module(module, state, "bn1", "bn2")) < 1e-5
    data = result.to_dict()
    assert [(row["norm"], row["grade"], row["unproven"]) for row in data["layers"]] == [
        ("bn1", "names", True),
        ("bn2", "names", True),
    ]
    assert [(item["norm"], item["state_dict"]) for item in data["norms_left"]] == [("bn3", "")]
    assert "relu stands before it" in data["norms_left"][0]["reason"]


def test_a_state_dict_is_folded_as_a_file_is() -> None:
    module = network()
    state = fold_state_dict(module.state_dict(), norm="by-names", eps=EPS)
    assert apart(module, folded_module(module, dict(state), "bn1", "bn2")) < 1e-5


def test_the_command_lists_each_norm_that_it_leaves_and_says_unproven(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "net.pt")
    said = run_here("fold", tmp_path / "net.pt", "--norm", "by-names", "--eps", "1e-3")
    assert said.returncode == 0
    assert "note: bn3 stays, not told by names: relu stands before it" in said.stderr
    assert "note: 2 layers told by names, unproven: wnconvert check proves it\n" in said.stderr
    data = json.loads(
        run_here("fold", tmp_path / "net.pt", "--norm", "by-names", "--eps", "1e-3", "-f", "--json").stdout
    )
    assert [row["unproven"] for row in data["layers"]] == [True, True]


def test_square_weights_that_names_tell_are_counted_in_a_note(tmp_path: Path) -> None:
    parts = OrderedDict(conv1=nn.Conv2d(3, 4, 3), bn1=nn.BatchNorm2d(4), conv2=nn.Conv2d(4, 4, 3))
    parts["bn2"] = nn.BatchNorm2d(4)
    torch.save(nn.Sequential(parts).state_dict(), tmp_path / "net.pt")
    said = run_here("fold", tmp_path / "net.pt", "--norm", "by-names", "--eps", "1e-5")
    assert said.returncode == 0
    assert (
        "note: 1 weight with as many channels in as out: taken as those of plain convolutions" in said.stderr
    )
    one = run_here(
        "fold", tmp_path / "net.pt", "--norm", "bn2=conv2:conv", "--eps", "1e-5", "-o", tmp_path / "o.pt"
    )
    assert one.returncode == 0
    assert "as many channels" not in one.stderr


def test_pairs_that_are_said_are_folded_and_no_others() -> None:
    module = network()
    state = fold_state_dict(module.state_dict(), norm=["bn1=conv1"], eps=EPS)
    assert "bn2.running_var" in state
    assert apart(module, folded_module(module, dict(state), "bn1")) < 1e-5


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_is_folded_as_it_is_said(groups: int) -> None:
    up = nn.ConvTranspose2d(4, 4, 2, groups=groups)
    module = scrambled(nn.Sequential(nn.Conv2d(3, 4, 1), up, nn.BatchNorm2d(4, eps=EPS)))
    said = f"2=1:conv_transpose:{groups}"
    state = fold_state_dict(module.state_dict(), norm=said, eps=EPS)
    assert apart(module, folded_module(module, dict(state), "2")) < 1e-5


def test_a_square_transposed_convolution_is_never_taken_for_a_convolution() -> None:
    module = scrambled(nn.Sequential(nn.ConvTranspose2d(4, 4, 2), nn.BatchNorm2d(4)))
    with pytest.raises(LayerError, match="both axes fit 1") as error:
        fold_state_dict(module.state_dict(), norm="1=0", eps=1e-5)
    assert "norm='1=0:conv', or norm='1=0:conv_transpose'" in error.value.fix
    with pytest.raises(LayerError, match="its kernel 2×2 is even"):
        fold_state_dict(module.state_dict(), norm="by-names", eps=1e-5)


def test_without_metadata_names_tell_nothing_and_nothing_is_written(tmp_path: Path) -> None:
    torch.save(dict(network().state_dict()), tmp_path / "net.pt")
    said = run_here("fold", tmp_path / "net.pt", "--norm", "by-names", "--eps", "1e-3")
    assert (said.returncode, said.stdout) == (2, "")
    assert "no _metadata in it names the modules in their order" in said.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]


def test_a_checkpoint_without_such_norms_is_left_as_it_is() -> None:
    state = nn.Conv2d(3, 4, 3).state_dict()
    assert list(fold_state_dict(state, norm="by-names", eps=1e-5)) == list(state)


#: Options that lack something, or do not go together, and words of the error.
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no eps": ({"norm": "by-names"}, "norm=… needs eps=…"),
    "no eps of a pair": ({"norm": "bn1=conv1"}, "norm=… needs eps=…"),
    "an eps below 0": ({"norm": "by-names", "eps": -1e-5}, "an eps of -1e-05 is none"),
    "an eps that is none": ({"norm": "by-names", "eps": float("nan")}, "an eps of nan is none"),
    "an eps alone": ({"eps": 1e-5}, "eps=… belongs to norm=…"),
    "no std": ({"standardize": "*", "eps_at": "var", "eps": 1e-5}, "standardize=… needs std=…"),
    "no eps_at": ({"standardize": "*", "std": "biased", "eps": 1e-5}, "standardize=… needs eps_at=…"),
    "no eps of a formula": (
        {"standardize": "*", "std": "biased", "eps_at": "var"},
        "standardize=… needs eps=…",
    ),
    "another std": ({"standardize": "*", "std": "sample", "eps_at": "var", "eps": 1}, "there is no std"),
    "another eps_at": ({"standardize": "*", "std": "biased", "eps_at": "in", "eps": 1}, "there is no eps_at"),
    "a scale that is none": (
        {"standardize": "*", "std": "biased", "eps_at": "var", "eps": 1, "scale": "2/3"},
        "a scale of '2/3' is none",
    ),
    "both": ({"norm": "by-names", "standardize": "*", "eps": 1}, "cannot be said together"),
    "names and pairs": ({"norm": ["by-names", "bn1=conv1"], "eps": 1}, "cannot be said together"),
    "a recipe too": (
        {"norm": "by-names", "eps": 1, "recipe": "fixtures/normed.toml"},
        "have no place beside it",
    ),
    "a std of a norm": ({"norm": "by-names", "eps": 1, "std": "biased"}, "std=… belongs to standardize=…"),
    "no pair": ({"norm": "bn1", "eps": 1}, "'bn1' gives no norm to a layer"),
    "half a pair": ({"norm": "=conv1", "eps": 1}, "gives no norm to a layer"),
    "another op": ({"norm": "bn1=conv1:pool", "eps": 1}, "gives no norm to a layer"),
    "groups that are none": ({"norm": "bn1=conv1:conv:x", "eps": 1}, "gives no norm to a layer"),
    "more": ({"norm": "bn1=conv1:conv:1:1", "eps": 1}, "gives no norm to a layer"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_missing_or_does_not_go_together_is_named(name: str) -> None:
    options, words = WRONG[name]
    with pytest.raises(ArgumentError) as error:
        fold_state_dict(network().state_dict(), **options)
    assert words in str(error.value)
    assert error.value.fix


@pytest.mark.parametrize(
    ("said", "words"),
    [("bn1=conv9", "it does not have conv9.weight"), ("bn9=conv1", "it does not have bn9.running_mean")],
)
def test_a_name_that_is_not_there_is_said(said: str, words: str) -> None:
    with pytest.raises(LayerError) as error:
        fold_state_dict(network().state_dict(), norm=said, eps=EPS)
    assert words in str(error.value)


def test_a_pair_whose_sizes_do_not_fit_is_refused() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(6))
    with pytest.raises(LayerError, match="does not fit"):
        fold_state_dict(module.state_dict(), norm="1=0", eps=EPS)


def test_an_onnx_model_takes_none_of_it() -> None:
    with pytest.raises(ArgumentError, match="--norm tells what the keys of a checkpoint do not"):
        fold_file("fixtures/tcn.onnx", norm="by-names", eps=1e-5, dry_run=True)
