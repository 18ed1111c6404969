"""Batch norms fold into the linear node before them, told by the graph; where they must not, they stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.helpers.onnx_graphs import COMBINED, NORMS, Build, applied, folded, model_of, run
from wnconvert.layers.rules import Norm, NormBehind, Rule
from wnconvert.onnx.graph.edits import fold_edits
from wnconvert.onnx.graph.layers import find_graph_layers

RNG = np.random.default_rng(15)
EPS = float(np.float32(1e-3))
KINDS = ("weight", "norm")


def numbers(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (RNG.standard_normal(shape) + 0.1).astype(np.float32)


def norm(b: Build, x: str, channels: int, *, name: str = "", prefix: str = "bn", **attributes: Any) -> str:
    """A batch norm of numbers that are nothing special."""
    parts = (
        b.tensor(f"{prefix}.weight", numbers(channels)),
        b.tensor(f"{prefix}.bias", numbers(channels)),
        b.tensor(f"{prefix}.running_mean", numbers(channels)),
        b.tensor(f"{prefix}.running_var", np.abs(numbers(channels)) + np.float32(0.01)),
    )
    return b.op("BatchNormalization", x, *parts, name=name, **{"epsilon": 1e-3, **attributes})


def model(b: Build, shape: Sequence[int], outputs: Sequence[str] = ("y",), rank: int = 0) -> onnx.ModelProto:
    """What was built, of an input x; outputs have any sizes, and its rank or another."""
    sizes = [None] * (rank or len(shape))
    graph = helper.make_graph(
        b.nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in outputs],
        b.stored,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", b.opset)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def check_equal(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    onnx.checker.check_model(after)
    shape = [size.dim_value for size in before.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": numbers(*shape)}
    for old, new in zip(run(before, feeds), run(after, feeds), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-4)


def check_folded(before: onnx.ModelProto, *operations: Any, left: Sequence[str]) -> None:
    """It is one layer of this rule; folded, it computes the same with the nodes that are ``left``."""
    found, after = folded(before, KINDS)
    assert not found.stay
    assert [layer.layer.rule for layer in found.layers] == [Rule(operations)]
    check_equal(before, after)
    assert [node.op_type for node in after.graph.node] == list(left)
    assert [port.name for port in after.graph.output] == [port.name for port in before.graph.output]
    again = find_graph_layers(model_of(after), KINDS)
    assert not again.layers + again.stay


def why_it_stays(before: onnx.ModelProto) -> str:
    """The one reason for which a model is left as it is."""
    found, after = folded(before, KINDS)
    assert not found.layers + found.refused
    assert after == before
    (stays,) = found.stay
    return stays.reason


# Each linear node.


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_norm_folds_into_the_convolution_before_it(groups: int, *, biased: bool) -> None:
    b = Build()
    w = b.tensor("conv.weight", numbers(8, 4 // groups, 3, 3))
    bias = [b.tensor("conv.bias", numbers(8))] if biased else []
    norm(b, b.op("Conv", "x", w, *bias, group=groups, pads=[1] * 4), 8, name="y")
    check_folded(model(b, (2, 4, 5, 6)), NormBehind(0, EPS), left=["Conv"])


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("groups", "outputs"), [(1, 4), (2, 4), (4, 4), (2, 6), (4, 8)])
def test_a_norm_folds_into_a_transposed_convolution_by_its_groups(
    groups: int, outputs: int, *, biased: bool
) -> None:
    b = Build()
    w = b.tensor("up.weight", numbers(4, outputs // groups, 3))
    bias = [b.tensor("up.bias", numbers(outputs))] if biased else []
    norm(b, b.op("ConvTranspose", "x", w, *bias, group=groups, strides=[2]), outputs, name="y")
    check_folded(model(b, (2, 4, 5)), NormBehind(1, EPS, groups), left=["ConvTranspose"])


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("turned", "alpha"), [(0, 1.0), (1, 1.0), (1, 0.5)])
def test_a_norm_folds_into_a_gemm_either_way(turned: int, alpha: float, *, biased: bool) -> None:
    b = Build()
    w = b.tensor("fc.weight", numbers(*((6, 4) if turned else (4, 6))))
    bias = [b.tensor("fc.bias", numbers(6))] if biased else []
    norm(b, b.op("Gemm", "x", w, *bias, transB=turned, alpha=alpha), 6, name="y")
    check_folded(model(b, (3, 4)), NormBehind(1 - turned, EPS), left=["Gemm"])


@pytest.mark.parametrize("bias_first", [False, True])
def test_a_norm_folds_into_a_product_and_its_bias(*, bias_first: bool) -> None:
    b = Build()
    made = b.op("MatMul", "x", b.tensor("fc.weight", numbers(4, 6)))
    bias = b.tensor("fc.bias", numbers(1, 6))
    norm(b, b.op("Add", *((bias, made) if bias_first else (made, bias))), 6, name="y")
    check_folded(model(b, (3, 4)), NormBehind(1, EPS), left=["MatMul", "Add"])


def test_a_product_without_a_bias_gets_one_in_the_place_of_its_norm() -> None:
    b = Build()
    w = b.op("Transpose", b.tensor("fc.weight", numbers(6, 4)), perm=[1, 0])
    b.op("Relu", norm(b, b.op("MatMul", "x", w), 6), name="y")
    check_folded(model(b, (3, 4)), NormBehind(0, EPS), left=["MatMul", "Add", "Relu"])


def test_the_rank_of_a_product_may_be_that_of_nodes_before_it() -> None:
    b = Build()
    first = b.op("Relu", b.op("Gemm", "x", b.tensor("a", numbers(4, 5))))
    norm(b, b.op("MatMul", first, b.tensor("fc.weight", numbers(5, 6))), 6, name="y")
    check_folded(model(b, (3, 4)), NormBehind(1, EPS), left=["Gemm", "Relu", "MatMul", "Add"])


# Views between the two.

View = Callable[[Build, str], str]
VIEWS: dict[str, tuple[View, Sequence[str], int]] = {
    "channels moved forward": (lambda b, x: b.op("Transpose", x, perm=[0, 2, 1]), ["Transpose"], 3),
    "rows put together": (lambda b, x: b.op("Reshape", x, b.ints(-1, 6)), ["Reshape"], 2),
    "an axis behind": (
        lambda b, x: b.unsqueeze(b.op("Transpose", x, perm=[0, 2, 1]), [3]),
        ["Transpose", "Unsqueeze"],
        4,
    ),
    "all at once": (
        lambda b, x: b.op("Identity", b.op("Reshape", b.unsqueeze(x, [-3]), b.ints(-1, 6))),
        ["Unsqueeze", "Reshape", "Identity"],
        2,
    ),
}


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("view", list(VIEWS))
def test_views_between_them_stay_where_the_channels_do(view: str, *, biased: bool) -> None:
    b = Build()
    made = b.op("MatMul", "x", b.tensor("fc.weight", numbers(4, 6)))
    made = b.op("Add", made, b.tensor("fc.bias", numbers(6))) if biased else made
    how, left, rank = VIEWS[view]
    norm(b, how(b, made), 6, name="y")
    before = model(b, (3, 5, 4), rank=rank)
    every = ["MatMul", *(["Add"] if biased else []), *left, *([] if biased else ["Add"])]
    found, after = folded(before, KINDS)
    assert len(found.layers) == 1
    check_equal(before, after)
    assert [node.op_type for node in after.graph.node if node.op_type != "Constant"] == every


def test_views_behind_a_convolution_stay_where_the_channels_do() -> None:
    b = Build()
    made = b.op("Conv", "x", b.tensor("conv.weight", numbers(8, 4, 3)))
    flat = b.op("Reshape", b.unsqueeze(made, [-1]), b.ints(0, 8, -1))
    norm(b, b.op("Squeeze", b.unsqueeze(flat, [2]), b.ints(2)), 8, name="y")
    before = model(b, (2, 4, 5))
    found, after = folded(before, KINDS)
    assert len(found.layers) == 1
    check_equal(before, after)


MIXED: dict[str, View] = {
    "two axes swapped": lambda b, x: b.op("Transpose", x, perm=[0, 2, 1]),
    "another grouping": lambda b, x: b.op("Reshape", x, b.ints(3, 6, 6)),
    "channels that are cut": lambda b, x: b.op(
        "Reshape", b.op("Reshape", x, b.ints(0, 3, -1)), b.ints(0, 6, -1)
    ),
    "a shape of run time": lambda b, x: b.op("Reshape", x, b.op("Shape", x)),
    "flat": lambda b, x: b.op("Reshape", b.op("Flatten", x), b.ints(3, 6, 6)),
}


@pytest.mark.parametrize("view", list(MIXED))
def test_a_view_that_may_mix_the_channels_keeps_the_norm(view: str) -> None:
    b = Build()
    made = b.op("Conv", "x", b.tensor("conv.weight", numbers(6, 4, 3)))
    norm(b, MIXED[view](b, made), 6, name="y")
    before = model(b, (3, 4, 8))
    assert why_it_stays(before)


# Stacks, kinds, numbers.


def normed(b: Build, shape: Sequence[int] = (8, 4, 3)) -> str:
    g, v = b.tensor("conv.weight_g", numbers(shape[0], 1, 1)), b.tensor("conv.weight_v", numbers(*shape))
    return COMBINED["g(v/n)"](b, g, v, NORMS["ReduceL2"](b, v, shape, 0))


def test_weight_norm_and_the_norm_behind_it_are_one_layer() -> None:
    b = Build()
    norm(b, b.op("Conv", "x", normed(b)), 8, name="y")
    before = model(b, (2, 4, 5))
    check_folded(before, Norm(0), NormBehind(0, EPS), left=["Conv"])
    for kinds, rules, others in ((("weight",), [Norm], 1), (("norm",), [], 1), ((), [], 1)):
        found = find_graph_layers(model_of(before), kinds)
        assert [[type(each) for each in item.layer.rule.operations] for item in found.layers] == [
            rules
        ] * len(rules)
        assert [layer.rule.kinds for layer in found.others] == [("weight", "norm")] * others


def test_a_computed_weight_of_two_convolutions_is_folded_without_their_norms() -> None:
    b = Build()
    w = normed(b)
    first = norm(b, b.op("Conv", "x", w), 8)
    b.op("Add", first, norm(b, b.op("Conv", "x", w), 8, prefix="bn2"), name="y")
    before = model(b, (2, 4, 5))
    found, after = folded(before, KINDS)
    assert [item.layer.rule for item in found.layers] == [Rule((Norm(0),))]
    assert {each.reason for each in found.stay} == {"the weight of the layer before it is used elsewhere too"}
    check_equal(before, after)


@pytest.mark.parametrize("attributes", [{}, {"epsilon": 1e-5}])
def test_eps_is_the_number_of_the_graph(attributes: dict[str, Any]) -> None:
    b = Build()
    w = numbers(64, 4, 3)
    made = b.op("Conv", "x", b.tensor("conv.weight", w))
    parts = [b.tensor("ones", np.ones(64, np.float32)), b.tensor("zeros", np.zeros(64, np.float32))]
    b.op("BatchNormalization", made, parts[0], *[parts[1]] * 3, name="y", **attributes)
    _, after = folded(model(b, (2, 4, 5)), KINDS)
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in after.graph.initializer}
    assert stored.keys() == {"conv.weight", "conv.bias"}
    eps = float(np.float32(1e-5))
    np.testing.assert_array_equal(stored["conv.weight"], (w.astype(np.float64) / np.sqrt(eps)).astype("f"))
    assert (stored["conv.weight"] != (w.astype(np.float64) / np.sqrt(1e-5)).astype("f")).any()


def test_tensors_that_others_use_too_stay_for_them() -> None:
    b = Build()
    bias = b.tensor("conv.bias", numbers(8))
    made = norm(b, b.op("Conv", "x", b.tensor("conv.weight", numbers(8, 4, 1)), bias), 8)
    b.op("Mul", b.op("Mul", made, b.unsqueeze(bias, [1])), b.unsqueeze("bn.weight", [1]), name="y")
    before = model(b, (2, 4, 5))
    found, after = folded(before, KINDS)
    check_equal(before, after)
    assert len(found.layers) == 1
    assert {each.name for each in after.graph.initializer} == {
        "conv.weight",
        "conv.bias",
        "conv.bias_2",
        "bn.weight",
    }


def test_norms_fold_in_branches_too() -> None:
    b, inner = Build(), Build(prefix="i")
    b.tensor("conv.weight", numbers(8, 4, 1))
    norm(inner, inner.op("Conv", "x", "conv.weight"), 8, name="z")
    branch = inner.graph(["z"])
    other = Build(prefix="o")
    other.op("Conv", "x", other.tensor("w", numbers(8, 4, 1)), name="z")
    b.op(
        "If",
        b.op("Greater", b.op("ReduceMax", "x", keepdims=0), b.number(-9)),
        name="y",
        then_branch=branch,
        else_branch=other.graph(["z"]),
    )
    before = model(b, (2, 4, 5))
    found, after = folded(before, KINDS)
    assert len(found.layers) == 1
    check_equal(before, after)
    then = next(node for node in after.graph.node if node.op_type == "If").attribute
    assert ["Conv"] in [[node.op_type for node in each.g.node] for each in then]


# What looks like it and is not.

Decoy = Callable[[Build], Sequence[str] | None]


def conv(b: Build, name: str = "conv.weight", outputs: int = 8) -> str:
    return b.op("Conv", "x", b.tensor(name, numbers(outputs, 4, 1)))


def in_training(b: Build) -> None:
    norm(b, conv(b), 8, training_mode=1, name="y")


def with_a_second_use(b: Build) -> None:
    made = conv(b)
    b.op("Add", norm(b, made, 8), made, name="y")


def before_an_output(b: Build) -> Sequence[str]:
    made = conv(b)
    norm(b, made, 8, name="y")
    return [made, "y"]


def used_in_a_branch(b: Build) -> None:
    made = norm(b, b.op("Identity", conv(b)), 8)
    then, other = Build(prefix="then"), Build(prefix="else")
    then.op("Identity", b.nodes[0].output[0], name="t")
    other.op("Neg", b.nodes[0].output[0], name="t")
    b.op(
        "If",
        b.op("Greater", b.op("ReduceMax", made, keepdims=0), b.number(0)),
        name="y",
        then_branch=then.graph(["t"]),
        else_branch=other.graph(["t"]),
    )


def of_a_weight_that_is_used_twice(b: Build) -> None:
    made = norm(b, conv(b), 8)
    b.op("Add", made, b.op("Conv", "x", "conv.weight"), name="y")


def behind_an_activation(b: Build) -> None:
    norm(b, b.op("Relu", conv(b)), 8, name="y")


def behind_a_sum(b: Build) -> None:
    norm(b, b.op("Add", conv(b), b.op("Conv", "x", b.tensor("w", numbers(8, 4, 1)))), 8, name="y")


def behind_a_pool(b: Build) -> None:
    norm(b, b.op("MaxPool", conv(b), kernel_shape=[2]), 8, name="y")


def behind_the_input(b: Build) -> None:
    norm(b, "x", 4, name="y")


def of_a_weight_of_run_time(b: Build) -> None:
    w = b.op("Mul", b.tensor("w", numbers(8, 4, 1)), b.op("ReduceMax", "x", keepdims=0))
    norm(b, b.op("Conv", "x", w), 8, name="y")


def of_a_bias_of_run_time(b: Build) -> None:
    bias = b.op("Mul", b.tensor("bias", numbers(8)), b.op("ReduceMax", "x", keepdims=0))
    norm(b, b.op("Conv", "x", b.tensor("w", numbers(8, 4, 1)), bias), 8, name="y")


def of_channels_that_are_rows(b: Build) -> None:
    made = b.op("MatMul", "x", b.tensor("w", numbers(5, 8)))
    norm(b, made, 4, name="y")


def of_a_multiple_of_the_bias(b: Build) -> None:
    flat = b.op("Reshape", "x", b.ints(-1, 20))
    made = b.op("Gemm", flat, b.tensor("w", numbers(20, 8)), b.tensor("bias", numbers(8)), beta=0.5)
    norm(b, made, 8, name="y")


def of_stacks_of_matrices(b: Build) -> None:
    made = b.op("MatMul", "x", b.tensor("w", numbers(1, 5, 4)))
    norm(b, made, 4, name="y")


DECOYS: dict[Decoy, str] = {
    in_training: "it is in training mode, so it takes the statistics of the batch",
    with_a_second_use: "t0, which comes before it, is used elsewhere too",
    before_an_output: "t0, which comes before it, is used elsewhere too",
    used_in_a_branch: "t0, which comes before it, is used elsewhere too",
    of_a_weight_that_is_used_twice: "the weight of the layer before it is used elsewhere too",
    behind_an_activation: "it is behind Relu, not behind a linear layer",
    behind_a_sum: "it is behind Add, not behind a linear layer",
    behind_a_pool: "it is behind MaxPool, not behind a linear layer",
    behind_the_input: "it is behind an input, not behind a linear layer",
    of_a_weight_of_run_time: "the weight of the layer before it is computed in a way that is not known",
    of_a_bias_of_run_time: "the bias of the layer before it is not a stored tensor",
    of_channels_that_are_rows: "its channels are not the outputs of the layer before it",
    of_a_multiple_of_the_bias: "the layer before it takes a multiple of its bias",
    of_stacks_of_matrices: "it is behind a product of stacks of matrices",
}


@pytest.mark.parametrize("decoy", DECOYS, ids=lambda decoy: decoy.__name__)
def test_a_norm_that_must_not_fold_stays_with_the_reason(decoy: Decoy) -> None:
    b = Build()
    outputs = decoy(b) or ["y"]
    rank = 2 if decoy is of_a_multiple_of_the_bias else 3
    assert why_it_stays(model(b, (2, 4, 5), outputs, rank)) == DECOYS[decoy]


def test_a_norm_whose_statistics_are_computed_stays() -> None:
    b = Build()
    made = conv(b)
    mean = b.op("Mul", b.tensor("mean", numbers(8)), b.op("ReduceMax", "x", keepdims=0))
    norm(b, made, 8, name="y")
    b.nodes[-1].input[3] = mean
    b.stored = [each for each in b.stored if each.name != "bn.running_mean"]
    assert why_it_stays(model(b, (2, 4, 5))) == "its mean is not a stored tensor"


def test_a_norm_of_a_tensor_that_a_caller_may_replace_stays() -> None:
    b = Build()
    norm(b, conv(b), 8, name="y")
    before = model(b, (2, 4, 5))
    before.graph.input.append(helper.make_tensor_value_info("bn.weight", TensorProto.FLOAT, [8]))
    assert why_it_stays(before) == "bn.weight is an input of the graph too, so a caller may replace it"


def test_a_norm_without_adjacent_kinds_is_counted_and_stays() -> None:
    b = Build()
    norm(b, conv(b), 8, name="y")
    before = model(b, (2, 4, 5))
    read = model_of(before)
    found = find_graph_layers(read)
    assert [layer.rule.kinds for layer in found.others] == [("norm",)]
    assert applied(before, fold_edits(read, found.layers)) == before


def test_a_scale_of_ones_and_an_offset_of_zeros_need_not_be_stored() -> None:
    b = Build()
    ones, zeros = (b.op("Expand", b.op("CastLike", b.number(number), "x"), b.ints(8)) for number in (1, 0))
    made = conv(b)
    mean, variance = b.tensor("mean", numbers(8)), b.tensor("variance", np.abs(numbers(8)))
    b.op("BatchNormalization", made, ones, zeros, mean, variance, name="y", epsilon=1e-3)
    check_folded(model(b, (2, 4, 5)), NormBehind(0, EPS, gain=False, shift=False), left=["Conv"])


def test_a_scale_of_another_number_that_is_not_stored_keeps_the_norm() -> None:
    b = Build()
    twos = b.op("Expand", b.op("CastLike", b.number(2), "x"), b.ints(8))
    norm(b, conv(b), 8, name="y")
    b.nodes[-1].input[1] = twos
    assert why_it_stays(model(b, (2, 4, 5))) == "its gamma is not a stored tensor"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_an_affine_of_the_kind_of_the_input_is_no_other_use_of_it(*, elsewhere: bool) -> None:
    b = Build()
    made = conv(b)
    size = b.op("Shape", made, start=1, end=2)
    ones, zeros = (b.op("Expand", b.op("CastLike", b.number(each), made), size) for each in (1, 0))
    mean, variance = b.tensor("mean", numbers(8)), b.tensor("variance", np.abs(numbers(8)))
    last = b.op("BatchNormalization", made, ones, zeros, mean, variance, epsilon=1e-3)
    b.op("Mul", last, b.op("Cast", size, to=1) if elsewhere else b.number(2), name="y")
    before = model(b, (2, 4, 5))
    if elsewhere:
        assert why_it_stays(before) == "t0, which comes before it, is used elsewhere too"
    else:
        check_folded(before, NormBehind(0, EPS, gain=False, shift=False), left=["Conv", "Constant", "Mul"])
