"""The weights that a graph computes of stored tensors at every run: which count, and what looks like one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from tests.helpers.onnx_graphs import Build, model_of
from wnconvert.onnx.graph import weights
from wnconvert.onnx.graph.layers import find_graph_layers
from wnconvert.onnx.graph.plan import weights_computed, weights_left
from wnconvert.plan.plan import ComputedWeight

RNG = np.random.default_rng(5)


def stored(b: Build, name: str, shape: Sequence[int], dtype: Any = np.float32) -> str:
    return b.tensor(name, (RNG.standard_normal(shape) * 4).astype(dtype))


def left(proto: ModelProto, kinds: Sequence[str] = ("weight",)) -> list[ComputedWeight]:
    """What a fold would leave."""
    model = model_of(proto)
    found = find_graph_layers(model, kinds)
    return list(weights_left(model, found))


def names(proto: ModelProto) -> list[tuple[str, str]]:
    return [(weight.name, weight.what) for weight in left(proto)]


def sine(b: Build, name: str = "dec.weight_v", shape: Sequence[int] = (4, 4), dtype: Any = np.float32) -> str:
    """A weight that no rule knows."""
    return b.op("Sin", stored(b, name, shape, dtype))


# -- where a weight is used


def used(op: str, at: int, domain: str = "") -> ModelProto:
    """A graph in which input ``at`` of an operator is a computed weight, and every other is at run time."""
    b = Build()
    w = sine(b)
    many = {"QLinearConv": 9, "QLinearMatMul": 8, "LSTM": 3, "GRU": 3, "RNN": 3, "QGemm": 9}
    count = {**many, "MatMulNBits": 3, "QMoE": 10}.get(op, 2)
    b.op(op, *(w if place == at else "x" for place in range(count)), name="y", domain=domain)
    return helper.make_model(b.graph(["y"], {"x": [4, 4]}), opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.parametrize(
    ("op", "at"),
    [
        *((op, 1) for op in ("Conv", "ConvTranspose", "Gemm", "MatMul", "ConvInteger", "MatMulInteger")),
        *((op, 1) for op in ("LSTM", "GRU", "RNN", "Einsum", "DeformConv")),
        *((op, 2) for op in ("LSTM", "GRU", "RNN")),
        *((op, 0) for op in ("MatMul", "Gemm", "Gather", "Einsum", "QLinearMatMul")),
        ("QLinearConv", 3),
        ("QLinearMatMul", 3),
    ],
)
def test_a_weight_is_found_at_each_operator_that_has_one(op: str, at: int) -> None:
    assert names(used(op, at)) == [("dec.weight", "Sin")]


@pytest.mark.parametrize(
    ("op", "at"),
    [
        ("FusedConv", 1),
        ("FusedMatMul", 0),
        ("QGemm", 3),
        ("QLinearConv", 3),
        *(("MatMulNBits", at) for at in (1, 2)),
        *(("QMoE", at) for at in (2, 3, 9)),
    ],
)
def test_a_weight_is_found_at_operators_of_onnxruntime(op: str, at: int) -> None:
    assert names(used(op, at, "com.microsoft")) == [("dec.weight", "Sin")]
    assert not names(used(op, at, "com.example"))


#: What onnxruntime calls the inputs that are weights, or scales for each block of one.
WEIGHTS = r"[AaBbWwR]|weights?|[qk]v?_weight|global_weight|\w+_experts_weights|\w+_embedding|data|absmax"


def test_the_rows_of_onnxruntimes_operators_are_those_of_its_own_schemas() -> None:
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    schemas = {each.name: each for each in get_all_operator_schema() if each.domain == "com.microsoft"}
    rows = {op: at for (domain, op), at in weights._WEIGHTS.items() if domain == "com.microsoft"}
    known = rows.keys() & schemas.keys()
    assert len(known) > 20  # an older onnxruntime lacks some
    for op in known:
        inputs = [each.name for each in schemas[op].inputs]
        assert all(
            re.fullmatch(rf"{WEIGHTS}|(fc\d_)?scales", inputs[at])
            for at in rows[op] or ()
            if at < len(inputs)
        ), op


@pytest.mark.parametrize(
    ("op", "at"),
    [("Add", 1), ("Mul", 0), ("Conv", 0), ("Gather", 1), ("Concat", 0), ("QLinearConv", 4), ("LSTM", 0)],
)
def test_what_is_no_weight_of_its_operator_does_not_count(op: str, at: int) -> None:
    assert not names(used(op, at))


# -- what counts as computed


def product(build: Callable[[Build], str], opset: int = 17) -> ModelProto:
    """x·w, where a function builds w."""
    b = Build(opset)
    b.op("MatMul", "x", build(b), name="y")
    return helper.make_model(
        b.graph(["y"], {"x": [4, 4]}), opset_imports=[helper.make_opsetid("", opset)], functions=b.functions
    )


def clipped(b: Build) -> str:
    """A norm over the wrong elements, so that no rule has it."""
    v = stored(b, "dec.weight_v", (4, 4))
    return b.op("Div", v, b.op("ReduceMax", v, axes=[1]))


def halved(b: Build) -> str:
    """A scale that is computed of constants."""
    return b.op("Mul", b.number(2), b.number(0.5))


COMPUTED: dict[str, tuple[Callable[[Build], str], str]] = {
    "sine": (sine, "Sin"),
    "wrong norm": (clipped, "ReduceMax, Div"),
    "moved before": (lambda b: b.op("Exp", b.op("Transpose", stored(b, "dec.weight", (4, 4)))), "Exp"),
    "moved behind": (lambda b: b.op("Transpose", sine(b)), "Sin"),
    "sum of two": (
        lambda b: b.op(
            "Add", stored(b, "dec.weight", (4, 4)), b.op("MatMul", *(stored(b, n, (4, 4)) for n in "ab"))
        ),
        "MatMul, Add",
    ),
    "dequantized, then scaled": (
        lambda b: b.op(
            "Sin", b.op("DequantizeLinear", stored(b, "dec.weight", (4, 4), np.int8), b.number(2))
        ),
        "Sin",
    ),
    "cast, then scaled": (
        lambda b: b.op(
            "Mul", b.op("Cast", stored(b, "dec.weight", (4, 4), np.int8), to=1), stored(b, "s", (4, 1))
        ),
        "Mul",
    ),
    "of a computed scale": (
        lambda b: b.op("DequantizeLinear", stored(b, "dec.weight", (4, 4), np.int8), halved(b)),
        "Mul",
    ),
    "of a computed scale and back": (
        lambda b: b.op(
            "DequantizeLinear",
            b.op("QuantizeLinear", stored(b, "dec.weight", (4, 4)), b.number(2)),
            halved(b),
        ),
        "Mul",
    ),
    "of half precision": (lambda b: b.op("Cast", sine(b, dtype=np.float16), to=1), "Sin"),
}


@pytest.mark.parametrize("case", COMPUTED)
def test_a_weight_that_nodes_compute_is_named_with_their_operators(case: str) -> None:
    build, what = COMPUTED[case]
    ((name, found),) = names(product(build))
    assert (name, found) == ("dec.weight", what)


STORED: dict[str, Callable[[Build], str]] = {
    "as it is": lambda b: stored(b, "w", (4, 4)),
    "transposed": lambda b: b.op("Transpose", stored(b, "w", (4, 4))),
    "cast": lambda b: b.op("Cast", stored(b, "w", (4, 4), np.float16), to=1),
    "in parts": lambda b: b.op("Concat", *(stored(b, n, (2, 4)) for n in "ab"), axis=0),
    "reshaped to a computed shape": lambda b: b.op(
        "Reshape", stored(b, "w", (16,)), b.op("Mul", b.ints(2, 2), b.ints(2, 2))
    ),
    "cut": lambda b: b.op("Slice", stored(b, "w", (8, 4)), b.ints(0), b.op("Add", b.ints(2), b.ints(2))),
    "dequantized": lambda b: b.op("DequantizeLinear", stored(b, "w", (4, 4), np.int8), b.number(2)),
    "quantized and back": lambda b: b.op(
        "DequantizeLinear", b.op("QuantizeLinear", stored(b, "w", (4, 4)), b.number(2)), b.number(2)
    ),
    "filled": lambda b: b.op("ConstantOfShape", b.ints(4, 4)),
}


@pytest.mark.parametrize("case", STORED)
def test_a_weight_that_is_stored_in_another_layout_is_not_computed(case: str) -> None:
    assert not names(product(STORED[case]))


def dropped(b: Build) -> str:
    return b.op("Dropout", stored(b, "w", (4, 4)))


def trained(b: Build) -> str:
    w = stored(b, "w", (4, 4))
    return b.op("BatchNormalization", w, *(stored(b, n, (4,)) for n in "abcd"), training_mode=1)


RUN: dict[str, Callable[[Build], str]] = {
    "random": lambda b: b.op("Mul", sine(b), b.op("RandomNormal", shape=[4, 4])),
    "like random": lambda b: b.op("RandomUniformLike", sine(b)),
    "dropped": lambda b: b.op("Sin", dropped(b)),
    "of a norm that trains": lambda b: b.op("Sin", trained(b)),
    "of an input": lambda b: b.op("Mul", sine(b), "x"),
    "of a strange operator": lambda b: b.op("Draw", sine(b), domain="com.example"),
}


@pytest.mark.parametrize("case", RUN)
def test_what_may_be_something_else_at_each_run_is_no_constant(case: str) -> None:
    assert not names(product(RUN[case]))


def test_an_input_with_a_default_may_be_replaced_so_that_nothing_hangs_on_constants() -> None:
    model = product(sine)
    model.graph.input.append(helper.make_tensor_value_info("dec.weight_v", TensorProto.FLOAT, [4, 4]))
    model.ir_version = 8
    assert not names(model)
    model.ir_version = 3  # which lists each stored tensor as an input
    assert names(model) == [("dec.weight", "Sin")]


def test_a_constant_that_is_added_is_no_weight() -> None:
    b = Build()
    table = b.op("Sin", stored(b, "positions", (4, 4)))
    b.op("Add", b.op("MatMul", "x", stored(b, "w", (4, 4))), table, name="y")
    assert not names(b.model(["y"], {"x": [4, 4]}))


def test_a_product_of_constants_is_a_step_and_not_a_layer() -> None:
    b = Build()
    queries = b.op("MatMul", stored(b, "queries", (4, 4)), sine(b))
    b.op("Add", "x", queries, name="y")
    assert not names(b.model(["y"], {"x": [4, 4]}))


def test_a_table_of_whole_numbers_is_shape_arithmetic() -> None:
    b = Build()
    table = b.op("Mul", b.ints(1, 2, 3), b.ints(2, 2, 2))
    at = b.op("Cast", "x", to=TensorProto.INT64)
    b.op("Cast", b.op("Gather", table, at), name="y", to=1)
    assert not names(b.model(["y"], {"x": [2, 2]}))


def test_a_weight_that_is_an_output_too_is_computed_all_the_same() -> None:
    b = Build()
    w = sine(b)
    b.op("MatMul", "x", w, name="y")
    assert names(b.model(["y", w], {"x": [4, 4]})) == [("dec.weight", "Sin")]


# -- where it stands


def test_one_weight_of_several_layers_counts_once() -> None:
    b = Build()
    w = sine(b)
    b.op("MatMul", b.op("MatMul", "x", w), w, name="y")
    assert len(left(b.model(["y"], {"x": [4, 4]}))) == 1


def test_a_weight_in_a_branch_of_if_is_found_there() -> None:
    b = Build()
    branches = {}
    for name in ("then_branch", "else_branch"):
        inner = Build(prefix=name)
        w = sine(inner, f"{name}.weight_v")
        inner.op("MatMul", "x", w, name=f"{name}_y")
        branches[name] = inner.graph([f"{name}_y"])
    b.op("If", b.op("Cast", b.op("ReduceMax", "x", keepdims=0), to=9), name="y", **branches)
    model = b.model(["y"], {"x": [4, 4]})
    assert sorted(names(model)) == [("else_branch.weight", "Sin"), ("then_branch.weight", "Sin")]


def test_a_weight_that_if_makes_of_constants_is_counted_and_its_reason_told() -> None:
    b = Build()
    stored(b, "dec.weight_v", (4, 4))
    branches = {}
    for name in ("then_branch", "else_branch"):
        inner = Build(prefix=name)
        inner.op("Sin", "dec.weight_v", name=f"{name}_w")
        branches[name] = inner.graph([f"{name}_w"])
    w = b.op("If", b.tensor("training", np.array(False)), name="w", **branches)
    b.op("MatMul", "x", w, name="y")
    (weight,) = left(b.model(["y"], {"x": [4, 4]}))
    assert (weight.name, weight.what) == ("dec.weight", "Sin, If")
    assert weight.reason == "If decides at every run what it is"


def test_a_function_computes_a_weight_in_each_of_its_calls() -> None:
    b = Build()
    inner = [helper.make_node("Sin", ["v"], ["s"]), helper.make_node("MatMul", ["h", "s"], ["out"])]
    opsets = [helper.make_opsetid("", 17)]
    b.functions.append(helper.make_function("local", "Layer", ["h", "v"], ["out"], inner, opsets))
    first = b.op("Layer", "x", stored(b, "a.weight_v", (4, 4)), domain="local")
    second = b.op("Layer", first, stored(b, "b.weight_v", (4, 4)), domain="local")
    b.op("Layer", second, "x", name="y", domain="local")
    assert names(b.model(["y"], {"x": [4, 4]})) == [("a.weight", "Sin"), ("b.weight", "Sin")]


def test_a_weight_without_a_name_of_its_own_has_that_of_the_node_that_uses_it() -> None:
    b = Build()
    b.op("MatMul", "x", sine(b, "onnx::Sin_12"), name="y")
    b.nodes[-1].name = "/dec/MatMul"
    assert names(b.model(["y"], {"x": [4, 4]})) == [("/dec/MatMul", "Sin")]


# -- beside layers that are known


def weight_norm(b: Build, name: str = "lin") -> str:
    v, g = stored(b, f"{name}.weight_v", (4, 4)), stored(b, f"{name}.weight_g", (4, 1))
    return b.op("Mul", g, b.op("Div", v, b.op("ReduceL2", v, axes=[1])))


def test_weight_norm_folds_and_is_not_left() -> None:
    assert not names(product(weight_norm))


def test_what_is_computed_of_a_folded_weight_is_left() -> None:
    assert names(product(lambda b: b.op("Sin", weight_norm(b)))) == [("lin.weight", "Sin")]


def test_a_layer_of_another_kind_is_left_with_what_folds_it() -> None:
    (weight,) = left(product(weight_norm), kinds=("spectral",))
    assert (weight.name, weight.what, weight.fix) == ("lin.weight", "weight norm", "--kinds weight folds it")


def test_of_a_model_as_it_is_every_layer_is_told_too() -> None:
    model = model_of(product(weight_norm))
    found = find_graph_layers(model)
    (weight,) = weights_computed(model, found)
    assert (weight.what, weight.reason) == ("weight norm", "nothing folded it yet")


def test_a_refused_layer_is_left_with_its_reason() -> None:
    b = Build()
    w = weight_norm(b)
    b.op("MatMul", "x", w, name="y")
    (weight,) = left(b.model(["y", w], {"x": [4, 4]}))
    assert weight.what == "weight norm"
    assert "itself an output" in weight.reason


def test_a_step_of_weight_norm_that_a_layer_uses_too_is_none_of_its_rule() -> None:
    b = Build()
    v, g = stored(b, "lin.weight_v", (4, 4)), stored(b, "lin.weight_g", (4, 1))
    squared = b.op("Mul", v, v)
    norm = b.op("Sqrt", b.op("ReduceSum", squared, b.ints(1)))
    b.op("MatMul", b.op("MatMul", "x", b.op("Div", b.op("Mul", g, v), norm)), squared, name="y")
    (weight,) = left(b.model(["y"], {"x": [4, 4]}))
    assert (weight.name, weight.what) == ("lin.weight", "Mul")
