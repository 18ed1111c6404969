"""Outlines of models: all but the elements of large tensors, which a runtime maps; with onnx as the judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model

from tests.helpers.onnx_graphs import COMBINED, NORMS, Build
from wnconvert import fold_file
from wnconvert.onnx.file.outline import NOWHERE, outline_of
from wnconvert.onnx.runtime.process import Runtime
from wnconvert.onnx.runtime.words import NoAnswerError
from wnconvert.onnx.slices import Slices
from wnconvert.storage.checkpoint import open_checkpoint
from wnconvert.storage.sources import Source
from wnconvert.tensors.dtypes import DTYPES
from wnconvert.verbs.conversion.onnx import run

LARGE = np.random.default_rng(0).standard_normal((256, 96)).astype("f")


def saved(path: Path, *nodes: Any, rank: int, **tensors: Any) -> Path:
    """A model of some nodes from x, whose last axis is one of the tensors', to y."""
    inputs, outputs = ([helper.make_tensor_value_info(name, 1, [None] * rank)] for name in "xy")
    stored = [numpy_helper.from_array(np.asarray(each), name) for name, each in tensors.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, stored)
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    nodes = helper.make_node("MatMul", ["x", "large"], ["h"]), helper.make_node("Add", ["h", "small"], ["y"])
    return saved(tmp_path / "a model.onnx", *nodes, rank=2, large=LARGE, small=LARGE[0])


def outline(path: Path, location: str) -> bytes:
    opened = open_checkpoint(path).onnx
    assert opened is not None
    with Source((path,)) as source:
        return outline_of(source.files[0], opened, location)


def test_an_outline_is_the_model_whose_large_tensors_are_external(model: Path) -> None:
    made = outline(model, model.name)
    assert len(made) < 2000 < LARGE.nbytes
    proto = ModelProto.FromString(made)
    assert [tensor.data_location for tensor in proto.graph.initializer] == [1, 0]
    load_external_data_for_model(proto, str(model.parent))
    for tensor in proto.graph.initializer:
        tensor.ClearField("data_location")
    assert proto == onnx.load(model)


def test_the_checker_takes_an_outline_and_refuses_what_it_refuses_of_the_model(model: Path) -> None:
    onnx.checker.check_model(outline(model, NOWHERE), full_check=True)
    proto = onnx.load(model)
    proto.graph.node[0].input[1] = "another"
    onnx.save(proto, model)
    with pytest.raises(onnx.checker.ValidationError, match="another"):
        onnx.checker.check_model(outline(model, NOWHERE))


def test_an_outline_computes_what_its_model_computes(model: Path) -> None:
    x = {"x": np.ones((2, 256), "f")}
    with Runtime(60) as runtime:
        whole = runtime.open(model, optimize=False).run(x)
        mapped = runtime.open(model, optimize=False, outline=outline(model, model.name)).run(x)
    assert np.array_equal(mapped["y"], whole["y"])


def test_a_kernel_that_writes_over_its_tensors_does_not_write_to_the_file(tmp_path: Path) -> None:
    """In training mode onnxruntime writes mean and variance over the tensors that it is given."""
    count = 1 << 14
    node = helper.make_node(
        "BatchNormalization", ["x", "g", "zero", "zero", "v"], ["y", "", ""], training_mode=1
    )
    even = np.ones(count, "f")
    path = saved(tmp_path / "norm.onnx", node, rank=3, g=even, zero=even * 0, v=even * 2)
    before = path.read_bytes()
    x = np.random.default_rng(0).standard_normal((2, count, 2)).astype("f")
    with Runtime(60) as runtime, pytest.raises(NoAnswerError, match="crashed"):
        runtime.open(path, optimize=False, outline=outline(path, path.name)).run({"x": x})
    assert path.read_bytes() == before


def test_a_model_that_cannot_be_mapped_is_run_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> bytes:
        raise NoAnswerError("onnxruntime crashed (SIGSEGV)")

    b = Build(17)
    g, v = b.tensor("a.weight_g", np.ones((4, 1), "f")), b.tensor("a.weight_v", np.ones((4, 4), "f"))
    b.op("MatMul", "x", COMBINED["g(v/n)"](b, g, v, NORMS["ReduceL2"](b, v, (4, 4), 0)), name="y")
    graph = b.graph(["y"], {"x": (2, 4)})
    made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(made, tmp_path / "model.onnx")
    monkeypatch.setattr(run, "outline_of", crash)
    assert "the whole model on x[2,4]" in fold_file(tmp_path / "model.onnx").verified


def test_layers_with_one_arithmetic_are_one_model(tmp_path: Path) -> None:
    """So that onnxruntime loads a model for each spelling and shape, and not for each layer."""
    b, x, weights = Build(17), "x", []
    for name in ("first", "second"):
        g, v = b.tensor(f"{name}.g", np.ones((4, 1), "f")), b.tensor(f"{name}.v", np.ones((4, 4), "f"))
        weights.append(COMBINED["g(v/n)"](b, g, v, NORMS["ReduceL2"](b, v, (4, 4), 0)))
        x = b.op("MatMul", x, weights[-1], name="y" if name == "second" else "")
    graph = b.graph(["y"])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path := tmp_path / "m.onnx"
    )
    opened = open_checkpoint(path).onnx
    assert opened is not None
    with Source((path,)) as source:
        slices = Slices(opened, source.files)
        first, second = (slices.cut(("", weight), (), DTYPES["float32"]) for weight in weights)
    assert first.model == second.model
    assert [constant.name for constant in first.fed.values()] != [each.name for each in second.fed.values()]
