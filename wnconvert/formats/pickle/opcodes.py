"""The operations of pickles, by the table of the standard library's ``pickletools``: arguments, and costs."""

from __future__ import annotations

import codecs
import pickletools
import warnings
from collections.abc import Callable
from typing import Any

__all__ = ["ARGUMENTS", "COSTS", "LENGTHS", "OPCODES", "PROTOCOLS", "PUSH_ARGUMENT", "SIZES"]


#: The opcode of each operation, by its name.
OPCODES = {opcode.name: ord(opcode.code) for opcode in pickletools.opcodes}
#: The protocol that an operation came with, by its opcode.
PROTOCOLS = {ord(opcode.code): opcode.proto for opcode in pickletools.opcodes}


def _line(stream: Any) -> bytes:
    line: bytes = stream.readline()
    if not line.endswith(b"\n"):
        raise ValueError("it ends in the middle of a line")
    return line[:-1]


def _string(stream: Any) -> str:
    """The quoted ``str`` of Python 2's protocol 0."""
    line = _line(stream)
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise ValueError("it has a string without its quotes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd escapes
        return codecs.escape_decode(line[1:-1])[0].decode("latin-1")


def _two_names(stream: Any) -> tuple[str, str]:
    return _line(stream).decode(), _line(stream).decode()


# pickletools takes these for ASCII, and joins the two names of a global by a space, which each may hold.
_READERS: dict[str, Callable[[Any], Any]] = {
    "STRING": _string,
    "PERSID": lambda stream: _line(stream).decode(),
    "GLOBAL": _two_names,
    "INST": _two_names,
}
#: What reads the argument of an operation from a stream, by the opcode; those without one are not in it.
ARGUMENTS: dict[int, Callable[[Any], Any]] = {
    ord(opcode.code): _READERS.get(opcode.name, opcode.arg.reader)
    for opcode in pickletools.opcodes
    if opcode.arg is not None
}

_ARGUMENT_SIZES = {ord(opcode.code): opcode.arg.n if opcode.arg else 0 for opcode in pickletools.opcodes}
#: The bytes of an argument, by the opcode, where they are always as many.
SIZES = {code: size for code, size in _ARGUMENT_SIZES.items() if size >= 0}
_WIDTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
#: The bytes of the length that stands before an argument, by the opcode; all other arguments are lines.
LENGTHS = {code: _WIDTHS[size] for code, size in _ARGUMENT_SIZES.items() if size in _WIDTHS}

#: The names of operations that put their argument on the stack, and do no more.
PUSH_ARGUMENT = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE SHORT_BINUNICODE BINUNICODE "
    "BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_MAKES_NODE = frozenset(
    "MARK EMPTY_LIST LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT EMPTY_SET FROZENSET GLOBAL "
    "STACK_GLOBAL REDUCE NEWOBJ NEWOBJ_EX OBJ INST BINPERSID PERSID EXT1 EXT2 EXT4 BUILD PUT BINPUT "
    "LONG_BINPUT MEMOIZE SETITEM APPEND".split()
)
#: About the bytes of memory that an operation asks for beside its argument, by the opcode.
COSTS = [0] * 256
for _name, _code in OPCODES.items():
    COSTS[_code] = 192 if _name in _MAKES_NODE else 48
