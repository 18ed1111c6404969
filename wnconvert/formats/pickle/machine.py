"""The machine that reads pickles: a stack, a memo, and what each operation does.

It imports and calls nothing, and makes :mod:`wnconvert.formats.pickle.values`. It knows nothing of torch, but
that persistent ids are storages.

A pickle may cost ``FREE``, and one that names storages more with each of them, in proportion to its own
bytes: so what a hostile one takes is bounded by what it holds, and a checkpoint may have any number of
tensors.
"""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Callable

from wnconvert.errors import FormatError
from wnconvert.formats.pickle.opcodes import ARGUMENTS, COSTS, OPCODES, PROTOCOLS, PUSH_ARGUMENT
from wnconvert.formats.pickle.values import (
    Dict,
    Extension,
    Global,
    Latin1,
    Object,
    PersistentId,
    Set,
    Value,
)

__all__ = ["FREE", "PER_BYTE", "CutShortError", "refuse", "run_pickle"]


#: The cost at which a pickle without storages is refused, about its memory in bytes.
FREE = 144 << 20
#: What each byte, and each storage, of one with storages may cost beyond that: of torch's a tensor costs 40 a
#: byte, and a module 12 KiB.
PER_BYTE = 64
_PER_STORAGE = 64 << 10
MAX_MARKS = 5_000
_NEWEST = 5


def refuse(what: str) -> FormatError:
    """The error for a pickle that does what none of a checkpoint does."""
    return FormatError(f"the pickle in it {what}", fix="no real checkpoint does that: do not trust this file")


class CutShortError(FormatError):
    """A pickle whose bytes end before its STOP."""


def run_pickle(data: bytes, at: int, free: int) -> tuple[Value, int, int]:
    """Run the pickle that begins at byte ``at``: its root, its protocol, and where it ends.

    Raises ``FormatError`` where it is malformed or costs too much, ``CutShortError`` where it ends early.
    """
    machine = _Machine(data, at, free)
    try:
        machine.run()
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
        kind = CutShortError if machine.at >= len(data) else FormatError
        raise kind(f"the pickle in it is damaged ({_reason(error, kind)})", fix=_DAMAGED) from error
    newest = max(PROTOCOLS[code] for code, used in enumerate(machine.used) if used)
    return root, max(machine.protocol, newest), machine.at


_DAMAGED = "download or save the file again"


def _reason(error: Exception, kind: type[FormatError]) -> str:
    if kind is CutShortError:
        return "it ends before its STOP"
    if isinstance(error, IndexError):
        return "it takes from an empty stack"
    if isinstance(error, KeyError):
        return f"it refers to memo entry {error}, which it never stored"
    return str(error) or type(error).__name__


# The operations that most of a checkpoint is made of.
_BINPUT, _MEMOIZE, _BINGET = (OPCODES[name] for name in ("BINPUT", "MEMOIZE", "BINGET"))
_BININT1, _BINUNICODE, _BINPERSID = (OPCODES[name] for name in ("BININT1", "BINUNICODE", "BINPERSID"))
_MARK, _TUPLE, _TUPLE2, _REDUCE = (OPCODES[name] for name in ("MARK", "TUPLE", "TUPLE2", "REDUCE"))
_PUTS = frozenset({_BINPUT, OPCODES["LONG_BINPUT"]})
_TEXTS = frozenset({_BINUNICODE, OPCODES["SHORT_BINUNICODE"]})
_CONSTANTS: dict[int, Value] = {
    OPCODES[name]: value
    for name, value in (("NONE", None), ("NEWTRUE", True), ("NEWFALSE", False), ("EMPTY_TUPLE", ()))
}
_STOP = OPCODES["STOP"]
_U4 = struct.Struct("<I").unpack_from
#: Stands in the memo where nothing was stored.
_NOTHING = object()


class _Machine:
    """The pickle machine: a stack, the stacks below open marks, and the memo."""

    def __init__(self, data: bytes, at: int, free: int) -> None:
        self.data = data
        self.start = self.at = at
        self.stream = io.BytesIO(data)  # it shares the bytes
        self.stack: list[Value] = []
        self.below: list[list[Value]] = []
        self.memo: list[Value] = []
        self.protocol = 0  # that which the pickle names
        self.used = bytearray(256)  # 1 at each opcode so far
        self.spent = 0
        self.most = self.free = free
        self.storages = 0

    def run(self) -> None:  # noqa: PLR0912, PLR0915 - one loop
        """Run through STOP. What most of a checkpoint is made of is done here, in a loop without calls."""
        data, memo, stack, below = self.data, self.memo, self.stack, self.below
        at, spent, most, code, costs, used = self.at, 0, self.most, -1, COSTS, self.used
        puts, texts, integer, get = _PUTS, _TEXTS, _BININT1, _BINGET
        try:
            while code != _STOP:
                code = data[at]
                at += 1
                used[code] = 1
                spent += costs[code]
                if code in puts:
                    index, at = (data[at], at + 1) if code == _BINPUT else (_U4(data, at)[0], at + 4)
                    if index == len(memo):
                        memo.append(stack[-1])
                    else:
                        self.at = at
                        self.put(index)
                elif code == integer:
                    stack.append(data[at])
                    at += 1
                elif code == get:
                    stack.append(self.got(data[at]))
                    at += 1
                elif code in texts:
                    size, first = (_U4(data, at)[0], at + 4) if code == _BINUNICODE else (data[at], at + 1)
                    at = first + size
                    if at > len(data):
                        raise ValueError("it ends in the middle of a text")
                    stack.append(value := data[first:at].decode("utf-8", "surrogatepass"))
                    spent += sys.getsizeof(value)
                elif spent > most:
                    self.afford(spent, at)
                    most = self.most
                    at -= 1  # once more, now that it is paid
                    spent -= costs[code]
                elif code == _MEMOIZE:
                    memo.append(stack[-1])
                elif code == _TUPLE2:
                    value = stack.pop()
                    stack[-1] = (stack[-1], value)
                elif code == _REDUCE:
                    value = stack.pop()
                    stack[-1] = Object("REDUCE", stack[-1], value)
                elif code == _TUPLE:
                    items, self.stack = tuple(stack), below.pop()
                    stack = self.stack
                    stack.append(items)
                elif code in _CONSTANTS:
                    stack.append(_CONSTANTS[code])
                elif code == _MARK and len(below) < MAX_MARKS:
                    below.append(stack)
                    self.stack = stack = []
                elif code == _BINPERSID:
                    self.persistent(stack.pop())
                else:
                    self.at, self.spent = at, spent
                    self.other(code)
                    at, spent, stack = self.at, self.spent, self.stack
        finally:
            self.at = max(at, self.at)

    def other(self, code: int) -> None:
        """Do an operation that is not a frequent one."""
        if code in _PLAIN:
            _PLAIN[code](self, None)
            return
        if code not in ARGUMENTS:
            raise ValueError(f"its byte {code:02x} is not an opcode")
        self.stream.seek(self.at)
        try:
            arg = ARGUMENTS[code](self.stream)
        finally:
            self.at = self.stream.tell()
        self.afford(self.spent + sys.getsizeof(arg), self.at)
        _ACTS[code](self, arg)

    def afford(self, spent: int, at: int) -> None:
        """Take a cost into account, and refuse what is more than the bytes so far may cost."""
        self.spent = spent
        if spent > self.most:
            self.most = self.free + min(PER_BYTE * (at - self.start), _PER_STORAGE * self.storages)
        if spent > self.most:
            raise refuse(f"asks for more than {self.most >> 20} MiB of objects")

    # -- stack and memo

    def push(self, value: Value) -> None:
        self.stack.append(value)  # looked up here, after an argument's to_mark() has changed the stack

    def mark(self, _: Value) -> None:
        if len(self.below) >= MAX_MARKS:
            raise refuse(f"has more than {MAX_MARKS} open marks")
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
        # Python numbers its memo entries from 0, so a large index past the bytes so far is an attack
        # on readers that keep the memo in an array.
        if not 0 <= index <= max(self.at - self.start, 255):
            raise refuse(f"uses the absurd memo index {index}")
        value = self.stack[-1]
        self.memo += [_NOTHING] * (index + 1 - len(self.memo))
        self.memo[index] = value

    def got(self, index: int) -> Value:
        value = self.memo[index] if 0 <= index < len(self.memo) else _NOTHING
        if value is _NOTHING:
            raise KeyError(index)
        return value

    def persistent(self, pid: Value) -> None:
        self.storages += 1
        self.stack.append(PersistentId(pid))

    # -- making

    def globally(self, names: Value) -> None:
        if not all(isinstance(name, str) and name and name.isprintable() for name in names):
            raise refuse("names a class or function in a way that no Python name is spelled")
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

    def new_object(self, _: Value) -> None:
        args = self.stack.pop()
        self.stack[-1] = Object("NEWOBJ", self.stack[-1], args)

    def new_object_ex(self, _: Value) -> None:
        kwargs, args = self.stack.pop(), self.stack.pop()
        self.stack[-1] = Object("NEWOBJ_EX", self.stack[-1], args, kwargs)

    def object_of_mark(self, _: Value) -> None:
        callee, *args = self.to_mark()
        self.stack.append(Object("OBJ", callee, tuple(args)))

    def instance(self, arg: Value) -> None:
        args = self.to_mark()
        self.globally(arg)
        self.stack[-1] = Object("OBJ", self.stack[-1], tuple(args))

    def proto(self, version: int) -> None:
        if version > _NEWEST:
            raise refuse(f"is of protocol {version}, which does not exist")
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
                target.changes = target.changes or []  # most have none
                target.changes.append((kind, values))
        elif kind == "append" and isinstance(target, list):
            target.extend(values)
        elif kind == "set" and isinstance(target, Dict):
            target.pairs.extend(values)
        elif kind == "add" and isinstance(target, Set) and not target.frozen:
            target.items.extend(values)
        else:
            raise refuse(f"changes a {type(target).__name__.lower()} in a way that none allows")

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
        raise refuse("has a key without a value")
    return list(zip(items[::2], items[1::2], strict=True))


#: What is not done in the loop itself.
_OPS: dict[str, Callable[[_Machine, Value], object]] = {
    "PROTO": _Machine.proto,
    "FRAME": lambda m, arg: None,
    "STOP": lambda m, arg: None,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": lambda m, arg: m.to_mark(),
    "DUP": lambda m, arg: m.push(m.stack[-1]),
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "GET": lambda m, arg: m.push(m.got(arg)),
    "BINGET": lambda m, arg: m.push(m.got(arg)),
    "LONG_BINGET": lambda m, arg: m.push(m.got(arg)),
    "STRING": lambda m, arg: m.push(Latin1(arg)),
    "BINSTRING": lambda m, arg: m.push(Latin1(arg)),
    "SHORT_BINSTRING": lambda m, arg: m.push(Latin1(arg)),
    "TUPLE1": lambda m, arg: m.tuple_of(1),
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
    "NEWOBJ": _Machine.new_object,
    "NEWOBJ_EX": _Machine.new_object_ex,
    "OBJ": _Machine.object_of_mark,
    "INST": _Machine.instance,
    "BUILD": _Machine.build,
    "PERSID": _Machine.persistent,
    "EXT1": lambda m, arg: m.push(Extension(arg)),
    "EXT2": lambda m, arg: m.push(Extension(arg)),
    "EXT4": lambda m, arg: m.push(Extension(arg)),
    "NEXT_BUFFER": _Machine.buffer,
    "READONLY_BUFFER": _Machine.buffer,
}
_OPS |= dict.fromkeys(PUSH_ARGUMENT, _Machine.push)
_ACTS = {code: _OPS[name] for name, code in OPCODES.items() if name in _OPS}
#: What operations without an argument do, by the opcode.
_PLAIN = {code: act for code, act in _ACTS.items() if code not in ARGUMENTS}
