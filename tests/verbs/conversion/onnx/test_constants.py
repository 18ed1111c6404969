"""Weights that no rule knows: evaluated in float64, rounded once, and held against exact arithmetic."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import mpmath  # type: ignore[import-untyped,unused-ignore]
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.helpers.onnx_graphs import Build
from tests.helpers.onnx_graphs import run as run_model
from tests.helpers.runner import Runner
from tests.helpers.states import output_of
from wnconvert import fold_file, inspect_file
from wnconvert.errors import ArgumentError, NumbersError, UnfoldedError
from wnconvert.numerics.rounding import cast
from wnconvert.onnx import evaluation
from wnconvert.onnx.graph import weights
from wnconvert.tensors.dtypes import DTYPES

RNG = np.random.default_rng(11)


def stored(b: Build, name: str, shape: Sequence[int], dtype: Any = np.float32) -> str:
    return b.tensor(name, (RNG.standard_normal(shape) * 4).astype(dtype))


def product(build: Callable[[Build], str], opset: int = 17, kind: int = TensorProto.FLOAT) -> ModelProto:
    """x·w of 4 by 4, where a function builds w."""
    b = Build(opset)
    b.op("MatMul", "x", build(b), name="y")
    graph = b.graph(["y"], {"x": [None, 4]})
    for port in (*graph.input, *graph.output):
        port.type.tensor_type.elem_type = kind
    domains = [helper.make_opsetid(function.domain, 1) for function in b.functions]
    opsets = [helper.make_opsetid("", opset), *domains]
    return helper.make_model(graph, opset_imports=opsets, functions=b.functions, ir_version=8)


def write(path: Path, proto: ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def arrays(path: Path) -> dict[str, Any]:
    return {item.name: numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}


def sine(b: Build) -> str:
    return b.op("Sin", stored(b, "dec.weight_v", (4, 4)))


def test_a_weight_of_no_rule_is_stored_and_its_nodes_are_gone(tmp_path: Path) -> None:
    proto = product(sine)
    result = fold_file(write(tmp_path / "m.onnx", proto), constants=True, verify=True)
    made = onnx.load(output_of(result))
    assert [node.op_type for node in made.graph.node] == ["MatMul"]
    v = numpy_helper.to_array(proto.graph.initializer[0])
    assert set(found := arrays(output_of(result))) == {"dec.weight"}
    assert found["dec.weight"].tobytes() == np.sin(v.astype(np.float64)).astype(np.float32).tobytes()
    (constant,) = result.plan.constants
    assert (constant.name, constant.operators, constant.shape) == ("dec.weight", ("Sin",), (4, 4))
    assert "1 evaluated weight" in result.verified
    x = RNG.standard_normal((2, 4)).astype(np.float32)
    np.testing.assert_allclose(
        run_model(made, {"x": x})[0], run_model(proto, {"x": x})[0], rtol=1e-5, atol=1e-6
    )
    assert not inspect_file(output_of(result)).computed


def sum_of_many(b: Build) -> str:
    """Numbers of which float32 loses nearly all digits: a large one, small ones, and the large one again."""
    w = np.full((4, 4), 2.0**24, np.float32)
    for place, name in enumerate(("a", "b", "c")):
        b.tensor(name, w if place == 0 else np.full((4, 4), 0.3 + place, np.float32))
    return b.op("Sub", b.op("Add", b.op("Add", "a", "b"), "c"), "a")


def test_nothing_is_rounded_before_the_end(tmp_path: Path) -> None:
    proto = product(lambda b: b.op("Cast", b.op("Cast", sum_of_many(b), to=TensorProto.DOUBLE), to=1))
    source = write(tmp_path / "m.onnx", proto)
    made = output_of(fold_file(source, constants=True, proof="none"))
    exact = Fraction(float(np.float32(1.3))) + Fraction(float(np.float32(2.3)))
    (weight,) = arrays(made).values()
    assert (weight == np.float32(float(exact))).all()


EVALUATED: dict[str, Callable[[Build], str]] = {
    "of half precision scales": lambda b: b.op(
        "Mul", b.op("Cast", stored(b, "w", (4, 4), np.float16), to=1), stored(b, "s", (4, 1))
    ),
    "dequantized": lambda b: b.op(
        "Tanh", b.op("DequantizeLinear", stored(b, "w", (4, 4), np.int8), b.number(0.1))
    ),
    "of whole numbers": lambda b: b.op(
        "Mul", b.op("Cast", stored(b, "w", (4, 4), np.int8), to=1), b.number(0.1)
    ),
    "of low rank": lambda b: b.op(
        "Add",
        stored(b, "w", (4, 4)),
        b.op("Mul", b.op("MatMul", stored(b, "a", (4, 2)), stored(b, "b", (2, 4))), b.number(0.5)),
    ),
    "filled and expanded": lambda b: b.op(
        "Sub",
        b.op("Exp", stored(b, "w", (4, 1))),
        b.op("Expand", b.op("ConstantOfShape", b.ints(1)), b.ints(4, 4)),
    ),
    "of a range": lambda b: b.op(
        "Reshape",
        b.op("Cos", b.op("Cast", b.op("Range", *(b.number(n, np.int64) for n in (0, 16, 1))), to=1)),
        b.ints(4, 4),
    ),
    "with a number": lambda b: b.op(
        "Add", b.op("Exp", stored(b, "w", (4, 4))), b.op("Constant", value_float=0.1)
    ),
    "of a softmax": lambda b: b.op("Softmax", stored(b, "w", (4, 4)), axis=1),
    "clipped": lambda b: b.op("Clip", b.op("Exp", stored(b, "w", (4, 4))), b.number(0.1), b.number(3)),
    "lower triangle": lambda b: b.op("Exp", b.op("Trilu", stored(b, "w", (4, 4)), upper=0)),
    "by einsum": lambda b: b.op(
        "Einsum", stored(b, "a", (4, 3)), stored(b, "b", (3, 4)), equation="ij,jk->ik"
    ),
    "of a norm by p=1": lambda b: b.op(
        "Div", stored(b, "w", (4, 4)), b.op("ReduceL1", "w", axes=[1], keepdims=1)
    ),
}


@pytest.mark.parametrize("case", EVALUATED)
def test_what_is_evaluated_is_what_the_nodes_make_in_float64(case: str, tmp_path: Path) -> None:
    proto = product(EVALUATED[case])
    result = fold_file(write(tmp_path / "m.onnx", proto), constants=True, require_folded=True)
    nodes = {node.op_type for node in onnx.load(output_of(result)).graph.node}
    assert nodes <= {"MatMul", "Reshape", "Constant"}  # what only moves elements stays
    assert "1 evaluated weight" in result.verified
    (weight,) = arrays(output_of(result)).values()
    x = np.eye(4, dtype=np.float32)
    (expected,) = run_model(proto, {"x": x})
    np.testing.assert_allclose(weight.reshape(4, 4), expected, rtol=1e-5, atol=1e-6)


Function: TypeAlias = Callable[[list[Any], list[Any]], list[Any]]


def by_element(name: str) -> Function:
    """A function of mpmath on each element of x."""
    function = getattr(mpmath, name.lower())
    return lambda x, _: [function(v) for v in x]


#: What operators make of a row x of 12 numbers between 0.1 and 0.9 and a row y of others, in exact numbers.
EXACT: dict[str, tuple[dict[str, Any], Function]] = {
    **{
        op: ({}, by_element(op))
        for op in "Exp Log Sqrt Sin Cos Tan Asin Acos Atan Sinh Cosh Tanh Asinh Atanh".split()
    },
    "Acosh": ({}, lambda x, _: [mpmath.acosh(v) for v in x]),
    "Neg": ({}, lambda x, _: [-v for v in x]),
    "Abs": ({}, lambda x, _: [abs(v) for v in x]),
    "Relu": ({}, lambda x, _: [max(v, 0) for v in x]),
    "Reciprocal": ({}, lambda x, _: [1 / v for v in x]),
    "Sigmoid": ({}, lambda x, _: [1 / (1 + mpmath.exp(-v)) for v in x]),
    "Softplus": ({}, lambda x, _: [mpmath.log(1 + mpmath.exp(v)) for v in x]),
    "Softsign": ({}, lambda x, _: [v / (1 + abs(v)) for v in x]),
    "LeakyRelu": ({"alpha": 0.25}, lambda x, _: [v if v > 0 else v / 4 for v in x]),
    "Elu": ({"alpha": 1.5}, lambda x, _: [v if v > 0 else 1.5 * (mpmath.exp(v) - 1) for v in x]),
    "Celu": ({"alpha": 2.0}, lambda x, _: [max(v, 0) + min(0, 2 * (mpmath.exp(v / 2) - 1)) for v in x]),
    "Selu": (
        {"alpha": 1.5, "gamma": 1.25},
        lambda x, _: [1.25 * (v if v > 0 else 1.5 * mpmath.exp(v) - 1.5) for v in x],
    ),
    "Add": ({}, lambda x, y: [a + b for a, b in zip(x, y, strict=True)]),
    "Sub": ({}, lambda x, y: [a - b for a, b in zip(x, y, strict=True)]),
    "Mul": ({}, lambda x, y: [a * b for a, b in zip(x, y, strict=True)]),
    "Div": ({}, lambda x, y: [a / b for a, b in zip(x, y, strict=True)]),
    "Pow": ({}, lambda x, y: [abs(a) ** b for a, b in zip(x, y, strict=True)]),
    "Max": ({}, lambda x, y: [*map(max, x, y)]),
    "Min": ({}, lambda x, y: [*map(min, x, y)]),
    "Sum": ({}, lambda x, y: [a + b for a, b in zip(x, y, strict=True)]),
    "Mean": ({}, lambda x, y: [(a + b) / 2 for a, b in zip(x, y, strict=True)]),
    "MatMul": ({}, lambda x, y: [sum(map(operator.mul, x, y))]),
    "Einsum": ({"equation": "i,i->i"}, lambda x, y: [a * b for a, b in zip(x, y, strict=True)]),
    "ReduceSum": ({}, lambda x, _: [sum(x)]),
    "ReduceMean": ({}, lambda x, _: [sum(x) / len(x)]),
    "ReduceMax": ({}, lambda x, _: [max(x)]),
    "ReduceMin": ({}, lambda x, _: [min(x)]),
    "ReduceProd": ({}, lambda x, _: [mpmath.fprod(x)]),
    "ReduceL1": ({}, lambda x, _: [sum(map(abs, x))]),
    "ReduceL2": ({}, lambda x, _: [mpmath.sqrt(sum(v * v for v in x))]),
    "ReduceSumSquare": ({}, lambda x, _: [sum(v * v for v in x)]),
    "ReduceLogSum": ({}, lambda x, _: [mpmath.log(sum(x))]),
    "ReduceLogSumExp": ({}, lambda x, _: [mpmath.log(sum(map(mpmath.exp, x)))]),
    "Softmax": ({}, lambda x, _: [mpmath.exp(v) / sum(map(mpmath.exp, x)) for v in x]),
    "LogSoftmax": ({}, lambda x, _: [mpmath.log(mpmath.exp(v) / sum(map(mpmath.exp, x))) for v in x]),
}
#: Those of two inputs; those whose numbers may be negative; and those that have cases above or below.
TWO = frozenset("Add Sub Mul Div Pow Max Min Sum Mean MatMul Einsum".split())
SIGNED = frozenset("Neg Abs Relu Softsign LeakyRelu Elu Celu Selu Sigmoid Softplus Tanh ReduceL1".split())
ELSEWHERE = frozenset("Clip Gemm CumSum Where Trilu".split())


def test_each_operator_that_is_evaluated_is_held_against_exact_numbers() -> None:
    assert set(EXACT) | ELSEWHERE == weights.EVALUATED


@pytest.mark.parametrize("op", EXACT)
def test_operators_are_evaluated_in_float64_and_not_in_float32(op: str) -> None:
    attributes, function = EXACT[op]
    x = RNG.uniform(0.1, 0.9, 12).astype(np.float32) + np.float32(op == "Acosh")
    x = np.where(np.arange(12) % 3 == 0, -x, x) if op in SIGNED else x
    y = RNG.uniform(0.1, 0.9, 12).astype(np.float32)
    given = {"x": x, "y": y} if op in TWO else {"x": x}
    b = Build(17)
    b.op(op, *given, name="z", **attributes)
    proto = b.model(["z"], {name: [12] for name in given})
    for port in (*proto.graph.input, *proto.graph.output):
        port.type.tensor_type.elem_type = TensorProto.DOUBLE
    found = evaluation.evaluated(proto.SerializeToString(), given).reshape(-1)
    with mpmath.workprec(300):
        exact = function([mpmath.mpf(float(v)) for v in x], [mpmath.mpf(float(v)) for v in y])
        far = [abs(mpmath.mpf(float(a)) - b) / max(1, abs(b)) for a, b in zip(found, exact, strict=True)]
    assert max(far) < 2e-15


def test_sums_choices_and_products_of_matrices_are_evaluated_in_float64() -> None:
    x = RNG.standard_normal((3, 3)).astype(np.float32)
    wide = x.astype(np.float64)
    cases: list[tuple[Callable[[Build], str], Any]] = [
        (lambda b: b.op("CumSum", "x", b.number(1, np.int64)), np.cumsum(wide, 1)),
        (lambda b: b.op("Gemm", "x", "x", "x", alpha=0.5, transB=1), 0.5 * (wide @ wide.T) + wide),
        (lambda b: b.op("Exp", b.op("Trilu", "x", upper=1)), np.exp(np.triu(wide))),
        (
            lambda b: b.op("Where", b.tensor("c", np.eye(3, dtype=bool)), b.op("Exp", "x"), "x"),
            np.where(np.eye(3, dtype=bool), np.exp(wide), wide),
        ),
    ]
    for built, expected in cases:
        b = Build(17)
        made = built(b)
        proto = b.model([made], {"x": [3, 3]})
        for port in (*proto.graph.input, *proto.graph.output):
            port.type.tensor_type.elem_type = TensorProto.DOUBLE
        found = evaluation.evaluated(proto.SerializeToString(), {"x": x})
        np.testing.assert_allclose(found, expected, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("raw", [True, False])
def test_a_bfloat16_weight_is_rounded_once(tmp_path: Path, *, raw: bool) -> None:
    w = RNG.standard_normal((4, 4)).astype(DTYPES["bfloat16"].numpy())

    def half(b: Build) -> str:
        values = w.tobytes() if raw else w.astype(np.float32).reshape(-1)
        b.stored.append(helper.make_tensor("w", TensorProto.BFLOAT16, [4, 4], values, raw=raw))
        return b.op("Exp", "w")

    proto = product(half, kind=TensorProto.BFLOAT16)
    made = output_of(fold_file(write(tmp_path / "m.onnx", proto), constants=True, proof="none"))
    (weight,) = onnx.load(made).graph.initializer
    assert weight.raw_data == cast(np.exp(w.astype(np.float64)), "bfloat16").tobytes()


def branched(b: Build) -> str:
    stored(b, "w", (4, 4))
    branches = {}
    for name in ("then_branch", "else_branch"):
        inner = Build(prefix=name)
        inner.op("Sin", "w", name=f"{name}_w")
        branches[name] = inner.graph([f"{name}_w"])
    return b.op("If", b.tensor("training", np.array(False)), **branches)


def of_function(b: Build) -> str:
    opsets = [helper.make_opsetid("", 17)]
    inner = [helper.make_node("Sin", ["v"], ["s"])]
    b.functions.append(helper.make_function("local", "Wave", ["v"], ["s"], inner, opsets))
    return b.op("Wave", stored(b, "w", (4, 4)), domain="local")


LEFT: dict[str, tuple[Callable[[Build], str], str]] = {
    "If": (branched, "If decides at every run what it is"),
    "Round": (lambda b: b.op("Round", b.op("Exp", stored(b, "w", (4, 4)))), "Round is not evaluated"),
    "jump": (
        lambda b: b.op("Where", b.op("Greater", sine(b), b.number(0)), stored(b, "a", (4, 4)), b.number(0)),
        "Greater is not evaluated",
    ),
    "whole numbers": (
        lambda b: b.op("Cast", b.op("Cast", b.op("Exp", stored(b, "w", (4, 4))), to=6), to=1),
        "Cast is not evaluated in float64",
    ),
    "fewer bits": (
        lambda b: b.op("Cast", b.op("Sin", stored(b, "w", (4, 4), np.float16)), to=1),
        "Sin rounds to float16 on the way to float32",
    ),
    "narrow cast": (
        lambda b: b.op("Exp", b.op("Cast", b.op("Cast", sine(b), to=10), to=1)),
        "Cast rounds to float16 on the way to float32",
    ),
    "function": (of_function, "a function computes it"),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_not_evaluated_is_left_with_the_reason(case: str, tmp_path: Path) -> None:
    build, reason = LEFT[case]
    source = write(tmp_path / "m.onnx", product(build))
    (weight,) = fold_file(source, constants=True, dry_run=True).computed
    assert reason in weight.reason
    assert not fold_file(source, constants=True).plan.constants
    with pytest.raises(UnfoldedError, match="1 weight is computed at every run"):
        fold_file(source, constants=True, require_folded=True)


@pytest.mark.parametrize(
    "build",
    [
        lambda b: b.op("Mul", sine(b), b.op("RandomNormal", shape=[4, 4])),
        lambda b: b.op("Sin", b.op("Dropout", stored(b, "w", (4, 4)))),
        lambda b: stored(b, "w", (4, 4)),
    ],
)
def test_what_is_no_constant_is_neither_evaluated_nor_required(
    build: Callable[[Build], str], tmp_path: Path
) -> None:
    result = fold_file(
        write(tmp_path / "m.onnx", product(build)), constants=True, require_folded=True, copy=True
    )
    assert not result.plan.constants
    assert output_of(result).read_bytes() == (tmp_path / "m.onnx").read_bytes()


def test_a_weight_that_is_an_output_stays(tmp_path: Path) -> None:
    proto = product(sine)
    proto.graph.output.append(helper.make_tensor_value_info(proto.graph.node[0].output[0], 1, [4, 4]))
    (weight,) = fold_file(write(tmp_path / "m.onnx", proto), constants=True, dry_run=True).computed
    assert "itself an output" in weight.reason


def test_what_would_take_too_much_memory_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "m.onnx", product(sine))
    monkeypatch.setattr(evaluation, "_MOST_BYTES", 2 * 16 * 8 - 1)
    (weight,) = fold_file(source, constants=True, dry_run=True).computed
    assert "its values would take" in weight.reason
    monkeypatch.setattr(evaluation, "_MOST_BYTES", 2 * 16 * 8)
    assert fold_file(source, constants=True, dry_run=True).constants


def test_numbers_that_are_none_are_refused_unless_they_are_allowed(tmp_path: Path) -> None:
    source = write(tmp_path / "m.onnx", product(lambda b: b.op("Log", stored(b, "w", (4, 4)))))
    with pytest.raises(NumbersError, match="NaN or infinite"):
        fold_file(source, constants=True)
    assert not (tmp_path / "m.folded.onnx").exists()
    made = fold_file(source, constants=True, allow_nonfinite=True)
    assert np.isnan(arrays(output_of(made))["w"]).any()


def weight_norm(b: Build) -> str:
    v, g = stored(b, "lin.weight_v", (4, 4)), stored(b, "lin.weight_g", (4, 1))
    return b.op("Mul", g, b.op("Div", v, b.op("ReduceL2", v, axes=[1])))


def test_a_layer_that_is_only_a_step_is_evaluated_with_the_rest(tmp_path: Path) -> None:
    result = fold_file(
        write(tmp_path / "m.onnx", product(lambda b: b.op("Sin", weight_norm(b)))), constants=True
    )
    assert (len(result.plan.layers), len(result.plan.constants)) == (0, 1)
    assert set(arrays(output_of(result))) == {"lin.weight"}


def test_layers_of_rules_fold_beside_it_correctly_rounded(tmp_path: Path) -> None:
    b = Build()
    b.op("MatMul", b.op("MatMul", "x", weight_norm(b)), sine(b), name="y")
    source = write(tmp_path / "m.onnx", b.model(["y"], {"x": [2, 4]}))
    alone = arrays(output_of(fold_file(source, tmp_path / "alone.onnx")))
    both = fold_file(source, tmp_path / "both.onnx", constants=True, require_folded=True)
    found = arrays(output_of(both))
    assert (len(both.plan.layers), len(both.plan.constants)) == (1, 1)
    assert found["lin.weight"].tobytes() == alone["lin.weight"].tobytes()
    chosen = fold_file(source, tmp_path / "one.onnx", constants=True, exclude=["dec.*"])
    assert (len(chosen.plan.layers), len(chosen.plan.constants)) == (1, 0)
    assert "leave it out" in chosen.plan.computed[0].reason


def test_external_data_stays_external(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    onnx.save(product(sine), source, save_as_external_data=True, size_threshold=0, location="m.bin")
    result = fold_file(source, constants=True)
    assert (tmp_path / "m.folded.onnx.data").exists()
    assert set(arrays(output_of(result))) == {"dec.weight"}


def test_a_checkpoint_has_no_such_weights(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="only ONNX models"):
        fold_file("fixtures/plain.pt", tmp_path / "out.pt", constants=True)
    with pytest.raises(ArgumentError, match="only ONNX models"):
        fold_file("fixtures/plain.pt", tmp_path / "out.pt", require_folded=True)


def test_the_command_line_says_the_same(run: Runner, tmp_path: Path) -> None:
    source = write(tmp_path / "m.onnx", product(sine))
    seen = json.loads(run("inspect", source, "--json").stdout)
    assert [row["name"] for row in seen["computed"]] == ["dec.weight"]
    assert [row["form"] for row in seen["layers"]] == ["computed"]
    assert run("inspect", source).returncode == 0
    assert run("inspect", source, "--require-folded").returncode == 1
    refused = run("fold", source, "--require-folded")
    assert refused.returncode == 1
    assert "1 weight is computed at every run: dec.weight (Sin)" in refused.stderr
    assert "--constants evaluates it in float64" in refused.stderr
    done = run("fold", source, "--require-folded", "--constants")
    assert done.returncode == 0
    assert "Sin, evaluated in float64 and exact only to that" in done.stdout
    assert run("inspect", tmp_path / "m.folded.onnx", "--require-folded").returncode == 0


# -- operators of onnxruntime that take codes by themselves


def four_bits() -> ModelProto:
    """A product with codes of four bits, as onnxruntime's own quantizer makes it."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    b = Build(21)
    b.op("MatMul", "x", stored(b, "dec.weight", (64, 32)), name="y")
    quantizer = MatMulNBitsQuantizer(b.model(["y"], {"x": [2, 64]}), block_size=32, is_symmetric=True)
    quantizer.process()
    made: ModelProto = quantizer.model.model
    assert [node.op_type for node in made.graph.node] == ["MatMulNBits"]
    return made


def with_computed(model: ModelProto, at: int, op: str, other: Any) -> ModelProto:
    """The model with input ``at`` of its node computed of what is stored there and another constant."""
    (node,) = model.graph.node
    model.graph.node.insert(0, helper.make_node(op, [node.input[at], "other"], ["computed"], "scaling"))
    model.graph.node[1].input[at] = "computed"
    model.graph.initializer.append(numpy_helper.from_array(other, "other"))
    return model


def test_scales_of_codes_of_four_bits_that_are_computed_are_named_and_evaluated(tmp_path: Path) -> None:
    plain = four_bits()
    assert not inspect_file(write(tmp_path / "plain.onnx", plain)).computed
    proto = with_computed(plain, 2, "Mul", np.float32(3))
    source = write(tmp_path / "m.onnx", proto)
    (weight,) = inspect_file(source).computed
    assert (weight.name, weight.what) == ("dec.weight_scales", "Mul")
    with pytest.raises(UnfoldedError, match=r"1 weight is computed at every run: dec\.weight_scales"):
        fold_file(source, require_folded=True)
    made = output_of(fold_file(source, constants=True, require_folded=True))
    assert [node.op_type for node in onnx.load(made).graph.node] == ["MatMulNBits"]
    x = {"x": RNG.standard_normal((2, 64)).astype(np.float32)}
    assert np.array_equal(run_model(onnx.load(made), x)[0], run_model(proto, x)[0])


def test_codes_of_four_bits_that_are_computed_are_left_with_the_reason(tmp_path: Path) -> None:
    proto = with_computed(four_bits(), 1, "BitwiseXor", np.uint8(255))
    (weight,) = fold_file(write(tmp_path / "m.onnx", proto), constants=True, dry_run=True).computed
    assert weight.name.startswith("dec.weight")
    assert "BitwiseXor is not evaluated" in weight.reason


def test_a_scale_behind_dequantizelinear_that_is_computed_is_evaluated_alone(tmp_path: Path) -> None:
    proto = product(
        lambda b: b.op("DequantizeLinear", stored(b, "w", (4, 4), np.int8), b.op("Exp", b.number(-1.5)))
    )
    made = onnx.load(output_of(fold_file(write(tmp_path / "m.onnx", proto), constants=True)))
    assert [node.op_type for node in made.graph.node] == ["DequantizeLinear", "MatMul"]
    scale = numpy_helper.to_array(made.graph.initializer[-1])
    assert scale == np.float32(np.exp(np.float64(np.float32(-1.5))))
