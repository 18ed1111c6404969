"""safetensors files, byte for byte, with the safetensors library as the judge."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import safe_open

from tests.helpers.states import same
from wnconvert import fold_file
from wnconvert.errors import FormatError, InputError, OutputError, WnconvertError
from wnconvert.storage.checkpoint import open_checkpoint

#: Every dtype of safetensors that torch can hold; a g and v beside it make the file worth folding.
DTYPES = [
    *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"),
    *("uint16", "uint32", "uint64", "complex64"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz"),
]


def file_of(header: dict[str, Any] | str, data: bytes = b"") -> bytes:
    text = header if isinstance(header, str) else json.dumps(header, separators=(",", ":"))
    return struct.pack("<Q", len(text.encode())) + text.encode() + data


def tensor(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def opened(tmp_path: Path, content: bytes) -> Any:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    return open_checkpoint(path)


def header_of(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    found: dict[str, Any] = json.loads(content[8 : 8 + length])
    return found


def folded(tmp_path: Path, state: dict[str, torch.Tensor], **metadata: str) -> Path:
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    safetensors.torch.save_file(state, source, metadata or None)
    fold_file(source, out, force=True, copy=True)
    return out


# -- writing


def test_the_bytes_of_a_file_without_layers_are_these(tmp_path: Path) -> None:
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    header = {"b": tensor(0, 2, [2], "U8"), "a": tensor(2, 10, [2, 1])}
    source.write_bytes(file_of(header, b"\x01\x02" + struct.pack("<2f", 1.5, -2)))
    fold_file(source, out, copy=True)
    text = (
        b'{"__metadata__":{"format":"pt"},'
        b'"b":{"dtype":"U8","shape":[2],"data_offsets":[8,10]},'
        b'"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}'
    )
    padded = text + b" " * (-len(text) % 8)
    expected = struct.pack("<Q", len(padded)) + padded + struct.pack("<2f", 1.5, -2) + b"\x01\x02"
    assert out.read_bytes() == expected


def test_the_bytes_of_a_folded_layer_are_these(tmp_path: Path) -> None:
    state = {"w_g": torch.tensor([[10.0]]), "w_v": torch.tensor([[3.0, 4.0]])}
    out = folded(tmp_path, state)
    assert out.read_bytes().endswith(struct.pack("<2f", 6, 8))
    header = header_of(out)
    assert header["w"] == tensor(0, 8, [1, 2])
    assert set(header) == {"__metadata__", "w"}
    assert set(header["__metadata__"]) == {"format", "wnconvert"}


def test_names_stand_in_the_order_of_the_plan(tmp_path: Path) -> None:
    source, out = tmp_path / "in.pt", tmp_path / "out.safetensors"
    torch.save({name: torch.ones(2, 2) for name in ("z", "w_v", "a", "m", "w_g")}, source)
    fold_file(source, out, exclude=["w"], copy=True)
    assert list(header_of(out)) == ["__metadata__", "z", "w_v", "a", "m", "w_g"]


def test_metadata_is_kept_and_format_pt_is_added_only_where_there_is_none(tmp_path: Path) -> None:
    state = {"a": torch.ones(1)}
    for given, written in (
        ({}, {"format": "pt"}),
        ({"format": "np"}, {"format": "np"}),
        ({"é": "x\ny", "n": "1"}, {"format": "pt", "é": "x\ny", "n": "1"}),
    ):
        with safe_open(folded(tmp_path, state, **given), framework="numpy") as file:
            assert file.metadata() == written


def test_every_tensor_is_aligned_to_its_elements(tmp_path: Path) -> None:
    state = {f"{at:02}": torch.zeros(3).to(getattr(torch, name)) for at, name in enumerate(DTYPES)}
    out = folded(tmp_path, state)
    content = out.read_bytes()
    base = 8 + struct.unpack("<Q", content[:8])[0]
    assert base % 8 == 0
    header = header_of(out)
    for at, name in enumerate(DTYPES):
        start = base + header[f"{at:02}"]["data_offsets"][0]
        assert start % torch.zeros(1).to(getattr(torch, name)).element_size() == 0, name


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_tensor_of_any_dtype_comes_out_bit_for_bit(name: str, suffix: str, tmp_path: Path) -> None:
    raw = torch.arange(16, dtype=torch.uint8)
    value = (raw > 7) if name == "bool" else raw.view(getattr(torch, name))
    state = {"x": value, "scalar": value[0].clone(), "none": value[:0].clone()}
    state |= {"w_g": torch.ones(2, 1), "w_v": torch.ones(2, 2)}
    source, out = tmp_path / "in.safetensors", tmp_path / f"out{suffix}"
    safetensors.torch.save_file(state, source)
    fold_file(source, out, verify=True, copy=True)
    torchs = suffix == ".pt"
    found = torch.load(out, weights_only=True) if torchs else safetensors.torch.load_file(out)
    assert set(found) == {"x", "scalar", "none", "w"}
    for key in ("x", "scalar", "none"):
        assert same(found[key], state[key])


def test_numpy_and_torch_read_the_same_values(tmp_path: Path) -> None:
    state = {"w_g": torch.rand(4, 1), "w_v": torch.rand(4, 3), "n": torch.arange(3)}
    out = folded(tmp_path, state)
    torchs, numpys = safetensors.torch.load_file(out), safetensors.numpy.load_file(out)
    assert set(torchs) == set(numpys) == {"w", "n"}
    assert all(np.array_equal(torchs[name].numpy(), numpys[name]) for name in torchs)


@pytest.mark.parametrize(
    "name", ["é.😀", "", " ", "a\nb", "\x1b[2J", "\x00", 'a"b\\c', "\u202e", "a\u3000b", "x" * 5000]
)
def test_any_text_can_be_a_name(name: str, tmp_path: Path) -> None:
    out = folded(tmp_path, {name: torch.ones(2)})
    assert list(safetensors.torch.load_file(out)) == [name]


@pytest.mark.parametrize("name", ["__metadata__", "half a pair \ud800"])
def test_names_that_safetensors_cannot_hold_are_refused(name: str, tmp_path: Path) -> None:
    torch.save({name: torch.ones(2)}, tmp_path / "in.pt")
    with pytest.raises(OutputError, match="cannot name a tensor") as caught:
        fold_file(tmp_path / "in.pt", tmp_path / "out.safetensors", copy=True)
    assert caught.value.fix == "-o OUT.pt, which can"
    fold_file(tmp_path / "in.pt", tmp_path / "out.pt", copy=True)
    assert list(torch.load(tmp_path / "out.pt", weights_only=True)) == [name]


@pytest.mark.parametrize(
    "dtype", [torch.complex128, *([torch.float4_e2m1fn_x2] if hasattr(torch, "float4_e2m1fn_x2") else [])]
)
def test_dtypes_that_safetensors_cannot_hold_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    value = torch.zeros(16, dtype=torch.uint8).view(dtype)
    torch.save({"x": value}, tmp_path / "in.pt")
    with pytest.raises(OutputError, match=f"x is {dtype}".replace("torch.", "")):
        fold_file(tmp_path / "in.pt", tmp_path / "out.safetensors", copy=True)
    fold_file(tmp_path / "in.pt", tmp_path / "out.pt", copy=True)
    assert same(torch.load(tmp_path / "out.pt", weights_only=True)["x"], value)


def test_numbers_of_four_bits_are_kept_in_safetensors_and_refused_for_torch(tmp_path: Path) -> None:
    source = tmp_path / "in.safetensors"
    source.write_bytes(file_of({"x": tensor(0, 4, [8], "F4")}, b"\x12\x34\x56\x78"))
    fold_file(source, tmp_path / "out.safetensors", verify=True, copy=True)
    assert header_of(tmp_path / "out.safetensors")["x"] == tensor(0, 4, [8], "F4")
    assert (tmp_path / "out.safetensors").read_bytes().endswith(b"\x12\x34\x56\x78")
    with pytest.raises(OutputError, match="x is float4_e2m1fn, which a torch file cannot hold"):
        fold_file(source, tmp_path / "out.pt", copy=True)


def test_a_file_of_no_tensors_stays_one(tmp_path: Path) -> None:
    for source in (file_of("{}"), file_of({"__metadata__": {"format": "pt"}})):
        (tmp_path / "in.safetensors").write_bytes(source)
        result = fold_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors", force=True, copy=True)
        assert result.plan.layers == []
        assert safetensors.torch.load_file(tmp_path / "out.safetensors") == {}


# -- reading


def test_names_and_places_are_read_from_the_header(tmp_path: Path) -> None:
    content = file_of({"b": tensor(4, 8, [1]), "a": tensor(0, 4, [2, 1], "F16")}, bytes(8))
    checkpoint = opened(tmp_path, content)
    (state,) = checkpoint.tree.state_dicts
    base = len(content) - 8
    assert [entry.name for entry in state.entries] == ["b", "a"]
    assert state.tensors["a"].info.shape == (2, 1)
    assert str(state.tensors["a"].info.dtype) == "float16"
    assert (state.tensors["b"].data.start, state.tensors["b"].data.size) == (base + 4, 4)


ONE = tensor(0, 4, [1])
REFUSED: dict[str, bytes] = {
    "no header": struct.pack("<Q", 1) + b"{",
    "half a JSON text": file_of('{"a":{"dtype":', bytes(4)),
    "not an object": file_of('{"a":[1,2]}', bytes(4)),
    "an unknown dtype": file_of({"a": tensor(0, 4, [1], "F128")}, bytes(4)),
    "an overlap": file_of({"a": ONE, "b": tensor(2, 6, [1])}, bytes(6)),
    "a hole": file_of({"a": ONE, "b": tensor(8, 12, [1])}, bytes(12)),
    "a tensor past the end": file_of({"a": tensor(0, 8, [2])}, bytes(4)),
    "bytes after the end": file_of({"a": ONE}, bytes(8)),
    "offsets in reverse": file_of({"a": tensor(4, 0, [1])}, bytes(4)),
    "negative offsets": file_of({"a": tensor(-4, 0, [1])}, bytes(4)),
    "a size that its shape contradicts": file_of({"a": tensor(0, 4, [2])}, bytes(4)),
    "an absurd shape": file_of({"a": tensor(0, 4, [2**63, 2**63])}, bytes(4)),
    "an absurd shape of nothing": file_of({"a": tensor(0, 0, [0, 2**63]), "b": ONE}, bytes(4)),
    "a negative size": file_of({"a": tensor(0, 4, [-1])}, bytes(4)),
    "metadata that is no text": file_of({"__metadata__": {"a": 1}, "b": ONE}, bytes(4)),
    "the same name twice": file_of(f'{{"a":{json.dumps(ONE)},"a":{json.dumps(ONE)}}}', bytes(4)),
    "a key of a tensor twice": file_of(
        '{"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}', bytes(4)
    ),
    "a header that is longer than the file": struct.pack("<Q", 1000) + b'{"a":1}',
    "a header that is longer than any": struct.pack("<Q", 2**63) + b'{"a":1}',
    "a deep header": file_of('{"a":' + "[" * 100_000, b""),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_damaged_file_is_refused_in_words(kind: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError) as caught:
        opened(tmp_path, REFUSED[kind])
    assert caught.value.where.endswith("a.safetensors")
    assert caught.value.fix


def test_a_name_that_stands_twice_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="the key 'a' twice"):
        opened(tmp_path, REFUSED["the same name twice"])


def test_a_key_that_stands_twice_among_very_many_is_named(tmp_path: Path) -> None:
    # To look for each of them in all of them would take minutes.
    pairs = ",".join(f'"key {at}":"x"' for at in [*range(150_000), 149_999])
    header = f'{{"__metadata__":{{{pairs}}}}}'.encode()
    with pytest.raises(FormatError, match="the key 'key 149999' twice"):
        opened(tmp_path, struct.pack("<Q", len(header)) + header)


def test_the_file_that_these_damage_is_fine(tmp_path: Path) -> None:
    assert opened(tmp_path, file_of({"a": ONE}, bytes(4))).container == "safetensors"


def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    content = file_of({"a": ONE, "b": tensor(4, 8, [1])}, bytes(8))
    for length in range(len(content)):
        with pytest.raises(InputError) as caught:
            opened(tmp_path, content[:length])
        assert isinstance(caught.value, WnconvertError)
        assert caught.value.fix
