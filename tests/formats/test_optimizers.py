"""Optimizer state that names its parameters is renamed with them, and read back by torch's own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from tests.helpers.live_models import legacy, new
from tests.helpers.states import load
from wnconvert import migrate_file
from wnconvert.verbs.shared.options import Form

MAKE = {"legacy": legacy, "parametrize": new}
OTHER: dict[Form, Form] = {"legacy": "parametrize", "parametrize": "legacy"}


def net(form: Form) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(MAKE[form](nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 1))


def trained(form: Form) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = net(form)
    optimizer = torch.optim.Adam(model.named_parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("form", MAKE)
def test_state_by_name_is_read_by_torch_into_the_model_of_the_other_form(form: Form, tmp_path: Path) -> None:
    model, optimizer = trained(form)
    states = get_state_dict(model, optimizer)
    torch.save(dict(zip(("model", "optimizer"), states, strict=True)), tmp_path / "in.pt")
    migrate_file(tmp_path / "in.pt", tmp_path / "out.pt", to=OTHER[form])
    found: dict[str, Any] = load(tmp_path / "out.pt")
    assert set(found["optimizer"]["state"]) == set(found["model"])
    other = net(OTHER[form])
    fresh = torch.optim.Adam(other.parameters())
    set_state_dict(other, fresh, model_state_dict=found["model"], optim_state_dict=found["optimizer"])
    for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert torch.equal(fresh.state[mine]["exp_avg"], optimizer.state[theirs]["exp_avg"])
    assert len(fresh.state) == 5


@pytest.mark.parametrize("form", MAKE)
def test_the_names_beside_state_by_position_follow_too(form: Form, tmp_path: Path) -> None:
    model, optimizer = trained(form)
    before = optimizer.state_dict()
    torch.save({"model": model.state_dict(), "optimizer": before}, tmp_path / "in.pt")
    migrate_file(tmp_path / "in.pt", tmp_path / "out.pt", to=OTHER[form])
    found = load(tmp_path / "out.pt")
    (group,) = found["optimizer"]["param_groups"]
    assert group["param_names"] == [name for name, _ in net(OTHER[form]).named_parameters()]
    assert group["params"] == before["param_groups"][0]["params"]
    assert list(found["optimizer"]["state"]) == list(before["state"])


def test_a_name_that_another_state_dict_keeps_is_left_alone(tmp_path: Path) -> None:
    model, optimizer = trained("legacy")
    state = {"a": model.state_dict(), "b": model.state_dict(), "optimizer": optimizer.state_dict()}
    state["b"]["0.weight_v"] = state["b"]["0.weight_v"][:, :0]  # there it is no layer
    del state["b"]["0.weight_g"]
    torch.save(state, tmp_path / "in.pt")
    migrate_file(tmp_path / "in.pt", tmp_path / "out.pt")
    (group,) = load(tmp_path / "out.pt")["optimizer"]["param_groups"]
    assert "0.weight_v" in group["param_names"]
    assert "0.parametrizations.weight.original1" not in group["param_names"]


@pytest.mark.parametrize("prefix", ["module.", "model._orig_mod."])
def test_names_of_a_wrapper_follow_with_their_prefix(prefix: str, tmp_path: Path) -> None:
    model, optimizer = trained("legacy")
    states: dict[str, Any] = dict(get_state_dict(model, optimizer)[1])
    wrapped = {
        "state": {prefix + name: value for name, value in states["state"].items()},
        "param_groups": [
            {**group, "params": [prefix + name for name in group["params"]]}
            for group in states["param_groups"]
        ],
    }
    torch.save({"model": model.state_dict(), "optimizer": wrapped}, tmp_path / "in.pt")
    migrate_file(tmp_path / "in.pt", tmp_path / "out.pt")
    found = load(tmp_path / "out.pt")
    assert set(found["optimizer"]["state"]) == {prefix + name for name in found["model"]}
    assert set(found["optimizer"]["param_groups"][0]["params"]) == {prefix + name for name in found["model"]}


def test_names_that_are_nobodys_stay(tmp_path: Path) -> None:
    model, _ = trained("legacy")
    odd = {"state": {"1.weight_g": 1, "other.0.weight_g": 2}, "param_groups": [{"params": ["x.0.weight_g"]}]}
    torch.save({"model": model.state_dict(), "optimizer": odd}, tmp_path / "in.pt")
    migrate_file(tmp_path / "in.pt", tmp_path / "out.pt")
    assert load(tmp_path / "out.pt")["optimizer"] == odd
