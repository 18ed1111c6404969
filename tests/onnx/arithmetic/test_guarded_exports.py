"""Weights that torch's exporters leave divided by a norm with an eps: found, proven, correctly rounded.

The older exporter as it is by default stores g·v, or v², and leaves the norm and the quotient to the graph,
or does all of it. What is left is folded then, too, correctly rounded of what is stored.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import numpy_helper

from tests.helpers.arrays import same
from tests.helpers.guarded_models import EXPORTERS, FOLDING, OPSETS, SPELLED, Guarded, exported
from tests.helpers.marks import crossed
from tests.helpers.rule_oracle import exact_weight
from tests.helpers.states import output_of
from wnconvert import fold_file
from wnconvert.layers.rules import Norm, Over, Rule


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


#: The spellings of which the older exporter stores the product of g and v.
PRODUCTS = [name for name in SPELLED if name.startswith("g*v")]


@crossed(name=PRODUCTS, opset=(18, *(opset for opset in OPSETS if opset != 18)))
def test_a_stored_product_over_its_norm_is_folded_too(name: str, opset: int, tmp_path: Path) -> None:
    exported(name, FOLDING, opset, tmp_path / "in.onnx")
    result = fold_file(tmp_path / "in.onnx", tmp_path / "out.onnx", require_folded=True)
    left = onnx.load(result.output or tmp_path / "in.onnx").graph.node
    assert [node.op_type for node in left] == ["Conv"]  # of some this one computes all, and nothing is to do
    stored = {
        each.name: numpy_helper.to_array(each) for each in onnx.load(tmp_path / "in.onnx").graph.initializer
    }
    operation = SPELLED[name].operation
    assert isinstance(operation, Norm)
    squares = "rsqrt" in name
    if opset < 18 and not squares:  # it has the norm of this one, too
        return
    assert "1 evaluated weight likewise" in result.verified
    product = next(array for name, array in stored.items() if "Div" in name or "Mul" in name)
    divisor = next(array for array in stored.values() if array is not product and array.ndim == 3)
    rule = Rule((Over(0, operation.guard, squares),))
    expected = exact_weight(rule, {"original": product, "divisor": divisor}, "float32")
    (made,) = onnx.load(output_of(result)).graph.initializer
    assert same(numpy_helper.to_array(made), expected)
    assert [constant.exact for constant in result.plan.constants] == [True]
    assert made.name == ("/Conv" if squares else "weight")
