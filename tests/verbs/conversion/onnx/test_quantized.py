"""Quantized ONNX models folded: codes are constants, and what is rounded is rounded by the same scheme."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.reference
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from tests.helpers.golden import FIXTURES
from tests.helpers.marks import crossed
from tests.helpers.onnx_graphs import COMBINED, NORMS, Build
from tests.helpers.oracle import exact_fold
from tests.helpers.quantized import LAYERS, coded, outputs_of, quantize, stored, vocoder, weighted
from tests.helpers.states import output_of
from wnconvert import fold_file
from wnconvert.errors import ArgumentError, LayerError, NumbersError, VerifyError
from wnconvert.tensors.views import dequantized

RNG = np.random.default_rng(3)
V = RNG.standard_normal((8, 8, 3)).astype(np.float32)
G = RNG.uniform(0.5, 1.5, (8, 1, 1)).astype(np.float32)

#: Operators of weight norm's arithmetic, which no folded graph has any more.
ARITHMETIC = {"ReduceL2", "Div", "Mul", "QLinearMul"}


def saved(model: ModelProto, folder: Path) -> Path:
    path = folder / "in.onnx"
    onnx.save(model, path)
    return path


def folded(model: ModelProto, folder: Path, **options: Any) -> ModelProto:
    """A model folded by the tool, which has compared its layers with the original's in onnxruntime."""
    result = fold_file(saved(model, folder), copy=True, **{"proof": "layers", **options})
    assert ("onnxruntime" in str(result.verified)) == (options.get("proof") != "none")
    return onnx.load(output_of(result))


def ops(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


# -- codes are constants


@crossed(
    kind=["axis", "tensor", "block"],
    dtype=["int8", "uint8", "int4", "uint4", "int16", "uint16", "float8_e4m3fn", "float8_e5m2"],
    shifted=[False, True],
)
def test_numbers_behind_codes_are_folded_as_if_they_were_stored(
    kind: str, dtype: str, shifted: bool, tmp_path: Path
) -> None:
    if shifted and dtype.startswith("float8"):
        shifted = False  # it has no zero but 0
    v = coded(V, dtype, kind, shifted=shifted)
    proof = "layers" if dtype in {"int8", "int4", "float8_e4m3fn"} else "none"  # a process takes its time
    made = folded(weighted(v, G), tmp_path, proof=proof)
    assert ops(made) == ["Conv"]
    ((name, w),) = stored(made)
    assert name == "conv.weight"
    np.testing.assert_array_equal(w, exact_fold(v.numbers, G, 0, "float32"))


def test_a_gain_behind_codes_is_folded_too(tmp_path: Path) -> None:
    v, g = coded(V, "int8", "axis"), coded(G, "uint8", "tensor", shifted=True)
    made = folded(weighted(v, g), tmp_path)
    ((_, w),) = stored(made)
    np.testing.assert_array_equal(w, exact_fold(v.numbers, g.numbers, 0, "float32"))


def test_numbers_behind_a_scale_of_float16_are_rounded_as_the_graph_rounds_them(tmp_path: Path) -> None:
    v = coded(V, "int8", "axis", scale_dtype=np.float16)
    made = folded(weighted(v, G.astype(np.float16)), tmp_path)
    ((_, w),) = stored(made)
    assert w.dtype == np.float16
    np.testing.assert_array_equal(w, exact_fold(v.numbers, G.astype(np.float16), 0, "float16"))


def test_zero_points_that_stand_as_numbers_are_read_however_many(tmp_path: Path) -> None:
    v = coded(RNG.standard_normal((200, 4, 3)).astype(np.float32), "int8", "axis", shifted=True)
    assert v.zero is not None
    model = weighted(v, np.ones((200, 1, 1), np.float32))
    for tensor in model.graph.initializer:
        if tensor.name.endswith("zero_point"):  # as helper.make_tensor stores them, a varint each
            tensor.CopyFrom(helper.make_tensor(tensor.name, onnx.TensorProto.INT8, [200], v.zero.tolist()))
            assert not tensor.raw_data
    ((_, w),) = stored(folded(model, tmp_path))
    np.testing.assert_array_equal(w, exact_fold(v.numbers, np.ones((200, 1, 1), "f"), 0, "float32"))


def test_codes_in_a_data_file_are_read_from_there(tmp_path: Path) -> None:
    v = coded(V, "int4", "block", shifted=True)
    path = tmp_path / "in.onnx"
    onnx.save(weighted(v, G), path, save_as_external_data=True, location="in.data", size_threshold=0)
    made = onnx.load(output_of(fold_file(path, verify=True)))
    ((_, w),) = stored(made)
    np.testing.assert_array_equal(w, exact_fold(v.numbers, G, 0, "float32"))


# -- what is rounded on the way


def quantized_by(w: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any]) -> NDArray[Any]:
    """QuantizeLinear by its definition: division in float32, half to even, saturated."""
    kind = np.iinfo(zero.dtype)
    rounded = np.rint(w / scale.astype(np.float32)).astype(np.int64) + zero.astype(np.int64)
    return np.clip(rounded, kind.min, kind.max).astype(zero.dtype)


def expected_codes(constants: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    """The codes of a layer's weight as its graph is written, of weight norm that is correctly rounded."""

    def beside(value: str) -> tuple[NDArray[Any], NDArray[Any]]:
        return constants[f"{value}_scale"], constants[f"{value}_zero_point"]

    v = constants[f"{name}.weight_v"]
    g = constants.get(f"{name}.weight_g")
    if g is not None:  # convolutions alone are quantized
        return quantized_by(exact_fold(v, g, 0, "float32"), *beside(f"{name}.product"))
    unit = exact_fold(v, np.ones(len(v), np.float32), 0, "float32")
    (scale, zero), (gain, base) = beside(f"{name}.ratio"), beside(f"{name}.weight_g")
    wide = np.float64
    q = (quantized_by(unit, scale, zero).astype(wide) - zero.astype(wide)) * scale.astype(wide)
    g = (constants[f"{name}.weight_g_quantized"].astype(wide) - base.astype(wide)) * gain.astype(wide)
    return quantized_by(q.astype(np.float32) * g.astype(np.float32), *beside(f"{name}.product"))


@crossed(
    form=["QDQ", "QOperator"],
    which=["all", "convolutions"],
    dtype=["QInt8", "QUInt8"],
    per_channel=[False, True],
)
def test_a_whole_vocoder_after_quantize_static_keeps_its_own_codes(
    form: str, which: str, dtype: str, per_channel: bool, tmp_path: Path
) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType

    kind = QuantType[dtype]
    path = quantize(
        vocoder(),
        tmp_path,
        quant_format=QuantFormat[form],
        per_channel=per_channel,
        activation_type=kind,
        weight_type=kind,
        op_types_to_quantize=["Conv", "ConvTranspose"] if which == "convolutions" else None,
    )
    result = fold_file(path, verify=True)
    assert len(result.plan.layers) == len(LAYERS)
    made = onnx.load(output_of(result))
    assert not ARITHMETIC & set(ops(made))
    constants, new = dict(stored(onnx.load(path))), dict(stored(made))
    kept = {name: new[f"{name}.weight"] for name in LAYERS if new[f"{name}.weight"].dtype != np.float32}
    if form == "QDQ" or which == "all":
        assert kept.keys() == LAYERS.keys()  # QOperator has no ConvTranspose of its own
    total, other = 0, 0
    suffix = "QuantizeLinear_Output" if form == "QDQ" else "quantized"
    names = [f"{name}.product_{suffix}" for name in kept]
    for (name, codes), theirs in zip(kept.items(), outputs_of(path, names).values(), strict=True):
        np.testing.assert_array_equal(codes, expected_codes(constants, name))
        total, other = total + codes.size, other + int(np.count_nonzero(codes != theirs))
        assert np.abs(codes.astype(int) - theirs.astype(int)).max() <= 1
    assert total > 300
    assert other <= total / 1000  # a runtime's own norm is off by some units in the last place


def test_a_layer_without_codes_of_its_own_is_folded_in_float(tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantFormat

    path = quantize(
        vocoder(),
        tmp_path,
        quant_format=QuantFormat.QOperator,
        op_types_to_quantize=["Conv", "ConvTranspose"],
    )
    new = dict(stored(onnx.load(output_of(fold_file(path)))))
    v, g = (dict(stored(vocoder()))[f"up.weight_{part}"] for part in "vg")
    np.testing.assert_array_equal(new["up.weight"], exact_fold(v, g, 0, "float32"))


def test_a_code_that_is_wrong_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = quantize(vocoder(), tmp_path, op_types_to_quantize=["Conv", "ConvTranspose"])
    true = dequantized.coded
    from wnconvert.verbs.conversion.onnx import works

    monkeypatch.setattr(works, "coded", lambda x, zero, dtype: true(np.floor(x), zero, dtype))
    with pytest.raises(VerifyError, match=r"layer \w+\.weight is .* where the original computes"):
        fold_file(path, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


# -- what looks like it and is not


def rounding(b: Build, w: str, *, scale: float = 0.02) -> str:
    """QuantizeLinear and DequantizeLinear of a value."""
    names = b.tensor("w_scale", np.array(scale, np.float32)), b.tensor("w_zero_point", np.array(0, np.int8))
    return b.op("DequantizeLinear", b.op("QuantizeLinear", w, *names, name="codes"), *names)


def normed(b: Build, v: str = "") -> str:
    v = v or b.tensor("conv.weight_v", V)
    return COMBINED["g(v/n)"](b, b.tensor("conv.weight_g", G), v, NORMS["ReduceL2"](b, v, V.shape, 0))


def test_a_scale_that_a_caller_may_give_is_refused_or_left(tmp_path: Path) -> None:
    model = weighted(coded(V, "int8", "axis"), G)
    model.graph.input.append(helper.make_tensor_value_info("conv.weight_v_scale", 1, [8]))
    with pytest.raises(LayerError, match=r"conv\.weight_v_scale is an input of the graph too"):
        fold_file(saved(model, tmp_path))


def test_codes_by_a_scale_that_a_caller_may_give_are_computed_by_the_graph(tmp_path: Path) -> None:
    b = Build(17)
    b.op("Conv", "x", rounding(b, normed(b)), pads=[1, 1], name="y")
    model = b.model(["y"], {"x": (1, 8, 9)})
    model.graph.input.append(helper.make_tensor_value_info("w_scale", 1, []))
    made = folded(model, tmp_path)
    assert ops(made) == ["QuantizeLinear", "DequantizeLinear", "Conv"]
    np.testing.assert_array_equal(dict(stored(made))["conv.weight"], exact_fold(V, G, 0, "float32"))


def test_a_zero_of_another_shape_is_no_quantization(tmp_path: Path) -> None:
    b = Build(21)
    names = [
        b.tensor("q", np.zeros((8, 8, 3), np.int8)),
        b.tensor("s", np.ones(8, np.float32)),
        b.tensor("z", np.zeros((), np.int8)),
    ]
    b.op("Conv", "x", normed(b, b.op("DequantizeLinear", *names, axis=0)), pads=[1, 1], name="y")
    nodes = b.graph(["y"], {"x": (1, 8, 9)})
    model = helper.make_model(nodes, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    result = fold_file(saved(model, tmp_path))
    assert result.output is None


def test_a_weight_that_another_node_needs_before_it_is_rounded_is_stored_as_it_is(tmp_path: Path) -> None:
    b = Build(17)
    w = normed(b)
    made = b.op("Conv", "x", rounding(b, w), pads=[1, 1])
    b.op("Conv", made, w, pads=[1, 1], name="y")
    found = folded(b.model(["y"], {"x": (1, 8, 9)}), tmp_path)
    assert ops(found) == ["QuantizeLinear", "DequantizeLinear", "Conv", "Conv"]
    np.testing.assert_array_equal(dict(stored(found))["conv.weight"], exact_fold(V, G, 0, "float32"))


def test_codes_that_are_an_output_stay_one(tmp_path: Path) -> None:
    b = Build(17)
    b.op("Conv", "x", rounding(b, normed(b)), pads=[1, 1], name="y")
    model = b.model(["y"], {"x": (1, 8, 9)})
    model.graph.output.append(helper.make_tensor_value_info("codes", onnx.TensorProto.INT8, list(V.shape)))
    made = folded(model, tmp_path)
    assert [port.name for port in made.graph.output] == ["y", "codes"]
    assert not ARITHMETIC & set(ops(made))


def test_activations_behind_dequantizelinear_are_no_weight(tmp_path: Path) -> None:
    b = Build(17)
    names = b.tensor("s", np.array(0.1, np.float32)), b.tensor("z", np.array(0, np.int8))
    x = b.op("DequantizeLinear", b.op("QuantizeLinear", "x", *names), *names)
    w = COMBINED["g(v/n)"](b, b.tensor("g", G), x, NORMS["ReduceL2"](b, x, V.shape, 0))
    b.op("Add", w, b.tensor("one", np.ones(1, np.float32)), name="y")
    assert fold_file(saved(b.model(["y"], {"x": V.shape}), tmp_path)).output is None


def test_a_bias_in_int32_stays_what_it_is(tmp_path: Path) -> None:
    b = Build(17)
    bias = b.op(
        "DequantizeLinear",
        b.tensor("b", np.arange(8, dtype=np.int32)),
        b.tensor("bs", np.array(0.01, np.float32)),
    )
    b.op("Conv", "x", normed(b), bias, pads=[1, 1], name="y")
    made = folded(b.model(["y"], {"x": (1, 8, 9)}), tmp_path)
    assert ops(made) == ["DequantizeLinear", "Conv"]
    assert dict(stored(made))["b"].dtype == np.int32


def test_codes_of_another_scheme_than_their_numbers_are_kept_with_both(tmp_path: Path) -> None:
    b = Build(17)
    w = normed(b)
    codes = b.op(
        "QuantizeLinear", w, b.tensor("s", np.array(0.02, np.float32)), b.tensor("z", np.array(3, np.int8))
    )
    numbers = b.op(
        "DequantizeLinear",
        codes,
        b.tensor("s2", np.array(0.03, np.float32)),
        b.tensor("z2", np.array(1, np.int8)),
    )
    b.op("Conv", "x", numbers, pads=[1, 1], name="y")
    made = folded(b.model(["y"], {"x": (1, 8, 9)}), tmp_path)
    assert ops(made) == ["DequantizeLinear", "Conv"]
    expected = quantized_by(exact_fold(V, G, 0, "float32"), np.array(0.02, np.float32), np.array(3, np.int8))
    np.testing.assert_array_equal(dict(stored(made))["conv.weight"], expected)


def test_two_schemes_of_one_weight_leave_the_weight_in_float(tmp_path: Path) -> None:
    b = Build(17)
    w = normed(b)
    first = rounding(b, w)
    codes = b.op(
        "QuantizeLinear", w, b.tensor("s", np.array(0.05, np.float32)), b.tensor("z", np.array(9, np.uint8))
    )
    second = b.op("DequantizeLinear", codes, "s", "z")
    b.op("Conv", b.op("Conv", "x", first, pads=[1, 1]), second, pads=[1, 1], name="y")
    made = folded(b.model(["y"], {"x": (1, 8, 9)}), tmp_path)
    assert not ARITHMETIC & set(ops(made))
    np.testing.assert_array_equal(dict(stored(made))["conv.weight"], exact_fold(V, G, 0, "float32"))


def test_dynamic_quantization_of_a_weight_is_left_to_the_graph(tmp_path: Path) -> None:
    b = Build(17)
    v = b.tensor("lin.weight_v", V[:, :, 0])
    w = COMBINED["g(v/n)"](b, b.tensor("lin.weight_g", G[:, :, 0]), v, NORMS["ReduceL2"](b, v, (8, 8), 0))
    b.nodes.append(helper.make_node("DynamicQuantizeLinear", [w], ["codes", "scale", "zero"]))
    b.op("MatMul", "x", b.op("DequantizeLinear", "codes", "scale", "zero"), name="y")
    made = folded(b.model(["y"], {"x": (2, 8)}), tmp_path)
    assert ops(made) == ["DynamicQuantizeLinear", "DequantizeLinear", "MatMul"]
    assert dict(stored(made))["lin.weight"].dtype == np.float32


def test_codes_of_four_bits_are_packed_two_in_a_byte(tmp_path: Path) -> None:
    b = Build(21)
    v = b.tensor("conv.weight_v", V[:5, :, :1])  # 40 elements in rows of 8
    g = b.tensor("conv.weight_g", G[:5])
    w = COMBINED["g(v/n)"](b, g, v, NORMS["ReduceL2"](b, v, (5, 8, 1), 0))
    zero = np.array(0).astype(ml_dtypes.int4)
    names = b.tensor("s", np.array(0.1, np.float32)), b.tensor("z", zero)
    b.op("Conv", "x", b.op("DequantizeLinear", b.op("QuantizeLinear", w, *names), *names), name="y")
    made = folded(b.model(["y"], {"x": (1, 8, 9)}, ir_version=10), tmp_path)
    assert ops(made) == ["DequantizeLinear", "Conv"]
    exact = np.clip(np.rint(exact_fold(V[:5, :, :1], G[:5], 0, "float32") / np.float32(0.1)), -8, 7)
    codes = dict(stored(made))["conv.weight"].astype(np.float32)
    np.testing.assert_array_equal(codes, exact)


def test_codes_of_products_in_whole_numbers_are_stored(tmp_path: Path) -> None:
    b = Build(17)
    v = b.tensor("lin.weight_v", V[:, :, 0])
    w = COMBINED["g(v/n)"](b, b.tensor("lin.weight_g", G[:, :, 0]), v, NORMS["ReduceL2"](b, v, (8, 8), 0))
    zero = b.tensor("wz", np.array(2, np.int8))
    codes = b.op("QuantizeLinear", w, b.tensor("ws", np.array(0.01, np.float32)), zero)
    b.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]))
    b.op("Cast", b.op("MatMulInteger", "xq", codes, "xz", zero), to=1, name="y")
    made = folded(b.model(["y"], {"x": (2, 8)}), tmp_path)
    assert ops(made) == ["DynamicQuantizeLinear", "MatMulInteger", "Cast"]
    exact = exact_fold(V[:, :, 0], G[:, :, 0], 0, "float32")
    expected = quantized_by(exact, np.array(0.01), np.array(2, np.int8))
    np.testing.assert_array_equal(dict(stored(made))["lin.weight"], expected)


@pytest.mark.parametrize("which", ["all", "convolutions"])
def test_a_zero_row_is_refused_or_becomes_the_code_of_zero(which: str, tmp_path: Path) -> None:
    some = {"op_types_to_quantize": ["Conv", "ConvTranspose"]} if which == "convolutions" else {}
    path = quantize(vocoder(), tmp_path, **some)
    quantized = onnx.load(path)
    for tensor in quantized.graph.initializer:
        if tensor.name == "pre.weight_v":
            v = np.array(numpy_helper.to_array(tensor))
            v[3] = 0
            tensor.CopyFrom(numpy_helper.from_array(v, tensor.name))
    onnx.save(quantized, path)
    with pytest.raises(NumbersError, match=r"pre\.weight: v is zero in row 3"):
        fold_file(path, tmp_path / "refused.onnx")
    new = dict(stored(onnx.load(output_of(fold_file(path, zero_rows="zero")))))
    zero = new["pre.product_zero_point"]
    assert (new["pre.weight"][3] == zero).all()


# -- codes again


def dequantized_in(model: ModelProto) -> NDArray[Any]:
    """The numbers behind the codes of a model's only layer."""
    new = dict(stored(model))
    (node,) = (node for node in model.graph.node if node.op_type == "DequantizeLinear")
    session = onnx.reference.ReferenceEvaluator(node)
    feeds = {name: new[name] for name in node.input}
    (made,) = session.run(None, feeds)
    return np.asarray(made)


def scales_by_onnxruntime(w: NDArray[Any], dtype: str, *, symmetric: bool) -> tuple[Any, Any]:
    """The zero and the scale that onnxruntime's own quantizer chooses."""
    from onnxruntime.quantization import quant_utils

    kind = getattr(onnx.TensorProto, dtype.upper())
    least, most = quant_utils.get_qmin_qmax_for_qType(kind, symmetric=symmetric)
    ends = np.array(w.min(), np.float32), np.array(w.max(), np.float32)
    zero, scale = quant_utils.compute_scale_zp(*ends, least, most, symmetric=symmetric)
    return zero, scale


@crossed(
    dtype=["int8", "uint8", "int4", "uint4", "int16"],
    kind=["axis", "tensor", "block"],
    shifted=[False, True],
)
def test_a_weight_becomes_codes_again_by_the_same_scheme(
    dtype: str, kind: str, shifted: bool, tmp_path: Path
) -> None:
    v = coded(V, dtype, kind, shifted=shifted)
    is_told = dtype == "int8"
    result = fold_file(saved(weighted(v, G), tmp_path), requantize=True, proof="model" if is_told else "none")
    made = onnx.load(output_of(result))
    assert ops(made) == ["DequantizeLinear", "Conv"]
    assert is_told == any("is stored in codes again: SNR " in note for note in result.notes)
    assert is_told == any("output y beside that of the original: SNR " in note for note in result.notes)
    new, exact = dict(stored(made)), exact_fold(v.numbers, G, 0, "float32")
    codes, scale = new["conv.weight_quantized"], new["conv.weight_scale"]
    assert (codes.dtype, codes.shape) == (v.codes.dtype, v.codes.shape)
    assert (scale.dtype, scale.shape) == (v.scale.dtype, v.scale.shape)
    if v.zero is not None:
        zero = new["conv.weight_zero_point"].astype(int)
        assert zero.shape == v.zero.shape
        assert shifted or not np.any(zero - v.zero.astype(int))
    (node,) = (node for node in made.graph.node if node.op_type == "DequantizeLinear")
    assert {each.name: each.i for each in node.attribute} == v.attributes
    spread = np.max(scale) * (1.001 if shifted else 0.5001)
    assert np.abs(dequantized_in(made) - exact).max() <= spread
    if kind == "tensor" and dtype in {"int8", "uint8"}:
        zero_of, scale_of = scales_by_onnxruntime(exact, dtype, symmetric=not shifted)
        np.testing.assert_allclose(scale, scale_of, rtol=1e-6)
        assert v.zero is None or new["conv.weight_zero_point"] == zero_of


def test_without_being_asked_weights_are_stored_in_full_and_their_size_is_said(tmp_path: Path) -> None:
    result = fold_file(saved(weighted(coded(V, "int8", "axis"), G), tmp_path), proof="none")
    note = "become numbers, which take 576 bytes more; --requantize stores codes again"
    assert any(note in said for said in result.plan.notes)


def test_what_cannot_be_codes_again_is_stored_in_full_and_the_reason_said(tmp_path: Path) -> None:
    model = saved(weighted(coded(V, "float8_e4m3fn", "axis"), G), tmp_path)
    result = fold_file(model, requantize=True, proof="none")
    said = "conv.weight is stored as numbers: its codes are float8_e4m3fn"
    assert said in result.plan.notes
    ((_, w),) = stored(onnx.load(output_of(result)))
    assert w.dtype == np.float32


def test_a_weight_that_two_nodes_use_in_two_orders_is_no_codes_again(tmp_path: Path) -> None:
    b = Build(17)
    v = coded(V[:, :, 0], "int8", "axis")
    numbers = b.op(
        "DequantizeLinear", b.tensor("lin.weight_v_quantized", v.codes), b.tensor("s", v.scale), axis=0
    )
    g = b.tensor("lin.weight_g", G[:, :, 0])
    w = COMBINED["g(v/n)"](b, g, numbers, NORMS["ReduceL2"](b, numbers, (8, 8), 0))
    made = b.op("MatMul", "x", b.op("Transpose", w, perm=[1, 0]))
    b.op("MatMul", made, w, name="y")
    result = fold_file(saved(b.model(["y"], {"x": (2, 8)}), tmp_path), requantize=True)
    assert result.output is not None


def test_codes_of_a_transposed_weight_have_their_scales_along_its_own_axis(tmp_path: Path) -> None:
    b = Build(17)
    v = coded(V[:, :, 0], "int8", "axis")
    numbers = b.op(
        "DequantizeLinear", b.tensor("lin.weight_v_quantized", v.codes), b.tensor("s", v.scale), axis=0
    )
    g = b.tensor("lin.weight_g", G[:, :, 0])
    w = COMBINED["g(v/n)"](b, g, numbers, NORMS["ReduceL2"](b, numbers, (8, 8), 0))
    b.op("MatMul", "x", b.op("Transpose", w, perm=[1, 0]), name="y")
    made = onnx.load(output_of(fold_file(saved(b.model(["y"], {"x": (2, 8)}), tmp_path), requantize=True)))
    assert ops(made) == ["DequantizeLinear", "MatMul"]
    exact = exact_fold(v.numbers, G[:, :, 0], 0, "float32").T
    scale = dict(stored(made))["lin.weight_scale"]
    assert (np.abs(dequantized_in(made) - exact) <= scale * 0.5001).all()


def test_codes_again_that_are_wrong_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wnconvert.verbs.conversion.onnx import works

    true = dequantized.coded
    monkeypatch.setattr(works, "coded", lambda x, zero, dtype: true(x + 2, zero, dtype))
    with pytest.raises(VerifyError, match=r"layer conv\.weight is .* behind its codes"):
        fold_file(saved(weighted(coded(V, "int8", "axis"), G), tmp_path), requantize=True)


def test_checkpoints_are_not_asked_for_codes(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"only ONNX models, .* take --requantize"):
        fold_file(FIXTURES / "hifigan.safetensors", tmp_path / "out.safetensors", requantize=True)
