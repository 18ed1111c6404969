"""Long bytes of a pickle left where they lie: what is read is the rest, with a mark in the place of each.

A pickle of arrays holds their bytes within itself. Here they are gone past by their lengths, so a file of any
size takes the time and the memory of its structure. In protocols below 3, which have no bytes, an array's are
a text that ``_codecs.encode`` would encode: each byte is a character, in UTF-8.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from wnconvert.errors import FormatError
from wnconvert.formats.pickle.machine import refuse
from wnconvert.formats.pickle.opcodes import LENGTHS, OPCODES, SIZES
from wnconvert.formats.pickle.reader import load
from wnconvert.formats.pickle.values import PersistentId, Pickle, Value
from wnconvert.frozen import dataclass
from wnconvert.tensors.files import GET_AGAIN, FrontToBack, ReadableFile
from wnconvert.tensors.limits import PICKLE, megabytes
from wnconvert.tensors.tree import ByteRange

__all__ = ["Span", "load_skimmed", "span_of"]


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a pickle that were not read; ``is_text`` if they are UTF-8, and each character is a byte."""

    data: ByteRange
    is_text: bool = False


def load_skimmed(file: ReadableFile) -> Pickle:
    """Read the pickle that a file is, as data; its bytes are spans (``span_of``).

    Raises ``FormatError`` as ``load`` does, and where it refers to what is not in the file.
    """
    pickle = load(_Skimmer(file).skimmed())
    for node in pickle.nodes:
        if isinstance(node, PersistentId):
            start, size, is_text = node.pid
            node.meaning = Span(ByteRange(start, size), is_text)
    return pickle


def span_of(value: Value) -> Span | None:
    """The bytes that a value stands for, or None for any other value."""
    return value.meaning if isinstance(value, PersistentId) and isinstance(value.meaning, Span) else None


def _codes(names: Iterable[str]) -> frozenset[int]:
    return frozenset(OPCODES[name] for name in names)


# BINSTRING is the text of Python 2 for 256 bytes and more, which is an array's.
_BYTES = _codes(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINSTRING"))
_TEXTS = _codes(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"))
_PUTS = _codes(("PUT", "BINPUT", "LONG_BINPUT"))
_GETS = _codes(("GET", "BINGET", "LONG_BINGET"))
_OUTSIDE = _codes(("PERSID", "BINPERSID", "NEXT_BUFFER"))
_TWO_LINES = _codes(("GLOBAL", "INST"))
_STOP, _GLOBAL = OPCODES["STOP"], OPCODES["GLOBAL"]
_CODES = frozenset(OPCODES.values())
_ENCODE = b"_codecs\nencode\n"
_LONGEST_LINE = 64 << 10
# What pushes the mark of a span: a persistent id of its place, its size, and whether it is a text.
_MARK = struct.Struct("<c2sq2sqccc")
_FLAGS = {False: b"\x89", True: b"\x88"}


class _Skimmer:
    """Goes through a pickle, operation by operation."""

    def __init__(self, file: ReadableFile) -> None:
        self.bytes = FrontToBack(file)
        self.kept = bytearray()
        self.encoders: set[int] = set()  # the memo entries that hold `_codecs.encode`

    def skimmed(self) -> bytes:
        """The pickle with marks in the place of its bytes."""
        code, is_encoded = -1, False
        while code != _STOP:
            code = self.bytes.take(1)[0]
            if code in _OUTSIDE:
                raise FormatError("the pickle in it refers to what is not in the file", fix="use torch.save")
            argument = self.argument(code)
            if code in LENGTHS:
                self.long(code, argument, is_text=is_encoded and code in _TEXTS)
            else:
                self.kept += bytes((code,)) + argument
            is_encoded = self.encodes(code, argument, was=is_encoded)
            if len(self.kept) > PICKLE:
                raise refuse(f"is longer than {megabytes(PICKLE)} beside its arrays")
        if self.bytes.left:
            raise FormatError(f"the pickle in it ends before {self.bytes.left} more bytes", fix=GET_AGAIN)
        return bytes(self.kept)

    def encodes(self, code: int, argument: bytes, *, was: bool) -> bool:
        """Whether what comes next is encoded, once this operation is done."""
        if code in _PUTS:
            if was:
                self.encoders.add(_number(code, argument))
            return was
        if code in _GETS:
            return _number(code, argument) in self.encoders
        return code == _GLOBAL and argument == _ENCODE

    def argument(self, code: int) -> bytes:
        """What stands behind an operation; of what has a length only that."""
        if code in LENGTHS:
            return self.bytes.take(LENGTHS[code])
        if code in SIZES:
            return self.bytes.take(SIZES[code])
        if code not in _CODES:
            raise FormatError(f"the pickle in it is damaged: {code:02x} is not an opcode", fix=GET_AGAIN)
        return self.line() + self.line() if code in _TWO_LINES else self.line()

    def line(self) -> bytes:
        """Up to the next line feed."""
        found = bytearray()
        while not found.endswith(b"\n"):
            found += self.bytes.take(1)
            if len(found) > _LONGEST_LINE:
                raise refuse("has a line without an end")
        return bytes(found)

    def long(self, code: int, length: bytes, *, is_text: bool) -> None:
        """What has a length: bytes are marked and gone past, all else is kept."""
        size = int.from_bytes(length, "little")
        if is_text or (code in _BYTES and size > 1):  # one byte is a part of how NumPy spells an array
            at = self.bytes.at
            self.bytes.skip(size)  # first: a size may be longer than any file, and than what a mark holds
            numbers = b"\x8a\x08", at, b"\x8a\x08", size  # LONG1 of eight bytes each
            self.kept += _MARK.pack(b"(", *numbers, _FLAGS[is_text], b"t", b"Q")
        else:
            if size > PICKLE:
                raise refuse(f"has a text of {size} bytes")
            self.kept += bytes((code,)) + length + self.bytes.take(size)


def _number(code: int, argument: bytes) -> int:
    """The number of a memo entry."""
    if code in SIZES:
        return int.from_bytes(argument, "little")
    return int(argument) if argument.strip().isdigit() else -1
