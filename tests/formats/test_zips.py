"""Zip archives: laid out, and read back by zipfile and torch, at every size; odd directories are refused."""

from __future__ import annotations

import io
import os
import random
import struct
import warnings
import zipfile
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.golden import FIXTURES
from tests.helpers.marks import some
from wnconvert.errors import FormatError
from wnconvert.formats.zips import MARKS, NewRecord, read_comment, read_directory, zip_layout
from wnconvert.plan.layout import Blob, CopyBytes, Layout
from wnconvert.storage.files import open_file
from wnconvert.tensors.files import MemoryFile
from wnconvert.tensors.tree import ByteRange

GIB = 1 << 30


def built(layout: Layout, contents: dict[int, bytes] | None = None) -> bytes:
    """The archive, with what each blob holds by its place in the list."""
    data = bytearray(layout.size)
    for at, piece in layout.pieces:
        data[at : at + len(piece)] = piece
    tail = layout.size - len(layout.tail)
    data[tail:] = layout.tail
    for index, blob in enumerate(layout.blobs):
        content = (contents or {}).get(index, bytes(blob.size))
        assert len(content) == blob.size
        assert blob.checked is not None
        data[blob.start : blob.start + blob.size] = content
        data[blob.start - len(blob.checked.head) : blob.start] = blob.checked.head
        for at in places(layout, blob):
            data[at : at + 4] = struct.pack("<I", zlib.crc32(content))
    return bytes(data)


def places(layout: Layout, blob: Blob) -> list[int]:
    """Where the checksum of a blob goes."""
    assert blob.checked is not None
    head, tail = blob.start - len(blob.checked.head), layout.size - len(layout.tail)
    return [head + blob.checked.in_head, tail + blob.checked.in_tail]


def sparse(layout: Layout, path: Path) -> None:
    """The archive with holes for blobs (which are zeros then); their checksums are not set."""
    with path.open("wb") as file:
        file.truncate(layout.size)
        heads = ((it.start - len(it.checked.head), it.checked.head) for it in layout.blobs if it.checked)
        for at, piece in (*layout.pieces, *heads, (layout.size - len(layout.tail), layout.tail)):
            os.pwrite(file.fileno(), piece, at)


def work(size: int) -> NewRecord:
    return NewRecord(f"archive/data/{size}", size, CopyBytes(ByteRange(0, size)))


def directory(data: bytes) -> dict[str, bytes]:
    read = read_directory(MemoryFile(data))
    return {name: data[record.data.start : record.data.end] for name, record in read.items()}


RECORDS = [
    NewRecord("archive/data.pkl", 5, b"tuple"),
    work(100),
    NewRecord("archive/empty", 0, b""),
    NewRecord("archive/größe", 1, b"x"),
    work(7),
]


def test_what_is_laid_out_is_read_back() -> None:
    data = built(zip_layout(RECORDS), {0: b"a" * 100, 1: b"b" * 7})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [record.name for record in RECORDS]
        expected = {name: archive.read(name) for name in archive.namelist()}
    assert directory(data) == expected
    assert expected["archive/data/100"] == b"a" * 100


@pytest.mark.parametrize("align", [1, 64, 4096])
def test_data_is_aligned(align: int) -> None:
    layout = zip_layout([work(size) for size in range(1, 130)], align=align)
    assert {blob.start % align for blob in layout.blobs} == {0}
    data = built(layout)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None


def test_the_same_records_give_the_same_bytes() -> None:
    assert built(zip_layout(RECORDS)) == built(zip_layout(RECORDS))


def test_a_mark_stands_in_the_first_two_bytes_alone() -> None:
    plain = built(zip_layout(RECORDS))
    assert MARKS[7] == b"07"
    marked = built(zip_layout(RECORDS, mark=b"07"))
    assert marked == b"07" + plain[2:]
    assert directory(marked) == directory(plain)


def test_a_header_with_another_mark_is_refused() -> None:
    data = built(zip_layout(RECORDS, mark=b"xy"))
    with pytest.raises(FormatError, match="has no header"):
        directory(data)


def test_an_empty_archive_is_an_archive() -> None:
    data = built(zip_layout([]))
    assert directory(data) == {}
    assert zipfile.ZipFile(io.BytesIO(data)).namelist() == []


@pytest.mark.parametrize("size", [4 * GIB - 2, 4 * GIB - 1, 5 * GIB])
def test_sizes_and_offsets_past_4_gib(size: int, tmp_path: Path) -> None:
    path = tmp_path / "big.zip"
    big = NewRecord("archive/data/big", size, CopyBytes(ByteRange(0, size)))
    version = NewRecord("archive/version", 2, b"3\n")
    layout = zip_layout([NewRecord("archive/data.pkl", 1, b"a"), big, work(9), version])
    sparse(layout, path)
    with closing(open_file(path)) as file:
        ours = read_directory(file)
    assert [record.data.size for record in ours.values()] == [1, size, 9, 2]
    starts = [ours[name].data.start for name in (big.name, "archive/data/9")]
    assert starts == [blob.start for blob in layout.blobs]
    with zipfile.ZipFile(path) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        assert infos[big.name].file_size == infos[big.name].compress_size == size
        with archive.open(big.name) as record:
            assert record.read(3) == b"\0\0\0"
        assert archive.read(version.name) == b"3\n"
    import torch

    reader: Any = torch._C.PyTorchFileReader(str(path))
    assert reader.get_record_offset("data/9") == layout.blobs[1].start


@some("count", {str(count): count for count in (65_534, 65_535, 65_536)}, ["65535"])
def test_more_records_than_16_bits_count(count: int) -> None:
    data = built(zip_layout([NewRecord(str(index), 0, b"") for index in range(count)], align=1))
    assert len(directory(data)) == count
    assert len(zipfile.ZipFile(io.BytesIO(data)).namelist()) == count


def test_zip64_is_used_only_where_it_is_needed() -> None:
    assert b"PK\6\6" not in built(zip_layout(RECORDS))


def test_checksums_are_written_into_both_headers() -> None:
    layout = zip_layout([work(4)])
    (blob,) = layout.blobs
    data = built(layout, {0: b"data"})
    assert [data[at : at + 4] for at in places(layout, blob)] == [struct.pack("<I", zlib.crc32(b"data"))] * 2
    assert isinstance(blob, Blob)


# -- reading


def test_what_torch_and_zipfile_write_is_read() -> None:
    for path in (FIXTURES / "tied.pt", FIXTURES / "scripted.pt"):
        data = path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            stored = [info for info in archive.infolist() if info.compress_type == zipfile.ZIP_STORED]
            assert {info.filename: archive.read(info) for info in stored} == {
                name: content
                for name, content in directory(data).items()
                if name in {info.filename for info in stored}
            }


def test_compressed_records_are_told_apart() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("plain", b"a" * 99)
        archive.writestr("packed", b"a" * 99, zipfile.ZIP_DEFLATED)
    read = read_directory(MemoryFile(buffer.getvalue()))
    assert {name: record.compressed for name, record in read.items()} == {"plain": False, "packed": True}


def test_a_comment_and_streamed_headers_are_read() -> None:
    class Stream(io.BytesIO):
        def seekable(self) -> bool:
            return False

    buffer = Stream()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.comment = b"PK a comment"
        with archive.open("streamed", "w") as record:  # its sizes follow its data
            record.write(b"abc")
    assert directory(buffer.getvalue()) == {"streamed": b"abc"}


def changed(name: str, offset: int, value: bytes) -> bytes:
    """An archive of two records, with other bytes in the directory entry of one of them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("one", b"1" * 50)
        archive.writestr("two", b"2" * 50)
    data = bytearray(buffer.getvalue())
    at = data.rfind(name.encode()) - 46
    data[at + offset : at + offset + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (changed("two", 8, b"\1\0"), "two is encrypted"),
        (changed("two", 42, b"\xff\xff\xff\x7f"), "two lies outside"),
        (changed("two", 42, b"\1\0\0\0"), "two lies outside of the file or has no header"),
        (changed("two", 20, b"\xff\xff\0\0\xff\xff\0\0"), "two lies outside"),
        (changed("one", 20, b"\x60\0\0\0\x60\0\0\0"), "one and two overlap"),
        (changed("two", 28, b"\xff\xff"), "ends in the middle|a name of 65535 bytes"),
        (changed("two", 0, b"XXXX"), "does not have the entries"),
        (changed("two", 46, b"one"), "one is in its zip directory twice"),
    ],
)
def test_a_directory_that_contradicts_itself_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(FormatError, match=says):
        directory(data)


def test_a_name_without_end_is_refused() -> None:
    data = built(zip_layout([NewRecord("n" * 5000, 0, b"")]))
    with pytest.raises(FormatError, match="a name of 5000 bytes"):
        directory(data)


def test_a_zip64_field_that_is_cut_is_no_crash() -> None:
    size = 1 << 33
    data = bytearray(built(zip_layout([NewRecord("a", 1, b"a")])))
    end = data.rfind(b"PK\5\6")
    for cut in range(20):
        # An entry whose zip64 field announces 16 bytes and has fewer.
        extra = (struct.pack("<HH", 1, 16) + struct.pack("<QQ", size, size))[:cut]
        entry = bytearray(data[data.rfind(b"PK\1\2") : end])
        entry[20:28] = b"\xff" * 8
        entry[30:32] = struct.pack("<H", len(extra))
        start = data.rfind(b"PK\1\2")
        made = data[:start] + entry + extra
        made += struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, len(entry) + len(extra), start, 0)
        with pytest.raises(FormatError):
            directory(bytes(made))


def test_wrong_bytes_are_read_or_refused() -> None:
    import torch

    chance = random.Random(5)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"a": torch.ones(3)}, buffer)
    whole = buffer.getvalue()
    refused = 0
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 2, 4))):
            at = chance.randrange(len(data) - 700, len(data))
            data[at] = chance.choice((0, 1, 255, chance.randrange(256)))
        try:
            directory(bytes(data))
        except FormatError:
            refused += 1
    assert refused > 500


def wide_end(count: int, length: int, start: int, at: int) -> bytes:
    """The zip64 record of a directory, and the one that says where it is."""
    record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, start)
    return record + struct.pack("<4sIQI", b"PK\x06\x07", 0, at, 1)


def test_an_archive_with_two_directories_is_read_only_where_they_are_one() -> None:
    good = built(zip_layout([NewRecord("archive/good", 1, b"x")]))
    end = good.rindex(b"PK\x05\x06")
    _, _, _, _, count, length, start, _ = struct.unpack("<4sHHHHIIH", good[end:])
    same = good[:end] + wide_end(count, length, start, end) + good[end:]
    assert list(directory(same)) == ["archive/good"]
    assert zipfile.ZipFile(io.BytesIO(same)).namelist() == ["archive/good"]
    for others in ((count, length, start + 1), (count, length - 1, start), (count + 1, length, start)):
        with pytest.raises(FormatError, match="two zip directories, which differ"):
            directory(good[:end] + wide_end(*others, end) + good[end:])


# -- names


OUTSIDE = [
    "../x",
    "/etc/x",
    "archive/../x",
    "archive/../../x",
    "..\\x",
    "archive\\..\\x",
    "\\x",
    "C:\\x",
    "c:/x",
    "archive/data.pkl\0.txt",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_record_outside_of_the_folder_of_the_archive_is_refused(name: str) -> None:
    data = built(zip_layout([*RECORDS[2:4], NewRecord(name, 1, b"x")]))
    with pytest.raises(FormatError, match="outside of its folder"):
        directory(data)


@pytest.mark.parametrize("name", ["archive/a..b", "archive/..a/b", "./x", "w:0", "a/b:c", "archive/..."])
def test_a_record_whose_name_only_looks_so_is_read(name: str) -> None:
    assert directory(built(zip_layout([NewRecord(name, 1, b"x")]))) == {name: b"x"}


def test_a_name_that_is_not_utf_8_keeps_its_bytes() -> None:
    data = built(zip_layout([NewRecord("archive/aaaa", 1, b"x"), NewRecord("archive/é", 1, b"y")]))
    data = data.replace(b"archive/aaaa", b"archive/\xff\xe9aa")
    read = read_directory(MemoryFile(data))
    again = built(zip_layout([NewRecord(name, 1, b"x") for name in read]))
    assert [again.count(name) for name in (b"archive/\xff\xe9aa", b"archive/\xc3\xa9")] == [2, 2]
    with zipfile.ZipFile(io.BytesIO(again)) as archive:
        assert [each.flag_bits >> 11 for each in archive.infolist()] == [0, 1]
        assert archive.testzip() is None


def test_a_directory_is_found_before_the_longest_comment_and_a_little_more() -> None:
    data = built(zip_layout(RECORDS, comment=b"a" * 0xFFFF), {0: b"a" * 100, 1: b"b" * 7})
    names = list(read_directory(MemoryFile(data)))
    assert list(read_directory(MemoryFile(data + b"a" * 8))) == names
    with pytest.raises(FormatError, match="is missing"):
        read_directory(MemoryFile(data + b"a" * 5000))


def test_a_comment_stands_at_the_end() -> None:
    data = built(zip_layout(RECORDS, comment=b"trained on \xff"), {0: b"a" * 100, 1: b"b" * 7})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.comment == b"trained on \xff"
        assert archive.testzip() is None
    assert read_comment(MemoryFile(data)) == b"trained on \xff"
    assert read_comment(MemoryFile(built(zip_layout(RECORDS)))) == b""
    assert list(directory(data)) == [record.name for record in RECORDS]
