"""Small ONNX models, and what can be done to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.helpers.golden import FIXTURES

TCN = FIXTURES / "tcn.onnx"

#: Changes a model in place.
Change = Callable[[onnx.ModelProto], None]


def changed(source: Path, target: Path, *changes: Change) -> Path:
    """A copy of a model with some changes."""
    model = onnx.load(str(source))
    for change in changes:
        change(model)
    onnx.save(model, str(target))
    return target


def renamed(names: dict[str, str]) -> Change:
    """Initializers, inputs and outputs under other names."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        for one in (*graph.initializer, *graph.input, *graph.output):
            one.name = names.get(one.name, one.name)
        for node in graph.node:
            for ports in (node.input, node.output):
                ports[:] = [names.get(name, name) for name in ports]

    return change


def weight(name: str, work: Callable[[Any], Any]) -> Change:
    """An initializer of other numbers."""

    def change(model: onnx.ModelProto) -> None:
        (found,) = (each for each in model.graph.initializer if each.name == name)
        new = np.ascontiguousarray(work(numpy_helper.to_array(found)))
        found.CopyFrom(numpy_helper.from_array(new, name))

    return change


def fixed(size: int) -> Change:
    """A model whose first dynamic size is a number."""

    def change(model: onnx.ModelProto) -> None:
        for port in (*model.graph.input, *model.graph.output):
            for axis in port.type.tensor_type.shape.dim:
                if axis.dim_param:
                    axis.dim_value = size

    return change


def two_layers(path: Path, dtype: str = "float32", *, scale: float = 1.0) -> Path:
    """Two square matrices and biases between x and y, of a dtype that inputs and outputs have too."""
    stream = np.random.default_rng(1)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    numbers = {
        name: stream.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in (("w1", (16, 16)), ("b1", (16,)), ("w2", (16, 16)), ("b2", (16,)))
    }
    numbers["w2"] *= np.float32(scale)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Add", ["h", "b1"], ["i"]),
        helper.make_node("Tanh", ["i"], ["j"]),
        helper.make_node("MatMul", ["j", "w2"], ["k"]),
        helper.make_node("Add", ["k", "b2"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(name, kind, ["batch", 16]) for name in ("x", "y")]
    stored = [numpy_helper.from_array(each.astype(dtype), name) for name, each in numbers.items()]
    graph = helper.make_graph(nodes, "two", ports[:1], ports[1:], stored)
    onnx.save(_model(graph), str(path))
    return path


def embedding(path: Path, rows: int) -> Path:
    """A table of rows that ids pick."""
    table = np.random.default_rng(2).normal(size=(rows, 4)).astype(np.float32)
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"])]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [1, "2*L"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, None, 4])
    onnx.save(
        _model(helper.make_graph(nodes, "e", [ids], [y], [numpy_helper.from_array(table, "table")])),
        str(path),
    )
    return path


def noise(path: Path) -> Path:
    """A model that adds noise to its input."""
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["n"]),
        helper.make_node("Mul", ["n", "w"], ["m"]),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y")]
    w = numpy_helper.from_array(np.full(4, 2, np.float32), "w")
    onnx.save(_model(helper.make_graph(nodes, "n", ports[:1], ports[1:], [w])), str(path))
    return path


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    made: onnx.ModelProto = helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]
    )
    onnx.checker.check_model(made)
    return made
