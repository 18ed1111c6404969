"""Norms folded by a recipe: what a file and a state dict hold then, beside the module itself."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tests.helpers.golden import FIXTURES
from tests.helpers.states import same
from tests.helpers.tool import run_here
from wnconvert import (
    ArgumentError,
    InputError,
    LayerError,
    Recipe,
    RecipeFold,
    WnconvertError,
    fold_file,
    fold_state_dict,
    read_recipe,
    write_recipe,
)

State = dict[str, Tensor]


class Net(nn.Module):
    """A convolution with a norm behind it, a grouped transposed one, and a linear layer behind a view."""

    def __init__(self, *, affine: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.bn = nn.BatchNorm2d(8, eps=1e-3, affine=affine)
        self.up = nn.ConvTranspose2d(8, 6, 3, groups=2)
        self.upnorm = nn.BatchNorm2d(6, affine=affine)
        self.fc = nn.Linear(6, 4)
        self.last = nn.BatchNorm1d(4, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = self.upnorm(self.up(self.bn(self.conv(x)).relu()))
        made: Tensor = self.last(self.fc(x.mean((2, 3))))
        return made


RECIPE = Recipe(
    (
        RecipeFold("norm behind", "conv.weight", "bn", eps=1e-3),
        RecipeFold("norm behind", "up.weight", "upnorm", "conv_transpose", 2, eps=1e-5),
        RecipeFold("norm behind", "fc.weight", "last", "linear", eps=1e-5),
    ),
    "tests:Net, traced",
)
NORMS = ("bn", "upnorm", "last")


def trained(net: nn.Module, seed: int = 0) -> nn.Module:
    """A module whose norms are not those of a new one."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.1, 3)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return net.eval()


def without_norms(net: Net) -> Net:
    """The module that the folded state dict is of."""
    made = copy.deepcopy(net)
    made.conv = nn.Conv2d(3, 8, 3)
    for norm in NORMS:
        setattr(made, norm, nn.Identity())
    return made


@pytest.fixture
def net() -> Net:
    module = trained(Net())
    assert isinstance(module, Net)
    return module


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_recipe(RECIPE, tmp_path / "net.toml")
    return tmp_path / "net.toml"


# -- what is made


def test_the_folded_module_computes_the_same(net: Net) -> None:
    folded = fold_state_dict(net.state_dict(), recipe=RECIPE)
    x = torch.randn(5, 3, 7, 7, dtype=torch.float64)
    plain = without_norms(net)
    plain.load_state_dict(folded)  # strict
    # The module's own weights are float32; in float64 only the rounding of the fold is left.
    torch.testing.assert_close(plain.double()(x), net.double()(x), rtol=1e-5, atol=1e-5)


def test_another_eps_is_seen(net: Net) -> None:
    """What the test above would not notice it could not judge."""
    wrong = Recipe((RecipeFold("norm behind", "conv.weight", "bn", eps=2e-3), *RECIPE.folds[1:]))
    right, other = (fold_state_dict(net.state_dict(), recipe=each) for each in (RECIPE, wrong))
    assert (right["conv.weight"] - other["conv.weight"]).abs().max() > 1e-5


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_goes_away_and_the_layer_has_a_bias_behind_its_weight(affine: bool) -> None:
    state = trained(Net(affine=affine)).state_dict()
    folded = fold_state_dict(state, recipe=RECIPE)
    names = ["conv.weight", "conv.bias", "up.weight", "up.bias", "fc.weight", "fc.bias"]
    assert list(folded) == names
    assert list(folded._metadata) == ["", "conv", "up", "fc"]  # type: ignore[attr-defined]
    assert list(state._metadata) == ["", "conv", "bn", "up", "upnorm", "fc", "last"]  # type: ignore[attr-defined]


def test_what_else_a_module_of_a_norm_holds_stays(net: Net) -> None:
    state = net.state_dict()
    state["bn.act.weight"] = torch.ones(1)
    folded = fold_state_dict(state, recipe=RECIPE)
    assert folded["bn.act.weight"] is state["bn.act.weight"]
    assert not {name for name in folded if name.startswith("bn.")} - {"bn.act.weight"}


def test_numbers_of_norms_that_are_kept_are_tensors_of_their_own(net: Net, tmp_path: Path) -> None:
    net.upnorm, net.up = nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 8, 3, groups=2)
    state = trained(net).state_dict()
    folds = (RECIPE.folds[0], RECIPE.folds[1])
    torch.save(state, tmp_path / "net.pt")
    fold_file(tmp_path / "net.pt", tmp_path / "kept.pt", recipe=Recipe(folds), keep_norms=True)
    kept = fold_state_dict(state, recipe=Recipe(folds), keep_norms=True)
    for made in (kept, torch.load(tmp_path / "kept.pt")):
        assert torch.equal(made["bn.running_mean"], made["upnorm.running_mean"])
        assert len({tensor.untyped_storage().data_ptr() for tensor in made.values()}) == len(state)


def test_a_prefix_is_said_where_another_state_dict_fits(net: Net, recipe: Path, tmp_path: Path) -> None:
    wrapped = {f"model.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": wrapped, "ema": net.state_dict()}, tmp_path / "net.ckpt")
    ended = run_here("fold", "net.ckpt", "--recipe", recipe, folder=tmp_path)
    assert ended.returncode == 0
    assert (
        "state_dict: the recipe does not fit, so its norms stay: its names have model. before" in ended.stderr
    )


def test_the_source_is_left_alone(net: Net) -> None:
    state = net.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    fold_state_dict(state, recipe=RECIPE)
    assert list(state) == list(before)
    assert all(same(state[name], before[name]) for name in before)


def of_numpy(state: State) -> dict[str, Any]:
    return {name: value.numpy() for name, value in state.items()}


WRITERS: dict[str, Callable[[State, Path], None]] = {
    "pt": lambda state, path: torch.save(OrderedDict(state), path),
    "safetensors": safetensors.torch.save_file,
    "npz": lambda state, path: np.savez(path, allow_pickle=False, **of_numpy(state)),
}


def read(path: Path) -> State:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    made: State = torch.load(path, weights_only=True)
    return made


@pytest.mark.parametrize("source", WRITERS)
@pytest.mark.parametrize("target", WRITERS)
def test_files_hold_what_a_state_dict_does(
    source: str, target: str, net: Net, recipe: Path, tmp_path: Path
) -> None:
    state, out = net.state_dict(), tmp_path / f"out.{target}"
    WRITERS[source](state, tmp_path / f"in.{source}")
    result = fold_file(tmp_path / f"in.{source}", out, recipe=recipe)
    expected, found = fold_state_dict(state, recipe=RECIPE), read(out)
    assert set(found) == set(expected)
    assert all(same(found[name], expected[name]) for name in expected)
    assert {(layer.norm, layer.grade) for layer in result.layers} == {(norm, "recipe") for norm in NORMS}


def test_a_torch_file_keeps_order_and_modules_as_the_state_dict_does(
    net: Net, recipe: Path, tmp_path: Path
) -> None:
    torch.save(net.state_dict(), tmp_path / "in.pt")
    fold_file(tmp_path / "in.pt", tmp_path / "out.pt", recipe=recipe)
    found, expected = torch.load(tmp_path / "out.pt"), fold_state_dict(net.state_dict(), recipe=RECIPE)
    assert list(found) == list(expected)
    assert found._metadata == expected._metadata  # type: ignore[attr-defined]


def test_conv_and_norm_may_lie_in_different_shards(net: Net, recipe: Path, tmp_path: Path) -> None:
    folder, state = tmp_path / "model", net.state_dict()
    folder.mkdir()
    files = {name: f"model-0000{1 + ('norm' in name or 'bn' in name)}-of-00002.safetensors" for name in state}
    for file in set(files.values()):
        part = {name: value for name, value in state.items() if files[name] == file}
        safetensors.torch.save_file(part, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    fold_file(folder, tmp_path / "out", recipe=recipe)
    expected = fold_state_dict(state, recipe=RECIPE)
    (made,) = (tmp_path / "out").glob("*.safetensors")
    found = read(made)
    assert set(found) == set(expected)
    assert all(same(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_and_biases_are_cast_in_one_rounding(dtype: str, net: Net) -> None:
    folded = fold_state_dict(net.state_dict(), recipe=RECIPE, dtype=dtype)
    assert {str(value.dtype) for value in folded.values()} == {f"torch.{dtype}"}
    whole = fold_state_dict(net.double().state_dict(), recipe=RECIPE)
    assert same(folded["conv.bias"], whole["conv.bias"].to(getattr(torch, dtype)))


def test_a_new_bias_has_the_dtype_of_its_weight_and_an_old_one_its_own(net: Net) -> None:
    state = net.state_dict()
    for name in ("conv.weight", "fc.weight"):
        state[name] = state[name].half()
    folded = fold_state_dict(state, recipe=RECIPE)
    assert folded["conv.bias"].dtype == torch.float16
    assert (folded["fc.weight"].dtype, folded["fc.bias"].dtype) == (torch.float16, torch.float32)


def test_an_affine_goes_on_and_its_norm_stays_neutral() -> None:
    torch.manual_seed(0)
    norm, query, key = nn.LayerNorm(6), nn.Linear(6, 5), nn.Linear(6, 4, bias=False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    net = nn.ModuleDict({"norm": norm, "query": query, "key": key})
    folds = (RecipeFold("affine before", f"{name}.weight", "norm", "linear") for name in ("query", "key"))
    folded = fold_state_dict(net.state_dict(), recipe=Recipe(tuple(folds)))
    assert folded["norm.weight"].tolist() == [1] * 6
    assert folded["norm.bias"].tolist() == [0] * 6
    x = torch.randn(3, 6)
    normed = nn.functional.layer_norm(x, (6,))
    for name, layer in (("query", query), ("key", key)):
        made = nn.functional.linear(normed, folded[f"{name}.weight"], folded[f"{name}.bias"])
        torch.testing.assert_close(made, layer(norm(x)))


def test_several_state_dicts_are_folded_where_the_recipe_fits(net: Net, recipe: Path, tmp_path: Path) -> None:
    average = trained(Net(), 1).state_dict()
    torch.save(
        {"model": net.state_dict(), "ema": average, "other": {"a.weight": torch.ones(3)}}, tmp_path / "in.pt"
    )
    result = fold_file(tmp_path / "in.pt", tmp_path / "out.pt", recipe=recipe)
    assert [layer.state_dict for layer in result.layers] == ["model"] * 3 + ["ema"] * 3
    made = torch.load(tmp_path / "out.pt", weights_only=True)
    for path, state in (("model", net.state_dict()), ("ema", average)):
        expected = fold_state_dict(state, recipe=RECIPE)
        assert all(same(made[path][name], expected[name]) for name in expected)
    assert list(made["other"]) == ["a.weight"]
    assert not [note for note in result.notes if "recipe" in note]


def test_a_state_dict_that_it_fits_in_part_is_left_whole_with_a_note(
    net: Net, recipe: Path, tmp_path: Path
) -> None:
    average = {name: value for name, value in net.state_dict().items() if "running" not in name}
    torch.save({"model": net.state_dict(), "ema": average}, tmp_path / "in.pt")
    result = fold_file(tmp_path / "in.pt", tmp_path / "out.pt", recipe=recipe)
    assert {layer.state_dict for layer in result.layers} == {"model"}
    assert list(torch.load(tmp_path / "out.pt", weights_only=True)["ema"]) == list(average)
    (note,) = (note for note in result.notes if "recipe" in note)
    assert note.startswith(
        "ema: the recipe does not fit, so its norms stay: bn, upnorm, last have no running"
    )


def test_optimizer_state_is_left_out(net: Net, recipe: Path, tmp_path: Path) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 3, 7, 7)).sum().backward()
    optimizer.step()
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "in.pt")
    result = fold_file(tmp_path / "in.pt", tmp_path / "out.pt", recipe=recipe)
    assert [left.path for left in result.plan.dropped] == ["optimizer"]


def test_new_names_are_given_before_the_recipe_is_read(net: Net, recipe: Path) -> None:
    wrapped = {f"module.{name}": value for name, value in net.state_dict().items()}
    with pytest.raises(LayerError, match=r"its names have module\. before those"):
        fold_state_dict(wrapped, recipe=RECIPE)
    assert set(fold_state_dict(wrapped, recipe=recipe, strip_prefix="module.")) == {
        f"{layer}.{part}" for layer in ("conv", "up", "fc") for part in ("weight", "bias")
    }


def test_the_record_says_what_is_gone(net: Net, recipe: Path, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "in.pt")
    fold_file(tmp_path / "in.pt", tmp_path / "out.pt", recipe=recipe)
    again = fold_file(tmp_path / "out.pt", dry_run=True)
    assert "3 layers folded before" in again.notes[-1]


# -- refused: nothing is written, and the reason is said


def refused(state: Any, tmp_path: Path, recipe: Recipe = RECIPE, **options: Any) -> WnconvertError:
    """The error of a fold that writes nothing."""
    torch.save(state, tmp_path / "in.pt")
    with pytest.raises(WnconvertError) as caught:
        fold_file(tmp_path / "in.pt", tmp_path / "out.pt", recipe=recipe, **options)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out.pt").exists()
    return caught.value


def test_a_file_of_another_model_is_refused(net: Net, tmp_path: Path) -> None:
    error = refused({"a.weight": torch.ones(3, 3)}, tmp_path)
    assert "the recipe does not fit: it does not have conv.weight, bn.running_mean" in str(error)
    state = net.state_dict()
    del state["upnorm.running_var"]
    assert "upnorm has no running statistics" in str(refused(state, tmp_path))


def test_channels_that_fit_no_axis_are_refused(net: Net, tmp_path: Path) -> None:
    state = net.state_dict()
    for part in ("weight", "bias", "running_mean", "running_var"):
        state[f"bn.{part}"] = torch.ones(5)
    error = refused(state, tmp_path)
    assert "layer conv.weight: bn.weight (5,) does not fit a weight (8, 3, 3, 3) of a conv behind it" in str(
        error
    )
    assert "--exclude 'conv.weight' leaves it as it is" in error.fix


@pytest.mark.parametrize("name", ["conv.weight", "bn.weight", "bn.running_var", "fc.bias"])
def test_a_tensor_that_has_another_name_too_is_refused(name: str, net: Net, tmp_path: Path) -> None:
    state = net.state_dict()
    state["shared"] = state[name]
    error = refused(state, tmp_path)
    assert f"{name} and shared are one tensor, and one number cannot be two" in str(error)


def test_views_of_one_storage_that_do_not_meet_are_not_tied(net: Net, tmp_path: Path) -> None:
    state = net.state_dict()
    flat = torch.cat([state["bn.weight"], torch.ones(3)])
    state["bn.weight"], state["rest"] = flat[:8], flat[8:]
    torch.save(state, tmp_path / "apart.pt")
    assert len(fold_file(tmp_path / "apart.pt", dry_run=True, recipe=RECIPE).layers) == 3
    state["rest"] = flat[7:]
    assert "bn.weight and rest are one tensor" in str(refused(state, tmp_path))


def test_a_whole_pickled_module_stays_what_it_is(net: Net, tmp_path: Path) -> None:
    error = refused(nn.Sequential(OrderedDict(net.named_children())), tmp_path)
    assert "a whole pickled module" in str(error)
    assert error.fix == "-o OUT.safetensors for its tensors alone"
    fold_file(tmp_path / "in.pt", tmp_path / "out.safetensors", recipe=RECIPE)
    assert set(read(tmp_path / "out.safetensors")) == set(fold_state_dict(net.state_dict(), recipe=RECIPE))


def test_a_recipe_is_not_for_graphs(recipe: Path) -> None:
    with pytest.raises(ArgumentError, match="this is an ONNX model") as caught:
        fold_file(FIXTURES / "tcn.onnx", dry_run=True, recipe=recipe)
    assert caught.value.fix == "leave it out: a graph is folded by what it computes"


def test_a_file_that_is_no_recipe_is_named(net: Net, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("schema = 2")
    with pytest.raises(ArgumentError, match=r"bad\.toml"):
        fold_state_dict(net.state_dict(), recipe=tmp_path / "bad.toml")
    with pytest.raises(InputError, match="the recipe cannot be read: No such file"):
        fold_state_dict(net.state_dict(), recipe=tmp_path / "none.toml")
    with pytest.raises(ArgumentError, match="not the name of a recipe"):
        fold_state_dict(net.state_dict(), recipe=3)  # type: ignore[arg-type]


# -- the command line


def test_the_command_says_which_norm_went_where(net: Net, recipe: Path, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "in.pt")
    done = run_here("fold", str(tmp_path / "in.pt"), "--recipe", str(recipe))
    assert "conv.weight  bn" in done.stdout
    assert "3 layers folded, 3 norms folded into them" in done.stdout
    assert set(read(tmp_path / "in.folded.pt")) == set(fold_state_dict(net.state_dict(), recipe=RECIPE))


def test_json_has_norm_and_grade(net: Net, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "in.pt")
    write_recipe(Recipe(RECIPE.folds), tmp_path / "said.toml")
    done = run_here("fold", str(tmp_path / "in.pt"), "--recipe", str(tmp_path / "said.toml"), "-n", "--json")
    (first, *_) = json.loads(done.stdout)["layers"]
    assert (first["norm"], first["grade"], first["unproven"], first["kind"]) == ("bn", "said", True, "norm")


def test_a_recipe_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_recipe(RECIPE, tmp_path / "net.toml")
    assert read_recipe(tmp_path / "net.toml") == RECIPE
    with pytest.raises(WnconvertError, match="exists"):
        write_recipe(Recipe(()), tmp_path / "net.toml")
    write_recipe(Recipe(()), tmp_path / "net.toml", force=True)
    assert read_recipe(tmp_path / "net.toml") == Recipe(())
    assert [path.name for path in tmp_path.iterdir()] == ["net.toml"]


# -- the same class


@pytest.mark.parametrize("affine", [True, False])
def test_kept_norms_load_strictly_into_the_same_class_and_compute_the_same(affine: bool) -> None:
    net = trained(Net(affine=affine))
    assert isinstance(net, Net)
    folds = RECIPE.folds if affine else RECIPE.folds[1:]  # its conv has no bias, and its norm none either
    folded = fold_state_dict(net.state_dict(), recipe=Recipe(folds), keep_norms=True)
    assert list(folded) == list(net.state_dict())
    assert folded._metadata == net.state_dict()._metadata  # type: ignore[attr-defined]
    kept = Net(affine=affine).eval()
    kept.load_state_dict(folded)  # strict
    x = torch.randn(5, 3, 7, 7)
    torch.testing.assert_close(kept(x), net(x), rtol=1e-4, atol=1e-5)


def test_a_kept_norm_adds_the_bias_that_the_layer_would_have_and_changes_no_bit_else(net: Net) -> None:
    plain = fold_state_dict(net.state_dict(), recipe=RECIPE)
    kept = fold_state_dict(net.state_dict(), recipe=RECIPE, keep_norms=True)
    for layer, norm in (("conv", "bn"), ("up", "upnorm"), ("fc", "last")):
        assert same(kept[f"{layer}.weight"], plain[f"{layer}.weight"])
        assert same(kept[f"{norm}.bias"], plain[f"{layer}.bias"])
        assert kept[f"{norm}.weight"].unique().tolist() == [1]
        assert kept[f"{norm}.running_mean"].unique().tolist() == [0]
        assert torch.equal(kept[f"{norm}.num_batches_tracked"], getattr(net, norm).num_batches_tracked)
    assert kept["up.bias"].unique().tolist() == [0]
    neutral = Net().eval()
    neutral.load_state_dict(kept)
    with torch.no_grad():
        neutral.bn.bias.zero_()
        x = torch.randn(4, 8, 5, 5)
        assert torch.equal(neutral.bn(x), x)


def test_without_any_bias_a_norm_cannot_be_kept(tmp_path: Path) -> None:
    error = refused(trained(Net(affine=False)).state_dict(), tmp_path, keep_norms=True)
    assert "layer conv.weight: neither it nor bn has a bias, so --keep-norms has no place for one" in str(
        error
    )
    assert error.fix.startswith("without --keep-norms")


def test_a_standardizing_class_cannot_be_kept(net: Net, tmp_path: Path) -> None:
    own = RecipeFold("standardize", "fc.weight", eps=1e-5)
    error = refused(net.state_dict(), tmp_path, Recipe((*RECIPE.folds, own)), keep_norms=True)
    assert "layer fc.weight: its class would compute its weight (standardize) once more" in str(error)


def test_where_no_variance_is_neutral_a_norm_cannot_be_kept(net: Net, tmp_path: Path) -> None:
    error = refused(net.bfloat16().state_dict(), tmp_path, keep_norms=True)
    assert "no bfloat16 plus the eps 0.001 of bn is 1, so --keep-norms cannot keep it neutral" in str(error)


def test_keeping_norms_needs_something_that_folds_them(net: Net) -> None:
    with pytest.raises(ArgumentError, match="nothing tells of any"):
        fold_state_dict(net.state_dict(), keep_norms=True)


def test_a_norm_before_is_kept_where_the_layer_has_a_bias() -> None:
    net = trained(nn.Sequential(OrderedDict(norm=nn.BatchNorm1d(6), fc=nn.Linear(6, 4))))
    recipe = Recipe((RecipeFold("norm before", "fc.weight", "norm", "linear", eps=1e-5),))
    kept = copy.deepcopy(net)
    kept.load_state_dict(fold_state_dict(net.state_dict(), recipe=recipe, keep_norms=True))
    x = torch.randn(5, 6)
    torch.testing.assert_close(kept(x), net(x))
    assert not torch.equal(kept.state_dict()["fc.weight"], net.state_dict()["fc.weight"])


# -- upon other kinds, in one rounding


def tcn() -> nn.Module:
    """A convolution with weight norm, a transposed one with spectral norm, a pruned linear layer."""
    torch.manual_seed(0)
    pruned = nn.Linear(6, 4)
    prune.random_unstructured(pruned, "weight", amount=0.3)  # type: ignore[no-untyped-call]
    net = nn.Sequential(
        OrderedDict(
            conv=weight_norm(nn.Conv1d(3, 8, 3)),
            bn=nn.BatchNorm1d(8),
            up=spectral_norm(nn.ConvTranspose1d(8, 6, 2, groups=2), dim=1),
            upnorm=nn.BatchNorm1d(6),
            pool=nn.AdaptiveAvgPool1d(1),
            flat=nn.Flatten(),
            fc=pruned,
            last=nn.BatchNorm1d(4),
        )
    )
    return trained(net)


STACKED = Recipe(
    (
        RecipeFold("norm behind", "conv.weight", "bn", eps=1e-5),
        RecipeFold("norm behind", "up.weight", "upnorm", "conv_transpose", 2, eps=1e-5),
        RecipeFold("norm behind", "fc.weight", "last", "linear", eps=1e-5),
    )
)


def test_norms_fold_upon_weight_norm_spectral_norm_and_prune() -> None:
    net = tcn()
    folded = fold_state_dict(net.state_dict(), recipe=STACKED, kinds="all")
    assert set(folded) == {f"{layer}.{part}" for layer in ("conv", "up", "fc") for part in ("weight", "bias")}
    plain = nn.Sequential(
        OrderedDict(
            conv=nn.Conv1d(3, 8, 3),
            up=nn.ConvTranspose1d(8, 6, 2, groups=2),
            pool=nn.AdaptiveAvgPool1d(1),
            flat=nn.Flatten(),
            fc=nn.Linear(6, 4),
        )
    ).eval()
    plain.load_state_dict(folded)
    x = torch.randn(5, 3, 9)
    torch.testing.assert_close(plain(x), net(x), rtol=1e-4, atol=1e-5)


def test_a_stack_is_rounded_once() -> None:
    """In float64 the same stack has 29 digits more: cast, it must be the bits that float32 has."""
    state = tcn().state_dict()
    wide = {name: value.double() if value.is_floating_point() else value for name, value in state.items()}
    folded = fold_state_dict(state, recipe=STACKED, kinds="all")
    exact = fold_state_dict(wide, recipe=STACKED, kinds="all")
    assert all(same(value, exact[name].float()) for name, value in folded.items())
    first = fold_state_dict(state, kinds="all")
    twice = fold_state_dict(first, recipe=STACKED)
    assert not all(same(twice[name], value) for name, value in folded.items())


def test_a_stack_says_all_of_its_kinds(tmp_path: Path) -> None:
    torch.save(tcn().state_dict(), tmp_path / "in.pt")
    plan = fold_file(tmp_path / "in.pt", dry_run=True, recipe=STACKED, kinds="all")
    assert [layer.kind for layer in plan.layers] == ["weight+norm", "spectral+norm", "prune+norm"]
    with pytest.raises(LayerError, match="its keys show spectral beneath"):
        fold_file(tmp_path / "in.pt", dry_run=True, recipe=STACKED)


@pytest.mark.parametrize("container", WRITERS)
def test_the_output_is_verified(container: str, net: Net, recipe: Path, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "in.pt")
    for keep in (False, True):
        out = tmp_path / f"{keep}.{container}"
        result = fold_file(tmp_path / "in.pt", out, recipe=recipe, keep_norms=keep, verify=True)
        assert result.verified


def test_a_norm_that_was_never_trained_is_told(net: Net, recipe: Path, tmp_path: Path) -> None:
    state = net.state_dict()
    state["bn.num_batches_tracked"].fill_(100)
    state["upnorm.num_batches_tracked"].fill_(1)
    torch.save(state, tmp_path / "in.pt")
    result = fold_file(tmp_path / "in.pt", tmp_path / "out.pt", recipe=recipe)
    (note,) = (note for note in result.notes if "batch" in note)
    assert note.startswith("fc.bias: the norm has seen no batch")


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_stacks_are_verified(dtype: str | None, tmp_path: Path) -> None:
    torch.save(tcn().state_dict(), tmp_path / "in.pt")
    out = tmp_path / "out.pt"
    assert fold_file(tmp_path / "in.pt", out, recipe=STACKED, kinds="all", dtype=dtype, verify=True).verified


def test_affines_are_verified(tmp_path: Path) -> None:
    out = tmp_path / "out.pt"
    assert fold_file(FIXTURES / "normed.pt", out, recipe=FIXTURES / "normed.toml", verify=True).verified
