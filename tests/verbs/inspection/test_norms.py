"""Norms in an inspection: of how many names tell the layer, and what their numbers show."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from tests.helpers.tool import run_here as run
from wnconvert import inspect_file, inspect_state_dict
from wnconvert.reports.text.inspections import inspection_text
from wnconvert.verbs.inspection.result import NormSummary


def network() -> nn.Module:
    """Three batch norms: one behind an activation, one with odd channels, one that was never trained."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv1"], parts["bn1"] = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    parts["relu"], parts["bn2"] = nn.ReLU(), nn.BatchNorm2d(4, affine=False)
    parts["conv3"], parts["bn3"] = nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)
    module = nn.Sequential(parts)
    for name, batches in (("bn1", 7), ("bn2", 7), ("bn3", 0)):
        module.get_submodule(name).num_batches_tracked.fill_(batches)  # type: ignore[operator]
    with torch.no_grad():
        module.get_parameter("bn1.weight").copy_(torch.tensor([0.0, -1, -2, 3]))
        module.get_buffer("bn1.running_var").copy_(torch.tensor([0.0, 1e-13, 1e-11, 1]))
    return module


EXPECTED = (
    NormSummary("", "bn1", 4, dead=2, zero_gains=1, negative_gains=2, batches=7),
    NormSummary("", "bn2", 4, dead=0, zero_gains=None, negative_gains=None, batches=7),
    NormSummary("", "bn3", 2, dead=0, zero_gains=0, negative_gains=0, batches=0),
)


def test_it_says_of_how_many_norms_names_tell_the_layer(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(network().state_dict(), path)
    found = inspect_file(path)
    assert [(kind.kind, kind.count, kind.told) for kind in found.kinds] == [("batch norm", 3, 2)]
    assert "; --norm by-names --eps E tells 2 of 3, or --recipe" in inspection_text(found)


def test_without_metadata_it_says_that_names_tell_none(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(network().state_dict(), path)
    assert "--norm by-names --eps E tells 0 of 3, or --recipe" in run("inspect", str(path)).stdout


def test_norms_without_statistics_are_none_that_names_could_tell() -> None:
    found = inspect_state_dict(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)).state_dict())
    assert [(kind.kind, kind.told) for kind in found.kinds] == [("affine norm", None)]
    assert "by-names" not in inspection_text(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_full_inspection_counts_dead_channels_gains_and_batches(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "net.pt"
    module = network().to(dtype)
    torch.save(module.state_dict(), path)
    for found in (inspect_file(path, full=True), inspect_state_dict(module.state_dict(), full=True)):
        assert found.norms == EXPECTED
    assert inspect_file(path).norms is None


def test_the_numbers_are_told_in_words_and_in_json(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(network().state_dict(), path)
    text = run("inspect", str(path), "--full").stdout
    assert (
        "norms:        10 channels in 3 norms; 2 dead (variance below 1e-12) in bn1; 1 with γ = 0 in bn1; "
        "2 with γ < 0 in bn1\n"
    ) in text
    assert "norms:        never trained, by their batches: bn3\n" in text
    data = json.loads(run("inspect", str(path), "--full", "--json").stdout)
    assert [norm["dead"] for norm in data["norms"]] == [2, 0, 0]
    assert data["kinds"][0]["told"] == 2


def test_only_the_norms_that_are_wanted_are_read() -> None:
    found = inspect_state_dict(network().state_dict(), full=True, layers=["bn3.*"])
    assert found.norms == EXPECTED[2:]


def test_statistics_that_are_no_floats_are_not_counted() -> None:
    values = {"bn.running_mean": np.zeros(2, np.int64), "bn.running_var": np.zeros(2, np.int64)}
    assert inspect_state_dict(values, full=True).norms == ()


def test_norms_on_the_meta_device_are_not_counted() -> None:
    assert inspect_state_dict(network().to("meta").state_dict(), full=True).norms == ()
