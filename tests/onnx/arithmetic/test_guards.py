"""Norms with an eps are recognised by what they compute, with their numbers; what looks like them stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from tests.helpers.arrays import same
from tests.helpers.onnx_graphs import Build, folded, kind_of, model_of, run, stored_as
from tests.helpers.rule_oracle import exact_weight
from tests.helpers.states import output_of
from wnconvert import fold_file, inspect_file
from wnconvert.layers.rules import Guard, Mask, Norm, Operation, Rule, Unit
from wnconvert.onnx.graph.layers import GraphLayers, find_graph_layers

RNG = np.random.default_rng(16)
SHAPE, COUNT = (4, 3, 5), 15
KINDS = ("weight", "unit", "prune")
Floats = np.ndarray[Any, np.dtype[np.float32]]


def numbers(*shape: int) -> Floats:
    return (RNG.standard_normal(shape) + 0.1).astype(np.float32)


def rounded(number: float) -> float:
    return float(np.float32(number))


def used(b: Build, w: str, shape: Sequence[int] = SHAPE) -> onnx.ModelProto:
    b.op("Mul", "x", w, name="y")
    return b.model(["y"], {"x": shape})


def check_folded(model: onnx.ModelProto, *operations: Operation, left: int = 1) -> GraphLayers:
    """It is one layer of this rule; folded, it computes the same with ``left`` nodes."""
    found, made = folded(model, KINDS)
    onnx.checker.check_model(made)
    assert [layer.layer.rule.operations for layer in found.layers] == [operations]
    assert not found.refused
    shape = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": numbers(*shape)}
    for before, after in zip(run(model, feeds), run(made, feeds), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    assert len(made.graph.node) == left
    return found


def check_untouched(model: onnx.ModelProto) -> None:
    found, made = folded(model, KINDS)
    assert not found.layers + found.refused
    assert made == model


# However it is spelled.

EPS = 1e-2  # the least row of the weight is about as long: the guard changes some rows, and not others
Spelling = Callable[[Build, str], str]


def length(b: Build, v: str, axes: Sequence[int] = (1, 2)) -> str:
    return b.reduce("ReduceL2", v, axes)


def squares(b: Build, v: str, axes: Sequence[int] = (1, 2)) -> str:
    return b.reduce("ReduceSum", b.op("Mul", v, v), axes)


def eps(b: Build, number: float = EPS) -> str:
    return b.number(number)


def normalize(b: Build, v: str) -> str:
    """``torch.nn.functional.normalize`` as both exporters leave it."""
    least = b.op("Clip", length(b, v), eps(b))
    return b.op("Div", v, b.op("Expand", least, b.op("Shape", v)))


def l2_normalize(b: Build, v: str) -> str:
    """TensorFlow's ``l2_normalize``."""
    root = b.op("Sqrt", b.op("Max", squares(b, v), eps(b)))
    return b.op("Mul", v, b.op("Reciprocal", root))


def chosen(op: str, *, first: bool) -> Spelling:
    def made(b: Build, v: str) -> str:
        n, least = length(b, v), eps(b)
        condition = b.op(op, n, least)
        return b.op("Div", v, b.op("Where", condition, *((n, least) if first else (least, n))))

    return made


def chosen_by_not(b: Build, v: str) -> str:
    n, least = length(b, v), eps(b)
    return b.op("Div", v, b.op("Where", b.op("Not", b.op("Less", n, least)), n, least))


def expanded_where(b: Build, v: str) -> str:
    n = length(b, v)
    least = b.op("Expand", eps(b), b.op("Shape", n))
    return b.op("Div", v, b.op("Where", b.op("GreaterOrEqual", n, least), n, least))


LEAST, LEAST_SQUARE = Guard(rounded(EPS)), Guard(rounded(EPS), "max of squares")
OUTSIDE, INSIDE = Guard(rounded(EPS), "norm"), Guard(rounded(EPS), "squares")
MEAN = Guard(rounded(EPS), "squares", Fraction(1, COUNT))

SPELLINGS: dict[str, tuple[Spelling, Guard]] = {
    "F.normalize": (normalize, LEAST),
    "Max": (lambda b, v: b.op("Div", v, b.op("Max", length(b, v), eps(b))), LEAST),
    "Max, eps first": (lambda b, v: b.op("Div", v, b.op("Max", eps(b), length(b, v))), LEAST),
    "Clip with an upper end": (
        lambda b, v: b.op("Div", v, b.op("Clip", length(b, v), eps(b), b.number(np.inf))),
        LEAST,
    ),
    "Where greater": (chosen("Greater", first=True), LEAST),
    "Where less": (chosen("Less", first=False), LEAST),
    "Where not less": (chosen_by_not, LEAST),
    "Where, expanded": (expanded_where, LEAST),
    "l2_normalize": (l2_normalize, LEAST_SQUARE),
    "rsqrt of Max": (
        lambda b, v: b.op("Mul", v, b.op("Pow", b.op("Max", squares(b, v), eps(b)), b.number(-0.5))),
        LEAST_SQUARE,
    ),
    "eps outside": (lambda b, v: b.op("Div", v, b.op("Add", length(b, v), eps(b))), OUTSIDE),
    "eps outside, first": (lambda b, v: b.op("Div", v, b.op("Add", eps(b), length(b, v))), OUTSIDE),
    "eps inside": (
        lambda b, v: b.op("Div", v, b.op("Sqrt", b.op("Add", squares(b, v), eps(b)))),
        INSIDE,
    ),
    "rsqrt": (
        lambda b, v: b.op("Mul", v, b.op("Reciprocal", b.op("Sqrt", b.op("Add", squares(b, v), eps(b))))),
        INSIDE,
    ),
    "a mean of squares": (
        lambda b, v: b.op(
            "Div", v, b.op("Sqrt", b.op("Add", b.reduce("ReduceMean", b.op("Mul", v, v), (1, 2)), eps(b)))
        ),
        MEAN,
    ),
    "a mean without eps": (
        lambda b, v: b.op("Div", v, b.op("Sqrt", b.reduce("ReduceMean", b.op("Mul", v, v), (1, 2)))),
        Guard(0.0, "squares", Fraction(1, COUNT)),
    ),
}


def weight(b: Build, shape: Sequence[int] = SHAPE) -> tuple[str, Floats]:
    """A weight whose rows are shorter and shorter: some are below the eps."""
    lengths = np.array([1, 1e-1, 2e-2, 1e-4][: shape[0]], np.float32).reshape(-1, *[1] * (len(shape) - 1))
    array = numbers(*shape) * lengths
    return b.tensor("conv.weight_v", array), array


@pytest.mark.parametrize("opset", [13, 18, 20])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_guarded_weight_norm_is_found_however_it_is_spelled(spelling: str, opset: int) -> None:
    b = Build(opset)
    made, guard = SPELLINGS[spelling]
    v, _ = weight(b)
    w = b.op("Mul", b.tensor("conv.weight_g", numbers(4, 1, 1)), made(b, v))
    found = check_folded(used(b, w), Norm(0, guard))
    assert found.layers[0].layer.name == "conv.weight"
    assert found.layers[0].layer.rule.kind == "weight"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_without_g_it_is_unit_rows(spelling: str) -> None:
    b = Build(18)
    made, guard = SPELLINGS[spelling]
    v, _ = weight(b)
    found = check_folded(used(b, made(b, v)), Unit(0, guard))
    assert found.layers[0].layer.rule.kind == "unit"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_element_is_correctly_rounded(spelling: str, tmp_path: Path) -> None:
    b = Build(18)
    made, guard = SPELLINGS[spelling]
    v, array = weight(b)
    g = numbers(4, 1, 1)
    onnx.save(used(b, b.op("Mul", b.tensor("conv.weight_g", g), made(b, v))), tmp_path / "in.onnx")
    result = fold_file(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert result.verified
    (stored,) = onnx.load(output_of(result)).graph.initializer
    expected = exact_weight(Rule((Norm(0, guard),)), {"original": array, "g": g}, "float32")
    assert same(numpy_helper.to_array(stored), expected)


def test_rows_above_a_least_norm_are_those_of_weight_norm_and_rows_of_zeros_are_zero(tmp_path: Path) -> None:
    b = Build(18)
    array, g = numbers(*SHAPE), numbers(4, 1, 1)
    array[3] = 0
    v = b.tensor("conv.weight_v", array)
    least = b.op("Clip", length(b, v), eps(b, 1e-12))
    w = b.op("Mul", b.tensor("conv.weight_g", g), b.op("Div", v, least))
    onnx.save(used(b, w), tmp_path / "in.onnx")
    result = fold_file(tmp_path / "in.onnx", tmp_path / "out.onnx")
    (stored,) = onnx.load(output_of(result)).graph.initializer
    found = numpy_helper.to_array(stored)
    plain = exact_weight(Rule((Norm(0),)), {"original": array[:3], "g": g[:3]}, "float32")
    assert same(np.ascontiguousarray(found[:3]), plain)
    assert not found[3].any()


def test_a_row_whose_g_is_its_norm_is_itself_where_the_norm_is_above_the_least(tmp_path: Path) -> None:
    b = Build(18)
    array = numbers(*SHAPE)
    g = np.sqrt(np.square(array.astype(np.float64)).sum((1, 2), keepdims=True)).astype(np.float32)
    v = b.tensor("conv.weight_v", array)
    least = b.op("Clip", length(b, v), eps(b, 1e-12))
    onnx.save(used(b, b.op("Mul", b.tensor("conv.weight_g", g), b.op("Div", v, least))), tmp_path / "in.onnx")
    result = fold_file(tmp_path / "in.onnx", tmp_path / "out.onnx")
    (stored,) = onnx.load(output_of(result)).graph.initializer
    assert same(numpy_helper.to_array(stored), array)


# Numbers beside it.


def test_a_scale_of_unit_rows_is_a_part_of_them() -> None:
    b = Build(18)
    v, _ = weight(b)
    w = b.op("Mul", normalize(b, v), b.number(16))
    check_folded(used(b, w), Unit(0, LEAST, Fraction(16)))


def edm2(b: Build, w: str, gain: str, *, share: float, fan: int) -> str:
    """EDM2's weights: w/(eps + ‖w‖·√(1/n))·gain/√n."""
    mean = b.op("Add", b.op("Mul", length(b, w), b.number(share)), b.number(1e-4))
    return b.op("Mul", b.op("Div", w, mean), b.op("Div", gain, b.number(np.sqrt(fan))))


@pytest.mark.parametrize("stored", [True, False])
def test_the_weights_of_edm2_are_unit_rows_with_a_gain(*, stored: bool) -> None:
    b = Build(18)
    v, _ = weight(b)
    gain = b.tensor("out_gain", np.array(0.7, np.float32)) if stored else b.number(1)
    share = rounded(COUNT**-0.5)
    guard = Guard(rounded(1e-4), "norm", Fraction(share))
    scale = 1 / Fraction(rounded(COUNT**0.5))
    w = edm2(b, v, gain, share=share, fan=COUNT)
    scale *= Fraction(rounded(0.7) if stored else 1)
    check_folded(used(b, w), Unit(0, guard, scale))


def test_all_of_a_weight_may_have_one_norm() -> None:
    b = Build(18)
    v, _ = weight(b)
    least = b.op("Max", b.reduce("ReduceL2", v, None), eps(b))
    check_folded(used(b, b.op("Div", v, least)), Unit(None, LEAST))


def test_a_vector_and_a_layer_of_one_output_are_divided_too() -> None:
    for shape, axes in (((7,), (0,)), ((1, 7), (1,))):
        b = Build(18)
        v = b.tensor("head.weight", numbers(*shape))
        made = b.op("Div", v, b.op("Max", length(b, v, axes), eps(b)))
        check_folded(used(b, made, shape), Unit(None, LEAST))


def test_a_weight_that_is_used_transposed_is_stored_so() -> None:
    b = Build(18)
    turned = b.op("Transpose", normalize(b, weight(b)[0]), perm=[2, 1, 0])
    found = check_folded(used(b, turned, SHAPE[::-1]), Unit(0, LEAST))
    assert [each.weights[0].view.rule for each in found.layers] == [Rule((Unit(2, LEAST),))]


def test_a_masked_weight_is_guarded_too() -> None:
    b = Build(18)
    masked = b.op("Mul", weight(b)[0], b.tensor("mask", np.round(np.abs(numbers(*SHAPE)) + 0.3)))
    check_folded(
        used(b, b.op("Mul", b.tensor("g", numbers(4, 1, 1)), normalize(b, masked))), Mask(), Norm(0, LEAST)
    )


def test_an_eps_that_is_computed_of_constants_has_the_number_that_the_graph_makes_of_it() -> None:
    b = Build(18)
    v, _ = weight(b)
    small = b.op("Cast", b.number(1e-2, np.float64), to=TensorProto.FLOAT)
    w = b.op("Div", v, b.op("Add", length(b, v), b.op("Mul", small, small)))
    check_folded(used(b, w), Unit(0, Guard(float(np.float32(EPS) * np.float32(EPS)), "norm")))


def test_an_eps_of_nothing_changes_nothing() -> None:
    for op, number in (("Max", 0.0), ("Max", -1.0), ("Add", 0.0), ("Clip", 0.0)):
        b = Build(18)
        v, _ = weight(b)
        check_folded(used(b, b.op("Div", v, b.op(op, length(b, v), b.number(number)))), Unit(0))


def test_an_eps_of_one_matters_and_is_kept() -> None:
    b = Build(18)
    v, _ = weight(b)
    check_folded(used(b, b.op("Div", v, b.op("Add", length(b, v), eps(b, 1)))), Unit(0, Guard(1.0, "norm")))


# What else hangs on it.


def test_the_original_may_be_used_beside_it() -> None:
    b = Build(18)
    v, _ = weight(b)
    both = b.op("Add", b.op("Mul", "x", normalize(b, v)), v)
    b.op("Identity", both, name="y")
    check_folded(b.model(["y"], {"x": SHAPE}), Unit(0, LEAST), left=3)


def test_a_cosine_head_keeps_what_it_does_with_its_input() -> None:
    b = Build(18)
    w = b.tensor("head.weight", numbers(4, 6))
    unit = b.op("Div", w, b.op("Max", length(b, w, (1,)), eps(b)))
    x = b.op("Div", "x", b.op("Max", length(b, "x", (1,)), eps(b)))
    b.op("Gemm", x, unit, transB=1, name="y")
    check_folded(b.model(["y"], {"x": (2, 6)}), Unit(0, LEAST), left=6)


def test_the_columns_of_a_head_are_divided_where_it_is_stored_transposed() -> None:
    b = Build(18)
    w = b.tensor("head.weight", numbers(6, 4))
    b.op("MatMul", "x", b.op("Div", w, b.op("Max", length(b, w, (0,)), eps(b))), name="y")
    check_folded(b.model(["y"], {"x": (2, 6)}), Unit(1, LEAST))


def test_an_eps_that_a_caller_may_replace_is_no_constant() -> None:
    b = Build(18)
    v, _ = weight(b)
    made = b.op("Div", v, b.op("Max", length(b, v), b.tensor("eps", np.array(EPS, np.float32))))
    model = used(b, made)
    model.graph.input.append(onnx.helper.make_tensor_value_info("eps", TensorProto.FLOAT, []))
    check_untouched(model)


def test_an_output_that_is_unit_rows_is_refused_and_said() -> None:
    b = Build(18)
    v, _ = weight(b)
    b.op("Div", v, b.op("Max", length(b, v), eps(b)), name="z")
    b.op("Identity", "x", name="y")
    found = find_graph_layers(model_of(b.model(["y", "z"], {"x": SHAPE})), KINDS)
    assert not found.layers
    assert [refused.name for refused in found.refused] == ["conv.weight_v"]


def test_a_step_on_the_way_to_a_guarded_weight_is_no_layer() -> None:
    b = Build(18)
    v, _ = weight(b)
    model = used(b, b.op("Mul", b.tensor("g", numbers(4, 1, 1)), normalize(b, v)))
    for kinds in (("weight",), ("weight", "unit")):
        found = find_graph_layers(model_of(model), kinds)
        assert [layer.layer.rule.operations for layer in found.layers] == [(Norm(0, LEAST),)]
        assert not found.others


def test_by_default_unit_rows_stay_and_are_counted(tmp_path: Path) -> None:
    b = Build(18)
    onnx.save(used(b, normalize(b, weight(b)[0])), tmp_path / "in.onnx")
    hint = "1 layer of unit rows: --kinds unit folds it"
    assert fold_file(tmp_path / "in.onnx", tmp_path / "out.onnx", dry_run=True).hints == (hint,)
    assert hint in inspect_file(tmp_path / "in.onnx").notes


def test_inspect_and_fold_say_the_formula_with_its_eps(tmp_path: Path) -> None:
    b = Build(18)
    v, _ = weight(b)
    w = b.op("Mul", b.tensor("conv.weight_g", numbers(4, 1, 1)), normalize(b, v))
    onnx.save(used(b, w), tmp_path / "in.onnx")
    said = "conv.weight is g·v/max(‖v‖, 0.01)"
    assert said in inspect_file(tmp_path / "in.onnx").notes
    assert said in fold_file(tmp_path / "in.onnx", tmp_path / "out.onnx").plan.notes


# Dtypes.


@pytest.mark.parametrize("half", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize("wide", ["norm", "quotient", "both", "nothing"])
def test_a_half_weight_may_have_steps_in_float32(wide: str, half: int) -> None:
    b = Build(18)
    eps = np.array(EPS, np.float32)
    arrays = {"conv.weight_v": numbers(*SHAPE), "conv.weight_g": numbers(4, 1, 1), "eps": eps}
    b.stored += [stored_as(array, name, half) for name, array in arrays.items()]

    def cast(value: str, to: int, *, when: bool) -> str:
        return b.op("Cast", value, to=to) if when else value

    n = length(b, cast("conv.weight_v", 1, when=wide in ("norm", "both")))
    n = b.op("Clip", cast(n, half, when=wide in ("norm", "both")), "eps")
    sides = [cast(each, 1, when=wide in ("quotient", "both")) for each in ("conv.weight_v", n)]
    w = b.op("Mul", cast(b.op("Div", *sides), half, when=wide in ("quotient", "both")), "conv.weight_g")
    b.op("Mul", "x", b.op("Cast", w, to=1), name="y")
    found, made = folded(b.model(["y"], {"x": SHAPE}), KINDS)
    guard = Guard(float(eps.astype(kind_of(half))))
    assert [layer.layer.rule.operations for layer in found.layers] == [(Norm(0, guard),)]
    assert [tensor.data_type for tensor in made.graph.initializer] == [half]
    assert len(made.graph.node) == 2


def test_digits_that_a_half_norm_has_lost_are_not_stored() -> None:
    b = Build(18)
    v, _ = weight(b)
    n = b.op("Cast", b.op("Cast", length(b, v), to=TensorProto.FLOAT16), to=TensorProto.FLOAT)
    check_untouched(used(b, b.op("Div", v, b.op("Max", n, eps(b)))))


# What looks like it and is not.

Decoy = Callable[[Build, str], str]
DECOYS: dict[str, Decoy] = {
    "Min": lambda b, v: b.op("Div", v, b.op("Min", length(b, v), eps(b))),
    "an upper end": lambda b, v: b.op("Div", v, b.op("Clip", length(b, v), eps(b), b.number(5))),
    "an upper end alone": lambda b, v: b.op("Div", v, b.op("Clip", length(b, v), "", b.number(5))),
    "the norm over one axis of two": lambda b, v: b.op("Div", v, b.op("Max", length(b, v, (1,)), eps(b))),
    "the norm of another tensor": lambda b, v: b.op(
        "Div", v, b.op("Max", length(b, b.tensor("u", numbers(*SHAPE))), eps(b))
    ),
    "a sum of magnitudes": lambda b, v: b.op("Div", v, b.op("Max", b.reduce("ReduceL1", v, (1, 2)), eps(b))),
    "a largest magnitude": lambda b, v: b.op(
        "Div", v, b.op("Max", b.reduce("ReduceMax", b.op("Abs", v), (1, 2)), eps(b))
    ),
    "a sum that may be negative": lambda b, v: b.op(
        "Div", v, b.op("Max", b.reduce("ReduceSum", v, (1, 2)), eps(b))
    ),
    "squares without a root": lambda b, v: b.op("Div", v, b.op("Max", squares(b, v), eps(b))),
    "a root of the norm": lambda b, v: b.op("Div", v, b.op("Sqrt", b.op("Add", length(b, v), eps(b)))),
    "an eps of an input": lambda b, v: b.op(
        "Div", v, b.op("Add", length(b, v), b.op("ReduceMean", "x", keepdims=0))
    ),
    "an eps for each row": lambda b, v: b.op(
        "Div", v, b.op("Max", length(b, v), b.tensor("e", numbers(4, 1, 1)))
    ),
    "a negative eps": lambda b, v: b.op("Div", v, b.op("Add", length(b, v), b.number(-0.5))),
    "a guard on elements": lambda b, v: b.op("Div", b.op("Max", v, eps(b)), length(b, v)),
    "a guard on each element of v": lambda b, v: b.op("Div", v, length(b, b.op("Max", v, eps(b)))),
    "eps on top": lambda b, v: b.op("Div", b.op("Add", v, eps(b)), b.op("Add", length(b, v), eps(b))),
    "two guards": lambda b, v: b.op(
        "Div", v, b.op("Max", b.op("Sqrt", b.op("Add", squares(b, v), eps(b))), eps(b))
    ),
    "another number below": lambda b, v: b.op(
        "Div", v, b.op("Where", b.op("Greater", length(b, v), eps(b)), length(b, v), b.number(1))
    ),
    "the smaller of both": lambda b, v: b.op(
        "Div", v, b.op("Where", b.op("Less", length(b, v), eps(b)), length(b, v), eps(b))
    ),
    "another value compared": lambda b, v: b.op(
        "Div", v, b.op("Where", b.op("Greater", squares(b, v), eps(b)), length(b, v), eps(b))
    ),
    "g of an input": lambda b, v: b.op(
        "Mul",
        b.reduce("ReduceMean", "x", (1, 2)),
        b.op("Div", b.op("Abs", v), b.op("Max", length(b, v), eps(b))),
    ),
    "|v|": lambda b, v: b.op("Div", b.op("Abs", v), b.op("Max", length(b, v), eps(b))),
    "times the norm": lambda b, v: b.op("Mul", v, b.op("Max", length(b, v), eps(b))),
    "an activation": lambda b, v: b.op("Div", "x", b.op("Max", length(b, "x"), eps(b))),
    "no square": lambda b, v: b.op(
        "Div", v, b.op("Sqrt", b.op("Add", b.reduce("ReduceSum", b.op("Abs", v), (1, 2)), eps(b)))
    ),
}


@pytest.mark.parametrize("decoy", DECOYS)
def test_what_is_another_arithmetic_stays(decoy: str) -> None:
    b = Build(18)
    b.op("Mul", "x", b.op("ReduceMean", DECOYS[decoy](b, weight(b)[0]), keepdims=0), name="y")
    check_untouched(b.model(["y"], {"x": SHAPE}))


def test_a_g_that_hangs_on_an_input_leaves_unit_rows_alone() -> None:
    b = Build(18)
    w = b.op("Mul", b.reduce("ReduceMean", "x", (1, 2)), normalize(b, weight(b)[0]))
    check_folded(used(b, w), Unit(0, LEAST), left=4)
