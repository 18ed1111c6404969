"""Exports whose weights no rule knows: evaluated in float64 where that is asked for, and proven after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from tests.helpers.export_models import Shaped
from tests.helpers.runner import Runner
from wnconvert import check_onnx, export_onnx
from wnconvert.errors import NumbersError, UnfoldedError

INPUTS = ["x=float32[B,4]"]


def test_a_weight_of_no_rule_is_evaluated_and_the_export_is_proven_after(tmp_path: Path) -> None:
    model, path = Shaped(), tmp_path / "m.onnx"
    report = export_onnx(
        model, path, inputs=INPUTS, exporter="torchscript", constants=True, require_folded=True
    )
    assert report
    assert not report.computed
    (constant,) = report.constants
    assert (constant.name, constant.operators, constant.shape) == ("stored", ("Tanh",), (3, 4))
    assert "stored (float32 3×4): Tanh, evaluated in float64 and exact only to that" in report.notes
    assert [step.detail for step in report.steps if step.name == "fold"][1].endswith(
        ", 1 weight evaluated in float64"
    )
    assert report.to_dict()["constants"][0]["operators"] == ["Tanh"]
    made = onnx.load(str(path))
    assert [node.op_type for node in made.graph.node if node.op_type != "Transpose"] == ["MatMul"]
    exact = np.tanh(model.stored.detach().numpy().astype(np.float64)).astype(np.float32)
    (weight,) = (onnx.numpy_helper.to_array(each) for each in made.graph.initializer)
    assert np.array_equal(weight if weight.shape == exact.shape else weight.T, exact)
    assert check_onnx(path, model, inputs=INPUTS, require_folded=True)


def test_what_is_not_evaluated_is_left_with_the_reason_and_ends_an_export_that_wants_none(
    tmp_path: Path,
) -> None:
    def rounded(w: Tensor) -> Tensor:
        return torch.round(torch.tanh(w) * 4)

    asked = {"inputs": INPUTS, "exporter": "torchscript", "constants": True}
    report = export_onnx(Shaped(rounded), tmp_path / "m.onnx", **asked)  # type: ignore[arg-type]
    assert not report.constants
    (weight,) = report.computed
    assert "Round is not evaluated" in weight.reason
    with pytest.raises(UnfoldedError) as caught:
        export_onnx(Shaped(rounded), tmp_path / "n.onnx", require_folded=True, **asked)  # type: ignore[arg-type]
    assert "Round is not evaluated" in caught.value.fix
    assert not (tmp_path / "n.onnx").exists()


def test_why_a_weight_was_not_evaluated_is_told_of_the_model_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wnconvert.onnx.evaluation._MOST_BYTES", 10)
    report = export_onnx(Shaped(), tmp_path / "m.onnx", inputs=INPUTS, exporter="torchscript", constants=True)
    (weight,) = report.computed
    assert "its values would take" in weight.reason
    assert not weight.fix  # what it would advise was asked for


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NumbersError, match="NaN or infinite"):
        export_onnx(
            Shaped(torch.log),
            tmp_path / "m.onnx",
            inputs=INPUTS,
            exporter="torchscript",
            constants=True,
        )
    assert not [*tmp_path.iterdir()]


@pytest.mark.full
def test_the_older_exporter_is_tried_where_the_newer_leaves_what_is_not_wanted(tmp_path: Path) -> None:
    """Of many elements: the newer exporter evaluates up to 8,192, the older one these operators."""
    model = Shaped(lambda w: torch.neg(w) * 2, 3000)
    report = export_onnx(model, tmp_path / "m.onnx", inputs=INPUTS, require_folded=True)
    assert report
    assert (report.exporter, report.computed) == ("torchscript", ())
    assert [note for note in report.notes if "older exporter was used" in note]
    newer = export_onnx(model, tmp_path / "n.onnx", inputs=INPUTS, require_folded=True, constants=True)
    assert (newer.exporter, len(newer.constants)) == ("dynamo", 1)
    with pytest.raises(UnfoldedError, match="1 weight is computed at every run: stored"):
        export_onnx(model, tmp_path / "o.onnx", inputs=INPUTS, require_folded=True, exporter="dynamo")


def test_the_command_line_says_the_same(run: Runner, tmp_path: Path) -> None:
    asked = (
        "tests.helpers.export_models:Shaped",
        "--input",
        INPUTS[0],
        "--exporter",
        "torchscript",
        "--require-folded",
    )
    refused = run("export", *asked, "-o", tmp_path / "m.onnx")
    assert refused.returncode == 1
    assert "1 weight is computed at every run: stored (Tanh)" in refused.stderr
    done = run("export", *asked, "-o", tmp_path / "m.onnx", "--constants")
    assert done.returncode == 0
    assert "evaluated in float64 and exact only to that" in done.stderr
