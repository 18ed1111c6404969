"""The wire format of protobuf: a message cut into its records, and records written.

A *record* is a field with its tag. Only tags, lengths and the contents that are asked for are read, so a
message of gigabytes costs kilobytes. Source of the format: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from wnconvert.errors import FormatError
from wnconvert.tensors.files import GET_AGAIN, ReadableFile
from wnconvert.tensors.tree import ByteRange

__all__ = [
    "BYTES",
    "FIXED32",
    "FIXED64",
    "MOST_READ",
    "VARINT",
    "Message",
    "Wire",
    "WireField",
    "bytes_record",
    "int_record",
    "length_head",
    "signed",
    "varint",
]


VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_WINDOW = 64 << 10
_LONGEST_VARINT = 10
#: Names, texts and lists of numbers up to this size are read whole; longer contents are payloads.
MOST_READ = 1 << 20


class WireField(NamedTuple):
    """A field: its number and wire type, where it starts, and where its content (``body``) starts and ends.

    ``value`` is that of a number in its unsigned form, 0 where there is a body of bytes.
    """

    number: int
    wire: int
    start: int
    body: int
    end: int
    value: int

    @property
    def range(self) -> ByteRange:
        """The record with its tag."""
        return ByteRange(self.start, self.end - self.start)


class Message(NamedTuple):
    """Where a message lies: that of a record, or a whole file."""

    start: int
    end: int


class Wire:
    """An opened file, read in small windows.

    Its methods raise ``FormatError`` for bytes that are not protobuf, with the place.
    """

    def __init__(self, file: ReadableFile) -> None:
        self.file = file
        self.size = file.size
        self._start = 0
        self._data = b""

    def records(self, message: WireField | Message) -> Iterator[WireField]:
        """The records of a message in their order, each read when it is asked for."""
        at, end = (message.body if isinstance(message, WireField) else message.start), message.end
        while at < end:
            record = self._record(at, end)
            yield record
            at = record.end

    def content(self, record: WireField) -> bytes:
        """The content of a short record of bytes."""
        if record.wire != BYTES:
            raise self.damaged(record.start, f"field {record.number} holds a number where bytes belong")
        size = record.end - record.body
        if size > MOST_READ:
            raise FormatError(
                f"a name or text of {size} bytes at byte {record.start}",
                fix="no model needs that: do not trust it",
            )
        return self._bytes(record.body, size)

    def text(self, record: WireField) -> str:
        """The content of a record of text."""
        try:
            return self.content(record).decode()
        except UnicodeDecodeError as error:
            raise self.damaged(record.start, "a name is not UTF-8 text") from error

    def whole(self, record: WireField) -> int:
        """The whole number of a record."""
        if record.wire != VARINT:
            raise self.damaged(record.start, f"field {record.number} is not a whole number")
        return signed(record.value)

    def wholes(self, record: WireField) -> list[int]:
        """The whole numbers of a record: one, or many end to end (packed)."""
        if record.wire != BYTES:
            return [self.whole(record)]
        data, at, found = self.content(record), 0, []
        while at < len(data):
            value, at = self._varint(data, at, record.body)
            found.append(signed(value))
        return found

    def floats(self, record: WireField, code: str = "f") -> list[float]:
        """The floats (or, with code ``d``, doubles) of a record: one, or many end to end."""
        size = struct.calcsize(code)
        if record.wire == BYTES:
            data = self.content(record)
        elif record.wire == (FIXED32 if code == "f" else FIXED64):
            data = record.value.to_bytes(size, "little")
        else:
            raise self.damaged(record.start, f"field {record.number} is not a float")
        if len(data) % size:
            raise self.damaged(record.start, "floats that end in the middle of one")
        return list(struct.unpack(f"<{len(data) // size}{code}", data))

    def span(self, at: int, size: int) -> bytes:
        """Some bytes as they lie."""
        return self._bytes(at, size)

    def damaged(self, at: int, what: str) -> FormatError:
        """The error for bytes that contradict the format; ``at`` is their place."""
        return FormatError(f"it is damaged at byte {at}: {what}", fix=GET_AGAIN)

    def _record(self, at: int, end: int) -> WireField:
        return self._short(at, end) or self._any(at, end)

    def _short(self, at: int, end: int) -> WireField | None:
        """A record in the window whose tag and length, or number, are a byte each, as nearly all are."""
        place, data = at - self._start, self._data
        if not 0 <= place < len(data) - 1 or at + 2 > end:
            return None
        tag, value = data[place], data[place + 1]
        if tag >= 0x80 or value >= 0x80 or tag < 8:
            return None
        if tag & 7 == BYTES:
            stop = at + 2 + value
            return WireField(tag >> 3, BYTES, at, at + 2, stop, 0) if stop <= end else None
        return WireField(tag >> 3, VARINT, at, at + 1, at + 2, value) if tag & 7 == VARINT else None

    def _any(self, at: int, end: int) -> WireField:
        # A tag and a length take at most 20 bytes.
        head = self._bytes(at, min(2 * _LONGEST_VARINT, end - at))
        tag, used = self._varint(head, 0, at)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise self.damaged(at, f"there is no field {number}")
        if wire == BYTES:
            size, used = self._varint(head, used, at)
            if size > end - at - used:
                raise self.damaged(at, f"field {number} claims {size} bytes, and {end - at - used} are left")
            return WireField(number, wire, at, at + used, at + used + size, 0)
        if wire == VARINT:
            value, stop = self._varint(head, used, at)
            return WireField(number, wire, at, at + used, at + stop, value)
        if wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
            if size > end - at - used:
                raise self.damaged(at, f"field {number} is cut short")
            value = int.from_bytes(head[used : used + size], "little")
            return WireField(number, wire, at, at + used, at + used + size, value)
        raise self.damaged(at, f"field {number} has the unknown wire type {wire}")

    def _varint(self, data: bytes, at: int, where: int) -> tuple[int, int]:
        if at < len(data) and data[at] < 0x80:  # as nearly all are
            return data[at], at + 1
        value = shift = 0
        for place in range(at, min(at + _LONGEST_VARINT, len(data))):
            byte = data[place]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, place + 1
            shift += 7
        raise self.damaged(where, "a number that does not end")

    def _bytes(self, at: int, size: int) -> bytes:
        if not (self._start <= at and at + size <= self._start + len(self._data)):
            wanted = max(size, min(_WINDOW, self.size - at))
            self._start, self._data = at, self.file.read(at, wanted)
        return self._data[at - self._start : at - self._start + size]


def signed(value: int) -> int:
    """A 64-bit number as the signed one that a varint of ``int64`` or ``int32`` stands for.

    >>> signed(3), signed((1 << 64) - 1)
    (3, -1)
    """
    return value - (1 << 64) if value >> 63 else value


# -- writing


def varint(value: int) -> bytes:
    """A number as a varint; a negative one takes ten bytes.

    >>> varint(300).hex(), len(varint(-1))
    ('ac02', 10)
    """
    value &= 0xFFFFFFFFFFFFFFFF
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def length_head(number: int, size: int) -> bytes:
    """The tag and length before a content of ``size`` bytes."""
    return varint(number << 3 | BYTES) + varint(size)


def bytes_record(number: int, content: bytes | Iterable[bytes]) -> bytes:
    """A record of bytes, a text or a message.

    >>> bytes_record(1, b"abc").hex()
    '0a03616263'
    """
    data = content if isinstance(content, bytes) else b"".join(content)
    return length_head(number, len(data)) + data


def int_record(number: int, value: int) -> bytes:
    """A record of a whole number.

    >>> int_record(1, 150).hex()
    '089601'
    """
    return varint(number << 3 | VARINT) + varint(value)
