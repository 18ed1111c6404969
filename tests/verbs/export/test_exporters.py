"""torch's exporters: what reaches them, and what they refuse, in words."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.export_models import LENGTH_KEPT_BY, Branching, Eigen, scripted, speech
from tests.helpers.marks import crossed
from wnconvert.errors import ArgumentError, OutputError
from wnconvert.verbs.export.exporters import EXPORTERS, export_raw
from wnconvert.verbs.models.proof.functions import tensors_of
from wnconvert.verbs.models.proof.running import quiet_torch
from wnconvert.verbs.models.proof.samples import export_arrays
from wnconvert.verbs.models.proof.signatures import signature_of
from wnconvert.verbs.modules.convert import folded


def raw(model: nn.Module, path: Path, *inputs: str, exporter: str, outputs: tuple[str, ...] = ("y",)) -> None:
    signature = signature_of(inputs, ["T=4..20"] if "T" in "".join(inputs) else [])
    given = tensors_of(export_arrays(signature))
    other = next(each for each in EXPORTERS if each != exporter)
    export_raw(model.eval(), given, signature, path, exporter=exporter, outputs=outputs, other=other)


@pytest.mark.parametrize("exporter", LENGTH_KEPT_BY)
def test_names_and_letters_reach_the_graph(tmp_path: Path, exporter: str) -> None:
    path = tmp_path / "m.onnx"
    outputs = ("wave", "h", "c")
    raw(folded(speech()), path, "mel=float32[1,4,T]", "ids=int64[1,T]<9", exporter=exporter, outputs=outputs)
    graph = onnx.load(str(path)).graph
    sizes = {
        port.name: [d.dim_param or d.dim_value for d in port.type.tensor_type.shape.dim]
        for port in graph.input
    }
    assert sizes == {"mel": [1, 4, "T"], "ids": [1, "T"]}
    assert tuple(port.name for port in graph.output) == outputs
    assert {"scale", "emb.weight"} <= {tensor.name for tensor in graph.initializer}


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_an_operation_that_is_refused_is_told_with_its_layer(tmp_path: Path, exporter: str) -> None:
    with pytest.raises(ArgumentError, match=r"torch's exporter refused the model: .*linalg_eig") as caught:
        raw(Eigen(), tmp_path / "m.onnx", "x=float32[4,4]", exporter=exporter)
    assert caught.value.where == "layer inner.1"
    assert "--opset" in caught.value.fix
    assert "a number in place" not in caught.value.fix  # nothing was dynamic


def test_control_flow_on_values_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="data-dependent") as caught:
        raw(Branching(), tmp_path / "m.onnx", "x=float32[4,T]", exporter="dynamo")
    assert caught.value.where.startswith("export_models.py, line ")
    assert "--exporter torchscript" in caught.value.fix
    assert "a number in place of each letter" in caught.value.fix


def test_a_script_of_torchs_own_reaches_the_older_exporter_only(tmp_path: Path) -> None:
    script = scripted(nn.Linear(3, 2))
    raw(script, tmp_path / "m.onnx", "input=float32[T,3]", exporter="torchscript")
    onnx.checker.check_model(str(tmp_path / "m.onnx"))
    with pytest.raises(ArgumentError, match="ScriptModule"):
        raw(script, tmp_path / "n.onnx", "input=float32[T,3]", exporter="dynamo")


def test_torch_is_quiet_inside_and_as_before_after(capfd: pytest.CaptureFixture[str]) -> None:
    level = logging.root.manager.disable

    def fails() -> None:
        with quiet_torch():
            warnings.warn("not seen", UserWarning, stacklevel=1)
            logging.getLogger("torch").error("not seen")
            print("not seen")
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fails()
    assert logging.root.manager.disable == level
    print("seen")
    assert capfd.readouterr() == ("seen\n", "")
    with pytest.warns(UserWarning, match="seen"):
        warnings.warn("seen", UserWarning, stacklevel=1)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_an_optional_input_in_between_is_left_at_its_default(tmp_path: Path, exporter: str) -> None:
    class Optional(nn.Module):
        def forward(self, a: Tensor, mask: Tensor | None = None, b: Tensor | None = None) -> Tensor:
            assert mask is None
            assert b is not None
            return a - b

    path = tmp_path / "m.onnx"
    raw(Optional(), path, "a=float32[3]", "b=float32[3]", exporter=exporter)
    (node,) = (node for node in onnx.load(str(path)).graph.node if node.op_type == "Sub")
    assert list(node.input) == ["a", "b"]


@crossed(exporter=EXPORTERS[::-1], opset=[None, 17])
def test_no_folder_of_this_machine_is_named_in_the_file(
    tmp_path: Path, exporter: str, opset: int | None
) -> None:
    path = tmp_path / "m.onnx"
    signature = signature_of(["mel=float32[1,4,T]", "ids=int64[1,T]<9"])
    given = tensors_of(export_arrays(signature))
    names = ("wave", "h", "c")
    export_raw(folded(speech()), given, signature, path, exporter=exporter, outputs=names, opset=opset)
    content = path.read_bytes()
    here = (Path(__file__), Path(torch.__file__), tmp_path)
    for folder in {str(place.parent) for place in here} | {str(Path.home()), ".py"}:
        assert folder.encode() not in content, folder
    if exporter == "dynamo" and opset is None:  # torch's conversion to another opset drops all of it
        assert b"pkg.torch.onnx.class_hierarchy" in content  # other metadata stays


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_full_disk_is_not_the_models_fault(exporter: str) -> None:
    signature = signature_of(["x=float32[4,4]"])
    given = tensors_of(export_arrays(signature))
    with pytest.raises(OutputError, match="the disk is full"):
        export_raw(nn.Linear(4, 4), given, signature, Path("/dev/full"), exporter=exporter, outputs=("y",))


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_only_the_newer_exporter_needs_onnxscript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exporter: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else find(name))
    if exporter == "torchscript":
        raw(nn.Linear(3, 2), tmp_path / "m.onnx", "input=float32[1,3]", exporter=exporter)
        return
    with pytest.raises(ArgumentError, match="needs onnxscript") as caught:
        raw(nn.Linear(3, 2), tmp_path / "m.onnx", "input=float32[1,3]", exporter=exporter)
    assert caught.value.fix == "pip install onnxscript, or choose --exporter torchscript"
