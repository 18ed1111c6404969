"""Every reader of a container, held to the same contract."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import msgpack
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.helpers.bad_files import pair, rezipped, safetensors, saved, written, zipped
from tests.helpers.contracts import Damaged, ReaderContract
from tests.helpers.golden import FIXTURES

# -- safetensors

TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
ONE, TWO = (f'"a":{{"dtype":"F32","shape":[1],"data_offsets":[{at},{at + 4}]}}' for at in (0, 4))


def header(content: object, says: str = "refuses") -> Damaged:
    return Damaged(lambda folder: safetensors(content, bytes(8), folder), says)


def long_header(length: int) -> Damaged:
    return Damaged(lambda folder: written(struct.pack("<Q", length) + b"{}", folder), says="header claims")


class TestSafetensors(ReaderContract):
    WHOLE = ("zero_row.safetensors", "codec_bf16.safetensors")
    CUT = ("zero_row.safetensors",)
    DAMAGED: ClassVar = {
        "overlapping: the same bytes": header({"a": TENSOR, "b": TENSOR}),
        "outside: of the file": header({"a": {**TENSOR, "data_offsets": [0, 80]}}),
        "outside: reversed": header({"a": {**TENSOR, "data_offsets": [8, 0]}}),
        "outside: a gap": header({"a": {**TENSOR, "shape": [1], "data_offsets": [4, 8]}}),
        "outside: too large a shape": header({"a": {**TENSOR, "shape": [3]}}),
        "absurd: a shape": header({"a": {**TENSOR, "shape": [1 << 62, 1 << 62]}}),
        "absurd: a negative shape": header({"a": {**TENSOR, "shape": [-2]}}),
        "absurd: no dtype": header({"a": {"shape": [2], "data_offsets": [0, 8]}}),
        "absurd: an unknown dtype": header({"a": {**TENSOR, "dtype": "F31"}}),
        "absurd: no object": header([1], "refuses|not a checkpoint"),
        "absurd: no JSON": header(b"{abc"),
        "absurd: deep JSON": header(b'{"a":' + b"[" * 100_000),
        "absurd: 10 KB of header": long_header(10_000),
        "absurd: 1 TiB of header": long_header(1 << 40),
        "absurd: 1 EiB of header": long_header(1 << 60),
        "twice: a key": header(f"{{{ONE},{TWO}}}".encode(), "twice|refuses"),
    }


# -- torch

#: Offset, shape and strides of a tensor over twelve numbers.
ABSURD: dict[str, tuple[tuple[object, ...], str]] = {
    "outside: strides": ((0, (4, 3), (100, 1)), "reaches outside"),
    "outside: an offset": ((20, (4, 3), (3, 1)), "reaches outside"),
    "outside: an absurd shape": ((0, (1 << 62, 1 << 62), (1, 1)), "reaches outside"),
    "absurd: a negative shape": ((0, (-4, 3), (3, 1)), "absurd"),
    "absurd: a negative stride": ((12, (4, 3), (-3, 1)), "absurd"),
    "absurd: too large a number": ((0, (1 << 70,), (1,)), "absurd"),
    "absurd: two ranks": ((0, (4, 3), (3,)), "absurd"),
    "absurd: no numbers": ((0, ("4", 3), (3, 1)), "absurd"),
    "absurd: a hundred axes": ((0, (1,) * 100, (1,) * 100), "absurd"),
    "absurd: no shape": ((0, None, None), "absurd"),
    "absurd: a truth value": ((True, (1,), (1,)), "absurd"),
}


class Rebuilt:
    """Pickled as a tensor with any arguments."""

    def __init__(self, storage: object, *args: object) -> None:
        self.args = (storage, *args, False, None)

    def __reduce__(self) -> tuple[object, ...]:
        import torch

        return torch._utils._rebuild_tensor_v2, self.args


def rebuilt(args: tuple[object, ...], says: str, *, as_zip: bool) -> Damaged:
    def make(folder: Path) -> Path:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            storage = torch.ones(12).storage()  # type: ignore[no-untyped-call]
            tree = {"x": Rebuilt(storage, *args), **pair()}
            return saved(tree, folder, _use_new_zipfile_serialization=as_zip)

    return Damaged(make, says, None)


def changed(change: Callable[[dict[str, bytes]], object], says: str) -> Damaged:
    """A zip some of whose records were changed."""
    return Damaged(lambda folder: rezipped(saved(pair(), folder), change), says)


def record_twice(folder: Path) -> Path:
    source = saved(pair(), folder)
    with zipfile.ZipFile(source, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("in/data/0", bytes(96))
    return source


def records_overlap(folder: Path) -> Path:
    source = saved(pair(), folder)
    data = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as archive:
        first = archive.getinfo("in/data/0").header_offset
    at = data.rfind(b"in/data/1") - 46  # its entry in the directory
    assert data[at : at + 4] == b"PK\1\2"
    data[at + 42 : at + 46] = struct.pack("<I", first)
    return written(bytes(data), folder)


class TestTorchZip(ReaderContract):
    CUT = ("tied.pt", "sovits.pth", "scripted.pt")
    WHOLE = (*CUT, "plain.pt", "waveglow_module.pt", "lightning.ckpt", "gan.pt")
    DAMAGED: ClassVar = {
        "twice: a record": Damaged(record_twice, "in/data/0 is in its zip directory twice"),
        "overlapping: records": Damaged(records_overlap, "overlap|lies outside"),
        "outside: no storage": changed(lambda records: records.pop("data/1"), "storage 1 is missing"),
        "outside: a short storage": changed(
            lambda records: records.update({"data/1": b"1234"}), "storage 1 has 4 bytes"
        ),
        "absurd: no storage at all": Damaged(
            lambda folder: saved({"x": Rebuilt(None, 0, (1,), (1,))}, folder), "has no storage", None
        ),
        **{name: rebuilt(*case, as_zip=True) for name, case in ABSURD.items()},
    }


def key_twice(folder: Path) -> Path:
    """A file of two storages that lists one of them twice."""
    data = saved(pair(), folder, _use_new_zipfile_serialization=False).read_bytes()
    keys = sorted({*re.findall(rb"X.\0\0\0\d{6,}", data, re.DOTALL)})  # each with its length before it
    assert len(keys) == 2
    at = data.rindex(keys[1])  # in the list of keys at the end
    return written(data[:at] + keys[0] + data[at + len(keys[1]) :], folder)


class TestTorchLegacy(ReaderContract):
    WHOLE = ("legacy_nonzip.pth",)
    CANNOT: ClassVar = {"overlapping": "storages follow one another"}
    DAMAGED: ClassVar = {
        "twice: a storage": Damaged(key_twice, "storage"),
        **{name: rebuilt(*case, as_zip=False) for name, case in ABSURD.items()},
    }


# -- exported programs

CONFIG = "data/weights/model_weights_config.json"


def described(change: Callable[[dict[str, Any]], object], says: str) -> Damaged:
    """A program whose text on its weights was changed; ``change`` gets what it says of ``0.bias``, a [8]."""

    def edit(records: dict[str, bytes]) -> None:
        config = json.loads(records[CONFIG])
        change(config["config"]["0.bias"])
        records[CONFIG] = json.dumps(config).encode()

    return changed_program(edit, says)


def changed_program(edit: Callable[[dict[str, bytes]], object], says: str) -> Damaged:
    def make(folder: Path) -> Path:
        return rezipped(Path(shutil.copy(FIXTURES / "program.pt2", folder / "in.pt")), edit)

    return Damaged(make, says)


def meta(says: str, **facts: object) -> Damaged:
    return described(lambda payload: payload["tensor_meta"].update(facts), says)


def twice_in_text(records: dict[str, bytes]) -> None:
    records[CONFIG] = records[CONFIG].replace(b'"3.bias"', b'"0.bias"')


class TestExported(ReaderContract):
    WHOLE = ("program.pt2",)
    CANNOT: ClassVar = {"overlapping": "two names may share a record"}
    DAMAGED: ClassVar = {
        "twice: a name": changed_program(twice_in_text, "has the key '0.bias' twice"),
        "outside: no record": described(lambda payload: payload.update(path_name="weight_99"), "is missing"),
        "outside: a path": described(
            lambda payload: payload.update(path_name="../constants/x"), "is missing"
        ),
        "outside: a size": meta("reaches outside of its record", sizes=[{"as_int": 9}]),
        "outside: a stride": meta("reaches outside of its record", strides=[{"as_int": 2}]),
        "outside: an offset": meta("reaches outside of its record", storage_offset={"as_int": 1}),
        "absurd: a negative size": meta("makes no sense", sizes=[{"as_int": -8}]),
        "absurd: a size that is a text": meta("makes no sense", sizes=[{"as_int": "8"}]),
        "absurd: no sizes": meta("makes no sense", sizes=8),
        "absurd: two ranks": meta("makes no sense", strides=[]),
        "absurd: an unknown dtype": meta("makes no sense", dtype=99),
        "absurd: a list of dtypes": meta("makes no sense", dtype=[7]),
        "absurd: no JSON": changed_program(lambda records: records.update({CONFIG: b"{"}), "not a JSON text"),
        "absurd: no weights": changed_program(lambda records: records.update({CONFIG: b"[]"}), "describe"),
    }


# -- NumPy


def npy(shape: object = (2,), description: object = "<f4", order: str = "False", more: str = "") -> bytes:
    text = f"{{'descr': {description!r}, 'fortran_order': {order}, 'shape': {shape!r}{more}}}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


def npz(content: bytes, says: str, name: str = "b.npy") -> Damaged:
    """An archive of a good array and this member."""
    return Damaged(lambda folder: zipped({"a.npy": npy() + bytes(8), name: content}, folder), says)


def array_twice(folder: Path) -> Path:
    source = zipped({"a.npy": npy() + bytes(8)}, folder)
    with zipfile.ZipFile(source, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("a.npy", npy() + bytes(8))
    return source


def arrays_overlap(folder: Path) -> Path:
    source = zipped({"a.npy": npy() + bytes(8), "b.npy": npy() + bytes(8)}, folder)
    data = bytearray(source.read_bytes())
    at = data.rfind(b"b.npy") - 46
    data[at + 42 : at + 46] = struct.pack("<I", 0)
    return written(bytes(data), folder)


class TestNpz(ReaderContract):
    WHOLE = ("arrays.npz",)
    DAMAGED: ClassVar = {
        "twice: an array": Damaged(array_twice, "a.npy is in its zip directory twice"),
        "overlapping: arrays": Damaged(arrays_overlap, "overlap"),
        "outside: too few elements": npz(npy() + bytes(7), "array b needs 8 bytes and has 7"),
        "outside: too many": npz(npy() + bytes(9), "array b needs 8 bytes and has 9"),
        "outside: too large a shape": npz(npy((1 << 62, 1 << 62)) + bytes(8), "array b needs"),
        "outside: a long header": npz(b"\x93NUMPY\1\0\xff\xff{}", "absurd header"),
        "absurd: no array": npz(b"hello, this is a text", "absurd header"),
        "absurd: nothing": npz(b"", "absurd header"),
        "absurd: a version": npz(npy().replace(b"\1\0", b"\x09\0", 1) + bytes(8), "absurd header"),
        "absurd: a negative shape": npz(npy((-2,)), "absurd header"),
        "absurd: a truth value": npz(npy((True, 2)) + bytes(8), "absurd header"),
        "absurd: no shape": npz(npy("2") + bytes(8), "absurd header"),
        "absurd: a hundred axes": npz(npy((1,) * 100) + bytes(4), "absurd header"),
        "absurd: an order": npz(npy(order="0") + bytes(8), "absurd header"),
        "absurd: another entry": npz(npy(more=", 'x': 1") + bytes(8), "absurd header"),
        "absurd: code": npz(npy(more=", 'x': print(1)") + bytes(8), "absurd header"),
        "absurd: deep": npz(npy(more=", 'x': " + "(" * 8000) + bytes(8), "absurd header"),
        "absurd: objects": npz(
            npy(description="|O") + bytes(8), "array b is |O, not an array of little-endian"
        ),
        "absurd: a text": npz(npy(description="<U2") + bytes(16), "array b is <U2"),
        "absurd: big-endian": npz(npy(description=">f4") + bytes(8), "array b is >f4"),
        "absurd: fields": npz(npy(description=[("x", "<f4")]) + bytes(8), "not an array of little-endian"),
        "absurd: not an array's name": npz(b"{}", "member config.json is not an array", "config.json"),
    }


# -- flax


def flax(value: object, says: str, more: bytes = b"") -> Damaged:
    """A file of a good array and this value."""
    good = msgpack.ExtType(1, msgpack.packb(((2,), "float32", bytes(8))))
    packed = msgpack.packb({"a": good, "b": value}, use_bin_type=True)
    return Damaged(lambda folder: written(packed + more, folder), says)


def flax_array(*parts: object, says: str) -> Damaged:
    return flax(msgpack.ExtType(1, msgpack.packb(parts, use_bin_type=True)), says)


def flax_bytes(content: bytes, says: str) -> Damaged:
    return Damaged(lambda folder: written(b"\x82\xa1a\x05\xa1b" + content, folder), says)


CHUNK = msgpack.ExtType(1, msgpack.packb(((2,), "float32", bytes(8))))


def flax_chunks(says: str, **parts: object) -> Damaged:
    """An array in chunks, two of two elements, but for these parts."""
    whole = {"shape": {"0": 2, "1": 2}, "chunks": {"0": CHUNK, "1": CHUNK}}
    return flax({"__msgpack_chunked_array__": True, **whole, **parts}, says)


class TestFlax(ReaderContract):
    WHOLE = ("frameworks/flax_chunked.msgpack",)
    CANNOT: ClassVar = {"overlapping": "values follow one another"}
    DAMAGED: ClassVar = {
        "twice: a key": Damaged(
            lambda folder: written(b"\x82\xa1a\x05\xa1a\x05", folder), "its key a is twice"
        ),
        "twice: a name": Damaged(
            lambda folder: written(msgpack.packb({"a/b": CHUNK, "a": {"b": CHUNK}}), folder), "two arrays"
        ),
        "outside: too few elements": flax_array([2], "float32", bytes(7), says="needs 8 bytes and has 7"),
        "outside: too many": flax_array([2], "float32", bytes(9), says="needs 8 bytes and has 9"),
        "outside: a shape": flax_array([1 << 62, 1 << 62], "float32", bytes(8), says="array b needs"),
        "outside: a count": flax_bytes(b"\xdf\xff\xff\xff\xff", "4294967295 values should stand"),
        "outside: a length": flax_bytes(b"\xc6\xff\xff\xff\xff", "it ends before 4294967295 bytes"),
        "outside: an extension": flax_bytes(b"\xc9\xff\xff\xff\xff\x05", "it ends before"),
        "outside: an array in it": flax_bytes(b"\xd4\x01\x93\x90\xa1f\xc4\x01x", "not as flax writes one"),
        "outside: more": flax(5, "goes on behind its last value", b"\xc0"),
        "absurd: an opcode": flax_bytes(b"\xc1", "its byte c1"),
        "absurd: a text": flax_bytes(b"\xa1\xff", "is not UTF-8"),
        "absurd: a key": Damaged(lambda folder: written(b"\x81\xa1a\x81\xc3\x05", folder), "is not a text"),
        "absurd: deep": flax_bytes(b"\x81\xa1x" * 300 + b"\x05", "nests more than 200 deep"),
        "absurd: no array": flax_array("a text", says="not as flax writes one"),
        "absurd: no shape": flax_array(2, "float32", bytes(8), says="not as flax writes one"),
        "absurd: a negative shape": flax_array([-2], "float32", bytes(8), says="not as flax writes one"),
        "absurd: a truth value": flax_array([True, 2], "float32", bytes(8), says="not as flax writes one"),
        "absurd: a hundred axes": flax_array([1] * 100, "float32", bytes(4), says="not as flax writes one"),
        "absurd: bytes that are a text": flax_array([2], "float32", "12345678", says="not as flax writes"),
        "absurd: an unknown dtype": flax_array([2], "float31", bytes(8), says="is of float31"),
        "absurd: fewer chunks": flax_chunks("the chunks of b are not", chunks={"0": CHUNK}),
        "absurd: no chunks": flax_chunks("the chunks of b are not", chunks={}),
        "absurd: chunks in another order": flax_chunks("the chunks", chunks={"1": CHUNK, "0": CHUNK}),
        "absurd: a chunk that is none": flax_chunks("the chunks of b are not", chunks={"0": CHUNK, "1": 5}),
        "absurd: a shape of chunks": flax_chunks("the chunks of b are not", shape={"0": -4}),
        "absurd: another part": flax_chunks("the chunks of b are not", more=5),
    }


# -- Paddle


def paddle(tree: object, says: str, protocol: int = 4) -> Damaged:
    return Damaged(lambda folder: written(pickle.dumps(tree, protocol), folder), says)


class Reconstructed:
    """Pickled as an array with any state."""

    def __init__(self, *state: object) -> None:
        self.state = state

    def __reduce__(self) -> tuple[object, ...]:
        made: Any = np.zeros(1).__reduce__()
        return made[0], made[1], (1, *self.state)


def paddle_array(says: str, *state: object) -> Damaged:
    return paddle({"a": np.zeros(2), "b": Reconstructed(*state)}, says)


F4 = np.dtype("<f4")
#: The opcodes of one array, without those around a pickle.
ONE_ARRAY = pickle.dumps(np.zeros(2, F4), 3)[2:-1]
SLICED = {"w@@.0": np.zeros(4, "f4"), "w@@.1": np.zeros(2, "f4")}


def paddle_slices(says: str, **how: object) -> Damaged:
    """An array in two slices, cut as this says."""
    cut = {"OriginShape": (2, 3), "slices": [*SLICED], **how}
    return paddle({**SLICED, "UnpackBigParamInfor@@": {"w": cut}}, says, 2)


class TestPaddle(ReaderContract):
    WHOLE = ("frameworks/paddle_protocol2.pdparams",)
    CANNOT: ClassVar = {"overlapping": "two names may be one array"}
    DAMAGED: ClassVar = {
        "twice: a key": Damaged(
            lambda folder: written(
                b"\x80\x04}(\x8c\x01a" + ONE_ARRAY + b"\x8c\x01a" + ONE_ARRAY + b"u.", folder
            ),
            "the key 'a' twice",
        ),
        "outside: too few elements": paddle_array("has 7 bytes", (2,), F4, False, bytes(7)),
        "outside: too many": paddle_array("has 9 bytes", (2,), F4, False, bytes(9)),
        "outside: a shape": paddle_array("has 8 bytes", (1 << 62, 1 << 62), F4, False, bytes(8)),
        "outside: a length": Damaged(
            lambda folder: written(b"\x80\x04}\x8c\x01aB\xff\xff\xff\xffs.", folder), "it ends before"
        ),
        "outside: more": Damaged(
            lambda folder: written(pickle.dumps({"a": np.zeros(2)}) + b"x", folder), "1 more bytes"
        ),
        "outside: storages": Damaged(
            lambda folder: written(b"\x80\x04}\x8c\x01aK\x01Qs.", folder), "not in the file"
        ),
        "absurd: a negative shape": paddle_array("absurd shape", (-2,), F4, False, bytes(8)),
        "absurd: a hundred axes": paddle_array("absurd shape", (1,) * 100, F4, False, bytes(4)),
        "absurd: an opcode": Damaged(
            lambda folder: written(b"\x80\x04}\xffs.", folder), "ff is not an opcode"
        ),
        "absurd: slices that are missing": paddle_slices("slices of w do not fit", slices=["w@@.0", "x"]),
        "absurd: slices of another shape": paddle_slices("slices of w do not fit", OriginShape=(2, 4)),
        "absurd: no slices": paddle_slices("slices of w make no sense", slices=[]),
    }


# -- ONNX

ONES = numpy_helper.from_array(np.ones((2, 3), np.float32), "t")


def model(folder: Path, *tensors: TensorProto) -> Path:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    graph = helper.make_graph(nodes, "graph", [value("x", 1, ["N"])], [value("y", 1, ["N"])], tensors)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=opsets), folder / "in.pt")
    return folder / "in.pt"


def tensor(change: Callable[[TensorProto], object], says: str) -> Damaged:
    def make(folder: Path) -> Path:
        changed = TensorProto()
        changed.CopyFrom(ONES)
        change(changed)
        return model(folder, changed)

    return Damaged(make, says)


def beyond_the_end(folder: Path) -> Path:
    (folder / "data.bin").write_bytes(bytes(24))
    outside = TensorProto(name="t", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, entry in (("location", "data.bin"), ("offset", "9"), ("length", "16")):
        outside.external_data.add(key=key, value=entry)
    return model(folder, outside)


class TestOnnx(ReaderContract):
    WHOLE = ("tcn.onnx",)
    CANNOT: ClassVar = {"overlapping": "in the file bytes follow one another, and a data file may be shared"}
    DAMAGED: ClassVar = {
        "twice: a name": Damaged(lambda folder: model(folder, ONES, ONES), "two initializers are called 't'"),
        "outside: too large a shape": tensor(lambda it: it.dims.append(2), "needs 48 bytes and has 24"),
        "outside: no bytes": tensor(lambda it: it.ClearField("raw_data"), "needs 24 bytes and has 0"),
        "outside: of a data file": Damaged(beyond_the_end, "ends at byte 25 of data.bin, which has 24"),
        "absurd: a negative shape": tensor(lambda it: it.dims.append(-1), "absurd shape"),
        "absurd: a shape": tensor(lambda it: it.dims.append(1 << 62), "absurd shape"),
        "absurd: a hundred axes": tensor(lambda it: it.dims.extend([1] * 100), "absurd shape"),
        "twice: elements": tensor(lambda it: it.float_data.extend([1.0] * 6), "elements twice"),
    }
