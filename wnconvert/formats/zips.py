"""Zip archives, uncompressed, as torch writes them: their directory in, a layout of a new one out.

Reading never inflates anything and never trusts a size. Writing puts every header before the data is
there: sizes are known, checksums are filled in by the executor. Zip64 is used where sizes need it.
Source: PKWARE's APPNOTE.TXT 6.3.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from wnconvert.errors import FormatError
from wnconvert.messages import printable
from wnconvert.plan.layout import Blob, Checked, Layout, Work
from wnconvert.tensors.files import GET_AGAIN, FarFile, Head, ReadableFile
from wnconvert.tensors.limits import ZIP_DIRECTORY
from wnconvert.tensors.tree import ByteRange

__all__ = ["MARKS", "NewRecord", "ZipEntry", "leads_out", "read_comment", "read_directory", "zip_layout"]


_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR = struct.Struct("<4sIQI")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
#: Bytes that may stand behind the longest comment: torch's reader finds the directory before so many.
_BEHIND = 4096
_FULL = (_FULL16, _FULL32, _FULL32)  # of the number of records, the length of the directory, and its place
_MAX_NAME = 4096
# A flag says that sizes and checksum stand behind a record too, and with their mark take so many bytes.
_DESCRIBED, _DESCRIPTOR = 8, 16
# The head of the extra field that pads a local header, and what the bytes behind it are aligned to.
_PADDING = struct.Struct("<2sH")
_ALIGN = 64
# A page: of tiny records it holds many headers, and to read it takes no longer than to read one of them.
_NEAR = 4 << 10

#: GPT-SoVITS writes one of these over the first two bytes, ``PK``, to mark a model's version.
MARKS = tuple(b"%02d" % number for number in range(100))


@dataclass(frozen=True, slots=True)
class _Listed:
    """A record as the directory lists it: the length of its name, the place of its local header, its size."""

    name: str
    n_name: int
    header: int
    packed: int
    flags: int
    compressed: bool


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """A file of the archive: its bytes as they lie there, and whether they are compressed.

    Bytes of a name that are not UTF-8 are kept as Python keeps those of file names (``surrogateescape``).
    """

    name: str
    data: ByteRange
    compressed: bool


def read_directory(file: ReadableFile) -> dict[str, ZipEntry]:
    """The records of a zip archive by name, in the order of its directory.

    Raises ``FormatError`` for an archive that is cut short, names a record twice or outside of its folder,
    or whose records overlap or reach outside of it.
    """
    start, length, count = _find_directory(file)
    raw = file.read(start, length)
    listed: dict[str, _Listed] = {}
    at = 0
    while at < length and raw[at : at + 4] == b"PK\x01\x02":
        if at + _CENTRAL.size > length:
            raise FormatError("its zip directory ends in the middle of an entry", fix=GET_AGAIN)
        _, _, _, flags, method, _, _, _, packed, plain, n_name, n_extra, n_comment, _, _, _, header = (
            _CENTRAL.unpack_from(raw, at)
        )
        name_at = at + _CENTRAL.size
        name = raw[name_at : name_at + n_name].decode("utf-8", "surrogateescape")
        if n_extra:
            extra = raw[name_at + n_name : name_at + n_name + n_extra]
            plain, packed, header = _widen(extra, plain, packed, header)
        at = name_at + n_name + n_extra + n_comment
        if name in listed:
            raise FormatError(f"record {printable(name)} is in its zip directory twice", fix=GET_AGAIN)
        if n_name > _MAX_NAME:
            raise FormatError(f"it has a record with a name of {n_name} bytes", fix="do not trust this file")
        if leads_out(name):
            raise FormatError(
                f"record {printable(name)} would be unpacked outside of its folder",
                fix="do not trust this file",
            )
        if flags & 1:
            raise FormatError(f"record {printable(name)} is encrypted", fix="decrypt the archive first")
        listed[name] = _Listed(name, n_name, header, packed, flags, method != 0 or plain != packed)
    if at != length or (count != _FULL16 and len(listed) != count):
        raise FormatError("its zip directory does not have the entries that it announces", fix=GET_AGAIN)
    places = _places(file, list(listed.values()), start)
    records = {name: ZipEntry(name, places[name], entry.compressed) for name, entry in listed.items()}
    _check_overlaps(records)
    return records


def leads_out(name: str) -> bool:
    r"""Whether a record of this name is unpacked outside of the folder of the archive, on any system.

    >>> [leads_out(name) for name in ("archive/../x", "/x", "C:\\x", "archive/a..b")]
    [True, True, True, False]
    """
    path = name.replace("\\", "/")
    rooted = path.startswith("/") or (path[1:3] == ":/" and path[0].isalpha())
    return rooted or (".." in path and ".." in path.split("/")) or "\0" in path


def read_comment(file: ReadableFile) -> bytes:
    """The comment on a zip archive, which stands at its end."""
    tail, at = _find_end(file)
    return tail[at + _END.size :][: int.from_bytes(tail[at + _END.size - 2 : at + _END.size], "little")]


def _find_end(file: ReadableFile) -> tuple[bytes, int]:
    """The end of the file, and the place in it of the last record of all."""
    tail_at = max(0, file.size - _END.size - _FULL16 - _BEHIND)
    tail = file.read(tail_at, file.size - tail_at)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise FormatError("its zip directory, which stands at the end, is missing", fix=GET_AGAIN)
    return tail, at


def _find_directory(file: ReadableFile) -> tuple[int, int, int]:
    """Offset, length and number of entries of the central directory."""
    tail, at = _find_end(file)
    _, _, _, _, *plain, _ = _END.unpack_from(tail, at)
    end = file.size - len(tail) + at
    wide_at, wide = _find_wide(file, end)
    # Other readers take what the zip64 record says wherever there is one.
    if wide and any(few not in (most, full) for few, most, full in zip(plain, wide, _FULL, strict=True)):
        raise FormatError("it has two zip directories, which differ", fix="do not trust this file")
    end = wide_at if wide else end
    count, length, start = wide or plain
    if start + length > end:
        raise FormatError("its zip directory lies outside of the file", fix=GET_AGAIN)
    if length > ZIP_DIRECTORY:
        raise FormatError(
            f"its zip directory takes {length} bytes", fix="no checkpoint needs that: do not trust it"
        )
    return start, length, count


def _find_wide(file: ReadableFile, end: int) -> tuple[int, tuple[int, ...]]:
    """The zip64 record before the last one, if there is one: its place, and its count, length, offset."""
    if end < _LOCATOR.size:
        return end, ()
    magic, _, at, _ = _LOCATOR.unpack(file.read(end - _LOCATOR.size, _LOCATOR.size))
    if magic != b"PK\x06\x07":
        return end, ()
    if at + _END64.size > end - _LOCATOR.size:
        raise FormatError("its zip64 directory lies outside of the file", fix=GET_AGAIN)
    magic, *_, count, length, start = _END64.unpack(file.read(at, _END64.size))
    return (at, (count, length, start)) if magic == b"PK\x06\x06" else (end, ())


def _widen(extra: bytes, plain: int, packed: int, header: int) -> tuple[int, int, int]:
    """Sizes and offset with those that a zip64 extra field gives in 64 bits."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            field = extra[at + 4 : at + 4 + length]
            wide = [value for (value,) in struct.iter_unpack("<Q", field[: len(field) // 8 * 8])]
            fields = [plain, packed, header]
            for index, value in enumerate(fields):
                if value == _FULL32 and wide:
                    fields[index] = wide.pop(0)
            return fields[0], fields[1], fields[2]
        at += 4 + length
    return plain, packed, header


def _places(file: ReadableFile, listed: Sequence[_Listed], limit: int) -> dict[str, ByteRange]:
    """Where the bytes of records lie: behind their local headers, whose length the directory does not tell.

    A far file is not asked for each of them. Where the bytes would lie as torch aligns them, and fill what is
    there up to the next header, they are taken to lie so, and the header is checked with the first of them.
    """
    far = file if isinstance(file, FarFile) else None  # asked once: it takes longer than to read a header
    near = _Near(file)
    places: dict[str, ByteRange] = {}
    heads: list[Head] = []
    in_order = sorted(listed, key=lambda entry: entry.header)
    ends = [*(entry.header for entry in in_order[1:]), limit]
    for entry, end in zip(in_order, ends, strict=False):
        data = None if far is None else _aligned(entry, end)
        if data is not None:
            heads.append(Head(data, entry.header, partial(_check_head, entry)))
        places[entry.name] = data or _data_of(near if far is None else file, entry, limit)
    if far is not None:
        far.after(heads)
    return places


class _Near:
    """A file of which small pieces are read that lie near each other: several of them at once."""

    def __init__(self, file: ReadableFile) -> None:
        self._file = file
        self._size = file.size
        self._first = 0
        self._held = b""

    def read(self, at: int, size: int, /) -> bytes:
        """Bytes as ``ReadableFile`` gives them."""
        inside = at - self._first
        if not 0 <= inside <= len(self._held) - size:
            self._first, inside = at, 0
            self._held = self._file.read(at, min(max(size, _NEAR), self._size - at))
        return self._held[inside : inside + size]


def _aligned(entry: _Listed, end: int) -> ByteRange | None:
    """The place of a record's bytes as torch aligns them, if they and what describes them end at ``end``."""
    start = entry.header + _LOCAL.size + entry.n_name + _PADDING.size
    start += -start % _ALIGN
    described = _DESCRIPTOR if entry.flags & _DESCRIBED else 0
    return ByteRange(start, entry.packed) if start + entry.packed + described == end else None


def _check_head(entry: _Listed, head: bytes) -> None:
    """Raise ``FormatError`` where a local header does not end where the bytes of its record begin."""
    if _length_of(head[: _LOCAL.size], entry) != len(head):
        raise FormatError(
            f"record {printable(entry.name)} does not lie where its directory lets it",
            fix="do not trust this file",
        )


def _data_of(file: ReadableFile | _Near, entry: _Listed, limit: int) -> ByteRange:
    """Where a record's bytes lie, by its local header (whose extra field torch pads for alignment)."""
    if entry.header + _LOCAL.size > limit:
        raise FormatError(f"record {printable(entry.name)} lies outside of the file", fix=GET_AGAIN)
    length = _length_of(file.read(entry.header, _LOCAL.size), entry)
    if not length or entry.header + length + entry.packed > limit:
        raise FormatError(
            f"record {printable(entry.name)} lies outside of the file or has no header", fix=GET_AGAIN
        )
    return ByteRange(entry.header + length, entry.packed)


def _length_of(fixed: bytes, entry: _Listed) -> int:
    """The length of a local header, by its fixed part; 0 where it is none."""
    magic, *_, n_name, n_extra = _LOCAL.unpack(fixed)
    marked = entry.header == 0 and magic[:2] in MARKS and magic[2:] == b"\x03\x04"
    return _LOCAL.size + n_name + n_extra if magic == b"PK\x03\x04" or marked else 0


def _check_overlaps(records: dict[str, ZipEntry]) -> None:
    by_start = sorted((record for record in records.values() if record.data.size), key=lambda r: r.data.start)
    for before, after in pairwise(by_start):
        if before.data.end > after.data.start:
            names = f"{printable(before.name)} and {printable(after.name)}"
            raise FormatError(f"records {names} overlap", fix="do not trust this file")


# -- writing


@dataclass(frozen=True, slots=True)
class NewRecord:
    """A file of a new archive: literal bytes, or work that makes ``size`` of them, and a ``head``."""

    name: str
    size: int
    content: bytes | Work
    head: bytes = b""

    @property
    def stored(self) -> int:
        """Its bytes in all."""
        return len(self.head) + self.size


def zip_layout(
    records: Sequence[NewRecord], *, align: int = _ALIGN, mark: bytes = b"PK", comment: bytes = b""
) -> Layout:
    """Lay out an uncompressed archive of ``records``, the data of each at a multiple of ``align`` bytes.

    ``mark`` replaces the first two bytes, and ``comment`` stands at the end.
    """
    pieces: list[tuple[int, bytes]] = []
    blobs: list[Blob] = []
    central = bytearray()
    at = 0
    for record in records:
        name = _bytes_of(record.name)
        crc = zlib.crc32(record.content) if isinstance(record.content, bytes) else 0
        extra = _wide(record.stored, record.stored) if record.stored >= _FULL32 else b""
        plain_end = at + _LOCAL.size + len(name) + len(extra)
        # Padding goes into an extra field of its own, whose head takes 4 bytes; torch calls it FB too.
        padding = -(plain_end + 4) % align
        extra += _PADDING.pack(b"FB", padding) + b"Z" * padding
        short = min(record.stored, _FULL32)
        header = _LOCAL.pack(
            b"PK\x03\x04", 45, _flags(name), 0, 0, _DATE, crc, short, short, len(name), len(extra)
        )
        header = (mark + header[2:] if at == 0 else header) + name + extra
        start = at + len(header)
        if isinstance(record.content, bytes):
            pieces += ((at, header), (start, record.content))  # a pickle may be long: it is not copied
        else:
            head = Checked(
                header + record.head, _CRC_IN_LOCAL, len(central) + _CRC_IN_CENTRAL, len(record.head)
            )
            blobs.append(Blob(start + len(record.head), record.size, record.content, head))
        central += _central_entry(record, at, crc)
        at = start + record.stored
    tail = bytes(central) + _ends(len(records), len(central), at, len(comment)) + comment
    return Layout(at + len(tail), tuple(pieces), tuple(blobs), tail)


_DATE = 0x21  # 1980-01-01, the first that zip can say: the same input gives the same bytes
_CRC_IN_LOCAL = 14
_CRC_IN_CENTRAL = 16


def _bytes_of(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _flags(name: bytes) -> int:
    """Bit 11 says that a name is UTF-8."""
    if name.isascii():
        return 0
    try:
        name.decode()
    except UnicodeDecodeError:
        return 0
    return 1 << 11


def _wide(*values: int) -> bytes:
    return struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values)


def _central_entry(record: NewRecord, header_at: int, crc: int) -> bytes:
    name = _bytes_of(record.name)
    values = [record.stored, record.stored] if record.stored >= _FULL32 else []
    values += [header_at] if header_at >= _FULL32 else []
    extra = _wide(*values) if values else b""
    short, place = min(record.stored, _FULL32), min(header_at, _FULL32)
    return (
        _CENTRAL.pack(
            b"PK\x01\x02",
            45,
            45,
            _flags(name),
            0,
            0,
            _DATE,
            crc,
            short,
            short,
            len(name),
            len(extra),
            0,
            0,
            0,
            0,
            place,
        )
        + name
        + extra
    )


def _ends(count: int, length: int, start: int, comment: int) -> bytes:
    """The end records: zip64's where a number does not fit, and the plain one, without its comment."""
    wide = b""
    if count >= _FULL16 or length >= _FULL32 or start >= _FULL32:
        wide = _END64.pack(b"PK\x06\x06", _END64.size - 12, 45, 45, 0, 0, count, count, length, start)
        wide += _LOCATOR.pack(b"PK\x06\x07", 0, start + length, 1)
    few = min(count, _FULL16)
    return wide + _END.pack(b"PK\x05\x06", 0, 0, few, few, min(length, _FULL32), min(start, _FULL32), comment)
