"""Modules with spectral norm, prune and their stacks, exported and proven."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tests.helpers.export_models import by_exporter
from tests.helpers.live_kinds import conv, pruned, pruned_original, spectral
from tests.helpers.live_models import norm, portrait
from wnconvert import export_onnx, folded
from wnconvert.verbs.export.exporters import Exporter

INPUT = "input=float32[B,4,12,12]"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def model() -> Any:
    torch.manual_seed(9)
    made = nn.Sequential(
        spectral(conv()),
        spectral(nn.ConvTranspose2d(6, 6, 3), "parametrize"),
        nn.LeakyReLU(),
        pruned(nn.Conv2d(6, 4, 3)),
        pruned(norm(nn.Conv2d(4, 4, 1), "legacy"), "weight_v"),
        pruned_original(spectral(norm(nn.Conv2d(4, 4, 1)), "parametrize"), "original1"),
    )
    for _ in range(2):
        made(torch.randn(1, 4, 12, 12))
    return made.eval()


def initializers(path: Path) -> dict[str, Any]:
    stored = onnx.load(str(path)).graph.initializer
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in stored}


@by_exporter
def test_all_kinds_are_folded_in_a_copy_and_the_file_is_proven(exporter: Exporter, tmp_path: Path) -> None:
    module, out = model(), tmp_path / "m.onnx"
    module(torch.ones(1, 4, 12, 12))
    before = portrait(module)
    report = export_onnx(module, out, inputs=INPUT, exporter=exporter)
    assert report
    assert (report.folded_in_module, report.folded_in_graph) == (5, 0)
    assert portrait(module) == before
    plain = folded(module, kinds="all").state_dict()
    stored = initializers(out)
    assert stored.keys() == plain.keys()
    assert all((stored[name] == value.numpy()).all() for name, value in plain.items())


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_what_no_fold_knows_is_left_to_the_exporter_and_proven_too(tmp_path: Path) -> None:
    odd: Any = parametrize.register_parametrization(spectral(conv(), "parametrize"), "weight", Double())
    module = nn.Sequential(odd, spectral(nn.Conv2d(6, 2, 3)))
    module(torch.ones(1, 4, 12, 12))
    report = export_onnx(module, tmp_path / "m.onnx", inputs=INPUT, exporter="dynamo")
    assert report
    assert report.folded_in_module == 1
