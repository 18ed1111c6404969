"""The index is input like any other: what makes no sense, or leaves its folder, is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wnconvert.errors import FormatError
from wnconvert.storage.folder.index import ShardIndex, check_held, read_index, write_index

GOOD = {"a.weight": "model-00001-of-00002.safetensors", "b.weight": "model-00002-of-00002.safetensors"}


def read(weight_map: Any = GOOD, **others: Any) -> ShardIndex:
    return read_index(json.dumps({"weight_map": weight_map, **others}).encode())


def test_an_index_says_where_each_tensor_is() -> None:
    index = read({"b": "2.bin", "a": "1.bin", "c": "1.bin"}, metadata={"total_size": 8, "by": "me"})
    assert index.files == ("1.bin", "2.bin")
    assert index.suffix == ".bin"
    assert index.weight_map == {"a": "1.bin", "b": "2.bin", "c": "1.bin"}
    assert index.metadata == {"total_size": 8, "by": "me"}


def test_an_index_without_metadata_is_one() -> None:
    assert read().metadata == {}
    assert read(metadata=None).metadata == {}


@pytest.mark.parametrize(
    "file",
    [
        "/model.safetensors",
        "../model.safetensors",
        "..",
        "sub/model.safetensors",
        "./model.safetensors",
        "..\\model.safetensors",
        "C:model.safetensors",
        ".hidden.safetensors",
        ".safetensors",
        "",
        "model",
        "model.pt",
        "model.safetensors.py",
        "model.SAFETENSORS",
        "config.json",
        "model\0.safetensors",
        "model\n.safetensors",
        "\x1b[2J.safetensors",
        "\u202emodel.safetensors",
        "x" * 300 + ".safetensors",
        7,
        None,
        ["model.safetensors"],
        {"file": "model.safetensors"},
    ],
)
def test_a_file_that_is_no_plain_name_of_weights_is_refused(file: object) -> None:
    with pytest.raises(FormatError, match="the index ") as caught:
        read({**GOOD, "c.weight": file})
    assert caught.value.fix


@pytest.mark.parametrize("file", ["model.safetensors", "a b.safetensors", "gewicht-ä.safetensors", "x..bin"])
def test_a_plain_name_is_taken_however_it_is_spelled(file: str) -> None:
    assert read({"a": file}).files == (file,)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "not a JSON text"),
        (b"{", "not a JSON text"),
        (b"\xff\xfe", "not a JSON text"),
        (b"[" * 100_000, "not a JSON text"),
        (b'{"weight_map": {"\\ud800": "a.bin"}}', "not a JSON text"),
        (b"[]", "no weight_map"),
        (b"3", "no weight_map"),
        (b"{}", "no weight_map"),
        (b'{"weight_map": ["a.bin"]}', "no weight_map"),
        (b'{"weight_map": null}', "no weight_map"),
        (b'{"weight_map": {}}', "names no tensor"),
        (b'{"weight_map": {"a": "a.bin", "a": "b.bin"}}', "key 'a' twice"),
        (b'{"weight_map": {"a": "a.bin"}, "weight_map": {"a": "b.bin"}}', "key 'weight_map' twice"),
        (b'{"weight_map": {"a": "a.bin", "b": "b.safetensors"}}', "two kinds: .bin, .safetensors"),
        (b'{"weight_map": {"a": "a.bin"}, "metadata": []}', "metadata of the index is not a mapping"),
    ],
)
def test_a_text_that_makes_no_sense_is_refused(text: bytes, says: str) -> None:
    with pytest.raises(FormatError, match=says):
        read_index(text)


@pytest.mark.parametrize(
    "size",
    [
        "8",
        "8 GB",
        -1,
        0.5,
        float("nan"),
        float("inf"),
        1 << 63,
        1e30,
        True,
        None,
        [8],
        pytest.param("9" * 200),
    ],
)
def test_a_total_size_that_is_no_size_is_refused(size: object) -> None:
    with pytest.raises(FormatError, match="total_size"):
        read(metadata={"total_size": size})


def test_a_total_size_that_is_a_whole_float_is_taken() -> None:
    assert read(metadata={"total_size": 8.0}).metadata["total_size"] == 8


# -- what the shards hold

INDEX = read({"a": "1.bin", "b": "2.bin", "c": "2.bin"})


def test_shards_that_hold_what_they_should_are_right() -> None:
    check_held(INDEX, {"1.bin": ["a"], "2.bin": ["c", "b"]})


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ({"1.bin": ["a"], "2.bin": ["b"]}, "2.bin lacks c, which"),
        ({"1.bin": [], "2.bin": ["b", "c"]}, "1.bin lacks a, which"),
        ({"1.bin": ["a"], "2.bin": []}, "2.bin lacks b, c, which"),
        ({"2.bin": ["b", "c"]}, "1.bin lacks a, which"),
        ({"1.bin": ["a", "d"], "2.bin": ["b", "c"]}, "1.bin holds d, which the index does not name"),
        ({"1.bin": ["a", "b"], "2.bin": ["b", "c"]}, "tensor b is in 1.bin and in 2.bin"),
        ({"1.bin": ["a", "d"], "2.bin": ["b", "c", "d"]}, "tensor d is in 1.bin and in 2.bin"),
        ({"1.bin": ["b"], "2.bin": ["a", "c"]}, "1.bin lacks a"),
    ],
)
def test_shards_that_hold_other_tensors_are_refused(held: dict[str, list[str]], says: str) -> None:
    with pytest.raises(FormatError, match=says) as caught:
        check_held(INDEX, held)
    assert "do not belong together" in caught.value.fix


# -- writing


def test_what_is_written_is_as_transformers_writes_it() -> None:
    text = write_index({"b": "2.bin", "a": "1.bin"}, 12, {"total_size": 3, "format": "pt", "ä": [1]})
    assert text.decode() == (
        '{\n  "metadata": {\n    "format": "pt",\n    "total_size": 12,\n    "ä": [\n      1\n    ]\n  },\n'
        '  "weight_map": {\n    "a": "1.bin",\n    "b": "2.bin"\n  }\n}\n'
    )


def test_what_is_written_is_read_again() -> None:
    index = read_index(write_index(GOOD, 12, {}))
    assert (index.weight_map, index.metadata) == (GOOD, {"total_size": 12})
