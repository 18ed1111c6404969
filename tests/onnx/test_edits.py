"""What folding changes in a graph: one tensor a layer, in its scope; what that leaves without a use goes."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, helper, numpy_helper
from torch import nn

from tests.helpers.export_models import LENGTH_KEPT_BY
from tests.helpers.marks import crossed
from tests.helpers.onnx_graphs import Build, applied, folded, model_of, run
from wnconvert.errors import LayerError
from wnconvert.onnx.graph.edits import fold_edits, renamed
from wnconvert.onnx.graph.layers import find_graph_layers

RNG = np.random.default_rng(6)
NORM = {"ReduceL2", "ReduceSumSquare", "Sqrt", "Div", "Pow"}


def numbers(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (RNG.standard_normal(shape) + 0.1).astype(np.float32)


def norm(b: Build, g: str, v: str, axes: Sequence[int] = (1,)) -> str:
    """v·(g/‖v‖)"""
    return b.op("Mul", v, b.op("Div", g, b.reduce("ReduceL2", v, axes)))


def pair(b: Build, name: str = "a", rows: int = 4, columns: int = 4) -> tuple[str, str]:
    return b.tensor(f"{name}_g", numbers(rows, 1)), b.tensor(f"{name}_v", numbers(rows, columns))


def feeds_of(model: ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    stored = {tensor.name for tensor in model.graph.initializer}
    feeds: dict[str, np.ndarray[Any, Any]] = {}
    for port in model.graph.input:
        shape = [size.dim_value for size in port.type.tensor_type.shape.dim]
        if port.name not in stored:
            kind = helper.tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type)
            feeds[port.name] = numbers(*shape).astype(kind)
    return feeds


def check_equal(model: ModelProto, made: ModelProto, tolerance: float = 1e-5) -> None:
    onnx.checker.check_model(made)
    feeds = feeds_of(model)
    for before, after in zip(run(model, feeds), run(made, feeds), strict=True):
        np.testing.assert_allclose(
            after.astype(np.float64), before.astype(np.float64), rtol=tolerance, atol=tolerance
        )


def check_folded(model: ModelProto, layers: int = 1, tolerance: float = 1e-5) -> ModelProto:
    """All is found, the result computes the same, and no arithmetic of a norm is left anywhere."""
    found, made = folded(model)
    assert not found.refused
    assert len(found.layers) == layers
    check_equal(model, made, tolerance)
    again = find_graph_layers(model_of(made))
    assert not again.layers
    assert not again.refused
    assert not [op for op in ops(made) if op in NORM]
    return made


def check_refused(model: ModelProto, reason: str) -> None:
    found, made = folded(model)
    assert not found.layers
    assert [reason in one.reason for one in found.refused] == [True]
    assert found.refused[0].fix
    assert made == model


def ops(model: ModelProto) -> list[str]:
    """Every node of a model, those of subgraphs and functions too."""
    waiting: list[Any] = [model.graph, *model.functions]
    seen: list[str] = []
    while waiting:
        scope = waiting.pop()
        for node in scope.node:
            seen.append(node.op_type)
            waiting += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return seen


def shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


X = {"x": (4, 4)}


# Layouts.


def test_a_weight_that_is_only_used_transposed_is_stored_transposed() -> None:
    b = Build()
    w = norm(b, *pair(b, rows=5))
    b.op("MatMul", "x", b.op("Transpose", w, perm=[1, 0]), name="y")
    made = check_folded(b.model(["y"], X))
    assert ops(made) == ["MatMul"]
    assert shapes(made) == {"a": (4, 5)}


def test_a_weight_in_two_layouts_is_one_tensor_and_its_transpose_stays() -> None:
    b = Build()
    w = norm(b, *pair(b))
    b.op("Add", b.op("MatMul", "x", w), b.op("MatMul", "x", b.op("Transpose", w, perm=[1, 0])), name="y")
    made = check_folded(b.model(["y"], X))
    assert sorted(ops(made)) == ["Add", "MatMul", "MatMul", "Transpose"]
    assert shapes(made) == {"a": (4, 4)}


def test_what_all_uses_have_in_common_is_folded_away() -> None:
    b = Build()
    w = b.op("Transpose", b.op("Identity", norm(b, *pair(b))), perm=[1, 0])
    flat = b.op("Reshape", b.op("Unsqueeze", w, b.ints(0)), b.ints(4, 4))
    b.op("Add", b.op("MatMul", "x", flat), b.op("Mul", "x", w), name="y")
    made = check_folded(b.model(["y"], X))
    assert sorted(ops(made)) == ["Add", "Constant", "Constant", "MatMul", "Mul", "Reshape", "Unsqueeze"]
    assert shapes(made) == {"a": (4, 4)}


def test_a_weight_computed_twice_is_one_tensor() -> None:
    b = Build()
    g, v = pair(b)
    b.op("Add", b.op("MatMul", "x", norm(b, g, v)), norm(b, g, v), name="y")
    made = check_folded(b.model(["y"], X))
    assert ops(made) == ["MatMul", "Add"]
    assert shapes(made) == {"a": (4, 4)}


def test_a_weight_computed_twice_in_two_layouts_is_one_tensor() -> None:
    b = Build()
    g, v = pair(b)
    turned = b.op("Transpose", norm(b, g, v), perm=[1, 0])
    b.op("Add", b.op("MatMul", "x", turned), norm(b, g, v), name="y")
    made = check_folded(b.model(["y"], X))
    assert ops(made) == ["Transpose", "MatMul", "Add"]
    assert shapes(made) == {"a": (4, 4)}


def test_a_weight_computed_in_two_layouts_is_two_tensors() -> None:
    b = Build()
    g, v = pair(b)
    turned = norm(b, b.op("Transpose", g, perm=[1, 0]), b.op("Transpose", v, perm=[1, 0]), [0])
    b.op("Add", b.op("MatMul", "x", turned), norm(b, g, v), name="y")
    made = check_folded(b.model(["y"], X))
    assert ops(made) == ["MatMul", "Add"]
    assert set(shapes(made)) == {"a", "a_2"}


def test_a_layout_that_no_strides_say_stays_a_node() -> None:
    b = Build()
    g, v = b.tensor("a_g", numbers(2, 1, 1)), b.tensor("a_v", numbers(2, 2, 4))
    moved = b.op("Transpose", norm(b, g, v, [1, 2]), perm=[1, 0, 2])
    b.op("MatMul", "x", b.op("Reshape", moved, b.ints(4, 4)), name="y")
    made = check_folded(b.model(["y"], X))
    assert ops(made) == ["Constant", "Reshape", "MatMul"]
    assert shapes(made) == {"a": (2, 2, 4)}


def test_a_weight_that_is_flattened_whole_is_stored_in_its_own_shape() -> None:
    b = Build()
    w = norm(b, *pair(b))
    b.op("Mul", "x", b.op("Reshape", w, b.ints(16)), name="y")
    made = check_folded(b.model(["y"], {"x": (16,)}))
    assert shapes(made) == {"a": (4, 4)}
    assert "Reshape" in ops(made)


def test_slices_of_a_weight_stay_nodes() -> None:
    b = Build()
    w = norm(b, *pair(b))
    halves = [b.op("Slice", w, b.ints(at), b.ints(at + 2), b.ints(0)) for at in (2, 0)]
    b.op("MatMul", "x", b.op("Concat", *halves, axis=0), name="y")
    made = check_folded(b.model(["y"], X))
    assert [op for op in ops(made) if op != "Constant"] == ["Slice", "Slice", "Concat", "MatMul"]


def test_an_output_that_is_a_view_keeps_its_name_and_its_node() -> None:
    b = Build()
    b.op("Transpose", norm(b, *pair(b)), perm=[1, 0], name="turned")
    b.op("MatMul", "x", "turned", name="y")
    made = check_folded(b.model(["y", "turned"], X))
    assert ops(made) == ["Transpose", "MatMul"]
    assert [port.name for port in made.graph.output] == ["y", "turned"]


# What goes, and what stays.


def test_an_initializer_that_something_else_uses_stays() -> None:
    b = Build()
    g, v = pair(b)
    b.op("Add", b.op("MatMul", "x", norm(b, g, v)), v, name="y")
    made = check_folded(b.model(["y"], X))
    assert set(shapes(made)) == {"a", "a_v"}


def test_axes_that_two_layers_share_go_with_the_last_of_them() -> None:
    b = Build(18)
    axes = b.tensor("axes", np.array([1], np.int64))
    made = "x"
    for name in ("a", "b"):
        g, v = pair(b, name)
        made = b.op("MatMul", made, b.op("Mul", v, b.op("Div", g, b.op("ReduceL2", v, axes))))
    b.op("Identity", made, name="y")
    model = b.model(["y"], X)
    assert set(shapes(check_folded(model, 2))) == {"a", "b"}
    read = model_of(model)
    one = applied(model, fold_edits(read, find_graph_layers(read).layers[:1]))
    check_equal(model, one)
    assert set(shapes(one)) == {"a", "b_g", "b_v", "axes"}


def test_what_was_dead_before_is_none_of_ours() -> None:
    b = Build()
    b.tensor("unused", numbers(3))
    b.op("Neg", "x", name="dead")
    g, v = pair(b)
    b.op("Sqrt", b.op("ReduceL2", v, name="also_dead"), name="dead_too")
    b.op("MatMul", "x", norm(b, g, v), name="y")
    found, made = folded(b.model(["y"], X))
    assert len(found.layers) == 1
    assert ops(made) == ["Neg", "ReduceL2", "Sqrt", "MatMul"]
    assert set(shapes(made)) == {"a", "a_v", "unused"}


def test_types_of_values_that_are_gone_go() -> None:
    b = Build()
    w = norm(b, *pair(b))
    b.op("MatMul", "x", w, name="y")
    model = b.model(["y"], X)
    for name in (w, b.nodes[0].output[0], "a_v"):
        model.graph.value_info.append(helper.make_tensor_value_info(name, 1, None))
    model.graph.value_info.append(helper.make_tensor_value_info("y", 1, [4, 4]))
    _, made = folded(model)
    assert [port.name for port in made.graph.value_info] == ["y"]


def test_inputs_that_named_an_initializer_go_with_it_before_ir_4() -> None:
    b = Build(8)
    g, v = pair(b)
    b.op("MatMul", "x", norm(b, g, v), name="y")
    model = b.model(["y"], {"x": (4, 4), g: (4, 1), v: (4, 4)}, ir_version=3)
    found, made = folded(model)
    assert len(found.layers) == 1
    assert [port.name for port in made.graph.input] == ["x"]


def test_only_the_wanted_layers_are_folded() -> None:
    b = Build()
    first = b.op("MatMul", "x", norm(b, *pair(b, "a")))
    b.op("MatMul", first, norm(b, *pair(b, "b")), name="y")
    model = b.model(["y"], X)
    read = model_of(model)
    layers = find_graph_layers(read).layers
    made = applied(model, fold_edits(read, layers[1:]))
    check_equal(model, made)
    assert [layer.layer.name for layer in find_graph_layers(model_of(made)).layers] == ["a"]
    assert fold_edits(read, ()) == replace(fold_edits(read, ()), tensors=(), dropped=frozenset(), inputs={})


def test_a_name_that_is_taken_is_not_taken_again() -> None:
    b = Build()
    b.op("Neg", "x", name="a")
    b.op("MatMul", "a", norm(b, *pair(b)), name="y")
    made = check_folded(b.model(["y"], X))
    assert set(shapes(made)) == {"a_2"}


def test_a_name_of_what_goes_is_free() -> None:
    b = Build()
    g, v = pair(b)
    b.op("Mul", v, b.op("Div", g, b.reduce("ReduceL2", v, [1])), name="a")
    b.op("MatMul", "x", "a", name="y")
    made = check_folded(b.model(["y"], X))
    assert set(shapes(made)) == {"a"}


# Subgraphs.


def branched(b: Build, inside: Callable[[Build], str], outside: Callable[[Build], str]) -> None:
    """y, of two branches that are made inside an If."""
    graphs = []
    for at, how in enumerate((inside, outside)):
        inner = Build(b.opset, prefix=f"in{at}_")
        graphs.append(inner.graph([how(inner)]))
    total = b.op("ReduceSum", "x", keepdims=0)
    b.op("If", b.op("Greater", total, b.number(0)), then_branch=graphs[0], else_branch=graphs[1], name="y")


def test_arithmetic_in_both_branches_is_one_tensor_outside() -> None:
    b = Build()
    g, v = pair(b)
    branched(
        b,
        lambda inner: inner.op("MatMul", "x", norm(inner, g, v)),
        lambda inner: inner.op("Add", "x", norm(inner, g, v)),
    )
    made = check_folded(b.model(["y"], X))
    assert set(shapes(made)) == {"a"}
    assert sorted(ops(made)) == ["Add", "Constant", "Greater", "If", "MatMul", "ReduceSum"]


def test_a_weight_made_outside_is_used_in_a_branch() -> None:
    b = Build()
    w = norm(b, *pair(b))
    branched(b, lambda inner: inner.op("MatMul", "x", w), lambda inner: inner.op("Neg", "x"))
    assert set(shapes(check_folded(b.model(["y"], X)))) == {"a"}


def test_a_layer_stored_in_a_branch_stays_there() -> None:
    b = Build()
    branched(
        b,
        lambda inner: inner.op("MatMul", "x", norm(inner, *pair(inner))),
        lambda inner: inner.op("Neg", "x"),
    )
    made = check_folded(b.model(["y"], X))
    branches = {one.name: one.g for node in made.graph.node for one in node.attribute if one.HasField("g")}
    assert [tensor.name for tensor in branches["then_branch"].initializer] == ["a"]
    assert not made.graph.initializer


def test_a_branch_that_returns_its_weight_is_refused() -> None:
    b = Build()
    g, v = pair(b)
    branched(b, lambda inner: norm(inner, g, v), lambda inner: inner.op("Neg", "x"))
    check_refused(b.model(["y"], X), "is itself an output")


def test_what_a_branch_hands_out_is_not_replaced_by_what_is_stored_in_it() -> None:
    b = Build()
    graphs = []
    for at in range(2):
        inner = Build(prefix=f"in{at}_")
        w = norm(inner, *pair(inner)) if at else inner.tensor("k", numbers(4, 4))
        graphs.append(inner.graph([inner.op("Transpose", w, perm=[1, 0])]))
    known = b.op("Constant", value=numpy_helper.from_array(np.array(False)))
    w = b.op("If", known, then_branch=graphs[0], else_branch=graphs[1])
    b.op("MatMul", "x", w, name="y")
    made = check_folded(b.model(["y"], X))
    assert sorted(ops(made)) == ["Constant", "If", "MatMul", "Transpose", "Transpose"]


def test_a_layer_in_a_branch_that_nothing_uses_any_more_goes_with_it() -> None:
    b = Build()
    g, v = pair(b)
    graphs = []
    for at in range(2):
        inner = Build(prefix=f"in{at}_")
        if at:
            scaled = inner.op("MatMul", v, norm(inner, *pair(inner, "b")))
            inner.op("ReduceMax", scaled, axes=[1], name="out")
        else:
            inner.op("ReduceL2", v, axes=[1], name="out")
        graphs.append(inner.graph(["out"]))
    known = b.op("Constant", value=numpy_helper.from_array(np.array(True)))
    n = b.op("If", known, then_branch=graphs[0], else_branch=graphs[1])
    b.op("MatMul", "x", b.op("Mul", v, b.op("Div", g, n)), name="y")
    model = b.model(["y"], X)
    found, made = folded(model)
    assert [item.layer.name for item in found.layers] == ["b", "a"]
    assert (set(shapes(made)), ops(made)) == ({"a"}, ["MatMul"])
    check_equal(model, made)


def test_a_tensor_that_a_loop_may_replace_is_refused() -> None:
    b = Build()
    g = b.tensor("a_g", numbers(4, 1))

    def inside(inner: Build) -> str:
        return inner.op("MatMul", "state", norm(inner, g, inner.tensor("a_v", numbers(4, 4))))

    body = loop_body(inside)
    body.input.append(helper.make_tensor_value_info("a_v", 1, [4, 4]))
    go = b.op("Constant", value=numpy_helper.from_array(np.array(True)))
    b.op("Loop", b.number(2, np.int64), go, "x", body=body, name="y")
    model = helper.make_model(b.graph(["y"], X), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found, made = folded(model)
    assert not found.layers
    assert ["may replace it" in one.reason for one in found.refused] == [True]
    assert made == model


def loop_body(how: Callable[[Build], str]) -> onnx.GraphProto:
    inner = Build(17, prefix="body_")
    made = how(inner)
    inner.op("Identity", "go_on", name="still")
    graph = inner.graph([made])
    graph.input.extend(
        [
            helper.make_tensor_value_info("i", 7, []),
            helper.make_tensor_value_info("go_on", 9, []),
            helper.make_tensor_value_info("state", 1, [4, 4]),
        ]
    )
    graph.output.insert(0, helper.make_tensor_value_info("still", 9, []))
    return graph


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_a_layer_in_a_loop_is_folded(where: str) -> None:
    b = Build()
    if where == "outside":
        g, v = pair(b)
        body = loop_body(lambda inner: inner.op("MatMul", "state", norm(inner, g, v)))
    else:
        body = loop_body(lambda inner: inner.op("MatMul", "state", norm(inner, *pair(inner))))
    go = b.op("Constant", value=numpy_helper.from_array(np.array(True)))
    b.op("Loop", b.number(2, np.int64), go, "x", body=body, name="y")
    made = check_folded(b.model(["y"], X))
    assert sorted(ops(made)) == ["Constant", "Constant", "Identity", "Loop", "MatMul"]


def test_a_layer_in_a_scan_is_folded() -> None:
    b = Build()
    g, v = pair(b)
    inner = Build(17, prefix="body_")
    inner.op("MatMul", "state", norm(inner, g, v), name="next")
    inner.op("Add", "next", "row", name="row_out")
    body = inner.graph(["next", "row_out"])
    body.input.extend(helper.make_tensor_value_info(name, 1, [4]) for name in ("state", "row"))
    b.nodes.append(helper.make_node("Scan", ["s", "x"], ["end", "y"], body=body, num_scan_inputs=1))
    model = b.model(["y"], {"x": (4, 4), "s": (4,)})
    assert set(shapes(check_folded(model))) == {"a"}


def test_a_state_of_a_loop_is_no_stored_tensor() -> None:
    b = Build()
    g, v = pair(b)
    body = loop_body(
        lambda inner: inner.op("Mul", inner.op("Div", "state", inner.op("ReduceL2", "state")), g)
    )
    go = b.op("Constant", value=numpy_helper.from_array(np.array(True)))
    b.op("Add", "x", b.op("Loop", b.number(2, np.int64), go, v, body=body), name="y")
    model = b.model(["y"], X)
    found, made = folded(model)
    assert not found.layers
    assert made == model


# Functions.


def function(
    name: str, inputs: Sequence[str], outputs: Sequence[str], b: Build, attributes: Sequence[str] = ()
) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", b.opset), helper.make_opsetid("local", 1)]
    return helper.make_function("local", name, inputs, outputs, b.nodes, opsets, attributes)


def normalizing() -> onnx.FunctionProto:
    """norm(v, g): with the axis as an attribute of its own."""
    b = Build(17, prefix="f")
    b.nodes.append(helper.make_node("ReduceL2", ["v"], ["n"], keepdims=1))
    reference = b.nodes[0].attribute.add()
    reference.name, reference.ref_attr_name, reference.type = "axes", "over", onnx.AttributeProto.INTS
    b.op("Mul", "v", b.op("Div", "g", "n"), name="w")
    return function("norm", ["v", "g"], ["w"], b, ["over"])


def test_a_call_that_returns_the_weight_goes_with_its_function() -> None:
    b = Build()
    b.functions.append(normalizing())
    g, v = pair(b)
    b.op("MatMul", "x", b.op("norm", v, g, domain="local", over=[1]), name="y")
    made = check_folded(b.model(["y"], X))
    assert ops(made) == ["MatMul"]
    assert not made.functions


def test_a_function_that_is_still_called_stays() -> None:
    b = Build()
    b.functions.append(normalizing())
    g, v = pair(b)
    first = b.op("MatMul", "x", b.op("norm", v, g, domain="local", over=[1]))
    b.op("norm", first, g, domain="local", over=[1], name="y")
    found, made = folded(b.model(["y"], X))
    assert len(found.layers) == 1
    assert [node.op_type for node in made.graph.node] == ["MatMul", "norm"]
    assert len(made.functions) == 1


def test_an_attribute_that_no_call_gives_is_not_guessed() -> None:
    b = Build()
    b.functions.append(normalizing())
    g, v = pair(b)
    b.op("MatMul", "x", b.op("norm", v, g, domain="local"), name="y")
    model = b.model(["y"], X)
    found, made = folded(model)
    assert not found.layers
    assert made == model


def test_a_layer_stored_in_a_function_is_folded_there() -> None:
    inner = Build(prefix="f")
    for name, shape in (("c_g", (4, 1)), ("c_v", (4, 4))):
        inner.op("Constant", value=numpy_helper.from_array(numbers(*shape)), name=name)
    inner.op("MatMul", "a", norm(inner, "c_g", "c_v"), name="b")
    b = Build()
    b.functions.append(function("layer", ["a"], ["b"], inner))
    b.op("layer", b.op("layer", "x", domain="local"), domain="local", name="y")
    made = check_folded(b.model(["y"], X))
    assert [node.op_type for node in made.functions[0].node] == ["Constant", "MatMul"]
    assert made.functions[0].node[0].output[0] == "c"


def test_a_layer_stored_in_a_function_that_returns_it_is_refused() -> None:
    inner = Build(prefix="f")
    for name, shape in (("c_g", (4, 1)), ("c_v", (4, 4))):
        inner.op("Constant", value=numpy_helper.from_array(numbers(*shape)), name=name)
    inner.op("Identity", norm(inner, "c_g", "c_v"), name="b")
    b = Build()
    b.functions.append(function("weight", [], ["b"], inner))
    b.op("MatMul", "x", b.op("weight", domain="local"), name="y")
    check_refused(b.model(["y"], X), "stored in a function")


def linear() -> onnx.FunctionProto:
    """linear(x, v, g): x·wᵀ"""
    inner = Build(prefix="f")
    inner.op("MatMul", "u", inner.op("Transpose", norm(inner, "g", "v"), perm=[1, 0]), name="out")
    return function("linear", ["u", "v", "g"], ["out"], inner)


def test_a_function_is_given_the_weight_in_place_of_what_it_was_made_of() -> None:
    b = Build()
    b.functions.append(linear())
    made = "x"
    for name, rows, columns in (("a", 5, 4), ("b", 3, 5)):
        g, v = pair(b, name, rows, columns)
        made = b.op("linear", made, v, g, domain="local", name="y" if name == "b" else "")
    folded_model = check_folded(b.model(["y"], X), layers=2)
    assert list(folded_model.functions[0].input) == ["u", "weight"]
    assert shapes(folded_model) == {"a": (4, 5), "b": (5, 3)}
    assert ops(folded_model) == ["MatMul", "linear", "linear"]


def test_a_function_within_a_function_is_given_it_too() -> None:
    b, outer = Build(), Build(prefix="o")
    outer.op("linear", outer.op("linear", "u", "v", "g", domain="local"), "v", "g", domain="local", name="b")
    b.functions += [linear(), function("twice", ["u", "v", "g"], ["b"], outer)]
    g, v = pair(b)
    b.op("twice", "x", v, g, domain="local", name="y")
    made = check_folded(b.model(["y"], X))
    assert {one.name: list(one.input) for one in made.functions} == {
        "linear": ["u", "weight"],
        "twice": ["u", "a_2"],
    }
    assert list(made.graph.node[0].input) == ["x", "a"]


def test_a_formal_that_is_used_otherwise_stays() -> None:
    inner = Build(prefix="f")
    inner.op("Add", inner.op("MatMul", "u", norm(inner, "g", "v")), "v", name="b")
    b = Build()
    b.functions.append(function("odd", ["g", "v", "u"], ["b"], inner))
    g, v = pair(b)
    b.op("odd", g, v, "x", domain="local", name="y")
    made = check_folded(b.model(["y"], X))
    assert list(made.graph.node[0].input) == [v, "x", "a"]


def test_a_function_that_is_also_called_with_activations_is_refused() -> None:
    b = Build()
    b.functions.append(linear())
    g, v = pair(b)
    b.op("linear", b.op("linear", "x", v, g, domain="local"), "x", g, domain="local", name="y")
    check_refused(b.model(["y"], X), "in some of its calls only")


def test_layers_that_share_a_function_are_folded_together_or_not_at_all() -> None:
    b = Build()
    b.functions.append(linear())
    first = b.op("linear", "x", *pair(b, "a")[::-1], domain="local")
    b.op("linear", first, *pair(b, "b")[::-1], domain="local", name="y")
    read = model_of(b.model(["y"], X))
    with pytest.raises(LayerError, match="function linear computes a and other weights"):
        fold_edits(read, find_graph_layers(read).layers[:1])


def test_a_function_that_returns_what_it_uses_is_refused() -> None:
    inner = Build(prefix="f")
    inner.op("Mul", "v", inner.op("Div", "g", inner.reduce("ReduceL2", "v", [1])), name="w")
    inner.op("MatMul", "u", "w", name="b")
    b = Build()
    b.functions.append(function("both", ["u", "v", "g"], ["b", "w"], inner))
    g, v = pair(b)
    b.nodes.append(helper.make_node("both", ["x", v, g], ["y", ""], domain="local"))
    check_refused(b.model(["y"], X), "both uses and returns it")


# Other names.


def named() -> tuple[ModelProto, Any, Any]:
    b = Build()
    w = norm(b, *pair(b))
    bias = b.tensor("bias", numbers(4))
    b.op("Neg", "x", name="busy")
    branched(
        b,
        lambda inner: inner.op("Add", inner.op("MatMul", "busy", w), bias),
        lambda inner: inner.op("Add", "x", bias),
    )
    model = b.model(["y"], X)
    read = model_of(model)
    return model, read, fold_edits(read, find_graph_layers(read).layers)


def test_initializers_are_renamed_wherever_they_are_used() -> None:
    model, read, changes = named()
    made = applied(model, renamed(read, changes, {"a": "net.weight", "bias": "net.bias"}))
    check_equal(model, made)
    assert set(shapes(made)) == {"net.weight", "net.bias"}


def test_two_names_can_change_places() -> None:
    model, read, changes = named()
    made = applied(model, renamed(read, changes, {"a": "bias", "bias": "a"}))
    check_equal(model, made)
    assert shapes(made) == {"a": (4,), "bias": (4, 4)}


def test_a_name_of_what_was_dropped_can_be_given() -> None:
    model, read, changes = named()
    made = applied(model, renamed(read, changes, {"a": "a_v"}))
    check_equal(model, made)
    assert set(shapes(made)) == {"a_v", "bias"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"a": "busy"}, "busy is taken"),
        ({"a": "x"}, "x is taken"),
        ({"a": "bias"}, "bias is taken"),
        ({"a": "n", "bias": "n"}, "n is taken"),
        ({"a": ""}, "the empty name is taken"),
        ({"a_v": "n"}, "no initializer of the graph is called a_v"),
        ({"busy": "n"}, "no initializer of the graph is called busy"),
    ],
)
def test_a_name_that_cannot_be_given_is_an_error(names: dict[str, str], message: str) -> None:
    _, read, changes = named()
    with pytest.raises(LayerError, match=message):
        renamed(read, changes, names)


# What torch's exporters make.


class Net(nn.Module):
    """Every kind of layer: Linear of either dim and of none, convolutions, dim 2 of a grouped one."""

    def __init__(self, wn: Callable[..., Any]) -> None:
        super().__init__()
        self.conv = wn(nn.Conv1d(3, 4, 3))
        self.rows = wn(nn.Linear(4, 5))
        self.columns = wn(nn.Linear(5, 6), dim=1)
        self.whole = wn(nn.Linear(6, 6), dim=None)
        self.grouped = wn(nn.Conv1d(6, 6, 4, groups=3), dim=2)
        self.up = wn(nn.ConvTranspose1d(6, 4, 3))
        self.flat = wn(nn.Conv2d(1, 2, (2, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x).transpose(1, 2)
        y = self.whole(self.columns(self.rows(y))).transpose(1, 2)
        out: torch.Tensor = self.flat(self.up(self.grouped(y)).unsqueeze(1))
        return out


class Recurrent(nn.Module):
    """Two RNNs with a normalized weight among their parameters."""

    def __init__(self, wn: Callable[..., Any]) -> None:
        super().__init__()
        self.lstm = wn(nn.LSTM(3, 4, batch_first=True), "weight_hh_l0")
        self.gru = wn(nn.GRU(4, 4, batch_first=True), "weight_ih_l0")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.gru(self.lstm(x)[0])[0]
        return out


FORMS: dict[str, Callable[..., Any]] = {
    "legacy": nn.utils.weight_norm,
    "parametrize": nn.utils.parametrizations.weight_norm,
}
EXPORTERS: dict[str, dict[str, Any]] = {
    "dynamo": {"dynamo": True, "optimize": False, "verbose": False},
    "torchscript 11": {"dynamo": False, "opset_version": 11, "do_constant_folding": False},
    "torchscript 13": {"dynamo": False, "opset_version": 13, "do_constant_folding": False},
    "torchscript 18": {"dynamo": False, "opset_version": 18, "do_constant_folding": False},
    "torchscript 20": {"dynamo": False, "opset_version": 20, "do_constant_folding": False},
    "functions": {
        "dynamo": False,
        "opset_version": 17,
        "do_constant_folding": False,
        "export_modules_as_functions": True,
    },
}
#: torch cannot export parametrizations as functions.
CASES = [case for case in itertools.product(EXPORTERS, FORMS) if case != ("functions", "parametrize")]
LAYERS = ["columns", "conv", "flat", "grouped", "rows", "up", "whole"]


def exported(module: nn.Module, example: torch.Tensor, options: dict[str, Any]) -> ModelProto:
    file: Any = io.BytesIO()  # which torch takes though it does not say so
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (example,), file, **options)
    return onnx.load_from_string(file.getvalue())


def of_form(kind: Callable[..., nn.Module], form: str) -> nn.Module:
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(FORMS[form])


@pytest.mark.parametrize(("exporter", "form"), CASES)
def test_what_an_exporter_leaves_is_folded(exporter: str, form: str) -> None:
    model = exported(of_form(Net, form), torch.randn(1, 3, 20), EXPORTERS[exporter])
    made = check_folded(model, layers=7)
    assert {f"{name}.weight" for name in LAYERS} <= shapes(made).keys()
    assert not [name for name in shapes(made) if "weight_" in name or "original" in name]
    if exporter != "functions":  # there a function still turns the weight it is given
        assert ops(made).count("Transpose") == 2  # the activations'
        assert shapes(made)["rows.weight"] == (4, 5)


@crossed(exporter=["torchscript 13", *({"dynamo"} & {*LENGTH_KEPT_BY})], form=FORMS)
def test_weights_of_rnns_are_folded_and_cut_as_before(exporter: str, form: str) -> None:
    model = exported(of_form(Recurrent, form), torch.randn(1, 5, 3), EXPORTERS[exporter])
    made = check_folded(model, layers=2)
    assert {"lstm.weight_hh_l0", "gru.weight_ih_l0"} <= shapes(made).keys()


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript 13"])
def test_half_precision_is_folded(exporter: str) -> None:
    model = exported(of_form(Net, "parametrize").half(), torch.randn(1, 3, 20).half(), EXPORTERS[exporter])
    made = check_folded(model, layers=7, tolerance=4e-3)
    weights = [tensor for tensor in made.graph.initializer if tensor.name.endswith(".weight")]
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.FLOAT16}
