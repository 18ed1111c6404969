"""PhysicsNeMo's ``WeightNormLinear``: its ``weight`` is v, and ``weight_g`` stands beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from tests.helpers.live_models import WeightNormLinear, new
from tests.helpers.runner import Runner, listing
from tests.helpers.states import State, folded64, load, same, ulps
from wnconvert import (
    compare_files,
    fold_file,
    fold_module,
    fold_state_dict,
    inspect_file,
    inspect_module,
    migrate_file,
    split_file,
)
from wnconvert.errors import LayerError
from wnconvert.verbs.shared.options import Form


def model() -> nn.Sequential:
    """A network of one input, as for an ordinary differential equation; its last layer is plain."""
    torch.manual_seed(0)
    return nn.Sequential(
        WeightNormLinear(1, 6), nn.SiLU(), WeightNormLinear(6, 5, bias=False), nn.SiLU(), nn.Linear(5, 2)
    )


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(1, 6), nn.SiLU(), nn.Linear(6, 5, bias=False), nn.SiLU(), nn.Linear(5, 2))


def saved(path: Path) -> State:
    state = model().state_dict()
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return state


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_it_folds_to_a_model_of_plain_layers_that_computes_the_same(suffix: str, tmp_path: Path) -> None:
    source, out = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    before = saved(source)
    result = fold_file(source, out, verify=True)
    assert [(row.name, row.form) for row in result.plan.layers] == [
        ("0.weight", "physicsnemo"),
        ("2.weight", "physicsnemo"),
    ]
    after = safetensors.torch.load_file(out) if suffix == ".safetensors" else load(out)
    for name in ("0", "2"):
        exact = folded64(before[f"{name}.weight_g"], before[f"{name}.weight"])
        assert ulps(after[f"{name}.weight"], exact) <= 1
    other = plain()
    other.load_state_dict(after)
    x = torch.randn(7, 1)
    assert torch.allclose(other(x), model()(x), atol=1e-5)
    assert compare_files(source, out)


def test_the_record_gives_the_pairs_back_in_their_order(tmp_path: Path) -> None:
    before = saved(tmp_path / "in.pt")
    fold_file(tmp_path / "in.pt", tmp_path / "folded.pt")
    split_file(tmp_path / "folded.pt", tmp_path / "split.pt", verify=True)
    after = load(tmp_path / "split.pt")
    assert list(after) == list(before)
    assert {name: each.shape for name, each in after.items()} == {
        name: each.shape for name, each in before.items()
    }
    fold_file(tmp_path / "split.pt", tmp_path / "again.pt")
    assert (tmp_path / "again.pt").read_bytes() == (tmp_path / "folded.pt").read_bytes()


def test_a_split_like_it_has_its_form_and_another_may_be_asked_for(tmp_path: Path) -> None:
    before = saved(tmp_path / "in.pt")
    torch.save(plain().state_dict(), tmp_path / "plain.pt")
    split_file(tmp_path / "plain.pt", tmp_path / "split.pt", like=tmp_path / "in.pt", verify=True)
    assert list(load(tmp_path / "split.pt")) == list(before)
    split_file(tmp_path / "plain.pt", tmp_path / "new.pt", like=tmp_path / "in.pt", to="parametrize")
    assert "0.parametrizations.weight.original0" in load(tmp_path / "new.pt")


@pytest.mark.parametrize("to", ["parametrize", "legacy"])
def test_it_migrates_to_torchs_forms_and_no_bit_changes(to: Form, tmp_path: Path) -> None:
    before = saved(tmp_path / "in.pt")
    result = migrate_file(tmp_path / "in.pt", tmp_path / "out.pt", to=to, verify=True)
    assert len(result.plan.layers) == 2
    after = load(tmp_path / "out.pt")
    g, v = (
        ("0.parametrizations.weight.original0", "0.parametrizations.weight.original1")
        if to == "parametrize"
        else ("0.weight_g", "0.weight_v")
    )
    assert same(after[g], before["0.weight_g"])
    assert same(after[v], before["0.weight"])
    if to == "parametrize":
        other = plain()
        new(other[0])
        new(other[2])
        other.load_state_dict(after)
        x = torch.randn(7, 1)
        assert torch.allclose(other(x), model()(x), atol=1e-5)
    assert compare_files(tmp_path / "in.pt", tmp_path / "out.pt")


def test_linear_layers_migrate_to_it_and_what_has_it_stays(tmp_path: Path, run: Runner) -> None:
    before = saved(tmp_path / "in.pt")
    ended = run("migrate", tmp_path / "in.pt", "--to", "physicsnemo")
    assert (ended.returncode, "2 in that form already" in ended.stdout) == (0, True)
    migrate_file(tmp_path / "in.pt", tmp_path / "new.pt", to="parametrize")
    migrate_file(tmp_path / "new.pt", tmp_path / "back.pt", to="physicsnemo", verify=True)
    after = load(tmp_path / "back.pt")
    assert list(after) == list(before)
    assert all(same(after[name], before[name]) for name in before)


def test_inspect_shows_its_layers_and_does_not_call_their_v_plain(tmp_path: Path, run: Runner) -> None:
    saved(tmp_path / "in.pt")
    found = inspect_file(tmp_path / "in.pt", full=True)
    assert [(row.name, row.form) for row in found.layers] == [
        ("0.weight", "physicsnemo"),
        ("2.weight", "physicsnemo"),
        ("4.weight", "plain"),
    ]
    assert found.fold == "would make 2 plain weights"
    assert "2 layers from physicsnemo to parametrize" in found.migrate
    ended = run("inspect", tmp_path / "in.pt")
    assert "physicsnemo" in ended.stdout


def test_a_state_dict_in_memory_folds_and_keeps_its_other_tensors() -> None:
    state = model().state_dict()
    folded = fold_state_dict(state)
    assert list(folded) == ["0.weight", "0.bias", "2.weight", "4.weight", "4.bias"]
    assert folded["4.weight"] is state["4.weight"]


def test_a_live_module_is_left_alone_and_named() -> None:
    module = model()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    layers = fold_module(module)
    assert (tuple(layers), set(layers.others)) == ((), {"0.weight", "2.weight"})
    assert all("WeightNormLinear" in kind for kind in layers.others.values())
    assert all(same(value, before[name]) for name, value in module.state_dict().items())
    assert [note for note in inspect_module(module).notes if "WeightNormLinear" in note]


def test_a_whole_pickled_module_is_refused_but_for_its_tensors(tmp_path: Path) -> None:
    torch.save(model(), tmp_path / "in.pt")
    before = listing(tmp_path)
    with pytest.raises(LayerError, match="a whole pickled module") as caught:
        fold_file(tmp_path / "in.pt", tmp_path / "out.pt")
    assert caught.value.fix == "-o OUT.safetensors for its tensors alone"
    assert listing(tmp_path) == before
    fold_file(tmp_path / "in.pt", tmp_path / "out.safetensors")
    assert "0.weight_g" not in safetensors.torch.load_file(tmp_path / "out.safetensors")


class Gated(nn.Module):
    """``weight_g`` is a gain here, and stands beside a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 2))
        self.weight_g = nn.Parameter(torch.randn(4, 1, 1))


def test_a_convolution_with_a_gain_is_kept_with_a_note(tmp_path: Path, run: Runner) -> None:
    state: dict[str, Any] = Gated().state_dict()
    torch.save(state, tmp_path / "in.pt")
    ended = run("fold", tmp_path / "in.pt", "-o", tmp_path / "out.pt", "--copy")
    assert ended.returncode == 0
    assert "weight_g and weight are not taken for weight norm: weight may be v, or the weight itself" in (
        ended.stderr
    )
    after = load(tmp_path / "out.pt")
    assert all(same(after[name], state[name]) for name in state)
    assert run("fold", tmp_path / "in.pt", "-o", tmp_path / "w.pt", "--layers", "weight").returncode == 0
    exact = folded64(state["weight_g"], state["weight"])
    assert ulps(load(tmp_path / "w.pt")["weight"], exact) <= 1
