"""The small machine that reads pickles as data: nothing named in one is imported or called.

The machine runs over the opcode table of the standard library's ``pickletools``, and makes
:mod:`wnconvert.formats.pickle.values`. It knows nothing of torch.
"""

from __future__ import annotations

import codecs
import io
import pickletools
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from wnconvert.errors import FormatError
from wnconvert.formats.pickle.values import (
    Dict,
    Extension,
    Global,
    Latin1,
    Object,
    PersistentId,
    Pickle,
    Set,
    Value,
    levels,
)

__all__ = ["load"]


# The cost at which a hostile pickle is refused. A real one of 10,000 tensors has 250,000 operations
# (25 MB here); Python's own pickler cannot nest deeper than its recursion limit.
MAX_MEMORY = 144 << 20
MAX_MARKS = 5_000
MAX_DEPTH = 5_000
_NEWEST = 5
_COST_OF_VALUE = 48
_COST_OF_NODE = 192


class Stream(Protocol):
    """The part of a file's interface that reading a pickle needs."""

    def read(self, size: int, /) -> bytes:
        """Read up to ``size`` bytes."""

    def readline(self) -> bytes:
        """Read through the next newline."""


def load(source: bytes | Stream) -> Pickle:
    """Read one pickle as data; a stream is left after its STOP.

    Raises ``FormatError`` where the pickle is cut short, is malformed, or would need more memory, marks
    or depth than any real checkpoint.

    >>> import pickle
    >>> load(pickle.dumps({"epoch": 3, "names": ["a", "b"]})).root
    Dict(pairs=[('epoch', 3), ('names', ['a', 'b'])])
    """
    stream: Any = io.BytesIO(source) if isinstance(source, bytes) else source
    machine = _Machine()
    try:
        for name, arg in _operations(stream):
            machine.step(name, arg)
        root = machine.stack.pop()
    except FormatError:
        raise
    except (
        IndexError,
        KeyError,
        ValueError,
        OverflowError,
        TypeError,
        AttributeError,
        struct.error,
    ) as error:
        # pickletools reports malformed arguments as ValueError and friends; an empty stack or an unknown memo
        # entry surfaces here as IndexError or KeyError. All of them mean the same to the user.
        raise FormatError(f"the pickle in it is damaged ({_reason(error)})", fix=_DAMAGED) from error
    _check_depth(root)
    return Pickle(root, max(machine.protocol, *(_PROTOCOLS[name] for name in machine.names)))


_DAMAGED = "download or save the file again"


def _reason(error: Exception) -> str:
    if isinstance(error, IndexError):
        return "it takes from an empty stack"
    if isinstance(error, KeyError):
        return f"it refers to memo entry {error}, which it never stored"
    return str(error) or type(error).__name__


def _operations(stream: Any) -> Iterator[tuple[str, Value]]:
    """The opcodes of one pickle through its STOP, by name, each with its argument or None."""
    name = ""
    while name != "STOP":
        code = stream.read(1)
        opcode = _OPCODES.get(code)
        if opcode is None:
            raise ValueError(f"its byte {code.hex()} is not an opcode" if code else "it ends before its STOP")
        name = opcode.name
        reader = _READERS.get(name) or (opcode.arg and opcode.arg.reader)
        yield name, reader(stream) if reader else None


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


_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_PROTOCOLS = {opcode.name: opcode.proto for opcode in pickletools.opcodes}
# pickletools takes these for ASCII, and joins the two names of a global by a space, which each may hold.
_READERS: dict[str, Callable[[Any], Any]] = {
    "STRING": _string,
    "PERSID": lambda stream: _line(stream).decode(),
    "GLOBAL": _two_names,
    "INST": _two_names,
}


def _refuse(what: str) -> FormatError:
    return FormatError(f"the pickle in it {what}", fix="no real checkpoint does that: do not trust this file")


def _check_depth(root: Value) -> None:
    for depth, _ in enumerate(levels(root)):
        if depth > MAX_DEPTH:
            raise _refuse(f"nests more than {MAX_DEPTH} deep")


class _Machine:
    """The pickle machine: a stack, the stacks below open marks, and the memo."""

    def __init__(self) -> None:
        self.stack: list[Value] = []
        self.below: list[list[Value]] = []
        self.memo: dict[int, Value] = {}
        self.protocol = 0  # that which the pickle names
        self.spent = 0
        self.operations = 0
        self.names: set[str] = set()  # of the operations so far

    def step(self, name: str, arg: Value) -> None:
        self.operations += 1
        self.names.add(name)
        self.spent += _COST_OF_NODE if name in _MAKES_NODE else _COST_OF_VALUE
        if arg is not None:
            self.spent += sys.getsizeof(arg)
        if self.spent > MAX_MEMORY:
            raise _refuse(f"asks for more than {MAX_MEMORY >> 20} MiB of objects")
        if name in _PUSHES_ARG:
            self.stack.append(arg)
        else:
            _OPS[name](self, arg)

    # -- stack and memo

    def push(self, value: Value) -> None:
        self.stack.append(value)  # looked up here, after an argument's to_mark() has changed the stack

    def mark(self, _: Value) -> None:
        if len(self.below) >= MAX_MARKS:
            raise _refuse(f"has more than {MAX_MARKS} open marks")
        self.below.append(self.stack)
        self.stack = []

    def to_mark(self) -> list[Value]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop(self, _: Value) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.to_mark()  # POP on an open mark closes it

    def put(self, index: Value) -> None:
        # Python numbers its memo entries from 0, so a large index past the operations so far is an attack
        # on readers that keep the memo in an array.
        if not 0 <= index <= max(self.operations, 255):
            raise _refuse(f"uses the absurd memo index {index}")
        self.memo[index] = self.stack[-1]

    # -- making

    def globally(self, names: Value) -> None:
        if not all(isinstance(name, str) and name and name.isprintable() for name in names):
            raise _refuse("names a class or function in a way that no Python name is spelled")
        module, name = map(str, names)
        self.stack.append(Global(module, name))

    def stack_global(self, _: Value) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.globally((module, name))

    def tuple_of(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise IndexError
        self.stack[-count:] = [items]

    def dict_of_mark(self, _: Value) -> None:
        self.push(Dict(_paired(self.to_mark())))

    def object_of(self, op: str) -> None:
        args = self.stack.pop()
        if op == "NEWOBJ_EX":
            args, kwargs = self.stack.pop(), args
            self.stack[-1] = Object(op, self.stack[-1], args, kwargs)
        else:
            self.stack[-1] = Object(op, self.stack[-1], args)

    def object_of_mark(self, _: Value) -> None:
        callee, *args = self.to_mark()
        self.stack.append(Object("OBJ", callee, tuple(args)))

    def instance(self, arg: Value) -> None:
        args = self.to_mark()
        self.globally(arg)
        self.stack[-1] = Object("OBJ", self.stack[-1], tuple(args))

    def proto(self, version: int) -> None:
        if version > _NEWEST:
            raise _refuse(f"is of protocol {version}, which does not exist")
        self.protocol = version

    def buffer(self, _: Value) -> None:
        raise FormatError(
            "the pickle in it refers to buffers that are not in the file",
            fix="save the checkpoint with torch.save",
        )

    # -- changing

    def change(self, kind: str, values: list[Value]) -> None:
        target = self.stack[-1]
        if isinstance(target, Object):
            if target.changes and target.changes[-1][0] == kind and kind != "build":
                target.changes[-1][1].extend(values)
            else:
                target.changes.append((kind, values))
        elif kind == "append" and isinstance(target, list):
            target.extend(values)
        elif kind == "set" and isinstance(target, Dict):
            target.pairs.extend(values)
        elif kind == "add" and isinstance(target, Set) and not target.frozen:
            target.items.extend(values)
        else:
            raise _refuse(f"changes a {type(target).__name__.lower()} in a way that none allows")

    def build(self, _: Value) -> None:
        state = self.stack.pop()
        self.change("build", state)

    def append(self, _: Value) -> None:
        value = self.stack.pop()
        self.change("append", [value])

    def set_item(self, _: Value) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.change("set", [(key, value)])


def _paired(items: list[Value]) -> list[tuple[Value, Value]]:
    if len(items) % 2:
        raise _refuse("has a key without a value")
    return list(zip(items[::2], items[1::2], strict=True))


_PUSHES_ARG = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE SHORT_BINUNICODE BINUNICODE "
    "BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_MAKES_NODE = frozenset(
    "MARK EMPTY_LIST LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT EMPTY_SET FROZENSET GLOBAL "
    "STACK_GLOBAL REDUCE NEWOBJ NEWOBJ_EX OBJ INST BINPERSID PERSID EXT1 EXT2 EXT4 BUILD PUT BINPUT "
    "LONG_BINPUT MEMOIZE SETITEM APPEND".split()
)
_OPS: dict[str, Callable[[_Machine, Value], object]] = {
    "PROTO": _Machine.proto,
    "FRAME": lambda m, arg: None,
    "STOP": lambda m, arg: None,
    "NONE": lambda m, arg: m.push(None),
    "NEWTRUE": lambda m, arg: m.push(True),
    "NEWFALSE": lambda m, arg: m.push(False),
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": lambda m, arg: m.to_mark(),
    "DUP": lambda m, arg: m.push(m.stack[-1]),
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": lambda m, arg: m.put(len(m.memo)),
    "GET": lambda m, arg: m.push(m.memo[arg]),
    "BINGET": lambda m, arg: m.push(m.memo[arg]),
    "LONG_BINGET": lambda m, arg: m.push(m.memo[arg]),
    "STRING": lambda m, arg: m.push(Latin1(arg)),
    "BINSTRING": lambda m, arg: m.push(Latin1(arg)),
    "SHORT_BINSTRING": lambda m, arg: m.push(Latin1(arg)),
    "EMPTY_TUPLE": lambda m, arg: m.push(()),
    "TUPLE": lambda m, arg: m.push(tuple(m.to_mark())),
    "TUPLE1": lambda m, arg: m.tuple_of(1),
    "TUPLE2": lambda m, arg: m.tuple_of(2),
    "TUPLE3": lambda m, arg: m.tuple_of(3),
    "EMPTY_LIST": lambda m, arg: m.push([]),
    "LIST": lambda m, arg: m.push(list(m.to_mark())),
    "APPEND": _Machine.append,
    "APPENDS": lambda m, arg: m.change("append", m.to_mark()),
    "EMPTY_DICT": lambda m, arg: m.push(Dict()),
    "DICT": _Machine.dict_of_mark,
    "SETITEM": _Machine.set_item,
    "SETITEMS": lambda m, arg: m.change("set", _paired(m.to_mark())),
    "EMPTY_SET": lambda m, arg: m.push(Set()),
    "ADDITEMS": lambda m, arg: m.change("add", m.to_mark()),
    "FROZENSET": lambda m, arg: m.push(Set(m.to_mark(), frozen=True)),
    "GLOBAL": _Machine.globally,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": lambda m, arg: m.object_of("REDUCE"),
    "NEWOBJ": lambda m, arg: m.object_of("NEWOBJ"),
    "NEWOBJ_EX": lambda m, arg: m.object_of("NEWOBJ_EX"),
    "OBJ": _Machine.object_of_mark,
    "INST": _Machine.instance,
    "BUILD": _Machine.build,
    "PERSID": lambda m, arg: m.push(PersistentId(arg)),
    "BINPERSID": lambda m, arg: m.push(PersistentId(m.stack.pop())),
    "EXT1": lambda m, arg: m.push(Extension(arg)),
    "EXT2": lambda m, arg: m.push(Extension(arg)),
    "EXT4": lambda m, arg: m.push(Extension(arg)),
    "NEXT_BUFFER": _Machine.buffer,
    "READONLY_BUFFER": _Machine.buffer,
}
