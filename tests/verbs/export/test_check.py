"""An ONNX model held against a module: a weight that is off by 1 % is found, whatever node it feeds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.helpers.export_models import Noisy, scramble, speech, vocoder
from tests.helpers.live_models import norm
from wnconvert import check_onnx, export_onnx, fold_file
from wnconvert.errors import ArgumentError, FormatError, InputError, WnconvertError


class Mixed(nn.Module):
    """One of each kind of node that holds weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = norm(nn.Conv1d(4, 6, 3, padding=1))
        self.up = norm(nn.ConvTranspose1d(6, 4, 4, 2, 1))
        self.rnn = nn.LSTM(4, 5, batch_first=True)
        norm(self.rnn, name="weight_hh_l0")
        self.matmul = norm(nn.Linear(5, 6, bias=False), dim=None)
        self.gemm = norm(nn.Linear(6, 3))
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, _ = self.rnn(self.up(self.conv(mel)).transpose(1, 2))
        y = self.matmul(y)
        return y * self.scale, self.gemm(y.mean(1))


MEL = ["mel=float32[1,4,T]"]
RANGES = ["T=4..20"]


def mixed() -> nn.Module:
    torch.manual_seed(2)
    made = Mixed()
    scramble(made, 2)
    return made


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return mixed()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, model: nn.Module) -> Path:
    path = tmp_path_factory.mktemp("good") / "mixed.onnx"
    assert export_onnx(model, path, inputs=MEL, ranges=RANGES, exporter="torchscript")
    return path


def spoiled(good: Path, out: Path, name: str, factor: float = 1.01) -> Path:
    """The model with one weight off by 1 %."""
    proto = onnx.load(str(good))
    (tensor,) = (each for each in proto.graph.initializer if each.name == name)
    array = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(array, np.float32), name))
    onnx.save(proto, str(out))
    return out


def consumer(good: Path, name: str) -> str:
    return str(next(node.op_type for node in onnx.load(str(good)).graph.node if name in node.input))


def test_what_was_exported_is_equal(good: Path, model: nn.Module) -> None:
    report = check_onnx(good, model, inputs=MEL, ranges=RANGES)
    assert report
    assert (report.residual_weight_norm, report.exporter) == (0, None)
    assert [output.name for output in report.outputs] == ["output_0", "output_1"]


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("conv.weight", "Conv"),
        ("conv.bias", "Conv"),
        ("up.weight", "ConvTranspose"),
        ("up.bias", "ConvTranspose"),
        ("matmul.weight", "MatMul"),
        ("gemm.weight", "Gemm"),
        ("gemm.bias", "Gemm"),
        ("rnn.weight_ih_l0", "LSTM"),
        ("rnn.weight_hh_l0", "LSTM"),
        ("rnn.bias_ih_l0+bias_hh_l0", "LSTM"),
        ("scale", "Mul"),
    ],
)
def test_a_weight_that_is_off_by_1_percent_is_found(
    good: Path, model: nn.Module, tmp_path: Path, name: str, node: str
) -> None:
    assert consumer(good, name) == node
    report = check_onnx(spoiled(good, tmp_path / "bad.onnx", name), model, inputs=MEL, ranges=RANGES)
    assert not report
    worst = [output for output in report.outputs if not output.passed]
    assert worst
    assert all(output.worst is not None and output.needed_rtol for output in worst)
    assert "would have passed" in report.proof.advice


def test_a_tolerance_that_is_told_to_pass_does(good: Path, model: nn.Module, tmp_path: Path) -> None:
    bad = spoiled(good, tmp_path / "bad.onnx", "conv.weight")
    report = check_onnx(bad, model, inputs=MEL, ranges=RANGES)
    needed = report.proof.needed
    assert needed is not None
    assert needed.atol is not None
    assert check_onnx(bad, model, inputs=MEL, ranges=RANGES, atol=needed.atol * 1.001)


def test_a_graph_constant_that_is_off_is_found(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 0.7

    path = tmp_path / "m.onnx"
    assert export_onnx(Scaled(), path, inputs=["x=float32[3]"], exporter="torchscript")
    proto = onnx.load(str(path))
    (node,) = (each for each in proto.graph.node if each.op_type == "Constant")
    value = onnx.numpy_helper.to_array(node.attribute[0].t)
    node.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(value * np.asarray(1.01, value.dtype)))
    onnx.save(proto, str(path))
    assert not check_onnx(path, Scaled(), inputs=["x=float32[3]"])


def test_a_model_of_other_weights_or_another_shape_is_different(good: Path) -> None:
    torch.manual_seed(7)
    assert not check_onnx(good, Mixed(), inputs=MEL, ranges=RANGES)


def test_other_names_of_outputs_are_compared_in_their_order(
    good: Path, model: nn.Module, tmp_path: Path
) -> None:
    proto = onnx.load(str(good))
    proto.graph.node.append(onnx.helper.make_node("Identity", ["output_0"], ["audio"]))
    proto.graph.output[0].name = "audio"
    onnx.save(proto, str(tmp_path / "renamed.onnx"))
    report = check_onnx(tmp_path / "renamed.onnx", model, inputs=MEL, ranges=RANGES)
    assert report
    assert [output.name for output in report.outputs] == ["audio", "output_1"]
    wrong = check_onnx(
        tmp_path / "renamed.onnx", model, inputs=MEL, ranges=RANGES, outputs=["output_1", "audio"]
    )
    assert not wrong
    assert "outputs" in wrong.proof.mismatches[0]


def test_an_output_more_is_different(good: Path, model: nn.Module, tmp_path: Path) -> None:
    proto = onnx.load(str(good))
    del proto.graph.output[1]
    onnx.save(proto, str(tmp_path / "less.onnx"))
    report = check_onnx(tmp_path / "less.onnx", model, inputs=MEL, ranges=RANGES)
    assert not report
    assert report.proof.mismatches


@pytest.mark.parametrize("form", ["legacy", "parametrize"])
def test_weight_norm_that_is_left_is_counted_and_folding_the_file_takes_it_out(
    tmp_path: Path, form: str
) -> None:
    raw, model = tmp_path / "raw.onnx", vocoder(form).eval()
    options: dict[str, Any] = {"input_names": ["mel"], "dynamic_axes": {"mel": {2: "T"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.randn(1, 4, 9),), str(raw), dynamo=False, **options)
    left = check_onnx(raw, model, inputs=MEL, ranges=RANGES)
    assert left
    assert left.residual_weight_norm == 3
    fold_file(raw, tmp_path / "folded.onnx")
    folded = check_onnx(tmp_path / "folded.onnx", model, inputs=MEL, ranges=RANGES)
    assert folded
    assert folded.residual_weight_norm == 0


# -- what is refused


def refused(path: Path, model: nn.Module, inputs: list[str] = MEL) -> WnconvertError:
    with pytest.raises(WnconvertError) as caught:
        check_onnx(path, model, inputs=inputs, ranges=RANGES if "T" in "".join(inputs) else [])
    assert caught.value.exit_code == 2
    return caught.value


def write_checkpoint(path: Path) -> None:
    torch.save(vocoder().state_dict(), path)


def write_nothing(path: Path) -> None:
    del path


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (write_nothing, "no such file"),
        (lambda path: path.write_bytes(b""), "an empty file"),
        (lambda path: path.write_bytes(b"\x08\x07\x12\x04junk" * 9), ""),
        (write_checkpoint, "a checkpoint (torch zip), not an ONNX model"),
    ],
)
def test_what_is_no_onnx_model_is_told(
    tmp_path: Path, model: nn.Module, write: Callable[[Path], object], says: str
) -> None:
    path = tmp_path / "m.onnx"
    write(path)
    error = refused(path, model)
    assert says in str(error)
    assert "m.onnx" in str(error)


def test_a_model_that_is_cut_short_is_told(good: Path, model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(good.read_bytes()[:-200])
    assert isinstance(refused(tmp_path / "m.onnx", model), (FormatError, InputError))


def test_an_invalid_graph_is_told(good: Path, model: nn.Module, tmp_path: Path) -> None:
    proto = onnx.load(str(good))
    proto.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(proto, str(tmp_path / "m.onnx"))
    assert "NoSuchOperator" in str(refused(tmp_path / "m.onnx", model))


def test_external_data_that_is_missing_or_outside_is_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = norm(nn.Linear(64, 64))
    path = tmp_path / "m.onnx"
    inputs = ["input=float32[B,64]"]
    assert export_onnx(model, path, inputs=inputs, external_data=True, exporter="torchscript")
    (tmp_path / "m.onnx.data").rename(tmp_path / "away")
    assert "m.onnx.data" in str(refused(path, model, inputs))
    proto = onnx.load(str(path), load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../away" if entry.key == "location" else entry.value
    path.write_bytes(proto.SerializeToString())
    assert isinstance(refused(path, model, inputs), InputError)


def test_inputs_that_only_one_side_has_are_told(good: Path, model: nn.Module, tmp_path: Path) -> None:
    assert isinstance(refused(good, vocoder(), ["x=float32[1,4,T]"]), ArgumentError)
    assert isinstance(refused(good, speech(), MEL), ArgumentError)
    proto = onnx.load(str(good))
    for node in proto.graph.node:
        node.input[:] = ["sound" if name == "mel" else name for name in node.input]
    proto.graph.input[0].name = "sound"
    onnx.save(proto, str(tmp_path / "renamed.onnx"))
    error = refused(tmp_path / "renamed.onnx", model)
    assert "the input sound is missing" in str(error)


def test_a_stochastic_reference_is_refused(good: Path) -> None:
    assert "stochastic" in str(refused(good, Noisy(), ["x=float32[3,8]"]))
