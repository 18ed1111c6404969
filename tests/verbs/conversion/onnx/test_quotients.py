"""Quotients of stored tensors, as exporters leave them that store the norm: folded, and correctly rounded."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from tests.helpers.onnx_graphs import Build
from tests.helpers.oracle import nearest_root
from tests.helpers.runner import Runner
from tests.helpers.states import output_of
from tests.verbs.conversion.onnx.test_constants import arrays, product, write
from wnconvert import LayerError, NumbersError, VerifyError, export_onnx, fold_file, inspect_file
from wnconvert.numerics.rounding import cast
from wnconvert.numerics.rules.computed.over import OverScale
from wnconvert.numerics.sums import Sums
from wnconvert.onnx import evaluation
from wnconvert.onnx.fractions import to_odd
from wnconvert.onnx.graph.weights import EvaluatedWeight
from wnconvert.plan.layout import Evaluate
from wnconvert.tensors.dtypes import DTYPES
from wnconvert.verbs.conversion.onnx import evaluated
from wnconvert.verbs.models.proof.running import quiet_torch

RNG = np.random.default_rng(3)


class Normalized(nn.Module):
    """Weight norm over two axes, of which torch's older exporter stores the norm (opset 17 and below)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.v = nn.Parameter(torch.randn(4, 6, 3))
        self.g = nn.Parameter(torch.rand(4, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.g * nn.functional.normalize(self.v, dim=(1, 2))  # type: ignore[arg-type]  # torch takes several
        return nn.functional.conv1d(x, weight)


def rounded(exact: Any, dtype: str = "float32") -> NDArray[Any]:
    """Fractions, correctly rounded: to odd, and then to the dtype."""
    return cast(np.vectorize(to_odd, otypes=[float])(exact), dtype)


def number(value: float) -> Any:
    """A float32, exactly."""
    return Fraction(float(np.float32(value)))


def fractions(array: Any) -> Any:
    return np.vectorize(lambda x: Fraction(float(x)), otypes=[object])(array)


@pytest.mark.parametrize("opset", [13, pytest.param(17, marks=pytest.mark.full)])
def test_the_stored_norm_of_torchs_older_exporter_is_divided_by_correctly_rounded(
    tmp_path: Path, opset: int
) -> None:
    path, x = tmp_path / "m.onnx", (torch.randn(1, 6, 9),)
    with quiet_torch():
        torch.onnx.export(Normalized().eval(), x, str(path), opset_version=opset, dynamo=False)
    stored = arrays(path)
    (norm,) = (array for name, array in stored.items() if "Clip" in name)
    result = fold_file(path, require_folded=True)
    assert [node.op_type for node in onnx.load(output_of(result)).graph.node] == ["Conv"]
    (constant,) = result.plan.constants
    assert str(constant) == (
        "v (float32 4×6×3): Clip, Div, Mul, a quotient of stored tensors, correctly rounded"
    )
    weight = arrays(output_of(result))["v"]
    exact = fractions(stored["v"]) * fractions(stored["g"]) / np.maximum(fractions(norm), number(1e-12))
    assert weight.tobytes() == rounded(exact).tobytes()


def test_an_export_has_it_folded(tmp_path: Path) -> None:
    report = export_onnx(
        Normalized(),
        tmp_path / "m.onnx",
        inputs=["x=float32[1,6,T]"],
        exporter="torchscript",
        opset=13,
        require_folded=True,
    )
    assert report
    assert [constant.exact for constant in report.constants] == [True]
    assert [step.detail for step in report.steps if step.name == "fold"][1] == (
        "no weight norm was left in the graph, 1 quotient of stored tensors"
    )


def stored(b: Build, name: str, dtype: Any = np.float32) -> str:
    return b.tensor(name, (RNG.uniform(0.1, 4, (4, 4))).astype(dtype))


#: Quotients of v, n and g, and what they are in fractions.
QUOTIENTS: dict[str, tuple[Callable[[Build], str], Callable[[Any, Any, Any], Any], int]] = {
    "g(v/n)": (lambda b: b.op("Mul", "g", b.op("Div", "v", "n")), lambda v, n, g: g * v / n, 17),
    "v(g/n)": (lambda b: b.op("Mul", "v", b.op("Div", "g", "n")), lambda v, n, g: g * v / n, 17),
    "by a reciprocal": (
        lambda b: b.op("Mul", "v", b.op("Mul", "g", b.op("Reciprocal", "n"))),
        lambda v, n, g: g * v / n,
        17,
    ),
    "guarded by Max": (
        lambda b: b.op("Div", "v", b.op("Max", "n", b.number(0.7))),
        lambda v, n, _: v / np.maximum(n, number(0.7)),
        17,
    ),
    "guarded from above": (
        lambda b: b.op("Div", "v", b.op("Min", "n", "g")),
        lambda v, n, g: v / np.minimum(n, g),
        17,
    ),
    "clipped by attributes": (
        lambda b: b.op("Div", "v", b.op("Clip", "n", min=0.75, max=2.5)),
        lambda v, n, _: v / np.minimum(np.maximum(n, number(0.75)), number(2.5)),
        9,
    ),
    "moved": (
        lambda b: b.op("Transpose", b.op("Div", b.op("Transpose", "v"), b.op("Reshape", "n", b.ints(4, 4)))),
        lambda v, n, _: (v.T / n).T,
        17,
    ),
}


@pytest.mark.parametrize("case", QUOTIENTS)
def test_each_quotient_is_correctly_rounded(case: str, tmp_path: Path) -> None:
    build, exact, opset = QUOTIENTS[case]

    def built(b: Build) -> str:
        for name in "vng":
            stored(b, name)
        return build(b)

    proto = product(built, opset)
    result = fold_file(write(tmp_path / "m.onnx", proto), require_folded=True)
    kept = {each.name: fractions(numpy_helper.to_array(each)) for each in proto.graph.initializer}
    (constant,) = result.plan.constants
    weight = arrays(output_of(result))[constant.name]
    expected = rounded(exact(*(kept[name] for name in "vng")))
    assert weight.T.tobytes() == expected.tobytes() or weight.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_rounded_once(dtype: str) -> None:
    b = Build(17)
    b.op("Mul", "g", b.op("Div", "v", "n"), name="z")
    proto = b.model(["z"], {name: [4096] for name in "vng"})
    for port in (*proto.graph.input, *proto.graph.output):
        port.type.tensor_type.elem_type = TensorProto.DOUBLE
    kind = np.float16 if dtype == "float16" else ml_dtypes.bfloat16
    parts = {name: RNG.uniform(0.1, 4, 4096).astype(kind) for name in "vng"}
    made = evaluation.quotients(proto.SerializeToString(), parts, DTYPES[dtype], 2)
    v, n, g = (fractions(parts[name]) for name in "vng")
    assert cast(made, dtype).tobytes() == rounded(g * v / n, dtype).tobytes()


def halved(build: Callable[[Build], str], opset: int, **parts: Any) -> Any:
    """A quotient in float16, as ``quotients`` makes it of parts in float32."""
    b = Build(opset)
    made = build(b)
    proto = b.model([made], {name: list(part.shape) for name, part in parts.items()})
    for port in (*proto.graph.input, *proto.graph.output):
        port.type.tensor_type.elem_type = TensorProto.DOUBLE
    return cast(evaluation.quotients(proto.SerializeToString(), parts, DTYPES["float16"], 2), "float16")


@pytest.mark.parametrize("ends", [{"max": 1.7}, {"min": 1.2}, {"min": 1.2, "max": 1.7}, {}])
def test_an_end_that_a_clip_of_older_opsets_lacks_is_none(ends: dict[str, Any]) -> None:
    v = (np.arange(2049, 4096, 2) / np.float32(2048)).astype(np.float32)  # midpoints of float16
    n = np.ones_like(v)
    found = halved(lambda b: b.op("Div", b.op("Clip", "v", **ends), "n"), 10, v=v, n=n)
    kept = [number(ends[name]) if name in ends else None for name in ("min", "max")]
    expected = fractions(v)
    expected = expected if kept[0] is None else np.maximum(expected, kept[0])
    expected = expected if kept[1] is None else np.minimum(expected, kept[1])
    assert found.tobytes() == rounded(expected, "float16").tobytes()


def test_where_there_is_no_fraction_float64_stands() -> None:
    v, n = np.ones(3, np.float32), np.array([0, 1, np.inf], np.float32)
    most = np.full(3, 1 + 2**-11, np.float32)
    found = halved(lambda b: b.op("Min", b.op("Div", "v", "n"), "m"), 17, v=v, n=n, m=most)
    assert found.tolist() == [1, 1, 0]


@pytest.mark.parametrize("exact", [True, False])
def test_a_large_row_hides_no_error_in_others(exact: bool) -> None:
    """Of quotients each element is held against itself; sums cancel, and are held against the largest."""
    work = Evaluate(b"", (), DTYPES["float32"], "weight w", 2 if exact else None)
    weight = EvaluatedWeight("w", ("", "w"), ("Div",), (2, 2), work)
    expected = np.array([[1, 1], [1e6, 1e6]], np.float32)
    evaluated._compare(weight, expected, expected)
    with pytest.raises(VerifyError, match="off by") if exact else contextlib.nullcontext():
        evaluated._compare(weight, expected * np.array([[1.01], [1]], np.float32), expected)


def test_what_is_infinite_in_the_original_is_said_to_be_no_measure(tmp_path: Path) -> None:
    def built(b: Build) -> str:
        large = b.tensor("v", np.array([[1e30] * 4, *[[1] * 4] * 3], np.float32))
        n = b.tensor("n", np.full((4, 1), 1e-20, np.float32))
        return b.op("Mul", b.op("Div", large, n), b.tensor("g", np.full((4, 1), 1e-20, np.float32)))

    result = fold_file(write(tmp_path / "m.onnx", product(built)))
    assert any("NaN or infinite elements" in note and "no measure" in note for note in result.notes)
    assert np.isfinite(arrays(output_of(result))[result.plan.constants[0].name]).all()


def test_what_float64_rounds_to_the_wrong_side_of_a_midpoint_is_settled_by_fractions(tmp_path: Path) -> None:
    """147·(v/49) is 3·v, of 25 bits and odd: midway between two numbers of float32."""
    v = np.arange(11180001, 11184801, 2).astype(np.float32)
    n, g = np.full(v.shape, 49, np.float32), np.full(v.shape, 147, np.float32)
    in_float64 = (g.astype(np.float64) * (v.astype(np.float64) / n.astype(np.float64))).astype(np.float32)
    exact = (3 * v.astype(np.float64)).astype(np.float32)
    assert (in_float64 != exact).any()

    def built(b: Build) -> str:
        for name, array in (("v", v), ("n", n), ("g", g)):
            b.tensor(name, array.reshape(4, -1))
        return b.op("Mul", "g", b.op("Div", "v", "n"))

    result = fold_file(write(tmp_path / "m.onnx", product(built)), proof="none")
    (constant,) = result.plan.constants
    assert arrays(output_of(result))[constant.name].tobytes() == exact.tobytes()


def quotient(b: Build) -> str:
    return b.op("Div", stored(b, "v"), stored(b, "n"))


def test_a_graph_whose_types_onnx_cannot_tell_is_left_with_the_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", product(quotient))
    model = onnx.load(path)
    model.opset_import[0].domain = "com.example"  # that of ONNX's own operators is missing
    onnx.save(model, path)
    plan = fold_file(path, dry_run=True)
    assert [left.reason for left in plan.computed] == [
        "no rule knows its arithmetic, and onnx cannot tell the types of its values"
    ]


#: What looks like it: products, which may be masks; quotients of something else; what is not exact.
LEFT: dict[str, tuple[Callable[[Build], str], str]] = {
    "product": (lambda b: b.op("Mul", stored(b, "v"), stored(b, "n")), ""),
    "sum in it": (
        lambda b: b.op("Div", stored(b, "v"), b.op("Add", stored(b, "n"), b.number(1e-3))),
        "no rule knows its arithmetic",
    ),
    "root in it": (
        lambda b: b.op("Div", stored(b, "v"), b.op("Sqrt", stored(b, "n"))),
        "no rule knows its arithmetic",
    ),
    "of float64": (
        lambda b: b.op("Cast", b.op("Div", stored(b, "v", np.float64), stored(b, "n", np.float64)), to=1),
        "no rule knows its arithmetic",
    ),
    "of whole numbers": (
        lambda b: b.op("Div", b.op("Cast", stored(b, "v", np.int8), to=1), stored(b, "n")),
        "no rule knows its arithmetic",
    ),
    "of codes": (
        lambda b: b.op(
            "Div", b.op("DequantizeLinear", stored(b, "v", np.int8), b.number(0.1)), stored(b, "n")
        ),
        "no rule knows its arithmetic",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_looks_like_it_is_left(case: str, tmp_path: Path) -> None:
    build, reason = LEFT[case]
    plan = fold_file(write(tmp_path / "m.onnx", product(build)), dry_run=True)
    assert not plan.constants
    assert len(plan.computed) == 1
    assert reason in plan.computed[0].reason


def root(b: Build, squares: str, axis: int = 1) -> str:
    """The root of a sum by rows, to which an eps is added."""
    return b.op("Sqrt", b.op("Add", b.reduce("ReduceSum", squares, (axis,)), b.number(1e-3)))


def norm(b: Build, v: str, axis: int = 1) -> str:
    return b.op("Clip", b.reduce("ReduceL2", v, (axis,)), b.number(1e-3))


EPS = number(1e-3)
ROWS = RNG.uniform(0.5, 2, (4, 1)).astype(np.float32)
V = RNG.standard_normal((4, 4)).astype(np.float32)

#: A tensor over norms of another, or over the roots of its sums: what it is in fractions squared, by rows.
OVER_NORMS: dict[str, tuple[Callable[[Build], str], Callable[[Any, Any, Any], Any]]] = {
    "u/‖v‖": (
        lambda b: b.op("Div", stored(b, "u"), norm(b, stored(b, "v"))),
        lambda u, v, _: u**2 / np.maximum((v**2).sum(1, keepdims=True), EPS**2),
    ),
    "along the other axis": (
        lambda b: b.op("Div", stored(b, "u"), norm(b, stored(b, "v"), 0)),
        lambda u, v, _: u**2 / np.maximum((v**2).sum(0, keepdims=True), EPS**2),
    ),
    "of squares that are stored": (
        lambda b: b.op("Div", stored(b, "u"), root(b, stored(b, "v"))),
        lambda u, v, _: u**2 / (v.sum(1, keepdims=True) + EPS),
    ),
    "times g": (
        lambda b: b.op("Mul", b.op("Div", stored(b, "u"), root(b, stored(b, "v"))), b.tensor("g", ROWS)),
        lambda u, v, g: (u * g) ** 2 / (v.sum(1, keepdims=True) + EPS),
    ),
    "times a number": (
        lambda b: b.op(
            "Mul", b.number(3), b.op("Mul", stored(b, "u"), b.op("Reciprocal", root(b, stored(b, "v"))))
        ),
        lambda u, v, _: 9 * u**2 / (v.sum(1, keepdims=True) + EPS),
    ),
    "turned": (
        lambda b: b.op("Transpose", b.op("Div", stored(b, "u"), norm(b, stored(b, "v")))),
        lambda u, v, _: u**2 / np.maximum((v**2).sum(1, keepdims=True), EPS**2),
    ),
    "its own squares beside it": (
        lambda b: b.op("Div", b.tensor("u", V), root(b, b.tensor("v", V * V))),
        lambda u, v, _: u**2 / (v.sum(1, keepdims=True) + EPS),
    ),
}


@pytest.mark.parametrize("case", OVER_NORMS)
def test_a_tensor_over_the_norms_of_another_is_correctly_rounded(case: str, tmp_path: Path) -> None:
    """Of what the graph stores: it is not asked whether that is g·v, or v², of some g and v."""
    build, square = OVER_NORMS[case]
    proto = product(build)
    kept = {each.name: fractions(numpy_helper.to_array(each)) for each in proto.graph.initializer}
    result = fold_file(write(tmp_path / "m.onnx", proto), require_folded=True)
    assert "1 evaluated weight likewise" in result.verified
    (constant,) = result.plan.constants
    assert constant.exact
    squares = square(kept["u"], kept["v"], kept.get("g"))
    expected = np.vectorize(lambda x: nearest_root(x, "float32"), otypes=[np.float32])(squares)
    expected = np.copysign(expected, kept["u"].astype(float)).astype(np.float32)
    weight = arrays(output_of(result))[constant.name]
    assert weight.tobytes() == expected.tobytes()  # what only moves it stays behind it


#: What looks like it: sums that are no roots, or of something else; a root of a root; what a caller may give.
NOT_OVER_NORMS: dict[str, Callable[[Build], str]] = {
    "a sum without a root": lambda b: b.op(
        "Div", stored(b, "u"), b.op("Add", b.reduce("ReduceSum", stored(b, "v"), (1,)), b.number(1e-3))
    ),
    "a root of a root": lambda b: b.op("Div", stored(b, "u"), b.op("Sqrt", root(b, stored(b, "v")))),
    "a root of the elements": lambda b: b.op(
        "Div", stored(b, "u"), b.op("Sqrt", b.op("Add", stored(b, "v"), b.number(1)))
    ),
    "magnitudes": lambda b: b.op("Div", stored(b, "u"), root(b, b.op("Abs", stored(b, "v")))),
    "times the norm": lambda b: b.op("Mul", stored(b, "u"), norm(b, stored(b, "v"))),
    "of its own sum": lambda b: b.op("Div", stored(b, "u"), root(b, "u")),
    "of a product": lambda b: b.op(
        "Div", stored(b, "u"), norm(b, b.op("Mul", stored(b, "v"), stored(b, "m")))
    ),
    "of other rows": lambda b: b.op(
        "Div", stored(b, "u"), norm(b, b.tensor("v", RNG.standard_normal((4, 5)).astype(np.float32)))
    ),
    "two norms": lambda b: b.op("Div", b.op("Div", stored(b, "u"), norm(b, stored(b, "v"))), norm(b, "v", 0)),
    "two rows of g": lambda b: b.op(
        "Mul",
        b.op("Div", stored(b, "u"), norm(b, stored(b, "v"))),
        b.op("Mul", b.tensor("g", ROWS), b.tensor("h", ROWS)),
    ),
}


@pytest.mark.parametrize("case", NOT_OVER_NORMS)
def test_what_is_over_no_norm_is_left(case: str, tmp_path: Path) -> None:
    plan = fold_file(write(tmp_path / "m.onnx", product(NOT_OVER_NORMS[case])), dry_run=True)
    assert not plan.constants
    assert [left.reason for left in plan.computed] in (
        ["no rule knows its arithmetic"],
        ["another kind was asked for"],  # a product of two tensors may be a masked one
    )


def test_norms_that_a_caller_may_give_make_no_constant(tmp_path: Path) -> None:
    proto = product(OVER_NORMS["u/‖v‖"][0])
    proto.graph.input.append(onnx.helper.make_tensor_value_info("v", TensorProto.FLOAT, [4, 4]))
    plan = fold_file(write(tmp_path / "m.onnx", proto), dry_run=True)
    assert not plan.constants
    assert not plan.computed


def test_squares_that_are_negative_are_refused_and_said(tmp_path: Path) -> None:
    source = write(
        tmp_path / "m.onnx",
        product(lambda b: b.op("Div", stored(b, "u"), root(b, b.tensor("v", V)))),
    )
    with pytest.raises(LayerError, match="negative numbers") as caught:
        fold_file(source)
    assert caught.value.where == f"{source}: weight u"
    assert not list(tmp_path.glob("*.folded*"))


def test_an_element_that_is_wrong_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = OverScale.divisors

    def longer(scale: OverScale, sums: Sums) -> Sums:
        made = true(scale, sums)
        return replace(made, high=made.high * 1.01)

    monkeypatch.setattr(OverScale, "divisors", longer)
    with pytest.raises(VerifyError, match="is off by"):
        fold_file(write(tmp_path / "m.onnx", product(OVER_NORMS["u/‖v‖"][0])))


@pytest.mark.parametrize(
    "build",
    [
        lambda b: b.op("Div", stored(b, "v"), "x"),
        lambda b: b.op("Div", stored(b, "v"), b.op("RandomNormal", shape=[4, 4])),
    ],
)
def test_a_quotient_of_what_is_no_constant_is_none(build: Callable[[Build], str], tmp_path: Path) -> None:
    plan = fold_file(write(tmp_path / "m.onnx", product(build)), dry_run=True)
    assert not plan.constants
    assert not plan.computed


def test_it_is_folded_where_weight_norm_is_asked_for_and_its_name_is_wanted(tmp_path: Path) -> None:
    source = write(tmp_path / "m.onnx", product(quotient))
    assert fold_file(source, dry_run=True).constants
    assert fold_file(source, dry_run=True, layers=["v"]).constants
    (kinds,) = fold_file(source, dry_run=True, kinds=["spectral"]).computed
    assert (kinds.reason, kinds.fix) == ("another kind was asked for", "--kinds weight folds it")
    (left,) = fold_file(source, dry_run=True, exclude=["v"]).computed
    assert "leave it out" in left.reason
    (seen,) = inspect_file(source).computed
    assert seen.fix == "fold stores it: it is a quotient of stored tensors"


def test_a_quotient_by_zero_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    def built(b: Build) -> str:
        return b.op("Div", stored(b, "v"), b.tensor("n", np.eye(4, dtype=np.float32)))

    source = write(tmp_path / "m.onnx", product(built))
    with pytest.raises(NumbersError, match="NaN or infinite"):
        fold_file(source)
    made = fold_file(source, allow_nonfinite=True)
    assert np.isinf(arrays(output_of(made))["v"]).sum() == 12


#: A weight that is divided by 0 in some rows: by a stored norm, and by one that the graph makes.
OVER_NOTHING: dict[str, Callable[[Build, Any], str]] = {
    "a stored norm": lambda b, rows: b.op("Div", stored(b, "dead.weight_v"), b.tensor("n", rows)),
    "norms of another": lambda b, rows: b.op(
        "Div", stored(b, "onnx::Div_13"), b.reduce("ReduceL2", b.tensor("dead.weight_v", rows * V), (1,))
    ),
}


@pytest.mark.parametrize("case", OVER_NOTHING)
def test_as_in_a_checkpoint_what_is_divided_by_zero_is_named_and_nothing_is_written(
    case: str, tmp_path: Path
) -> None:
    """And where it is excluded all else is folded, and it is left with the reason."""

    def built(b: Build) -> str:
        b.op("MatMul", "x", OVER_NOTHING[case](b, np.array([[1], [0], [1], [1]], np.float32)))
        v, g = stored(b, "live.weight_v"), b.tensor("live.weight_g", ROWS)
        return b.op("Mul", g, b.op("Div", v, b.reduce("ReduceL2", v, (1,))))

    source = write(tmp_path / "m.onnx", product(built))
    with pytest.raises(NumbersError) as caught:
        fold_file(source)
    assert caught.value.where == f"{source}: weight dead.weight"
    assert caught.value.fix.endswith("--exclude leaves a layer as it is")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    result = fold_file(source, exclude=["dead.*"])
    assert [layer.name for layer in result.plan.layers] == ["live.weight"]
    assert [(left.name, left.reason) for left in result.plan.computed] == [
        ("dead.weight", "--layers and --exclude leave it out")
    ]


def test_rows_over_nothing_become_zero_where_that_is_asked_for(tmp_path: Path) -> None:
    rows = np.array([[1], [0], [1], [1]], np.float32)
    source = write(tmp_path / "m.onnx", product(lambda b: OVER_NOTHING["norms of another"](b, rows)))
    made = arrays(output_of(fold_file(source, zero_rows="zero")))["dead.weight"]
    assert [row.any() for row in made] == [True, False, True, True]


def test_the_command_line_says_the_same(run: Runner, tmp_path: Path) -> None:
    source = write(tmp_path / "m.onnx", product(quotient))
    done = run("fold", source, "--require-folded")
    assert done.returncode == 0
    assert "v (float32 4×4): Div, a quotient of stored tensors, correctly rounded" in done.stdout
    assert "0 layers folded, 1 quotient of stored tensors" in done.stdout
    seen = json.loads(run("fold", source, "--dry-run", "--json").stdout)
    assert [(each["name"], each["exact"]) for each in seen["constants"]] == [("v", True)]
