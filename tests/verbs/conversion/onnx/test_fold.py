"""ONNX files folded: what onnx and onnxruntime read back, and that all else is byte for byte what it was."""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from tests.helpers.golden import FIXTURES
from tests.helpers.onnx_graphs import Build, applied, model_of
from tests.helpers.states import output_of
from tests.onnx import test_edits as test_onnx_surgery
from tests.onnx import test_layers as test_onnx_arithmetic
from wnconvert import compare_files, fold_file, migrate_file, split_file
from wnconvert.errors import ArgumentError, InputError, LayerError, NumbersError, OutputError, VerifyError
from wnconvert.numerics import folding as weightnorm
from wnconvert.onnx.file.model import Model
from wnconvert.onnx.file.unchanged import check_unchanged
from wnconvert.onnx.graph.edits import fold_edits, renamed
from wnconvert.onnx.graph.layers import GraphLayers, find_graph_layers
from wnconvert.onnx.graph.plan import plan_onnx
from wnconvert.storage.checkpoint import open_checkpoint
from wnconvert.storage.sources import Source
from wnconvert.storage.workers import Workers
from wnconvert.verbs.conversion.onnx.fold import model_layouts, write_model

COUNT = itertools.count()


def opened(proto: ModelProto, folder: Path) -> tuple[Path, Model]:
    path = folder / f"{next(COUNT)}.onnx"
    path.write_bytes(proto.SerializeToString())
    found = open_checkpoint(path).onnx
    assert found is not None
    return path, found.model


def through_files(folder: Path) -> Callable[[ModelProto], tuple[GraphLayers, ModelProto]]:
    """``onnx_graphs.folded`` with our own reader, writer and checks, held against what numpy makes."""

    def folded(proto: ModelProto) -> tuple[GraphLayers, ModelProto]:
        path, model = opened(proto, folder)
        found = find_graph_layers(model)
        expected = find_graph_layers(model_of(proto))
        assert [item.layer for item in found.layers] == [item.layer for item in expected.layers]
        assert [item.name for item in found.refused] == [item.name for item in expected.refused]
        result = fold_file(
            path, exclude=[item.name for item in found.refused], verify=True, copy=True, record=False
        )
        made = onnx.load(output_of(result))
        assert made == applied(proto, fold_edits(model_of(proto), expected.layers))
        made_of = {tensor.layer for tensor in fold_edits(model, found.layers).tensors}
        assert {change.before.name for _, change in result.plan.changes if change.before} == made_of
        if not found.layers:
            assert output_of(result).read_bytes() == path.read_bytes()
        return found, made

    return folded


#: Before IR 4 a file's new tensor becomes an input too, as onnx's checker has it; its own test is below.
OWN = "test_inputs_that_named_an_initializer_go_with_it_before_ir_4"


def cases(module: Any) -> list[Any]:
    tests = {name: test for name, test in vars(module).items() if name.startswith("test_") and name != OWN}
    return [
        pytest.param(test, id=name[5:60])
        for name, test in tests.items()
        if not inspect.signature(test).parameters
    ]


@pytest.mark.parametrize("case", cases(test_onnx_surgery))
def test_what_surgery_does_to_a_graph_is_done_to_its_file(
    case: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_onnx_surgery, "folded", through_files(tmp_path))
    case()


@pytest.mark.parametrize("case", cases(test_onnx_arithmetic))
def test_what_is_found_in_a_graph_is_found_in_its_file(
    case: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_onnx_arithmetic, "folded", through_files(tmp_path))
    case()


# -- files


def layered(
    rows: int = 8,
    columns: int = 4,
    *,
    dtype: Any = np.float32,
    ir_version: int = 8,
    more: tuple[Any, ...] = (),
) -> ModelProto:
    """x·w and a bias, with metadata and all; w in the arithmetic of weight norm."""
    rng = np.random.default_rng(3)
    b = Build(17)
    g = b.tensor("lin.weight_g", rng.random((rows, 1)).astype(dtype) + dtype(0.5))
    v = b.tensor("lin.weight_v", rng.standard_normal((rows, columns)).astype(dtype))
    bias = b.tensor("lin.bias", rng.standard_normal(rows).astype(dtype))
    w = b.op("Mul", g, b.op("Div", v, b.op("ReduceL2", v, axes=[1])))
    b.op("Gemm", "x", w, bias, name="y", transB=1)
    b.nodes.extend(more)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = b.graph(["y"])
    del graph.output[:]
    graph.input.append(helper.make_tensor_value_info("x", kind, ["N", columns]))
    graph.output.append(helper.make_tensor_value_info("y", kind, ["N", rows]))
    made = helper.make_model(graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", 17)])
    made.producer_name, made.doc_string = "test", "text"
    helper.set_model_props(made, {"key": "value"})
    return made


def write(path: Path, proto: ModelProto, *, external: bool = False) -> Path:
    copy = ModelProto()
    copy.CopyFrom(proto)
    options: dict[str, Any] = {"location": f"{path.stem}.bin", "size_threshold": 0}
    onnx.save(copy, path, save_as_external_data=external, **(options if external else {}))
    return path


def arrays(path: Path) -> dict[str, Any]:
    return {item.name: numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}


def without_layers(proto: ModelProto) -> ModelProto:
    """A model without its stored tensors and nodes: what a fold has no business with."""
    made = ModelProto()
    made.CopyFrom(proto)
    del made.graph.initializer[:], made.graph.node[:], made.graph.value_info[:]
    return made


@pytest.mark.parametrize("external", [True, False])
def test_a_folded_file_holds_one_weight_and_all_else_as_it_was(tmp_path: Path, *, external: bool) -> None:
    proto = layered()
    source = write(tmp_path / "model.onnx", proto, external=external)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = fold_file(source, record=False)
    assert result.output == tmp_path / "model.folded.onnx"
    assert (result.source_container, result.plan.container.facts.family) == ("ONNX", "onnx")
    assert "1 layer against the original's own arithmetic, the whole model on x[1,4]" in result.verified
    names = {"model.folded.onnx"} | ({"model.folded.onnx.data"} if external else set())
    assert {path.name for path in tmp_path.iterdir()} == {*before, *names}
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    made = onnx.load(output_of(result))
    assert without_layers(made) == without_layers(proto)
    assert [node.op_type for node in made.graph.node] == ["Gemm"]
    assert made.graph.node[0].input == ["x", "lin.weight", "lin.bias"]
    stored, old = arrays(output_of(result)), arrays(source)
    assert set(stored) == {"lin.weight", "lin.bias"}
    assert stored["lin.bias"].tobytes() == old["lin.bias"].tobytes()
    g, v = old["lin.weight_g"], old["lin.weight_v"]
    assert stored["lin.weight"].tobytes() == weightnorm.fold_array(v, g, 0).tobytes()
    assert result.bytes_in == sum(map(len, before.values()))
    assert result.bytes_out == sum((tmp_path / name).stat().st_size for name in names)


def test_data_is_aligned_and_shared_where_it_was(tmp_path: Path) -> None:
    source = write(tmp_path / "model.onnx", layered(512, 1024), external=True)
    proto = onnx.load(source, load_external_data=False)
    twin = next(item for item in proto.graph.initializer if item.name == "lin.bias")
    proto.graph.initializer.add().CopyFrom(twin)
    proto.graph.initializer[-1].name = "twin"
    source.write_bytes(proto.SerializeToString())
    result = fold_file(source, verify=True)
    made = onnx.load(output_of(result), load_external_data=False)
    places = {
        item.name: {entry.key: entry.value for entry in item.external_data} for item in made.graph.initializer
    }
    assert {place["location"] for place in places.values()} == {"model.folded.onnx.data"}
    assert int(places["lin.weight"]["offset"]) % 4096 == int(places["lin.bias"]["offset"]) % 64 == 0
    assert places["twin"] == places["lin.bias"]
    assert arrays(output_of(result))["twin"].tobytes() == arrays(source)["lin.bias"].tobytes()


@pytest.mark.parametrize("external", [True, False])
def test_a_file_with_nothing_to_fold_comes_out_as_it_was(tmp_path: Path, *, external: bool) -> None:
    source = write(tmp_path / "model.onnx", layered(), external=external)
    once = output_of(fold_file(source, tmp_path / "once.onnx"))
    again = fold_file(once, tmp_path / "again.onnx", copy=True)
    assert not again.plan.layers
    if external:
        assert onnx.load(output_of(again)) == onnx.load(once)
        assert (tmp_path / "again.onnx.data").read_bytes() == (tmp_path / "once.onnx.data").read_bytes()
    else:
        assert output_of(again).read_bytes() == once.read_bytes()
    left = fold_file(source, tmp_path / "left.onnx", exclude=["lin.weight"], copy=True)
    assert onnx.load(output_of(left)) == onnx.load(source)


def test_before_ir_4_the_weight_is_an_input_too_and_g_and_v_are_none_any_more(tmp_path: Path) -> None:
    proto = layered(ir_version=3)
    for item in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(item.name, 1, list(item.dims)))
    result = fold_file(write(tmp_path / "model.onnx", proto))
    made = onnx.load(output_of(result))
    assert [port.name for port in made.graph.input] == ["x", "lin.bias", "lin.weight"]
    shape = made.graph.input[-1].type.tensor_type.shape.dim
    assert [size.dim_value for size in shape] == [8, 4]
    assert any("lin.weight_g, lin.weight_v" in note for note in result.notes)


def test_in_place_a_file_and_its_data_are_replaced(tmp_path: Path) -> None:
    source = write(tmp_path / "model.onnx", layered(), external=True)
    out = tmp_path / "out.onnx"
    fold_file(source, out, exclude=["*"], copy=True)
    first = (tmp_path / "out.onnx.data").read_bytes()
    with pytest.raises(OutputError, match="it is the source itself"):
        fold_file(out, out, force=True)
    assert (tmp_path / "out.onnx.data").read_bytes() == first
    result = fold_file(out, in_place=True)
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.onnx",
        "model.bin",
        "out.onnx",
        "out.onnx.2.data",
    }
    assert any("out.onnx.data" in note and "deleted" in note for note in result.notes)
    assert set(arrays(out)) == {"lin.weight", "lin.bias"}


def test_data_that_another_model_uses_is_not_deleted(tmp_path: Path) -> None:
    source = write(tmp_path / "model.onnx", layered(), external=True)
    out = tmp_path / "out.onnx"
    fold_file(source, out)
    (tmp_path / "copy.onnx").write_bytes(out.read_bytes())
    fold_file(source, out, force=True)
    assert (tmp_path / "out.onnx.data").exists()
    assert set(arrays(tmp_path / "copy.onnx")) == set(arrays(out)) == {"lin.weight", "lin.bias"}
    write(tmp_path / "of_others.onnx", layered(), external=True)
    fold_file(source, tmp_path / "of_others.onnx", force=True)
    assert (tmp_path / "of_others.bin").exists()  # not called as wnconvert calls it


def test_data_is_not_deleted_where_a_model_of_another_name_uses_it(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    fold_file(write(tmp_path / "model.onnx", layered(), external=True), out)
    (tmp_path / "out.onnx.bak").write_bytes(out.read_bytes())
    (tmp_path / "others").mkdir()
    os.mkfifo(tmp_path / "pipe")
    fold_file(tmp_path / "model.onnx", out, force=True)
    assert (tmp_path / "out.onnx.data").exists()
    (tmp_path / "out.onnx.bak").unlink()
    fold_file(tmp_path / "model.onnx", out, force=True)
    assert (tmp_path / "out.onnx.data").exists()  # it is not that of the model which is replaced now


def test_a_model_is_not_written_over_the_data_of_its_source(tmp_path: Path) -> None:
    source, data = tmp_path / "model.onnx", tmp_path / "weights.data"
    onnx.save(layered(8, 16), source, save_as_external_data=True, location=data.name, size_threshold=0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert data.name in before
    with pytest.raises(OutputError, match="the source keeps its data there"):
        fold_file(source, data, force=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_must_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    proto = layered()
    zero = numpy_helper.to_array(proto.graph.initializer[1]).copy()
    zero[2] = 0
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(zero, "lin.weight_v"))
    source = write(tmp_path / "model.onnx", proto, external=True)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(NumbersError, match="v is zero in row 2") as caught:
        fold_file(source)
    assert "--zero-rows zero" in caught.value.fix
    assert sorted(tmp_path.iterdir()) == before
    result = fold_file(source, zero_rows="zero")
    assert not arrays(output_of(result))["lin.weight"][2].any()


def test_an_overflow_is_told_with_what_helps_in_a_graph(tmp_path: Path) -> None:
    proto = layered(dtype=np.float16)
    g = np.full((8, 1), 6e4, np.float16)
    v = np.ones((8, 4), np.float16)
    v[:, 1:] = 0
    g[1] = np.float16(65504)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(g, "lin.weight_g"))
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(v, "lin.weight_v"))
    fold_file(write(tmp_path / "fits.onnx", proto))
    v[1, 0] = np.float16(np.nan)
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(v, "lin.weight_v"))
    with pytest.raises(NumbersError) as caught:
        fold_file(write(tmp_path / "nan.onnx", proto))
    assert "--allow-nonfinite" in caught.value.fix
    assert "--dtype" not in caught.value.fix
    fold_file(tmp_path / "nan.onnx", allow_nonfinite=True)


def test_a_plan_says_what_will_be_done_and_writes_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "model.onnx", layered())
    plan = fold_file(source, dry_run=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    ((path, change),) = plan.changes
    assert (path, change.name, change.layer.form, change.layer.dim) == ("", "lin.weight", "onnx", 0)
    assert [step.name for step in plan.state_dicts[0].steps] == ["lin.weight", "lin.bias"]
    assert plan.to_dict()["layers"][0]["form"] == "onnx"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"only": "generator"}, "--only"),
        ({"dtype": "float16"}, "--dtype"),
        ({"dim": 0}, "--dim"),
        ({"dim": None}, "--dim"),
        ({"keep_optimizer": True}, "--keep-optimizer"),
        ({"drop_foreign": True}, "--drop-foreign"),
        ({"layers": ["nothing*"]}, "matches no layer"),
    ],
)
def test_what_means_nothing_for_a_graph_is_refused(
    tmp_path: Path, options: dict[str, Any], what: str
) -> None:
    source = write(tmp_path / "model.onnx", layered())
    with pytest.raises(ArgumentError, match=what) as caught:
        fold_file(source, **options)
    assert caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_graph_and_a_checkpoint_are_not_made_of_each_other(tmp_path: Path) -> None:
    source = write(tmp_path / "model.onnx", layered())
    for name in ("out.pt", "out.safetensors", "out.pth.tar"):
        with pytest.raises(ArgumentError, match="has no place in one"):
            fold_file(source, tmp_path / name)
    with pytest.raises(ArgumentError, match="a checkpoint has no graph") as caught:
        fold_file(FIXTURES / "g_02500000", tmp_path / "out.onnx")
    assert "wnconvert export" in caught.value.fix
    assert output_of(fold_file(source, tmp_path / "no_suffix")).exists()
    calls: list[Callable[[], object]] = [
        lambda: split_file(source),
        lambda: migrate_file(source),
        lambda: compare_files(source, source),
        lambda: split_file(FIXTURES / "plain.pt", like=source),
    ]
    for call in calls:
        with pytest.raises(InputError, match="an ONNX model cannot be") as refused:
            call()
        assert "fold, inspect and check" in refused.value.fix


def test_training_graphs_are_refused_where_there_is_something_to_fold(tmp_path: Path) -> None:
    proto = layered()
    proto.training_info.add().algorithm.name = "adam"
    source = write(tmp_path / "model.onnx", proto)
    with pytest.raises(LayerError, match="training graphs"):
        fold_file(source)
    out = output_of(fold_file(source, exclude=["*"], copy=True))
    assert out.read_bytes() == source.read_bytes()


def test_any_number_of_threads_gives_the_same_bytes(tmp_path: Path) -> None:
    source = write(tmp_path / "model.onnx", layered(256, 512), external=True)
    made = []
    for threads in (1, 3):
        (tmp_path / str(threads)).mkdir()
        out = tmp_path / str(threads) / "out.onnx"
        made.append(output_of(fold_file(source, out, threads=threads)))
    for suffix in ("", ".data"):
        one, three = (path.with_name(path.name + suffix).read_bytes() for path in made)
        assert one == three


def test_initializers_that_were_renamed_are_told_from_those_that_were_spoiled(tmp_path: Path) -> None:
    source = write(tmp_path / "model.onnx", layered())
    checkpoint = open_checkpoint(source)
    assert checkpoint.onnx is not None
    fold = plan_onnx(checkpoint.onnx)
    names = {"lin.bias": "lin.beta", "lin.weight": "lin.kernel"}
    fold = replace(fold, edits=renamed(checkpoint.onnx.model, fold.edits, names))
    out = tmp_path / "out.onnx"
    layouts = model_layouts(checkpoint.onnx, fold, out)
    write_model(checkpoint, layouts, tmp_path, out, workers=Workers(None))
    assert set(arrays(out)) == {"lin.beta", "lin.kernel"}

    def check() -> None:
        assert checkpoint.onnx is not None
        with Source((source, out)) as files:
            check_unchanged(files.files[0], checkpoint.onnx, fold.edits, files.files[1])

    check()
    made = onnx.load(out)
    next(item for item in made.graph.initializer if item.name == "lin.beta").dims[:] = [2, 4]
    onnx.save(made, out)
    with pytest.raises(VerifyError, match="where nothing was to change"):
        check()
