"""The writer that gives pickles back: records of :mod:`wnconvert.formats.pickle.reader` to bytes.

Iterative, so nothing nests too deep for it; it keeps the source's protocol, identity and cycles.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import FunctionType, NoneType
from typing import Any

from wnconvert.formats.pickle.values import (
    Dict,
    Extension,
    Global,
    Latin1,
    Object,
    PersistentId,
    Set,
    Unwritten,
    Value,
)

__all__ = ["dump", "dump_around"]


_BATCH = 1000  # items between a MARK and its APPENDS or SETITEMS, as Python's pickler has it


def dump(root: Value, protocol: int, substitute: Callable[[Value], Value] = lambda value: value) -> bytes:
    """Write ``root`` as a pickle of ``protocol`` (0 is written as 1: its text forms hold no storages).

    ``substitute`` is called with each node, and each tuple and list that is not empty, as it is about to be
    written and returns what to write in its place, or the value itself; references to the same node stay
    references to one node.

    >>> import pickle
    >>> pickle.loads(dump(Dict([("epoch", 3)]), 2))
    {'epoch': 3}
    """
    (pickle,) = dump_around(root, protocol, substitute)
    if not isinstance(pickle, bytes):
        raise TypeError("bytes of it are not known yet")
    return pickle


def dump_around(
    root: Value, protocol: int, substitute: Callable[[Value], Value] = lambda value: value
) -> list[bytes | Unwritten]:
    """Write ``root`` as ``dump`` does, around what is not known yet: runs of bytes, and what stands between.

    In the place of an ``Unwritten`` belong its bytes; for a text the whole of it, opcode and length too.
    """
    return _Writer(max(protocol, 1), substitute).run(root)


class _Opcodes(bytes):
    """Bytes of the pickle itself, among the values to write."""

    __slots__ = ()


_MARK = _Opcodes(b"(")
_SMALL_INTEGERS = [b"K" + bytes([value]) for value in range(1 << 8)]
_WITH_U4 = struct.Struct("<cI").pack


class _Writer:
    """An iterative pickler: ``todo`` holds values to write, opcodes and actions to take, last first.

    Values that the memo knows by id are not freed meanwhile: they hang below the root, or below a value in
    ``replaced``, which holds what stands in the place of others.
    """

    def __init__(self, protocol: int, substitute: Callable[[Value], Value]) -> None:
        self.protocol = protocol
        self.substitute = substitute
        self.out = bytearray()
        self.runs: list[bytes | Unwritten] = []
        self.memo: dict[int, int] = {}
        self.names: dict[tuple[str, str], int] = {}  # the same for globals, which are one by their names
        self.count = 0
        self.replaced: dict[int, Value] = {}
        self.todo: list[Any] = []

    def run(self, root: Value) -> list[bytes | Unwritten]:
        if self.protocol >= 2:
            self.out += b"\x80" + bytes([self.protocol])
        todo, out = self.todo, self.out
        todo.append(root)
        ways, compound = _WAYS, self.compound
        while todo:
            item = todo.pop()
            kind = type(item)
            if kind is _Opcodes:
                out += item
            elif kind is FunctionType:
                item()
            elif kind in ways:
                ways[kind](self, item)
            else:
                compound(item)
        out += b"."
        self.memo.clear()  # it takes more than the pickle, of which there are two for a moment
        return [*self.runs, bytes(out)]

    def then(self, *steps: Any) -> None:
        """Write these next: at once up to the first that has parts, and is not known yet."""
        last = len(steps) - 1
        for at, step in enumerate(steps):
            kind = type(step)
            if kind in _WAYS:
                _WAYS[kind](self, step)
            elif kind is _Opcodes:
                self.out += step
            elif (index := self.memo.get(id(step))) is not None:
                self.recall(index)
            elif kind is FunctionType and at == last:  # else what it puts to be done would be done too late
                step()
            else:
                self.todo += steps[at:][::-1]
                return

    def remember(self, value: Value) -> None:
        index = self.memo[id(value)] = self.count
        self.count = index + 1
        if self.protocol >= 4:
            self.out += b"\x94"
        elif index < 256:
            self.out += b"q" + bytes([index])
        else:
            self.out += _WITH_U4(b"r", index)

    def recall(self, index: int) -> None:
        self.out += b"h" + bytes([index]) if index < 256 else _WITH_U4(b"j", index)

    def none(self, _: Value) -> None:
        self.out += b"N"

    def real(self, value: float) -> None:
        self.out += b"G" + struct.pack(">d", value)

    def text(self, value: str | bytes | bytearray) -> None:
        index = self.memo.get(id(value))
        if index is None:
            self.out += _text(value, self.protocol) if isinstance(value, str) else _binary(value)
            self.remember(value)
        else:
            self.recall(index)

    def boolean(self, value: bool) -> None:  # noqa: FBT001 - the value itself
        if self.protocol >= 2:
            self.out += b"\x88" if value else b"\x89"
        else:
            self.out += b"I01\n" if value else b"I00\n"

    def integer(self, value: int) -> None:
        if 0 <= value < 1 << 8:
            self.out += _SMALL_INTEGERS[value]
        elif 0 <= value < 1 << 16:
            self.out += b"M" + struct.pack("<H", value)
        elif -(1 << 31) <= value < 1 << 31:
            self.out += b"J" + struct.pack("<i", value)
        elif self.protocol < 2 and value.bit_length() < 10_000:  # Python refuses longer digits
            self.out += b"L%dL\n" % value
        else:
            size = value.bit_length() // 8 + 1
            encoded = value.to_bytes(size, "little", signed=True)
            self.out += (
                b"\x8a" + bytes([size]) if size < 256 else b"\x8b" + struct.pack("<i", size)
            ) + encoded

    def compound(self, original: Value) -> None:
        index = self.memo.get(id(original))
        if index is not None:
            self.recall(index)
            return
        if original == ():  # one object wherever it stands
            self.out += b")"
            return
        value = self.replaced.get(id(original))
        if value is None:
            value = self.substitute(original)
            if value is not original:
                self.replaced[id(original)] = value
        if value is not original and (index := self.memo.get(id(value))) is not None:
            self.recall(index)
            return
        way = _COMPOUND.get(type(value))
        if way is None:
            raise TypeError(f"not a pickle value: {type(value)}")
        way(self, value)

    def sequence(self, value: list[Value]) -> None:
        self.start(value, b"]")
        self.then(*self.batches(value, b"e"))

    def mapping(self, value: Dict) -> None:
        self.start(value, b"}")
        self.then(*self.batches(value.pairs, b"u"))

    def persistent(self, value: PersistentId) -> None:
        self.then(value.pid, _Opcodes(b"Q"))

    def extension(self, value: Extension) -> None:
        self.out += b"\x84" + struct.pack("<i", value.code)

    def unwritten(self, value: Unwritten) -> None:
        if value.kind == "bytearray":
            self.out += b"\x96" + struct.pack("<Q", value.size)
        elif value.kind == "bytes":
            self.out += b"B" + struct.pack("<I", value.size)
        self.runs += (bytes(self.out), value)
        self.out.clear()
        self.remember(value)

    def start(self, value: Value, opcode: bytes) -> None:
        self.out += opcode
        self.remember(value)

    def batches(self, items: list[Value], opcode: bytes) -> list[Any]:
        def batch(first: int) -> Callable[[], None]:
            def begin() -> None:
                some = items[first : first + _BATCH]
                flat = [part for pair in some for part in pair] if opcode == b"u" else some
                self.then(_MARK, *flat, _Opcodes(opcode))

            return begin

        return [batch(first) for first in range(0, len(items), _BATCH)]

    def named(self, value: Global) -> None:
        names = (value.module, value.name)
        index = self.names.get(names)
        if index is not None:
            self.memo[id(value)] = index
            self.recall(index)
            return
        if self.protocol >= 4:
            # The two names are written without memo entries of their own, so that they cannot differ.
            self.out += _text(value.module, 4) + _text(value.name, 4) + b"\x93"
        else:
            self.out += b"c" + value.module.encode() + b"\n" + value.name.encode() + b"\n"
        self.names[names] = self.count
        self.remember(value)

    # A tuple, a frozenset or a call is only made after its parts. Where a part leads back to it, writing
    # the parts has already made it; then the parts are dropped and the made one is taken.

    def made(self, value: Value, drop: bytes, make: bytes) -> Callable[[], None]:
        def finish() -> None:
            index = self.memo.get(id(value))
            if index is None:
                self.out += make
                self.remember(value)
            else:
                self.out += drop
                self.recall(index)

        return finish

    def fixed(self, value: tuple[Value, ...]) -> None:
        if not value:
            self.out += b")"
            return
        is_short = self.protocol >= 2 and len(value) <= 3
        make = _SHORT_TUPLES[len(value)] if is_short else b"t"
        if _SINGLE.issuperset(map(type, value)):  # a shape, and most others: none of them leads back to it
            if not is_short:
                self.out += _MARK
            for part in value:
                _WAYS[type(part)](self, part)
            self.out += make
            self.remember(value)
        elif is_short:
            self.then(*value, self.made(value, b"0" * len(value), make))
        else:
            self.then(_MARK, *value, self.made(value, b"1", make))

    def set_of(self, value: Set) -> None:
        if value.frozen:
            self.then(_MARK, *value.items, self.made(value, b"1", b"\x91"))
        else:
            self.start(value, b"\x8f")
            self.then(*self.batches(value.items, b"\x90"))

    def record(self, value: Object) -> None:
        if value.op == "OBJ":
            parts = [_MARK, value.callee, *value.args]
            drop, make = b"1", b"o"
        elif value.op == "NEWOBJ_EX":
            parts = [value.callee, value.args, value.kwargs]
            drop, make = b"000", b"\x92"
        else:
            parts = [value.callee, value.args]
            drop, make = b"00", b"R" if value.op == "REDUCE" else b"\x81"

        make_it = self.made(value, drop, make)

        def make_and_change() -> None:
            known = id(value) in self.memo
            make_it()
            if not known:
                self.then(*self.changes(value))

        self.then(*parts, make_and_change if value.changes else make_it)

    def changes(self, value: Object) -> list[Any]:
        steps: list[Any] = []
        for kind, payload in value.changes:
            if kind == "build":
                steps += [payload, _Opcodes(b"b")]
            else:
                steps += self.batches(payload, {"append": b"e", "set": b"u", "add": b"\x90"}[kind])
        return steps


#: How values of no parts are written, by their types.
_WAYS: dict[type, Callable[[_Writer, Any], None]] = {
    NoneType: _Writer.none,
    bool: _Writer.boolean,
    int: _Writer.integer,
    float: _Writer.real,
    str: _Writer.text,
    Latin1: _Writer.text,
    bytes: _Writer.text,
    bytearray: _Writer.text,
}
_SINGLE = frozenset(_WAYS)
_SHORT_TUPLES = {1: b"\x85", 2: b"\x86", 3: b"\x87"}
_COMPOUND: dict[type, Callable[[_Writer, Any], None]] = {
    Global: _Writer.named,
    tuple: _Writer.fixed,
    list: _Writer.sequence,
    Dict: _Writer.mapping,
    Set: _Writer.set_of,
    PersistentId: _Writer.persistent,
    Extension: _Writer.extension,
    Object: _Writer.record,
    Unwritten: _Writer.unwritten,
}


def _text(value: str, protocol: int) -> bytes:
    if isinstance(value, Latin1):
        raw = value.encode("latin-1")
        return (b"U" + bytes([len(raw)]) if len(raw) < 256 else b"T" + struct.pack("<i", len(raw))) + raw
    raw = value.encode("utf-8", "surrogatepass")
    if protocol >= 4 and len(raw) < 256:
        return b"\x8c" + bytes([len(raw)]) + raw
    return _WITH_U4(b"X", len(raw)) + raw


def _binary(value: bytes | bytearray) -> bytes:
    if isinstance(value, bytearray):
        return b"\x96" + struct.pack("<Q", len(value)) + bytes(value)
    head = b"C" + bytes([len(value)]) if len(value) < 256 else b"B" + struct.pack("<I", len(value))
    return head + value
