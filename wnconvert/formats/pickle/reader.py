"""The reader of pickles as data: bytes to values; nothing named in a pickle is imported or called."""

from __future__ import annotations

from wnconvert.formats.pickle.machine import FREE, refuse, run_pickle
from wnconvert.formats.pickle.values import Global, Object, PersistentId, Pickle, Value, levels

__all__ = ["load", "records_below"]


# Python's own pickler cannot nest deeper than its recursion limit.
MAX_DEPTH = 5_000


def load(data: bytes, at: int = 0, *, free: int = FREE) -> Pickle:
    """Read the pickle that begins at byte ``at``, as data; ``free`` is what it may cost without storages.

    Raises ``CutShortError`` where it ends too early, and ``FormatError`` where it is malformed, or would need
    more memory, marks or depth than any real checkpoint.

    >>> import pickle
    >>> load(pickle.dumps({"epoch": 3, "names": ["a", "b"]})).root
    Dict(pairs=[('epoch', 3), ('names', ['a', 'b'])])
    """
    root, protocol, end = run_pickle(data, at, free)
    return Pickle(root, protocol, end, records_below(root))


_RECORDS = frozenset({Object, PersistentId, Global})


def records_below(root: Value) -> tuple[Value, ...]:
    """The objects, persistent ids and globals below ``root``; raises ``FormatError`` if it is too deep."""
    found: list[Value] = []
    for depth, level in enumerate(levels(root)):
        if depth > MAX_DEPTH:
            raise refuse(f"nests more than {MAX_DEPTH} deep")
        found += [value for value in level if type(value) in _RECORDS]
    return tuple(found)
