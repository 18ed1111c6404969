"""A v that is stored in another shape than its weight, as torch's older exporter stores what is reshaped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers.arrays import same
from tests.helpers.marks import crossed
from tests.helpers.onnx_graphs import Build, folded, run
from tests.helpers.rule_oracle import exact_weight
from tests.helpers.states import output_of
from wnconvert import fold_file
from wnconvert.layers.rules import Guard, Mask, Norm, Operation, Over, Rule, Unit
from wnconvert.verbs.models.proof.running import quiet_torch

RNG = np.random.default_rng(8)
SHAPE = (6, 4, 3)


def numbers(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return (RNG.standard_normal(shape) + 0.1).astype(np.float32)


def flat(b: Build) -> str:
    """A v of rows, which lie end to end."""
    return b.tensor("conv.weight_v", numbers(6, 12))


def g(b: Build) -> str:
    return b.tensor("conv.weight_g", numbers(6, 1, 1))


def unit(b: Build, v: str, axes: tuple[int, ...] = (1,)) -> str:
    return b.op("Div", v, b.reduce("ReduceL2", v, axes))


def shaped(b: Build, v: str, *shape: int) -> str:
    return b.op("Reshape", v, b.ints(*(shape or SHAPE)))


Spelling = Callable[[Build], str]
#: Weights of a v that is stored flat, and what they are.
RESHAPED: dict[str, tuple[Spelling, tuple[Operation, ...]]] = {
    "then g": (lambda b: b.op("Mul", shaped(b, unit(b, flat(b))), g(b)), (Norm(0),)),
    "after g": (
        lambda b: shaped(b, b.op("Mul", unit(b, flat(b)), b.tensor("conv.weight_g", numbers(6, 1)))),
        (Norm(0),),
    ),
    "in two steps": (
        lambda b: b.op("Mul", shaped(b, shaped(b, unit(b, flat(b)), 6, 2, 6)), g(b)),
        (Norm(0),),
    ),
    "turned": (
        lambda b: b.op(
            "Mul",
            b.op("Transpose", shaped(b, unit(b, flat(b))), perm=[0, 2, 1]),
            b.op("Transpose", g(b), perm=[0, 2, 1]),
        ),
        (Norm(0),),
    ),
    "without g": (lambda b: shaped(b, unit(b, flat(b))), (Unit(0),)),
    "masked": (
        lambda b: b.op(
            "Mul",
            shaped(b, unit(b, b.op("Mul", flat(b), b.tensor("mask", np.round(numbers(6, 12)) + 1)))),
            g(b),
        ),
        (Mask(), Norm(0)),
    ),
    "of columns": (
        lambda b: b.op(
            "Mul",
            shaped(b, unit(b, b.tensor("conv.weight_v", numbers(12, 6)), (0,)), 4, 3, 6),
            b.tensor("conv.weight_g", numbers(1, 1, 6)),
        ),
        (Norm(1),),
    ),
}


@pytest.mark.parametrize("case", RESHAPED)
def test_it_is_found_and_computes_the_same(case: str) -> None:
    build, operations = RESHAPED[case]
    b = Build(18)
    w = build(b)
    b.op("Mul", "x", w, name="y")
    shape = {"turned": (6, 3, 4), "of columns": (4, 3, 6)}.get(case, SHAPE)
    model = b.model(["y"], {"x": shape})
    found, made = folded(model, ("weight", "unit", "prune"))
    onnx.checker.check_model(made)
    assert [layer.layer.rule.operations for layer in found.layers] == [operations]
    assert len(made.graph.node) == 1
    feeds = {"x": numbers(*shape)}
    np.testing.assert_allclose(run(made, feeds)[0], run(model, feeds)[0], rtol=1e-5, atol=1e-6)


#: What is cut so that a row is no row any more, or is made of parts of it.
DECOYS: dict[str, Spelling] = {
    "rows cut in two": lambda b: b.op(
        "Mul", unit(b, shaped(b, flat(b), 12, 6)), b.tensor("g", numbers(12, 1))
    ),
    "the norm of a part": lambda b: b.op("Mul", unit(b, shaped(b, flat(b)), (1,)), g(b)),
    "the norm across rows": lambda b: b.op(
        "Mul", unit(b, shaped(b, flat(b), 3, 2, 12), (1, 2)), numbers_of(b, 3)
    ),
    "g of a part": lambda b: b.op(
        "Mul", shaped(b, unit(b, flat(b))), b.tensor("conv.weight_g", numbers(1, 4, 1))
    ),
    "g of rows and of a part": lambda b: b.op(
        "Mul", shaped(b, unit(b, flat(b))), b.tensor("conv.weight_g", numbers(6, 4, 1))
    ),
    "rows in another order": lambda b: b.op(
        "Mul",
        b.op("Transpose", shaped(b, unit(b, flat(b)), 2, 3, 12), perm=[1, 0, 2]),
        b.tensor("g", numbers(3, 2, 1)),
    ),
    "cut across rows": lambda b: b.op(
        "Mul", shaped(b, unit(b, b.tensor("odd", numbers(4, 9))), 6, 6), b.tensor("g", numbers(6, 1))
    ),
}


def numbers_of(b: Build, rows: int) -> str:
    return b.tensor("g", numbers(rows, 1, 1))


@pytest.mark.parametrize("decoy", DECOYS)
def test_what_is_cut_otherwise_is_no_weight_norm(decoy: str) -> None:
    b = Build(18)
    made = DECOYS[decoy](b)
    b.op("Mul", "x", b.op("ReduceMean", made, keepdims=0), name="y")
    model = b.model(["y"], {"x": (1,)})
    found, after = folded(model)
    assert not found.layers + found.refused
    assert after == model


class Reshaped(nn.Module):
    """A convolution of unit rows, made of a v that is seen as rows; times g."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.weight_v = nn.Parameter(torch.randn(SHAPE))
        self.weight_g = nn.Parameter(torch.rand(6, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight_v.reshape(6, 12)
        return functional.conv1d(x, functional.normalize(rows, dim=1).reshape(SHAPE) * self.weight_g)


@crossed(exporter=["torchscript", "dynamo"], opset=[18, 13, 20])
def test_what_torch_exports_is_folded_to_the_nearest_numbers(
    exporter: str, opset: int, tmp_path: Path
) -> None:
    model, path = Reshaped().eval(), tmp_path / "m.onnx"
    options: dict[str, Any] = {"dynamo": False}
    if exporter == "dynamo":
        options = {"dynamo": True, "optimize": False, "external_data": False}
    with quiet_torch():
        torch.onnx.export(model, (torch.randn(1, 4, 9),), str(path), opset_version=opset, **options)
    result = fold_file(path, require_folded=True)
    left = {node.op_type for node in onnx.load(output_of(result)).graph.node}
    assert not {"ReduceL2", "Clip", "Div", "Mul", "Reshape"} & left
    (made,) = (
        numpy_helper.to_array(each)
        for each in onnx.load(output_of(result)).graph.initializer
        if tuple(each.dims) == SHAPE
    )
    v, rows = model.weight_v.detach().numpy(), model.weight_g.detach().numpy()
    if result.plan.constants:  # up to opset 17 the older exporter stores the norm, too
        assert (exporter, opset) == ("torchscript", 13)
        return
    rule = Rule((Norm(0, Guard(float(np.float32(1e-12)))),))
    assert same(made, exact_weight(rule, {"original": v, "g": rows}, "float32"))


def test_a_quotient_of_flat_tensors_is_folded_in_the_shape_of_the_weight(tmp_path: Path) -> None:
    b = Build(18)
    u, v = numbers(6, 12), numbers(6, 12)
    over = b.op("Div", b.tensor("u", u), b.reduce("ReduceL2", b.tensor("v", v), (1,)))
    b.op("Conv", "x", b.op("Mul", shaped(b, over), b.tensor("g", rows := numbers(6, 1, 1))), name="y")
    onnx.save(b.model(["y"], {"x": (1, 4, 9)}), tmp_path / "m.onnx")
    result = fold_file(tmp_path / "m.onnx", require_folded=True)
    (made,) = onnx.load(output_of(result)).graph.initializer
    expected = exact_weight(Rule((Over(0, gain=True),)), {"original": u, "divisor": v, "g": rows}, "float32")
    assert same(numpy_helper.to_array(made), expected.reshape(SHAPE))
