"""The reader of pickles as data: bytes to values, by the machine, and the errors about them."""

from __future__ import annotations

import struct

from wnconvert.errors import FormatError
from wnconvert.formats.pickle.machine import FREE, Machine, refuse
from wnconvert.formats.pickle.values import Object, PersistentId, Pickle, Value, levels

__all__ = ["CutShort", "load", "nodes_of"]


# Python's own pickler cannot nest deeper than its recursion limit.
MAX_DEPTH = 5_000


class CutShort(FormatError):
    """A pickle whose bytes end before its STOP."""


def load(data: bytes, at: int = 0, *, free: int = FREE) -> Pickle:
    """Read the pickle that begins at byte ``at``, as data; ``free`` is what it may cost without storages.

    Raises ``CutShort`` where it ends too early, and ``FormatError`` where it is malformed, or would need more
    memory, marks or depth than any real checkpoint.

    >>> import pickle
    >>> load(pickle.dumps({"epoch": 3, "names": ["a", "b"]})).root
    Dict(pairs=[('epoch', 3), ('names', ['a', 'b'])])
    """
    machine = Machine(data, at, free)
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
        kind = CutShort if machine.is_at_end else FormatError
        raise kind(f"the pickle in it is damaged ({_reason(error, machine)})", fix=_DAMAGED) from error
    return Pickle(root, machine.protocol, machine.at, nodes_of(root))


_DAMAGED = "download or save the file again"


def _reason(error: Exception, machine: Machine) -> str:
    if machine.is_at_end:
        return "it ends before its STOP"
    if isinstance(error, IndexError):
        return "it takes from an empty stack"
    if isinstance(error, KeyError):
        return f"it refers to memo entry {error}, which it never stored"
    return str(error) or type(error).__name__


def nodes_of(root: Value) -> tuple[Value, ...]:
    """The objects and persistent ids below ``root``. Raises ``FormatError`` where it nests too deep."""
    found: list[Value] = []
    for depth, level in enumerate(levels(root)):
        if depth > MAX_DEPTH:
            raise refuse(f"nests more than {MAX_DEPTH} deep")
        found += [value for value in level if type(value) is Object or type(value) is PersistentId]
    return tuple(found)
