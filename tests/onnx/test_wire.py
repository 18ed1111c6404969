"""The wire format against Google's own protobuf."""

from __future__ import annotations

import io
import struct
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import AttributeProto, StringStringEntryProto, TensorProto

from wnconvert.errors import FormatError
from wnconvert.onnx.file.wire import (
    BYTES,
    FIXED32,
    VARINT,
    Message,
    Wire,
    WireField,
    bytes_record,
    int_record,
    signed,
    varint,
)
from wnconvert.storage.files import open_file
from wnconvert.tensors.files import MemoryFile


def records(content: bytes) -> tuple[Wire, list[WireField]]:
    wire = Wire(MemoryFile(content))
    return wire, list(wire.records(Message(0, len(content))))


def test_a_message_is_cut_into_its_records() -> None:
    proto = AttributeProto(name="a", f=1.5, i=-2, s=b"text", type=AttributeProto.FLOAT)
    content = proto.SerializeToString()
    _, found = records(content)
    assert [(item.number, item.wire) for item in found] == [
        *((1, BYTES), (2, FIXED32), (3, VARINT), (4, BYTES), (20, VARINT))
    ]
    assert b"".join(content[item.start : item.end] for item in found) == content
    assert struct.pack("<I", found[1].value) == struct.pack("<f", 1.5)
    assert signed(found[2].value) == -2
    assert content[found[3].body : found[3].end] == b"text"


@given(
    st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=20),
    st.text(),
    st.binary(max_size=300),
    st.booleans(),
)
def test_what_is_written_is_what_protobuf_writes(
    numbers: list[int], name: str, raw: bytes, packed: bool
) -> None:
    expected = TensorProto(dims=numbers, data_type=1, name=name, raw_data=raw)
    content = [int_record(1, number) for number in numbers]
    if packed:
        content = [bytes_record(1, map(varint, numbers))]
    made = b"".join((*content, int_record(2, 1), bytes_record(8, name.encode()), bytes_record(9, raw)))
    assert TensorProto.FromString(made) == expected
    assert packed or made == expected.SerializeToString()


def test_a_list_of_numbers_is_read_packed_or_not() -> None:
    for content in (
        bytes_record(7, map(varint, (1, -1, 300))),
        b"".join(int_record(7, n) for n in (1, -1, 300)),
    ):
        wire = Wire(MemoryFile(content))
        found = [number for item in wire.records(Message(0, len(content))) for number in wire.wholes(item)]
        assert found == [1, -1, 300]


def test_a_payload_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    head = bytes_record(1, b"a") + b"\x4a" + varint(1 << 40)  # field 9, a tebibyte of holes
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + (1 << 40))
        file.seek(0, io.SEEK_END)
        file.write(int_record(2, 7))
    size = path.stat().st_size
    with closing(open_file(path)) as opened:
        found = list(Wire(opened).records(Message(0, size)))
    assert [(item.number, item.end - item.body) for item in found] == [(1, 1), (9, 1 << 40), (2, 1)]
    assert found[2].value == 7


BROKEN = {
    "a length beyond the end": b"\x0a\x05abc",
    "a length without an end": b"\x0a" + b"\xff" * 12,
    "a number without an end": b"\x08" + b"\xff" * 9,
    "a number of eleven bytes": b"\x08" + b"\xff" * 10 + b"\x01",
    "field 0": b"\x02\x00",
    "a group": b"\x0b\x0c",
    "wire type 7": b"\x0f\x00",
    "a float cut short": b"\x15\x00\x00",
    "a double cut short": b"\x11\x00\x00\x00\x00",
    "a tag alone": b"\x0a",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_message_is_refused_with_the_place(kind: str) -> None:
    with pytest.raises(FormatError, match="damaged at byte 3") as caught:
        records(b"\x0a\x01a" + BROKEN[kind])
    assert caught.value.fix


def test_content_of_another_kind_is_refused() -> None:
    content = int_record(1, 5) + bytes_record(2, b"\xff\xfe") + bytes_record(3, b"abc")
    wire = Wire(MemoryFile(content))
    number, text, odd = wire.records(Message(0, len(content)))
    for call, what in (
        (lambda: wire.content(number), "a number where bytes"),
        (lambda: wire.text(text), "not UTF-8"),
        (lambda: wire.whole(text), "not a whole number"),
        (lambda: wire.floats(odd), "in the middle of one"),
        (lambda: wire.floats(number), "not a float"),
    ):
        with pytest.raises(FormatError, match=what):
            call()


def test_a_text_as_long_as_no_name_is_not_read() -> None:
    content = bytes_record(1, bytes(2 << 20))
    wire = Wire(MemoryFile(content))
    (item,) = wire.records(Message(0, len(content)))
    with pytest.raises(FormatError, match="a name or text of 2097152 bytes"):
        wire.text(item)


def test_an_entry_is_read_as_protobuf_reads_it() -> None:
    proto = StringStringEntryProto(key="größe", value="")
    wire, (key, value) = records(proto.SerializeToString())
    assert wire.size == len(proto.SerializeToString())
    assert (key.number, value.number, value.end - value.body) == (1, 2, 0)
