"""Weights that torch's exporters leave divided by a norm with an eps: found, proven, correctly rounded."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import numpy_helper

from tests.helpers.arrays import same
from tests.helpers.guarded_models import EXPORTERS, OPSETS, SPELLED, Guarded, exported
from tests.helpers.marks import crossed
from tests.helpers.rule_oracle import exact_weight
from tests.helpers.states import output_of
from wnconvert import fold_file
from wnconvert.layers.rules import Rule


@crossed(name=SPELLED, exporter=EXPORTERS[::-1], opset=(18, *(opset for opset in OPSETS if opset != 18)))
def test_each_spelling_is_folded_to_the_nearest_numbers(
    name: str, exporter: str, opset: int, tmp_path: Path
) -> None:
    exported(name, exporter, opset, tmp_path / "in.onnx")
    result = fold_file(tmp_path / "in.onnx", tmp_path / "out.onnx", kinds="weight,unit", verify=True)
    rule = Rule((SPELLED[name].operation,))
    assert [change.layer.rule for _, change in result.plan.changes] == [rule]
    assert "1 layer against the original's own arithmetic, the whole model on" in result.verified
    layer = Guarded(name)
    arrays = {"original": layer.weight_v.detach().numpy(), "g": layer.weight_g.detach().numpy()}
    (stored,) = (
        numpy_helper.to_array(tensor)
        for tensor in onnx.load(output_of(result)).graph.initializer
        if tensor.dims == list(arrays["original"].shape)
    )
    assert same(stored, exact_weight(rule, arrays, "float32"))
