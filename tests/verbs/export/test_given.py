"""Exports of models that take lengths and scales of noise, and proofs on the user's own data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.helpers.live_models import norm
from wnconvert import check_onnx, export_onnx
from wnconvert.errors import InputError

IDS = "ids=int64[1,L]<30"
LENGTHS = "lengths=int64[1]=L"
SILENT = "scales=float32[3]=0,1,0"


class Speaks(nn.Module):
    """As a VITS has it: ids, their number, and scales of noise, of length and of noise of durations."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(30, 8)
        self.enc = norm(nn.Conv1d(8, 8, 3, padding=1))
        self.dec = norm(nn.ConvTranspose1d(8, 1, 4, 2, padding=1))

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        mask = torch.arange(ids.shape[1])[None, None] < lengths[:, None, None]
        x = self.enc(self.emb(ids).transpose(1, 2)) * mask
        x = x + torch.randn_like(x) * scales[0]
        wave: torch.Tensor = self.dec(x * scales[1])
        return wave.tanh()


@pytest.fixture(scope="module")
def speaks() -> nn.Module:
    torch.manual_seed(3)
    return Speaks()


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory, speaks: nn.Module) -> Path:
    path = tmp_path_factory.mktemp("spoken") / "m.onnx"
    inputs = [IDS, LENGTHS, SILENT]
    report = export_onnx(speaks, path, inputs=inputs, ranges=["L=4..20"], exporter="torchscript")
    assert report
    assert [sample.sizes["L"] for sample in report.proof.samples][:2] == [4, 20]
    assert any("scales: 0.0,1.0,0.0 on all samples" in note for note in report.notes)
    return path


def test_a_model_whose_noise_is_scaled_by_0_is_proven_and_one_whose_is_not_refused(
    spoken: Path, speaks: nn.Module
) -> None:
    with pytest.raises(InputError, match="stochastic"):
        check_onnx(spoken, speaks, inputs=[IDS, LENGTHS, "scales=float32[3]=1,1,0"], ranges=["L=4..20"])


def test_a_model_that_differs_on_the_users_data_alone_is_different(
    spoken: Path, speaks: nn.Module, tmp_path: Path
) -> None:
    inputs, ranges = [IDS, LENGTHS, SILENT], ["L=4..20"]
    proto = onnx.load(str(spoken))
    (table,) = (each for each in proto.graph.initializer if each.name == "emb.weight")
    changed = onnx.numpy_helper.to_array(table).copy()
    changed[29] += 1
    table.CopyFrom(onnx.numpy_helper.from_array(changed, "emb.weight"))
    onnx.save(proto, str(tmp_path / "bad.onnx"))
    np.savez(tmp_path / "own.npz", ids=np.full((1, 7), 29))
    low = ["ids=int64[1,L]<20", *inputs[1:]]  # what is drawn does not reach it
    assert check_onnx(tmp_path / "bad.onnx", speaks, inputs=low, ranges=ranges)
    report = check_onnx(tmp_path / "bad.onnx", speaks, inputs=low, ranges=ranges, data=[tmp_path / "own.npz"])
    assert not report
    assert report.outputs[0].worst is not None
    assert report.outputs[0].worst.source == str(tmp_path / "own.npz")
    assert report.to_dict()["samples"][-1]["source"] == str(tmp_path / "own.npz")
    assert check_onnx(spoken, speaks, inputs=low, ranges=ranges, data=[{"ids": torch.full((1, 7), 29)}])
