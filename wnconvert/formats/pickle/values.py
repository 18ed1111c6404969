"""Pickles as data: their content as plain values and nodes.

``None``, numbers, strings, bytes, tuples and lists are themselves; everything else is a node of this module
that remembers what the pickle said: a :class:`Global` its name, an :class:`Object` its callee, arguments and
every later change. Any node may stand as callee, class or key, so nested classes
(``getattr(Outer, "Inner")``), bound methods, objects that are their own list or dict, and cycles all come
back as they came (:mod:`wnconvert.formats.pickle.writer`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

__all__ = [
    "Dict",
    "Extension",
    "Global",
    "Latin1",
    "Object",
    "PersistentId",
    "Pickle",
    "Set",
    "Unwritten",
    "Value",
    "children",
    "globals_of",
    "levels",
    "walk",
]


# None, bool, int, float, str, bytes, bytearray, tuple, list, or one of the nodes below.
Value: TypeAlias = Any


class Latin1(str):
    """A ``str`` of Python 2: bytes that were decoded as latin-1, and are written back as bytes."""

    __slots__ = ()


@dataclass(eq=False, slots=True)
class Global:
    """A class or function by name, never looked up; ``dotted`` is ``module.name``."""

    module: str
    name: str
    dotted: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Join the two names, which are asked for with every tensor."""
        self.dotted = f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class PersistentId:
    """Something outside the pickle; torch's storages are ``("storage", class, key, location, numel)``."""

    pid: Value
    meaning: object = field(default=None, init=False, repr=False)


@dataclass(eq=False, slots=True)
class Extension:
    """An entry of ``copyreg``'s extension registry, by number."""

    code: int


@dataclass(eq=False, slots=True)
class Dict:
    """A ``dict`` as the pairs that were set, in order; keys need not be hashable here."""

    pairs: list[tuple[Value, Value]] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Set:
    """A ``set`` or ``frozenset``."""

    items: list[Value] = field(default_factory=list)
    frozen: bool = False


@dataclass(eq=False, slots=True)
class Object:
    """An object that a REDUCE, NEWOBJ, NEWOBJ_EX or OBJ made, and the changes made to it afterwards.

    ``op`` is the opcode's name. ``changes`` are ``("append", list)``, ``("add", list)``,
    ``("set", list of pairs)`` and ``("build", state)``, in order. ``meaning`` is what a reader of records
    took it for.
    """

    op: str
    callee: Value
    args: Value
    kwargs: Value = None
    changes: list[tuple[str, Any]] | tuple[()] = ()
    meaning: object = field(default=None, init=False, repr=False)

    @property
    def pairs(self) -> list[tuple[Value, Value]]:
        """The pairs that were set on it, for an object that is a mapping."""
        return [pair for kind, pairs in self.changes if kind == "set" for pair in pairs]

    @property
    def state(self) -> Value:
        """The argument of its last BUILD, or None."""
        return next((state for kind, state in reversed(self.changes) if kind == "build"), None)

    def is_call_of(self, *dotted: str) -> bool:
        """Whether its callee is a global of one of these names."""
        return isinstance(self.callee, Global) and self.callee.dotted in dotted


@dataclass(eq=False, slots=True)
class Unwritten:
    """``size`` bytes that are not known when a pickle is written; ``what`` will make them.

    ``kind`` is ``"bytes"``, ``"bytearray"``, or ``"text"``: each byte a character.
    """

    kind: str
    size: int
    what: object


@dataclass(frozen=True, slots=True)
class Pickle:
    """A pickle's root value, the protocol it was written in (of its newest operation, at least), and its end.

    ``nodes`` are the objects, persistent ids and globals in it, by their distance from the root.
    """

    root: Value
    protocol: int
    end: int = 0
    nodes: tuple[Value, ...] = ()


def children(value: Value) -> Sequence[Value]:
    """The values directly below a value, in the order of writing."""
    kind = type(value)
    if kind is tuple or kind is list:
        return value  # type: ignore[no-any-return]
    if kind is Dict:
        return [part for pair in value.pairs for part in pair]
    if kind is Set:
        return value.items  # type: ignore[no-any-return]
    if kind is PersistentId:
        return (value.pid,)
    return _parts_of(value) if kind is Object else ()


def _parts_of(value: Object) -> Sequence[Value]:
    if not value.changes:
        return (value.callee, value.args, value.kwargs)
    parts = [value.callee, value.args, value.kwargs]
    for change, payload in value.changes:
        if change == "build":
            parts.append(payload)
        elif change == "set":
            parts += (part for pair in payload for part in pair)
        else:
            parts += payload
    return parts


_COMPOUND = frozenset({tuple, list, Dict, Set, PersistentId, Object, Global, Extension})
_SHORT = 8


def levels(root: Value) -> Iterator[list[Value]]:
    """All containers and nodes below ``root``, each once, by their distance from it.

    Short tuples that hold nothing of the kind, such as shapes, are left out: they are most of a checkpoint.
    """
    level, seen, compound = [root], {id(root)}, _COMPOUND
    while level:
        yield level
        below: list[Value] = []
        for value in level:
            kind = type(value)
            for child in value if kind is tuple or kind is list else children(value):
                kind = type(child)
                if kind not in compound or id(child) in seen:
                    continue
                if kind is tuple and len(child) <= _SHORT and compound.isdisjoint(map(type, child)):
                    continue
                seen.add(id(child))
                below.append(child)
        level = below


def walk(root: Value) -> Iterator[Value]:
    """Every node that hangs below ``root``, list and tuple that holds any (``levels``), each once."""
    for level in levels(root):
        yield from level


def globals_of(root: Value) -> list[Global]:
    """The globals that a pickle names, each name once, in order of first use."""
    named = {value.dotted: value for value in walk(root) if isinstance(value, Global)}
    return list(named.values())
