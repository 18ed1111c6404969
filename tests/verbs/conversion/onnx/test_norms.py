"""Batch norms of ONNX files: folded, proven in onnxruntime, and refused where only keys would tell."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from tests.helpers.states import output_of
from wnconvert import fold_file, fold_state_dict, inspect_file
from wnconvert.errors import ArgumentError, VerifyError
from wnconvert.layers.rules import NormBehind
from wnconvert.layers.schemes import Selection
from wnconvert.onnx.graph.plan import plan_onnx
from wnconvert.storage.checkpoint import open_checkpoint
from wnconvert.verbs.conversion.onnx.check import check_fold


class Net(nn.Module):
    """Each linear layer with a norm behind it, and one norm behind an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, eps=1e-3)
        self.depth, self.bn_depth = nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)
        self.up, self.bn_up = nn.ConvTranspose2d(8, 8, 3, groups=4), nn.BatchNorm2d(8, affine=False)
        self.late = nn.BatchNorm2d(8)
        self.head, self.bn_head = nn.Linear(8, 6), nn.BatchNorm1d(6)
        self.last, self.bn_last = nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn_depth(self.depth(self.bn(self.conv(x))))
        x = self.late(torch.relu(self.bn_up(self.up(x)))).mean((2, 3))
        return torch.as_tensor(self.bn_last(self.last(self.bn_head(self.head(x)))))


LAYERS = ["conv.weight", "depth.weight", "up.weight", "head.weight", "last.weight"]


def exported(net: nn.Module, path: Path, exporter: str, x: torch.Tensor) -> None:
    """A file of the net, as trained for a while."""
    options: dict[str, Any] = {"dynamo": False, "do_constant_folding": False}
    options["training"] = torch.onnx.TrainingMode.PRESERVE  # in eval it fuses what it can by itself
    if exporter == "dynamo":
        options = {"dynamo": True, "optimize": False, "external_data": False, "verbose": False}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for _ in range(3):
            net.train()(torch.randn(4, *x.shape[1:]))
        torch.onnx.export(net.eval(), (x,), path, input_names=["x"], output_names=["y"], **options)


def run(path: Path | str, x: torch.Tensor) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x.numpy()})[0])


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_what_torch_exports_is_folded_and_proven(exporter: str, tmp_path: Path) -> None:
    torch.manual_seed(15)
    net, x = Net(), torch.randn(2, 3, 9, 9)
    exported(net, tmp_path / "in.onnx", exporter, x)
    result = fold_file(tmp_path / "in.onnx", tmp_path / "out.onnx", kinds="norm", verify=True)
    layers = [change.layer for _, change in result.plan.changes]
    assert [layer.name for layer in layers] == LAYERS
    assert [type(layer.rule.neighbour) for layer in layers] == [NormBehind] * 5
    assert "5 layers against the original's own arithmetic, the whole model on" in result.verified
    (stays,) = [note for note in result.notes if " stays: " in note]
    assert stays.endswith("it is behind Relu, not behind a linear layer")
    made = onnx.load(output_of(result))
    assert [node.op_type for node in made.graph.node].count("BatchNormalization") == 1
    assert {each.name for each in made.graph.initializer} >= {*LAYERS, "conv.bias", "up.bias", "last.bias"}
    with torch.no_grad():
        np.testing.assert_allclose(run(output_of(result), x), net(x).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_weight_norm_and_batch_norm_are_rounded_once(exporter: str, tmp_path: Path) -> None:
    torch.manual_seed(16)
    net = nn.Sequential(weight_norm(nn.Conv1d(4, 8, 3)), nn.BatchNorm1d(8))
    exported(net, tmp_path / "in.onnx", exporter, torch.randn(2, 4, 9))
    result = fold_file(tmp_path / "in.onnx", tmp_path / "out.onnx", kinds="weight,norm")
    ((_, change),) = result.plan.changes
    assert change.layer.rule.kinds == ("weight", "norm")
    stored = {
        each.name: numpy_helper.to_array(each) for each in onnx.load(output_of(result)).graph.initializer
    }
    state = {key: value.double().numpy() for key, value in net.state_dict().items()}
    v = state["0.parametrizations.weight.original1"]
    w = state["0.parametrizations.weight.original0"] * v / np.sqrt((v**2).sum((1, 2), keepdims=True))
    factor = state["1.weight"] / np.sqrt(state["1.running_var"] + float(np.float32(1e-5)))
    bias = (state["0.bias"] - state["1.running_mean"]) * factor + state["1.bias"]
    np.testing.assert_array_equal(stored[change.layer.name], (w * factor[:, None, None]).astype("f"))
    np.testing.assert_array_equal(stored[change.layer.bias], bias.astype("f"))


def norm_model(path: Path, dtype: Any = np.float32, *, external: bool = False) -> onnx.ModelProto:
    """A convolution and its norm in a dtype."""
    torch.manual_seed(17)
    net = nn.Sequential(nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8))
    exported(net, path, "dynamo", torch.randn(2, 4, 9))
    made = onnx.load(path)
    code = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for each in made.graph.initializer:
        if each.data_type == 1:
            each.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(each).astype(dtype), each.name))
    for port in (*made.graph.input, *made.graph.output, *made.graph.value_info):
        if port.type.tensor_type.elem_type == 1:
            port.type.tensor_type.elem_type = code
    onnx.save(made, path, save_as_external_data=external, location="in.data", size_threshold=0)
    return made


@pytest.mark.parametrize(("dtype", "external"), [("float16", False), ("float64", False), ("float32", True)])
def test_other_dtypes_and_data_files_are_folded(dtype: str, tmp_path: Path, *, external: bool) -> None:
    before = norm_model(tmp_path / "in.onnx", dtype, external=external)
    result = fold_file(tmp_path / "in.onnx", tmp_path / "out.onnx", kinds="norm", verify=True)
    by = "w·γ/√(v + eps)" if dtype == "float64" else "the original's own arithmetic"
    assert f"1 layer against {by}" in result.verified  # it has no convolution of float64
    after = onnx.load(output_of(result))
    assert [node.op_type for node in after.graph.node] == ["Conv"]
    assert {each.data_type for each in after.graph.initializer} == {before.graph.initializer[0].data_type}


@pytest.mark.parametrize(
    ("name", "what"), [("0.weight", "layer 0.weight is"), ("0.bias", "the bias of layer 0.weight is")]
)
def test_a_fold_with_another_number_is_not_kept(name: str, what: str, tmp_path: Path) -> None:
    norm_model(tmp_path / "in.onnx")
    opened = open_checkpoint(tmp_path / "in.onnx").onnx
    assert opened is not None
    fold = plan_onnx(opened, Selection(kinds=("norm",)))
    out = output_of(fold_file(tmp_path / "in.onnx", tmp_path / "out.onnx", kinds="norm"))
    made = onnx.load(out)
    (wrong,) = [each for each in made.graph.initializer if each.name == name]
    values = numpy_helper.to_array(wrong).copy()
    values.flat[3] *= np.float32(1.001)
    wrong.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(made, out)
    with pytest.raises(VerifyError, match=what):
        check_fold(opened, fold, Path(out))


def test_norms_are_counted_and_left_unless_they_are_asked_for(tmp_path: Path) -> None:
    norm_model(tmp_path / "in.onnx")
    hint = "1 layer of a norm with running statistics: --kinds norm folds it"
    assert fold_file(tmp_path / "in.onnx", tmp_path / "out.onnx", dry_run=True).hints == (hint,)
    assert hint in inspect_file(tmp_path / "in.onnx").notes
    assert not list(tmp_path.glob("out*"))


def test_checkpoints_do_not_show_norms(tmp_path: Path) -> None:
    state = nn.Sequential(nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8)).state_dict()
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ArgumentError, match="keys do not show a norm with running statistics"):
        fold_file(tmp_path / "model.pt", tmp_path / "out.pt", kinds="norm")
    with pytest.raises(ArgumentError, match="keys do not show a norm with running statistics"):
        fold_state_dict(state, kinds="norm")
    assert not (tmp_path / "out.pt").exists()


def test_a_graph_whose_only_norm_stays_has_a_norm_left(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
    exported(net, tmp_path / "net.onnx", "torchscript", torch.randn(2, 3, 8, 8))
    result = fold_file(tmp_path / "net.onnx", kinds="norm")
    assert result.output is None
    stays, nothing = result.notes
    assert "stays: it is behind Relu" in stays
    assert nothing.startswith("nothing to fold: the graph has 1 norm that stays: wnconvert inspect ")
