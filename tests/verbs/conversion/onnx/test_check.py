"""A folded model that is not the original is caught, whatever was spoiled; and one that is passes."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.helpers.onnx_graphs import COMBINED, NORMS, Build
from tests.helpers.states import output_of
from wnconvert import fold_file
from wnconvert.errors import InputError, VerifyError
from wnconvert.numerics.rows import RowPolicy
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.graph.plan import OnnxFold, plan_onnx
from wnconvert.storage.checkpoint import open_checkpoint
from wnconvert.verbs.conversion.onnx import compared, run
from wnconvert.verbs.conversion.onnx.check import check_fold

RNG = np.random.default_rng(11)


def vocoder(kind: Any = np.float32, norm: str = "ReduceL2") -> ModelProto:
    """Two convolutions with weight norm, a plain one, an activation between, a slice."""
    b = Build(17)
    x = "x"
    for name, shape in (("a", (6, 4, 3)), ("b", (5, 6, 3))):
        g = b.tensor(f"{name}.weight_g", RNG.random((shape[0], 1, 1)).astype(kind) + kind(0.5))
        v = b.tensor(f"{name}.weight_v", RNG.standard_normal(shape).astype(kind))
        w = COMBINED["g(v/n)"](b, g, v, NORMS[norm](b, v, shape, 0))
        bias = b.tensor(f"{name}.bias", RNG.standard_normal(shape[0]).astype(kind))
        x = b.op("LeakyRelu", b.op("Conv", x, w, bias, pads=[1, 1]), alpha=0.1)
    plain = b.tensor("c.weight", RNG.standard_normal((2, 5, 1)).astype(kind))
    b.op("Slice", b.op("Conv", x, plain), b.ints(0), b.ints(1), b.ints(1), name="y")
    graph = b.graph(["y"])
    code = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    graph.input.append(helper.make_tensor_value_info("x", code, ["B", 4, "T"]))
    graph.output[0].CopyFrom(helper.make_tensor_value_info("y", code, ["B", 1, "T"]))
    made: ModelProto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    return made


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("check") / "model.onnx"
    onnx.save(vocoder(), path)
    fold_file(path)
    return path


def planned(path: Path) -> tuple[OnnxFile, OnnxFold]:
    opened = open_checkpoint(path).onnx
    assert opened is not None
    return opened, plan_onnx(opened)


def initializer(proto: ModelProto, name: str) -> TensorProto:
    found: TensorProto = next(item for item in proto.graph.initializer if item.name == name)
    return found


def scaled(name: str, factor: float = 1.01) -> Callable[[ModelProto], None]:
    """One element of a tensor off by some part."""

    def spoil(proto: ModelProto) -> None:
        stored = initializer(proto, name)
        array = numpy_helper.to_array(stored).copy()
        array.reshape(-1)[array.size // 2] *= array.dtype.type(factor)
        stored.CopyFrom(numpy_helper.from_array(array, name))

    return spoil


def node(proto: ModelProto, op: str) -> Any:
    return next(item for item in proto.graph.node if item.op_type == op)


def attribute(op: str, name: str, value: Any) -> Callable[[ModelProto], None]:
    def spoil(proto: ModelProto) -> None:
        found = next(item for item in node(proto, op).attribute if item.name == name)
        found.CopyFrom(helper.make_attribute(name, value))

    return spoil


def rewired(proto: ModelProto) -> None:
    """The bias of the other layer, which has one element more."""
    convs = [item for item in proto.graph.node if item.op_type == "Conv"]
    convs[0].input[2] = "b.bias"


def dropped(proto: ModelProto) -> None:
    """The activation goes: its input takes its place."""
    relu = node(proto, "LeakyRelu")
    for item in proto.graph.node:
        for at, name in enumerate(item.input):
            if name == relu.output[0]:
                item.input[at] = relu.input[0]
    proto.graph.node.remove(relu)


def flipped(proto: ModelProto) -> None:
    stored = initializer(proto, "a.weight")
    array = numpy_helper.to_array(stored)[::-1]
    stored.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), "a.weight"))


def reshaped(proto: ModelProto) -> None:
    stored = initializer(proto, "a.weight")
    stored.dims[:] = [4, 6, 3]


def gone(proto: ModelProto) -> None:
    stored = initializer(proto, "a.weight")
    stored.name = "other"
    for item in proto.graph.node:
        item.input[:] = ["other" if name == "a.weight" else name for name in item.input]


SPOILED: dict[str, tuple[Callable[[ModelProto], None], str]] = {
    "an element of a weight": (scaled("a.weight"), r"layer a.weight is .* where the original computes"),
    "the other layer": (scaled("b.weight", 0.99), "layer b.weight is"),
    "an infinite element": (scaled("a.weight", np.inf), "layer a.weight is inf"),
    "rows in another order": (flipped, "layer a.weight is"),
    "another shape": (reshaped, "layer a.weight should have the shape"),
    "another name": (gone, "a.weight is not in the new model|does not hold all tensors that it should keep"),
    "a plain weight": (scaled("c.weight", 1.5), "output y is off|c.weight was read back"),
    "a plain weight by 1 %": (scaled("c.weight"), "c.weight was read back with other values"),
    "a bias by 1 %": (scaled("b.bias"), "b.bias was read back with other values"),
    "an activation": (attribute("LeakyRelu", "alpha", 0.11), "output y is off"),
    "a padding": (attribute("Conv", "pads", [2, 0]), "output y is off"),
    "a node that is left out": (dropped, "output y is off"),
    "a node with another input": (rewired, "fails|refuses|cannot run|not a valid|is off by"),
    "another input": (lambda proto: setattr(proto.graph.input[0], "name", "z"), "onnx.checker refuses"),
}


def set_in_segments(monkeypatch: pytest.MonkeyPatch, *, segments: bool) -> None:
    """Have every graph run in segments of two nodes, if so."""
    if segments:
        monkeypatch.setattr(run, "_MANY", 0)
        monkeypatch.setattr(run, "_SEGMENT", 2)


@pytest.mark.parametrize("segments", [False, True], ids=["whole", "in segments"])
@pytest.mark.parametrize("kind", SPOILED)
def test_a_spoiled_graph_is_caught(
    kind: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, segments: bool
) -> None:
    set_in_segments(monkeypatch, segments=segments)
    spoil, what = SPOILED[kind]
    proto = onnx.load(source.with_name("model.folded.onnx"))
    spoil(proto)
    onnx.save(proto, tmp_path / "spoiled.onnx")
    opened, fold = planned(source)
    with pytest.raises((VerifyError, InputError), match=what) as caught:
        check_fold(opened, fold, tmp_path / "spoiled.onnx", verify=True)
    assert isinstance(caught.value, VerifyError), caught.value


def ending(path: Path, proto: ModelProto, dtype: int, *nodes: tuple[str, str, dict[str, Any]]) -> Path:
    """A model with more nodes behind its output, one after another, and an output of another dtype."""
    last = "narrow"
    proto.graph.node[-1].output[0] = last
    for op, value, more in nodes:
        name = "y" if op == nodes[-1][0] else op
        proto.graph.node.append(helper.make_node(op, [last, value] if value else [last], [name], **more))
        last = name
    proto.graph.output[0].type.tensor_type.elem_type = dtype
    onnx.save(proto, path)
    return path


def test_an_output_that_is_wider_than_the_weights_is_held_to_their_precision(tmp_path: Path) -> None:
    cast = ("Cast", "", {"to": TensorProto.DOUBLE})
    proto = vocoder()
    source = ending(tmp_path / "wide.onnx", proto, TensorProto.DOUBLE, cast)
    written = output_of(fold_file(source))
    check_fold(*planned(source), written, verify=True)
    attribute("LeakyRelu", "alpha", 0.11)(spoilt := onnx.load(written))
    onnx.save(spoilt, written)
    with pytest.raises(VerifyError, match="output y is off"):
        check_fold(*planned(source), written, verify=False)


def test_infinities_of_the_original_stay_and_others_are_told(tmp_path: Path) -> None:
    proto = vocoder()
    source = ending(tmp_path / "log.onnx", proto, TensorProto.FLOAT, ("Relu", "", {}), ("Log", "", {}))
    written = output_of(fold_file(source))
    by = check_fold(*planned(source), written, verify=True).by
    assert "the whole model on x" in by
    attribute("LeakyRelu", "alpha", -3.0)(spoilt := onnx.load(written))
    onnx.save(spoilt, written)
    with pytest.raises(VerifyError, match="output y is off"):
        check_fold(*planned(source), written, verify=False)


def test_what_is_not_spoiled_passes(source: Path) -> None:
    opened, fold = planned(source)
    checked = check_fold(opened, fold, source.with_name("model.folded.onnx"), verify=True)
    by, notes = checked.by, checked.notes
    assert by == (
        "onnx.checker and onnxruntime: 2 layers against the original's own arithmetic, "
        "the whole model on x[1,4,16], 6 other tensors"
    )
    assert notes == ()


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_one_percent_of_one_element_is_caught_in_every_dtype(kind: Any, tmp_path: Path) -> None:
    onnx.save(vocoder(kind), tmp_path / "model.onnx")
    proto = onnx.load(output_of(fold_file(tmp_path / "model.onnx")))
    scaled("b.weight")(proto)
    onnx.save(proto, tmp_path / "spoiled.onnx")
    opened, fold = planned(tmp_path / "model.onnx")
    with pytest.raises(VerifyError, match=r"layer b\.weight"):
        check_fold(opened, fold, tmp_path / "spoiled.onnx")


def test_where_the_check_fails_no_file_is_there(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise VerifyError("no")

    monkeypatch.setattr(compared, "_clearly_near", refuse)
    with pytest.raises(VerifyError):
        fold_file(source, tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_without_the_extra_nothing_is_written_and_a_plan_is_made(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(InputError, match=f"{missing} is not installed") as caught:
        fold_file(source, tmp_path / "out.onnx")
    assert caught.value.fix == f"pip install {missing}"
    assert not list(tmp_path.iterdir())
    assert len(fold_file(source, tmp_path / "out.onnx", dry_run=True).layers) == 2


def with_inputs(*inputs: tuple[str, int, list[Any]], nodes: Callable[[Build, str], None]) -> ModelProto:
    b = Build(17)
    g = b.tensor("a.weight_g", RNG.random((4, 1)).astype(np.float32) + 1)
    v = b.tensor("a.weight_v", RNG.standard_normal((4, 4)).astype(np.float32))
    nodes(b, COMBINED["g(v/n)"](b, g, v, NORMS["ReduceL2"](b, v, (4, 4), 0)))
    graph = b.graph(["y"])
    graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, ["R", "C"]))
    graph.input.extend(helper.make_tensor_value_info(*item) for item in inputs)
    made: ModelProto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    return made


def checked(tmp_path: Path, proto: ModelProto) -> tuple[str, tuple[str, ...]]:
    onnx.save(proto, tmp_path / "model.onnx")
    result = fold_file(tmp_path / "model.onnx")
    assert "1 layer against the original's own arithmetic" in result.verified
    return result.verified, tuple(note for note in result.notes if "left out" not in note)


@pytest.mark.parametrize("segments", [False, True], ids=["whole", "in segments"])
def test_a_stochastic_model_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, segments: bool
) -> None:
    set_in_segments(monkeypatch, segments=segments)

    def nodes(b: Build, w: str) -> None:
        b.op("MatMul", b.op("RandomNormalLike", "x"), w, name="y")

    verified, notes = checked(tmp_path, with_inputs(("x", 1, ["N", 4]), nodes=nodes))
    assert "whole" not in verified
    assert notes == ("the original computes different outputs in each run; each layer was compared alone",)


def test_a_model_that_runs_on_nothing_made_up_is_told(tmp_path: Path) -> None:
    def nodes(b: Build, w: str) -> None:
        b.op("MatMul", b.op("Reshape", "x", b.ints(-1, 7, 4)), w, name="y")

    verified, notes = checked(tmp_path, with_inputs(("x", 1, ["N", 4, 11]), nodes=nodes))
    assert "whole" not in verified
    assert "was not run on made-up inputs" in notes[0]
    assert "each layer was compared alone" in notes[0]


def test_an_operator_of_ones_own_keeps_only_the_whole_from_running(tmp_path: Path) -> None:
    def nodes(b: Build, w: str) -> None:
        b.op("Ours", "x", w, name="y", domain="of.us")

    proto = with_inputs(("x", 1, ["N", 4]), nodes=nodes)
    proto.opset_import.append(helper.make_opsetid("of.us", 1))
    verified, notes = checked(tmp_path, proto)
    assert "whole" not in verified
    assert "the whole model was not run" in notes[0]


def test_where_neither_a_layer_nor_the_whole_was_run_that_is_told(tmp_path: Path) -> None:
    def stored(name: str, shape: tuple[int, ...]) -> TensorProto:
        return helper.make_tensor(name, TensorProto.BFLOAT16, shape, [1.5] * math.prod(shape))

    nodes = [  # onnxruntime has no bfloat16 arithmetic here
        helper.make_node("Mul", ["g", "v"], ["p"]),
        helper.make_node("Div", ["p", "n"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    sides = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [1, 4, "T"]) for name in "xy"]
    tensors = [stored("g", (4, 1, 1)), stored("v", (4, 4, 1)), stored("n", (4, 1, 1))]
    graph = helper.make_graph(nodes, "g", sides[:1], sides[1:], tensors)
    opset = [helper.make_opsetid("", 22)]
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=opset), tmp_path / "model.onnx")
    notes = fold_file(tmp_path / "model.onnx").notes
    assert notes[-1].startswith("the whole model was not run (")
    assert notes[-1].endswith("; no layer was run either, so no numbers were compared")
    assert not any("each layer was compared" in note for note in notes)


@pytest.mark.parametrize(("ids", "shape"), [("lengths", ["B"]), ("tokens", ["B", "L"]), ("one", [])])
def test_whole_numbers_are_made_up_too(tmp_path: Path, ids: str, shape: list[Any]) -> None:
    def nodes(b: Build, w: str) -> None:
        picked = b.op("Gather", w, ids, axis=0)
        b.op("Add", b.op("ReduceSum", picked), b.op("ReduceSum", "x"), name="y")

    inputs = (("x", 1, ["B", 4]), (ids, TensorProto.INT64, shape))
    verified, notes = checked(tmp_path, with_inputs(*inputs, nodes=nodes))
    assert f"the whole model on x[1,4], {ids}[" in verified
    assert not notes


def test_an_axis_has_one_size_wherever_it_is_named(tmp_path: Path) -> None:
    model = vocoder()
    graph = model.graph
    graph.input.append(helper.make_tensor_value_info("speaker", TensorProto.FLOAT, ["B"]))
    graph.output[0].name = "z"
    reshape = numpy_helper.from_array(np.array([-1, 1, 1]), "column")
    graph.initializer.append(reshape)
    graph.node.append(helper.make_node("Reshape", ["speaker", "column"], ["per_item"]))
    graph.node.append(helper.make_node("Add", ["y", "per_item"], ["z"]))
    onnx.save(model, tmp_path / "model.onnx")
    result = fold_file(tmp_path / "model.onnx")
    assert "x[1,4,16], speaker[1]" in result.verified


def test_zeros_that_were_asked_for_pass_where_the_original_has_none(tmp_path: Path) -> None:
    proto = vocoder()
    stored = initializer(proto, "a.weight_v")
    array = numpy_helper.to_array(stored).copy()
    array[3] = 0
    stored.CopyFrom(numpy_helper.from_array(array, stored.name))
    onnx.save(proto, tmp_path / "model.onnx")
    made = output_of(fold_file(tmp_path / "model.onnx", zero_rows="zero"))
    opened, fold = planned(tmp_path / "model.onnx")
    with pytest.raises(VerifyError, match="where the original computes nan"):
        check_fold(opened, fold, made)
    assert check_fold(opened, fold, made, RowPolicy("zero")).tolerance


def test_rows_whose_squares_underflow_are_numbers_now(tmp_path: Path) -> None:
    proto = vocoder(norm="Pow 2, Sqrt")
    stored = initializer(proto, "a.weight_v")
    array = numpy_helper.to_array(stored).copy()
    array[3] *= np.float32(1e-30)
    stored.CopyFrom(numpy_helper.from_array(array, stored.name))
    onnx.save(proto, tmp_path / "model.onnx")
    result = fold_file(tmp_path / "model.onnx")
    assert any(
        "layer a.weight: 12 elements that the original computes as NaN" in note for note in result.notes
    )


def test_bfloat16_that_onnxruntime_does_not_compute_is_held_against_the_formula(tmp_path: Path) -> None:
    import ml_dtypes

    def nodes(b: Build, w: str) -> None:
        b.op("MatMul", "x", b.op("Cast", w, to=1), name="y")

    proto = with_inputs(("x", 1, ["N", 4]), nodes=nodes)
    for stored in proto.graph.initializer:
        array = numpy_helper.to_array(stored).astype(ml_dtypes.bfloat16)
        stored.CopyFrom(helper.make_tensor(stored.name, 16, array.shape, array.tobytes(), raw=True))
    onnx.save(proto, tmp_path / "model.onnx")
    result = fold_file(tmp_path / "model.onnx", verify=True)
    assert any("compared with g·v/‖v‖ instead" in note for note in result.notes)


def test_arithmetic_in_hundreds_of_steps_is_held_against_the_formula(tmp_path: Path) -> None:
    b = Build(17)
    g, v = b.tensor("a.weight_g", np.ones((4, 1), np.float32)), b.tensor("a.weight_v", np.eye(4, dtype="f"))
    step = v
    for _ in range(600):
        step = b.op("Identity", step)
    w = COMBINED["g(v/n)"](b, g, step, NORMS["ReduceL2"](b, step, (4, 4), 0))
    b.op("MatMul", "x", w, name="y")
    onnx.save(b.model(["y"], {"x": (2, 4)}), tmp_path / "model.onnx")
    result = fold_file(tmp_path / "model.onnx")
    assert "1 layer against g·v/‖v‖, the whole model on x[2,4]" in result.verified
    assert any("cannot run the arithmetic of a.weight alone" in note for note in result.notes)


def test_no_input_is_made_up_that_would_fill_the_memory(tmp_path: Path) -> None:
    def nodes(b: Build, w: str) -> None:
        b.op("MatMul", b.op("Reshape", "x", b.ints(7, 4)), w, name="y")  # 28 elements: none of ours

    verified, notes = checked(tmp_path, with_inputs(("x", 1, ["N", "A", "B", "C", "D"]), nodes=nodes))
    assert "whole" not in verified
    assert "was not run on made-up inputs" in notes[0]
    (tmp_path / "model.folded.onnx").unlink()
    verified, notes = checked(tmp_path, with_inputs(("x", 1, [1 << 20, 1 << 20]), nodes=nodes))
    assert "its input x would have 1099511627776 elements" in notes[0]


def test_of_a_graph_that_says_two_things_that_is_said(tmp_path: Path) -> None:
    def nodes(b: Build, w: str) -> None:
        b.op("MatMul", "x", w, name="y")

    proto = with_inputs(("x", 1, ["N", 4]), nodes=nodes)
    divided = next(item for item in proto.graph.node if item.op_type == "Div")
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4), np.float32), divided.output[0]))
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(VerifyError) as caught:
        fold_file(tmp_path / "model.onnx")
    assert caught.value.fix.startswith("onnx.checker refuses the original too (")


def noisy() -> ModelProto:
    """A vocoder with noise in it, as VITS has: the whole cannot be compared by what it computes."""
    proto = vocoder()
    at, cut = next((at, one) for at, one in enumerate(proto.graph.node) if one.op_type == "Slice")
    inner = cut.input[0]
    cut.input[0] = "noisy"
    proto.graph.node.insert(at, helper.make_node("Add", [inner, "noise"], ["noisy"]))
    proto.graph.node.insert(at, helper.make_node("RandomNormalLike", [inner], ["noise"]))
    return proto


SMALL: dict[str, Callable[[ModelProto], None]] = {
    "a number by 1 %": attribute("LeakyRelu", "alpha", 0.101),
    "the name of a producer": lambda proto: setattr(proto, "producer_name", "other"),
    "an opset": lambda proto: setattr(proto.opset_import[0], "version", 16),
    "a text": lambda proto: setattr(proto.graph, "doc_string", "text"),
    "a type more": lambda proto: proto.graph.value_info.append(helper.make_tensor_value_info("t5", 1, None)),
    "a node more": lambda proto: proto.graph.node.append(helper.make_node("Identity", ["x"], ["more"])),
    "metadata": lambda proto: helper.set_model_props(proto, {"key": "value"}),
}


@pytest.mark.parametrize("kind", [*SPOILED, *SMALL])
@pytest.mark.parametrize("verify", [True, False])
def test_what_no_run_can_tell_is_told_by_the_bytes(kind: str, tmp_path: Path, *, verify: bool) -> None:
    onnx.save(noisy(), tmp_path / "model.onnx")
    proto = onnx.load(output_of(fold_file(tmp_path / "model.onnx")))
    onnx.save(proto, tmp_path / "spoiled.onnx")
    opened, fold = planned(tmp_path / "model.onnx")
    check_fold(opened, fold, tmp_path / "spoiled.onnx", verify=verify)
    (SMALL[kind] if kind in SMALL else SPOILED[kind][0])(proto)
    onnx.save(proto, tmp_path / "spoiled.onnx")
    with pytest.raises(VerifyError) as caught:
        check_fold(opened, fold, tmp_path / "spoiled.onnx", verify=verify)
    assert caught.value.exit_code == 1
    assert caught.value.fix


@pytest.mark.parametrize("external", [True, False])
def test_all_that_can_be_edited_passes(tmp_path: Path, *, external: bool) -> None:
    proto = noisy()
    proto.ir_version = 3
    for stored in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(stored.name, 1, list(stored.dims)))
    data: dict[str, Any] = {"save_as_external_data": external, "location": "data.bin", "size_threshold": 0}
    onnx.save(proto, tmp_path / "model.onnx", **data)
    assert fold_file(tmp_path / "model.onnx", verify=True).verified


@pytest.fixture(autouse=True)
def no_files_stay(tmp_path: Path) -> Iterator[None]:
    yield
    assert not list(tmp_path.glob("*.tmp"))
