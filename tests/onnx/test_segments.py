"""Models cut into segments: they compute what the whole computes, to the bit, or are not cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from tests.bench.growth import write_graph
from wnconvert import fold_file
from wnconvert.errors import WnconvertError
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.runtime.process import Runtime
from wnconvert.onnx.segments import Segment, segments_of
from wnconvert.storage.checkpoint import open_checkpoint
from wnconvert.storage.sources import Source
from wnconvert.verbs.conversion.onnx import run

RNG = np.random.default_rng(5)
NUMBERS: dict[str, Any] = {
    "large": RNG.standard_normal((4, 1 << 13)).astype("f"),
    "small": RNG.standard_normal((4, 4)).astype("f"),
    "yes": np.array(True),
    "three": np.array(3),
}
node = helper.make_node


def port(name: str, kind: int = TensorProto.FLOAT, shape: Any = ("B", 4)) -> ValueInfoProto:
    made: ValueInfoProto = helper.make_tensor_value_info(name, kind, shape)
    return made


def model_of(*nodes: Any, outputs: Mapping[str, Any], functions: Any = (), **more: Any) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [port("x")],
        [helper.make_tensor_value_info(name, 1, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in NUMBERS.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ours", 1)]
    made: ModelProto = helper.make_model(
        graph, opset_imports=opsets, functions=functions, **{"ir_version": 8, **more}
    )
    return made


def plain() -> ModelProto:
    """Constants that many nodes use, an output that is used again, a node whose outputs nothing uses."""
    return model_of(
        node("Relu", ["x"], ["early"]),
        node("MatMul", ["early", "small"], ["a"]),
        node("Neg", ["small"], ["unused"]),
        node("Add", ["a", "early"], ["b"]),
        node("MatMul", ["b", "small"], ["c"]),
        node("MatMul", ["c", "large"], ["y"]),
        outputs={"early": ["B", 4], "y": ["B", 1 << 13]},
    )


def branching() -> ModelProto:
    """If, in whose branches outer values and initializers are used, and names that are outer ones too."""
    then = helper.make_graph(
        [node("MatMul", ["a", "small"], ["b"]), node("Relu", ["b"], ["out"])], "then", [], [port("out")]
    )
    other = helper.make_graph([node("Neg", ["a"], ["out"])], "other", [], [port("out")])
    return model_of(
        node("Tanh", ["x"], ["a"]),
        node("Not", ["yes"], ["no"]),
        node("If", ["yes"], ["d"], then_branch=then, else_branch=other),
        node("If", ["no"], ["e"], then_branch=then, else_branch=other),
        node("Add", ["d", "e"], ["f"]),
        node("Add", ["f", "a"], ["y"]),
        outputs={"y": ["B", 4]},
    )


def looping() -> ModelProto:
    """Loop over an outer value, around If."""
    branches = {
        f"{name}_branch": helper.make_graph([node(op, ["now"], ["out"])], name, [], [port("out")])
        for name, op in (("then", "Tanh"), ("else", "Relu"))
    }
    body = helper.make_graph(
        [
            node("MatMul", ["state", "small"], ["product"]),
            node("Add", ["product", "outer"], ["now"]),
            node("If", ["on"], ["next"], **branches),
            node("Identity", ["on"], ["still"]),
        ],
        "body",
        [port("i", TensorProto.INT64, []), port("on", TensorProto.BOOL, []), port("state")],
        [port("still", TensorProto.BOOL, []), port("next")],
    )
    return model_of(
        node("Relu", ["x"], ["outer"]),
        node("Neg", ["x"], ["first"]),
        node("Loop", ["three", "yes", "first"], ["last"], body=body),
        node("Add", ["last", "outer"], ["y"]),
        outputs={"y": ["B", 4]},
    )


def calling() -> ModelProto:
    """Functions, one of which calls another."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ours", 1)]
    inner = helper.make_function("ours", "inner", ["a"], ["b"], [node("Tanh", ["a"], ["b"])], opsets)
    body = [node("MatMul", ["a", "w"], ["m"]), node("inner", ["m"], ["b"], domain="ours")]
    outer = helper.make_function("ours", "outer", ["a", "w"], ["b"], body, opsets)
    return model_of(
        node("outer", ["x", "small"], ["a"], domain="ours"),
        node("Relu", ["a"], ["b"]),
        node("outer", ["b", "small"], ["y"], domain="ours"),
        outputs={"y": ["B", 4]},
        functions=[inner, outer],
    )


def typed() -> ModelProto:
    """Values of many types between the segments: halves, texts, sequences, truth values."""
    nodes = [
        node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        node("Cast", ["half"], ["brain"], to=TensorProto.BFLOAT16),
        node("Cast", ["brain"], ["double"], to=TensorProto.DOUBLE),
        node("Cast", ["double"], ["text"], to=TensorProto.STRING),
        node("Cast", ["text"], ["a"], to=TensorProto.FLOAT),
        node("SequenceConstruct", ["a", "x"], ["both"]),
        node("SequenceAt", ["both", "zero"], ["b"]),
        node("Greater", ["b", "x"], ["more"]),
        node("Where", ["more", "b", "x"], ["y"]),
    ]
    made = model_of(*nodes, outputs={"y": ["B", 4]})
    made.graph.initializer.append(numpy_helper.from_array(np.array(0), "zero"))
    return made


def old() -> ModelProto:
    """A model of IR 3, whose initializers are inputs as well, and one more of which is none."""
    made = plain()
    made.ir_version = 3
    made.opset_import[0].version = 8
    del made.opset_import[1:]
    made.graph.input.extend(
        port(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in NUMBERS.items()
    )
    made.graph.value_info.append(port("c"))
    return made


MODELS: dict[str, Callable[[], ModelProto]] = {
    each.__name__: each for each in (plain, branching, looping, calling, typed, old)
}


def cut(path: Path, size: int) -> tuple[OnnxFile, tuple[Segment, ...]]:
    opened = open_checkpoint(path).onnx
    assert opened is not None
    with Source((path,)) as source:
        return opened, segments_of(source.files[0], opened, path.name, size)


@pytest.mark.parametrize("kind", MODELS)
def test_segments_of_any_size_compute_what_the_whole_model_computes(kind: str, tmp_path: Path) -> None:
    onnx.save(made := MODELS[kind](), path := tmp_path / "a model.onnx")
    with Runtime(60) as runtime:
        whole = runtime.open(path, optimize=False)
        for size in range(1, len(made.graph.node) + 2):
            opened, segments = cut(path, size)
            # A node that nothing needs may be a segment of its own, which is left out.
            assert len(segments) in {
                every := -(-len(made.graph.node) // size),
                every - (kind in ("plain", "old")),
            }
            segmented = runtime.open_segments(path, segments, opened.model.graph.outputs)
            assert segmented.inputs == whole.inputs
            assert [port.name for port in segmented.outputs] == [port.name for port in whole.outputs]
            for rows in (1, 3):
                feeds = {"x": RNG.standard_normal((rows, 4)).astype("f")}
                found, expected = segmented.run(feeds), whole.run(feeds)
                assert list(found) == list(expected)
                for name, values in expected.items():
                    assert found[name].dtype == values.dtype
                    assert found[name].tobytes() == values.tobytes(), (size, name)


def test_each_node_is_in_one_piece_with_its_bytes_and_large_tensors_stay_where_they_are(
    tmp_path: Path,
) -> None:
    onnx.save(made := plain(), path := tmp_path / "model.onnx")
    _, segments = cut(path, 2)
    protos = [ModelProto.FromString(segment.model) for segment in segments]
    found = [each for proto in protos for each in proto.graph.node]
    assert found == list(made.graph.node)
    stored = {tensor.name: tensor for proto in protos for tensor in proto.graph.initializer}
    assert stored["large"].data_location == TensorProto.EXTERNAL
    assert max(len(segment.model) for segment in segments) < 2000 < NUMBERS["large"].nbytes
    assert [segment.takes for segment in segments] == [(), ("a", "early"), ("b",)]


def test_tensors_in_a_data_file_are_read_from_there(tmp_path: Path) -> None:
    onnx.save(plain(), path := tmp_path / "model.onnx", save_as_external_data=True, size_threshold=0)
    opened, segments = cut(path, 2)
    feeds = {"x": RNG.standard_normal((2, 4)).astype("f")}
    with Runtime(60) as runtime:
        expected = runtime.open(path, optimize=False).run(feeds)
        found = runtime.open_segments(path, segments, opened.model.graph.outputs).run(feeds)
    assert [found[name].tobytes() for name in ("early", "y")] == [
        expected[name].tobytes() for name in ("early", "y")
    ]


def test_an_input_that_nothing_uses_is_asked_for_as_ever(tmp_path: Path) -> None:
    made = plain()
    made.graph.input.insert(0, port("z"))
    onnx.save(made, path := tmp_path / "model.onnx")
    opened, segments = cut(path, 2)
    with Runtime(60) as runtime:
        segmented = runtime.open_segments(path, segments, opened.model.graph.outputs)
    assert [port.name for port in segmented.inputs] == ["z", "x"]


def out_of_order(made: ModelProto) -> None:
    nodes = list(made.graph.node)
    del made.graph.node[:]
    made.graph.node.extend([*nodes[1:], nodes[0]])


def given_out(made: ModelProto) -> None:
    made.graph.output.append(port("small", shape=[4, 4]))


def passed_on(made: ModelProto) -> None:
    made.graph.output.append(port("x"))


def made_twice(made: ModelProto) -> None:
    made.graph.node.add().CopyFrom(made.graph.node[0])


def sparse(made: ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, "f"), "sparse")
    at = numpy_helper.from_array(np.zeros(1, np.int64), "at")
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, at, [4, 4]))
    made.graph.node[1].input[1] = "sparse"


@pytest.mark.parametrize("change", [out_of_order, given_out, passed_on, made_twice, sparse])
def test_what_has_no_order_or_hands_on_what_it_gets_is_not_cut(
    change: Callable[[ModelProto], None], tmp_path: Path
) -> None:
    change(made := plain())
    onnx.save(made, path := tmp_path / "model.onnx")
    assert cut(path, 2)[1] == ()


def test_a_value_that_is_no_tensor_and_no_sequence_is_told(tmp_path: Path) -> None:
    made = model_of(
        node("Optional", ["x"], ["maybe"]),
        node("OptionalGetElement", ["maybe"], ["y"]),
        outputs={"y": ["B", 4]},
    )
    onnx.save(made, path := tmp_path / "model.onnx")
    opened, segments = cut(path, 1)
    with Runtime(60) as runtime, pytest.raises(WnconvertError, match="optional"):
        runtime.open_segments(path, segments, opened.model.graph.outputs)


# -- in a fold


def spied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of segments of the models that are opened in segments."""
    counts: list[int] = []
    open_segments = Runtime.open_segments

    def spy(self: Runtime, path: Path, segments: Any, outputs: Any) -> Any:
        counts.append(len(segments))
        return open_segments(self, path, segments, outputs)

    monkeypatch.setattr(Runtime, "open_segments", spy)
    return counts


def test_a_model_of_many_nodes_is_proven_in_segments_and_one_of_few_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = spied(monkeypatch)
    for layers, expected in ((100, []), (410, [9])):  # 5 nodes a layer, of which 2 stay
        counts.clear()
        write_graph(path := tmp_path / f"{layers}.onnx", layers)
        assert f"{layers} layers against the original's own arithmetic, the whole model on x[1,4]" in (
            fold_file(path).verified
        )
        assert counts == expected


def test_a_model_that_cannot_be_loaded_in_segments_is_proven_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = spied(monkeypatch)
    monkeypatch.setattr(run, "_MANY", 0)
    monkeypatch.setattr(run, "_SEGMENT", 1)
    write_graph(path := tmp_path / "model.onnx", 2)
    made = onnx.load(path)
    made.graph.node.append(node("Optional", [made.graph.output[0].name], ["maybe"]))
    made.graph.node.append(node("OptionalGetElement", ["maybe"], ["y"]))
    made.graph.output[0].name = "y"
    onnx.save(made, path)
    assert "the whole model on x[1,4]" in fold_file(path).verified
    assert counts == [12, 6]
