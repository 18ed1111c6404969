from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from wnconvert.errors import ArgumentError, FormatError, InputError, VerifyError
from wnconvert.onnx.runtime.process import Runtime

FLOAT = TensorProto.FLOAT
WEIGHT = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3), "w")


def saved(
    folder: Path, nodes: Sequence[Any], x: Any, y: Any, *weights: Any, opset: int = 17, **how: Any
) -> Path:
    """A model of some nodes from inputs to outputs; each of ``x`` and ``y`` is (dtype, shape)."""
    ports = helper.make_tensor_value_info("x", *x), helper.make_tensor_value_info("y", *y)
    graph = helper.make_graph(nodes, "graph", [ports[0]], [ports[1]], list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path = folder / "model.onnx"
    onnx.save(model, path, **how)
    return path


def matmul(folder: Path, **how: Any) -> Path:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "mul")
    return saved(folder, [node], (FLOAT, ["T", 4]), (FLOAT, ["T", 3]), WEIGHT, **how)


def beside(folder: Path) -> Path:
    """A model whose weight is in a file beside it."""
    return matmul(folder, save_as_external_data=True, location="w.bin", size_threshold=0)


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime(60) as made:
        yield made


@pytest.mark.parametrize("optimize", [True, False])
def test_a_model_is_opened_and_run(runtime: Runtime, tmp_path: Path, *, optimize: bool) -> None:
    opened = runtime.open(matmul(tmp_path), optimize=optimize)
    x = np.ones((2, 4), np.float32)
    assert [(port.name, str(port.dtype), port.shape) for port in opened.inputs] == [
        ("x", "float32", ("T", 4))
    ]
    assert [port.name for port in opened.outputs] == ["y"]
    assert np.array_equal(opened.run({"x": x})["y"], x @ numpy_helper.to_array(WEIGHT))


def test_external_data_is_found_beside_the_model(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = beside(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert runtime.open(path).run({"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[18, 22, 26]]


def test_external_data_that_is_missing_cut_or_elsewhere_is_said(runtime: Runtime, tmp_path: Path) -> None:
    path = beside(tmp_path)
    (tmp_path / "w.bin").write_bytes(b"1234")
    with pytest.raises(InputError, match="external data is cut short"):
        runtime.open(path)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(InputError, match="external data is missing") as caught:
        runtime.open(path)
    assert "beside the model" in caught.value.fix
    model = onnx.load(path, load_external_data=False)
    next(
        entry for entry in model.graph.initializer[0].external_data if entry.key == "location"
    ).value = "../w"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="external data lies outside the folder"):
        runtime.open(path)


def test_files_that_are_no_models_are_said(runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        runtime.open(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="not a file"):
        runtime.open(tmp_path)
    path = tmp_path / "a.onnx"
    for contents, what in ((b"", "an empty file"), (b"hello world" * 9, "not an ONNX model")):
        path.write_bytes(contents)
        with pytest.raises(FormatError, match=what):
            runtime.open(path)
    path.write_bytes(matmul(tmp_path).read_bytes()[:-20])
    with pytest.raises(FormatError):
        runtime.open(path)


@pytest.mark.parametrize(
    ("node", "opset", "what"),
    [
        (helper.make_node("Frob", ["x"], ["y"]), 17, r"No Op registered for Frob with domain_version of 17$"),
        (helper.make_node("Frob", ["x"], ["y"], domain="my"), 17, r"No opset import for domain 'my'$"),
        (helper.make_node("Relu", ["x"], ["y"]), 99, r"its opset is 99, and the newest known opset is \d+$"),
    ],
)
def test_what_onnxruntime_cannot_run_is_said(
    runtime: Runtime, tmp_path: Path, node: Any, opset: int, what: str
) -> None:
    path = saved(tmp_path, [node], (FLOAT, [2]), (FLOAT, [2]), opset=opset)
    with pytest.raises(InputError, match=f"(?m)cannot run this model: {what}") as caught:
        runtime.open(path)
    assert "--opset" in caught.value.fix


def test_a_dtype_without_a_kernel_is_said(runtime: Runtime, tmp_path: Path) -> None:
    half = (TensorProto.BFLOAT16, [1, 1, 1])
    path = saved(tmp_path, [helper.make_node("Conv", ["x", "x"], ["y"])], half, half, opset=22)
    with pytest.raises(InputError, match=r"Could not find an implementation for Conv"):
        runtime.open(path)


@pytest.mark.parametrize(
    ("name", "dtype", "what"), [("z", FLOAT, "Node input 'z' is not"), ("x", TensorProto.BOOL, "Type Error")]
)
def test_a_graph_that_is_not_valid_is_said(
    runtime: Runtime, tmp_path: Path, name: str, dtype: int, what: str
) -> None:
    path = saved(tmp_path, [helper.make_node("Relu", [name], ["y"])], (dtype, [2]), (dtype, [2]))
    with pytest.raises(FormatError, match=f"not a valid ONNX model: {what}"):
        runtime.open(path)


@pytest.mark.parametrize(
    ("feeds", "what"),
    [
        ({}, "the input x is missing"),
        ({"x": np.ones((1, 4), np.float32), "mel": np.ones(1)}, "the model has no input mel"),
        ({"x": np.ones((1, 4))}, "input x is float32, but float64 is given"),
        ({"x": np.ones((1, 5), np.float32)}, r"input x is float32\[T,4\], but the shape \[1,5\] is given"),
        ({"x": np.ones(4, np.float32)}, r"input x is float32\[T,4\], but the shape \[4\] is given"),
    ],
)
def test_what_does_not_fit_the_inputs_is_refused(
    runtime: Runtime, tmp_path: Path, feeds: dict[str, Any], what: str
) -> None:
    with pytest.raises(ArgumentError, match=f"(?m){what}") as caught:
        runtime.open(matmul(tmp_path)).run(feeds)
    assert "x" in caught.value.fix


def test_a_node_that_fails_is_named_and_is_a_difference(
    runtime: Runtime, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shape = numpy_helper.from_array(np.array([2, 4]), "shape")
    node = helper.make_node("Reshape", ["x", "shape"], ["y"], "flat")
    opened = runtime.open(saved(tmp_path, [node], (FLOAT, ["T"]), (FLOAT, [2, 4]), shape))
    assert opened.run({"x": np.ones(8, np.float32)})["y"].shape == (2, 4)
    with pytest.raises(VerifyError, match=r"Reshape node 'flat': .*Input shape:\{9\}") as caught:
        opened.run({"x": np.ones(9, np.float32)})
    assert len(caught.value.lines) == 1
    assert "\n" not in caught.value.heading
    assert "onnxruntime_src" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_onnxruntime_does_not_write_to_stderr(
    runtime: Runtime, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # A shape other than the one that is declared is what onnxruntime warns of.
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    path = saved(tmp_path, [node], (FLOAT, [None, None]), (FLOAT, [7, 3]), WEIGHT)
    assert runtime.open(path, optimize=False).run({"x": np.ones((2, 4), np.float32)})["y"].shape == (2, 3)
    assert capfd.readouterr().err == ""


def test_a_scalar_is_fed_where_the_model_tells_no_shape(runtime: Runtime, tmp_path: Path) -> None:
    opened = runtime.open(
        saved(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], (FLOAT, None), (FLOAT, None))
    )
    assert opened.run({"x": np.array(2, np.float32)})["y"] == 2
    assert opened.run({"x": np.ones((2, 2), np.float32)})["y"].shape == (2, 2)


def test_bfloat16_goes_in_and_comes_out(runtime: Runtime, tmp_path: Path) -> None:
    half = (TensorProto.BFLOAT16, [None])
    opened = runtime.open(saved(tmp_path, [helper.make_node("Identity", ["x"], ["y"])], half, half))
    for x in (np.array([1.5, -2, np.inf]), np.zeros(0)):
        y = opened.run({"x": x.astype(ml_dtypes.bfloat16)})["y"]
        assert y.dtype == ml_dtypes.bfloat16
        assert y.tolist() == x.tolist()


def test_an_output_that_is_no_tensor_is_said(runtime: Runtime, tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", FLOAT, [2])
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None))
    node = helper.make_node("SplitToSequence", ["x"], ["y"])
    graph = helper.make_graph([node], "graph", [x], [helper.make_value_info("y", kind)])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m"
    )
    with pytest.raises(InputError, match=r"output y is seq\(tensor\(float\)\), which cannot be compared"):
        runtime.open(tmp_path / "m").run({"x": np.ones(2, np.float32)})


def test_without_onnxruntime_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match="needs onnxruntime") as caught:
        Runtime(60)
    assert caught.value.fix == "pip install onnxruntime"
