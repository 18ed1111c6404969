"""Health: what is wrong in any float tensor is named, what was not looked at is said. Elements counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from tests.helpers.golden import FIXTURES
from tests.helpers.live_models import norm
from tests.helpers.tool import run_here
from wnconvert.numerics.finite import count_nonfinite, may_be_nonfinite
from wnconvert.tensors.dtypes import DTYPES, dtype_named
from wnconvert.verbs.inspection.inspect import inspect_file, inspect_state_dict
from wnconvert.verbs.modules.inspect import inspect_module

NAN, INF = float("nan"), float("inf")


def net() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(norm(nn.Conv1d(2, 3, 3), "legacy"), nn.BatchNorm1d(3), nn.Linear(3, 2))


def state(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(net().state_dict()) | {name.replace("__", "."): value for name, value in changes.items()}


def faults(found: dict[str, Any]) -> list[str]:
    health = inspect_state_dict(found, full=True).health
    assert health is not None
    assert bool(health) is not bool(health.faults)
    return [str(fault) for fault in health.faults]


# -- what is wrong


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"0__bias": torch.tensor([0, NAN, NAN])}, ["0.bias has 2 NaN"]),
        ({"2__bias": torch.tensor([-INF, NAN])}, ["2.bias has 1 NaN and 1 infinity"]),
        ({"1__running_var": torch.tensor([1, INF, INF])}, ["1.running_var has 2 infinities"]),
        ({"1__running_mean": torch.tensor([-INF, 0, 0]).half()}, ["1.running_mean has 1 infinity"]),
        ({"2__weight": torch.full((2, 3), NAN).bfloat16()}, ["2.weight has 6 NaN"]),
        ({"0__weight_g": torch.tensor([[[1.0]], [[NAN]], [[1]]])}, ["0.weight_g has 1 NaN"]),
        ({"scale": torch.tensor(INF, dtype=torch.float64)}, ["scale has 1 infinity"]),
        ({"z": torch.tensor([complex(NAN, INF), complex(0, INF)])}, ["z has 1 NaN and 1 infinity"]),
        ({"gone__weight_v": torch.ones(3, 2)}, ["gone.weight_v stands without its other half"]),
        ({"x__weight": torch.empty(0)}, ["x.weight is empty"]),
        ({"x__ids": torch.empty(0, 3, dtype=torch.int64)}, ["x.ids is empty"]),
        # What goes on being healthy: numbers at the end of a range, zeros, extra state without a byte.
        ({"2__bias": torch.tensor([3.4e38, 1e-45])}, []),
        ({"2__weight": torch.zeros(2, 3)}, []),
        ({"2___extra_state": torch.empty(0, dtype=torch.uint8)}, []),
        ({"ids": torch.full((3,), -1)}, []),
    ],
)
def test_each_fault_is_named_with_its_count(changes: dict[str, torch.Tensor], said: list[str]) -> None:
    assert faults(state(**changes)) == said


def test_zero_rows_are_faults_of_v_alone() -> None:
    v = torch.ones(3, 2, 3)
    v[1] = 0
    assert faults(state(**{"0__weight_v": v})) == ["0.weight has 1 zero row in v"]


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "bfloat16", "float16", "float64"])
def test_every_float_dtype_of_a_file_is_read(dtype: str, suffix: str, tmp_path: Path) -> None:
    values = torch.tensor([1.0, NAN, 2.0, NAN]).to(getattr(torch, dtype))
    for bad, tensor in ((False, values[::2].clone()), (True, values)):
        if suffix == "pt":
            torch.save({"x": tensor}, tmp_path / "x.pt")
        else:
            safetensors.torch.save_file({"x": tensor}, tmp_path / "x.safetensors")
        health = inspect_file(tmp_path / f"x.{suffix}", full=True).health
        assert health is not None
        assert [(fault.name, fault.nan, fault.inf) for fault in health.faults] == [("x", 2, 0)] * bad
        assert (health.read, health.not_read) == (1, ())


def test_the_tensors_of_every_shape_and_stride_are_read_whole(tmp_path: Path) -> None:
    many = torch.zeros(600_000)  # several blocks
    many[[0, 299_999, -1]] = NAN
    base = torch.zeros(5, 6)
    base[0, 1] = INF
    torch.save({"a.x": many, "a.t": base.t(), "a.part": base[:, 1], "a.other": base[:, 2]}, tmp_path / "x.pt")
    health = inspect_file(tmp_path / "x.pt", full=True).health
    assert health is not None
    assert [str(fault) for fault in health.faults] == [
        "a.x has 3 NaN",
        "a.t has 1 infinity",
        "a.part has 1 infinity",
    ]


def test_a_layer_that_is_read_for_its_magnitudes_is_counted_once() -> None:
    g, v = torch.ones(4, 1), torch.ones(4, 300_000)
    v[:, 7] = NAN
    v[2, -1] = INF
    assert faults({"a.weight_g": g, "a.weight_v": v}) == ["a.weight_v has 4 NaN and 1 infinity"]
    assert faults({"a.weight_g": g, "a.weight_v": v, "b.weight_g": g, "b.weight_v": v}) == [
        "a.weight_v has 4 NaN and 1 infinity",
        "b.weight_v has 4 NaN and 1 infinity",
    ]


@pytest.mark.parametrize("name", DTYPES)
def test_counts_of_raw_elements_are_those_of_the_dtype(name: str) -> None:
    dtype = dtype_named(name)
    if not may_be_nonfinite(dtype):
        assert "float" not in name or "float4" in name or "float6" in name
        return
    if name.startswith("complex"):
        part = {"complex32": np.float16, "complex64": np.float32, "complex128": np.float64}[name]
        raw = np.array([1, 0, np.nan, 0, 1, 2], part).view(np.dtype(f"V{dtype.itemsize}"))
    elif dtype.is_float8:
        raw = np.array([1.0, np.nan, 2.0]).astype(getattr(ml_dtypes, name)).view(np.dtype("V1"))
    else:
        raw = np.array([1.0, np.nan, 2.0]).astype(dtype.numpy())
    assert count_nonfinite(raw, dtype) == (1, 0)
    assert count_nonfinite(raw[:1], dtype) == (0, 0)


# -- what was not looked at


def test_what_was_not_looked_at_is_said(tmp_path: Path) -> None:
    model = net()
    checkpoint = {
        "model": state(q=torch.ones(2).to_sparse()),
        "optimizer": torch.optim.SGD(model.parameters(), momentum=0.9).state_dict(),
        "shadow": [torch.ones(2)],
        "epoch": 3,
        "name": "run",
    }
    torch.save(checkpoint, tmp_path / "x.pt")
    found = inspect_file(tmp_path / "x.pt", full=True).health
    assert found is not None
    assert (bool(found), found.read) == (True, 9)
    assert found.not_read == (
        "model: q, quantized, sparse or on the meta device",
        "optimizer, shadow, beside the state dicts",
    )
    some = inspect_file(tmp_path / "x.pt", full=True, layers=["0.*"]).health
    assert some is not None
    assert (some.read, some.not_read[0]) == (3, "model: 6 float tensors that --layers leaves out")


def test_what_numpy_cannot_hold_in_memory_is_not_read_and_said() -> None:
    values = {
        "f8": torch.ones(2).to(torch.float8_e5m2),
        "meta": torch.ones(2, device="meta"),
        "x": torch.ones(1),
    }
    health = inspect_state_dict(values, full=True).health
    assert health is not None
    assert (health.read, health.not_read) == (1, ("f8, meta, which cannot be read",))


def test_without_full_nothing_more_is_read_but_empty_tensors_are_counted() -> None:
    found = inspect_state_dict(state(**{"x__weight": torch.empty(0), "2__bias": torch.tensor([NAN, 0])}))
    assert found.health is None
    assert found.notes == ("1 tensor without elements: x.weight",)
    assert found.to_dict()["health"] is None


# -- the command line


def test_check_exits_with_1_where_something_is_wrong_and_0_where_nothing_is(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "good.pt")
    torch.save(state(**{"1__running_var": torch.tensor([1, NAN, 1])}), tmp_path / "bad.pt")
    good, bad = (run_here("inspect", tmp_path / f"{name}.pt", "--check") for name in ("good", "bad"))
    assert (good.returncode, bad.returncode) == (0, 1)
    assert "health:       healthy: 9 float tensors read\n" in good.stdout
    assert (
        "health:       1 fault, 9 float tensors read\nhealth:       1.running_var has 1 NaN\n" in bad.stdout
    )
    assert run_here("inspect", tmp_path / "bad.pt", "--full").returncode == 0
    both = run_here("inspect", tmp_path / "good.pt", tmp_path / "bad.pt", "--check")
    assert both.returncode == 1
    assert f"{tmp_path / 'bad.pt'}: health: 1.running_var has 1 NaN\n" in both.stdout
    as_json = run_here("inspect", tmp_path / "bad.pt", "--check", "--format", "json")
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout)["health"] == {
        "faults": [
            {
                "kind": "nonfinite",
                "state_dict": "",
                "name": "1.running_var",
                "count": 0,
                "nan": 1,
                "inf": 0,
                "weight": "1.running_var",
            }
        ],
        "read": 9,
        "not_read": [],
    }


@pytest.mark.parametrize(
    ("name", "code"), [("half_pair", 1), ("zero_row", 1), ("hifigan", 0), ("float8", 0), ("misfit", 0)]
)
def test_the_fixtures_are_as_healthy_as_they_are_made(name: str, code: int) -> None:
    assert run_here("inspect", FIXTURES / f"{name}.safetensors", "--check").returncode == code


def test_an_onnx_model_is_checked_too() -> None:
    done = run_here("inspect", FIXTURES / "tcn.onnx", "--check")
    assert done.returncode == 0
    assert "healthy:" in done.stdout


def test_very_many_faults_are_listed_in_part(tmp_path: Path) -> None:
    torch.save({f"{at}.bias": torch.tensor([NAN]) for at in range(30)}, tmp_path / "x.pt")
    done = run_here("inspect", tmp_path / "x.pt", "--check")
    assert done.stdout.count("has 1 NaN") == 10
    assert "health:       and 20 more" in done.stdout


# -- elements counted


def test_tied_tensors_count_once_and_the_names_are_counted_apart(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False), nn.BatchNorm1d(7))
    model[1].weight = model[0].weight
    torch.save(model.state_dict(), tmp_path / "x.pt")
    own = sum(parameter.numel() for parameter in model.parameters())
    for found in (
        inspect_file(tmp_path / "x.pt"),
        inspect_state_dict(model.state_dict()),
        inspect_module(model),
    ):
        assert (found.parameters, found.parameters_by_name) == (own, own + 28)
        assert (found.dtypes, found.buffers) == ({"float32": own}, {"float32": 14, "int64": 1})
        assert (found.state_dicts[0].parameters, found.state_dicts[0].buffers) == (own, 15)
    done = run_here("inspect", tmp_path / "x.pt")
    assert "parameters:   42 (70 by name; float32 42)\n" in done.stdout
    assert "buffers:      15 (float32 14, int64 1)\n" in done.stdout


def test_what_is_not_tied_is_counted_as_ever(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3, 4), "b": torch.ones(3, 4)}, tmp_path / "x.pt")
    assert "parameters:   24 (float32 24)\n" in run_here("inspect", tmp_path / "x.pt").stdout


@pytest.mark.parametrize("in_memory", [False, True])
def test_views_that_overlap_count_each_element_once(in_memory: bool, tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    row, half = torch.ones(5), torch.zeros(8)
    values = {
        "base": base, "turned": base.t(), "rows": base[1:3], "column": base[:, 2],
        "wide": row.expand(3, 5), "apart": torch.ones(2), "even": half[::2], "odd": half[1::2],
    }  # fmt: skip
    torch.save(values, tmp_path / "x.pt")
    found = inspect_state_dict(values) if in_memory else inspect_file(tmp_path / "x.pt")
    assert found.parameters == 24 + 5 + 2 + 8
    assert found.parameters_by_name == sum(value.numel() for value in values.values())


def test_of_two_state_dicts_that_share_their_tensors_the_file_holds_one(tmp_path: Path) -> None:
    one = net().state_dict()
    torch.save({"model": one, "ema": dict(one)}, tmp_path / "x.pt")
    found = inspect_file(tmp_path / "x.pt")
    assert found.parameters_by_name == 2 * found.parameters
    assert [item.parameters for item in found.state_dicts] == [found.parameters] * 2


def test_a_module_says_which_of_its_tensors_are_buffers(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("window", torch.ones(9))
    assert inspect_module(model).buffers == {"float32": 9}
    torch.save(model, tmp_path / "module.pt")
    assert inspect_file(tmp_path / "module.pt").buffers == {"float32": 9}
    assert inspect_state_dict(model.state_dict()).buffers == {}  # whose names do not say it
