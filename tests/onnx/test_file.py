"""ONNX files as data, with the onnx package as the judge; and files that lie."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.helpers.golden import FIXTURES
from wnconvert import fold_file, inspect_file
from wnconvert.errors import FormatError, InputError, WnconvertError
from wnconvert.onnx.file.model import Constant
from wnconvert.onnx.file.reader import OnnxFile, open_onnx
from wnconvert.onnx.file.wire import bytes_record, int_record
from wnconvert.storage.checkpoint import open_checkpoint
from wnconvert.storage.sources import Source
from wnconvert.tensors.files import MemoryFile


def model_of(*tensors: TensorProto, **options: Any) -> ModelProto:
    inputs = [helper.make_tensor_value_info("x", 1, ["N"])]
    outputs = [helper.make_tensor_value_info("y", 1, ["N"])]
    nodes = options.pop("nodes", [helper.make_node("Identity", ["x"], ["y"])])
    graph = helper.make_graph(nodes, "graph", inputs, outputs, tensors)
    made: ModelProto = helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)], **options
    )
    return made


def opened(path: Path, content: ModelProto | bytes) -> OnnxFile:
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    found = open_checkpoint(path)
    assert found.container == "ONNX"
    assert found.onnx is not None
    return found.onnx


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


# -- tensors

KINDS: list[tuple[Any, int]] = [
    *(
        (np.float32, 1),
        (np.uint8, 2),
        (np.int8, 3),
        (np.uint16, 4),
        (np.int16, 5),
        (np.int32, 6),
        (np.int64, 7),
    ),
    *((np.bool_, 9), (np.float16, 10), (np.float64, 11), (np.uint32, 12), (np.uint64, 13)),
    *((np.complex64, 14), (np.complex128, 15), (ml_dtypes.bfloat16, 16), (ml_dtypes.float8_e4m3fn, 17)),
]


@pytest.mark.parametrize(("kind", "code"), KINDS)
@pytest.mark.parametrize("raw", [True, False])
def test_a_tensor_is_read_as_onnx_reads_it(path: Path, kind: Any, code: int, *, raw: bool) -> None:
    values = (np.arange(6) - (2 if np.dtype(kind).kind in "if" else 0)).astype(kind).reshape(2, 3)
    if raw:
        tensor = helper.make_tensor("t", code, values.shape, values.tobytes(), raw=True)
    else:
        tensor = helper.make_tensor("t", code, values.shape, values)
    assert tensor.HasField("raw_data") is raw
    (constant,) = opened(path, model_of(tensor)).model.graph.constants
    assert constant.info is not None
    assert constant.info.shape == (2, 3)
    if constant.values is not None:
        read = numpy_helper.to_array(tensor).reshape(-1)
        assert list(constant.values) == [
            item.item() for item in read.astype(np.float64 if code in (10, 16) else kind)
        ]
    else:
        assert code in (14, 15, 17)
    if raw or code in (1, 11, 14, 15):
        assert constant.tensor is not None
        with Source((path,)) as source:
            assert bytes(source.chunk(constant.tensor.data)) == values.tobytes()
    else:
        assert constant.tensor is None


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1, 1)])
def test_a_tensor_of_no_or_one_element_has_its_shape(path: Path, shape: tuple[int, ...]) -> None:
    tensor = numpy_helper.from_array(np.ones(shape, np.float32), "t")
    (constant,) = opened(path, model_of(tensor)).model.graph.constants
    assert constant.tensor is not None
    assert constant.tensor.info.shape == shape
    assert constant.values == (1.0,) * int(np.prod(shape))


def test_texts_and_small_numbers_are_no_tensors_of_ours(path: Path) -> None:
    text = TensorProto(name="s", data_type=TensorProto.STRING, dims=[2], string_data=[b"a", b"b"])
    small = helper.make_tensor("i", TensorProto.INT4, [3], [1, 2, 3])
    found = opened(path, model_of(text, small)).model.graph.constants
    assert [(item.name, item.tensor, item.values) for item in found] == [("s", None, None), ("i", None, None)]


def test_floats_of_a_tag_each_are_no_run_of_bytes(path: Path) -> None:
    floats = b"".join(b"\x25" + np.float32(number).tobytes() for number in (1, 2))  # field 4, unpacked
    tensor = int_record(1, 2) + int_record(2, 1) + floats + bytes_record(8, b"t")
    graph = bytes_record(7, bytes_record(5, tensor))
    (constant,) = opened(path, int_record(1, 8) + graph).model.graph.constants
    assert constant.values == (1.0, 2.0)
    assert constant.tensor is None


# -- structure


def test_nodes_and_their_attributes_are_read_as_onnx_reads_them(path: Path) -> None:
    node = helper.make_node(
        "Some",
        ["x", ""],
        ["y"],
        "name",
        domain="of.us",
        i=3,
        f=0.5,
        s="t",
        ints=[1, -2],
        floats=[0.25],
        strings=["a"],
    )
    node.overload = "o"
    found = opened(path, model_of(nodes=[node])).model.graph.nodes[0]
    assert (found.name, found.op, found.domain, found.overload) == ("name", "Some", "of.us", "o")
    assert (found.inputs, found.outputs) == (("x", ""), ("y",))
    values = {name: attribute.value for name, attribute in found.attributes.items()}
    expected: dict[str, object] = {
        "i": 3,
        "f": 0.5,
        "s": b"t",
        "ints": (1, -2),
        "floats": (0.25,),
        "strings": (b"a",),
    }
    assert values == expected


def test_zeros_and_empty_lists_are_values(path: Path) -> None:
    node = helper.make_node("Some", ["x"], ["y"], i=0, f=0.0, s="")
    node.attribute.append(helper.make_attribute("ints", [], attr_type=onnx.AttributeProto.INTS))
    attributes = opened(path, model_of(nodes=[node])).model.graph.nodes[0].attributes
    assert {name: item.value for name, item in attributes.items()} == {"i": 0, "f": 0.0, "s": b"", "ints": ()}


def test_subgraphs_and_functions_have_paths_of_their_own(path: Path) -> None:
    stored = numpy_helper.from_array(np.ones(2, np.float32), "w")
    y = helper.make_tensor_value_info("b", 1, ["N"])
    body = helper.make_graph([helper.make_node("Add", ["x", "w"], ["b"])], "body", [], [y], [stored])
    nodes = [
        helper.make_node("If", ["c"], [f"y{at}"], name=name, then_branch=body, else_branch=body)
        for at, name in enumerate(("", "same", "same"))
    ]
    function = helper.make_function("our", "f", ["a"], ["b"], [helper.make_node("Abs", ["a"], ["b"])], [])
    found = opened(path, model_of(nodes=nodes, functions=[function]))
    paths = [scope.path for scope in found.model.scopes()]
    assert paths == [
        *("", "If_0.else_branch", "If_0.then_branch", "same.else_branch", "same.then_branch"),
        *("same.else_branch#2", "same.then_branch#2", "our.f"),
    ]
    assert [state.path for state in found.tree().state_dicts] == paths[:-1]
    assert found.tree().state_dicts[1].tensors["w"].info.shape == (2,)


def test_a_constant_node_is_a_stored_tensor(path: Path) -> None:
    value = numpy_helper.from_array(np.ones((2, 3), np.float32), "of no use")
    node = helper.make_node("Constant", [], ["w"], value=value)
    found = opened(path, model_of(nodes=[node]))
    assert list(found.tree().state_dicts[0].tensors) == ["w"]
    assert isinstance(found.model.graph.nodes[0].attributes["value"].value, Constant)


@pytest.mark.parametrize(("kind", "expected"), [(1, 0.5), (2, None), (4, (1.0, 1.0)), (0, (1.0, 1.0))])
def test_an_attribute_of_two_values_has_that_of_its_type(path: Path, kind: int, expected: Any) -> None:
    node = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(np.ones(2, np.float32)))
    node.attribute[0].f = 0.5
    node.attribute[0].type = kind
    value = opened(path, model_of(nodes=[node])).model.graph.nodes[0].attributes["value"].value
    assert (value.values if isinstance(value, Constant) else value) == (0 if expected is None else expected)


def test_the_file_says_who_made_it(path: Path) -> None:
    proto = model_of(producer_name="me", producer_version="1.0")
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    assert opened(path, proto).version == "IR 8, opset 17, ai.onnx.ml 3, by me 1.0"


# -- data files


def with_data(path: Path, **changes: str | None) -> None:
    """A model whose tensor lies in ``data.bin``, with other entries."""
    tensor = TensorProto(name="t", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    entries: dict[str, str | None] = {"location": "data.bin", "offset": "8", "length": "16"}
    for key, value in (entries | changes).items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(model_of(tensor).SerializeToString())
    (path.parent / "data.bin").write_bytes(bytes(8) + np.arange(4, dtype=np.float32).tobytes())


def test_a_model_and_its_data_file_are_read_from_memory(path: Path) -> None:
    with_data(path)
    expected = open_checkpoint(path).onnx
    files = {item.name: MemoryFile(item.read_bytes()) for item in path.parent.iterdir()}
    assert open_onnx(files.pop(path.name), path, files.__getitem__) == expected


@pytest.mark.parametrize("length", ["16", None])
def test_a_tensor_in_a_data_file_lies_there(path: Path, length: str | None) -> None:
    with_data(path, length=length)
    checkpoint = open_checkpoint(path)
    assert checkpoint.shards == (path, path.parent / "data.bin")
    assert checkpoint.onnx is not None
    (constant,) = checkpoint.onnx.model.graph.constants
    assert constant.is_external
    assert constant.values == (0.0, 1.0, 2.0, 3.0)
    (place,) = checkpoint.onnx.externals.values()
    assert (place.start, place.size, place.shard) == (8, 16, 1)


DATA: dict[str, tuple[dict[str, str | None], str]] = {
    "missing": ({"location": "other.bin"}, "its data file other.bin is not there"),
    "absolute": ({"location": "/etc/passwd"}, "not a path inside"),
    "above": ({"location": "../data.bin"}, "not a path inside"),
    "above, later": ({"location": "sub/../../data.bin"}, "not a path inside"),
    "a drive": ({"location": "C:data.bin"}, "not a path inside"),
    "empty": ({"location": ""}, "not a path inside"),
    "none": ({"location": None}, "not a path inside"),
    "with a NUL": ({"location": "data\0.bin"}, "not a path inside"),
    "the folder": ({"location": "."}, "not a regular file"),
    "beyond the end": ({"offset": "9"}, "ends at byte 25 of data.bin, which has 24"),
    "negative": ({"offset": "-8"}, "the offset '-8'"),
    "no number": ({"offset": "0x8"}, "the offset '0x8'"),
    "absurd": ({"offset": "9" * 40}, "the offset '9999"),
    "another length": ({"length": "12"}, "needs 16 bytes, and its external data has 12"),
}


@pytest.mark.parametrize("kind", DATA)
def test_a_data_file_that_cannot_be_read_is_refused(path: Path, kind: str) -> None:
    changes, what = DATA[kind]
    with_data(path, **changes)
    for verb in (open_checkpoint, inspect_file, fold_file):
        with pytest.raises(InputError, match=what) as caught:
            verb(path)
        assert caught.value.fix
        assert str(path) in str(caught.value)
    assert {item.name for item in path.parent.iterdir()} == {"model.onnx", "data.bin"}


class Counted(MemoryFile):
    """A file that knows how many are open."""

    now = most = 0

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        Counted.now += 1
        Counted.most = max(Counted.most, Counted.now)

    def close(self) -> None:
        Counted.now -= 1


def test_of_many_data_files_one_is_open_at_a_time() -> None:
    tensors = []
    for number in range(300):
        tensor = TensorProto(name=f"t{number}", data_type=1, dims=[2], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", f"{number}.bin"), ("length", "8")):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        tensors.append(tensor)

    def beside(location: str) -> Counted:
        return Counted(np.full(2, int(location.removesuffix(".bin")), np.float32).tobytes())

    found = open_onnx(MemoryFile(model_of(*tensors).SerializeToString()), Path("model.onnx"), beside)
    assert [constant.values for constant in found.model.graph.constants] == [(n, n) for n in range(300)]
    assert [path.name for path in found.shards[1:]] == [f"{number}.bin" for number in range(300)]
    assert (Counted.now, Counted.most) == (0, 1)


def test_a_link_that_leaves_the_folder_is_refused_and_one_that_stays_is_followed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with_data(folder / "model.onnx", location="link.bin")
    (folder / "link.bin").symlink_to("data.bin")
    assert len(open_checkpoint(folder / "model.onnx").shards) == 2
    (folder / "data.bin").rename(tmp_path / "data.bin")
    (folder / "link.bin").unlink()
    (folder / "link.bin").symlink_to(tmp_path / "data.bin")
    with pytest.raises(InputError, match="leaves the model's folder"):
        open_checkpoint(folder / "model.onnx")


def test_data_beside_the_file_that_a_link_names_is_read(tmp_path: Path) -> None:
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"  # as a cache of downloads lies
    blobs.mkdir()
    folder.mkdir()
    with_data(blobs / "1f3a")
    (blobs / "data.bin").rename(blobs / "77c0")
    (folder / "model.onnx").symlink_to("../blobs/1f3a")
    (folder / "data.bin").symlink_to("../blobs/77c0")
    assert open_checkpoint(folder / "model.onnx").shards[1] == folder / "data.bin"
    (blobs / "77c0").rename(tmp_path / "77c0")
    (folder / "data.bin").unlink()
    (folder / "data.bin").symlink_to("../77c0")
    with pytest.raises(InputError, match="leaves the model's folder"):
        open_checkpoint(folder / "model.onnx")


def test_thousands_of_subgraphs_of_one_name_have_paths_of_their_own(path: Path) -> None:
    body = bytes_record(5, bytes_record(1, b"then_branch") + bytes_record(6, bytes_record(2, b"g")))
    node = bytes_record(1, bytes_record(3, b"same") + bytes_record(4, b"If") + body)
    found = opened(path, int_record(1, 8) + bytes_record(7, node * 20_000))
    assert len({scope.path for scope in found.model.scopes()}) == 20_001


# -- files that lie


def _raw(change: Callable[[TensorProto], None]) -> bytes:
    tensor = numpy_helper.from_array(np.ones((2, 3), np.float32), "t")
    change(tensor)
    content: bytes = model_of(tensor).SerializeToString()
    return content


def _nested(depth: int) -> bytes:
    graph = bytes_record(2, b"g")
    for _ in range(depth):
        graph = bytes_record(
            1, bytes_record(4, b"If") + bytes_record(5, bytes_record(1, b"a") + bytes_record(6, graph))
        )
    return int_record(1, 8) + bytes_record(7, graph)


TENSOR = numpy_helper.from_array(np.ones(2, np.float32), "t")
WRONG: dict[str, tuple[Callable[[], bytes], str]] = {
    "fewer bytes than its shape needs": (
        lambda: _raw(lambda t: t.dims.append(2)),
        "needs 48 bytes and has 24",
    ),
    "no bytes": (lambda: _raw(lambda t: t.ClearField("raw_data")), "needs 24 bytes and has 0"),
    "a negative size": (lambda: _raw(lambda t: t.dims.append(-1)), "absurd shape"),
    "an endless size": (lambda: _raw(lambda t: t.dims.append(1 << 62)), "absurd shape"),
    "very many axes": (lambda: _raw(lambda t: t.dims.extend([1] * 100)), "absurd shape"),
    "its elements twice": (lambda: _raw(lambda t: t.float_data.extend([1.0] * 6)), "elements twice"),
    "elements of another dtype": (
        lambda: model_of(TensorProto(name="t", data_type=1, dims=[1], double_data=[1.0])).SerializeToString(),
        "of another dtype",
    ),
    "too few elements": (
        lambda: model_of(TensorProto(name="t", data_type=7, dims=[3], int64_data=[1])).SerializeToString(),
        "does not have the elements",
    ),
    "a name twice": (lambda: model_of(TENSOR, TENSOR).SerializeToString(), "two initializers are called 't'"),
    "two graphs": (lambda: model_of().SerializeToString() * 2, "has 2 graphs"),
    "an attribute twice": (
        lambda: (
            int_record(1, 8) + bytes_record(7, bytes_record(1, bytes_record(5, bytes_record(1, b"a")) * 2))
        ),
        "an attribute twice",
    ),
    "a graph in a graph in a graph …": (lambda: _nested(300), "nested too deep"),
    "a number for a message": (
        lambda: int_record(1, 8) + bytes_record(7, int_record(1, 1)),
        "where a message belongs",
    ),
    "a name that is no text": (
        lambda: int_record(1, 8) + bytes_record(7, bytes_record(1, bytes_record(1, b"\xff"))),
        "not UTF-8",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_that_contradicts_itself_is_refused_in_words(path: Path, kind: str) -> None:
    make, what = WRONG[kind]
    with pytest.raises(FormatError, match=what) as caught:
        opened(path, make())
    assert caught.value.where == str(path)
    assert caught.value.fix


def test_graphs_may_be_nested_as_deep_as_models_do(path: Path) -> None:
    assert len(list(opened(path, _nested(20)).model.scopes())) == 21


OTHERS = {
    "random bytes": random.Random(1).randbytes(300),
    "another protobuf": int_record(1, 1) + bytes_record(2, b"meta graph"),  # a TensorFlow SavedModel
    "an unknown field": model_of().SerializeToString() + bytes_record(99, b"x"),
    "text": b"\n\nhello",
    "zeros": bytes(64),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_onnx_is_not_taken_for_one(path: Path, kind: str) -> None:
    with pytest.raises(InputError, match="not a checkpoint of a known format"):
        opened(path, OTHERS[kind])


def test_a_file_cut_at_any_byte_is_refused_in_words(path: Path) -> None:
    content = (FIXTURES / "tcn.onnx").read_bytes()
    step = max(len(content) // 400, 1)
    for length in range(0, len(content) - 100, step):
        path.write_bytes(content[:length])
        with pytest.raises(InputError) as caught:
            open_checkpoint(path)
        assert caught.value.fix
        if length > len(content) // 2:
            assert "cut short" in caught.value.fix


def test_files_with_some_bytes_changed_are_read_or_refused_in_words(path: Path) -> None:
    content = (FIXTURES / "tcn.onnx").read_bytes()
    rng = random.Random(7)
    refused: list[WnconvertError] = []
    for _ in range(600):
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(len(changed))
            changed[at : at + 1] = rng.choice((b"", b"\0", b"\xff", rng.randbytes(1), rng.randbytes(3)))
        path.write_bytes(changed)
        try:
            inspect_file(path)
            fold_file(path, dry_run=True)
        except WnconvertError as error:
            refused.append(error)
    assert len(refused) > 100
    assert all(error.what and str(path) in str(error) for error in refused)


def test_reading_takes_no_more_files_than_it_gives_back(path: Path) -> None:
    with_data(path)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0  # noqa: PTH208
    inspect_file(path)
    after = len(os.listdir("/proc/self/fd")) if before else 0  # noqa: PTH208
    assert after == before
