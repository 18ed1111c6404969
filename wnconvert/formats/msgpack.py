r"""MessagePack as data: the values of a file one after another, the long ones left where they lie.

Only lengths and short texts are read, so a file takes the time of its structure. Source of the format:
https://github.com/msgpack/msgpack/blob/master/spec.md

>>> from wnconvert.tensors.files import MemoryFile
>>> values = MessagePack(MemoryFile(b"\x81\xa1a\xc4\x02xy"))
>>> values.next(), values.next(), values.next()
(Map(count=1), 'a', Raw(data=ByteRange(start=5, size=2, shard=0), is_text=False))
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TypeAlias

from wnconvert.errors import FormatError
from wnconvert.frozen import dataclass
from wnconvert.tensors.files import GET_AGAIN, FrontToBack, ReadableFile
from wnconvert.tensors.limits import MESSAGEPACK, megabytes
from wnconvert.tensors.tree import ByteRange

__all__ = ["Extended", "Items", "Map", "MessagePack", "Raw", "Token"]


@dataclass(frozen=True, slots=True)
class Map:
    """A mapping begins: ``count`` keys follow, each with its value."""

    count: int


@dataclass(frozen=True, slots=True)
class Items:
    """A list begins: ``count`` values follow."""

    count: int


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes that are not read, and stand before the next value; ``is_text`` if they are a long text."""

    data: ByteRange
    is_text: bool = False


@dataclass(frozen=True, slots=True)
class Extended:
    """An extension by its code. What it holds comes next: it is read as values, or gone past."""

    code: int
    data: ByteRange


#: What stands at a place of a file; a text that is a name is a ``str``.
Token: TypeAlias = Map | Items | Raw | Extended | str | int | float | bool | None

_LONGEST_NAME = 64 << 10
_CONSTANTS: dict[int, Token] = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
    code: struct.Struct(f">{kind}")
    for code, kind in zip(range(0xCA, 0xD4), ("f", "d", "B", "H", "I", "Q", "b", "h", "i", "q"), strict=True)
}


class MessagePack:
    """The values of a file, from its first byte on.

    Raises ``FormatError`` for what is not MessagePack, ends too early, or is more structure than the limit.
    """

    def __init__(self, file: ReadableFile) -> None:
        self._bytes = FrontToBack(file)

    @property
    def at(self) -> int:
        """The place of the next value."""
        return self._bytes.at

    @property
    def is_done(self) -> bool:
        """Whether all bytes are read."""
        return self._bytes.left == 0

    @property
    def taken(self) -> int:
        """The bytes that were read so far."""
        return self._bytes.taken

    def go_past(self, value: Extended) -> None:
        """Go past what an extension holds, of which nothing was read."""
        self._bytes.skip(value.data.size)

    def next(self) -> Token:
        """The next value; of a mapping or a list, its beginning."""
        code = self._bytes.take(1)[0]
        if self._bytes.taken > MESSAGEPACK:
            raise FormatError(
                f"there are more than {megabytes(MESSAGEPACK)} beside its arrays",
                fix="do not trust this file",
            )
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 0x100
        if code < 0xA0:
            return self._many(code & 0xF, Map if code < 0x90 else Items)
        if code < 0xC0:
            return self._text(code & 0x1F)
        if code in _CONSTANTS:
            return _CONSTANTS[code]
        if code in _NUMBERS:
            number: int | float = _NUMBERS[code].unpack(self._bytes.take(_NUMBERS[code].size))[0]
            return number
        return self._long(code)

    def _long(self, code: int) -> Token:
        """A value whose length stands before it."""
        if 0xC4 <= code <= 0xC6:
            return self._raw(self._length(1 << code - 0xC4))
        if 0xC7 <= code <= 0xC9:
            return self._extension(self._length(1 << code - 0xC7))
        if 0xD4 <= code <= 0xD8:
            return self._extension(1 << code - 0xD4)
        if 0xD9 <= code <= 0xDB:
            return self._text(self._length(1 << code - 0xD9))
        if 0xDC <= code <= 0xDF:
            return self._many(self._length(2 << (code & 1)), Items if code < 0xDE else Map)
        raise FormatError(f"its byte {code:02x} at {self.at - 1} is not of MessagePack", fix=GET_AGAIN)

    def _length(self, width: int) -> int:
        return int.from_bytes(self._bytes.take(width), "big")

    def _many(self, count: int, kind: Callable[[int], Map | Items]) -> Token:
        if count * (2 if kind is Map else 1) > self._bytes.left:
            raise FormatError(
                f"{count} values should stand at {self.at}, and it ends before them", fix=GET_AGAIN
            )
        return kind(count)

    def _text(self, size: int) -> Token:
        if size > _LONGEST_NAME:
            return self._raw(size, is_text=True)
        try:
            return self._bytes.take(size).decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"its text at {self.at - size} is not UTF-8", fix=GET_AGAIN) from error

    def _extension(self, size: int) -> Extended:
        code = int.from_bytes(self._bytes.take(1), "big", signed=True)
        return Extended(code, ByteRange(self.at, size))

    def _raw(self, size: int, *, is_text: bool = False) -> Raw:
        data = ByteRange(self.at, size)
        self._bytes.skip(size)
        return Raw(data, is_text)
